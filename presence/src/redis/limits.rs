//! Limits in Redis, counted for all processes: one script for each round trip, however many ask.
//!
//! | key | what | lapses |
//! |---|---|---|
//! | `<prefix>{limit}:<name>:<id>:<slot length>` | hash: slot → how many | with its last slot's window |
//!
//! All of them are on one node of a cluster (`{limit}`), so that one script can charge all limits of a caller, or none. Who
//! asks while a script is under way goes with the next: at 10,000 messages a second that is a round trip for dozens of them,
//! and nobody waits for company.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use eshaar_service::workers;
use redis::{Cmd, Pipeline, Value};
use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot};

use super::link::{Link, engine};
use super::{RedisPresence, unexpected};
use crate::PresenceError;
use crate::limits::{Counted, Counters, Grant, Left, Limit, Limits};

const ACTION: &str = "count";

/// Callers that may wait for the next script; one more is answered that Redis cannot be asked.
const WAITING: usize = 8_192;

/// Most callers that one script answers: Redis does nothing else meanwhile, for some 5 µs each.
const TOGETHER: usize = 256;

/// A caller, and where the answer goes.
pub(super) struct Ask {
    limits: Limits,
    wanted: u32,
    answer: oneshot::Sender<Result<Grant, Arc<str>>>,
}

/// Where callers wait; and the task that answers them, which ends with the last sender.
pub(super) fn start(link: Arc<Link>, shift: Arc<std::sync::atomic::AtomicI64>) -> mpsc::Sender<Ask> {
    let (asks, waiting) = mpsc::channel(WAITING);
    tokio::spawn(workers::guarded("redis-limits", answer(link, shift, waiting)));
    asks
}

async fn answer(link: Arc<Link>, shift: Arc<std::sync::atomic::AtomicI64>, mut waiting: mpsc::Receiver<Ask>) {
    let mut asks = Vec::with_capacity(TOGETHER);
    while waiting.recv_many(&mut asks, TOGETHER).await > 0 {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(command(&link, shift.load(std::sync::atomic::Ordering::Relaxed), &asks));
        let answers = link.run(ACTION, &pipeline).await;
        let grants = answers.and_then(|mut answers| {
            answers.pop().and_then(|answer| grants(&answer, &asks)).ok_or_else(|| unexpected(ACTION))
        });
        match grants {
            Ok(grants) => asks.drain(..).zip(grants).for_each(|(ask, grant)| {
                // Whoever gave up waiting needs no answer.
                let _ = ask.answer.send(Ok(grant));
            }),
            Err(error) => {
                let reason: Arc<str> = match error {
                    PresenceError::Engine { reason, .. } => reason.into(),
                    other @ PresenceError::NoSlot { .. } => other.to_string().into(),
                };
                asks.drain(..).for_each(|ask| {
                    let _ = ask.answer.send(Err(Arc::clone(&reason)));
                });
            }
        }
    }
}

fn key(prefix: &str, limit: &Limit) -> String {
    let (name, slot_ms) = (limit.of.name(), limit.slot_ms());
    match &limit.of {
        Counted::Whole => format!("{prefix}{{limit}}:{name}::{slot_ms}"),
        Counted::Key(id) => format!("{prefix}{{limit}}:{name}:{id}:{slot_ms}"),
        Counted::User(phone) => format!("{prefix}{{limit}}:{name}:{phone}:{slot_ms}"),
        Counted::Requests(of) | Counted::Reads(of) => format!("{prefix}{{limit}}:{name}:{of}:{slot_ms}"),
    }
}

/// The script, for all of `asks`: each with what it wants and its limits, by the number of their key.
fn command(link: &Link, shift: i64, asks: &[Ask]) -> Cmd {
    let mut keys: Vec<String> = Vec::with_capacity(asks.len() + 1);
    let mut places = ahash::AHashMap::with_capacity(asks.len() + 1);
    let mut arguments: Vec<i64> = Vec::with_capacity(asks.len() * 8);
    for ask in asks {
        arguments.extend([i64::from(ask.wanted), ask.limits.len() as i64]);
        for limit in &ask.limits {
            let place = *places.entry((limit.of.clone(), limit.slot_ms())).or_insert_with(|| {
                keys.push(key(link.prefix(), limit));
                keys.len() as i64
            });
            arguments.extend([place, i64::from(limit.most()), limit.slot_ms()]);
        }
    }
    let mut command = link.scripts().take.call_many(&keys, shift);
    for argument in arguments {
        command.arg(argument);
    }
    command
}

/// What the script answers: for each ask what is granted and when there is more, then what is left of each limit.
fn grants(answer: &Value, asks: &[Ask]) -> Option<Vec<Grant>> {
    let Value::Array(numbers) = answer else { return None };
    let mut numbers = numbers.iter().map(|number| match number {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    });
    let mut next = || numbers.next().flatten();
    let grant = |ask: &Ask| {
        let granted = next()? as u32;
        let retry_after = Duration::from_millis(next()?);
        let mut left = SmallVec::new();
        for _ in &ask.limits {
            left.push(Left { remaining: next()? as u32, more_in: Duration::from_millis(next()?) });
        }
        Some(Grant { granted, retry_after, left })
    };
    asks.iter().map(grant).collect()
}

#[async_trait]
impl Counters for RedisPresence {
    async fn take(&self, limits: &Limits, wanted: u32) -> Result<Grant, PresenceError> {
        // Without a connection nobody waits for the answer that there is none.
        self.link.reachable(ACTION)?;
        let (answer, answered) = oneshot::channel();
        let ask = Ask { limits: limits.clone(), wanted, answer };
        if self.asks.try_send(ask).is_err() {
            return Err(engine(ACTION, format!("{WAITING} callers wait already, which are the most")));
        }
        match answered.await {
            Ok(grant) => grant.map_err(|reason| engine(ACTION, &*reason)),
            Err(_) => Err(engine(ACTION, "it is being closed")),
        }
    }
}
