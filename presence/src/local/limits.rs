//! Limits within one process: the windows of those who sent lately, behind one lock.

use std::collections::VecDeque;
use std::time::Duration;

use ahash::AHashMap;
use async_trait::async_trait;
use eshaar_model::{Clock, Timestamp};
use parking_lot::Mutex;

use crate::PresenceError;
use crate::limits::{Counted, Counters, Grant, Left, Limit, Limits, SLOTS};

/// Windows past which those that hold nothing any more are let go of, before one is added.
const SWEPT_FROM: usize = 1_024;

/// Limits within one process.
pub struct LocalLimits {
    clock: Clock,
    windows: Mutex<Windows>,
}

#[derive(Default)]
struct Windows {
    /// By what is counted and the length of a slot: a rate that changes its time begins anew.
    of: AHashMap<(Counted, i64), Window>,
    swept_at: usize,
}

/// What was sent lately: slots, oldest first, with how many.
#[derive(Default)]
struct Window {
    slots: VecDeque<(i64, u32)>,
    used: u32,
}

impl Window {
    /// Lets go of slots that have left the window in slot `now`.
    fn forget(&mut self, now: i64) {
        while let Some((slot, count)) = self.slots.front().copied().filter(|(slot, _)| slot + SLOTS < now) {
            self.used -= count;
            self.slots.pop_front();
            debug_assert!(slot < now);
        }
    }

    fn add(&mut self, now: i64, count: u32) {
        if count == 0 {
            return;
        }
        match self.slots.back_mut() {
            // A clock that was set back adds to what it counted last.
            Some((slot, known)) if *slot >= now => *known += count,
            _ => self.slots.push_back((now, count)),
        }
        self.used += count;
    }

    /// When so many have left the window.
    fn free_in(&self, mut count: u32, slot_ms: i64, now: Timestamp) -> Duration {
        for (slot, held) in &self.slots {
            count = count.saturating_sub(*held);
            if count == 0 {
                let free_at = (slot + SLOTS + 1) * slot_ms;
                return Duration::from_millis((free_at - now.as_millis()).max(0) as u64);
            }
        }
        Duration::ZERO
    }

    fn left(&self, limit: &Limit, now: Timestamp) -> Left {
        let remaining = limit.most().saturating_sub(self.used);
        let over = (self.used + 1).saturating_sub(limit.most()).max(1);
        Left { remaining, more_in: self.free_in(over, limit.slot_ms(), now) }
    }
}

impl LocalLimits {
    /// Nothing was sent yet. Windows move by `clock`.
    pub fn new(clock: Clock) -> Self {
        Self { clock, windows: Mutex::default() }
    }

    /// As [`Counters::take`].
    pub fn take_now(&self, limits: &Limits, wanted: u32) -> Grant {
        let now = self.clock.now();
        let mut windows = self.windows.lock();
        let mut granted = wanted;
        for limit in limits {
            let (window, _) = windows.at(limit, now);
            granted = granted.min(limit.most().saturating_sub(window.used));
        }
        let mut grant = Grant { granted, retry_after: Duration::ZERO, left: limits.iter().map(|_| NOTHING).collect() };
        for (limit, left) in limits.iter().zip(&mut grant.left) {
            let (window, slot) = windows.at(limit, now);
            window.add(slot, granted);
            *left = window.left(limit, now);
            if granted < wanted && left.remaining == 0 {
                grant.retry_after = grant.retry_after.max(left.more_in);
            }
        }
        grant
    }

    /// Counts what was let through by other counters.
    pub(crate) fn note(&self, limits: &Limits, granted: u32) {
        let now = self.clock.now();
        let mut windows = self.windows.lock();
        for limit in limits {
            let (window, slot) = windows.at(limit, now);
            window.add(slot, granted);
        }
    }
}

const NOTHING: Left = Left { remaining: 0, more_in: Duration::ZERO };

impl Windows {
    /// The window of a limit, as it is in the slot of `now`.
    fn at(&mut self, limit: &Limit, now: Timestamp) -> (&mut Window, i64) {
        let slot_ms = limit.slot_ms();
        let slot = now.as_millis().div_euclid(slot_ms);
        if self.of.len() >= SWEPT_FROM.max(2 * self.swept_at) {
            self.of.retain(|(_, slot_ms), window| {
                window.forget(now.as_millis().div_euclid(*slot_ms));
                !window.slots.is_empty()
            });
            self.swept_at = self.of.len();
        }
        let window = self.of.entry((limit.of.clone(), slot_ms)).or_default();
        window.forget(slot);
        (window, slot)
    }
}

#[async_trait]
impl Counters for LocalLimits {
    async fn take(&self, limits: &Limits, wanted: u32) -> Result<Grant, PresenceError> {
        Ok(self.take_now(limits, wanted))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use eshaar_model::Phone;

    use super::*;
    use crate::conformance::limits::{self, Subject};

    #[tokio::test]
    async fn local_limits_keep_every_rule_of_the_port() {
        limits::all(async || {
            let clock = Clock::manual(Timestamp::from_millis(1_760_000_000_007));
            let counters = std::sync::Arc::new(LocalLimits::new(clock.clone()));
            Subject { counters, pass: Box::new(move |time| clock.advance_millis(time.as_millis() as i64)) }
        })
        .await;
    }

    #[test]
    fn windows_that_hold_nothing_are_let_go_of() {
        let clock = Clock::manual(Timestamp::from_millis(0));
        let counters = LocalLimits::new(clock.clone());
        let limit = |number: u64| -> Limits {
            let of = Counted::User(Phone::from_digits(966_500_000_000 + number).unwrap());
            [Limit { of, rate: "1/s".parse().unwrap(), kept: 0 }].into_iter().collect()
        };
        for number in 0..100_000 {
            assert_eq!(counters.take_now(&limit(number), 1).granted, 1);
            clock.advance_millis(10);
        }
        assert!(counters.windows.lock().of.len() <= SWEPT_FROM);
    }
}
