//! Presence within the process that can fail.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::Principal;
use eshaar_presence::local::LocalPresence;
use eshaar_presence::{Announced, Connection, Node, Presence, PresenceError, Slot, Slots};
use tokio::sync::broadcast;

/// Presence that fails while it is down.
pub(super) struct FakePresence {
    inner: LocalPresence,
    pub(super) down: AtomicBool,
    /// Entries that were made or refreshed.
    pub(super) refreshed: AtomicUsize,
}

impl FakePresence {
    pub(super) fn new(clock: eshaar_model::Clock) -> Self {
        let inner = LocalPresence::new(clock);
        Self { inner, down: AtomicBool::new(false), refreshed: AtomicUsize::new(0) }
    }

    fn ask(&self) -> Result<&LocalPresence, PresenceError> {
        if self.down.load(Ordering::Relaxed) {
            return Err(PresenceError::Engine { action: "answer", reason: "told to fail".to_owned() });
        }
        Ok(&self.inner)
    }
}

#[async_trait]
impl Presence for FakePresence {
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
        self.refreshed.fetch_add(sessions.len(), Ordering::Relaxed);
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
