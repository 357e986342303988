//! Whether there is room for what is sent: within the rates of its sender and of everybody (R5.5), and in the queues behind
//! (R5.4). What is sent singly is refused where there is none; a bulk upload waits for it first, since it can be read
//! later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eshaar_auth::Identity;
use eshaar_presence::depths::Depths;
use eshaar_presence::limits::{Grant, Limit, Limiter, Limits, Manner, Sender};
use eshaar_service::{Problem, metrics as names};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use metrics::gauge;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::options::QueueOptions;

/// The limits that hold, with their windows (draft-ietf-httpapi-ratelimit-headers).
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What is left of them.
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// How long what is known of the queues is believed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// When to come back where a queue is full, in seconds: it is looked at each second, and must fall by a fifth.
const FULL_RETRY_AFTER_S: u64 = 2;

/// A queue that was full takes in again when it holds so many hundredths of its limit.
const OPEN_AGAIN_PERCENT: u64 = 80;

/// How often a bulk upload looks whether a full queue has room again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Lets messages in.
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
        options: &QueueOptions,
        patience: Duration,
    ) -> Self {
        Self { limiter, queues: Arc::new(Queues::new(depths, options)), patience }
    }

    /// Asks for one message, sent singly.
    pub(crate) async fn one(&self, identity: &Identity) -> Admitted {
        if let Some(refusal) = self.queues.refusal(Queue::Interactive) {
            return Admitted { refusal: Some(refusal), headers: HeaderMap::new() };
        }
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
        let key = identity.key_id.as_deref().zip(identity.rate);
        self.limiter.limits_of(Sender { principal: &identity.principal, key }, manner)
    }
}

/// Two queues, each with a limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    /// What people wait for.
    Interactive,
    /// What was sent in bulk.
    Bulk,
}

impl Queue {
    const ALL: [Self; 2] = [Self::Interactive, Self::Bulk];

    const fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
        }
    }
}

/// What waits in the queues, as the processors told it last. Where nobody tells, nothing is refused: an outage of presence
/// is no reason to take nothing in.
struct Queues {
    depths: Arc<dyn Depths>,
    limits: [u64; 2],
    full: [AtomicBool; 2],
    looked: Mutex<Looked>,
}

/// When the queues were looked at last, and whether somebody does so now.
#[derive(Default)]
struct Looked {
    at: Option<Instant>,
    now: bool,
}

impl Queues {
    fn new(depths: Arc<dyn Depths>, options: &QueueOptions) -> Self {
        let limits = [options.interactive.get(), options.bulk.get()];
        Self { depths, limits, full: Default::default(), looked: Mutex::default() }
    }

    /// Why a message is not taken in. Answers from what is known, and has it looked up when that is old: no request waits
    /// for it.
    fn refusal(self: &Arc<Self>, queue: Queue) -> Option<Problem> {
        let is_old = {
            let mut looked = self.looked.lock();
            let is_old = !looked.now && looked.at.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
            looked.now |= is_old;
            is_old
        };
        if is_old {
            let queues = Arc::clone(self);
            tokio::spawn(async move { queues.look().await });
        }
        let full = self.full[queue as usize].load(Ordering::Relaxed);
        full.then(|| queue_full(queue, self.limits[queue as usize]))
    }

    async fn look(&self) {
        let known = self.depths.depths().await;
        let mut depth = [0, 0];
        match known {
            Ok(known) => {
                for one in known {
                    depth[Queue::Interactive as usize] += one.interactive;
                    depth[Queue::Bulk as usize] += one.bulk;
                }
            }
            Err(error) => tracing::debug!(%error, "how much waits is not known; nothing is refused for it"),
        }
        for queue in Queue::ALL {
            self.heard(queue, depth[queue as usize]);
        }
        *self.looked.lock() = Looked { at: Some(Instant::now()), now: false };
    }

    fn heard(&self, queue: Queue, depth: u64) {
        let (limit, full) = (self.limits[queue as usize], &self.full[queue as usize]);
        let was = full.load(Ordering::Relaxed);
        let is = if was { depth > limit * OPEN_AGAIN_PERCENT / 100 } else { depth > limit };
        full.store(is, Ordering::Relaxed);
        gauge!(names::QUEUE_DEPTH, "queue" => queue.name()).set(depth as f64);
        gauge!(names::QUEUE_FULL, "queue" => queue.name()).set(f64::from(u8::from(is)));
        match (was, is) {
            (false, true) => {
                tracing::error!(queue = queue.name(), depth, limit, "too much waits; refusing new messages");
            }
            (true, false) => tracing::info!(queue = queue.name(), depth, limit, "taking new messages in again"),
            _ => {}
        }
    }
}

fn queue_full(queue: Queue, limit: u64) -> Problem {
    let detail = format!("more than {limit} {} messages wait to be delivered; send it again later", queue.name());
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "queue_full", detail).retry_after(FULL_RETRY_AFTER_S)
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
    let left = limits
        .iter()
        .zip(&grant.left)
        .map(|(limit, left)| format!(r#""{}";r={};t={}"#, limit.of.name(), left.remaining, seconds(left.more_in)));
    for (name, items) in [(RATELIMIT_POLICY, policies.collect::<Vec<_>>()), (RATELIMIT, left.collect())] {
        if let Ok(value) = HeaderValue::from_str(&items.join(", ")) {
            headers.insert(name, value);
        }
    }
    headers
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::num::NonZeroU64;

    use eshaar_model::{Clock, Timestamp};
    use eshaar_presence::depths::Depth;
    use eshaar_presence::local::LocalPresence;

    use super::*;

    fn depth(interactive: u64, bulk: u64) -> [Depth; 1] {
        [Depth { stage: "route".to_owned(), partition: 0, interactive, bulk }]
    }

    /// What the queues say after they have been looked at.
    async fn refused(queues: &Arc<Queues>, queue: Queue) -> bool {
        queues.look().await;
        queues.refusal(queue).is_some()
    }

    #[tokio::test]
    async fn a_full_queue_refuses_until_a_fifth_of_it_is_gone_and_the_other_one_does_not() {
        let depths = Arc::new(LocalPresence::new(Clock::manual(Timestamp::from_millis(0))));
        let limit = |most| NonZeroU64::new(most).unwrap();
        let options = QueueOptions { interactive: limit(100), bulk: limit(1_000) };
        let queues = Arc::new(Queues::new(Arc::clone(&depths) as _, &options));
        for (interactive, bulk, expected) in [
            (100, 1_000, (false, false)),
            (101, 900, (true, false)),
            (81, 1_001, (true, true)),
            (80, 801, (false, true)),
        ] {
            depths.publish(&depth(interactive, bulk)).await.unwrap();
            let found = (refused(&queues, Queue::Interactive).await, refused(&queues, Queue::Bulk).await);
            assert_eq!(found, expected, "{interactive} and {bulk}");
        }
    }

    #[tokio::test]
    async fn where_nobody_tells_how_much_waits_nothing_is_refused() {
        let clock = Clock::manual(Timestamp::from_millis(0));
        let depths = Arc::new(LocalPresence::new(clock.clone()));
        let limit = NonZeroU64::new(1).unwrap();
        let queues = Arc::new(Queues::new(Arc::clone(&depths) as _, &QueueOptions { interactive: limit, bulk: limit }));
        depths.publish(&depth(50, 50)).await.unwrap();
        assert!(refused(&queues, Queue::Interactive).await);
        clock.advance_millis(60_000);
        assert!(!refused(&queues, Queue::Interactive).await);
    }
}
