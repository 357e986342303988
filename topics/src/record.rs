//! What is written to the log and read from it.

use bytes::Bytes;
use eshaar_model::Timestamp;

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
    /// When it was made. A record that is forwarded keeps the time it was accepted at.
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

/// A record as a stage gets it from the runner.
pub type Received = Record;
