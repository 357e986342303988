//! Freshness of what a process knows of `cancellations`.
//!
//! A process that was stopped for a while, or whose reader lags, may not know a cancellation that was answered long ago.
//! Asking the log for the ends of the partitions, and reading up to them, proves that everything is known that was
//! answered before the question. The proof holds for [`Options::max_age_ms`]: past it nothing may be sent.
//!
//! The age is the larger one of two clocks. The monotonic clock goes on while the process is stopped; the wall clock also
//! shows a host that was suspended. A wall clock that jumps makes the knowledge stale until the next proof, and no more.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use eshaar_model::Clock;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How old the knowledge of cancellations may be.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Age past which no message is sent, in milliseconds: 3000. The log is asked three times as often.
    pub max_age_ms: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_age_ms: 3_000 }
    }
}

impl Options {
    /// Time between questions.
    pub(super) fn refresh(&self) -> Duration {
        Duration::from_millis(u64::from(self.max_age_ms / 3).max(1))
    }
}

/// A moment on both clocks, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    monotonic: i64,
    wall: i64,
}

/// When the newest proof was asked for.
#[derive(Debug)]
pub(super) struct Freshness {
    clock: Clock,
    begun: Instant,
    /// `None`: the topic is not followed, and the knowledge does not age.
    max_age_ms: Option<i64>,
    monotonic: AtomicI64,
    wall: AtomicI64,
    proved: Notify,
}

impl Freshness {
    /// Of knowledge that does not age.
    pub(super) fn ageless(clock: Clock) -> Self {
        Self::new(clock, None)
    }

    /// Of knowledge that is stale until the first proof.
    pub(super) fn of(clock: Clock, options: &Options) -> Self {
        Self::new(clock, Some(options.max_age_ms.into()))
    }

    fn new(clock: Clock, max_age_ms: Option<i64>) -> Self {
        let never = || AtomicI64::new(i64::MIN / 2);
        Self { clock, begun: Instant::now(), max_age_ms, monotonic: never(), wall: never(), proved: Notify::new() }
    }

    pub(super) fn now(&self) -> Moment {
        let monotonic = self.begun.elapsed().as_millis() as i64;
        Moment { monotonic, wall: self.clock.now().as_millis() }
    }

    /// Everything is known that was answered before `asked`.
    pub(super) fn prove(&self, asked: Moment) {
        // A reader that sees one of them alone sees an older proof on the other clock: both hold.
        self.monotonic.store(asked.monotonic, Ordering::Release);
        self.wall.store(asked.wall, Ordering::Release);
        self.proved.notify_waiters();
    }

    pub(super) fn age_ms(&self) -> i64 {
        let now = self.now();
        let monotonic = now.monotonic - self.monotonic.load(Ordering::Acquire);
        monotonic.max(now.wall.saturating_sub(self.wall.load(Ordering::Acquire))).max(0)
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.max_age_ms.is_none_or(|max| self.age_ms() <= max)
    }

    pub(super) async fn fresh(&self) {
        loop {
            let proved = self.proved.notified();
            if self.is_fresh() {
                return;
            }
            proved.await;
        }
    }
}

/// How far the partitions were read.
#[derive(Debug)]
pub(super) struct Places {
    next: Vec<AtomicU64>,
    moved: Notify,
}

impl Places {
    pub(super) fn new(partitions: u32) -> Self {
        Self { next: (0..partitions).map(|_| AtomicU64::new(0)).collect(), moved: Notify::new() }
    }

    /// Everything before `next` is known.
    pub(super) fn set(&self, partition: u32, next: u64) {
        self.next[partition as usize].store(next, Ordering::Release);
        self.moved.notify_waiters();
    }

    /// Waits until every partition was read up to its end.
    pub(super) async fn reach(&self, ends: &[u64]) {
        for (next, end) in self.next.iter().zip(ends) {
            loop {
                let moved = self.moved.notified();
                if next.load(Ordering::Acquire) >= *end {
                    break;
                }
                moved.await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use eshaar_model::Timestamp;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn knowledge_is_stale_before_the_first_proof_and_when_either_clock_says_so() {
        let clock = Clock::manual(Timestamp::from_millis(1_760_000_000_000));
        let freshness = Freshness::of(clock.clone(), &Options::default());
        assert!(!freshness.is_fresh());
        freshness.prove(freshness.now());
        assert!(freshness.is_fresh());

        tokio::time::advance(Duration::from_millis(3_001)).await;
        assert!(!freshness.is_fresh(), "the process was stopped");
        freshness.prove(freshness.now());
        clock.advance_millis(25_000);
        assert!(!freshness.is_fresh(), "the host was suspended");
        freshness.prove(freshness.now());
        clock.advance_millis(-60_000);
        assert!(freshness.is_fresh(), "a wall clock that is set back proves nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_proof_is_as_old_as_its_question() {
        let freshness = Freshness::of(Clock::manual(Timestamp::from_millis(0)), &Options::default());
        let asked = freshness.now();
        tokio::time::advance(Duration::from_secs(25)).await;
        freshness.prove(asked);
        assert!(!freshness.is_fresh());
        assert_eq!(freshness.age_ms(), 25_000);
    }
}
