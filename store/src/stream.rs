//! Streams: everything sent to a phone, by log position, for as long as it is kept; and how far it was acknowledged.

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{Cursor, Epoch, Lane, MessageId, Phone, StreamPosition, Timestamp};

use crate::StoreError;

/// A message in a phone's stream. Written again after a crash it is the same row with the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRow {
    /// Whose stream.
    pub phone: Phone,
    /// Where in it.
    pub position: StreamPosition,
    /// The message.
    pub id: MessageId,
    /// When it was accepted: the order between lanes when a stream is read.
    pub at: Timestamp,
    /// Not delivered after this.
    pub expires_at: Option<Timestamp>,
    /// The record's value, untouched.
    pub value: Bytes,
}

/// A page of a stream, oldest first: by epoch, then merged over the lanes by time, in offset order within each lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamPage {
    /// At most as many rows as were asked for.
    pub rows: Vec<StreamRow>,
    /// Whether there is more behind the last row.
    pub more: bool,
}

/// A question: does the message stand in the phone's stream, in the position's lane, before the position?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// Whose stream.
    pub phone: Phone,
    /// The place of the record that may be a repeat.
    pub position: StreamPosition,
    /// The message.
    pub id: MessageId,
    /// The lowest offset at which the message can stand. Where it is 0, earlier epochs are searched too.
    pub from: u64,
}

/// Streams of phones.
#[async_trait]
pub trait StreamStore: Send + Sync + 'static {
    /// Writes rows (of any phones) that were read from `partition` of their lanes. The same row again changes nothing.
    /// When it returns, the head and the time marks of each lane's partition are written too.
    async fn append(&self, partition: u32, rows: Vec<StreamRow>) -> Result<(), StoreError>;

    /// The rows of `phone` that `after` does not cover, at most `limit`. Rows of older epochs than the cursor's count as
    /// covered; `Cursor::start(Epoch(0))` is before everything.
    async fn read(&self, phone: Phone, after: Cursor, limit: usize) -> Result<StreamPage, StoreError>;

    /// For each: the highest offset of the phone's stream in the position's epoch and lane that is below its offset.
    async fn before(&self, of: &[(Phone, StreamPosition)]) -> Result<Vec<Option<u64>>, StoreError>;

    /// For each: true if the message stands in the phone's stream in the position's epoch and lane at an offset from `from`
    /// on and below the position's, or in the lane in an earlier epoch. How a repeat that is older than the window is found.
    /// The cost grows with the rows of the phone's lane between the two offsets.
    async fn stands_before(&self, of: &[Earlier]) -> Result<Vec<bool>, StoreError>;

    /// The highest offset ever appended from a lane's partition; `None` before the first.
    async fn head(&self, epoch: Epoch, lane: Lane, partition: u32) -> Result<Option<u64>, StoreError>;

    /// The newest epoch that anything was appended in; `None` before the first.
    async fn newest_epoch(&self) -> Result<Option<Epoch>, StoreError>;

    /// The lowest offset of a lane's partition that is certain to be kept at `now`; 0 while nothing has been let go of.
    /// A client whose cursor is below it may have missed something.
    async fn floor(&self, epoch: Epoch, lane: Lane, partition: u32, now: Timestamp) -> Result<u64, StoreError>;

    /// How far the phone acknowledged, on whichever device was furthest.
    async fn acked(&self, phone: Phone) -> Result<Option<Cursor>, StoreError>;

    /// Records how far phones acknowledged. Never moves back.
    async fn ack(&self, acks: Vec<(Phone, Cursor)>) -> Result<(), StoreError>;

    /// Lets go of what is older than it is to be kept; returns how many rows went, 0 where the engine lets go of them by
    /// itself. At most a bounded slice a call.
    async fn trim(&self, now: Timestamp) -> Result<usize, StoreError>;
}
