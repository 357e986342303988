//! The log on Kafka, through librdkafka.
//!
//! Reads top-down: `options` and `names` (what librdkafka is told) → `cluster` (the topics: check and apply) → `producer`
//! (append) → `group`, `membership` (members of groups, commits) → `pool` (readers without a group), `reader` (one
//! partition) and `lookups` (bounds, times, commits) → `hooks` (what librdkafka calls) → `watch` (over clients that lost
//! their brokers).
//!
//! librdkafka's calls that block run on threads of their own or on the blocking pool, with a limit on their time; its
//! clients are dropped there, too (kafka-rules 13).

mod cluster;
mod group;
mod hooks;
mod lookups;
mod membership;
mod names;
mod options;
mod pool;
mod producer;
mod reader;
#[cfg(test)]
mod tests;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use async_trait::async_trait;
use eshaar_model::{Epoch, Timestamp};
use eshaar_service::workers;
use parking_lot::Mutex;
use rdkafka::error::KafkaError;
use tokio_util::sync::CancellationToken;

pub use cluster::{Applied, Difference, Report, apply, check};
pub use options::Options;

use self::group::{Ground, Groups};
use self::hooks::{Client, Hooks};
use self::lookups::Lookups;
use self::names::Names;
use self::pool::Pool;
use self::producer::Producer;
use self::watch::Watch;
use crate::log::{check_record, refused};
use crate::partitioner::partition_of;
use crate::{AppendError, Bounds, Consumer, Log, LogError, LogPosition, NewRecord, Reader, StartAt, Topic};

/// The log on Kafka. Cheap to clone; the last clone that is dropped gives up what is not acknowledged: close it first.
#[derive(Clone)]
pub struct KafkaLog(Arc<Shared>);

struct Shared {
    ground: Ground,
    producer: Producer,
    pool: Arc<Pool>,
    groups: Groups,
    /// Consumers that ask what groups have committed, by group.
    asking: Mutex<AHashMap<String, Arc<Client>>>,
}

impl Shared {
    fn asking_for(&self, group: &str) -> Result<Arc<Client>, LogError> {
        let mut asking = self.asking.lock();
        if self.ground.closed.is_cancelled() {
            return Err(LogError::Closed);
        }
        if let Some(client) = asking.get(group) {
            return Ok(Arc::clone(client));
        }
        let mut config = self.ground.options.reader(&self.ground.names)?;
        config.set("group.id", group);
        let client: Client = config.create_with_context(Hooks(None)).map_err(engine("ask about a group"))?;
        let client = Arc::new(client);
        self.ground.watch.add(&client);
        asking.insert(group.to_owned(), Arc::clone(&client));
        Ok(client)
    }

    /// Lets go of the consumers that ask. Blocks.
    fn stop_asking(&self) {
        let asking = std::mem::take(&mut *self.asking.lock());
        drop(asking);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.ground.closed.cancel();
        let asking = std::mem::take(&mut *self.asking.lock());
        if !asking.is_empty() {
            // Dropping a client blocks. Where no thread can be had, it blocks here.
            let _ = std::thread::Builder::new().name("kafka-asking".to_owned()).spawn(move || drop(asking));
        }
        self.groups.abandon();
        self.pool.close();
    }
}

impl KafkaLog {
    /// Connects, and checks the cluster's topics against the catalogue.
    ///
    /// # Errors
    /// An option cannot work, no broker answers, or a topic is missing or is not as the catalogue says; the error names
    /// every difference.
    pub async fn open(options: Options, topic_prefix: &str) -> Result<Self, LogError> {
        let differences = check(&options, topic_prefix).await?;
        if !differences.is_empty() {
            let list: Vec<String> = differences.iter().map(ToString::to_string).collect();
            let reason = format!("{}; run `eshaar topics apply`", list.join("; "));
            return Err(LogError::Engine { action: "use the topics of the cluster", reason });
        }
        let names = Arc::new(Names::new(topic_prefix));
        let lookups = Lookups { names: Arc::clone(&names), timeout: options.request_timeout() };
        let watch = Watch::new(options.reader(&names)?, names.of(Topic::MessagesAccepted))?;
        let producer = Producer::open(options.producer()?, Arc::clone(&names), watch.clone())?;
        let pool = Pool::new(options.reader(&names)?, lookups.clone(), watch.clone());
        let closed = CancellationToken::new();
        tokio::spawn(workers::guarded("kafka-watch", watch.clone().run(closed.clone())));
        let ground = Ground { options, names, lookups, watch, closed };
        Ok(Self(Arc::new(Shared { ground, producer, pool, groups: Groups::default(), asking: Mutex::default() })))
    }

    /// Closes it: takes nothing more in, waits for what is not acknowledged, leaves all groups. Whoever waits for records
    /// is told that the log is closed.
    pub async fn close(&self) {
        self.0.ground.closed.cancel();
        self.0.groups.close().await;
        let shared = Arc::clone(&self.0);
        let closed = tokio::task::spawn_blocking(move || {
            shared.producer.close(shared.ground.options.close_timeout());
            shared.pool.close();
            shared.stop_asking();
        });
        if closed.await.is_err() {
            tracing::error!("closing the log ended with a panic");
        }
    }

    fn check_partition(&self, topic: Topic, partition: u32) -> Result<(), LogError> {
        if partition < self.partitions(topic) { Ok(()) } else { Err(no_partition(topic, partition)) }
    }

    /// What a group has committed, in the order of `sources`. Offsets are told to a consumer of that group only: one asks, and
    /// joins nothing. It is kept for the next question.
    async fn committed_of(&self, group: &str, sources: Vec<(Topic, u32)>) -> Result<Vec<Option<u64>>, LogError> {
        let group = self.0.ground.names.group(group);
        let shared = Arc::clone(&self.0);
        let asked = tokio::task::spawn_blocking(move || {
            let client = shared.asking_for(&group)?;
            let lookups = &shared.ground.lookups;
            let committed = lookups.committed(&client, lookups.list(sources.iter().copied()))?;
            Ok(sources.iter().map(|source| committed.get(source).copied()).collect())
        });
        asked.await.unwrap_or(Err(LogError::Closed))
    }

    /// Asks the brokers something, off the async threads.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Client, &Lookups) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let (pool, lookups) = (Arc::clone(&self.0.pool), self.0.ground.lookups.clone());
        let asked = tokio::task::spawn_blocking(move || question(&*pool.client()?, &lookups));
        asked.await.unwrap_or(Err(LogError::Closed))
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn append(&self, mut records: Vec<NewRecord>) -> Result<Vec<LogPosition>, AppendError> {
        for record in &mut records {
            check_record(record)?;
            let count = self.partitions(record.topic);
            // As Java clients do it (`murmur2_random`), and checked where the counts are known.
            let partition = record.partition.unwrap_or_else(|| partition_of(&record.key, count));
            if partition >= count {
                return Err(refused(no_partition(record.topic, partition).to_string()));
            }
            record.partition = Some(partition);
        }
        if self.0.ground.closed.is_cancelled() {
            return Err(AppendError::Closed);
        }
        if records.is_empty() { Ok(Vec::new()) } else { self.0.producer.append(records).await }
    }

    async fn join(&self, group: &str, topics: &[Topic], start: StartAt) -> Result<Box<dyn Consumer>, LogError> {
        self.join_patiently(group, topics, start, Duration::ZERO).await
    }

    async fn join_patiently(
        &self,
        group: &str,
        topics: &[Topic],
        start: StartAt,
        patience: Duration,
    ) -> Result<Box<dyn Consumer>, LogError> {
        if self.0.ground.closed.is_cancelled() {
            return Err(LogError::Closed);
        }
        Ok(Box::new(self.0.groups.join(&self.0.ground, group, topics, start, patience).await?))
    }

    async fn read(&self, topic: Topic, partition: u32, offset: u64) -> Result<Box<dyn Reader>, LogError> {
        self.check_partition(topic, partition)?;
        let pool = Arc::clone(&self.0.pool);
        let reader = tokio::task::spawn_blocking(move || pool.read((topic, partition), offset));
        Ok(Box::new(reader.await.unwrap_or(Err(LogError::Closed))?))
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        self.check_partition(topic, partition)?;
        let source = (topic, partition);
        let bounds = self.ask(move |client, lookups| lookups.bounds(client, &[source])).await?;
        bounds.get(&source).copied().ok_or_else(|| no_partition(topic, partition))
    }

    async fn ends(&self, topic: Topic) -> Result<Vec<u64>, LogError> {
        let count = self.partitions(topic);
        self.ask(move |client, lookups| lookups.ends(client, topic, count)).await
    }

    async fn offset_at(&self, topic: Topic, partition: u32, at: Timestamp) -> Result<u64, LogError> {
        self.check_partition(topic, partition)?;
        let source = (topic, partition);
        let found = self.ask(move |client, lookups| lookups.offset_at(client, source, at)).await?;
        match found {
            Some(offset) => Ok(offset),
            None => self.bounds(topic, partition).await.map(|bounds| bounds.end),
        }
    }

    async fn committed(&self, group: &str, topic: Topic, partition: u32) -> Result<Option<u64>, LogError> {
        self.check_partition(topic, partition)?;
        Ok(self.committed_of(group, vec![(topic, partition)]).await?.first().copied().flatten())
    }

    async fn committed_all(&self, group: &str, topic: Topic) -> Result<Vec<Option<u64>>, LogError> {
        let sources = (0..self.partitions(topic)).map(|partition| (topic, partition)).collect();
        self.committed_of(group, sources).await
    }

    fn epoch(&self) -> Epoch {
        Epoch(self.0.ground.options.epoch)
    }

    fn partitions(&self, topic: Topic) -> u32 {
        self.0.ground.options.partitions_of(topic)
    }

    async fn close(&self) {
        Self::close(self).await;
    }

    async fn ping(&self) -> Result<(), LogError> {
        self.ask(|client, lookups| lookups.ping(client)).await
    }
}

fn no_partition(topic: Topic, partition: u32) -> LogError {
    LogError::Engine { action: "find a partition", reason: format!("{topic} has no partition {partition}") }
}

fn engine(action: &'static str) -> impl Fn(KafkaError) -> LogError {
    move |error| LogError::Engine { action, reason: error.to_string() }
}

/// A thread for librdkafka's calls that block.
fn start_thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), LogError> {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _guard = workers::guard("kafka");
        run();
    });
    let failed = |error: std::io::Error| LogError::Engine { action: "start a thread", reason: error.to_string() };
    started.map(drop).map_err(failed)
}
