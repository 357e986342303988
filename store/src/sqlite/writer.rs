//! The one thread that writes: whatever waits is written in one transaction, a group.
//!
//! Most groups are committed without fsync (`synchronous=NORMAL`: safe against kill -9, and against a power cut up to the
//! last fsync); a group that holds something durable is fsynced, and with it all groups before it.

use std::sync::Arc;

use rusqlite::Connection;
use tracing::warn;

use super::queue::{AbandonOnDrop, Queue, Queued};
use super::recent::Index;

/// Most rows of a group: bounds how long a caller waits for the work of others.
const GROUP_ROWS: u32 = 2_000;

/// What is to be written for one call.
pub(super) trait Job: Send {
    /// Whether it must be on disk, fsynced, before it is settled.
    fn durable(&self) -> bool;

    /// Does the work, within the group's transaction. It is called again if the transaction fails.
    fn run(&mut self, tables: &mut Tables) -> rusqlite::Result<()>;

    /// Tells the caller: the transaction was committed, or failed.
    fn settle(self: Box<Self>, error: Option<&rusqlite::Error>);
}

/// The tables, as a job sees them.
pub(super) struct Tables {
    pub(super) db: Connection,
    pub(super) index: Index,
}

pub(super) struct Writer {
    tables: Tables,
    /// Whether `synchronous` stands at FULL.
    full: bool,
    /// Whether something was committed since the last fsync.
    unsynced: bool,
}

type Group = [Queued<Box<dyn Job>>];

impl Writer {
    pub(super) fn new(tables: Tables) -> Self {
        // What the process before us wrote may not have been fsynced.
        Self { tables, full: false, unsynced: true }
    }

    /// Writes until the queue is closed and empty.
    pub(super) fn run(mut self, queue: &Arc<Queue<Box<dyn Job>>>) {
        let _abandon = AbandonOnDrop(Arc::clone(queue));
        loop {
            let group = queue.pop_group(GROUP_ROWS);
            if group.is_empty() {
                break;
            }
            self.write(group);
        }
        if let Err(error) = self.write_index() {
            // It is made again when the store is opened.
            warn!(%error, "the index of streams was not written to its end");
        }
    }

    /// Leaves nothing for the next opening to do; only where there was something to append.
    fn write_index(&mut self) -> rusqlite::Result<()> {
        if !self.tables.index.has_grown() {
            return Ok(());
        }
        self.tables.index.begin();
        self.tables.db.execute_batch("BEGIN IMMEDIATE")?;
        self.tables.index.write_all(&self.tables.db)?;
        self.tables.db.execute_batch("COMMIT")?;
        self.tables.index.commit();
        Ok(())
    }

    /// Writes a group; where it fails, each of its jobs alone, so that one of them does not fail the others.
    fn write(&mut self, mut group: Vec<Queued<Box<dyn Job>>>) {
        match self.transact(&mut group) {
            Err(error) if group.len() > 1 => {
                warn!(%error, calls = group.len(), "a group of writes failed: each call is tried alone");
                for mut queued in group {
                    let outcome = self.transact(std::slice::from_mut(&mut queued));
                    queued.job.settle(outcome.as_ref().err());
                }
            }
            outcome => group.into_iter().for_each(|queued| queued.job.settle(outcome.as_ref().err())),
        }
    }

    fn transact(&mut self, group: &mut Group) -> rusqlite::Result<()> {
        let durable = group.iter().any(|queued| queued.job.durable());
        self.set_full(durable)?;
        let committed = self.run_group(group, durable);
        if committed.is_err() && !self.tables.db.is_autocommit() {
            self.tables.db.execute_batch("ROLLBACK")?;
        }
        committed
    }

    fn run_group(&mut self, group: &mut Group, durable: bool) -> rusqlite::Result<()> {
        self.tables.index.begin();
        self.tables.db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let before = self.tables.db.total_changes();
        for queued in group {
            queued.job.run(&mut self.tables)?;
        }
        self.tables.index.write_some(&self.tables.db)?;
        let mut wrote = self.tables.db.total_changes() != before;
        if durable && !wrote && self.unsynced {
            wrote = true;
            self.tables.db.prepare_cached("UPDATE synced SET times = times + 1")?.execute([])?;
        }
        self.tables.db.prepare_cached("COMMIT")?.execute([])?;
        self.tables.index.commit();
        if wrote {
            self.unsynced = !durable;
        }
        Ok(())
    }

    /// Only between transactions: SQLite ignores it within one.
    fn set_full(&mut self, full: bool) -> rusqlite::Result<()> {
        if full != self.full {
            self.tables.db.pragma_update(None, "synchronous", if full { "full" } else { "normal" })?;
            self.full = full;
        }
        Ok(())
    }
}
