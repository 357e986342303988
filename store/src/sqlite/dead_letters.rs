//! Dead letters. One thread writes, so of two that claim a letter the first in the queue has it.

use async_trait::async_trait;
use eshaar_model::{BusinessId, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Result, Row, params};

use super::columns::{bytes, identity, integer, timestamp, unsigned};
use super::{Operation, Sqlite};
use crate::dead_letters::{
    DeadLetterId, DeadLetterStore, Hold, KEPT_MS, Letter, LetterBody, LetterClaim, LetterHead, LetterPage, LetterPlace,
    LetterQuery, LetterState, Settlement,
};
use crate::{Holder, StoreError};

/// Most letters of a page.
const PAGE_LETTERS: usize = 1_000;
/// Most letters that are looked at for one page.
const EXAMINED: usize = 5_000;
/// Most letters that one trim lets go of.
const TRIM_LETTERS: u32 = 500;

/// The columns of a [`Letter`], in the order that [`letter`] reads them.
macro_rules! select_letters {
    ($more:literal, $rest:literal) => {
        concat!(
            "SELECT id, stage, topic, partition, offset, redrives, business, event, correlation, code, reason, attempts,
                 at, bytes, state, settled_at, settled_by",
            $more,
            " FROM dead_letter ",
            $rest
        )
    };
}

#[async_trait]
impl DeadLetterStore for Sqlite {
    async fn put(&self, letters: Vec<(LetterHead, LetterBody)>) -> Result<(), StoreError> {
        self.write(Operation::new("put_letters"), letters.len(), move |tables| put(&tables.db, &letters)).await
    }

    async fn get(&self, id: DeadLetterId) -> Result<Option<(Letter, LetterBody)>, StoreError> {
        let kept = self.clock.now().plus_millis(-KEPT_MS);
        self.query(Operation::new("get_letter"), move |db| get(db, id, kept)).await
    }

    async fn list(&self, query: LetterQuery, now: Timestamp) -> Result<LetterPage, StoreError> {
        self.query(Operation::new("list_letters"), move |db| list(db, &query, now)).await
    }

    async fn claim(&self, id: DeadLetterId, hold: Hold) -> Result<LetterClaim, StoreError> {
        let kept = self.clock.now().plus_millis(-KEPT_MS);
        self.write(Operation::new("claim_letter"), 1, move |tables| claim(&tables.db, id, hold, kept)).await
    }

    async fn settle(
        &self,
        id: DeadLetterId,
        holder: Holder,
        settlement: Option<Settlement>,
    ) -> Result<bool, StoreError> {
        self.write(Operation::durable("settle_letter"), 1, move |tables| {
            settle(&tables.db, id, holder, settlement.as_ref())
        })
        .await
    }

    async fn trim(&self, now: Timestamp) -> Result<usize, StoreError> {
        let kept = now.plus_millis(-KEPT_MS);
        self.write(Operation::new("trim_letters"), TRIM_LETTERS as usize, move |tables| {
            tables
                .db
                .prepare_cached(
                    "DELETE FROM dead_letter WHERE id IN (SELECT id FROM dead_letter WHERE at <= ?1 LIMIT ?2)",
                )?
                .execute(params![kept.as_millis(), TRIM_LETTERS])
        })
        .await
    }
}

fn put(db: &Connection, letters: &[(LetterHead, LetterBody)]) -> Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT INTO dead_letter (id, stage, topic, partition, offset, redrives, business, event, correlation, code,
             reason, attempts, at, bytes, state, key, headers, value)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)
         ON CONFLICT DO NOTHING",
    )?;
    for (head, body) in letters {
        insert.execute(params![
            head.id.as_bytes(),
            head.stage,
            head.topic,
            head.partition,
            integer(head.offset),
            head.redrives,
            head.business.as_ref().map(BusinessId::as_str),
            head.event,
            head.correlation,
            head.code,
            head.reason,
            head.attempts,
            head.at.as_millis(),
            integer(head.bytes),
            number(LetterState::Open),
            &body.key[..],
            &body.headers[..],
            &body.value[..]
        ])?;
    }
    Ok(())
}

fn get(db: &Connection, id: DeadLetterId, kept: Timestamp) -> Result<Option<(Letter, LetterBody)>> {
    db.prepare_cached(select_letters!(", key, value, headers", "WHERE id = ?1 AND at > ?2"))?
        .query_row(params![id.as_bytes(), kept.as_millis()], |row| {
            let body = LetterBody { key: bytes(row, 17)?, value: bytes(row, 18)?, headers: bytes(row, 19)? };
            Ok((letter(row)?, body))
        })
        .optional()
}

/// Walks down the list in one snapshot (one statement).
fn list(db: &Connection, query: &LetterQuery, now: Timestamp) -> Result<LetterPage> {
    let limit = query.limit.clamp(1, PAGE_LETTERS);
    let (oldest, newest) = (query.oldest(now), query.newest());
    let mut list =
        db.prepare_cached(select_letters!("", "WHERE (at, id) < (?1, ?2) AND at >= ?3 ORDER BY at DESC, id DESC"))?;
    let mut rows = list.query(params![newest.at.as_millis(), newest.id.as_bytes(), oldest.as_millis()])?;
    let mut page = LetterPage::default();
    let (mut last, mut examined) = (None, 0);
    while let Some(row) = rows.next()? {
        if page.letters.len() == limit || examined == EXAMINED {
            page.next = last;
            break;
        }
        examined += 1;
        let letter = letter(row)?;
        let head = &letter.head;
        last = Some(LetterPlace { at: head.at, id: head.id });
        let business = head.business.as_ref().map(BusinessId::as_str);
        if query.wants(&head.stage, &head.code, business) && query.state.is_none_or(|state| state == letter.state()) {
            page.letters.push(letter);
        }
    }
    Ok(page)
}

fn claim(db: &Connection, id: DeadLetterId, hold: Hold, kept: Timestamp) -> Result<LetterClaim> {
    let Some((letter, body)) = get(db, id, kept)? else { return Ok(LetterClaim::Gone) };
    if letter.settled.is_some() {
        return Ok(LetterClaim::Settled(letter.state()));
    }
    let claimed = db
        .prepare_cached(
            "UPDATE dead_letter SET holder = ?2, held_until = ?3
             WHERE id = ?1 AND (holder IS NULL OR holder = ?2 OR held_until <= ?4)",
        )?
        .execute(params![id.as_bytes(), hold.holder.0.as_bytes(), hold.until.as_millis(), hold.now.as_millis()])?;
    Ok(if claimed == 1 { LetterClaim::Yours(Box::new((letter, body))) } else { LetterClaim::Held })
}

fn settle(db: &Connection, id: DeadLetterId, holder: Holder, settlement: Option<&Settlement>) -> Result<bool> {
    let state = settlement.map_or(LetterState::Open, |settlement| settlement.state);
    let settled = db
        .prepare_cached(
            "UPDATE dead_letter SET holder = NULL, held_until = NULL, state = ?3, settled_at = ?4, settled_by = ?5
             WHERE id = ?1 AND holder = ?2 AND state = ?6",
        )?
        .execute(params![
            id.as_bytes(),
            holder.0.as_bytes(),
            number(state),
            settlement.map(|settlement| settlement.at.as_millis()),
            settlement.map(|settlement| settlement.by.as_str()),
            number(LetterState::Open)
        ])?;
    Ok(settled == 1)
}

const fn number(state: LetterState) -> u8 {
    state as u8
}

fn letter(row: &Row<'_>) -> Result<Letter> {
    let state: i64 = row.get(14)?;
    let state = usize::try_from(state).ok().and_then(|state| LetterState::ALL.get(state).copied());
    let state = state.ok_or(rusqlite::Error::IntegralValueOutOfRange(14, -1))?;
    let settled = match state {
        LetterState::Open => None,
        state => Some(Settlement { state, at: timestamp(row, 15)?, by: row.get(16)? }),
    };
    let business: Option<String> = row.get(6)?;
    let head = LetterHead {
        id: identity(row, 0, DeadLetterId::from_bytes)?,
        stage: row.get(1)?,
        topic: row.get(2)?,
        partition: row.get(3)?,
        offset: unsigned(row, 4)?,
        redrives: row.get(5)?,
        business: business.and_then(|business| business.parse().ok()),
        event: row.get(7)?,
        correlation: row.get(8)?,
        code: row.get(9)?,
        reason: row.get(10)?,
        attempts: row.get(11)?,
        at: timestamp(row, 12)?,
        bytes: unsigned(row, 13)?,
    };
    Ok(Letter { head, settled })
}
