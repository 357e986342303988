//! The limits of the HTTP API that an operator may change.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use serde::Deserialize;

/// Limits of the HTTP API.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Largest body of a request other than bulk, in bytes. 65536 holds the longest message with room to spare.
    pub body_limit_bytes: usize,
    /// How deep JSON may be nested: 16.
    pub json_depth: usize,
    /// How long a client may take to send a body, in seconds: 10.
    pub body_timeout_s: u64,
    /// How long the log may take to acknowledge, in seconds: 8. Then the sender is told to repeat the request.
    pub append_timeout_s: u64,
    /// How long a request other than bulk may take in all, in seconds: 20. Longer than the two above together.
    pub request_timeout_s: u64,
    /// Most cancellations that may stand at a time, since every process keeps them in memory, about 20 bytes each: 4000000.
    /// One more is answered 503.
    pub cancellations: NonZeroUsize,
    /// Most dead letters that this process redrives in a second: 50.
    pub redrives_per_s: NonZeroU32,
    /// How much may wait to be delivered.
    pub queue: QueueOptions,
    /// Limits of `POST /v1/messages/bulk`.
    pub bulk: BulkOptions,
}

/// Most messages that may wait to be delivered, in all processes. Past them new ones are answered 503 until a fifth is gone.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueOptions {
    /// In the lanes high, normal and low: 10000.
    pub interactive: NonZeroU64,
    /// In the bulk lane: 1000000.
    pub bulk: NonZeroU64,
}

/// Limits of `POST /v1/messages/bulk`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BulkOptions {
    /// Longest line, in bytes: 65536.
    pub line_limit_bytes: usize,
    /// Most lines of a request: 1000000.
    pub max_lines: u64,
    /// Largest upload once decompressed, in bytes: 1 GiB.
    pub max_bytes: u64,
    /// How many times its compressed size an upload may have, past its first MiB: 200.
    pub max_ratio: u64,
    /// Most lines that are appended to the log at once: 500.
    pub batch_lines: NonZeroUsize,
    /// Batches of answers that wait for a client that sends before it reads: 64. Then its upload is read no further.
    pub answer_batches: NonZeroUsize,
    /// How long a client may neither send nor read, in seconds: 30.
    pub stall_timeout_s: u64,
    /// How long an upload waits where its sender's rate or the queue has no room for its next line, in seconds: 30. Then the
    /// lines that were read and not accepted are refused.
    pub patience_s: u64,
    /// Most bulk requests at a time, in this process: 32. Further ones are answered 503.
    pub concurrent: NonZeroUsize,
}

impl Options {
    pub(crate) const fn body_timeout(&self) -> Duration {
        Duration::from_secs(self.body_timeout_s)
    }

    pub(crate) const fn append_timeout(&self) -> Duration {
        Duration::from_secs(self.append_timeout_s)
    }

    pub(crate) const fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout_s)
    }
}

impl BulkOptions {
    pub(crate) const fn patience(&self) -> Duration {
        Duration::from_secs(self.patience_s)
    }

    pub(crate) const fn stall_timeout(&self) -> Duration {
        Duration::from_secs(self.stall_timeout_s)
    }
}
