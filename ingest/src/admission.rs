//! The one admission of every operation: within the limits of its caller and of everybody (R5.5), and, for messages, in the
//! queues behind (R5.4). A single message is refused where there is no room; a bulk upload waits for it first, since it can
//! be read later; a broadcast is refused where its limit cannot hold it, and takes from the limit as it is sent.
//!
//! HTTP and WebSocket share it: [`operation`](Admission::operation) is called for every HTTP request by the
//! [`guard`](crate::guard), and for every frame that reads or writes by [`Live`](crate::Live).

use std::sync::Arc;
use std::time::Duration;

use eshaar_auth::Identity;
use eshaar_model::Rate;
use eshaar_presence::depths::Depths;
use eshaar_presence::limits::{Grant, Limit, Limiter, Limits, Manner, Sender};
use eshaar_service::Problem;
use eshaar_topics::Log;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::time::Instant;

use crate::costs::Cost;
use crate::options::QueueOptions;
use crate::problems;
use crate::queues::{Queue, Queues};

/// The limits that hold, with their windows (draft-ietf-httpapi-ratelimit-headers).
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What is left of them.
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// How often a bulk upload looks whether a full queue has room again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The longest that a broadcast may take to be sent, in seconds: 30 days. Its list of recipients stays for as long as it is
/// sent, and its record for 90 days.
const BROADCAST_S: u64 = 30 * 24 * 3600;

/// Lets operations in.
pub(crate) struct Admission {
    limiter: Arc<Limiter>,
    queues: Arc<Queues>,
    /// How long a bulk upload waits for room.
    patience: Duration,
}

/// What became of a message that asked to be let in.
pub(crate) struct Admitted {
    /// Why it was not.
    pub(crate) refusal: Option<Problem>,
    /// The limits of the sender, and what is left of them: headers of the answer, whatever that is.
    pub(crate) headers: HeaderMap,
}

impl Admission {
    pub(crate) fn new(
        limiter: Arc<Limiter>,
        depths: Arc<dyn Depths>,
        log: Arc<dyn Log>,
        options: &QueueOptions,
        patience: Duration,
    ) -> Self {
        Self { limiter, queues: Arc::new(Queues::new(depths, log, options)), patience }
    }

    /// Takes what an operation costs, but for the messages of one, which its handler takes.
    pub(crate) async fn operation(&self, identity: &Identity, cost: Cost) -> Result<(), Problem> {
        let (limits, grant) = match cost {
            Cost::Messages => return Ok(()),
            Cost::Read => self.limiter.read(caller(identity)),
            Cost::Request => {
                let limits = self.limiter.requests_of(caller(identity));
                let grant = self.limiter.take(&limits, 1).await;
                (limits, grant)
            }
        };
        if grant.granted == 0 { Err(rate_limited(&limits, &grant)) } else { Ok(()) }
    }

    /// Asks for one message, sent singly.
    pub(crate) async fn one(&self, identity: &Identity) -> Admitted {
        if let Some(refusal) = self.queues.refusal(Queue::Interactive) {
            return Admitted { refusal: Some(refusal), headers: HeaderMap::new() };
        }
        self.one_unqueued(identity).await
    }

    /// Asks for a conversation that is started: as for a message, but that nothing waits in a queue.
    pub(crate) async fn start(&self, identity: &Identity) -> Result<(), Problem> {
        self.one_unqueued(identity).await.refusal.map_or(Ok(()), Err)
    }

    /// Asks for a broadcast to `total` recipients, at most `rate` in a second. The first message is taken from the limit now,
    /// the others as they are sent; the broadcast is refused if that takes longer than [`BROADCAST_S`].
    pub(crate) async fn broadcast(&self, identity: &Identity, total: u64, rate: Option<u64>) -> Result<(), Problem> {
        let most = |rate: Rate| u64::from(rate.count()) * BROADCAST_S / rate.window().as_secs();
        if let Some(limit) = identity.key_id.as_ref().and_then(|_| self.limiter.rate_of_key(identity.rate))
            && total > most(limit)
        {
            return Err(problems::broadcast_too_large(&format!("the limit `key` of {limit}"), most(limit), total));
        }
        if let Some(rate) = rate
            && total > rate.saturating_mul(BROADCAST_S)
        {
            return Err(problems::broadcast_too_large(&format!("its `rate` of {rate}/s"), rate * BROADCAST_S, total));
        }
        self.start(identity).await
    }

    async fn one_unqueued(&self, identity: &Identity) -> Admitted {
        let limits = self.limits(identity, Manner::Singly);
        let grant = self.limiter.take(&limits, 1).await;
        let refusal = (grant.granted == 0).then(|| rate_limited(&limits, &grant));
        Admitted { refusal, headers: headers(&limits, &grant) }
    }

    /// What holds for a bulk upload that begins: headers of its answer.
    pub(crate) async fn bulk_headers(&self, identity: &Identity) -> HeaderMap {
        let limits = self.limits(identity, Manner::InBulk);
        let grant = self.limiter.take(&limits, 0).await;
        headers(&limits, &grant)
    }

    /// The limits of a sender of bulk uploads.
    pub(crate) fn bulk_limits(&self, identity: &Identity) -> Limits {
        self.limits(identity, Manner::InBulk)
    }

    /// Asks for some of `wanted` lines, at least one; waits for room as long as an upload may.
    pub(crate) async fn some(&self, limits: &Limits, wanted: usize) -> Result<usize, Problem> {
        let deadline = Instant::now() + self.patience;
        loop {
            let (refusal, wait) = if let Some(refusal) = self.queues.refusal(Queue::Bulk) {
                (refusal, LOOK_AGAIN)
            } else {
                let grant = self.limiter.take(limits, u32::try_from(wanted).unwrap_or(u32::MAX)).await;
                if grant.granted > 0 {
                    return Ok(grant.granted as usize);
                }
                (rate_limited(limits, &grant), grant.retry_after)
            };
            if Instant::now() + wait > deadline {
                return Err(refusal);
            }
            tokio::time::sleep(wait).await;
        }
    }

    fn limits(&self, identity: &Identity, manner: Manner) -> Limits {
        self.limiter.limits_of(caller(identity), manner)
    }
}

/// The caller, as far as limits tell callers apart.
fn caller(identity: &Identity) -> Sender<'_> {
    let key = identity.key_id.as_deref().map(|id| (id, identity.rate));
    Sender { principal: &identity.principal, key }
}

/// Whole seconds, rounded up: who comes back then is let in.
const fn seconds(time: Duration) -> u64 {
    time.as_millis().div_ceil(1000) as u64
}

fn rate_limited(limits: &Limits, grant: &Grant) -> Problem {
    let tightest = limits.iter().zip(&grant.left).filter(|(_, left)| left.remaining == 0);
    let tightest = tightest.max_by_key(|(_, left)| left.more_in).map(|(limit, _)| limit);
    let detail = tightest.map_or_else(
        || "no more may be sent now".to_owned(),
        |Limit { of, rate, .. }| format!("the limit `{}` of {rate} is reached; nothing was accepted", of.name()),
    );
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail).retry_after(seconds(grant.retry_after).max(1))
}

fn headers(limits: &Limits, grant: &Grant) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if limits.is_empty() {
        return headers;
    }
    let policies = limits.iter().map(|limit| {
        let (name, window_s) = (limit.of.name(), limit.rate.window().as_secs());
        format!(r#""{name}";q={};w={window_s}"#, limit.rate.count())
    });
    let left = limits.iter().zip(&grant.left).map(|(limit, left)| {
        // Of a limit that nothing was taken from, all of it is for a whole window: within 0 s nothing can be had.
        let time = if left.more_in.is_zero() { limit.rate.window() } else { left.more_in };
        format!(r#""{}";r={};t={}"#, limit.of.name(), left.remaining, seconds(time))
    });
    for (name, items) in [(RATELIMIT_POLICY, policies.collect::<Vec<_>>()), (RATELIMIT, left.collect())] {
        if let Ok(value) = HeaderValue::from_str(&items.join(", ")) {
            headers.insert(name, value);
        }
    }
    headers
}
