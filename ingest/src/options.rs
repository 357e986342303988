//! The limits of the HTTP API that an operator may change.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use serde::Deserialize;

/// Limits of the HTTP API.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Largest body of a request other than bulk, in bytes: 131072, which holds the longest message in every JSON encoding
    /// ([`eshaar_model::limits::MESSAGE_JSON_BYTES`]).
    pub body_limit_bytes: usize,
    /// How deep JSON may be nested: 16.
    pub json_depth: usize,
    /// Whether texts with markup are accepted: `allow`.
    pub markup: Markup,
    /// How long a client may take to send a body, in seconds: 10.
    pub body_timeout_s: u64,
    /// How long the log may take to acknowledge, in seconds: 8. Then the sender is told to repeat the request.
    pub append_timeout_s: u64,
    /// How long a request other than bulk may take in all, in seconds: 20. Longer than the two above together.
    pub request_timeout_s: u64,
    /// Most cancellations that may stand at a time, since every process keeps them in memory, about 20 bytes each: 4000000.
    /// Past it a business that has an equal share or more is answered 503; one that has less may go on.
    pub cancellations: NonZeroUsize,
    /// Most cancellations of one business at a time: 1000000. One more is answered 429.
    pub cancellations_per_business: NonZeroUsize,
    /// Most dead letters that this process redrives in a second: 50.
    pub redrives_per_s: NonZeroU32,
    /// How much may wait to be delivered.
    pub queue: QueueOptions,
    /// Limits of uploads.
    pub bulk: BulkOptions,
}

/// What becomes of a text (content, reference, collapse key) that holds [markup](eshaar_model::text::has_markup).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Markup {
    /// It is accepted, stored and delivered as it was written.
    #[default]
    Allow,
    /// It is refused as a whole, with 400 `content_markup`.
    Refuse,
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

/// Limits of uploads: `POST /v1/messages/bulk` and `PUT /v1/audiences/{name}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BulkOptions {
    /// Longest line, in bytes: 131072, as for a body.
    pub line_limit_bytes: usize,
    /// Most lines of a request: 1000000.
    pub max_lines: u64,
    /// Largest upload once decompressed, in bytes: 1 GiB.
    pub max_bytes: u64,
    /// How many times its compressed size an upload may have, past its first MiB: 200.
    pub max_ratio: u64,
    /// Most lines that are appended to the log at once: 500.
    pub batch_lines: NonZeroUsize,
    /// Memory for answers that clients have not read yet, of all uploads of this process, in bytes: 134217728. A business may
    /// have a quarter of it.
    pub unread_answers_bytes: usize,
    /// How long a client may neither send nor read, in seconds: 30.
    pub stall_timeout_s: u64,
    /// Least that a client must send on average over `min_rate_window_s`, in bytes a second once decompressed: 256. Only time
    /// that is spent waiting for the client counts.
    pub min_rate_bytes_per_s: u64,
    /// Over how much time spent waiting for the client its rate is measured, in seconds: 60.
    pub min_rate_window_s: u64,
    /// How long an upload may take in all, in seconds: 7200.
    pub max_duration_s: u64,
    /// How long an upload waits where its sender's rate or the queue has no room for its next line, in seconds: 30. Then the
    /// lines that were read and not accepted are refused.
    pub patience_s: u64,
    /// Most uploads at a time, in this process, of lines and of audiences: 32. Further ones are answered 503. A quarter is kept
    /// for businesses that have none under way.
    pub concurrent: NonZeroUsize,
    /// Most uploads of one business at a time: 8. Further ones are answered 503.
    pub concurrent_per_business: NonZeroUsize,
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

    pub(crate) const fn max_duration(&self) -> Duration {
        Duration::from_secs(self.max_duration_s)
    }

    pub(crate) const fn min_rate_window(&self) -> Duration {
        Duration::from_secs(self.min_rate_window_s)
    }

    pub(crate) const fn stall_timeout(&self) -> Duration {
        Duration::from_secs(self.stall_timeout_s)
    }
}
