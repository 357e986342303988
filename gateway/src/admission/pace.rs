//! How many reads the store takes at once, learned from how it answers: one more after each round of reads that took no
//! longer than usual, fewer after a round that took longer, half as many when it says that it is overloaded, and one now and
//! then while it fails.

use std::time::Duration;

use tokio::time::Instant;

/// Reads at once to begin with.
const FIRST: f64 = 4.0;

/// Reads at once that a slow answer alone does not go below.
const LEAST: f64 = 2.0;

/// A round took longer than usual when it took so many times as long as the shortest, and this much more.
const SLOWER: f64 = 2.0;
const TOLERANCE_S: f64 = 0.010;

/// What is left of the limit after a slow round.
const SLOW_LEAVES: f64 = 0.8;

/// How much of the difference the shortest round moves to each new one: a store that has become slower for good is taken as it
/// is after some hundred rounds.
const FORGET: f64 = 0.01;

/// Rows that take about as long as a read without any.
const ROWS_OF_A_READ: f64 = 128.0;

/// Failures in a row, without an answer in between, after which the store is left alone for a while.
const FAILURES: u32 = 3;

/// How long it is left alone: twice as long each time.
const SHORTEST_REST: Duration = Duration::from_millis(250);
const LONGEST_REST: Duration = Duration::from_secs(5);

/// What came of a read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    /// So many rows.
    Read { rows: usize },
    /// Too much is asked of the store.
    Overloaded,
    /// It did not answer, or is not to be asked.
    Failed,
}

/// The limit, and what it is learned from. Without IO: times are given.
#[derive(Debug)]
pub(super) struct Pace {
    limit: f64,
    most: f64,
    /// The round under way.
    reads: u32,
    seconds: f64,
    /// Mean time of a read in the shortest round, which moves slowly.
    shortest: Option<f64>,
    cut_at: Instant,
    failures: u32,
    rest: Duration,
    rests_until: Instant,
    successes: u64,
}

impl Pace {
    pub(super) fn new(most: usize, now: Instant) -> Self {
        let most = most.max(1) as f64;
        Self {
            limit: FIRST.min(most),
            most,
            reads: 0,
            seconds: 0.0,
            shortest: None,
            cut_at: now,
            failures: 0,
            rest: Duration::ZERO,
            rests_until: now,
            successes: 0,
        }
    }

    /// Reads that may be under way now.
    pub(super) fn limit(&self, now: Instant) -> usize {
        if now < self.rests_until { 0 } else { self.limit as usize }
    }

    pub(super) const fn successes(&self) -> u64 {
        self.successes
    }

    /// Learns from a read that began at `begun` and ended at `now`.
    pub(super) fn learn(&mut self, verdict: Verdict, begun: Instant, now: Instant) {
        match verdict {
            Verdict::Read { rows } => {
                self.successes += 1;
                (self.failures, self.rest) = (0, Duration::ZERO);
                self.rests_until = self.rests_until.min(now);
                self.reads += 1;
                self.seconds += (now - begun).as_secs_f64() / (1.0 + rows as f64 / ROWS_OF_A_READ);
                if f64::from(self.reads) >= self.limit {
                    self.end_round();
                }
            }
            // What was under way when the limit was cut says nothing of the new one.
            Verdict::Overloaded if begun >= self.cut_at => self.cut(now),
            Verdict::Failed if begun >= self.cut_at => {
                self.cut(now);
                self.failures += 1;
                if self.failures >= FAILURES {
                    self.limit = 1.0;
                    self.rest = (self.rest * 2).clamp(SHORTEST_REST, LONGEST_REST);
                    self.rests_until = now + self.rest;
                }
            }
            Verdict::Overloaded | Verdict::Failed => {}
        }
    }

    fn end_round(&mut self) {
        let mean = self.seconds / f64::from(self.reads);
        (self.reads, self.seconds) = (0, 0.0);
        let shortest = self.shortest.map_or(mean, |known| mean.min(known + (mean - known) * FORGET));
        self.shortest = Some(shortest);
        self.limit = if mean > shortest * SLOWER + TOLERANCE_S {
            (self.limit * SLOW_LEAVES).max(LEAST.min(self.most))
        } else {
            (self.limit + 1.0).min(self.most)
        };
    }

    fn cut(&mut self, now: Instant) {
        self.limit = (self.limit / 2.0).max(1.0);
        (self.reads, self.seconds, self.cut_at) = (0, 0.0, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads that take `time` each, until `rounds` limits have passed.
    fn read(pace: &mut Pace, rounds: usize, time: Duration) {
        let begun = Instant::now();
        for _ in 0..rounds {
            for _ in 0..pace.limit(begun).max(1) {
                pace.learn(Verdict::Read { rows: 0 }, begun, begun + time);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_grows_while_answers_are_quick_shrinks_while_they_are_slow_and_gets_used_to_it() {
        let (now, mut pace) = (Instant::now(), Pace::new(10, Instant::now()));
        assert_eq!(pace.limit(now), 4);
        read(&mut pace, 6, Duration::from_millis(5));
        assert_eq!(pace.limit(now), 10);
        read(&mut pace, 20, Duration::from_millis(100));
        assert_eq!(pace.limit(now), 2);
        read(&mut pace, 500, Duration::from_millis(100));
        assert_eq!(pace.limit(now), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_under_way_when_it_was_cut_does_not_cut_it_again() {
        let (now, mut pace) = (Instant::now(), Pace::new(10, Instant::now()));
        read(&mut pace, 10, Duration::from_millis(5));
        let later = now + Duration::from_millis(50);
        for _ in 0..10 {
            pace.learn(Verdict::Overloaded, now, later);
        }
        assert_eq!(pace.limit(later), 5);
    }
}
