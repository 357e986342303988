//! How much a sender, a key and everybody together may send: a port that counts, and [`Limiter`], which asks it and is
//! never without an answer (R5.5).
//!
//! **The rule is a sliding window**: within any span of the rate's time at most so many, exactly what `100/min` says; not a
//! bucket, which lets twice as many through in the first minute. Time is cut into [`SLOTS`] slots a window, and a slot
//! counts until all of it has left the window: so never more than the rate, and at most a sixtieth less.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use eshaar_model::{Clock, Phone, Principal, Rate};
use eshaar_service::metrics::{LIMITED, LIMITS_SHARED};
use metrics::{counter, gauge};
use serde::{Deserialize, Deserializer, de};
use smallvec::SmallVec;

use crate::PresenceError;
use crate::local::LocalLimits;

/// Slots that a window is cut into.
pub(crate) const SLOTS: i64 = 60;

/// Section `limits` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Messages of a mobile user.
    pub user: Rate,
    /// Messages of everybody together. `None` (an empty text): no limit.
    #[serde(deserialize_with = "rate_or_none")]
    pub whole: Option<Rate>,
    /// Of those, how many in a hundred may be sent in bulk, 1 to 100: the rest is kept for who sends singly.
    pub bulk_percent: u32,
}

impl Default for Options {
    fn default() -> Self {
        use eshaar_model::Per::{Minute, Second};
        let rate = |count, per| Rate::new(count, per);
        // Neither is zero.
        let user = rate(100, Minute).unwrap_or_else(|| unreachable!());
        Self { user, whole: rate(10_000, Second), bulk_percent: 80 }
    }
}

fn rate_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Rate>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(de::Error::custom) }
}

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Counted {
    /// Everything.
    Whole,
    /// What is sent with an API key, by its public id.
    Key(String),
    /// What a mobile user sends.
    User(Phone),
}

impl Counted {
    /// The limit's name: in `RateLimit` headers and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Whole => "service",
            Self::Key(_) => "key",
            Self::User(_) => "user",
        }
    }
}

/// A limit on something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// On what.
    pub of: Counted,
    /// How much.
    pub rate: Rate,
    /// Of that, how many are kept from this caller.
    pub kept: u32,
}

impl Limit {
    /// How many this caller may have in a window; at least 1.
    pub(crate) fn most(&self) -> u32 {
        self.rate.count().saturating_sub(self.kept).max(1)
    }

    /// Length of a slot, in milliseconds.
    pub(crate) fn slot_ms(&self) -> i64 {
        (self.rate.window().as_millis() as u64).div_ceil(SLOTS as u64).max(1) as i64
    }
}

/// The limits of one caller; none has more than three.
pub type Limits = SmallVec<[Limit; 2]>;

/// How much of a limit is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// How many may be had now.
    pub remaining: u32,
    /// When more may be had.
    pub more_in: Duration,
}

/// How many of what was wanted may be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// So many, of those wanted.
    pub granted: u32,
    /// Where they are fewer: when at least one more may be had.
    pub retry_after: Duration,
    /// How much is left of each limit, in the order asked.
    pub left: SmallVec<[Left; 2]>,
}

/// Counts what is sent.
#[async_trait]
pub trait Counters: Send + Sync + 'static {
    /// Takes as many of `wanted` as every one of `limits` has room for, from all of them together or from none. With
    /// nothing wanted it only says how much is left.
    async fn take(&self, limits: &Limits, wanted: u32) -> Result<Grant, PresenceError>;
}

/// Who sends, as far as it is limited.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// Who.
    pub principal: &'a Principal,
    /// The public id of its API key, and the rate that the key has.
    pub key: Option<(&'a str, Rate)>,
}

/// What there is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// One by one.
    Singly,
    /// Many in a request.
    InBulk,
}

/// Limits senders, across processes for as long as the counters that they share answer. While those do not, this process
/// counts alone, each limit whole: then as many times the rate get through as there are processes, and nobody is refused for
/// an outage (R6.3). It goes on counting what it let through beside them, so that it does not begin from nothing.
pub struct Limiter {
    options: Options,
    shared: Option<Arc<dyn Counters>>,
    alone: LocalLimits,
    is_alone: AtomicBool,
}

impl Limiter {
    /// Limits by counters that other processes share.
    pub fn shared(options: Options, counters: Arc<dyn Counters>, clock: Clock) -> Self {
        gauge!(LIMITS_SHARED).set(1.0);
        Self { options, shared: Some(counters), alone: LocalLimits::new(clock), is_alone: AtomicBool::new(false) }
    }

    /// Limits what this process lets through.
    pub fn local(options: Options, clock: Clock) -> Self {
        Self { options, shared: None, alone: LocalLimits::new(clock), is_alone: AtomicBool::new(false) }
    }

    /// The limits that hold for a sender.
    pub fn limits_of(&self, sender: Sender<'_>, manner: Manner) -> Limits {
        let mut limits = Limits::new();
        match (sender.principal, sender.key) {
            (_, Some((id, rate))) => limits.push(Limit { of: Counted::Key(id.to_owned()), rate, kept: 0 }),
            (Principal::Phone(phone), None) => {
                limits.push(Limit { of: Counted::User(*phone), rate: self.options.user, kept: 0 });
            }
            (Principal::Business(_), None) => {}
        }
        if let Some(rate) = self.options.whole {
            let percent = self.options.bulk_percent.clamp(1, 100);
            let kept = match manner {
                Manner::Singly => 0,
                Manner::InBulk => (u64::from(rate.count()) * u64::from(100 - percent) / 100) as u32,
            };
            limits.push(Limit { of: Counted::Whole, rate, kept });
        }
        limits
    }

    /// Takes as many of `wanted` as may be sent.
    pub async fn take(&self, limits: &Limits, wanted: u32) -> Grant {
        if limits.is_empty() {
            return Grant { granted: wanted, retry_after: Duration::ZERO, left: SmallVec::new() };
        }
        let grant = self.count(limits, wanted).await;
        if grant.granted < wanted {
            let tightest = limits.iter().zip(&grant.left).min_by_key(|(_, left)| left.remaining);
            let name = tightest.map_or("service", |(limit, _)| limit.of.name());
            counter!(LIMITED, "limit" => name).increment(u64::from(wanted - grant.granted));
        }
        grant
    }

    async fn count(&self, limits: &Limits, wanted: u32) -> Grant {
        let Some(shared) = &self.shared else { return self.alone.take_now(limits, wanted) };
        match shared.take(limits, wanted).await {
            Ok(grant) => {
                self.turn(false, None);
                self.alone.note(limits, grant.granted);
                grant
            }
            Err(error) => {
                self.turn(true, Some(&error));
                self.alone.take_now(limits, wanted)
            }
        }
    }

    fn turn(&self, to_alone: bool, error: Option<&PresenceError>) {
        // Read first: the line is shared by all calls, and hardly ever written.
        if self.is_alone.load(Ordering::Relaxed) == to_alone
            || self.is_alone.swap(to_alone, Ordering::Relaxed) == to_alone
        {
            return;
        }
        gauge!(LIMITS_SHARED).set(if to_alone { 0.0 } else { 1.0 });
        if let Some(error) = error {
            tracing::warn!(%error, "rate limits are counted by this process alone");
        } else {
            tracing::info!("rate limits are counted across processes again");
        }
    }
}

impl std::fmt::Debug for Limiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limiter").field("options", &self.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use eshaar_model::Timestamp;

    use super::*;

    /// Counters that answer while they are up.
    struct Shared {
        counters: LocalLimits,
        up: AtomicBool,
    }

    #[async_trait]
    impl Counters for Shared {
        async fn take(&self, limits: &Limits, wanted: u32) -> Result<Grant, PresenceError> {
            if self.up.load(Ordering::Relaxed) {
                return self.counters.take(limits, wanted).await;
            }
            Err(PresenceError::Engine { action: "count", reason: "told to fail".to_owned() })
        }
    }

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn two_processes_share_a_count_and_each_goes_on_alone_from_what_it_let_through() {
        let clock = Clock::manual(Timestamp::from_millis(1_760_000_000_000));
        let shared = Arc::new(Shared { counters: LocalLimits::new(clock.clone()), up: AtomicBool::new(true) });
        let options = Options { user: rate("10/min"), whole: None, bulk_percent: 80 };
        let limiter = || Limiter::shared(options.clone(), shared.clone(), clock.clone());
        let (one, two) = (limiter(), limiter());
        let phone = Principal::Phone(Phone::from_digits(966_500_000_001).unwrap());
        let limits = one.limits_of(Sender { principal: &phone, key: None }, Manner::Singly);
        assert_eq!(one.take(&limits, 6).await.granted, 6);
        assert_eq!(two.take(&limits, 6).await.granted, 4, "they share the count");
        shared.up.store(false, Ordering::Relaxed);
        assert_eq!(one.take(&limits, 10).await.granted, 4, "it remembers its own 6");
        assert_eq!(two.take(&limits, 10).await.granted, 6, "and the other its own 4");
        shared.up.store(true, Ordering::Relaxed);
        assert_eq!(one.take(&limits, 1).await.granted, 0, "the shared count is back");
        clock.advance_millis(61_000);
        assert_eq!(two.take(&limits, 20).await.granted, 10);
    }

    #[test]
    fn a_key_has_its_own_limit_a_user_the_users_and_bulk_leaves_a_share_of_the_whole() {
        let limiter = Limiter::local(Options::default(), Clock::system());
        let business: Principal = "acme".parse().unwrap();
        let phone = Principal::Phone(Phone::from_digits(966_500_000_001).unwrap());
        let show = |principal, key, manner| {
            let limits = limiter.limits_of(Sender { principal, key }, manner);
            limits.iter().map(|limit| (limit.of.name(), limit.rate.to_string(), limit.most())).collect::<Vec<_>>()
        };
        let whole = ("service", "10000/s".to_owned(), 10_000);
        assert_eq!(show(&business, None, Manner::Singly), std::slice::from_ref(&whole));
        assert_eq!(show(&business, None, Manner::InBulk), [("service", "10000/s".to_owned(), 8_000)]);
        let key = ("key", "5/min".to_owned(), 5);
        assert_eq!(show(&business, Some(("k1", rate("5/min"))), Manner::Singly), [key, whole.clone()]);
        assert_eq!(show(&phone, None, Manner::Singly), [("user", "100/min".to_owned(), 100), whole]);
    }

    #[test]
    fn an_empty_rate_of_the_whole_is_no_limit() {
        let options: Options = serde_json::from_str(r#"{"user": "1/s", "whole": "", "bulk_percent": 80}"#).unwrap();
        assert_eq!(options.whole, None);
        assert!(serde_json::from_str::<Options>(r#"{"user": "1/s", "whole": "much", "bulk_percent": 80}"#).is_err());
    }
}
