//! The port to the log. The embedded engine and Kafka implement it; nothing else knows which one it has.
//!
//! Pull, not push: a partition is read only as fast as somebody takes from it, so a partition that nobody takes from is
//! paused, and that one alone (kafka-rules 8, 10).

use std::time::Duration;

use async_trait::async_trait;
use eshaar_model::{Epoch, Timestamp};
use tokio::sync::oneshot;

use crate::{LogPosition, NewRecord, Record, Topic};

/// Longest key of a record, in bytes.
pub const MAX_KEY_BYTES: usize = 1 << 10;
/// Longest value of a record, in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// Most bytes of headers of a record.
pub const MAX_HEADERS_BYTES: usize = 64 << 10;

/// Why an append did not end well.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Refused for good; no record of the batch was written.
    #[error("the log refused the batch: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// It is not known which of the records were written. Append again until it is known: the readers drop repeats.
    #[error("the log did not answer: {reason}")]
    Unknown {
        /// Why.
        reason: String,
    },
    /// The log is being closed.
    #[error("the log is closed")]
    Closed,
}

/// Why reading, committing or looking up failed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The engine failed; try again.
    #[error("the log failed to {action}: {reason}")]
    Engine {
        /// What was tried.
        action: &'static str,
        /// What the engine said.
        reason: String,
    },
    /// An option of the engine's cannot work.
    #[error("{0}")]
    Option(String),
    /// A commit for a partition that this member no longer owns (kafka-rules 3).
    #[error("partition {partition} of {topic} is owned by another member now")]
    NotOwned {
        /// Topic.
        topic: Topic,
        /// Partition.
        partition: u32,
    },
    /// The log is being closed.
    #[error("the log is closed")]
    Closed,
}

/// The offsets a partition holds: `start` is the oldest kept, `end` the one that the next record will get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Oldest offset kept.
    pub start: u64,
    /// Offset of the next record.
    pub end: u64,
}

/// Records that a log deleted before a group had read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Topic.
    pub topic: Topic,
    /// Partition.
    pub partition: u32,
    /// The first offset that was deleted unread.
    pub from: u64,
    /// The first offset that is left.
    pub to: u64,
}

impl Gap {
    /// How many records were deleted unread.
    pub const fn records(&self) -> u64 {
        self.to.saturating_sub(self.from)
    }
}

/// Where a group begins on a partition it has never committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At the oldest record kept.
    Oldest,
    /// At the end: only what comes from now on.
    End,
}

/// A log of topics.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Appends a batch and returns when every record of it is acknowledged, each as its topic's durability says.
    /// Positions come back in the order of the records. Records of one partition are written in the order given.
    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<LogPosition>, AppendError>;

    /// Joins `group` as a new member. `topics` are co-partitioned: whoever owns partition 3 of one owns 3 of all.
    async fn join(&self, group: &str, topics: &[Topic], start: StartAt) -> Result<Box<dyn Consumer>, LogError>;

    /// Joins as a member on whom nobody waits: its records may be held back for `patience`, so that more of them come at
    /// once. For engines whose price is by the read; the others give them as they come.
    async fn join_patiently(
        &self,
        group: &str,
        topics: &[Topic],
        start: StartAt,
        _patience: Duration,
    ) -> Result<Box<dyn Consumer>, LogError> {
        self.join(group, topics, start).await
    }

    /// Reads one partition from `offset` on, without a group (gateways, read-back, `tail`). An offset older than what is
    /// kept begins at the oldest.
    async fn read(&self, topic: Topic, partition: u32, offset: u64) -> Result<Box<dyn Reader>, LogError>;

    /// The offsets a partition holds.
    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError>;

    /// The end of each partition of a topic, in the order of the partitions. Whatever was acknowledged before the call stands
    /// before them.
    async fn ends(&self, topic: Topic) -> Result<Vec<u64>, LogError> {
        let mut ends = Vec::new();
        for partition in 0..self.partitions(topic) {
            ends.push(self.bounds(topic, partition).await?.end);
        }
        Ok(ends)
    }

    /// The lowest offset of a record made at `at` or later; the end where there is none.
    async fn offset_at(&self, topic: Topic, partition: u32, at: Timestamp) -> Result<u64, LogError>;

    /// What a group has committed: the offset it reads next, `None` where it never has.
    async fn committed(&self, group: &str, topic: Topic, partition: u32) -> Result<Option<u64>, LogError>;

    /// What a group has committed of each partition of a topic, in the order of the partitions ([`Log::committed`]).
    async fn committed_all(&self, group: &str, topic: Topic) -> Result<Vec<Option<u64>>, LogError> {
        let mut committed = Vec::new();
        for partition in 0..self.partitions(topic) {
            committed.push(self.committed(group, topic, partition).await?);
        }
        Ok(committed)
    }

    /// The life of the log that offsets belong to.
    fn epoch(&self) -> Epoch;

    /// How many partitions `topic` has.
    fn partitions(&self, topic: Topic) -> u32;

    /// Whether the engine answers, for health.
    async fn ping(&self) -> Result<(), LogError>;

    /// Closes it in order: takes nothing more in, and sees through what was appended. A log without anything to see through
    /// need not do anything.
    async fn close(&self) {}
}

/// One partition, read forward. Both calls are cancel-safe.
#[async_trait]
pub trait Reader: Send {
    /// The topic and partition that are read.
    fn source(&self) -> (Topic, u32);

    /// The offset that will be read next.
    fn next_offset(&self) -> u64;

    /// The records between the offset that the group has committed (0 where it never has, and begins at the oldest) and the
    /// one that this reader began at, if the log had deleted some: nobody of the group has read them. `None` without a group.
    fn gap_before(&self) -> Option<Gap> {
        None
    }

    /// Waits until [`Reader::take`] has at least one record to give.
    async fn ready(&mut self) -> Result<(), LogError>;

    /// At most `max` records that are at hand, in order, without waiting; may be none.
    fn take(&mut self, max: usize) -> Vec<Record>;
}

/// One partition as it was assigned to a member of a group: begins where the group committed.
pub type PartitionStream = Box<dyn Reader>;

/// Partitions that now belong to this member.
pub struct Assignment {
    /// The assignment this belongs to; grows with each that the member gets. What was begun under an earlier one is not committed under this.
    pub generation: u64,
    /// All topics of the subscription, for each partition number assigned.
    pub partitions: Vec<PartitionStream>,
}

/// Says that a revoked partition is given up: everything taken from it is settled and committed, or dropped. Dropping it
/// says the same.
#[derive(Debug)]
pub struct Release(pub oneshot::Sender<()>);

impl Release {
    /// Gives the partitions up.
    pub fn done(self) {
        // Nobody waits any more when the log is closed.
        let _ = self.0.send(());
    }
}

/// What happens to a member of a group.
pub enum ConsumerEvent {
    /// It has got partitions, besides those it has.
    Assigned(Assignment),
    /// It must give partition numbers up: stop taking, drain, commit, then release (kafka-rules 9). They go to another
    /// member when it has, or after 20 s.
    Revoked {
        /// Partition numbers, of all topics of the subscription.
        partitions: Vec<u32>,
        /// To be done when they are drained.
        release: Release,
    },
}

/// A member of a group. Dropping it leaves the group.
#[async_trait]
pub trait Consumer: Send {
    /// The next thing that happens to the membership. Cancel-safe.
    async fn event(&mut self) -> Result<ConsumerEvent, LogError>;

    /// Commits for this member; to be shared with whatever settles records.
    fn committer(&self) -> std::sync::Arc<dyn Committer>;

    /// Leaves the group; what is not released is lost to it at once.
    async fn leave(self: Box<Self>);
}

/// Commits offsets for a member of a group.
#[async_trait]
pub trait Committer: Send + Sync {
    /// Commits the offsets that are to be read next, for partitions assigned in `generation`; refused when they belong to
    /// another member by now. Durable as the log's derived topics are: a power cut may take it back, never ahead of
    /// what it stands for.
    async fn commit(&self, generation: u64, offsets: &[(Topic, u32, u64)]) -> Result<(), LogError>;
}

/// The time that a record is written with by whoever forwards it: its own, unless that is so old that retention would soon
/// delete the record. So each record is kept for at least half of what its topic keeps, from when it is appended.
pub fn kept_time(topic: Topic, timestamp: Timestamp, now: Timestamp) -> Timestamp {
    let kept_ms = i64::try_from(topic.spec().kept_ms).unwrap_or(i64::MAX);
    timestamp.max(now.plus_millis(-(kept_ms / 2)))
}

/// Whether a record may be appended at all, on any engine.
pub(crate) fn check_record(record: &NewRecord) -> Result<(), AppendError> {
    let over = |what: &str, length: usize, limit: usize| {
        refused(format!("a record of {} has {what} of {length} bytes; at most {limit} are allowed", record.topic))
    };
    if record.key.is_empty() || std::str::from_utf8(&record.key).is_err() {
        return Err(refused(format!("a record of {} has an empty key, or one that is not UTF-8", record.topic)));
    }
    if record.key.len() > MAX_KEY_BYTES {
        return Err(over("a key", record.key.len(), MAX_KEY_BYTES));
    }
    if record.value.len() > MAX_VALUE_BYTES {
        return Err(over("a value", record.value.len(), MAX_VALUE_BYTES));
    }
    let headers = record.headers.as_bytes().len();
    if headers > MAX_HEADERS_BYTES {
        return Err(over("headers", headers, MAX_HEADERS_BYTES));
    }
    Ok(())
}

pub(crate) const fn refused(reason: String) -> AppendError {
    AppendError::Refused { reason }
}
