//! Who is connected where, which gateways live, and a channel for what need not be kept; how much each may send (`limits`),
//! how much waits (`depths`), and what need not be read from the store again (`cache`).
//!
//! Presence is a hint: a wrong answer costs a detour (the recipient's session reads its stream), never a message.

pub mod cache;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod conformance;
pub mod depths;
pub mod limits;
pub mod local;
pub mod redis;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{Principal, Timestamp};
use smallvec::SmallVec;
use tokio::sync::broadcast;

/// Partition of `deliveries` that a gateway reads: its address.
pub type Slot = u32;

/// Slots where a principal has sessions; more than two are rare.
pub type Slots = SmallVec<[Slot; 2]>;

/// How long a connection is taken to live without being refreshed (R7.2).
pub const CONNECTION_TTL: Duration = Duration::from_mins(5);

/// How long a node is taken to live without announcing itself.
pub const NODE_TTL: Duration = Duration::from_secs(15);

/// A session somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The gateway's slot.
    pub slot: Slot,
    /// The life of that gateway process: a session of an earlier life is gone.
    pub incarnation: u64,
    /// The session, unique within its gateway's life.
    pub session: u64,
}

/// A gateway that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its slot.
    pub slot: Slot,
    /// Its life.
    pub incarnation: u64,
    /// Where its HTTP listener is, for people.
    pub address: String,
}

/// What an announcement found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// The slot has another owner by now; stop serving.
    Lost,
    /// The node lives. `since` is the same as long as no look-up can have missed the node: its entry has been there, and
    /// [`Presence::slots_of`] was never asked while it had lapsed. Where it differs from the announcement before, hints for
    /// every session of the node may have gone nowhere, and the entries of its sessions may be gone.
    Live {
        /// Names the making of the node's entry; a later one has a higher number.
        since: i64,
    },
}

/// Presence could not be asked. Go on without: the stream is the truth.
#[derive(Debug, thiserror::Error)]
pub enum PresenceError {
    /// The engine failed.
    #[error("presence failed to {action}: {reason}")]
    Engine {
        /// What was tried.
        action: &'static str,
        /// What the engine said.
        reason: String,
    },
    /// All slots are taken by other live gateways.
    #[error("all {slots} gateway slots are taken")]
    NoSlot {
        /// How many there are.
        slots: u32,
    },
}

/// Who is connected where. Entries lapse unless they are refreshed.
#[async_trait]
pub trait Presence: Send + Sync + 'static {
    /// Takes a slot below `slots` that no live node has (or, with `wanted`, that very one, from whoever has it) and
    /// announces the node. It lapses [`NODE_TTL`] after the last [`Presence::announce`].
    async fn lease_slot(
        &self,
        incarnation: u64,
        wanted: Option<Slot>,
        slots: u32,
        address: &str,
    ) -> Result<Slot, PresenceError>;

    /// Says again that the node lives.
    async fn announce(&self, node: &Node) -> Result<Announced, PresenceError>;

    /// The node is going: its slot is free, its connections are gone.
    async fn withdraw(&self, node: &Node) -> Result<(), PresenceError>;

    /// The nodes that live.
    async fn nodes(&self) -> Result<Vec<Node>, PresenceError>;

    /// A session begins. To be called before the session reads its stream.
    async fn connect(&self, principal: &Principal, connection: Connection) -> Result<(), PresenceError>;

    /// Sessions still live. For each, whether its entry was still there; one that was not is entered again, and must read
    /// its stream.
    async fn refresh(&self, sessions: &[(Principal, Connection)]) -> Result<Vec<bool>, PresenceError>;

    /// A session is over.
    async fn disconnect(&self, principal: &Principal, connection: Connection) -> Result<(), PresenceError>;

    /// For each principal, the slots of live nodes where it has sessions, each once; empty when it is offline. One round
    /// trip for all of them. A node that has lapsed is marked: it learns with its next announcement that it was missed.
    async fn slots_of(&self, principals: &[Principal]) -> Result<Vec<Slots>, PresenceError>;

    /// As [`Presence::slots_of`], for what may be lost: nodes that have lapsed are not marked.
    async fn slots_of_unmarked(&self, principals: &[Principal]) -> Result<Vec<Slots>, PresenceError>;

    /// A principal's sessions.
    async fn connections(&self, principal: &Principal) -> Result<Vec<Connection>, PresenceError>;

    /// Sends to whoever listens on `channel` now; nobody else ever sees it.
    async fn publish(&self, channel: &str, payload: Bytes) -> Result<(), PresenceError>;

    /// Listens on `channel`. A listener that falls behind by more than 1,024 loses the oldest.
    async fn listen(&self, channel: &str) -> Result<broadcast::Receiver<Bytes>, PresenceError>;

    /// Whether the engine answers, for health.
    async fn ping(&self) -> Result<(), PresenceError>;

    /// The time by the clock of the engine's server, to find a clock that is off; `None` where that is this process's own.
    async fn time(&self) -> Result<Option<Timestamp>, PresenceError> {
        Ok(None)
    }
}
