//! Retries on topics of their own (R4.1, kafka-rules 11 and 12; ADR 0010): a record that failed waits in the topic of its
//! delay, in the partition of its number, and holds up nothing but later records of its key.
//!
//! Reads top-down: `copy` (a record in a retry topic, and back) → `fences` (what is unsettled, by key) → `tiers` (the retry
//! topics of one partition number, each in due order) → `waiting` (both together: what is to be done next) → `rounds` (the
//! worker's part: has it handled, appends what follows, settles).

pub(super) mod copy;
mod fences;
mod rounds;
#[cfg(test)]
mod tests;
mod tiers;
pub(super) mod waiting;

use crate::Topic;

/// What becomes of the records that a stage wants to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retries {
    /// They are tried again in place, and those behind them in their partition wait. For a stage whose records all rest on
    /// one thing: while it refuses one it refuses the next.
    InPlace,
    /// They wait in these topics, by delay, and those of the same topic and key wait behind them, in order.
    Ordered([Topic; 6]),
    /// They wait in these topics, by delay, and nothing waits for them.
    Unordered([Topic; 6]),
}

impl Retries {
    /// The topics, by delay; none for retries in place.
    pub fn topics(self) -> Vec<Topic> {
        match self {
            Self::InPlace => Vec::new(),
            Self::Ordered(topics) | Self::Unordered(topics) => topics.to_vec(),
        }
    }
}
