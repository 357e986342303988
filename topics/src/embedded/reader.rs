//! Reads one partition forward: from memory while it keeps up, from the file while it lags.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;

use super::Shared;
use super::batch::{Batch, BatchCursor};
use super::partition::{Found, Partition};
use crate::{Gap, LogError, Reader, Record, Topic};

/// How many records are looked for before anybody asks for a number.
const GLANCE: usize = 1;

/// How often what should be in the file may not be found there, in a row.
const MOST_MISSED: usize = 3;

type Fetch = Pin<Box<dyn Future<Output = Result<Vec<Batch>, LogError>> + Send>>;

/// A reader of one partition.
pub(super) struct PartitionReader {
    shared: Arc<Shared>,
    /// Place of the partition in the list of all.
    index: usize,
    next: u64,
    gap_before: Option<Gap>,
    cursor: Option<BatchCursor>,
    /// Behind the cursor, in order.
    hand: VecDeque<Batch>,
    /// A read from the file that has begun. Kept here, so that a call that is dropped does not begin it anew.
    fetch: Option<Fetch>,
}

impl PartitionReader {
    /// Begins at `offset`, at the oldest record kept if that is newer, and at the end if that is older.
    pub fn new(shared: Arc<Shared>, index: usize, offset: u64) -> Self {
        let bounds = shared.partitions.at(index).bounds();
        let next = offset.clamp(bounds.start, bounds.end);
        Self { shared, index, next, gap_before: None, cursor: None, hand: VecDeque::new(), fetch: None }
    }

    /// Begins where a group goes on, at the offset that it has committed.
    pub fn of_group(shared: Arc<Shared>, index: usize, committed: u64) -> Self {
        let mut reader = Self::new(shared, index, committed);
        let ((topic, partition), to) = (reader.source(), reader.next);
        reader.gap_before = (committed < to).then_some(Gap { topic, partition, from: committed, to });
        reader
    }

    fn partition(&self) -> &Partition {
        self.shared.partitions.at(self.index)
    }

    /// Whether there is a record to take without looking further.
    fn has_some(&self) -> bool {
        self.cursor.as_ref().is_some_and(BatchCursor::has_some) || !self.hand.is_empty()
    }

    /// Gets more from memory into the hand.
    fn find(&mut self, records: usize) -> Found {
        self.shared.partitions.at(self.index).find(&mut self.next, records, &mut self.hand)
    }

    fn fetch_from(&self, offset: u64) -> Fetch {
        let (topic, number) = (self.partition().topic, self.partition().number);
        let bytes = self.shared.options.read_ahead_bytes;
        let pool = self.shared.pool.clone();
        Box::pin(async move { pool.run(move |file| file.batches(topic, number, offset, bytes)).await })
    }
}

#[async_trait]
impl Reader for PartitionReader {
    fn source(&self) -> (Topic, u32) {
        (self.partition().topic, self.partition().number)
    }

    fn next_offset(&self) -> u64 {
        self.next
    }

    fn gap_before(&self) -> Option<Gap> {
        self.gap_before
    }

    async fn ready(&mut self) -> Result<(), LogError> {
        let mut missed = 0;
        while !self.has_some() {
            if let Some(fetch) = &mut self.fetch {
                let batches = fetch.await;
                self.fetch = None;
                self.hand = batches?.into();
                let oldest = self.hand.front().map_or(u64::MAX, |batch| batch.base);
                // Between the look and the read the sweep may have let the records go: then the start moves, too, and
                // it is looked for again. Where it does not, the file lacks what it must have.
                if oldest > self.next && self.partition().bounds().start < oldest {
                    self.hand.clear();
                    missed += 1;
                    if missed > MOST_MISSED {
                        let reason = format!("offset {} of {:?} is not in the file", self.next, self.source());
                        return Err(LogError::Engine { action: "read records", reason });
                    }
                } else {
                    self.next = self.next.max(oldest);
                }
                continue;
            }
            let shared = Arc::clone(&self.shared);
            let appended = shared.partitions.at(self.index).appended();
            match self.find(GLANCE) {
                Found::InMemory => {}
                Found::InFile(offset) => self.fetch = Some(self.fetch_from(offset)),
                Found::AtEnd => tokio::select! {
                    () = appended => {}
                    () = shared.closed.cancelled() => return Err(LogError::Closed),
                },
            }
        }
        Ok(())
    }

    fn take(&mut self, max: usize) -> Vec<Record> {
        let mut records = Vec::new();
        while records.len() < max {
            if let Some(cursor) = &mut self.cursor {
                records.extend(cursor.take(max - records.len()));
                if let Some(last) = records.last() {
                    self.next = last.position.offset + 1;
                }
                if cursor.has_some() {
                    break;
                }
                self.cursor = None;
            }
            if self.hand.is_empty() && (self.fetch.is_some() || self.find(max - records.len()) != Found::InMemory) {
                break;
            }
            let (topic, partition) = self.source();
            self.cursor = self.hand.pop_front().map(|batch| BatchCursor::new(topic, partition, &batch, self.next));
        }
        records
    }
}
