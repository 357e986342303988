//! Timers. What is done with goes with the move of the mark, in one transaction.

use async_trait::async_trait;
use eshaar_model::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Error, Result, Row, params};
use uuid::Uuid;

use super::columns::{bytes, timestamp};
use super::{Operation, Sqlite};
use crate::{Holder, StoreError, Timer, TimerPlace, TimerStore};

#[async_trait]
impl TimerStore for Sqlite {
    async fn partitions(&self) -> Result<Vec<u32>, StoreError> {
        self.query(Operation::new("timer_partitions"), |db| {
            db.prepare_cached("SELECT partition FROM timer_mark ORDER BY partition")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
        .await
    }

    async fn take(&self, partition: u32, holder: Holder) -> Result<TimerPlace, StoreError> {
        let first = TimerPlace::before(Timestamp::default());
        self.write(Operation::new("take_timers"), 1, move |tables| {
            tables
                .db
                .prepare_cached(
                    "INSERT INTO timer_mark (partition, holder, due, id) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT DO UPDATE SET holder = excluded.holder RETURNING due, id",
                )?
                .query_row(params![partition, holder.0.as_bytes(), first.due.as_millis(), first.id.as_bytes()], |row| {
                    place(row, 0)
                })
        })
        .await
    }

    async fn put(&self, partition: u32, timers: Vec<Timer>) -> Result<(), StoreError> {
        self.write(Operation::new("put_timers"), timers.len(), move |tables| {
            let mut put = tables.db.prepare_cached(
                "INSERT INTO timer (partition, due, id, key, headers, value) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT DO NOTHING",
            )?;
            for Timer { place, key, headers, value } in &timers {
                let (due, id) = (place.due.as_millis(), place.id.as_bytes());
                put.execute(params![partition, due, id, &key[..], &headers[..], &value[..]])?;
            }
            Ok(())
        })
        .await
    }

    async fn next(
        &self,
        partition: u32,
        after: TimerPlace,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Timer>, StoreError> {
        self.query(Operation::new("next_timers"), move |db| {
            db.prepare_cached(
                "SELECT due, id, key, headers, value FROM timer
                 WHERE partition = ?1 AND (due, id) > (?2, ?3) AND due <= ?4 ORDER BY due, id LIMIT ?5",
            )?
            .query_map(
                params![partition, after.due.as_millis(), after.id.as_bytes(), until.as_millis(), limit as i64],
                |row| {
                    let place = place(row, 0)?;
                    Ok(Timer { place, key: bytes(row, 2)?, headers: bytes(row, 3)?, value: bytes(row, 4)? })
                },
            )?
            .collect()
        })
        .await
    }

    async fn mark(&self, partition: u32, holder: Holder, mark: TimerPlace) -> Result<bool, StoreError> {
        self.write(Operation::new("mark_timers"), 1, move |tables| {
            let (due, id) = (mark.due.as_millis(), mark.id.as_bytes());
            let moved = tables
                .db
                .prepare_cached("UPDATE timer_mark SET due = ?3, id = ?4 WHERE partition = ?1 AND holder = ?2")?
                .execute(params![partition, holder.0.as_bytes(), due, id])?;
            if moved == 0 {
                return Ok(false);
            }
            tables
                .db
                .prepare_cached("DELETE FROM timer WHERE partition = ?1 AND (due, id) <= (?2, ?3)")?
                .execute(params![partition, due, id])?;
            Ok(true)
        })
        .await
    }

    async fn count(&self, partition: u32, after: TimerPlace) -> Result<u64, StoreError> {
        self.query(Operation::new("count_timers"), move |db| {
            db.prepare_cached("SELECT count(*) FROM timer WHERE partition = ?1 AND (due, id) > (?2, ?3)")?
                .query_row(params![partition, after.due.as_millis(), after.id.as_bytes()], |row| {
                    super::columns::unsigned(row, 0)
                })
        })
        .await
    }
}

fn place(row: &Row<'_>, column: usize) -> Result<TimerPlace> {
    let id = Uuid::from_slice(row.get_ref(column + 1)?.as_blob()?)
        .map_err(|error| Error::FromSqlConversionFailure(column + 1, Type::Blob, Box::new(error)))?;
    Ok(TimerPlace { due: timestamp(row, column)?, id })
}
