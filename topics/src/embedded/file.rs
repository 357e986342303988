//! `log.db`: its schema, and reading from it. Only the writer thread writes.
//!
//! A batch is a row whose id is its place: topic (7 bits), partition (10), base offset (46). So a partition is a range of
//! one B-tree, read in order without an index. Topics are numbered in the file, by name: the catalogue may be reordered.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ahash::AHashMap;
use bytes::Bytes;
use eshaar_model::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use super::batch::{Batch, BatchCursor};
use super::partition::Extent;
use crate::{LogError, Topic};

/// Bits of a row's id that hold its offset: 70 trillion records a partition.
const OFFSET_BITS: u32 = 46;
/// Bits that hold its partition.
const PARTITION_BITS: u32 = 10;

/// How long a connection waits for another process that has the file locked (recovery after a crash).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// SQLite's default, of which its write-ahead log is made, too.
const PAGE_BYTES: u64 = 4096;

/// Memory of a connection's page cache, in KiB.
const CACHE_KIB: i64 = 512;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS topics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, partitions INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS batches (
        id INTEGER PRIMARY KEY, count INTEGER NOT NULL, newest INTEGER NOT NULL, reached INTEGER NOT NULL,
        records BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS starts (id INTEGER PRIMARY KEY, start INTEGER NOT NULL, reached INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS commits (
        consumers TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
        PRIMARY KEY (consumers, partition)) WITHOUT ROWID;
    INSERT INTO meta VALUES ('format', 1), ('epoch', 1) ON CONFLICT DO NOTHING;
";

/// The number of a topic in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopicIds([u8; Topic::ALL.len()]);

impl TopicIds {
    /// The id of the row at `offset`.
    pub const fn row(self, topic: Topic, partition: u32, offset: u64) -> i64 {
        let topic = self.0[topic as usize] as i64;
        (topic << (OFFSET_BITS + PARTITION_BITS)) | ((partition as i64) << OFFSET_BITS) | offset as i64
    }

    /// The ids of the first and the last row that a partition can have.
    pub const fn range(self, topic: Topic, partition: u32) -> (i64, i64) {
        (self.row(topic, partition, 0), self.row(topic, partition, (1 << OFFSET_BITS) - 1))
    }

    /// The topic and partition a row belongs to, if this version knows the topic.
    pub fn place(self, row: i64) -> Option<(Topic, u32)> {
        let id = (row >> (OFFSET_BITS + PARTITION_BITS)) as u8;
        let partition = (row >> OFFSET_BITS) as u32 & ((1 << PARTITION_BITS) - 1);
        let place = self.0.iter().position(|known| *known == id)?;
        Some((Topic::ALL[place], partition))
    }
}

/// The base offset in a row's id.
pub(super) const fn offset_of(row: i64) -> u64 {
    row as u64 & ((1 << OFFSET_BITS) - 1)
}

/// A connection to the file.
pub(super) struct File {
    pub connection: Connection,
    pub ids: TopicIds,
}

/// Names an error of the engine.
pub(super) fn failed(action: &'static str) -> impl Fn(rusqlite::Error) -> LogError {
    move |error| LogError::Engine { action, reason: error.to_string() }
}

/// The file in a directory.
pub(super) fn path_in(dir: &Path) -> PathBuf {
    dir.join("log.db")
}

impl File {
    /// Opens it for the writer; makes what is missing.
    pub fn create(dir: &Path, max_file_bytes: u64) -> Result<Self, LogError> {
        let open = || -> rusqlite::Result<(Connection, TopicIds)> {
            let connection = Connection::open(path_in(dir))?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "wal_autocheckpoint", 0)?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "cache_size", -4 * CACHE_KIB)?;
            let pages = i64::try_from(max_file_bytes / PAGE_BYTES).unwrap_or(i64::MAX);
            connection.pragma_update(None, "max_page_count", pages.max(64))?;
            connection.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} COMMIT"))?;
            for topic in Topic::ALL {
                connection.execute(
                    "INSERT INTO topics (name, partitions) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                    params![topic.name(), topic.spec().partitions],
                )?;
            }
            let ids = topic_ids(&connection)?;
            Ok((connection, ids))
        };
        let (connection, ids) = open().map_err(failed("open its file"))?;
        let file = Self { connection, ids };
        file.check_partitions()?;
        Ok(file)
    }

    /// Opens it for reading, beside the writer or from another process.
    pub fn open_read_only(dir: &Path) -> Result<Self, LogError> {
        let open = || -> rusqlite::Result<Self> {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path_in(dir), flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
            let ids = topic_ids(&connection)?;
            Ok(Self { connection, ids })
        };
        open().map_err(failed("open its file for reading"))
    }

    /// A key's partition must not change under its records: another count needs a new log.
    fn check_partitions(&self) -> Result<(), LogError> {
        for topic in Topic::ALL {
            let count: u32 = self
                .connection
                .query_row("SELECT partitions FROM topics WHERE name = ?1", [topic.name()], |row| row.get(0))
                .map_err(failed("read its topics"))?;
            let wanted = topic.spec().partitions;
            if count != wanted {
                let reason = format!("{topic} has {count} partitions in the file and {wanted} in the catalogue");
                return Err(LogError::Engine { action: "open its file", reason });
            }
        }
        Ok(())
    }

    /// What a partition holds.
    pub fn extent(&self, topic: Topic, partition: u32) -> Result<Extent, LogError> {
        let (low, high) = self.ids.range(topic, partition);
        let read = || -> rusqlite::Result<Extent> {
            let kept: Option<(i64, i64)> = self
                .connection
                .prepare_cached("SELECT start, reached FROM starts WHERE id = ?1")?
                .query_row([low], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let (start, reached) = kept.unwrap_or((0, i64::MIN));
            let last: Option<(i64, u32, i64)> = self
                .connection
                .prepare_cached(
                    "SELECT id, count, reached FROM batches WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT 1",
                )?
                .query_row([low, high], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()?;
            let start = start as u64;
            Ok(match last {
                Some((id, count, reached)) => Extent { start, end: offset_of(id) + u64::from(count), reached },
                None => Extent { start, end: start, reached },
            })
        };
        read().map_err(failed("read the bounds of a partition"))
    }

    /// Batches from the one that holds `offset` on, until they have `bytes`; at least one where there is one.
    pub fn batches(&self, topic: Topic, partition: u32, offset: u64, bytes: usize) -> Result<Vec<Batch>, LogError> {
        let (low, high) = self.ids.range(topic, partition);
        let wanted = self.ids.row(topic, partition, offset);
        let read = || -> rusqlite::Result<Vec<Batch>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT id, count, newest, reached, records FROM batches
                 WHERE id BETWEEN COALESCE((SELECT max(id) FROM batches WHERE id BETWEEN ?1 AND ?2), ?2) AND ?3
                 ORDER BY id",
            )?;
            let mut rows = statement.query([low, wanted, high])?;
            let mut found = Vec::new();
            let mut size = 0;
            while size < bytes {
                let Some(row) = rows.next()? else { break };
                let batch = batch_of(row)?;
                if batch.end() > offset {
                    size += batch.data.len();
                    found.push(batch);
                }
            }
            Ok(found)
        };
        let found = read().map_err(failed("read records"))?;
        let gap = found.windows(2).find(|pair| pair[0].end() != pair[1].base).map(|pair| &pair[1]);
        match found.iter().find(|batch| !batch.is_whole()).or(gap) {
            Some(bad) => Err(LogError::Engine {
                action: "read records",
                reason: format!("the batch at offset {} of partition {partition} of {topic} is damaged", bad.base),
            }),
            None => Ok(found),
        }
    }

    /// The lowest offset of a record made at `at` or later; `None` where there is none.
    ///
    /// `reached` never falls along a partition, and it first comes to `at` in the batch with that record: a binary search
    /// over offsets, some 40 look-ups.
    pub fn offset_at(&self, topic: Topic, partition: u32, at: Timestamp) -> Result<Option<u64>, LogError> {
        let (first, last) = self.ids.range(topic, partition);
        let search = || -> rusqlite::Result<Option<i64>> {
            let mut statement = self
                .connection
                .prepare_cached("SELECT id, reached FROM batches WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT 1")?;
            let mut found = None;
            let (mut low, mut high) = (first, last);
            while low <= high {
                let middle = low + (high - low) / 2;
                let row: Option<(i64, i64)> =
                    statement.query_row([middle, high], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
                match row {
                    Some((id, reached)) if reached < at.as_millis() => low = id + 1,
                    Some((id, _)) => {
                        found = Some(id);
                        high = middle - 1;
                    }
                    None => high = middle - 1,
                }
            }
            Ok(found)
        };
        let Some(id) = search().map_err(failed("look up a time"))? else { return Ok(None) };
        // Nearly always in this batch; but the record that made `reached` may be gone since.
        let mut offset = offset_of(id);
        loop {
            let batches = self.batches(topic, partition, offset, 1)?;
            let Some(batch) = batches.last() else { return Ok(None) };
            let mut records = batches.iter().flat_map(|batch| BatchCursor::new(topic, partition, batch, 0));
            if let Some(record) = records.find(|record| record.timestamp >= at) {
                return Ok(Some(record.position.offset));
            }
            offset = batch.end();
        }
    }

    /// Moves the write-ahead log into the file; returns how many bytes of it could not be moved, because somebody reads.
    pub fn checkpoint(&self, mode: &str) -> Result<u64, LogError> {
        let (log, moved): (i64, i64) = self
            .connection
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| Ok((row.get(1)?, row.get(2)?)))
            .map_err(failed("move its write-ahead log"))?;
        Ok((log - moved).max(0) as u64 * PAGE_BYTES)
    }

    /// Writes a row that no partition has, and takes it back.
    pub fn probe(&self) -> Result<(), LogError> {
        let write = "INSERT OR REPLACE INTO batches VALUES (0, 0, 0, 0, zeroblob(65536))";
        let done = self
            .connection
            .execute(write, [])
            .and_then(|_| self.connection.execute("DELETE FROM batches WHERE id = 0", []));
        done.map(drop).map_err(failed("write"))
    }

    /// The life of the log.
    pub fn epoch(&self) -> Result<u32, LogError> {
        self.connection
            .query_row("SELECT value FROM meta WHERE name = 'epoch'", [], |row| row.get(0))
            .map_err(failed("read its epoch"))
    }

    /// Everything that groups have committed.
    pub fn commits(&self) -> Result<Vec<(String, Topic, u32, u64)>, LogError> {
        let read = || -> rusqlite::Result<Vec<(String, i64, i64)>> {
            let mut statement = self.connection.prepare("SELECT consumers, partition, next FROM commits")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.collect()
        };
        let rows = read().map_err(failed("read what groups have committed"))?;
        Ok(rows
            .into_iter()
            .filter_map(|(group, row, next)| {
                let (topic, partition) = self.ids.place(row)?;
                Some((group, topic, partition, next as u64))
            })
            .collect())
    }
}

fn topic_ids(connection: &Connection) -> rusqlite::Result<TopicIds> {
    let mut statement = connection.prepare("SELECT name, id FROM topics")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let known: AHashMap<String, u8> = rows.collect::<rusqlite::Result<_>>()?;
    let mut ids = [0; Topic::ALL.len()];
    for topic in Topic::ALL {
        // A file written by an older version may lack a topic when it is only read: it has no records then.
        ids[topic as usize] = known.get(topic.name()).copied().unwrap_or(0);
    }
    Ok(TopicIds(ids))
}

fn batch_of(row: &Row<'_>) -> rusqlite::Result<Batch> {
    let data = row.get_ref(4)?.as_blob()?;
    Ok(Batch {
        base: offset_of(row.get(0)?),
        count: row.get(1)?,
        newest: row.get(2)?,
        reached: row.get(3)?,
        data: Bytes::copy_from_slice(data),
    })
}
