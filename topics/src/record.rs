//! What is written to the log and read from it.

use bytes::Bytes;
use eshaar_model::{Attempt, Timestamp};

use crate::{Headers, Topic};

/// Coordinates of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// Topic.
    pub topic: Topic,
    /// Partition, from 0.
    pub partition: u32,
    /// Offset in the partition, from 0.
    pub offset: u64,
}

/// A record to be appended.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// Where to.
    pub topic: Topic,
    /// The partition, where the sender chooses it (gateway slots); otherwise the key decides.
    pub partition: Option<u32>,
    /// UTF-8, never empty: what keeps records in order.
    pub key: Bytes,
    /// The value, in Confluent wire format.
    pub value: Bytes,
    /// What is needed without decoding the value.
    pub headers: Headers,
    /// When it was made. A record that is forwarded keeps the time it was accepted at, within [`crate::log::kept_time`].
    pub timestamp: Timestamp,
}

/// A record as it was read.
#[derive(Clone, Debug)]
pub struct Record {
    /// Where it stands.
    pub position: LogPosition,
    /// When it was made, by its writer.
    pub timestamp: Timestamp,
    /// Its key.
    pub key: Bytes,
    /// Its value, in Confluent wire format.
    pub value: Bytes,
    /// Its headers.
    pub headers: Headers,
}

/// A record as a stage gets it from the runner: as it came into the stage, whatever retries it has been through since.
#[derive(Clone, Debug)]
pub struct Received {
    /// Where it came into the stage: in one of the stage's inputs, never in a retry topic. Whatever is written of it is
    /// keyed by this, so that each attempt writes the same.
    pub position: LogPosition,
    /// How often it has failed.
    pub attempt: Attempt,
    /// When it was made, by its writer.
    pub timestamp: Timestamp,
    /// Its key.
    pub key: Bytes,
    /// Its value, in Confluent wire format.
    pub value: Bytes,
    /// Its headers, without those of retries.
    pub headers: Headers,
}

/// A record of an input, taken for the first time.
impl From<Record> for Received {
    fn from(Record { position, timestamp, key, value, headers }: Record) -> Self {
        Self { position, attempt: Attempt::FIRST, timestamp, key, value, headers }
    }
}
