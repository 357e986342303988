//! Timers: records that wait for their time, by partition of `messages.scheduled`, in the order they are due.
//!
//! Nothing is looked for among what is done with: each partition has a mark, everything up to it is done with, and reads
//! begin behind it. So what was moved is never read again, and need not be deleted row by row. Whoever owns the partition
//! takes it over first; from then on the mark is that owner's alone to move, and one that was stopped for a while and
//! wakes up is told so.

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{MessageId, Timestamp};
use uuid::Uuid;

use crate::{Holder, StoreError};

/// How long a timer is kept past its time, in milliseconds: 7 days. Nobody may be away for longer.
pub const KEPT_MS: i64 = 7 * 24 * 3600 * 1000;

/// The timers of messages that expire are those of partitions from this number on: of partition 3 of the log those of
/// `EXPIRY + 3`. All below are of scheduled messages.
pub const EXPIRY: u32 = 1 << 20;

/// A place in the order of a partition's timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerPlace {
    /// When it is due.
    pub due: Timestamp,
    pub(crate) id: Uuid,
}

impl TimerPlace {
    /// Before every timer that is due then or later, and behind every other.
    pub const fn before(due: Timestamp) -> Self {
        Self { due, id: FIRST_ID }
    }

    /// Behind every timer that is due then or earlier.
    pub const fn after(due: Timestamp) -> Self {
        Self { due, id: LAST_ID }
    }

    /// The place of a message's timer.
    pub fn of(due: Timestamp, id: MessageId) -> Self {
        Self { due, id: id.into() }
    }
}

/// Below and above every id: all are UUIDs of version 7.
const FIRST_ID: Uuid = Uuid::from_u128(0x7000_8000_0000_0000_0000);
const LAST_ID: Uuid = Uuid::from_u128(0xffff_ffff_ffff_7fff_bfff_ffff_ffff_ffff);

/// A record that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    /// When it is due, and the message's id.
    pub place: TimerPlace,
    /// Its key.
    pub key: Bytes,
    /// Its headers, as the log stores them.
    pub headers: Bytes,
    /// Its value.
    pub value: Bytes,
}

/// Timers.
#[async_trait]
pub trait TimerStore: Send + Sync + 'static {
    /// The partitions that were ever taken over, in order: no other has timers.
    async fn partitions(&self) -> Result<Vec<u32>, StoreError>;

    /// Takes a partition over, whoever had it; returns its mark.
    async fn take(&self, partition: u32, holder: Holder) -> Result<TimerPlace, StoreError>;

    /// Writes timers of a partition. The same again changes nothing.
    async fn put(&self, partition: u32, timers: Vec<Timer>) -> Result<(), StoreError>;

    /// The first timers behind `after` that are due until `until`, in order, at most `limit`. Whoever asks for what is not
    /// behind the mark may be given nothing.
    async fn next(
        &self,
        partition: u32,
        after: TimerPlace,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Timer>, StoreError>;

    /// Moves the mark, on or back: all up to it is done with. `false`: another has taken the partition over, and nothing was
    /// moved.
    async fn mark(&self, partition: u32, holder: Holder, mark: TimerPlace) -> Result<bool, StoreError>;

    /// How many timers stand behind `after`. It counts them: not to be asked often.
    async fn count(&self, partition: u32, after: TimerPlace) -> Result<u64, StoreError>;
}
