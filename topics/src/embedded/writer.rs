//! The writer thread: everything that waits becomes one transaction, a group commit.
//!
//! A group with a record of a `synced` topic is fsynced before anybody is answered; one without is only written: it
//! survives the process. Records are shown to readers, and appends answered, after the commit and never before.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eshaar_service::metrics::{LOG_APPEND_SECONDS, LOG_APPENDED, LOG_COMMIT_RECORDS};
use rusqlite::params;

use super::batch::{Batch, Encoder};
use super::file::{File, failed};
use super::queue::{Append, CommitKey, Request, Work};
use super::{Shared, retention};
use crate::{AppendError, Durability, LogError, LogPosition};

/// What a row takes in the write-ahead log beside its records: about a page.
const ROW_OVERHEAD: u64 = 4096;

/// How many times the usual size the write-ahead log may grow to, because readers hold on to it, before the writer waits
/// for them.
const IMPATIENT: u64 = 16;

/// Rows of one partition in a group.
struct Touched {
    partition: usize,
    batches: Vec<Batch>,
}

/// A group as it is written: rows by partition, and the positions of each append.
struct Group {
    touched: Vec<Touched>,
    positions: Vec<Vec<LogPosition>>,
    synced: bool,
    records: usize,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    file: File,
    /// Held as long as the writer lives: one writer a directory.
    _lock: fs::File,
    encoders: Vec<Encoder>,
    fsync: bool,
    /// Written to the write-ahead log since it was last moved into the file, in bytes, about.
    wal_bytes: u64,
    /// The last group failed: what the file holds must be asked before the next.
    uncertain: bool,
    /// The last group failed, and no write has succeeded since.
    failing: bool,
    next_sweep: Instant,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, file: File, lock: fs::File) -> Self {
        let encoders = shared.partitions.all().iter().map(|_| Encoder::default()).collect();
        let next_sweep = Instant::now() + shared.options.sweep_interval();
        // Recovered or not, the first group sets what it needs.
        Self {
            shared,
            file,
            _lock: lock,
            encoders,
            fsync: true,
            wal_bytes: 0,
            uncertain: false,
            failing: false,
            next_sweep,
        }
    }

    /// Serves the queue until it is closed and empty.
    pub fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        // However this thread ends, nobody waits for it in vain.
        let _close = CloseQueue(&shared);
        loop {
            let patience = self.next_sweep.saturating_duration_since(Instant::now());
            let work = self.shared.queue.take(patience);
            let closed = work.closed && work.is_empty();
            self.serve(work);
            if closed {
                break;
            }
            if self.next_sweep <= Instant::now() {
                self.sweep_slice();
            }
            let limit = self.shared.options.checkpoint_bytes;
            if self.wal_bytes >= limit.saturating_mul(IMPATIENT) {
                self.checkpoint("RESTART");
            } else if self.wal_bytes >= limit {
                self.checkpoint("PASSIVE");
            }
        }
        self.checkpoint("TRUNCATE");
    }

    fn serve(&mut self, work: Work) {
        if !work.appends.is_empty() || !work.committers.is_empty() {
            self.commit_group(work.appends, &work.commits, work.committers);
        }
        for (request, answer) in work.requests {
            let done = match request {
                Request::Ping => self.probe(),
                Request::Sweep => self.sweep_all(),
                Request::Epoch(epoch) => self.begin_epoch(epoch),
            };
            // Who asked may have gone.
            let _ = answer.send(done);
        }
    }

    fn commit_group(
        &mut self,
        appends: Vec<Append>,
        commits: &ahash::AHashMap<CommitKey, u64>,
        committers: Vec<tokio::sync::oneshot::Sender<Result<(), LogError>>>,
    ) {
        let written = self.settle_uncertainty().and_then(|()| {
            let group = self.encode(&appends);
            self.write(&group, commits).map(|()| group)
        });
        match written {
            Ok(group) => self.answer(group, appends, committers),
            Err(error) => {
                tracing::error!(%error, appends = appends.len(), "a group commit failed");
                for append in appends {
                    let _ = append.answer.send(Err(AppendError::Unknown { reason: error.to_string() }));
                }
                for committer in committers {
                    let failed = LogError::Engine { action: "commit offsets", reason: error.to_string() };
                    let _ = committer.send(Err(failed));
                }
            }
        }
    }

    /// Gives every record its offset and brings those of a partition together.
    fn encode(&mut self, appends: &[Append]) -> Group {
        let partitions = &self.shared.partitions;
        let mut touched: Vec<Touched> = Vec::new();
        let mut synced = false;
        let mut records = 0;
        // Partitions were checked before they were queued.
        let place = |topic, partition: Option<u32>| partition.and_then(|number| partitions.index(topic, number));
        for record in appends.iter().flat_map(|append| &append.records) {
            let Some(index) = place(record.topic, record.partition) else { continue };
            let encoder = &mut self.encoders[index];
            if encoder.is_idle() {
                let (end, reached) = partitions.at(index).head();
                encoder.begin(end, reached);
                touched.push(Touched { partition: index, batches: Vec::new() });
            }
            encoder.expect(record);
            synced |= record.topic.spec().durability == Durability::Synced;
            records += 1;
        }
        let mut positions = Vec::with_capacity(appends.len());
        for append in appends {
            let of_append = append.records.iter().filter_map(|record| {
                let index = place(record.topic, record.partition)?;
                let offset = self.encoders[index].push(record);
                Some(LogPosition { topic: record.topic, partition: record.partition?, offset })
            });
            positions.push(of_append.collect());
        }
        for touched in &mut touched {
            touched.batches = self.encoders[touched.partition].finish();
        }
        Group { touched, positions, synced, records }
    }

    /// One transaction. After an error it is uncertain what the file holds.
    fn write(&mut self, group: &Group, commits: &ahash::AHashMap<CommitKey, u64>) -> Result<(), LogError> {
        self.set_fsync(group.synced)?;
        let partitions = &self.shared.partitions;
        let connection = &self.file.connection;
        let ids = self.file.ids;
        let written = (|| -> rusqlite::Result<()> {
            connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            let mut insert = connection.prepare_cached(
                "INSERT INTO batches (id, count, newest, reached, records) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for touched in &group.touched {
                let partition = partitions.at(touched.partition);
                for batch in &touched.batches {
                    let row = ids.row(partition.topic, partition.number, batch.base);
                    insert.execute(params![row, batch.count, batch.newest, batch.reached, &batch.data[..]])?;
                }
            }
            let mut commit = connection.prepare_cached(
                "INSERT INTO commits (consumers, partition, next) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET next = excluded.next",
            )?;
            for ((name, topic, partition), next) in commits {
                commit.execute(params![&**name, ids.row(*topic, *partition, 0), *next as i64])?;
            }
            connection.prepare_cached("COMMIT")?.execute([])?;
            Ok(())
        })();
        let rows = group.touched.iter().flat_map(|touched| &touched.batches);
        self.wal_bytes += rows.map(|batch| batch.data.len() as u64 + ROW_OVERHEAD).sum::<u64>();
        self.wal_bytes += commits.len() as u64 * 64;
        self.failing &= written.is_err();
        written.map_err(|error| {
            self.uncertain = true;
            self.failing = true;
            failed("commit a group")(error)
        })
    }

    fn answer(
        &self,
        group: Group,
        appends: Vec<Append>,
        committers: Vec<tokio::sync::oneshot::Sender<Result<(), LogError>>>,
    ) {
        let limit = self.shared.options.tail_bytes;
        for touched in group.touched {
            let partition = self.shared.partitions.at(touched.partition);
            let count: u64 = touched.batches.iter().map(|batch| u64::from(batch.count)).sum();
            partition.publish(touched.batches, limit);
            metrics::counter!(LOG_APPENDED, "topic" => partition.topic.name()).increment(count);
        }
        if group.records > 0 {
            metrics::histogram!(LOG_COMMIT_RECORDS).record(group.records as f64);
        }
        let durability = if group.synced { "synced" } else { "written" };
        let seconds = metrics::histogram!(LOG_APPEND_SECONDS, "durability" => durability);
        for (append, positions) in appends.into_iter().zip(group.positions) {
            seconds.record(append.since.elapsed());
            // Whoever does not wait any more is not told.
            let _ = append.answer.send(Ok(positions));
        }
        for committer in committers {
            let _ = committer.send(Ok(()));
        }
    }

    /// Says whether it works. After a failed group it tries a write, as nothing else may come that would show.
    fn probe(&mut self) -> Result<(), LogError> {
        self.settle_uncertainty()?;
        if self.failing {
            self.file.probe()?;
            self.failing = false;
        }
        Ok(())
    }

    /// After a failed group, asks the file what it holds, so that no offset is given twice or left out.
    fn settle_uncertainty(&mut self) -> Result<(), LogError> {
        if !self.uncertain {
            return Ok(());
        }
        if !self.file.connection.is_autocommit() {
            self.file.connection.execute_batch("ROLLBACK").map_err(failed("roll a group back"))?;
        }
        for partition in self.shared.partitions.all().iter().filter(|partition| !partition.in_memory) {
            let extent = self.file.extent(partition.topic, partition.number)?;
            let known = partition.bounds();
            if (extent.start, extent.end) != (known.start, known.end) {
                partition.reset(extent);
            }
        }
        self.uncertain = false;
        Ok(())
    }

    /// Whether commits are to wait for the disk. SQLite obeys from the next transaction on.
    fn set_fsync(&mut self, fsync: bool) -> Result<(), LogError> {
        if self.fsync != fsync {
            let level = if fsync { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
            self.file.connection.execute_batch(level).map_err(failed("set how it syncs"))?;
            self.fsync = fsync;
        }
        Ok(())
    }

    fn begin_epoch(&mut self, epoch: eshaar_model::Epoch) -> Result<(), LogError> {
        self.settle_uncertainty()?;
        self.set_fsync(true)?;
        self.file
            .connection
            .execute("UPDATE meta SET value = ?1 WHERE name = 'epoch'", [epoch.0])
            .map_err(failed("begin an epoch"))?;
        self.shared.set_epoch(epoch);
        Ok(())
    }

    /// A bounded piece of the sweep; comes back at once if there is more.
    fn sweep_slice(&mut self) {
        let more = match self.settle_uncertainty().and_then(|()| self.sweep_once()) {
            Ok(more) => more,
            Err(error) => {
                tracing::warn!(%error, "records past their time were not let go");
                false
            }
        };
        self.next_sweep = Instant::now() + if more { Duration::ZERO } else { self.shared.options.sweep_interval() };
    }

    fn sweep_all(&mut self) -> Result<(), LogError> {
        self.settle_uncertainty()?;
        while self.sweep_once()? {}
        Ok(())
    }

    fn sweep_once(&mut self) -> Result<bool, LogError> {
        self.set_fsync(false)?;
        let swept = retention::sweep(&self.file, &self.shared).inspect_err(|_| self.uncertain = true)?;
        self.wal_bytes += swept.rows as u64 * ROW_OVERHEAD;
        Ok(swept.more)
    }

    /// Moves the write-ahead log into the file. Between groups, so that no append waits for it before it is answered.
    fn checkpoint(&mut self, mode: &str) {
        let moved = self.file.checkpoint(mode);
        // What a reader still looks at stays, and is moved the next time.
        self.wal_bytes = *moved.as_ref().unwrap_or(&0);
        if let Err(error) = moved {
            tracing::warn!(%error, "the write-ahead log was not moved into the file");
        }
    }
}

/// Closes the queue when it is dropped, also by a panic; what still waits in it learns that nobody will answer.
struct CloseQueue<'a>(&'a Shared);

impl Drop for CloseQueue<'_> {
    fn drop(&mut self) {
        self.0.close();
        drop(self.0.queue.take(Duration::ZERO));
    }
}
