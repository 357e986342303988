//! Idempotency claims. One thread writes, so of two that race the first in the queue is first.

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Result, params};

use super::columns::{bytes, timestamp};
use super::{Operation, Sqlite};
use crate::claims::KEPT_MS;
use crate::{Claim, ClaimKey, ClaimStore, Claimed, StoreError};

/// Most claims that one trim lets go of.
const TRIM_CLAIMS: u32 = 1_000;

#[async_trait]
impl ClaimStore for Sqlite {
    async fn claim(&self, key: &ClaimKey, claim: Claim) -> Result<Claimed, StoreError> {
        let key = key.clone();
        let expired = self.clock.now().plus_millis(-KEPT_MS);
        self.write(Operation::durable("claim"), 1, move |tables| first_or_repeat(&tables.db, &key, &claim, expired))
            .await
    }

    async fn answered(&self, key: &ClaimKey, minted: &Bytes, answer: Bytes) -> Result<(), StoreError> {
        let (key, minted) = (key.clone(), minted.clone());
        self.write(Operation::new("answer_claim"), 1, move |tables| {
            tables
                .db
                .prepare_cached("UPDATE claim SET answer = ?4 WHERE principal = ?1 AND key = ?2 AND minted = ?3")?
                .execute(params![key.principal, key.key, &minted[..], &answer[..]])
                .map(drop)
        })
        .await
    }

    async fn trim(&self, now: Timestamp) -> Result<usize, StoreError> {
        let expired = now.plus_millis(-KEPT_MS);
        self.write(Operation::new("trim_claims"), TRIM_CLAIMS as usize, move |tables| trim(&tables.db, expired)).await
    }
}

fn first_or_repeat(db: &Connection, key: &ClaimKey, claim: &Claim, expired: Timestamp) -> Result<Claimed> {
    let known = db
        .prepare_cached("SELECT body_hash, minted, answer, claimed_at FROM claim WHERE principal = ?1 AND key = ?2")?
        .query_row(params![key.principal, key.key], |row| {
            Ok(Claim {
                body_hash: row.get(0)?,
                minted: bytes(row, 1)?,
                answer: row.get::<_, Option<Vec<u8>>>(2)?.map(Bytes::from),
                claimed_at: timestamp(row, 3)?,
            })
        })
        .optional()?;
    match known {
        Some(known) if known.claimed_at > expired => return Ok(Claimed::Repeat(known)),
        Some(_) => {
            // A new row, so that the rows stay in the order they were claimed in.
            db.prepare_cached("DELETE FROM claim WHERE principal = ?1 AND key = ?2")?
                .execute(params![key.principal, key.key])?;
        }
        None => {}
    }
    db.prepare_cached(
        "INSERT INTO claim (principal, key, body_hash, minted, answer, claimed_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        key.principal,
        key.key,
        claim.body_hash,
        &claim.minted[..],
        claim.answer.as_deref(),
        claim.claimed_at.as_millis()
    ])?;
    Ok(Claimed::First)
}

/// The oldest first, up to one that is younger.
fn trim(db: &Connection, expired: Timestamp) -> Result<usize> {
    let mut last = None;
    let mut oldest = db.prepare_cached("SELECT claim, claimed_at FROM claim ORDER BY claim LIMIT ?1")?;
    let mut rows = oldest.query([TRIM_CLAIMS])?;
    while let Some(row) = rows.next()? {
        if timestamp(row, 1)? > expired {
            break;
        }
        last = Some(row.get::<_, i64>(0)?);
    }
    drop(rows);
    let Some(last) = last else { return Ok(0) };
    db.prepare_cached("DELETE FROM claim WHERE claim <= ?1")?.execute([last])
}
