//! Broadcasts and their tallies.

use std::collections::HashSet;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{BroadcastId, BusinessId, RecipientsId, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Result, Row, params};

use super::columns::{bytes, identity, integer, text, timestamp, unsigned};
use super::{Operation, Sqlite};
use crate::broadcasts::KEPT_MS;
use crate::{BroadcastRow, BroadcastStore, Counts, OpenBroadcast, StoreError, Tally};

/// Most broadcasts of a list.
const LISTED: usize = 1_000;
/// Most broadcasts that one trim lets go of: each has some hundred tallies.
const TRIMMED: u32 = 10;
/// What a tally takes up in the queue, in rows.
const TALLY_ROWS: usize = 20;

#[async_trait]
impl BroadcastStore for Sqlite {
    async fn put(&self, row: BroadcastRow) -> Result<(), StoreError> {
        self.write(Operation::durable("put_broadcast"), 1, move |tables| insert(&tables.db, &row)).await
    }

    async fn get(&self, ids: &[BroadcastId]) -> Result<Vec<BroadcastRow>, StoreError> {
        let ids = ids.to_vec();
        self.query(Operation::new("get_broadcasts"), move |db| {
            let mut one = db.prepare_cached("SELECT id, business, created_at, value FROM broadcast WHERE id = ?1")?;
            ids.iter().filter_map(|id| one.query_row([id.as_bytes()], broadcast).optional().transpose()).collect()
        })
        .await
    }

    async fn open(&self, row: BroadcastRow, list: RecipientsId) -> Result<(), StoreError> {
        self.write(Operation::durable("open_broadcast"), 1, move |tables| {
            insert(&tables.db, &row)?;
            tables
                .db
                .prepare_cached("UPDATE broadcast SET state = 1, list = ?2 WHERE id = ?1 AND state = 0")?
                .execute([row.id.as_bytes(), list.as_bytes()])
                .map(drop)
        })
        .await
    }

    async fn opened(&self, each: usize) -> Result<Vec<OpenBroadcast>, StoreError> {
        self.query(Operation::new("open_broadcasts"), move |db| {
            db.prepare_cached(
                "SELECT business, id FROM (SELECT business, id, row_number() OVER (PARTITION BY business ORDER BY id) AS
                     place FROM broadcast WHERE state = 1) WHERE place <= ?1 ORDER BY id",
            )?
            .query_map([each as i64], |row| {
                Ok(OpenBroadcast { business: text(row, 0)?, id: identity(row, 1, BroadcastId::from_bytes)? })
            })?
            .collect()
        })
        .await
    }

    async fn lists_in_use(&self) -> Result<HashSet<RecipientsId>, StoreError> {
        self.query(Operation::new("lists_in_use"), move |db| {
            db.prepare_cached("SELECT DISTINCT list FROM broadcast WHERE state = 1 AND list IS NOT NULL")?
                .query_map([], |row| identity(row, 0, RecipientsId::from_bytes))?
                .collect()
        })
        .await
    }

    async fn close(&self, open: &OpenBroadcast) -> Result<(), StoreError> {
        let id = open.id;
        self.write(Operation::new("close_broadcast"), 1, move |tables| {
            tables
                .db
                .prepare_cached("UPDATE broadcast SET state = 2 WHERE id = ?1 AND state = 1")?
                .execute([id.as_bytes()])
                .map(drop)
        })
        .await
    }

    async fn list(
        &self,
        business: &BusinessId,
        before: Option<BroadcastId>,
        limit: usize,
    ) -> Result<Vec<BroadcastId>, StoreError> {
        let business = business.clone();
        self.query(Operation::new("list_broadcasts"), move |db| {
            let before = before.map_or([u8::MAX; 16], |id| *id.as_bytes());
            db.prepare_cached(
                "SELECT id FROM broadcast WHERE business = ?1 AND state > 0 AND id < ?2 ORDER BY id DESC LIMIT ?3",
            )?
            .query_map(params![business.as_str(), before, limit.min(LISTED) as i64], |row| {
                identity(row, 0, BroadcastId::from_bytes)
            })?
            .collect()
        })
        .await
    }

    async fn put_tallies(&self, tallies: Vec<Tally>) -> Result<(), StoreError> {
        let rows = tallies.len() * TALLY_ROWS;
        self.write(Operation::new("put_tallies"), rows, move |tables| {
            let mut put = tables.db.prepare_cached(
                "INSERT INTO broadcast_tally (broadcast, partition, segment, epoch, offset, delivered, read, failed,
                     expired, marks) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                 ON CONFLICT DO UPDATE SET epoch = ?4, offset = ?5, delivered = ?6, read = ?7, failed = ?8,
                     expired = ?9, marks = ?10 WHERE (epoch, offset) < (?4, ?5)",
            )?;
            for Tally { broadcast, partition, segment, epoch, offset, counts, marks } in &tallies {
                put.execute(params![
                    broadcast.as_bytes(),
                    partition,
                    segment,
                    epoch.0,
                    integer(*offset),
                    integer(counts.delivered),
                    integer(counts.read),
                    integer(counts.failed),
                    integer(counts.expired),
                    &marks[..],
                ])?;
            }
            Ok(())
        })
        .await
    }

    async fn marks(&self, id: BroadcastId, partition: u32, segment: u32) -> Result<Option<Bytes>, StoreError> {
        self.query(Operation::new("tally_marks"), move |db| {
            db.prepare_cached(
                "SELECT marks FROM broadcast_tally WHERE broadcast = ?1 AND partition = ?2 AND segment = ?3",
            )?
            .query_row(params![id.as_bytes(), partition, segment], |row| bytes(row, 0))
            .optional()
        })
        .await
    }

    async fn counts(&self, id: BroadcastId) -> Result<Counts, StoreError> {
        self.query(Operation::new("broadcast_counts"), move |db| {
            db.prepare_cached("SELECT delivered, read, failed, expired FROM broadcast_tally WHERE broadcast = ?1")?
                .query_map([id.as_bytes()], counts)?
                .sum()
        })
        .await
    }

    async fn trim(&self, now: Timestamp) -> Result<usize, StoreError> {
        let kept = now.plus_millis(-KEPT_MS).as_millis();
        self.write(Operation::new("trim_broadcasts"), TALLY_ROWS, move |tables| {
            let old: Vec<[u8; 16]> = tables
                .db
                .prepare_cached("SELECT id FROM broadcast WHERE created_at <= ?1 LIMIT ?2")?
                .query_map(params![kept, TRIMMED], |row| row.get(0))?
                .collect::<Result<_>>()?;
            for id in &old {
                tables.db.prepare_cached("DELETE FROM broadcast_tally WHERE broadcast = ?1")?.execute([id])?;
                tables.db.prepare_cached("DELETE FROM broadcast WHERE id = ?1")?.execute([id])?;
            }
            Ok(old.len())
        })
        .await
    }
}

fn insert(db: &Connection, row: &BroadcastRow) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO broadcast (id, business, created_at, state, value) VALUES (?1, ?2, ?3, 0, ?4)
         ON CONFLICT DO UPDATE SET created_at = excluded.created_at, value = excluded.value WHERE state = 0",
    )?
    .execute(params![row.id.as_bytes(), row.business.as_str(), row.created_at.as_millis(), &row.value[..]])
    .map(drop)
}

fn broadcast(row: &Row<'_>) -> Result<BroadcastRow> {
    Ok(BroadcastRow {
        id: identity(row, 0, BroadcastId::from_bytes)?,
        business: text(row, 1)?,
        created_at: timestamp(row, 2)?,
        value: bytes(row, 3)?,
    })
}

fn counts(row: &Row<'_>) -> Result<Counts> {
    Ok(Counts {
        delivered: unsigned(row, 0)?,
        read: unsigned(row, 1)?,
        failed: unsigned(row, 2)?,
        expired: unsigned(row, 3)?,
    })
}
