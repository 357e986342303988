//! Route while presence does not answer.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use eshaar_presence::{Announced, Connection, Node, PresenceError, Slot};
use eshaar_schemas::Message;
use eshaar_topics::LogPosition;
use tokio::sync::broadcast;

use super::*;
use crate::testing::{Engines, message, received};

/// Presence that fails while it is down.
struct Impaired {
    inner: Arc<dyn Presence>,
    down: AtomicBool,
}

impl Impaired {
    fn ask(&self) -> Result<&dyn Presence, PresenceError> {
        if self.down.load(Ordering::Relaxed) {
            return Err(PresenceError::Engine { action: "answer", reason: "told to fail".to_owned() });
        }
        Ok(&*self.inner)
    }
}

#[async_trait]
impl Presence for Impaired {
    async fn lease_slot(&self, life: u64, wanted: Option<Slot>, slots: u32, at: &str) -> Result<Slot, PresenceError> {
        self.ask()?.lease_slot(life, wanted, slots, at).await
    }

    async fn announce(&self, node: &Node) -> Result<Announced, PresenceError> {
        self.ask()?.announce(node).await
    }

    async fn withdraw(&self, node: &Node) -> Result<(), PresenceError> {
        self.ask()?.withdraw(node).await
    }

    async fn nodes(&self) -> Result<Vec<Node>, PresenceError> {
        self.ask()?.nodes().await
    }

    async fn connect(&self, principal: &Principal, connection: Connection) -> Result<(), PresenceError> {
        self.ask()?.connect(principal, connection).await
    }

    async fn refresh(&self, sessions: &[(Principal, Connection)]) -> Result<Vec<bool>, PresenceError> {
        self.ask()?.refresh(sessions).await
    }

    async fn disconnect(&self, principal: &Principal, connection: Connection) -> Result<(), PresenceError> {
        self.ask()?.disconnect(principal, connection).await
    }

    async fn slots_of(&self, principals: &[Principal]) -> Result<Vec<Slots>, PresenceError> {
        self.ask()?.slots_of(principals).await
    }

    async fn slots_of_unmarked(&self, principals: &[Principal]) -> Result<Vec<Slots>, PresenceError> {
        self.ask()?.slots_of_unmarked(principals).await
    }

    async fn connections(&self, principal: &Principal) -> Result<Vec<Connection>, PresenceError> {
        self.ask()?.connections(principal).await
    }

    async fn publish(&self, channel: &str, payload: Bytes) -> Result<(), PresenceError> {
        self.ask()?.publish(channel, payload).await
    }

    async fn listen(&self, channel: &str) -> Result<broadcast::Receiver<Bytes>, PresenceError> {
        self.ask()?.listen(channel).await
    }

    async fn ping(&self) -> Result<(), PresenceError> {
        self.ask()?.ping().await
    }
}

/// The slots that are told of a message to a phone that nobody has seen, while presence is down.
async fn told(route: &Route, message: &Message, codecs: &Codecs, offset: u64) -> Vec<u32> {
    let next: Vec<_> = route.inputs().into_iter().map(|(topic, _)| (topic, 0)).collect();
    let mut state = route.open(0, &next).await.unwrap();
    let record = received(message, Lane::Normal, codecs, (0, offset));
    let position = LogPosition { topic: Topic::LaneNormal, partition: 0, offset };
    match route.handle(&mut state, &[Received { position, ..record }]).await.remove(0) {
        Outcome::Forward(hints) => hints.iter().filter_map(|hint| hint.partition).collect(),
        Outcome::Done => Vec::new(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn hints_go_to_every_gateway_that_was_known_and_to_all_there_can_be_where_none_was() {
    let engines = Engines::open().await;
    let presence = Arc::new(Impaired { inner: Arc::clone(&engines.presence) as _, down: AtomicBool::new(true) });
    let ports = Ports {
        log: Arc::new(engines.log.clone()),
        store: engines.store.clone(),
        presence: Arc::clone(&presence) as _,
        cancelled: Arc::clone(&engines.cancelled),
    };
    let route = Route::new(ports, engines.codecs.clone(), engines.clock.clone(), Options::default());
    let all: Vec<u32> = (0..engines.log.partitions(Topic::Deliveries)).collect();
    assert_eq!(told(&route, &message(1), &engines.codecs, 0).await, all);

    // Long enough to be asked again, and to be relied on when it has answered for a while.
    presence.down.store(false, Ordering::Relaxed);
    engines.clock.advance_millis(2_000);
    assert_eq!(told(&route, &message(4), &engines.codecs, 3).await, all, "it answers again, and gateways come back");
    engines.clock.advance_millis(8_000);
    for (life, slot) in [(1, 2), (2, 5)] {
        engines.presence.lease_slot(life, Some(slot), 16, "").await.unwrap();
    }
    assert_eq!(told(&route, &message(2), &engines.codecs, 1).await, [0; 0], "it is offline");
    presence.down.store(true, Ordering::Relaxed);
    assert_eq!(told(&route, &message(3), &engines.codecs, 2).await, [2, 5]);
}
