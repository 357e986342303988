//! The log in this process: SQLite (WAL) in one file, a group commit for whatever waits, the newest records in memory.
//!
//! Reads top-down: `queue` (what waits) → `writer` (one thread, one transaction a group) → `file` (rows of batches) →
//! `partition` (what readers see) → `reader`; `group` and `membership` (who reads what); `retention` (what goes).
//!
//! Nothing is shown to a reader or acknowledged before it is committed. Only the writer thread writes.

mod batch;
mod file;
mod group;
mod membership;
mod options;
mod partition;
mod pool;
mod queue;
mod read_only;
mod reader;
mod retention;
mod writer;

#[cfg(test)]
mod tests;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use eshaar_model::{Clock, Epoch, Timestamp};
use eshaar_service::metrics::LOG_APPENDED;
use eshaar_service::workers;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

pub use options::Options;
pub use read_only::ReadOnlyLog;

use self::batch::BatchCursor;
use self::file::File;
use self::group::Groups;
use self::partition::{Partition, Partitions};
use self::pool::Pool;
use self::queue::{Queue, Request};
use self::reader::PartitionReader;
use self::writer::Writer;
use crate::log::{check_record, refused};
use crate::partitioner::partition_of;
use crate::{AppendError, Bounds, Consumer, Log, LogError, LogPosition, NewRecord, Reader, StartAt, Topic};

/// How long `open` waits for the log that had the directory before to let go of it.
const HANDOVER: Duration = Duration::from_secs(5);
/// How often it looks.
const HANDOVER_STEP: Duration = Duration::from_millis(5);

/// The embedded log. Cheap to clone; the last clone that is dropped closes it.
#[derive(Clone)]
pub struct EmbeddedLog(Arc<Owner>);

/// Closes the log when it is dropped, without waiting for the writer to end.
struct Owner {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What the log, its readers, its groups and its writer have in common.
struct Shared {
    options: Options,
    clock: Clock,
    partitions: Partitions,
    queue: Queue,
    pool: Pool,
    groups: Groups,
    epoch: AtomicU32,
    closed: CancellationToken,
}

impl Shared {
    fn in_memory(&self, topic: Topic) -> bool {
        self.partitions.get(topic, 0).is_some_and(|partition| partition.in_memory)
    }

    fn partition(&self, topic: Topic, partition: u32) -> Result<&Partition, LogError> {
        self.partitions.get(topic, partition).ok_or_else(|| no_partition(topic, partition))
    }

    fn set_epoch(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::Release);
    }

    fn close(&self) {
        self.closed.cancel();
        self.queue.close();
        self.pool.close();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl EmbeddedLog {
    /// Opens the log in `options.dir`, makes it where there is none, and recovers what a crash left. Blocks; up to 5 s
    /// where a log that had the directory before is still being closed.
    ///
    /// # Errors
    /// Another process has the directory, the file cannot be opened, or its partition counts are not the catalogue's.
    pub fn open(options: Options, clock: Clock) -> Result<Self, LogError> {
        let lock = lock_directory(&options)?;
        let file = File::create(&options.dir, options.max_file_bytes)?;
        let partitions = Partitions::of_the_catalogue();
        for partition in partitions.all().iter().filter(|partition| !partition.in_memory) {
            partition.reset(file.extent(partition.topic, partition.number)?);
        }
        let shared = Arc::new(Shared {
            queue: Queue::new(options.queue_bytes),
            pool: Pool::new(options.dir.clone(), options.readers),
            groups: Groups::default(),
            epoch: AtomicU32::new(file.epoch()?),
            closed: CancellationToken::new(),
            options,
            clock,
            partitions,
        });
        shared.groups.load(file.commits()?);
        let writer = Writer::new(Arc::clone(&shared), file, lock);
        let thread = std::thread::Builder::new().name("log-writer".to_owned()).spawn(move || {
            let _guard = workers::guard("log-writer");
            writer.run();
        });
        let thread = thread.map_err(|error| engine("start its writer", &error))?;
        Ok(Self(Arc::new(Owner { shared, writer: Mutex::new(Some(thread)) })))
    }

    /// Begins a new life of the log: what was known of offsets holds no more. Before anything reads or appends.
    ///
    /// # Errors
    /// `epoch` is not after the present one, or could not be made durable.
    pub async fn begin_epoch(&self, epoch: Epoch) -> Result<(), LogError> {
        let present = self.epoch();
        if epoch <= present {
            let reason = format!("epoch {} is not after {}", epoch.0, present.0);
            return Err(LogError::Engine { action: "begin an epoch", reason });
        }
        self.shared().queue.request(Request::Epoch(epoch)).await
    }

    /// Lets go of all that is past its time, now. The engine does it by itself, too, from time to time.
    pub async fn sweep(&self) -> Result<(), LogError> {
        self.shared().queue.request(Request::Sweep).await
    }

    /// Closes it: takes nothing more in, commits what waits, moves the write-ahead log into the file. Whoever waits for
    /// records is told that the log is closed.
    pub async fn close(&self) {
        self.shared().close();
        let writer = self.0.writer.lock().take();
        if let Some(writer) = writer {
            let ended = tokio::task::spawn_blocking(move || writer.join()).await;
            if !matches!(ended, Ok(Ok(()))) {
                tracing::error!("the log's writer ended with a panic");
            }
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// Checks the records and chooses the partition of each.
    fn place(&self, records: &mut [NewRecord]) -> Result<(), AppendError> {
        for record in records {
            check_record(record)?;
            let count = self.shared().partitions.count(record.topic);
            let partition = record.partition.unwrap_or_else(|| partition_of(&record.key, count));
            if partition >= count {
                return Err(refused(no_partition(record.topic, partition).to_string()));
            }
            record.partition = Some(partition);
        }
        Ok(())
    }

    /// Appends records of memory topics, each partition's in one go.
    fn append_in_memory(&self, records: &[NewRecord]) -> Result<Vec<LogPosition>, AppendError> {
        let shared = self.shared();
        if shared.closed.is_cancelled() {
            return Err(AppendError::Closed);
        }
        let mut positions: Vec<LogPosition> = records
            .iter()
            .map(|record| LogPosition {
                topic: record.topic,
                partition: record.partition.unwrap_or_default(),
                offset: u64::MAX,
            })
            .collect();
        for first in 0..records.len() {
            let LogPosition { topic, partition, offset: u64::MAX } = positions[first] else { continue };
            let together: Vec<usize> = (first..records.len())
                .filter(|&at| (positions[at].topic, positions[at].partition) == (topic, partition))
                .collect();
            let found = shared.partition(topic, partition).map_err(|error| refused(error.to_string()))?;
            let batch: Vec<&NewRecord> = together.iter().map(|&at| &records[at]).collect();
            let base = found.append_in_memory(&batch, shared.options.memory_topic_bytes);
            metrics::counter!(LOG_APPENDED, "topic" => topic.name()).increment(batch.len() as u64);
            for (offset, at) in (base..).zip(together) {
                positions[at].offset = offset;
            }
        }
        Ok(positions)
    }

    /// Appends to topics of both kinds: those in the file first, so that a failure leaves nothing behind in memory.
    async fn append_mixed(&self, records: Vec<NewRecord>) -> Result<Vec<LogPosition>, AppendError> {
        let in_memory: Vec<bool> = records.iter().map(|record| self.shared().in_memory(record.topic)).collect();
        let (mut memory, mut file) = (Vec::new(), Vec::new());
        for (record, in_memory) in records.into_iter().zip(&in_memory) {
            if *in_memory { memory.push(record) } else { file.push(record) }
        }
        let mut of_file = self.shared().queue.append(file).await?.into_iter();
        let mut of_memory = self.append_in_memory(&memory)?.into_iter();
        Ok(in_memory.iter().filter_map(|memory| if *memory { of_memory.next() } else { of_file.next() }).collect())
    }
}

#[async_trait]
impl Log for EmbeddedLog {
    async fn append(&self, mut records: Vec<NewRecord>) -> Result<Vec<LogPosition>, AppendError> {
        self.place(&mut records)?;
        let in_memory = records.iter().filter(|record| self.shared().in_memory(record.topic)).count();
        match in_memory {
            _ if records.is_empty() => Ok(Vec::new()),
            0 => self.shared().queue.append(records).await,
            all if all == records.len() => self.append_in_memory(&records),
            _ => self.append_mixed(records).await,
        }
    }

    async fn join(&self, group: &str, topics: &[Topic], start: StartAt) -> Result<Box<dyn Consumer>, LogError> {
        Ok(Box::new(group::join(self.shared(), group, topics, start)?))
    }

    async fn read(&self, topic: Topic, partition: u32, offset: u64) -> Result<Box<dyn Reader>, LogError> {
        let index = self.shared().partitions.index(topic, partition);
        let index = index.ok_or_else(|| no_partition(topic, partition))?;
        Ok(Box::new(PartitionReader::new(Arc::clone(self.shared()), index, offset)))
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        self.shared().partition(topic, partition).map(Partition::bounds)
    }

    async fn offset_at(&self, topic: Topic, partition: u32, at: Timestamp) -> Result<u64, LogError> {
        let found = self.shared().partition(topic, partition)?;
        let end = found.bounds().end;
        let offset = if found.in_memory {
            let batches = found.batches();
            let mut records = batches.iter().flat_map(|batch| BatchCursor::new(topic, partition, batch, 0));
            records.find(|record| record.timestamp >= at).map(|record| record.position.offset)
        } else {
            self.shared().pool.run(move |file| file.offset_at(topic, partition, at)).await?
        };
        Ok(offset.unwrap_or(end))
    }

    async fn committed(&self, group: &str, topic: Topic, partition: u32) -> Result<Option<u64>, LogError> {
        Ok(self.shared().groups.committed(group, topic, partition))
    }

    fn epoch(&self) -> Epoch {
        Epoch(self.shared().epoch.load(Ordering::Acquire))
    }

    fn partitions(&self, topic: Topic) -> u32 {
        self.shared().partitions.count(topic)
    }

    async fn close(&self) {
        Self::close(self).await;
    }

    async fn ping(&self) -> Result<(), LogError> {
        self.shared().queue.request(Request::Ping).await
    }
}

/// One writer a directory, also over processes. The lock goes with the process, however it ends.
fn lock_directory(options: &Options) -> Result<fs::File, LogError> {
    fs::create_dir_all(&options.dir).map_err(|error| engine("make its directory", &error))?;
    let lock = fs::File::create(options.dir.join("log.lock")).map_err(|error| engine("lock its directory", &error))?;
    let until = Instant::now() + HANDOVER;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(HANDOVER_STEP),
            Err(fs::TryLockError::WouldBlock) => {
                let reason = format!("another process has {} open", options.dir.display());
                return Err(LogError::Engine { action: "lock its directory", reason });
            }
            Err(fs::TryLockError::Error(error)) => return Err(engine("lock its directory", &error)),
        }
    }
}

fn no_partition(topic: Topic, partition: u32) -> LogError {
    LogError::Engine { action: "find a partition", reason: format!("{topic} has no partition {partition}") }
}

fn engine(action: &'static str, error: &dyn std::error::Error) -> LogError {
    LogError::Engine { action, reason: error.to_string() }
}
