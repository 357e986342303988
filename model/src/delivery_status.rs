//! The life of a message as its sender sees it: sent, then one of several ends, only ever forward (R9.1).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use crate::Timestamp;

/// A step in the life of a message, lowest first: `sent` < `failed`, `expired`, `cancelled` < `delivered` < `read`.
///
/// The status shown is the highest step reached: a message that was given up on and arrived after all was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Status {
    /// Kafka (or the embedded log) has acknowledged it.
    Sent = 0,
    /// Given up on; the reason is recorded.
    Failed = 1,
    /// Its time to live passed first.
    Expired = 2,
    /// Its sender took it back.
    Cancelled = 3,
    /// The recipient's app acknowledged it.
    Delivered = 4,
    /// The recipient opened it.
    Read = 5,
}

impl Status {
    /// All steps, lowest first.
    pub const ALL: [Self; 6] = [Self::Sent, Self::Failed, Self::Expired, Self::Cancelled, Self::Delivered, Self::Read];

    /// Its name in the API, in Avro and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Delivered => "delivered",
            Self::Read => "read",
        }
    }

    const fn rank(self) -> u8 {
        match self {
            Self::Sent => 0,
            Self::Failed | Self::Expired | Self::Cancelled => 1,
            Self::Delivered => 2,
            Self::Read => 3,
        }
    }

    /// Whether a message at this status may move to `next`: only to a higher rank.
    pub const fn can_become(self, next: Self) -> bool {
        next.rank() > self.rank()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no status.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "expected a status (sent, failed, expired, cancelled, delivered or read), got {length} characters that are not one"
)]
pub struct StatusError {
    /// Length of the refused text, in characters.
    pub length: usize,
}

impl FromStr for Status {
    type Err = StatusError;

    fn from_str(text: &str) -> Result<Self, StatusError> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| StatusError { length: text.chars().count() })
    }
}

/// The status that a message is shown with: the highest step that it reached, or `scheduled` before it reached any.
///
/// It is no step: nothing says that a message is scheduled but that it was not sent yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shown {
    /// It waits for its time.
    Scheduled,
    /// It reached this step.
    At(Status),
}

impl Shown {
    /// Its name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::At(status) => status.as_str(),
        }
    }
}

impl From<Status> for Shown {
    fn from(status: Status) -> Self {
        Self::At(status)
    }
}

impl From<Option<Status>> for Shown {
    fn from(reached: Option<Status>) -> Self {
        reached.map_or(Self::Scheduled, Self::At)
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl FromStr for Shown {
    type Err = StatusError;

    fn from_str(text: &str) -> Result<Self, StatusError> {
        if text == Self::Scheduled.as_str() { Ok(Self::Scheduled) } else { text.parse().map(Self::At) }
    }
}

/// One cell a step, the first value wins: a late or repeated event changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusSteps([Option<Timestamp>; 6]);

impl StatusSteps {
    /// Records that `step` was reached at `at`. Returns whether the status shown has changed.
    pub fn reach(&mut self, step: Status, at: Timestamp) -> bool {
        let before = self.current();
        self.0[step as usize].get_or_insert(at);
        self.current() != before
    }

    /// When `step` was reached.
    pub const fn at(&self, step: Status) -> Option<Timestamp> {
        self.0[step as usize]
    }

    /// The status shown: of the highest rank reached, the step reached first.
    pub fn current(&self) -> Option<Status> {
        self.reached()
            .max_by(|(a, a_at), (b, b_at)| a.rank().cmp(&b.rank()).then(b_at.cmp(a_at)).then(b.cmp(a)))
            .map(|(step, _)| step)
    }

    /// The steps reached, lowest first.
    pub fn reached(&self) -> impl Iterator<Item = (Status, Timestamp)> + '_ {
        Status::ALL.into_iter().filter_map(|step| self.at(step).map(|at| (step, at)))
    }
}
