//! Messages by id with their steps, and what a business has sent, newest first.

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{
    BusinessId, ConversationId, MessageId, MessageType, Phone, Principal, Shown, Status, StatusSteps, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::StoreError;

/// A message as it was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageRow {
    /// Its id.
    pub id: MessageId,
    /// Its type.
    pub message_type: MessageType,
    /// Set for chat.
    pub conversation: Option<ConversationId>,
    /// Who sent it.
    pub sender: Principal,
    /// Whom to.
    pub recipient: Principal,
    /// The `sent` step: when it was accepted; of a scheduled one when it was sent, and until then when it is to be.
    pub created_at: Timestamp,
    /// Not delivered after this: shown as expired from then on, unless it was delivered.
    pub expires_at: Option<Timestamp>,
    /// Partition and offset in `messages.accepted`; without an offset while it is scheduled.
    pub accepted: (u32, Option<u64>),
    /// The record says that it may repeat an earlier one, of this or of another partition. Decides which copy stands, and is
    /// not kept: false in what is read.
    pub may_repeat: bool,
    /// The record's value, untouched.
    pub value: Bytes,
}

/// The order of the copies that the log has of one message: the lowest stands, on every engine.
///
/// 1. A copy of `messages.accepted` stands before one that is scheduled.
/// 2. One whose record does not say that it may be a repeat stands before one whose record does: it was produced first, and is
///    what the recipient has got.
/// 3. The lowest partition stands, and in it the lowest offset. Offsets of different partitions are never compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CopyRank {
    /// It stands in `messages.accepted`.
    Accepted {
        /// See [`MessageRow::may_repeat`].
        may_repeat: bool,
        /// Partition.
        partition: u32,
        /// Offset.
        offset: u64,
    },
    /// It waits for its time.
    Scheduled,
}

impl MessageRow {
    pub(crate) fn rank(&self) -> CopyRank {
        let (partition, offset) = self.accepted;
        offset.map_or(CopyRank::Scheduled, |offset| CopyRank::Accepted {
            may_repeat: self.may_repeat,
            partition,
            offset,
        })
    }
}

/// A message and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMessage {
    /// As it was accepted.
    pub row: MessageRow,
    /// The steps it reached. `sent` is among them once it is no longer scheduled.
    pub steps: StatusSteps,
    /// Why it failed.
    pub failure_reason: Option<String>,
}

impl StoredMessage {
    /// The status shown at `now`: the highest step reached, or `expired` once its time to live has passed first.
    pub fn status(&self, now: Timestamp) -> Shown {
        status_at(&self.steps, self.row.expires_at, now)
    }
}

/// The status shown at `now` of a message with these steps.
pub(crate) fn status_at(steps: &StatusSteps, expires_at: Option<Timestamp>, now: Timestamp) -> Shown {
    match steps.current() {
        None | Some(Status::Sent) if expires_at.is_some_and(|at| at <= now) => Status::Expired.into(),
        reached => reached.into(),
    }
}

/// A message reached a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The message.
    pub id: MessageId,
    /// The step.
    pub status: Status,
    /// When.
    pub at: Timestamp,
    /// For `failed`: a stable code.
    pub reason: Option<String>,
}

/// What of a business's messages is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentQuery {
    /// Of this type only.
    pub message_type: Option<MessageType>,
    /// At this status only (as shown, expiry by the clock included).
    pub status: Option<Shown>,
    /// To this phone only.
    pub to: Option<Phone>,
    /// Older than this message: the last one of the page before.
    pub before: Option<MessageId>,
    /// At most this many.
    pub limit: usize,
}

/// A page of a business's messages, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentPage {
    /// The messages.
    pub messages: Vec<StoredMessage>,
    /// Where the next page begins (`SentQuery::before`); `None` at the end. A filtered page may be short, even empty, and
    /// still have a next: the rows examined for one page are bounded.
    pub next: Option<MessageId>,
}

/// Messages and their steps.
#[async_trait]
pub trait MessageStore: Send + Sync + 'static {
    /// Writes messages. Of the copies of one id the one of the lowest [`CopyRank`] stands, whole, in whatever order they are
    /// written, and however often: so a replay changes nothing.
    async fn put(&self, rows: Vec<MessageRow>) -> Result<(), StoreError>;

    /// Records steps, in any order: of each step the earliest time stands, and of two failures of the same millisecond the
    /// reason that sorts last. A step may come before its message. When a message was sent is its own to say: a step `sent`
    /// changes nothing.
    async fn reach(&self, steps: Vec<Step>) -> Result<(), StoreError>;

    /// Records that a message was retried for the `count`th time. The highest count stands; it may come before its message.
    async fn set_retries(&self, id: MessageId, count: u32) -> Result<(), StoreError>;

    /// How often a message was retried; 0 where nothing was recorded.
    async fn retries(&self, id: MessageId) -> Result<u32, StoreError>;

    /// A message by its id.
    async fn get(&self, id: MessageId) -> Result<Option<StoredMessage>, StoreError>;

    /// Messages by their ids, each in the place of its id; `None` where there is none.
    async fn get_many(&self, ids: &[MessageId]) -> Result<Vec<Option<StoredMessage>>, StoreError>;

    /// What a business has sent, newest first. `now` decides what has expired.
    async fn sent_by(&self, business: &BusinessId, query: SentQuery, now: Timestamp) -> Result<SentPage, StoreError>;
}
