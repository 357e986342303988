//! A partition in memory: what it holds, its newest records, and who waits for more.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::batch::{Batch, Encoder};
use crate::{Bounds, Durability, NewRecord, Topic};

/// One partition. The tail ends where the partition ends; what is before it is in the file, or, of a memory topic, gone.
#[derive(Debug)]
pub(super) struct Partition {
    pub topic: Topic,
    pub number: u32,
    pub in_memory: bool,
    state: Mutex<State>,
    appended: Notify,
}

#[derive(Debug)]
struct State {
    start: u64,
    end: u64,
    reached: i64,
    tail: VecDeque<Batch>,
    tail_bytes: usize,
}

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The batches were handed over.
    InMemory,
    /// It has to be read from the file, from this offset on.
    InFile(u64),
    /// Nothing yet.
    AtEnd,
}

/// A partition as the file has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub start: u64,
    pub end: u64,
    pub reached: i64,
}

impl Partition {
    fn new(topic: Topic, number: u32) -> Self {
        let state = State { start: 0, end: 0, reached: i64::MIN, tail: VecDeque::new(), tail_bytes: 0 };
        let in_memory = topic.spec().durability == Durability::Memory;
        Self { topic, number, in_memory, state: Mutex::new(state), appended: Notify::new() }
    }

    pub fn bounds(&self) -> Bounds {
        let state = self.state.lock();
        Bounds { start: state.start, end: state.end }
    }

    /// The end, and the newest time of a record in the partition.
    pub fn head(&self) -> (u64, i64) {
        let state = self.state.lock();
        (state.end, state.reached)
    }

    /// A future that ends with the next append after this call.
    pub fn appended(&self) -> tokio::sync::futures::Notified<'_> {
        self.appended.notified()
    }

    /// Takes the file's word for what the partition holds.
    pub fn reset(&self, extent: Extent) {
        let mut state = self.state.lock();
        *state = State {
            tail: VecDeque::new(),
            tail_bytes: 0,
            start: extent.start,
            end: extent.end,
            reached: extent.reached,
        };
        drop(state);
        self.appended.notify_waiters();
    }

    /// Shows committed batches to readers and keeps the newest in memory, at most `limit` bytes.
    pub fn publish(&self, batches: Vec<Batch>, limit: usize) {
        let mut state = self.state.lock();
        for batch in batches {
            state.push(batch);
        }
        state.evict(limit);
        drop(state);
        self.appended.notify_waiters();
    }

    /// Appends to a memory topic; returns the first offset. The oldest records go where there are more than `limit` bytes.
    pub fn append_in_memory(&self, records: &[&NewRecord], limit: usize) -> u64 {
        let mut encoder = Encoder::default();
        for record in records {
            encoder.expect(record);
        }
        let mut state = self.state.lock();
        let base = state.end;
        encoder.begin(base, state.reached);
        for record in records {
            encoder.push(record);
        }
        for batch in encoder.finish() {
            state.push(batch);
        }
        state.evict(limit);
        state.start = state.tail.front().map_or(state.end, |oldest| oldest.base);
        drop(state);
        self.appended.notify_waiters();
        base
    }

    /// Hands over batches from `*next` on that hold about `records` records. Moves `*next` on to the oldest record kept,
    /// where it is older.
    pub fn find(&self, next: &mut u64, records: usize, into: &mut VecDeque<Batch>) -> Found {
        let state = self.state.lock();
        *next = (*next).max(state.start);
        if *next >= state.end {
            return Found::AtEnd;
        }
        let first = state.tail.partition_point(|batch| batch.end() <= *next);
        match state.tail.get(first) {
            Some(batch) if batch.base <= *next => {}
            _ => return Found::InFile(*next),
        }
        let mut have = 0;
        for batch in state.tail.range(first..) {
            into.push_back(batch.clone());
            have += (batch.end() - batch.base.max(*next)) as usize;
            if have >= records {
                break;
            }
        }
        Found::InMemory
    }

    /// What is in memory, oldest first.
    pub fn batches(&self) -> Vec<Batch> {
        self.state.lock().tail.iter().cloned().collect()
    }

    /// Records before `start` are no longer kept.
    pub fn forget_before(&self, start: u64) {
        let mut state = self.state.lock();
        state.start = state.start.max(start).min(state.end);
        let start = state.start;
        while state.tail.front().is_some_and(|oldest| oldest.end() <= start) {
            state.pop();
        }
    }

    /// Drops from memory what was made before `cutoff`; of a memory topic, that is the end of it.
    pub fn drop_older_than(&self, cutoff: i64) {
        let mut state = self.state.lock();
        while state.tail.front().is_some_and(|oldest| oldest.newest < cutoff) {
            state.pop();
        }
        state.tail.shrink_to_fit();
        if self.in_memory {
            state.start = state.tail.front().map_or(state.end, |oldest| oldest.base);
        }
    }
}

impl State {
    fn push(&mut self, batch: Batch) {
        self.end = batch.end();
        self.reached = batch.reached;
        self.tail_bytes += batch.data.len();
        self.tail.push_back(batch);
    }

    fn pop(&mut self) {
        if let Some(oldest) = self.tail.pop_front() {
            self.tail_bytes -= oldest.data.len();
        }
    }

    /// The newest batch stays, however large: somebody is about to read it.
    fn evict(&mut self, limit: usize) {
        while self.tail_bytes > limit && self.tail.len() > 1 {
            self.pop();
        }
    }
}

/// Every partition of every topic, in the order of the catalogue.
#[derive(Debug)]
pub(super) struct Partitions {
    all: Vec<Partition>,
    /// Where the partitions of a topic begin in `all`; one more at the end.
    first: Vec<usize>,
}

impl Partitions {
    pub fn of_the_catalogue() -> Self {
        let mut all = Vec::new();
        let mut first = vec![0];
        for topic in Topic::ALL {
            all.extend((0..topic.spec().partitions).map(|number| Partition::new(topic, number)));
            first.push(all.len());
        }
        Self { all, first }
    }

    pub fn count(&self, topic: Topic) -> u32 {
        (self.first[topic as usize + 1] - self.first[topic as usize]) as u32
    }

    /// The place of a partition in the list of all, if the topic has it.
    pub fn index(&self, topic: Topic, partition: u32) -> Option<usize> {
        (partition < self.count(topic)).then(|| self.first[topic as usize] + partition as usize)
    }

    pub fn get(&self, topic: Topic, partition: u32) -> Option<&Partition> {
        self.index(topic, partition).map(|index| &self.all[index])
    }

    pub fn at(&self, index: usize) -> &Partition {
        &self.all[index]
    }

    pub fn all(&self) -> &[Partition] {
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn batch(base: u64, count: u32) -> Batch {
        Batch { base, count, newest: base as i64, reached: base as i64, data: Bytes::from(vec![0; 100]) }
    }

    #[test]
    fn a_tail_over_its_limit_leaves_its_oldest_to_the_file() {
        let partition = Partition::new(Topic::LaneHigh, 0);
        partition.publish((0..5).map(|n| batch(n * 2, 2)).collect(), 250);
        let mut found = VecDeque::new();
        let mut next = 3;
        assert_eq!(partition.find(&mut next, 10, &mut found), Found::InFile(3));
        next = 7;
        assert_eq!(partition.find(&mut next, 2, &mut found), Found::InMemory);
        assert_eq!(found.iter().map(|batch| batch.base).collect::<Vec<_>>(), [6, 8]);
        next = 10;
        assert_eq!(partition.find(&mut next, 2, &mut found), Found::AtEnd);
        assert_eq!(partition.bounds(), Bounds { start: 0, end: 10 });
    }

    #[test]
    fn a_reader_below_the_start_goes_on_at_the_oldest_kept() {
        let partition = Partition::new(Topic::LaneHigh, 0);
        partition.publish((0..5).map(|n| batch(n * 2, 2)).collect(), 1000);
        partition.forget_before(6);
        let mut next = 1;
        assert_eq!(partition.find(&mut next, 1, &mut VecDeque::new()), Found::InMemory);
        assert_eq!(next, 6);
        assert_eq!(partition.bounds(), Bounds { start: 6, end: 10 });
    }

    #[test]
    fn what_is_dropped_from_memory_is_still_kept_unless_memory_is_all_there_is() {
        for (topic, start) in [(Topic::LaneHigh, 0), (Topic::Deliveries, 4)] {
            let partition = Partition::new(topic, 0);
            partition.publish((0..3).map(|n| batch(n * 2, 2)).collect(), 1000);
            partition.drop_older_than(3);
            assert_eq!(partition.bounds(), Bounds { start, end: 6 });
        }
    }

    #[test]
    fn every_partition_of_the_catalogue_has_its_own_place() {
        let partitions = Partitions::of_the_catalogue();
        for topic in Topic::ALL {
            for number in 0..topic.spec().partitions {
                let found = partitions.get(topic, number).map(|found| (found.topic, found.number));
                assert_eq!(found, Some((topic, number)));
            }
            assert!(partitions.get(topic, topic.spec().partitions).is_none());
        }
    }
}
