//! How often a record is tried again, and how long each time is waited (R4.1).

use std::time::Duration;

/// The delays before each retry, in order; there are no more retries than delays.
pub const DELAYS: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(32),
];

/// How many times a record has failed so far: 0 for one never tried, at most `DELAYS.len()`. It only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(u8);

impl Attempt {
    /// The first attempt: nothing has failed yet.
    pub const FIRST: Self = Self(0);

    /// From a count that was carried in a header; `None` past the last retry.
    pub fn from_count(count: u8) -> Option<Self> {
        (usize::from(count) <= DELAYS.len()).then_some(Self(count))
    }

    /// Retries so far.
    pub const fn count(self) -> u8 {
        self.0
    }

    /// After a failure: the next attempt and the delay before it, or `None` when no retry is left.
    pub fn next(self) -> Option<(Self, Duration)> {
        DELAYS.get(usize::from(self.0)).map(|delay| (Self(self.0 + 1), *delay))
    }
}
