//! Watches over clients that have lost all their brokers, and gives them back (docs/adr/0017).
//!
//! A broker that comes back is fenced for a moment, and answers that there is no broker at all. librdkafka then lets go of
//! those it knew and never asks again (confluentinc/librdkafka#5301). Such a client is not told from one whose cluster is
//! away by what it says itself: it is one that is not answered while a client made a moment ago is.

use std::ffi::{CStr, CString};
use std::sync::{Arc, Weak};
use std::time::Duration;

use eshaar_librdkafka::add_brokers;
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::client::{self, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{Producer as _, ProducerContext, ThreadedProducer};
use tokio_util::sync::CancellationToken;

use super::engine;
use super::hooks::{Client, Hooks};
use crate::LogError;

/// How often every client is asked for an answer.
const EVERY: Duration = Duration::from_secs(10);
/// How long an answer may take before it counts as none.
const ANSWER: Duration = Duration::from_secs(2);
/// The same for a client that has yet to connect.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// The clients of a log, for as long as somebody else has them.
#[derive(Clone)]
pub(super) struct Watch(Arc<Watched>);

struct Watched {
    clients: Mutex<Vec<Weak<dyn Watchable>>>,
    /// How a client is made to compare with.
    config: ClientConfig,
    brokers: CString,
    /// The topic that is asked about.
    topic: String,
}

/// A client of any kind.
pub(super) trait Watchable: Send + Sync {
    /// Whether the cluster answers it in time, and names a broker. Blocks.
    fn is_answered(&self, topic: &str, within: Duration) -> bool;

    /// Tells it of brokers, and says how many it took.
    fn give(&self, brokers: &CStr) -> usize;
}

impl Watchable for Client {
    fn is_answered(&self, topic: &str, within: Duration) -> bool {
        is_answered(self.client(), topic, within)
    }

    fn give(&self, brokers: &CStr) -> usize {
        add_brokers(self.client(), brokers)
    }
}

impl<C: ProducerContext + 'static> Watchable for ThreadedProducer<C> {
    fn is_answered(&self, topic: &str, within: Duration) -> bool {
        is_answered(self.client(), topic, within)
    }

    fn give(&self, brokers: &CStr) -> usize {
        add_brokers(self.client(), brokers)
    }
}

impl Watch {
    /// `config` is a consumer's; `topic` is one that the cluster has.
    pub fn new(config: ClientConfig, topic: &str) -> Result<Self, LogError> {
        let brokers = config.get("bootstrap.servers").unwrap_or_default();
        let brokers = CString::new(brokers)
            .map_err(|_| LogError::Option("kafka.bootstrap_servers holds a zero byte".to_owned()))?;
        let clients = Mutex::default();
        Ok(Self(Arc::new(Watched { clients, config, brokers, topic: topic.to_owned() })))
    }

    /// Watches over a client until it is dropped.
    pub fn add<C: Watchable + 'static>(&self, client: &Arc<C>) {
        let client: Weak<C> = Arc::downgrade(client);
        self.0.clients.lock().push(client);
    }

    /// Looks after all clients until the log is closed.
    pub async fn run(self, closed: CancellationToken) {
        while closed.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            let watched = Arc::clone(&self.0);
            let ends = closed.clone();
            if tokio::task::spawn_blocking(move || watched.look(&ends)).await.is_err() {
                tracing::error!("looking after Kafka's clients ended with a panic");
            }
        }
    }

    /// Looks after all clients once. Blocks.
    #[cfg(test)]
    pub fn look(&self) {
        self.0.look(&CancellationToken::new());
    }
}

impl Watched {
    fn look(&self, closed: &CancellationToken) {
        let mut brokers_are_there = false;
        for client in self.live() {
            if closed.is_cancelled() {
                return;
            }
            if client.is_answered(&self.topic, ANSWER) {
                continue;
            }
            // While they are away there is nothing to be given, and each further client would only be waited for.
            brokers_are_there = brokers_are_there || self.a_new_client_is_answered();
            if !brokers_are_there {
                return;
            }
            let brokers = client.give(&self.brokers);
            tracing::warn!(brokers, "a client of Kafka had let go of every broker; it is told of them again");
        }
    }

    fn live(&self) -> Vec<Arc<dyn Watchable>> {
        let mut clients = self.clients.lock();
        clients.retain(|client| client.strong_count() > 0);
        clients.iter().filter_map(Weak::upgrade).collect()
    }

    fn a_new_client_is_answered(&self) -> bool {
        let made: Result<BaseConsumer<Hooks>, _> = self.config.create_with_context(Hooks(None));
        match made.map_err(engine("make a consumer")) {
            Ok(client) => client.is_answered(&self.topic, FIRST_ANSWER),
            Err(error) => {
                tracing::error!(%error, "no client to compare with");
                false
            }
        }
    }
}

fn is_answered<C: ClientContext>(client: &client::Client<C>, topic: &str, within: Duration) -> bool {
    client.fetch_metadata(Some(topic), within).is_ok_and(|answer| !answer.brokers().is_empty())
}
