//! Each side's conversations, newest activity first.
//!
//! A row says that something happened in a conversation at a time; what happens there later adds a row and leaves this one,
//! which is stale from then on. A reader tells by the conversation itself: the row of its last activity is the one that
//! counts. So nothing is read or removed when a message comes, and a batch adds one row a conversation and side. Rows lie in
//! buckets of time, an hour of a business, 30 days of a phone, so that none grows without end; `activity_bucket` says which
//! there are.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use eshaar_model::{ActivityCursor, Conversation, ConversationId, Pair, Principal, Side, Timestamp};
use parking_lot::Mutex;
use scylla::value::CqlTimestamp;
use uuid::Uuid;

use super::Cql;
use super::call::Call;
use super::columns::{time, timestamp};
use super::conversations::{stand, states};
use super::gather::Write;
use crate::conversations::PAGE_CONVERSATIONS;
use crate::{ConversationPage, ListQuery, StoreError};

/// How much time the rows of a bucket are of, by [`Side`]. Not to be changed: rows would no longer be found.
const SPAN_MS: [i64; 2] = [3_600_000, 30 * 24 * 3_600_000];
/// Most buckets that are looked at for one page.
const BUCKETS: usize = 128;
/// Most buckets that are read side by side.
const BUCKETS_AT_ONCE: usize = 16;
/// Most rows that are looked at for one page.
const EXAMINED: usize = 2_000;
/// Most rows of a bucket that one request brings.
const SLICE: usize = 500;
/// Rows whose conversations are read together.
const CHUNK: usize = 100;
/// Places that are remembered as written down; then all are forgotten, and written down again.
const KNOWN: usize = 50_000;

/// Places that this process knows to be written down.
pub(super) struct Known<T>(Mutex<HashSet<T>>);

/// Buckets of activity: whose, and which.
pub(super) type Buckets = Known<(String, i32)>;

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Hash + Eq> Known<T> {
    /// Those that are not known.
    pub(super) fn new_of(&self, all: impl Iterator<Item = T>) -> HashSet<T> {
        let known = self.0.lock();
        all.filter(|one| !known.contains(one)).collect()
    }

    /// They are written down.
    pub(super) fn know(&self, new: HashSet<T>) {
        if !new.is_empty() {
            let mut known = self.0.lock();
            if known.len() >= KNOWN {
                known.clear();
            }
            known.extend(new);
        }
    }
}

fn bucket(side: Side, at: Timestamp) -> i32 {
    // Past the range only where a forged cursor is: before or after everything.
    let bucket = at.as_millis().div_euclid(SPAN_MS[side as usize]);
    i32::try_from(bucket).unwrap_or(if bucket < 0 { i32::MIN } else { i32::MAX })
}

impl Cql {
    /// That something happened in conversations, for both sides of each; and the buckets that are new with it.
    pub(super) fn activity<'a>(
        &self,
        call: &Call<'_>,
        of: impl Iterator<Item = (&'a Pair, ActivityCursor)>,
    ) -> (Vec<Write>, HashSet<(String, i32)>) {
        let statements = call.statements();
        let (mut writes, mut buckets) = (Vec::new(), Vec::new());
        for (pair, ActivityCursor { at, conversation }) in of {
            for side in Side::BOTH {
                let place = (pair.principal(side).to_string(), bucket(side, at));
                let values = (place.0.clone(), place.1, time(at), Uuid::from(conversation));
                writes.push(Write::new(&statements.put_activity, values, 0));
                buckets.push(place);
            }
        }
        let new = self.conversations.activity.new_of(buckets.into_iter());
        writes.extend(new.iter().cloned().map(|place| Write::new(&statements.put_activity_bucket, place, 0)));
        (writes, new)
    }
}

/// Above every id: all are UUIDs of version 7.
const LAST_ID: Uuid = Uuid::from_u128(0xffff_ffff_ffff_7fff_bfff_ffff_ffff_ffff);

/// What everything that is read is below: a time, and of that time an id.
type Below = (Timestamp, Uuid);
const TOP: Below = (Timestamp::from_millis(i64::MAX), LAST_ID);

/// Walks down the buckets of the side, several side by side where they hold little.
pub(super) async fn page(call: &Call<'_>, of: &Principal, query: &ListQuery) -> Result<ConversationPage, StoreError> {
    let side = if of.business().is_some() { Side::Business } else { Side::Phone };
    let name = of.to_string();
    let mut walk = Walk {
        call,
        of,
        query,
        limit: query.limit.clamp(1, PAGE_CONVERSATIONS),
        page: ConversationPage::default(),
        seen: HashMap::new(),
        examined: 0,
        last: query.after,
    };
    let mut below = query.after.map_or(TOP, |cursor| (cursor.at, cursor.conversation.into()));
    let newest = bucket(side, below.0);
    let buckets = call.read(&call.statements().activity_buckets, (&name, newest, BUCKETS as i32)).await?;
    let buckets = call.rows(&buckets, |(bucket,): (i32,)| Ok(bucket))?;
    let (mut at, mut at_once) = (0, 1);
    while at < buckets.len() {
        let rows_each = walk.slice_rows();
        let group = &buckets[at..buckets.len().min(at + at_once)];
        let first = below;
        let read = async |place: usize, bucket: i32| {
            slice(call, &name, bucket, if place == 0 { first } else { TOP }, rows_each).await
        };
        let slices = call.each(group.iter().enumerate().map(|(place, bucket)| read(place, *bucket)).collect()).await?;
        let mut rows = Vec::new();
        for slice in slices {
            let (full, end) = (slice.len() == rows_each, slice.last().copied());
            rows.extend(slice);
            // A bucket that gave as many rows as it may has more: the next slice begins within it.
            below = match end {
                Some(end) if full => end,
                _ => TOP,
            };
            if full {
                break;
            }
            at += 1;
        }
        if walk.examine(&rows).await? {
            return Ok(walk.end_here());
        }
        at_once = (at_once * 2).min(BUCKETS_AT_ONCE);
    }
    // Where there may be buckets before these, the page ends at the lowest place of the last of them.
    if let Some(lowest) = buckets.last().filter(|_| buckets.len() == BUCKETS) {
        walk.last = first_of(side, *lowest);
        return Ok(walk.end_here());
    }
    Ok(walk.page)
}

/// The lowest place of a bucket: everything in earlier ones is below it.
fn first_of(side: Side, bucket: i32) -> Option<ActivityCursor> {
    let at = Timestamp::from_millis(i64::from(bucket) * SPAN_MS[side as usize]);
    let lowest = Uuid::from_u128(0x7000_8000_0000_0000_0000);
    ConversationId::try_from(lowest).ok().map(|conversation| ActivityCursor { at, conversation })
}

/// The newest rows of a bucket below a place.
async fn slice(call: &Call<'_>, of: &str, bucket: i32, below: Below, rows: usize) -> Result<Vec<Below>, StoreError> {
    let key = (of, bucket, time(below.0), below.1, rows as i32);
    let found = call.read(&call.statements().activity, key).await?;
    call.rows(&found, |(at, conversation): (CqlTimestamp, Uuid)| Ok((timestamp(at), conversation)))
}

/// A page as it fills.
struct Walk<'a> {
    call: &'a Call<'a>,
    of: &'a Principal,
    query: &'a ListQuery,
    limit: usize,
    page: ConversationPage,
    /// The conversations of the rows so far; `None` where there is none (any more).
    seen: HashMap<Uuid, Option<Conversation>>,
    examined: usize,
    /// The last row that was looked at.
    last: Option<ActivityCursor>,
}

impl Walk<'_> {
    /// Twice as many as are wanted: little is read that is not shown.
    fn slice_rows(&self) -> usize {
        let wanted = if self.query.status.is_some() { SLICE } else { self.limit - self.page.conversations.len() };
        (wanted * 2 + 16).min(SLICE)
    }

    /// Takes what the query wants of `rows`; whether the page ends before their end.
    async fn examine(&mut self, rows: &[Below]) -> Result<bool, StoreError> {
        for rows in rows.chunks(CHUNK) {
            self.learn(rows).await?;
            for (at, id) in rows {
                if self.page.conversations.len() == self.limit || self.examined == EXAMINED {
                    return Ok(true);
                }
                self.examined += 1;
                let conversation = ConversationId::try_from(*id).map_err(|error| self.call.failed(&error))?;
                self.last = Some(ActivityCursor { at: *at, conversation });
                let Some(known) = self.seen.get(id).and_then(Option::as_ref) else { continue };
                let wanted = self.query.status.is_none_or(|status| status == known.status());
                if wanted && known.activity_at() == *at {
                    self.page.conversations.push(known.clone());
                }
            }
        }
        Ok(false)
    }

    /// Reads the conversations of rows that were not read for this page yet.
    async fn learn(&mut self, rows: &[Below]) -> Result<(), StoreError> {
        let ids: HashSet<_> = rows.iter().map(|(_, id)| *id).filter(|id| !self.seen.contains_key(id)).collect();
        let ids: Vec<_> = ids.into_iter().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let mut found: Vec<_> = states(self.call, &ids).await?.into_values().collect();
        stand(self.call, self.of, &mut found).await?;
        self.seen.extend(ids.into_iter().map(|id| (id, None)));
        self.seen.extend(found.into_iter().map(|known| (known.id.into(), Some(known))));
        Ok(())
    }

    fn end_here(self) -> ConversationPage {
        ConversationPage { next: self.last, ..self.page }
    }
}
