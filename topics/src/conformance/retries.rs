//! Retries on topics of their own, by the runner, on the engine itself and in real time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::retry::DELAYS;
use eshaar_model::{Clock, Timestamp};
use eshaar_schemas::{Codecs, Compatibility, Registry, RegistryError, SchemaId};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Subject, TOPIC, record_at, soon};
use crate::runner::{self, Deps, Options, Watchdog};
use crate::{LogPosition, Outcome, Received, Retries, Stage, StageError, Topic};

/// Times that the poisoned record is refused: it is applied after 7 s.
const REFUSED: u8 = 3;

/// Knows one id, and no schema.
struct Ids;

#[async_trait]
impl Registry for Ids {
    async fn register(&self, _: &str, _: &str) -> Result<SchemaId, RegistryError> {
        Ok(1)
    }

    async fn lookup(&self, _: &str, _: &str) -> Result<SchemaId, RegistryError> {
        Ok(1)
    }

    async fn schema(&self, id: SchemaId) -> Result<String, RegistryError> {
        Err(RegistryError::Unavailable { reason: format!("no schema {id}") })
    }

    async fn set_compatibility(&self, _: &str, _: Compatibility) -> Result<(), RegistryError> {
        Ok(())
    }
}

/// What outlives the stage: when each record was tried, and at which attempt; and what was applied, by key, in order.
#[derive(Default)]
struct World {
    tried: Mutex<BTreeMap<LogPosition, Vec<(Timestamp, u8)>>>,
    applied: Mutex<BTreeMap<Bytes, Vec<LogPosition>>>,
}

impl World {
    /// The records of a key in the order in which each was applied first.
    fn first_applied(&self, key: &str) -> Vec<LogPosition> {
        let mut first = Vec::new();
        for position in self.applied.lock().get(key.as_bytes()).into_iter().flatten() {
            if !first.contains(position) {
                first.push(*position);
            }
        }
        first
    }
}

/// Refuses a record as often as its value says, then applies it.
struct Refusing(Arc<World>);

#[async_trait]
impl Stage for Refusing {
    const NAME: &'static str = "refusing";
    const RETRIES: Retries = Retries::Ordered(Topic::RETRY_ROUTE);
    type Partition = ();

    fn inputs(&self) -> Vec<(Topic, u32)> {
        vec![(TOPIC, 1)]
    }

    async fn open(&self, _: u32, _: &[(Topic, u64)]) -> Result<(), StageError> {
        Ok(())
    }

    async fn handle(&self, (): &mut (), batch: &[Received]) -> Vec<Outcome> {
        let mut failed = BTreeSet::new();
        let mut outcomes = Vec::with_capacity(batch.len());
        for record in batch {
            if failed.contains(&record.key) {
                outcomes.push(Outcome::Retry { reason: "stands behind one that failed".to_owned() });
                continue;
            }
            let attempt = record.attempt.count();
            self.0.tried.lock().entry(record.position).or_default().push((Clock::system().now(), attempt));
            if attempt < record.value[0] {
                failed.insert(record.key.clone());
                outcomes.push(Outcome::Retry { reason: "refused".to_owned() });
            } else {
                self.0.applied.lock().entry(record.key.clone()).or_default().push(record.position);
                outcomes.push(Outcome::Done);
            }
        }
        outcomes
    }
}

async fn begin(subject: &impl Subject, world: &Arc<World>) -> JoinHandle<()> {
    let deps = Deps {
        log: subject.log(),
        codecs: Codecs::register(Arc::new(Ids), &[("dead-letters-value".to_owned(), "DeadLetter")]).await.unwrap(),
        clock: Clock::system(),
        watchdog: Watchdog::new(Duration::from_mins(1)),
        backlogs: Arc::new(()),
    };
    let stage = Arc::new(Refusing(Arc::clone(world)));
    tokio::spawn(runner::run(stage, deps, Options::default(), CancellationToken::new()))
}

async fn send(subject: &impl Subject, key: &str, refused: u8, count: usize) -> Vec<LogPosition> {
    let record = record_at(TOPIC, key, [refused], Clock::system().now().as_millis());
    soon(subject.log().append(vec![record; count])).await.unwrap()
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let mut rounds = 0;
    while !done() {
        rounds += 1;
        assert!(rounds < 1_200, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// R4.1, R4.5: whoever owns the partition when a record is due, and though the member that it failed with is gone.
pub async fn a_record_that_failed_is_tried_again_in_order_by_whoever_owns_it_then(subject: &mut impl Subject) {
    let world = Arc::new(World::default());
    let first = begin(subject, &world).await;
    let poisoned = send(subject, "poisoned", REFUSED, 1).await[0];
    let mut followers = send(subject, "poisoned", 0, 20).await;
    let others = send(subject, "other", 0, 20).await;
    until("others wait for it", || world.first_applied("other") == others).await;
    until("it was not tried again", || world.tried.lock().get(&poisoned).is_some_and(|tries| tries.len() >= 2)).await;
    // While it waits in the second of its retry topics, and those behind it in the first.
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    followers.extend(send(subject, "poisoned", 0, 20).await);
    let second = begin(subject, &world).await;
    let mut all = vec![poisoned];
    all.extend(followers);
    until("not everything was applied", || world.first_applied("poisoned").len() == all.len()).await;
    assert_eq!(world.first_applied("poisoned"), all);
    let tries = world.tried.lock()[&poisoned].clone();
    for pair in tries.windows(2) {
        let ((before, earlier), (now, attempt)) = (pair[0], pair[1]);
        assert!(attempt == earlier || attempt == earlier + 1, "{tries:?}");
        if attempt > earlier {
            let delay = DELAYS[usize::from(earlier)].as_millis() as i64;
            assert!(now.millis_since(before) >= delay, "early: {tries:?}");
        }
    }
    assert_eq!(tries.last().map(|(_, attempt)| *attempt), Some(REFUSED));
    let letters = soon(subject.log().bounds(Topic::DeadLetters, 0)).await.unwrap();
    assert_eq!(letters.end, 0);
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
}
