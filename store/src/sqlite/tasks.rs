//! Tasks and their leases.

use async_trait::async_trait;
use eshaar_model::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Result, Row, params};

use super::columns::{bytes, timestamp};
use super::{Operation, Sqlite};
use crate::StoreError;
use crate::tasks::{Holder, KEPT_MS, Lease, Task, TaskStore};

/// Most tasks of a list.
const LISTED: usize = 1_000;
/// Most tasks that one trim lets go of.
const TRIM_TASKS: u32 = 1_000;

macro_rules! select_tasks {
    ($rest:literal) => {
        concat!("SELECT kind, id, made_at, progress, finished FROM task ", $rest)
    };
}

#[async_trait]
impl TaskStore for Sqlite {
    async fn make(&self, task: Task) -> Result<(), StoreError> {
        let saved_at = self.clock.now();
        self.write(Operation::durable("make_task"), 1, move |tables| {
            tables
                .db
                .prepare_cached(
                    "INSERT INTO task (kind, id, made_at, progress, finished, saved_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
                )?
                .execute(params![
                    task.kind,
                    task.id,
                    task.made_at.as_millis(),
                    &task.progress[..],
                    task.finished,
                    saved_at.as_millis()
                ])
                .map(drop)
        })
        .await
    }

    async fn get(&self, kind: &str, id: &str) -> Result<Option<Task>, StoreError> {
        let (kind, id) = (kind.to_owned(), id.to_owned());
        self.query(Operation::new("get_task"), move |db| get(db, &kind, &id)).await
    }

    async fn list(&self, kind: &str, limit: usize) -> Result<Vec<Task>, StoreError> {
        let kind = kind.to_owned();
        self.query(Operation::new("list_tasks"), move |db| {
            let limit = limit.clamp(1, LISTED) as i64;
            db.prepare_cached(select_tasks!("WHERE kind = ?1 ORDER BY id DESC LIMIT ?2"))?
                .query_map(params![kind, limit], task)?
                .collect()
        })
        .await
    }

    async fn take(&self, kind: &str, id: &str, lease: Lease) -> Result<Option<Task>, StoreError> {
        let (kind, id) = (kind.to_owned(), id.to_owned());
        self.write(Operation::new("take_task"), 1, move |tables| {
            let taken = tables
                .db
                .prepare_cached(
                    "UPDATE task SET holder = ?3, held_until = ?4
                     WHERE kind = ?1 AND id = ?2 AND NOT finished
                         AND (holder IS NULL OR holder = ?3 OR held_until <= ?5)",
                )?
                .execute(params![
                    kind,
                    id,
                    lease.holder.0.as_bytes(),
                    lease.until.as_millis(),
                    lease.now.as_millis()
                ])?;
            if taken == 0 { Ok(None) } else { get(&tables.db, &kind, &id) }
        })
        .await
    }

    async fn save(&self, task: Task, holder: Holder, until: Option<Timestamp>) -> Result<bool, StoreError> {
        let saved_at = self.clock.now();
        self.write(Operation::durable("save_task"), 1, move |tables| {
            let until = until.filter(|_| !task.finished);
            let saved = tables
                .db
                .prepare_cached(
                    "UPDATE task SET progress = ?4, finished = ?5, saved_at = ?6, held_until = ?7,
                         holder = iif(?7 IS NULL, NULL, holder)
                     WHERE kind = ?1 AND id = ?2 AND holder = ?3",
                )?
                .execute(params![
                    task.kind,
                    task.id,
                    holder.0.as_bytes(),
                    &task.progress[..],
                    task.finished,
                    saved_at.as_millis(),
                    until.map(Timestamp::as_millis)
                ])?;
            Ok(saved == 1)
        })
        .await
    }

    async fn trim(&self, now: Timestamp) -> Result<usize, StoreError> {
        let kept = now.plus_millis(-KEPT_MS);
        self.write(Operation::new("trim_tasks"), TRIM_TASKS as usize, move |tables| {
            tables
                .db
                .prepare_cached(
                    "DELETE FROM task WHERE (kind, id) IN (SELECT kind, id FROM task WHERE saved_at <= ?1 LIMIT ?2)",
                )?
                .execute(params![kept.as_millis(), TRIM_TASKS])
        })
        .await
    }
}

fn get(db: &Connection, kind: &str, id: &str) -> Result<Option<Task>> {
    db.prepare_cached(select_tasks!("WHERE kind = ?1 AND id = ?2"))?.query_row([kind, id], task).optional()
}

fn task(row: &Row<'_>) -> Result<Task> {
    Ok(Task {
        kind: row.get(0)?,
        id: row.get(1)?,
        made_at: timestamp(row, 2)?,
        progress: bytes(row, 3)?,
        finished: row.get(4)?,
    })
}
