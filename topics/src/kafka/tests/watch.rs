//! Clients of a cluster that for a moment said there was no broker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::producer::{DefaultProducerContext, ThreadedProducer};

use super::super::names::Names;
use super::super::watch::{Watch, Watchable};
use super::super::{Client, Hooks, Options};
use super::fenced::Broker;

const TOPIC: &str = "x.messages.accepted";
/// Longer than an answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time enough for a client to ask again by itself, if it did.
const MOMENT: Duration = Duration::from_secs(3);

/// A producer, a consumer, and who watches over both.
fn watched(broker: &Broker) -> (Watch, [Arc<dyn Watchable>; 2]) {
    let options = Options { bootstrap_servers: broker.address(), ..Options::default() };
    let config = options.reader(&Names::new("x.")).unwrap();
    let watch = Watch::new(config.clone(), TOPIC).unwrap();
    let consumer: Client = config.create_with_context(Hooks(None)).unwrap();
    let producer: ThreadedProducer<DefaultProducerContext> = options.producer().unwrap().create().unwrap();
    let (consumer, producer) = (Arc::new(consumer), Arc::new(producer));
    watch.add(&consumer);
    watch.add(&producer);
    (watch, [consumer, producer])
}

fn answered_at_last(client: &dyn Watchable) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !client.is_answered(TOPIC, MOMENT) {
        if Instant::now() > deadline {
            return false;
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_let_go_of_every_broker_are_told_of_them_again() {
    let broker = Broker::start().await;
    let (watch, clients) = watched(&broker);
    tokio::task::spawn_blocking(move || {
        assert!(clients.iter().all(|client| answered_at_last(&**client)));
        broker.fence(true);
        assert!(!clients.iter().any(|client| client.is_answered(TOPIC, MOMENT)));
        // While no client at all is answered, none is told anything.
        watch.look();
        broker.fence(false);
        // Where this holds no more, librdkafka comes back by itself, and the watch can go.
        assert!(!clients.iter().any(|client| client.is_answered(TOPIC, MOMENT)), "they came back by themselves");
        watch.look();
        assert!(clients.iter().all(|client| answered_at_last(&**client)));
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_dropped_is_watched_no_more_and_none_is_kept_alive() {
    let broker = Broker::start().await;
    let (watch, clients) = watched(&broker);
    tokio::task::spawn_blocking(move || {
        assert!(clients.iter().all(|client| answered_at_last(&**client)));
        watch.look();
        let left = clients.map(|client| Arc::downgrade(&client));
        assert!(left.iter().all(|client| client.strong_count() == 0));
    })
    .await
    .unwrap();
}
