//! Consumers that read what they are told to, without a group. They are shared: a connection and three threads each are too
//! much for every read-back of a window. A consumer reads a partition once at a time; a second reader of the same
//! partition gets another consumer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::hooks::{Client, Hooks};
use super::lookups::Lookups;
use super::reader::{End, Feed, PartitionReader};
use super::watch::Watch;
use super::{engine, start_thread};
use crate::{LogError, Topic};

/// Most consumers of a log: that many may read the same partition at a time.
const MOST_CONSUMERS: usize = 64;
/// Consumers that are kept while nobody reads from them.
const KEPT_IDLE: usize = 2;
/// How long a consumer is polled at a time, for its log lines and errors; also how late it may learn that it is to end.
const POLL: Duration = Duration::from_millis(500);

/// The shared consumers.
pub(super) struct Pool {
    config: ClientConfig,
    lookups: Lookups,
    watch: Watch,
    runtime: Handle,
    consumers: Mutex<Vec<Arc<Shared>>>,
    closed: AtomicBool,
}

/// One consumer and what it reads.
struct Shared {
    client: Mutex<Option<Arc<Client>>>,
    feeds: Mutex<AHashMap<(Topic, u32), Arc<Feed>>>,
    /// What is read, or about to be, or not given back in full yet.
    busy: Mutex<AHashSet<(Topic, u32)>>,
    ended: AtomicBool,
}

impl Pool {
    pub fn new(config: ClientConfig, lookups: Lookups, watch: Watch) -> Arc<Self> {
        let (consumers, closed) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { config, lookups, watch, runtime: Handle::current(), consumers, closed })
    }

    /// A consumer to ask the brokers with.
    pub fn client(&self) -> Result<Arc<Client>, LogError> {
        let present = self.consumers.lock().first().and_then(|shared| shared.client.lock().clone());
        match present {
            Some(client) => Ok(client),
            None => self.borrow(None)?.client.lock().clone().ok_or(LogError::Closed),
        }
    }

    /// Reads a partition from `offset` on: from the oldest kept where that is newer, from the end where that is older.
    /// Blocks.
    pub fn read(self: &Arc<Self>, source: (Topic, u32), offset: u64) -> Result<PartitionReader, LogError> {
        let bounds = self.lookups.bounds(&*self.client()?, &[source])?;
        let next = bounds.get(&source).map_or(offset, |bounds| offset.clamp(bounds.start, bounds.end));
        let shared = self.borrow(Some(source))?;
        let lease = Lease { pool: Arc::clone(self), shared: Arc::clone(&shared), source };
        let client = shared.client.lock().clone().ok_or(LogError::Closed)?;
        let queue = client.split_partition_queue(self.lookups.names.of(source.0), source.1 as i32);
        let queue = queue.ok_or_else(|| LogError::Engine {
            action: "read a partition",
            reason: format!("there is no queue for partition {} of {}", source.1, source.0),
        })?;
        let feed = Feed::new(queue);
        shared.feeds.lock().insert(source, Arc::clone(&feed));
        client.incremental_assign(&self.at(source, next)?).map_err(engine("read a partition"))?;
        Ok(PartitionReader::new(source, next, feed, Some(Box::new(lease))))
    }

    /// Ends every reader and every consumer. Blocks.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for shared in std::mem::take(&mut *self.consumers.lock()) {
            shared.end();
        }
    }

    /// A consumer that does not read `source`; it is made where there is none.
    fn borrow(&self, source: Option<(Topic, u32)>) -> Result<Arc<Shared>, LogError> {
        let mut consumers = self.consumers.lock();
        if self.closed.load(Ordering::Acquire) {
            return Err(LogError::Closed);
        }
        let free = consumers.iter().find(|shared| match source {
            Some(source) => shared.busy.lock().insert(source),
            None => true,
        });
        if let Some(shared) = free {
            return Ok(Arc::clone(shared));
        }
        if consumers.len() == MOST_CONSUMERS {
            let reason = format!("{MOST_CONSUMERS} readers read {source:?} already");
            return Err(LogError::Engine { action: "read a partition", reason });
        }
        let shared = Shared::start(&self.config, &self.watch)?;
        shared.busy.lock().extend(source);
        consumers.push(Arc::clone(&shared));
        Ok(shared)
    }

    /// Gives a partition back. Blocks for as long as librdkafka takes to stop fetching it.
    fn give_back(&self, shared: &Arc<Shared>, source: (Topic, u32)) {
        shared.give_back(source, &self.lookups.list([source]));
        let mut consumers = self.consumers.lock();
        let idle = |shared: &Arc<Shared>| shared.busy.lock().is_empty();
        // The first is kept for look-ups.
        if consumers.iter().skip(1).filter(|shared| idle(shared)).count() > KEPT_IDLE
            && let Some(place) = consumers.iter().rposition(idle).filter(|place| *place > 0)
        {
            consumers.swap_remove(place).end();
        }
    }

    fn at(&self, source: (Topic, u32), offset: u64) -> Result<TopicPartitionList, LogError> {
        let mut list = self.lookups.list([source]);
        list.set_all_offsets(Offset::Offset(offset as i64)).map_err(engine("read a partition"))?;
        Ok(list)
    }
}

impl Shared {
    fn start(config: &ClientConfig, watch: &Watch) -> Result<Arc<Self>, LogError> {
        let client: Client = config.create_with_context(Hooks(None)).map_err(engine("make a consumer"))?;
        let client = Arc::new(client);
        watch.add(&client);
        let shared = Arc::new(Self {
            client: Mutex::new(Some(Arc::clone(&client))),
            feeds: Mutex::default(),
            busy: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        start_thread("kafka-reader", {
            let shared = Arc::clone(&shared);
            move || shared.serve(&client)
        })?;
        Ok(shared)
    }

    /// Serves log lines and errors until it is to end; then drops the consumer, here, where it may block.
    fn serve(&self, client: &Client) {
        while !self.ended.load(Ordering::Acquire) {
            // Every partition has a queue of its own: what comes here is an error, which the hooks have logged.
            let _ = client.poll(POLL);
        }
    }

    fn give_back(&self, source: (Topic, u32), list: &TopicPartitionList) {
        if let Some(feed) = self.feeds.lock().remove(&source) {
            feed.end(End::Closed);
        }
        let client = self.client.lock().clone();
        if let Some(client) = client
            && let Err(error) = client.incremental_unassign(list)
        {
            tracing::warn!(%error, topic = %source.0, partition = source.1, "a partition was not given back");
        }
        self.busy.lock().remove(&source);
    }

    fn end(&self) {
        for (_, feed) in std::mem::take(&mut *self.feeds.lock()) {
            feed.end(End::Closed);
        }
        // Before its thread may end: the thread is to be the last to let go.
        self.client.lock().take();
        self.ended.store(true, Ordering::Release);
    }
}

/// A partition of a consumer, lent to a reader.
struct Lease {
    pool: Arc<Pool>,
    shared: Arc<Shared>,
    source: (Topic, u32),
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (pool, shared, source) = (Arc::clone(&self.pool), Arc::clone(&self.shared), self.source);
        // Off the async threads: a reader is dropped on one.
        self.pool.runtime.spawn_blocking(move || pool.give_back(&shared, source));
    }
}
