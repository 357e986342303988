//! A circuit breaker: after so many failures in a row a dependency is left alone for a while, then one call tries it
//! (R6.2). One [`Policy`] a dependency, in [`policies`]; what a call's failure is, the caller says.
//!
//! ```text
//! closed ── so many failures in a row ──▶ open ── its time is over ──▶ half open ── the one call succeeds ──▶ closed
//!                                           ▲                              │
//!                                           └───────── it fails ───────────┘
//! ```
//!
//! It holds no call up and does no work of its own: whoever calls asks for a [`Permit`], and says how it went. A permit that
//! is dropped without a word (its call was given up by whoever waited) says nothing about the dependency.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use crate::metrics::{BREAKER_STATE, BREAKER_TURNED};

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The dependency, as metrics, logs and health name it.
    pub dependency: &'static str,
    /// Failures in a row that open it; at least 1.
    pub failures: u32,
    /// How long it stays open before one call tries.
    pub open_for: Duration,
}

/// The breakers of this service, one a dependency.
pub mod policies {
    use super::{Duration, Policy};

    /// Redis. The task that keeps the connection tries it again, within these 30 s too: it closes when that succeeds.
    pub const REDIS: Policy = Policy { dependency: "redis", failures: 3, open_for: Duration::from_secs(30) };

    /// The database. Stages wait for it, so it is tried often.
    pub const DATABASE: Policy = Policy { dependency: "database", failures: 5, open_for: Duration::from_secs(5) };

    /// An endpoint that statuses are posted to; and any provider of pushes.
    pub const PUSH: Policy = Policy { dependency: "push", failures: 5, open_for: Duration::from_mins(1) };
}

/// What a breaker does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Lets them through.
    Closed,
    /// Lets one through at a time, to see.
    HalfOpen,
    /// Refuses them.
    Open,
}

impl State {
    /// Its name in metrics, logs and health.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }

    /// Its value in metrics.
    const fn as_number(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::HalfOpen => 1.0,
            Self::Open => 2.0,
        }
    }
}

/// A breaker refused a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{dependency} is left alone after failures, for another {} ms", retry_after.as_millis())]
pub struct Refused {
    /// The dependency.
    pub dependency: &'static str,
    /// When it is tried again, from now.
    pub retry_after: Duration,
}

/// A breaker, as health shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The dependency.
    pub dependency: &'static str,
    /// What it does with calls.
    pub state: State,
    /// Failures in a row so far.
    pub failures: u32,
    /// When it is tried again, in milliseconds from now; of one that is open.
    pub retry_in_ms: Option<u64>,
}

/// One breaker. Shared by all who call the dependency.
pub struct Breaker {
    policy: Policy,
    inner: Mutex<Inner>,
}

#[derive(Clone, Copy, Debug)]
enum Inner {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
    },
    /// `trying`: a call is under way.
    HalfOpen {
        trying: bool,
    },
}

impl Inner {
    const fn state(self) -> State {
        match self {
            Self::Closed { .. } => State::Closed,
            Self::Open { .. } => State::Open,
            Self::HalfOpen { .. } => State::HalfOpen,
        }
    }
}

impl Breaker {
    /// A breaker that is closed.
    pub fn new(policy: Policy) -> Arc<Self> {
        gauge!(BREAKER_STATE, "dependency" => policy.dependency).set(State::Closed.as_number());
        Arc::new(Self { policy, inner: Mutex::new(Inner::Closed { failures: 0 }) })
    }

    /// Leave to call, or when to ask again. Of those who ask when an open breaker's time is over, one gets it.
    ///
    /// # Errors
    /// While the dependency is left alone, or the one call that tries it is under way.
    pub fn permit(self: &Arc<Self>) -> Result<Permit, Refused> {
        let mut inner = self.inner.lock();
        let now = Instant::now();
        match *inner {
            Inner::Closed { .. } => {}
            Inner::Open { until } if now < until => return Err(self.refused(until - now)),
            Inner::HalfOpen { trying: true } => return Err(self.refused(Duration::ZERO)),
            Inner::Open { .. } | Inner::HalfOpen { trying: false } => {
                self.turn(&mut inner, Inner::HalfOpen { trying: true }, "its time is over");
                return Ok(Permit { breaker: Some(Arc::clone(self)), tries: true });
            }
        }
        Ok(Permit { breaker: Some(Arc::clone(self)), tries: false })
    }

    /// Opens it, for who has learned by other ways than a call that the dependency is gone.
    pub fn trip(&self, reason: &str) {
        self.turn(&mut self.inner.lock(), self.opened(), reason);
    }

    /// Closes it, for who has learned by other ways than a call that the dependency is back.
    pub fn reset(&self) {
        self.turn(&mut self.inner.lock(), Inner::Closed { failures: 0 }, "it answers");
    }

    /// What it does with calls now.
    pub fn state(&self) -> State {
        self.inner.lock().state()
    }

    /// For health.
    pub fn report(&self) -> Report {
        let inner = *self.inner.lock();
        let retry_in_ms = match inner {
            Inner::Open { until } => Some(until.saturating_duration_since(Instant::now()).as_millis() as u64),
            _ => None,
        };
        let failures = match inner {
            Inner::Closed { failures } => failures,
            _ => self.policy.failures.max(1),
        };
        Report { dependency: self.policy.dependency, state: inner.state(), failures, retry_in_ms }
    }

    fn refused(&self, retry_after: Duration) -> Refused {
        Refused { dependency: self.policy.dependency, retry_after }
    }

    fn opened(&self) -> Inner {
        Inner::Open { until: Instant::now() + self.policy.open_for }
    }

    fn succeeded(&self, tried: bool) {
        let mut inner = self.inner.lock();
        match *inner {
            // Written only when it changes something: every call comes by here.
            Inner::Closed { failures: 0 } => {}
            Inner::Closed { .. } => *inner = Inner::Closed { failures: 0 },
            Inner::HalfOpen { .. } if tried => {
                self.turn(&mut inner, Inner::Closed { failures: 0 }, "the call that tried it succeeded");
            }
            // A call from before it opened: how it went says nothing about now.
            Inner::HalfOpen { .. } | Inner::Open { .. } => {}
        }
    }

    fn failed(&self, tried: bool, reason: &dyn fmt::Display) {
        let mut inner = self.inner.lock();
        match *inner {
            Inner::Closed { failures } if failures + 1 < self.policy.failures => {
                *inner = Inner::Closed { failures: failures + 1 };
            }
            Inner::Closed { .. } => self.turn(&mut inner, self.opened(), reason),
            Inner::HalfOpen { .. } if tried => self.turn(&mut inner, self.opened(), reason),
            Inner::HalfOpen { .. } | Inner::Open { .. } => {}
        }
    }

    fn given_up(&self, tried: bool) {
        if let Inner::HalfOpen { trying } = &mut *self.inner.lock()
            && tried
        {
            *trying = false;
        }
    }

    fn turn(&self, inner: &mut Inner, to: Inner, reason: impl fmt::Display) {
        let (was, is) = (inner.state(), to.state());
        *inner = to;
        if was == is {
            return;
        }
        let dependency = self.policy.dependency;
        gauge!(BREAKER_STATE, "dependency" => dependency).set(is.as_number());
        counter!(BREAKER_TURNED, "dependency" => dependency, "to" => is.as_str()).increment(1);
        match is {
            State::Open => {
                let open_for_ms = self.policy.open_for.as_millis() as u64;
                tracing::error!(dependency, open_for_ms, %reason, "the breaker opens: the dependency is left alone");
            }
            State::HalfOpen => tracing::info!(dependency, %reason, "the breaker is half open: one call tries it"),
            State::Closed => tracing::info!(dependency, %reason, "the breaker closes"),
        }
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker").field("policy", &self.policy).field("inner", &*self.inner.lock()).finish()
    }
}

/// Leave to make one call.
#[must_use]
#[derive(Debug)]
pub struct Permit {
    breaker: Option<Arc<Breaker>>,
    /// Whether this is the call that tries.
    tries: bool,
}

impl Permit {
    /// The dependency answered: also with an error that is the caller's own.
    pub fn succeeded(mut self) {
        if let Some(breaker) = self.breaker.take() {
            breaker.succeeded(self.tries);
        }
    }

    /// The dependency did not answer, or could not.
    pub fn failed(mut self, reason: &dyn fmt::Display) {
        if let Some(breaker) = self.breaker.take() {
            breaker.failed(self.tries, reason);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(breaker) = self.breaker.take() {
            breaker.given_up(self.tries);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy { dependency: "test", failures: 3, open_for: Duration::from_secs(30) };

    fn fail(breaker: &Arc<Breaker>) {
        breaker.permit().unwrap().failed(&"refused");
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_and_closes_when_one_call_succeeds() {
        let breaker = Breaker::new(POLICY);
        fail(&breaker);
        fail(&breaker);
        breaker.permit().unwrap().succeeded();
        fail(&breaker);
        fail(&breaker);
        assert_eq!(breaker.state(), State::Closed, "a success in between begins the count anew");
        fail(&breaker);
        assert_eq!(breaker.permit().unwrap_err().retry_after, Duration::from_secs(30));
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!(breaker.permit().unwrap_err().retry_after, Duration::from_secs(1));
        assert_eq!(breaker.report().retry_in_ms, Some(1_000));
        tokio::time::advance(Duration::from_secs(1)).await;
        let trying = breaker.permit().unwrap();
        assert!(breaker.permit().is_err(), "one call tries, not all at once");
        trying.succeeded();
        assert_eq!(breaker.state(), State::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_tries_and_fails_opens_it_again_and_one_that_is_given_up_lets_another_try() {
        let breaker = Breaker::new(POLICY);
        (0..3).for_each(|_| fail(&breaker));
        tokio::time::advance(POLICY.open_for).await;
        fail(&breaker);
        assert_eq!(breaker.state(), State::Open);
        tokio::time::advance(POLICY.open_for).await;
        drop(breaker.permit().unwrap());
        assert_eq!(breaker.state(), State::HalfOpen);
        breaker.permit().unwrap().succeeded();
        assert_eq!(breaker.state(), State::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_from_before_it_opened_change_nothing() {
        let breaker = Breaker::new(POLICY);
        let (late, later) = (breaker.permit().unwrap(), breaker.permit().unwrap());
        (0..3).for_each(|_| fail(&breaker));
        late.succeeded();
        assert_eq!(breaker.state(), State::Open);
        tokio::time::advance(POLICY.open_for).await;
        let trying = breaker.permit().unwrap();
        later.failed(&"late");
        assert_eq!(breaker.state(), State::HalfOpen);
        trying.succeeded();
        assert_eq!(breaker.state(), State::Closed);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Call,
        Succeed(usize),
        Fail(usize),
        GiveUp(usize),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Call),
            2 => (0_usize..8).prop_map(Step::Succeed),
            4 => (0_usize..8).prop_map(Step::Fail),
            1 => (0_usize..8).prop_map(Step::GiveUp),
            1 => (1_u64..40).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// R6.2: whatever calls do, a breaker that was opened lets nobody through before its time, then one at a time; and
        /// it is closed again only by a call that it let through for that.
        #[test]
        fn an_open_breaker_lets_nobody_through_before_its_time_and_then_one(
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let breaker = Breaker::new(POLICY);
                let mut calls: Vec<Permit> = Vec::new();
                let mut opened: Option<Instant> = None;
                for step in steps {
                    let before = breaker.state();
                    match step {
                        Step::Call => {
                            let trying = calls.iter().filter(|call| call.tries).count();
                            match breaker.permit() {
                                Ok(call) => {
                                    let early = opened.is_some_and(|at| Instant::now() < at + POLICY.open_for);
                                    prop_assert!(before == State::Closed || !early);
                                    prop_assert_eq!(call.tries, before != State::Closed);
                                    prop_assert!(!call.tries || trying == 0);
                                    calls.push(call);
                                }
                                Err(_) => prop_assert!(before != State::Closed),
                            }
                        }
                        Step::Succeed(at) if at < calls.len() => {
                            let call = calls.remove(at);
                            let tries = call.tries;
                            call.succeeded();
                            let closed = before != State::Closed && breaker.state() == State::Closed;
                            prop_assert_eq!(closed, tries);
                        }
                        Step::Fail(at) if at < calls.len() => {
                            let call = calls.remove(at);
                            call.failed(&"refused");
                            if before != State::Open && breaker.state() == State::Open {
                                opened = Some(Instant::now());
                            }
                        }
                        Step::GiveUp(at) if at < calls.len() => drop(calls.remove(at)),
                        Step::Wait(seconds) => tokio::time::advance(Duration::from_secs(seconds)).await,
                        _ => {}
                    }
                }
                Ok(())
            })?;
        }
    }
}
