//! The engines of a process, behind their ports: `embedded`, or `distributed`. Which ones is one key of the configuration;
//! nothing outside this folder asks.

mod distributed;
mod embedded;

use std::sync::Arc;

use eshaar_auth::Authenticator;
use eshaar_auth::signing::SigningKeys;
use eshaar_model::{Clock, Epoch, Lane};
use eshaar_presence::Presence;
use eshaar_presence::cache::Cache;
use eshaar_presence::depths::Depths;
use eshaar_presence::limits::Limiter;
use eshaar_schemas::Codecs;
use eshaar_schemas::registry::embedded::EmbeddedRegistry;
use eshaar_service::Breaker;
use eshaar_service::health::Check;
use eshaar_store::Store;
use eshaar_topics::{Log, Topic};
use serde::Deserialize;
use tracing::warn;

use crate::config::Config;

pub use distributed::{apply_store, apply_topics, findings, reading_codecs, resolve};

/// Which engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// In this process, on files of the data directory.
    Embedded,
    /// Kafka, a CQL database, Redis and a schema registry.
    Distributed,
}

/// The engines of a process.
pub struct Engines {
    /// Where records go.
    pub log: Arc<dyn Log>,
    /// The history.
    pub store: Store,
    /// The gateways that phones are connected to.
    pub presence: Arc<dyn Presence>,
    /// How much each may send.
    pub limiter: Arc<Limiter>,
    /// How much waits.
    pub depths: Arc<dyn Depths>,
    /// Answers of the store that need not be read again.
    pub cache: Arc<dyn Cache>,
    /// Circuit breakers, which leave dependencies alone after failures.
    pub breakers: Vec<Arc<Breaker>>,
    /// Records to bytes and back.
    pub codecs: Codecs,
    /// Verification of callers.
    pub auth: Authenticator,
    /// Keys that sign webhooks.
    pub signing: SigningKeys,
    /// The present.
    pub clock: Clock,
    /// How the schema registry is.
    pub registry_check: Arc<dyn Check>,
    /// The registry that is to be served, where it is ours.
    pub own_registry: Option<EmbeddedRegistry>,
}

impl Engines {
    /// Opens every engine that `config` names.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        match config.engines {
            Kind::Embedded => embedded::open(config).await,
            Kind::Distributed => distributed::open(config).await,
        }
    }

    /// Closes the engines, the log last: what it holds is what the others are made again from.
    pub async fn close(self) {
        if let Err(error) = self.store.engine.close().await {
            warn!(%error, "the history store was not closed; it is made up for from the log at the next start");
        }
        self.log.close().await;
    }
}

/// The history store alone.
pub async fn open_store(config: &Config, clock: Clock) -> anyhow::Result<Store> {
    match config.engines {
        Kind::Embedded => Ok(eshaar_store::sqlite::open(config.store.clone(), clock)?),
        Kind::Distributed => Ok(eshaar_store::scylla::open(config.scylla.clone(), clock).await?),
    }
}

/// How many partitions a topic has.
pub fn partitions(config: &Config, topic: Topic) -> u32 {
    match config.engines {
        Kind::Embedded => topic.spec().partitions,
        Kind::Distributed => config.kafka.partitions_of(topic),
    }
}

/// The registry's subject of each topic that has one, with the record that is on it (TopicNameStrategy).
pub fn subjects(prefix: &str) -> Vec<(String, &'static str)> {
    let subject = |topic: Topic| topic.spec().contract().map(|contract| (format!("{prefix}{topic}-value"), contract));
    Topic::ALL.into_iter().filter_map(subject).collect()
}

/// The epoch that the log ought to be in, where it is in an earlier one: it ends below what the store has seen of it, so it
/// was restored, replaced or cut, and its offsets mean something else from here on (design §5).
async fn epoch_due(log: &dyn Log, store: &Store) -> anyhow::Result<Option<Epoch>> {
    let seen = store.streams.newest_epoch().await?.unwrap_or(log.epoch());
    let mut behind = seen > log.epoch();
    for lane in Lane::ALL {
        let topic = Topic::of_lane(lane);
        for partition in 0..log.partitions(topic) {
            let head = store.streams.head(log.epoch(), lane, partition).await?;
            let end = log.bounds(topic, partition).await?.end;
            behind |= head.is_some_and(|head| head >= end);
        }
    }
    Ok(behind.then(|| Epoch(seen.max(log.epoch()).0 + 1)))
}

/// A check by a port's own ping.
pub fn check<F, Fut, E>(ping: F) -> Box<dyn Check>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send + 'static,
    E: std::fmt::Display + 'static,
{
    Box::new(move || {
        let answer = ping();
        async move { answer.await.map_err(|error| error.to_string()) }
    })
}
