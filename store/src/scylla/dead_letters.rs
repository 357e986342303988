//! Dead letters. A letter is a row of `dead_letter`, which is only ever written conditionally: its making, its claims and
//! its end are decided one after the other. `dead_letter_day` lists the letters of a day, in a few shards, for pages by
//! time; a letter that is made again is listed again under the time of the first.

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{BusinessId, Timestamp};
use scylla::value::{CqlTimestamp, MaybeUnset};
use scylla::{DeserializeRow, SerializeRow};
use uuid::Uuid;

use super::Cql;
use super::call::Call;
use super::columns::{integer, time, timestamp, ttl_s};
use super::gather::Write;
use crate::dead_letters::{
    DeadLetterId, DeadLetterStore, Hold, KEPT_MS, Letter, LetterBody, LetterClaim, LetterHead, LetterPage, LetterPlace,
    LetterQuery, LetterState, Settlement,
};
use crate::{Holder, StoreError};

/// Shards of a day. Not to be lowered: rows would no longer be found.
const SHARDS: i8 = 8;
/// Most letters of a page.
const PAGE_LETTERS: usize = 1_000;
/// Most rows that are looked at for one page.
const EXAMINED: usize = 2_000;
/// Most rows of a shard that one request brings.
const SLICE: usize = 100;
/// Letters that are looked up together.
const TOGETHER: usize = 25;
/// Rounds of claiming while others do the same.
const ROUNDS: usize = 8;

const DAY_MS: i64 = 24 * 3600 * 1000;

fn day(at: Timestamp) -> i32 {
    at.as_millis().div_euclid(DAY_MS) as i32
}

const fn shard(id: DeadLetterId) -> i8 {
    (id.as_bytes()[0] % SHARDS as u8) as i8
}

/// What is left of a letter's time, in seconds.
fn left_s(at: Timestamp, now: Timestamp) -> i32 {
    ttl_s(at.plus_millis(KEPT_MS).millis_since(now))
}

#[async_trait]
impl DeadLetterStore for Cql {
    async fn put(&self, letters: Vec<(LetterHead, LetterBody)>) -> Result<(), StoreError> {
        let call = self.call("put_letters")?;
        let now = self.clock.now();
        let listed = call.each(letters.iter().map(|letter| put(&call, letter, now)).collect()).await?;
        call.write(listed).await
    }

    async fn get(&self, id: DeadLetterId) -> Result<Option<(Letter, LetterBody)>, StoreError> {
        let call = self.call("get_letter")?;
        Ok(find(&call, id, self.clock.now()).await?.map(|found| (found.letter, found.body)))
    }

    async fn list(&self, query: LetterQuery, now: Timestamp) -> Result<LetterPage, StoreError> {
        let call = self.call("list_letters")?;
        page(&call, &query, now).await
    }

    async fn claim(&self, id: DeadLetterId, hold: Hold) -> Result<LetterClaim, StoreError> {
        let call = self.call("claim_letter")?;
        for _ in 0..ROUNDS {
            let now = self.clock.now();
            let Some(found) = find(&call, id, now).await? else { return Ok(LetterClaim::Gone) };
            if found.letter.settled.is_some() {
                return Ok(LetterClaim::Settled(found.letter.state()));
            }
            let is_mine = found.holder == hold.holder.0;
            if found.holder != Holder::NOBODY.0 && !is_mine && found.held_until > hold.now {
                return Ok(LetterClaim::Held);
            }
            let ttl = left_s(found.letter.head.at, now);
            let values =
                (ttl, hold.holder.0, time(hold.until), Uuid::from(id), LetterState::Open.as_str(), found.holder);
            let decision = call.decide(&call.statements().claim_letter, &values).await?;
            // Also when it was refused because of an attempt of ours before it, whose outcome had not been known.
            let is_open = decision.text("state") == Some(LetterState::Open.as_str());
            if decision.applied || (is_open && decision.uuid("holder") == Some(hold.holder.0)) {
                return Ok(LetterClaim::Yours(Box::new((found.letter, found.body))));
            }
        }
        Err(call.failed("others claim the letter at the same time, and it is not decided whose it is"))
    }

    async fn settle(
        &self,
        id: DeadLetterId,
        holder: Holder,
        settlement: Option<Settlement>,
    ) -> Result<bool, StoreError> {
        let call = self.call("settle_letter")?;
        let now = self.clock.now();
        let Some(found) = find(&call, id, now).await? else { return Ok(false) };
        let ttl = left_s(found.letter.head.at, now);
        let state = settlement.as_ref().map_or(LetterState::Open, |settlement| settlement.state);
        let at = MaybeUnset::from_option(settlement.as_ref().map(|settlement| time(settlement.at)));
        let by = MaybeUnset::from_option(settlement.as_ref().map(|settlement| settlement.by.as_str()));
        let open = LetterState::Open.as_str();
        let values = (ttl, Holder::NOBODY.0, state.as_str(), at, by, Uuid::from(id), open, holder.0);
        let decision = call.decide(&call.statements().settle_letter, &values).await?;
        if decision.applied {
            return Ok(true);
        }
        // Refused because of an attempt of ours whose outcome had not been known: then it is as we wanted it.
        let same_by = decision.text("settled_by") == settlement.as_ref().map(|settlement| settlement.by.as_str());
        let same_at = decision.timestamp("settled_at") == settlement.as_ref().map(|settlement| settlement.at);
        let is_free = decision.uuid("holder") == Some(Holder::NOBODY.0);
        Ok(is_free && same_by && same_at && decision.text("state") == Some(state.as_str()))
    }

    /// Letters go by themselves.
    async fn trim(&self, _now: Timestamp) -> Result<usize, StoreError> {
        self.call("trim_letters").map(|_| 0)
    }
}

/// Makes the letter, unless it is there; returns how it is listed.
async fn put(call: &Call<'_>, (head, body): &(LetterHead, LetterBody), now: Timestamp) -> Result<Write, StoreError> {
    let business = head.business.as_ref().map(BusinessId::as_str);
    let values = New {
        id: head.id.into(),
        stage: &head.stage,
        topic: &head.topic,
        partition: head.partition as i32,
        offset: integer(head.offset),
        redrives: head.redrives as i32,
        business: MaybeUnset::from_option(business),
        event: MaybeUnset::from_option(head.event.as_deref()),
        correlation: MaybeUnset::from_option(head.correlation.as_deref()),
        code: &head.code,
        reason: &head.reason,
        attempts: head.attempts as i32,
        at: time(head.at),
        bytes: integer(head.bytes),
        state: LetterState::Open.as_str(),
        holder: Holder::NOBODY.0,
        key: &body.key,
        value: &body.value,
        headers: &body.headers,
        ttl_s: left_s(head.at, now),
    };
    let decision = call.decide(&call.statements().put_letter, &values).await?;
    let at = if decision.applied { head.at } else { decision.timestamp("at").unwrap_or(head.at) };
    let key = (day(at), shard(head.id), time(at), Uuid::from(head.id));
    let (stage, code) = (head.stage.clone(), head.code.clone());
    let business = MaybeUnset::from_option(business.map(ToOwned::to_owned));
    let values = (key.0, key.1, key.2, key.3, stage, code, business, left_s(at, now));
    Ok(Write::new(&call.statements().list_letter, values, 0))
}

/// A row of `dead_letter` that is to be made.
#[derive(SerializeRow)]
struct New<'a> {
    id: Uuid,
    stage: &'a str,
    topic: &'a str,
    partition: i32,
    offset: i64,
    redrives: i32,
    business: MaybeUnset<&'a str>,
    event: MaybeUnset<&'a str>,
    correlation: MaybeUnset<&'a str>,
    code: &'a str,
    reason: &'a str,
    attempts: i32,
    at: CqlTimestamp,
    bytes: i64,
    state: &'a str,
    holder: Uuid,
    key: &'a Bytes,
    value: &'a Bytes,
    headers: &'a Bytes,
    #[scylla(rename = "[ttl]")]
    ttl_s: i32,
}

/// A row of `dead_letter`.
#[derive(DeserializeRow)]
struct Row {
    id: Uuid,
    stage: String,
    topic: String,
    partition: i32,
    offset: i64,
    redrives: i32,
    business: Option<String>,
    event: Option<String>,
    correlation: Option<String>,
    code: String,
    reason: String,
    attempts: i32,
    at: CqlTimestamp,
    bytes: i64,
    state: String,
    settled_at: Option<CqlTimestamp>,
    settled_by: Option<String>,
    holder: Uuid,
    held_until: Option<CqlTimestamp>,
}

/// What a letter holds: its key, its value, its headers.
type Content = (Option<Bytes>, Option<Bytes>, Option<Bytes>);

struct Found {
    letter: Letter,
    body: LetterBody,
    holder: Uuid,
    held_until: Timestamp,
}

/// Two reads of one row: what a page shows of it, and its content.
async fn find(call: &Call<'_>, id: DeadLetterId, now: Timestamp) -> Result<Option<Found>, StoreError> {
    let (heads, body) = tokio::try_join!(
        call.read(&call.statements().letters, (vec![Uuid::from(id)],)),
        call.first::<Content>(&call.statements().letter_body, (Uuid::from(id),)),
    )?;
    let (Some(row), Some(body)) = (call.rows(&heads, |row: Row| Ok(row))?.pop(), body) else { return Ok(None) };
    let (holder, held_until) = (row.holder, row.held_until.map_or(Timestamp::default(), timestamp));
    let letter = letter(row).map_err(|reason| call.failed(&reason))?;
    if letter.head.at.plus_millis(KEPT_MS) <= now {
        return Ok(None);
    }
    let (key, value, headers) = body;
    let body = LetterBody {
        key: key.unwrap_or_default(),
        value: value.unwrap_or_default(),
        headers: headers.unwrap_or_default(),
    };
    Ok(Some(Found { letter, body, holder, held_until }))
}

fn letter(row: Row) -> Result<Letter, String> {
    let state: LetterState = row.state.parse().map_err(|error| format!("letter {}: {error}", row.id))?;
    let settled = match state {
        LetterState::Open => None,
        state => {
            let at = row.settled_at.map(timestamp).unwrap_or_default();
            Some(Settlement { state, at, by: row.settled_by.unwrap_or_default() })
        }
    };
    let head = LetterHead {
        id: DeadLetterId::try_from(row.id).map_err(|error| error.to_string())?,
        stage: row.stage,
        topic: row.topic,
        partition: row.partition as u32,
        offset: row.offset as u64,
        redrives: row.redrives as u32,
        business: row.business.and_then(|business| business.parse().ok()),
        event: row.event,
        correlation: row.correlation,
        code: row.code,
        reason: row.reason,
        attempts: row.attempts as u32,
        at: timestamp(row.at),
        bytes: row.bytes as u64,
    };
    Ok(Letter { head, settled })
}

/// A row of `dead_letter_day`.
struct Listed {
    place: LetterPlace,
    wanted: bool,
}

/// Walks down the days that are kept, and within each down its shards side by side.
async fn page(call: &Call<'_>, query: &LetterQuery, now: Timestamp) -> Result<LetterPage, StoreError> {
    let limit = query.limit.clamp(1, PAGE_LETTERS);
    let (oldest, mut below) = (query.oldest(now), query.newest());
    let newest_day = day(below.at).min(day(now) + 1);
    let mut page = LetterPage::default();
    let (mut last, mut examined) = (None, 0);
    for day in (day(oldest)..=newest_day).rev() {
        loop {
            let slice = slice(call, query, day, below).await?;
            for rows in slice.rows.chunks(TOGETHER) {
                let wanted: Vec<_> = rows.iter().filter(|row| row.wanted).map(|row| Uuid::from(row.place.id)).collect();
                let mut letters = letters(call, wanted).await?;
                for row in rows {
                    if row.place.at < oldest {
                        return Ok(page);
                    }
                    if page.letters.len() == limit || examined == EXAMINED {
                        page.next = last;
                        return Ok(page);
                    }
                    examined += 1;
                    last = Some(row.place);
                    let letter = letters.remove(&row.place.id);
                    page.letters
                        .extend(letter.filter(|letter| query.state.is_none_or(|state| state == letter.state())));
                }
            }
            match slice.below {
                Some(next) => below = next,
                None => break,
            }
        }
    }
    Ok(page)
}

/// The newest rows of a day below a place.
struct Slice {
    rows: Vec<Listed>,
    /// Where the next slice begins; `None` where the day ends.
    below: Option<LetterPlace>,
}

async fn slice(call: &Call<'_>, query: &LetterQuery, day: i32, below: LetterPlace) -> Result<Slice, StoreError> {
    type Columns = (CqlTimestamp, Uuid, Option<String>, Option<String>, Option<String>);
    let of_shard = async |shard: i8| {
        let key = (day, shard, time(below.at), Uuid::from(below.id), SLICE as i32);
        let rows = call.read(&call.statements().letters_of_day, key).await?;
        call.rows(&rows, |(at, id, stage, code, business): Columns| {
            let id = DeadLetterId::try_from(id).map_err(|error| error.to_string())?;
            let (stage, code) = (stage.unwrap_or_default(), code.unwrap_or_default());
            let wanted = query.wants(&stage, &code, business.as_deref());
            Ok(Listed { place: LetterPlace { at: timestamp(at), id }, wanted })
        })
    };
    let shards = call.each((0..SHARDS).map(of_shard).collect()).await?;
    // A shard that gave as many as it may has more: below the highest of such ends nothing is certain.
    let ends = shards.iter().filter(|rows| rows.len() == SLICE).filter_map(|rows| rows.last());
    let below = ends.map(|row| row.place).max();
    let mut rows: Vec<_> =
        shards.into_iter().flatten().filter(|row| below.is_none_or(|end| row.place >= end)).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.place));
    Ok(Slice { rows, below })
}

/// Letters by their ids, without their content.
async fn letters(call: &Call<'_>, ids: Vec<Uuid>) -> Result<HashMap<DeadLetterId, Letter>, StoreError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = call.read(&call.statements().letters, (ids,)).await?;
    let found = call.rows(&rows, letter)?;
    Ok(found.into_iter().map(|letter| (letter.head.id, letter)).collect())
}
