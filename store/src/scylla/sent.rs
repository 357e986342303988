//! What each business has sent, newest first.
//!
//! A partition is a business's day in one of a few shards, so that a busy one neither grows without end nor sits on one
//! node. The shard follows the partition that the message was accepted in: what is written in one batch comes from one
//! partition, so a business's rows of a batch go together. `sent_day` says which days there are.

use std::collections::{HashMap, HashSet};

use eshaar_model::{BusinessId, MessageId, StatusSteps, Timestamp};
use scylla::value::{CqlTimestamp, MaybeUnset};
use uuid::Uuid;

use super::call::Call;
use super::columns::{optional_time, phone};
use super::gather::Write;
use super::messages::{message_type, messages_of, steps_of};
use super::{Cql, columns};
use crate::messages::status_at;
use crate::{MessageRow, SentPage, SentQuery, StoreError};

/// Shards of a day. Not to be lowered: rows would no longer be found.
const SHARDS: i8 = 8;
/// Most messages of a page.
const PAGE_MESSAGES: usize = 1_000;
/// Most rows that are looked at for one page of a filtered list.
const EXAMINED: usize = 2_000;
/// Most rows of a shard that one request brings.
const SLICE: usize = 500;
/// Most days that are looked at for one page.
const DAYS: i32 = 31;
/// Days that are remembered as written down; then all are forgotten, and written down again.
const KNOWN_DAYS: usize = 50_000;

const DAY_MS: i64 = 24 * 3600 * 1000;

/// The id says the day: the same message is always in the same partition.
fn day(id: MessageId) -> i32 {
    (id.made_at().as_millis() / DAY_MS) as i32
}

fn shard(row: &MessageRow) -> i8 {
    (row.accepted.0 % SHARDS as u32) as i8
}

/// Lists those of `rows` that a business has sent, and days that are new.
pub(super) fn writes(
    call: &Call<'_>,
    rows: &[MessageRow],
    days: &HashSet<(BusinessId, i32)>,
) -> impl Iterator<Item = Write> {
    let statements = call.statements();
    let sent = rows.iter().filter_map(move |row| {
        let to = MaybeUnset::from_option(row.recipient.phone().map(phone));
        let (id, expires_at) = (Uuid::from(row.id), optional_time(row.expires_at));
        let key = (row.sender.business()?.to_string(), day(row.id), shard(row));
        let values = (key.0, key.1, key.2, id, row.message_type as i8, to, expires_at);
        Some(Write::new(&statements.put_sent, values, 0))
    });
    let new = days.iter().map(move |(of, day)| Write::new(&statements.put_sent_day, (of.to_string(), *day), 0));
    sent.chain(new)
}

impl Cql {
    /// Days of businesses that this process has not written down yet.
    pub(super) fn new_days(&self, rows: &[MessageRow]) -> HashSet<(BusinessId, i32)> {
        let known = self.days.lock();
        let (mut new, mut last) = (HashSet::new(), None);
        for row in rows {
            let Some(of) = row.sender.business().map(|business| (business, day(row.id))) else { continue };
            // Neighbours are mostly of one business and one day.
            if last.replace(of) != Some(of) {
                let of = (of.0.clone(), of.1);
                if !known.contains(&of) {
                    new.insert(of);
                }
            }
        }
        new
    }

    pub(super) fn know_days(&self, days: HashSet<(BusinessId, i32)>) {
        if !days.is_empty() {
            let mut known = self.days.lock();
            if known.len() >= KNOWN_DAYS {
                known.clear();
            }
            known.extend(days);
        }
    }
}

/// A row of `sent`.
struct Row {
    id: Uuid,
    message_type: i8,
    phone: Option<i64>,
    expires_at: Option<Timestamp>,
}

/// Walks down the days of the business, and within each down its shards side by side.
pub(super) async fn page(
    call: &Call<'_>,
    business: &BusinessId,
    query: &SentQuery,
    now: Timestamp,
) -> Result<SentPage, StoreError> {
    let limit = query.limit.clamp(1, PAGE_MESSAGES);
    let mut walk = Walk { call, query, now, limit, found: Vec::new(), examined: 0, last: None };
    let newest = query.before.map_or(i32::MAX, day);
    let mut below = query.before.map_or(LAST_ID, Uuid::from);
    let days = call.read(&call.statements().sent_days, (business.as_str(), newest, DAYS)).await?;
    let days = call.rows(&days, |(day,): (i32,)| Ok(day))?;
    for day in &days {
        loop {
            let slice = slice(call, business, *day, below, walk.slice_rows()).await?;
            for rows in slice.rows.chunks(SLICE) {
                if walk.examine(rows).await? {
                    let next = walk.last;
                    return walk.page(next).await;
                }
            }
            match slice.below {
                Some(next) => below = next,
                None => break,
            }
        }
        below = LAST_ID;
    }
    // Where there may be days before these, the page ends within the last of them.
    let next = days.last().filter(|_| days.len() == DAYS as usize).map(|day| first_id(*day));
    walk.page(next).await
}

/// Above every id: all are UUIDs of version 7.
const LAST_ID: Uuid = Uuid::from_u128(0xffff_ffff_ffff_7fff_bfff_ffff_ffff_ffff);

/// The lowest id of a day: everything that was sent earlier is below it.
const fn first_id(day: i32) -> Uuid {
    Uuid::from_u128((((day as i64) * DAY_MS) as u128) << 80 | 0x7000_8000_0000_0000_0000)
}

/// The newest rows of a day below an id.
struct Slice {
    rows: Vec<Row>,
    /// Where the next slice begins; `None` where the day ends.
    below: Option<Uuid>,
}

async fn slice(
    call: &Call<'_>,
    business: &BusinessId,
    day: i32,
    below: Uuid,
    rows_a_shard: usize,
) -> Result<Slice, StoreError> {
    type Columns = (Uuid, Option<i8>, Option<i64>, Option<CqlTimestamp>);
    let of_shard = async |shard: i8| {
        let key = (business.as_str(), day, shard, below, rows_a_shard as i32);
        let rows = call.read(&call.statements().sent, key).await?;
        call.rows(&rows, |(id, message_type, phone, expires_at): Columns| {
            let expires_at = expires_at.map(columns::timestamp);
            Ok(Row { id, message_type: message_type.unwrap_or_default(), phone, expires_at })
        })
    };
    let shards = call.each((0..SHARDS).map(of_shard).collect()).await?;
    // A shard that gave as many as it may has more: below the highest of such ends nothing is certain.
    let ends = shards.iter().filter(|rows| rows.len() == rows_a_shard).filter_map(|rows| rows.last());
    let below = ends.map(|row| row.id).max();
    let mut rows: Vec<_> = shards.into_iter().flatten().filter(|row| below.is_none_or(|end| row.id >= end)).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.id));
    // The same message in two shards: the number of partitions has changed in between.
    rows.dedup_by_key(|row| row.id);
    Ok(Slice { rows, below })
}

/// A page as it fills.
struct Walk<'a> {
    call: &'a Call<'a>,
    query: &'a SentQuery,
    now: Timestamp,
    limit: usize,
    found: Vec<Uuid>,
    examined: usize,
    /// The last row that was looked at.
    last: Option<Uuid>,
}

impl Walk<'_> {
    fn is_filtered(&self) -> bool {
        self.query.message_type.is_some() || self.query.to.is_some() || self.query.status.is_some()
    }

    /// Twice as many as a shard has of the page when they are even: little is read that is not shown.
    fn slice_rows(&self) -> usize {
        let wanted = if self.is_filtered() { EXAMINED } else { self.limit - self.found.len() + 1 };
        (wanted * 2 / SHARDS as usize + 4).min(SLICE)
    }

    /// Takes what the query wants of `rows`; whether the page ends before their end.
    async fn examine(&mut self, rows: &[Row]) -> Result<bool, StoreError> {
        let steps = self.steps(rows).await?;
        for row in rows {
            if self.found.len() == self.limit || self.examined == EXAMINED {
                return Ok(true);
            }
            self.examined += 1;
            self.last = Some(row.id);
            if self.wants(row, steps.as_ref()) {
                self.found.push(row.id);
            }
        }
        Ok(false)
    }

    /// The steps of those rows that the rest of the query wants, where it asks for a status.
    async fn steps(&self, rows: &[Row]) -> Result<Option<HashMap<Uuid, StatusSteps>>, StoreError> {
        if self.query.status.is_none() {
            return Ok(None);
        }
        let of_them = rows.iter().filter(|row| self.may_want(row)).map(|row| row.id);
        let ids: Vec<_> = of_them.take(EXAMINED - self.examined).collect();
        Ok(Some(steps_of(self.call, &ids).await?.into_iter().collect()))
    }

    /// Whether the query wants it, its status aside.
    fn may_want(&self, row: &Row) -> bool {
        let of_type = |wanted| message_type(row.message_type).is_ok_and(|found| found == wanted);
        self.query.message_type.is_none_or(of_type)
            && self.query.to.is_none_or(|wanted| Some(phone(wanted)) == row.phone)
    }

    fn wants(&self, row: &Row, steps: Option<&HashMap<Uuid, StatusSteps>>) -> bool {
        let Some(wanted) = self.query.status else { return self.may_want(row) };
        let steps = steps.and_then(|steps| steps.get(&row.id)).copied().unwrap_or_default();
        self.may_want(row) && status_at(&steps, row.expires_at, self.now) == wanted
    }

    async fn page(self, next: Option<Uuid>) -> Result<SentPage, StoreError> {
        let mut messages = messages_of(self.call, &self.found).await?;
        messages.sort_by_key(|message| std::cmp::Reverse(message.row.id));
        let next = next.map(MessageId::try_from).transpose().map_err(|error| self.call.failed(&error))?;
        Ok(SentPage { messages, next })
    }
}
