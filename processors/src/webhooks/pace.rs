//! The pace of one endpoint: how many requests it gets at a time, and until when it is left alone. Pure, but for the time
//! that it is given.
//!
//! - An endpoint that answers in time gets more requests at a time, up to a limit; one that answers slowly fewer, down to
//!   [`SLOW_WINDOW`], and of a smaller number of places ([`super::places`]), as one that has not answered yet.
//! - One that cannot be reached, does not answer, or answers 502, 503 or 504 is left alone for the next of [`DELAYS`], and
//!   then tried by one request; so is one that refused [`FAILING_AFTER`] requests in a row. `Retry-After` replaces the delay.
//! - One request that is taken ends all of it.

use std::time::Duration;

use eshaar_model::Timestamp;

/// The delays before each retry, in order: of an event that was refused, and of an endpoint that is left alone. What fails
/// longer is tried again after the last of them.
pub(super) const DELAYS: [Duration; 7] = [
    Duration::from_secs(5),
    Duration::from_mins(5),
    Duration::from_mins(30),
    Duration::from_hours(2),
    Duration::from_hours(5),
    Duration::from_hours(10),
    Duration::from_hours(10),
];
/// Refusals in a row after which an endpoint fails as a whole.
pub(super) const FAILING_AFTER: u32 = 5;
/// Requests at a time to an endpoint that is not known yet, or was failing.
const FIRST_WINDOW: u32 = 2;
/// Requests at a time to a slow endpoint.
const SLOW_WINDOW: u32 = 2;
/// Answers in time, in a row, after which an endpoint is no longer slow.
const QUICK_AGAIN: u32 = 3;

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It was answered, and refused.
    Refused,
    /// It was not answered, or by something before the endpoint; with `Retry-After`, where that said so.
    Unavailable(Option<Duration>),
    /// 429: the endpoint asks for a pause.
    Throttled(Duration),
}

/// A request that was begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    round: u64,
}

/// The pace of one endpoint.
#[derive(Debug)]
pub(super) struct Pace {
    most: u32,
    window: u32,
    under_way: u32,
    /// It answered slowly, or has not answered in time yet.
    pub(super) slow: bool,
    quick_answers: u32,
    /// Requests that failed since one was taken.
    pub(super) failures: u32,
    pub(super) failing_since: Option<Timestamp>,
    last_taken: Option<Timestamp>,
    /// How often in a row it was left alone.
    times_left: usize,
    hold: Option<Timestamp>,
    /// Grows whenever it is left alone or recovers: a request that was begun before says nothing new.
    round: u64,
    /// Grows when it recovers.
    pub(super) recoveries: u64,
}

impl Pace {
    pub(super) const fn new(most: u32) -> Self {
        Self {
            most,
            window: if most < FIRST_WINDOW { most } else { FIRST_WINDOW },
            under_way: 0,
            slow: true,
            // One answer in time is enough, the first time.
            quick_answers: QUICK_AGAIN - 1,
            failures: 0,
            failing_since: None,
            last_taken: None,
            times_left: 0,
            hold: None,
            round: 0,
            recoveries: 0,
        }
    }

    /// Begins a request, if there may be one more now.
    pub(super) fn begin(&mut self, now: Timestamp) -> Option<Begun> {
        if self.held_until(now).is_some() || self.under_way >= self.window {
            return None;
        }
        self.under_way += 1;
        Some(Begun { round: self.round })
    }

    /// A request is over, however it ended.
    pub(super) const fn end(&mut self) {
        self.under_way -= 1;
    }

    /// Until when it is left alone.
    pub(super) fn held_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.hold.filter(|until| *until > now)
    }

    /// Whether it fails as a whole.
    const fn is_failing(&self) -> bool {
        self.failures >= FAILING_AFTER || self.times_left > 0
    }

    /// Whether it took a request after `at`.
    pub(super) fn took_after(&self, at: Timestamp) -> bool {
        self.last_taken.is_some_and(|taken| taken > at)
    }

    /// It took a request, in `took`; returns whether it was failing.
    pub(super) fn taken(&mut self, now: Timestamp, took: Duration, slow_after: Duration) -> bool {
        let (was_failing, had_failures) = (self.is_failing(), self.failures > 0);
        if was_failing {
            self.round += 1;
            self.recoveries += 1;
            self.window = FIRST_WINDOW.min(self.most);
        }
        (self.failures, self.failing_since, self.times_left, self.hold) = (0, None, 0, None);
        self.last_taken = Some(now);
        if took >= slow_after {
            (self.slow, self.quick_answers) = (true, 0);
            self.window = (self.window / 2).max(SLOW_WINDOW.min(self.most));
        } else {
            self.quick_answers = self.quick_answers.saturating_add(1);
            self.slow &= self.quick_answers < QUICK_AGAIN;
            if !self.slow {
                self.window = (self.window + 1).min(self.most);
            }
        }
        was_failing || had_failures
    }

    /// A request failed. `jitter` is any number, for the delay.
    pub(super) fn failed(&mut self, begun: Begun, failure: Failure, now: Timestamp, jitter: u64) {
        self.failures = self.failures.saturating_add(1);
        self.failing_since.get_or_insert(now);
        self.window = (self.window / 2).max(1);
        if matches!(failure, Failure::Unavailable(_)) {
            (self.slow, self.quick_answers) = (true, 0);
        }
        let is_left_alone = failure != Failure::Refused || self.failures >= FAILING_AFTER;
        if !is_left_alone || begun.round != self.round {
            return;
        }
        let wait = match failure {
            Failure::Throttled(wait) | Failure::Unavailable(Some(wait)) => wait,
            Failure::Unavailable(None) | Failure::Refused => {
                self.times_left += 1;
                delay(self.times_left, jitter)
            }
        };
        self.hold = Some(now.plus_millis(wait.as_millis() as i64));
        self.round += 1;
        self.window = 1;
    }

    /// Everything about its failures is forgotten: it was enabled again.
    pub(super) fn forgive(&mut self) {
        (self.failures, self.failing_since, self.times_left, self.hold) = (0, None, 0, None);
        self.window = FIRST_WINDOW.min(self.most);
        self.round += 1;
        self.recoveries += 1;
    }
}

/// The delay after so many failures (1 and more), with up to a tenth of it added: those that failed together are not tried
/// again together.
pub(super) fn delay(failures: usize, jitter: u64) -> Duration {
    let delay = DELAYS[failures.clamp(1, DELAYS.len()) - 1];
    // The bits of a small number are spread (splitmix64).
    let spread = jitter.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40;
    delay + delay.mul_f64(0.1 * spread as f64 / f64::from(1 << 24))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_760_000_000_000);
    const SLOW: Duration = Duration::from_secs(2);
    const QUICK: Duration = Duration::from_millis(10);

    /// Begins as many requests as it lets.
    fn all(pace: &mut Pace, now: Timestamp) -> Vec<Begun> {
        std::iter::from_fn(|| pace.begin(now)).collect()
    }

    fn fails(pace: &mut Pace, now: Timestamp, failure: Failure) {
        let begun = pace.begin(now).unwrap();
        pace.end();
        pace.failed(begun, failure, now, 0);
    }

    fn takes(pace: &mut Pace, now: Timestamp, took: Duration) -> bool {
        pace.begin(now).unwrap();
        pace.end();
        pace.taken(now, took, SLOW)
    }

    fn take(pace: &mut Pace, times: u32, now: Timestamp, took: Duration) {
        for _ in 0..times {
            takes(pace, now, took);
        }
    }

    #[test]
    fn a_delay_is_never_shorter_and_at_most_a_tenth_longer() {
        for (failures, delay_s) in [(1, 5), (2, 300), (3, 1_800), (4, 7_200), (5, 18_000), (6, 36_000), (7, 36_000)] {
            for jitter in 0..200 {
                let delay = delay(failures, jitter).as_secs_f64();
                assert!((f64::from(delay_s)..=f64::from(delay_s) * 1.1).contains(&delay), "{failures}: {delay}");
            }
        }
        assert_eq!(delay(100, 0), delay(7, 0));
        let distinct: std::collections::BTreeSet<_> = (0..200).map(|jitter| delay(2, jitter)).collect();
        assert!(distinct.len() > 150, "{}", distinct.len());
    }

    #[test]
    fn one_that_answers_in_time_gets_more_at_a_time_and_a_slow_one_fewer() {
        let mut pace = Pace::new(8);
        assert_eq!(all(&mut pace, START).len(), 2);
        (0..2).for_each(|_| pace.end());
        take(&mut pace, 10, START, QUICK);
        assert_eq!(all(&mut pace, START).len(), 8);
        (0..8).for_each(|_| pace.end());
        take(&mut pace, 5, START, SLOW);
        assert!(pace.slow);
        assert_eq!(all(&mut pace, START).len(), 2);
        (0..2).for_each(|_| pace.end());
        take(&mut pace, 3, START, QUICK);
        assert!(!pace.slow);
    }

    #[test]
    fn one_that_does_not_answer_is_left_alone_and_then_tried_by_one_request() {
        let (mut pace, mut now) = (Pace::new(8), START);
        take(&mut pace, 10, now, QUICK);
        // Those that were under way together count as one failure of the endpoint.
        for begun in all(&mut pace, now) {
            pace.end();
            pace.failed(begun, Failure::Unavailable(None), now, 0);
        }
        for times in 1..=9 {
            let until = pace.held_until(now).unwrap();
            assert_eq!(until.millis_since(now), delay(times, 0).as_millis() as i64);
            assert!(pace.begin(until.plus_millis(-1)).is_none());
            now = until;
            let trial = all(&mut pace, now);
            assert_eq!(trial.len(), 1);
            pace.end();
            pace.failed(trial[0], Failure::Unavailable(None), now, 0);
        }
        assert_eq!((pace.failures, pace.failing_since), (17, Some(START)));
        now = pace.held_until(now).unwrap();
        assert!(takes(&mut pace, now, QUICK));
        assert_eq!((pace.failures, pace.failing_since, pace.held_until(now)), (0, None, None));
        assert_eq!(pace.recoveries, 1);
    }

    #[test]
    fn refusals_leave_it_alone_only_in_a_row() {
        let mut pace = Pace::new(8);
        for _ in 0..20 {
            (1..FAILING_AFTER).for_each(|_| fails(&mut pace, START, Failure::Refused));
            assert_eq!(pace.held_until(START), None);
            take(&mut pace, 1, START, QUICK);
        }
        (0..FAILING_AFTER).for_each(|_| fails(&mut pace, START, Failure::Refused));
        assert!(pace.held_until(START).is_some());
    }

    #[test]
    fn the_pause_that_it_asks_for_is_obeyed() {
        for failure in [Failure::Throttled, |wait| Failure::Unavailable(Some(wait))] {
            let mut pace = Pace::new(8);
            fails(&mut pace, START, failure(Duration::from_secs(77)));
            assert_eq!(pace.held_until(START), Some(START.plus_millis(77_000)));
        }
    }

    #[test]
    fn an_answer_that_was_under_way_ends_the_pause() {
        let mut pace = Pace::new(8);
        let begun = all(&mut pace, START);
        pace.end();
        pace.failed(begun[0], Failure::Unavailable(None), START, 0);
        pace.end();
        assert!(pace.taken(START, QUICK, SLOW));
        assert!(pace.begin(START).is_some());
    }
}
