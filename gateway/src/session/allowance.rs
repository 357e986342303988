//! Token buckets of a session: frames that its client may send, look-ups that it may cause.

use crate::hub::{TICKS, Ticks};

/// A token bucket.
#[derive(Debug)]
pub(super) struct Allowance {
    /// In tenths of a token, since the clock ticks in tenths of a second.
    tenths: u32,
    at: Ticks,
}

impl Allowance {
    /// A bucket that holds `count` tokens at `now`.
    pub(super) const fn new(count: u32, now: Ticks) -> Self {
        Self { tenths: count.saturating_mul(TICKS), at: now }
    }

    /// Adds the tokens earned until `now`, up to `burst`.
    pub(super) fn earn(&mut self, per_s: u32, burst: u32, now: Ticks) {
        let earned = now.saturating_sub(self.at).saturating_mul(per_s);
        self.tenths = self.tenths.saturating_add(earned).min(burst.saturating_mul(TICKS));
        self.at = now;
    }

    /// Returns true if the bucket holds `count` tokens.
    pub(super) const fn has(&self, count: u32) -> bool {
        self.tenths >= count.saturating_mul(TICKS)
    }

    /// Takes `count` tokens; returns false, and takes none, if it holds fewer.
    #[must_use]
    pub(super) fn spend(&mut self, count: u32) -> bool {
        let has = self.has(count);
        if has {
            self.tenths -= count.saturating_mul(TICKS);
        }
        has
    }

    /// Adds a token. It may exceed the burst until the next [`Allowance::earn`].
    pub(super) const fn give(&mut self) {
        self.tenths = self.tenths.saturating_add(TICKS);
    }
}
