//! Reads one partition forward from the queue that librdkafka fetches it into. The queue is bounded, so a partition that
//! nobody takes from is not fetched any further, and that one alone (kafka-rules 8, 10).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use eshaar_model::Timestamp;
use parking_lot::Mutex;
use rdkafka::message::{BorrowedMessage, Headers as _, Message};
use tokio::sync::Notify;

use super::hooks::Queue;
use crate::headers::write_header;
use crate::{Gap, Headers, LogError, LogPosition, Reader, Record, Topic};

/// Bytes of headers that a record of ours has, about.
const USUAL_HEADERS_BYTES: usize = 384;

/// Where the records of a partition come from, until it is given up. The queue keeps its consumer alive, so whoever owns
/// the consumer takes the queue back before it lets go of it.
pub(super) struct Feed {
    queue: Mutex<Result<Queue, End>>,
    more: Arc<Notify>,
}

/// Why a feed has ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// The partition belongs to another member by now.
    GivenUp,
    /// The log is being closed.
    Closed,
}

/// What the queue has at hand.
enum Next {
    Record(Record),
    /// The record is before the place that was read already.
    CutOff(u64),
    Nothing,
    Ended(End),
}

impl Feed {
    /// A feed from a partition's queue; begins when the partition is assigned.
    pub fn new(mut queue: Queue) -> Arc<Self> {
        let more = Arc::new(Notify::new());
        queue.set_nonempty_callback({
            let more = Arc::clone(&more);
            // One reader a feed: a wake-up that comes before it waits is kept for it.
            move || more.notify_one()
        });
        Arc::new(Self { queue: Mutex::new(Ok(queue)), more })
    }

    /// Takes the queue from the reader.
    pub fn end(&self, end: End) {
        let queue = std::mem::replace(&mut *self.queue.lock(), Err(end));
        self.more.notify_one();
        drop(queue);
    }
}

/// A reader of one partition.
pub(super) struct PartitionReader {
    source: (Topic, u32),
    next: u64,
    gap_before: Option<Gap>,
    /// Looked at by `ready`, not yet taken.
    held: Option<Record>,
    feed: Arc<Feed>,
    /// The log went on below what was read already.
    cut_off: Option<u64>,
    /// Dropped with the reader: gives back what was lent for it.
    _lease: Option<Box<dyn Send>>,
}

impl PartitionReader {
    pub fn new(source: (Topic, u32), next: u64, feed: Arc<Feed>, lease: Option<Box<dyn Send>>) -> Self {
        Self { source, next, gap_before: None, held: None, feed, cut_off: None, _lease: lease }
    }

    /// Of a group, which has committed that offset.
    pub fn of_group(source: (Topic, u32), next: u64, committed: u64, feed: Arc<Feed>) -> Self {
        let gap = Gap { topic: source.0, partition: source.1, from: committed, to: next };
        Self { gap_before: (committed < next).then_some(gap), ..Self::new(source, next, feed, None) }
    }

    /// Polls once. Errors of the fetch are logged by the hooks, and librdkafka tries again by itself.
    fn poll(&self, queue: &Queue, next: u64) -> Next {
        loop {
            match queue.poll(Duration::ZERO) {
                None => return Next::Nothing,
                Some(Err(_)) => {}
                Some(Ok(message)) if (message.offset() as u64) < next => return Next::CutOff(message.offset() as u64),
                Some(Ok(message)) => return Next::Record(record_of(self.source, &message)),
            }
        }
    }

    fn look(&self) -> Next {
        match &*self.feed.queue.lock() {
            Ok(queue) => self.poll(queue, self.next),
            Err(end) => Next::Ended(*end),
        }
    }

    fn error(&self, end: End) -> LogError {
        let (topic, partition) = self.source;
        match end {
            End::GivenUp => LogError::NotOwned { topic, partition },
            End::Closed => LogError::Closed,
        }
    }
}

#[async_trait]
impl Reader for PartitionReader {
    fn source(&self) -> (Topic, u32) {
        self.source
    }

    fn next_offset(&self) -> u64 {
        self.next
    }

    fn gap_before(&self) -> Option<Gap> {
        self.gap_before
    }

    async fn ready(&mut self) -> Result<(), LogError> {
        while self.held.is_none() {
            if let Some(offset) = self.cut_off {
                let ((topic, partition), next) = (self.source, self.next);
                let reason =
                    format!("{topic} goes on at {offset} in partition {partition}, which was read up to {next}");
                return Err(LogError::Engine { action: "read records", reason });
            }
            match self.look() {
                Next::Record(record) => self.held = Some(record),
                Next::CutOff(offset) => self.cut_off = Some(offset),
                Next::Nothing => self.feed.more.notified().await,
                Next::Ended(end) => return Err(self.error(end)),
            }
        }
        Ok(())
    }

    fn take(&mut self, max: usize) -> Vec<Record> {
        let mut records = Vec::new();
        if max == 0 {
            return records;
        }
        records.extend(self.held.take());
        let mut next = records.last().map_or(self.next, |record| record.position.offset + 1);
        if let Ok(queue) = &*self.feed.queue.lock() {
            while records.len() < max && self.cut_off.is_none() {
                match self.poll(queue, next) {
                    Next::Record(record) => {
                        next = record.position.offset + 1;
                        records.push(record);
                    }
                    Next::CutOff(offset) => self.cut_off = Some(offset),
                    Next::Nothing | Next::Ended(_) => break,
                }
            }
        }
        self.next = next;
        records
    }
}

/// Copies a record out of librdkafka: one buffer for key, value and headers.
fn record_of((topic, partition): (Topic, u32), message: &BorrowedMessage<'_>) -> Record {
    let (key, value) = (message.key().unwrap_or_default(), message.payload().unwrap_or_default());
    let headers = message.headers();
    let room = headers.map_or(0, |_| USUAL_HEADERS_BYTES);
    let mut buffer = BytesMut::with_capacity(key.len() + value.len() + room);
    buffer.extend_from_slice(key);
    buffer.extend_from_slice(value);
    if let Some(headers) = headers {
        // rdkafka panics on a header name that is not UTF-8. We write none; whoever does loses that header and those
        // behind it, and does not stop the partition.
        let copied = std::panic::catch_unwind(AssertUnwindSafe(|| {
            for header in headers.iter() {
                write_header(&mut buffer, header.key, header.value.unwrap_or_default());
            }
        }));
        if copied.is_err() {
            tracing::warn!(%topic, partition, offset = message.offset(), "a header name is not UTF-8");
        }
    }
    let whole: Bytes = buffer.freeze();
    let headers_begin = key.len() + value.len();
    Record {
        position: LogPosition { topic, partition, offset: message.offset() as u64 },
        timestamp: Timestamp::from_millis(message.timestamp().to_millis().unwrap_or_default()),
        key: whole.slice(..key.len()),
        value: whole.slice(key.len()..headers_begin),
        headers: Headers::from_bytes(whole.slice(headers_begin..)),
    }
}
