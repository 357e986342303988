//! A log in memory, for one group of one member, that fails when it is told to.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{Epoch, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::{
    AppendError, Assignment, Bounds, Committer, Consumer, ConsumerEvent, Headers, Log, LogError, LogPosition,
    NewRecord, PartitionStream, Reader, Record, StartAt, Topic,
};

/// A stream in which `count` records wait, and no more come.
pub(super) fn waiting(topic: Topic, count: usize) -> PartitionStream {
    let log = Arc::new(MemoryLog::default());
    for _ in 0..count {
        log.write(record(topic, ""));
    }
    Box::new(MemoryReader { log, source: (topic, 0), next: 0 })
}

pub(super) fn record(topic: Topic, value: &str) -> NewRecord {
    NewRecord {
        topic,
        partition: Some(0),
        key: Bytes::from_static(b"key"),
        value: Bytes::copy_from_slice(value.as_bytes()),
        headers: Headers::none(),
        timestamp: Timestamp::from_millis(1),
    }
}

/// One log, of partitions in memory, for one group of one member.
#[derive(Default)]
pub(super) struct MemoryLog {
    pub(super) records: Mutex<BTreeMap<(Topic, u32), Vec<Record>>>,
    committed: Mutex<BTreeMap<(Topic, u32), u64>>,
    arrived: Notify,
    /// What the next appends are answered with, instead of being written.
    pub(super) failures: Mutex<VecDeque<AppendError>>,
    /// The next appends are written as far as these say, by place in the batch (over again where it is longer), and
    /// answered as if nobody knew.
    pub(super) unheard: Mutex<VecDeque<Vec<bool>>>,
    /// Sizes of the batches that were appended by stages.
    pub(super) appends: Mutex<Vec<usize>>,
    pub(super) events: Mutex<Option<mpsc::UnboundedSender<ConsumerEvent>>>,
    /// The member that owns the partitions: the last one that joined. The commits of others are refused.
    owner: Mutex<u64>,
}

impl MemoryLog {
    pub(super) fn write(&self, new: NewRecord) -> LogPosition {
        let source = (new.topic, new.partition.unwrap_or(0));
        let mut records = self.records.lock();
        let partition = records.entry(source).or_default();
        let position = LogPosition { topic: source.0, partition: source.1, offset: partition.len() as u64 };
        let NewRecord { key, value, headers, timestamp, .. } = new;
        partition.push(Record { position, timestamp, key, value, headers });
        self.arrived.notify_waiters();
        position
    }

    pub(super) fn values(&self, topic: Topic) -> Vec<String> {
        let records = self.records.lock();
        let of_topic = records.iter().filter(|((of, _), _)| *of == topic).flat_map(|(_, records)| records);
        of_topic.map(|record| String::from_utf8_lossy(&record.value).into_owned()).collect()
    }

    pub(super) fn committed(&self, topic: Topic) -> Option<u64> {
        self.committed.lock().get(&(topic, 0)).copied()
    }

    /// Whether everything that `topics` hold is committed.
    pub(super) fn is_settled(&self, topics: &[Topic]) -> bool {
        let (records, committed) = (self.records.lock(), self.committed.lock());
        topics.iter().all(|topic| {
            let end = records.get(&(*topic, 0)).map_or(0, Vec::len) as u64;
            committed.get(&(*topic, 0)).copied().unwrap_or(0) == end
        })
    }

    pub(super) fn stream(self: &Arc<Self>, topic: Topic) -> PartitionStream {
        let next = self.committed(topic).unwrap_or(0);
        Box::new(MemoryReader { log: Arc::clone(self), source: (topic, 0), next })
    }
}

struct MemoryReader {
    log: Arc<MemoryLog>,
    source: (Topic, u32),
    next: u64,
}

#[async_trait]
impl Reader for MemoryReader {
    fn source(&self) -> (Topic, u32) {
        self.source
    }

    fn next_offset(&self) -> u64 {
        self.next
    }

    async fn ready(&mut self) -> Result<(), LogError> {
        loop {
            let arrived = self.log.arrived.notified();
            if self.log.records.lock().get(&self.source).is_some_and(|records| records.len() as u64 > self.next) {
                return Ok(());
            }
            arrived.await;
        }
    }

    fn take(&mut self, max: usize) -> Vec<Record> {
        let records = self.log.records.lock();
        let waiting = records.get(&self.source).into_iter().flatten().skip(self.next as usize);
        let taken: Vec<Record> = waiting.take(max).cloned().collect();
        self.next += taken.len() as u64;
        taken
    }
}

/// [`MemoryLog`] as the port.
pub(super) struct Port(pub(super) Arc<MemoryLog>);

#[async_trait]
impl Log for Port {
    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<LogPosition>, AppendError> {
        tokio::task::yield_now().await;
        if let Some(failure) = self.0.failures.lock().pop_front() {
            return Err(failure);
        }
        if let Some(written) = self.0.unheard.lock().pop_front() {
            let written = written.iter().copied().cycle();
            records.into_iter().zip(written).filter(|(_, written)| *written).for_each(|(new, _)| {
                self.0.write(new);
            });
            return Err(AppendError::Unknown { reason: "nobody heard".to_owned() });
        }
        self.0.appends.lock().push(records.len());
        Ok(records.into_iter().map(|record| self.0.write(record)).collect())
    }

    async fn join(&self, _: &str, topics: &[Topic], _: StartAt) -> Result<Box<dyn Consumer>, LogError> {
        let (sender, events) = mpsc::unbounded_channel();
        let partitions = topics.iter().map(|topic| self.0.stream(*topic)).collect();
        sender.send(ConsumerEvent::Assigned(Assignment { generation: 1, partitions })).ok();
        *self.0.events.lock() = Some(sender);
        let mut owner = self.0.owner.lock();
        *owner += 1;
        Ok(Box::new(Member { log: Arc::clone(&self.0), events, id: *owner }))
    }

    async fn read(&self, topic: Topic, partition: u32, offset: u64) -> Result<Box<dyn Reader>, LogError> {
        Ok(Box::new(MemoryReader { log: Arc::clone(&self.0), source: (topic, partition), next: offset }))
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        let end = self.0.records.lock().get(&(topic, partition)).map_or(0, Vec::len) as u64;
        Ok(Bounds { start: 0, end })
    }

    async fn offset_at(&self, _: Topic, _: u32, _: Timestamp) -> Result<u64, LogError> {
        Ok(0)
    }

    async fn committed(&self, _: &str, topic: Topic, _: u32) -> Result<Option<u64>, LogError> {
        Ok(self.0.committed(topic))
    }

    fn epoch(&self) -> Epoch {
        Epoch(1)
    }

    fn partitions(&self, _: Topic) -> u32 {
        1
    }

    async fn ping(&self) -> Result<(), LogError> {
        Ok(())
    }
}

struct Member {
    log: Arc<MemoryLog>,
    events: mpsc::UnboundedReceiver<ConsumerEvent>,
    id: u64,
}

#[async_trait]
impl Consumer for Member {
    async fn event(&mut self) -> Result<ConsumerEvent, LogError> {
        self.events.recv().await.ok_or(LogError::Closed)
    }

    fn committer(&self) -> Arc<dyn Committer> {
        Arc::new(Commits(Arc::clone(&self.log), self.id))
    }

    async fn leave(self: Box<Self>) {}
}

struct Commits(Arc<MemoryLog>, u64);

#[async_trait]
impl Committer for Commits {
    async fn commit(&self, _: u64, offsets: &[(Topic, u32, u64)]) -> Result<(), LogError> {
        if *self.0.owner.lock() != self.1
            && let Some((topic, partition, _)) = offsets.first()
        {
            return Err(LogError::NotOwned { topic: *topic, partition: *partition });
        }
        let mut committed = self.0.committed.lock();
        committed.extend(offsets.iter().map(|(topic, partition, offset)| ((*topic, *partition), *offset)));
        Ok(())
    }
}
