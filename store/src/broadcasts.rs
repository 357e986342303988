//! Broadcasts: what was accepted, which of them are being sent, and what became of their messages.
//!
//! How far one is sent is a task (`tasks`). What became of its messages is tallied by whoever owns a partition of
//! `message.status`, up to an offset of it: a function of the log, so that of two tallies the one of the higher offset is
//! right, whoever wrote it, and nothing is counted twice.

use std::collections::{HashMap, HashSet};
use std::iter::Sum;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{BroadcastId, BusinessId, Epoch, RecipientsId, Timestamp};

use crate::StoreError;

/// How long a broadcast is kept, in milliseconds: 90 days.
pub const KEPT_MS: i64 = 90 * 24 * 3600 * 1000;

/// Recipients of a segment: one tally of a partition.
pub const SEGMENT: u32 = 16_384;

/// The kind of the tasks that say how far broadcasts are sent; the id is the broadcast's.
pub const TASKS: &str = "broadcast";

/// Why a broadcast is sent no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ended {
    /// All of its messages were accepted.
    Sent = 1,
    /// It was taken back.
    Cancelled = 2,
    /// Its time passed.
    Expired = 3,
    /// The log refused its messages, or its list of recipients is gone.
    Failed = 4,
}

/// How far a broadcast is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The messages to so many of its recipients, the first, were accepted.
    pub done: u64,
    /// Those up to this number are being sent, with ids of this time.
    pub chunk: Option<(u64, Timestamp)>,
    /// Why it is sent no further.
    pub ended: Option<Ended>,
}

impl Progress {
    /// As a task keeps it.
    pub fn encode(&self) -> Bytes {
        let (end, at) = self.chunk.unwrap_or_default();
        let mut bytes = Vec::with_capacity(26);
        bytes.push(u8::from(self.chunk.is_some()));
        bytes.push(self.ended.map_or(0, |ended| ended as u8));
        bytes.extend(self.done.to_be_bytes());
        bytes.extend(end.to_be_bytes());
        bytes.extend(at.as_millis().to_be_bytes());
        bytes.into()
    }

    /// What [`Self::encode`] encoded; `None` where it is something else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[has_chunk, ended], numbers) = bytes.split_first_chunk::<2>()?;
        let ([done, end, at], []) = numbers.as_chunks::<8>() else { return None };
        let ended = match ended {
            0 => None,
            1 => Some(Ended::Sent),
            2 => Some(Ended::Cancelled),
            3 => Some(Ended::Expired),
            4 => Some(Ended::Failed),
            _ => return None,
        };
        let chunk = (u64::from_be_bytes(*end), Timestamp::from_millis(i64::from_be_bytes(*at)));
        Some(Self { done: u64::from_be_bytes(*done), chunk: (has_chunk == 1).then_some(chunk), ended })
    }
}

/// A broadcast as it was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BroadcastRow {
    /// Which.
    pub id: BroadcastId,
    /// Whose.
    pub business: BusinessId,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// Its record.
    pub value: Bytes,
}

/// A broadcast that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenBroadcast {
    /// Whose.
    pub business: BusinessId,
    /// Which.
    pub id: BroadcastId,
}

impl OpenBroadcast {
    /// Of each business the oldest, at most `each`; in the order of their ids.
    pub(crate) fn oldest(mut all: Vec<Self>, each: usize) -> Vec<Self> {
        all.sort_unstable_by_key(|open| open.id);
        let mut counts = HashMap::new();
        all.retain(|open| {
            let count = counts.entry(open.business.clone()).or_insert(0);
            *count += 1;
            *count <= each
        });
        all
    }
}

/// What became of messages; each counts once, for the furthest that it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// That reached their recipient, those that were read included.
    pub delivered: u64,
    /// That were read.
    pub read: u64,
    /// That failed.
    pub failed: u64,
    /// Whose time passed.
    pub expired: u64,
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            delivered: sum.delivered + one.delivered,
            read: sum.read + one.read,
            failed: sum.failed + one.failed,
            expired: sum.expired + one.expired,
        })
    }
}

/// What a partition of `message.status` tells, up to an offset, of [`SEGMENT`] recipients of a broadcast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Of which broadcast.
    pub broadcast: BroadcastId,
    /// The partition.
    pub partition: u32,
    /// Of the recipients from `segment` times [`SEGMENT`] on.
    pub segment: u32,
    /// The life of the log.
    pub epoch: Epoch,
    /// Everything before it was looked at.
    pub offset: u64,
    /// How many.
    pub counts: Counts,
    /// Which of them, as its writer encodes it.
    pub marks: Bytes,
}

/// Broadcasts.
#[async_trait]
pub trait BroadcastStore: Send + Sync + 'static {
    /// Writes one that is being accepted, durably. Until it is opened the row that was written last stands.
    async fn put(&self, row: BroadcastRow) -> Result<(), StoreError>;

    /// Those of these ids that are there, in no order.
    async fn get(&self, ids: &[BroadcastId]) -> Result<Vec<BroadcastRow>, StoreError>;

    /// One that was accepted is to be sent to that list: it is among the open ones and in its business's list from then on,
    /// durably.
    async fn open(&self, row: BroadcastRow, list: RecipientsId) -> Result<(), StoreError>;

    /// Those that are to be sent: of each business the oldest, at most `each` (1 to 200). The oldest of all comes first.
    async fn opened(&self, each: usize) -> Result<Vec<OpenBroadcast>, StoreError>;

    /// One was sent.
    async fn close(&self, open: &OpenBroadcast) -> Result<(), StoreError>;

    /// The lists of recipients of all that are to be sent.
    async fn lists_in_use(&self) -> Result<HashSet<RecipientsId>, StoreError>;

    /// Those of a business that were ever open, below `before`, the newest first; at most 1,000.
    async fn list(
        &self,
        business: &BusinessId,
        before: Option<BroadcastId>,
        limit: usize,
    ) -> Result<Vec<BroadcastId>, StoreError>;

    /// Writes tallies; where one of a higher offset stands, that stays.
    async fn put_tallies(&self, tallies: Vec<Tally>) -> Result<(), StoreError>;

    /// The marks of a tally.
    async fn marks(&self, id: BroadcastId, partition: u32, segment: u32) -> Result<Option<Bytes>, StoreError>;

    /// What became of a broadcast's messages.
    async fn counts(&self, id: BroadcastId) -> Result<Counts, StoreError>;

    /// Lets go of some that are older than 90 days; returns how many went, 0 where the engine lets go of them by itself.
    async fn trim(&self, now: Timestamp) -> Result<usize, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_as_it_was_written() {
        let chunk = Some((u64::MAX, Timestamp::from_millis(1_760_000_000_123)));
        for ended in [None, Some(Ended::Sent), Some(Ended::Cancelled), Some(Ended::Expired), Some(Ended::Failed)] {
            for chunk in [None, chunk] {
                let progress = Progress { done: 7, chunk, ended };
                assert_eq!(Progress::decode(&progress.encode()), Some(progress));
            }
        }
        let bytes = Progress::default().encode();
        assert!((0..bytes.len()).all(|cut| Progress::decode(&bytes[..cut]).is_none()));
    }
}
