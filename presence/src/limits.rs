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
use eshaar_model::{Clock, Per, Phone, Principal, Rate};
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
    /// Other writes of a mobile user: reads, receipts, changes of conversations.
    pub user_requests: Rate,
    /// Look-ups of a mobile user, counted by each process for itself.
    pub user_reads: Rate,
    /// Messages a second of an API key that has no rate of its own. 0: no limit.
    pub key_per_s: u32,
    /// Other writes a second of an API key: cancellations, reads, conversations, audiences, webhooks. 0: no limit.
    pub key_requests_per_s: u32,
    /// Look-ups a second of an API key, counted by each process for itself. 0: no limit.
    pub key_reads_per_s: u32,
    /// Messages of everybody together. `None` (an empty text): no limit.
    #[serde(deserialize_with = "rate_or_none")]
    pub whole: Option<Rate>,
    /// Of those, how many in a hundred may be sent in bulk, 1 to 100: the rest is kept for who sends singly.
    pub bulk_percent: u32,
}

impl Default for Options {
    fn default() -> Self {
        use eshaar_model::Per::{Minute, Second};
        // None is zero.
        let rate = |count, per| Rate::new(count, per).unwrap_or_else(|| unreachable!());
        Self {
            user: rate(100, Minute),
            user_requests: rate(1_200, Minute),
            user_reads: rate(1_200, Minute),
            key_per_s: 1_000,
            key_requests_per_s: 1_000,
            key_reads_per_s: 1_000,
            whole: Rate::new(10_000, Second),
            bulk_percent: 80,
        }
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
    /// Writes other than messages of a caller: of an API key by its public id, or of a phone.
    Requests(Box<str>),
    /// Look-ups of a caller, likewise.
    Reads(Box<str>),
}

impl Counted {
    /// The limit's name: in `RateLimit` headers and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Whole => "service",
            Self::Key(_) => "key",
            Self::User(_) => "user",
            Self::Requests(_) => "requests",
            Self::Reads(_) => "reads",
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

impl Grant {
    /// All that is wanted, where there is no limit.
    fn all(wanted: u32) -> Self {
        Self { granted: wanted, retry_after: Duration::ZERO, left: SmallVec::new() }
    }
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
    /// The public id of its API key, and the rate that the key has where it has one of its own.
    pub key: Option<(&'a str, Option<Rate>)>,
}

/// What there is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// One by one.
    Singly,
    /// Many in a request.
    InBulk,
    /// As part of a broadcast: leaves a share of the key's limit to what is sent otherwise with the key.
    Broadcast,
}

/// Limits senders, across processes for as long as the counters that they share answer. While those do not, this process
/// counts alone, each limit whole: then as many times the rate get through as there are processes, and nobody is refused for
/// an outage (R6.3). It goes on counting what it let through beside them, so that it does not begin from nothing.
pub struct Limiter {
    options: Options,
    shared: Option<Arc<dyn Counters>>,
    alone: LocalLimits,
    /// Look-ups: a round trip to count each would cost more than most of them.
    reads: LocalLimits,
    is_alone: AtomicBool,
}

impl Limiter {
    /// Limits by counters that other processes share.
    pub fn shared(options: Options, counters: Arc<dyn Counters>, clock: Clock) -> Self {
        gauge!(LIMITS_SHARED).set(1.0);
        Self { shared: Some(counters), ..Self::local(options, clock) }
    }

    /// Limits what this process lets through.
    pub fn local(options: Options, clock: Clock) -> Self {
        let (alone, reads) = (LocalLimits::new(clock.clone()), LocalLimits::new(clock));
        Self { options, shared: None, alone, reads, is_alone: AtomicBool::new(false) }
    }

    /// The limits that hold for messages of a sender.
    pub fn limits_of(&self, sender: Sender<'_>, manner: Manner) -> Limits {
        let mut limits = Limits::new();
        let percent = self.options.bulk_percent.clamp(1, 100);
        let kept = |rate: Rate| (u64::from(rate.count()) * u64::from(100 - percent) / 100) as u32;
        match (sender.principal, sender.key) {
            (_, Some((id, own))) => {
                if let Some(rate) = self.rate_of_key(own) {
                    let kept = if manner == Manner::Broadcast { kept(rate) } else { 0 };
                    limits.push(Limit { of: Counted::Key(id.to_owned()), rate, kept });
                }
            }
            (Principal::Phone(phone), None) => {
                limits.push(Limit { of: Counted::User(*phone), rate: self.options.user, kept: 0 });
            }
            (Principal::Business(_), None) => {}
        }
        if let Some(rate) = self.options.whole {
            let kept = if manner == Manner::Singly { 0 } else { kept(rate) };
            limits.push(Limit { of: Counted::Whole, rate, kept });
        }
        limits
    }

    /// The rate of messages that holds for an API key: its own, or the one of all keys.
    pub fn rate_of_key(&self, own: Option<Rate>) -> Option<Rate> {
        own.or_else(|| Rate::new(self.options.key_per_s, Per::Second))
    }

    /// The limit on a caller's writes other than messages.
    pub fn requests_of(&self, caller: Sender<'_>) -> Limits {
        let Options { user_requests, key_requests_per_s, .. } = self.options;
        of_caller(caller, user_requests, key_requests_per_s, Counted::Requests)
    }

    /// Takes one look-up of a caller, as counted by this process alone.
    pub fn read(&self, caller: Sender<'_>) -> (Limits, Grant) {
        let Options { user_reads, key_reads_per_s, .. } = self.options;
        let limits = of_caller(caller, user_reads, key_reads_per_s, Counted::Reads);
        let grant = if limits.is_empty() { Grant::all(1) } else { self.reads.take_now(&limits, 1) };
        note_refused(&limits, &grant, 1);
        (limits, grant)
    }

    /// Takes as many of `wanted` as may be sent.
    pub async fn take(&self, limits: &Limits, wanted: u32) -> Grant {
        if limits.is_empty() {
            return Grant::all(wanted);
        }
        let grant = self.count(limits, wanted).await;
        note_refused(limits, &grant, wanted);
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

fn of_caller(caller: Sender<'_>, user: Rate, key_per_s: u32, of: impl Fn(Box<str>) -> Counted) -> Limits {
    let limit = match (caller.principal, caller.key) {
        (_, Some((id, _))) => Rate::new(key_per_s, Per::Second).map(|rate| (of(id.into()), rate)),
        (Principal::Phone(phone), None) => Some((of(phone.to_string().into()), user)),
        (Principal::Business(_), None) => None,
    };
    limit.map(|(of, rate)| Limit { of, rate, kept: 0 }).into_iter().collect()
}

fn note_refused(limits: &Limits, grant: &Grant, wanted: u32) {
    if grant.granted < wanted {
        let tightest = limits.iter().zip(&grant.left).min_by_key(|(_, left)| left.remaining);
        let name = tightest.map_or("service", |(limit, _)| limit.of.name());
        counter!(LIMITED, "limit" => name).increment(u64::from(wanted - grant.granted));
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
        let options = Options { user: rate("10/min"), whole: None, ..Options::default() };
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
        assert_eq!(show(&business, Some(("k1", Some(rate("5/min")))), Manner::Singly), [key, whole.clone()]);
        let of_all_keys = ("key", "1000/s".to_owned(), 1_000);
        assert_eq!(show(&business, Some(("k1", None)), Manner::Singly), [of_all_keys, whole.clone()]);
        let bulk = ("service", "10000/s".to_owned(), 8_000);
        let broadcast = ("key", "10/min".to_owned(), 8);
        assert_eq!(show(&business, Some(("k1", Some(rate("10/min")))), Manner::Broadcast), [broadcast, bulk]);
        assert_eq!(show(&phone, None, Manner::Singly), [("user", "100/min".to_owned(), 100), whole]);
    }

    #[tokio::test]
    async fn other_writes_and_look_ups_have_limits_of_their_own() {
        let options = Options { key_per_s: 1, key_requests_per_s: 2, key_reads_per_s: 3, ..Options::default() };
        let limiter = Limiter::local(options, Clock::manual(Timestamp::from_millis(1_760_000_000_000)));
        let business: Principal = "acme".parse().unwrap();
        let caller = Sender { principal: &business, key: Some(("k1", None)) };
        let messages = limiter.limits_of(caller, Manner::Singly);
        assert_eq!(limiter.take(&messages, 9).await.granted, 1);
        let requests = limiter.requests_of(caller);
        assert_eq!(requests[0].of.name(), "requests");
        assert_eq!(limiter.take(&requests, 9).await.granted, 2);
        let reads = (0..9).filter(|_| limiter.read(caller).1.granted == 1).count();
        assert_eq!(reads, 3);
        let other = Sender { key: Some(("k2", None)), ..caller };
        assert_eq!(limiter.take(&limiter.requests_of(other), 1).await.granted, 1);
        assert_eq!(limiter.read(other).1.granted, 1);
    }

    #[test]
    fn an_empty_rate_of_the_whole_and_a_zero_of_a_key_are_no_limit() {
        let parse = |whole: &str, key: u32| {
            serde_json::from_value::<Options>(serde_json::json!({
                "user": "1/s", "user_requests": "1/s", "user_reads": "1/s", "key_per_s": key, "key_requests_per_s": key,
                "key_reads_per_s": key, "whole": whole, "bulk_percent": 80,
            }))
        };
        let options = parse("", 0).unwrap();
        assert_eq!(options.whole, None);
        let limiter = Limiter::local(options, Clock::system());
        let business: Principal = "acme".parse().unwrap();
        let caller = Sender { principal: &business, key: Some(("k1", None)) };
        assert!(limiter.limits_of(caller, Manner::Singly).is_empty() && limiter.requests_of(caller).is_empty());
        assert!(limiter.read(caller).0.is_empty());
        assert!(parse("much", 1).is_err());
    }
}
