//! Presence within one process: what one gateway needs when it stands alone, at the price of a hash look-up.
//!
//! Connections are spread over shards, each behind its own lock; the few nodes there are stand behind one read-write lock
//! that is taken once a call. Nothing here waits. What has lapsed is never shown, and is let go of as nodes announce
//! themselves: a slice each time.

mod cache;
mod depths;
mod limits;

use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use ahash::{AHashMap, RandomState};
use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{Clock, Principal, Timestamp};
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use tokio::sync::broadcast;

pub use self::cache::LocalCache;
pub use self::limits::LocalLimits;
use crate::depths::Depth;
use crate::{Announced, CONNECTION_TTL, Connection, NODE_TTL, Node, Presence, PresenceError, Slot, Slots};

/// A power of two: a shard is chosen by the low bits of the principal's hash.
const SHARDS: usize = 64;

/// Shards looked through for lapsed entries each time that a node announces itself; all of them in 16 announcements.
const SHARDS_SWEPT: usize = 4;

/// What a listener may fall behind before it loses the oldest.
const CHANNEL_CAPACITY: usize = 1024;

/// Presence within one process.
pub struct LocalPresence {
    clock: Clock,
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
    nodes: RwLock<AHashMap<Slot, Lease>>,
    channels: Mutex<AHashMap<String, broadcast::Sender<Bytes>>>,
    sweep: AtomicUsize,
    /// Numbers the entries of nodes, in the place of a time: two of one moment differ.
    entered: AtomicI64,
    /// What waits in the stages, each until it lapses: some dozens at most.
    depths: Mutex<Vec<(Depth, Timestamp)>>,
}

type Shard = AHashMap<Principal, SmallVec<[Lapsing; 1]>>;

struct Lapsing {
    connection: Connection,
    until: Timestamp,
}

struct Lease {
    incarnation: u64,
    address: String,
    until: Timestamp,
    since: i64,
    /// A look-up found that it had lapsed.
    missed: AtomicBool,
}

impl LocalPresence {
    /// Nobody is connected yet. Entries lapse by `clock`.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            nodes: RwLock::default(),
            channels: Mutex::default(),
            sweep: AtomicUsize::new(0),
            entered: AtomicI64::new(1),
            depths: Mutex::default(),
        }
    }

    fn shard(&self, principal: &Principal) -> &Mutex<Shard> {
        &self.shards[self.hasher.hash_one(principal) as usize % SHARDS]
    }

    /// Enters a connection, or moves its end; returns whether it was there.
    fn enter(&self, principal: &Principal, connection: Connection, now: Timestamp) -> bool {
        let until = now.plus_millis(CONNECTION_TTL.as_millis() as i64);
        let mut shard = self.shard(principal).lock();
        let Some(connections) = shard.get_mut(principal) else {
            shard.insert(principal.clone(), SmallVec::from_buf([Lapsing { connection, until }]));
            return false;
        };
        connections.retain(|known| known.until > now);
        if let Some(known) = connections.iter_mut().find(|known| known.connection == connection) {
            known.until = until;
            return true;
        }
        connections.push(Lapsing { connection, until });
        false
    }

    fn slots_at(&self, principals: &[Principal], now: Timestamp) -> Vec<Slots> {
        let nodes = self.nodes.read();
        let slots_of_one = |principal: &Principal| {
            let shard = self.shard(principal).lock();
            let mut slots = Slots::new();
            for known in shard.get(principal).into_iter().flatten() {
                if lives(known, &nodes, now) && !slots.contains(&known.connection.slot) {
                    slots.push(known.connection.slot);
                }
            }
            slots
        };
        principals.iter().map(slots_of_one).collect()
    }

    fn next_entry(&self) -> i64 {
        self.entered.fetch_add(1, Ordering::Relaxed)
    }

    /// Lets go of what has lapsed in the next few shards.
    fn sweep(&self, now: Timestamp) {
        let first = self.sweep.fetch_add(SHARDS_SWEPT, Ordering::Relaxed);
        for step in 0..SHARDS_SWEPT {
            drop_where(&mut self.shards[(first + step) % SHARDS].lock(), |known| known.until <= now);
        }
    }
}

fn drop_where(shard: &mut Shard, gone: impl Fn(&Lapsing) -> bool) {
    shard.retain(|_, connections| {
        connections.retain(|known| !gone(known));
        !connections.is_empty()
    });
}

/// Whether a connection's entry and its gateway, in the same life, both stand at `now`.
fn lives(known: &Lapsing, nodes: &AHashMap<Slot, Lease>, now: Timestamp) -> bool {
    known.until > now
        && nodes
            .get(&known.connection.slot)
            .is_some_and(|lease| lease.incarnation == known.connection.incarnation && lease.until > now)
}

fn lease(incarnation: u64, address: &str, since: i64, now: Timestamp) -> Lease {
    let until = now.plus_millis(NODE_TTL.as_millis() as i64);
    Lease { incarnation, address: address.to_owned(), until, since, missed: AtomicBool::new(false) }
}

#[async_trait]
impl Presence for LocalPresence {
    async fn lease_slot(
        &self,
        incarnation: u64,
        wanted: Option<Slot>,
        slots: u32,
        address: &str,
    ) -> Result<Slot, PresenceError> {
        let now = self.clock.now();
        let mut nodes = self.nodes.write();
        let is_free = |slot: &Slot| nodes.get(slot).is_none_or(|lease| lease.until <= now);
        let slot = match wanted {
            Some(slot) => Some(slot).filter(|slot| *slot < slots),
            None => (0..slots).find(is_free),
        };
        let slot = slot.ok_or(PresenceError::NoSlot { slots })?;
        nodes.insert(slot, lease(incarnation, address, self.next_entry(), now));
        Ok(slot)
    }

    async fn announce(&self, node: &Node) -> Result<Announced, PresenceError> {
        let now = self.clock.now();
        self.sweep(now);
        let since = match self.nodes.write().entry(node.slot) {
            Entry::Occupied(held) if held.get().incarnation != node.incarnation && held.get().until > now => {
                return Ok(Announced::Lost);
            }
            Entry::Occupied(mut held) => {
                let known = held.get();
                let is_whole = known.incarnation == node.incarnation && !known.missed.load(Ordering::Acquire);
                let since = if is_whole { known.since } else { self.next_entry() };
                held.insert(lease(node.incarnation, &node.address, since, now));
                since
            }
            Entry::Vacant(free) => {
                let since = self.next_entry();
                free.insert(lease(node.incarnation, &node.address, since, now));
                since
            }
        };
        Ok(Announced::Live { since })
    }

    async fn withdraw(&self, node: &Node) -> Result<(), PresenceError> {
        {
            let mut nodes = self.nodes.write();
            if nodes.get(&node.slot).is_some_and(|lease| lease.incarnation == node.incarnation) {
                nodes.remove(&node.slot);
            }
        }
        let is_of_node =
            |known: &Lapsing| (known.connection.slot, known.connection.incarnation) == (node.slot, node.incarnation);
        for shard in &self.shards {
            drop_where(&mut shard.lock(), is_of_node);
        }
        Ok(())
    }

    async fn nodes(&self) -> Result<Vec<Node>, PresenceError> {
        let now = self.clock.now();
        let nodes = self.nodes.read();
        let live = nodes.iter().filter(|(_, lease)| lease.until > now);
        let mut live: Vec<Node> = live
            .map(|(slot, lease)| Node { slot: *slot, incarnation: lease.incarnation, address: lease.address.clone() })
            .collect();
        live.sort_unstable_by_key(|node| node.slot);
        Ok(live)
    }

    async fn connect(&self, principal: &Principal, connection: Connection) -> Result<(), PresenceError> {
        self.enter(principal, connection, self.clock.now());
        Ok(())
    }

    async fn refresh(&self, sessions: &[(Principal, Connection)]) -> Result<Vec<bool>, PresenceError> {
        let now = self.clock.now();
        Ok(sessions.iter().map(|(principal, connection)| self.enter(principal, *connection, now)).collect())
    }

    async fn disconnect(&self, principal: &Principal, connection: Connection) -> Result<(), PresenceError> {
        let mut shard = self.shard(principal).lock();
        if let Some(connections) = shard.get_mut(principal) {
            connections.retain(|known| known.connection != connection);
            if connections.is_empty() {
                shard.remove(principal);
            }
        }
        Ok(())
    }

    async fn slots_of(&self, principals: &[Principal]) -> Result<Vec<Slots>, PresenceError> {
        let now = self.clock.now();
        for lapsed in self.nodes.read().values().filter(|lease| lease.until <= now) {
            lapsed.missed.store(true, Ordering::Release);
        }
        Ok(self.slots_at(principals, now))
    }

    async fn slots_of_unmarked(&self, principals: &[Principal]) -> Result<Vec<Slots>, PresenceError> {
        Ok(self.slots_at(principals, self.clock.now()))
    }

    async fn connections(&self, principal: &Principal) -> Result<Vec<Connection>, PresenceError> {
        let now = self.clock.now();
        let nodes = self.nodes.read();
        let shard = self.shard(principal).lock();
        let known = shard.get(principal).into_iter().flatten();
        Ok(known.filter(|known| lives(known, &nodes, now)).map(|known| known.connection).collect())
    }

    async fn publish(&self, channel: &str, payload: Bytes) -> Result<(), PresenceError> {
        let mut channels = self.channels.lock();
        // Sending fails only where nobody listens any more.
        let deserted = channels.get(channel).is_some_and(|sender| sender.send(payload).is_err());
        if deserted {
            channels.remove(channel);
        }
        Ok(())
    }

    async fn listen(&self, channel: &str) -> Result<broadcast::Receiver<Bytes>, PresenceError> {
        let mut channels = self.channels.lock();
        if let Some(sender) = channels.get(channel) {
            return Ok(sender.subscribe());
        }
        // The only place where channels are added: let go of those that nobody listens to.
        channels.retain(|_, sender| sender.receiver_count() > 0);
        let (sender, receiver) = broadcast::channel(CHANNEL_CAPACITY);
        channels.insert(channel.to_owned(), sender);
        Ok(receiver)
    }

    async fn ping(&self) -> Result<(), PresenceError> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::conformance::{self, Subject};

    fn subject() -> Subject {
        let clock = Clock::manual(Timestamp::from_millis(1_760_000_000_000));
        let presence = Arc::new(LocalPresence::new(clock.clone()));
        Subject { presence, pass: Box::new(move |time: Duration| clock.advance_millis(time.as_millis() as i64)) }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn local_presence_keeps_every_rule_of_the_port() {
        conformance::all(async || subject()).await;
    }

    #[tokio::test]
    async fn local_depths_keep_every_rule_of_the_port() {
        conformance::depths::all(async || {
            let clock = Clock::manual(Timestamp::from_millis(1_760_000_000_000));
            let depths = Arc::new(LocalPresence::new(clock.clone()));
            let pass = Box::new(move |time: Duration| clock.advance_millis(time.as_millis() as i64));
            conformance::depths::Subject { depths, pass }
        })
        .await;
    }

    #[tokio::test]
    async fn what_has_lapsed_is_let_go_of_as_nodes_announce_themselves() {
        let clock = Clock::manual(Timestamp::from_millis(0));
        let presence = LocalPresence::new(clock.clone());
        for session in 0..1_000 {
            let phone = eshaar_model::Phone::from_digits(966_500_000_000 + session).unwrap();
            presence.connect(&phone.into(), Connection { slot: 0, incarnation: 1, session }).await.unwrap();
        }
        clock.advance_millis(CONNECTION_TTL.as_millis() as i64 + 1);
        let node = Node { slot: 0, incarnation: 1, address: String::new() };
        for _ in 0..SHARDS / SHARDS_SWEPT {
            presence.announce(&node).await.unwrap();
        }
        assert_eq!(presence.shards.iter().map(|shard| shard.lock().len()).sum::<usize>(), 0);
    }

    #[tokio::test]
    async fn a_channel_that_nobody_listens_to_is_let_go_of() {
        let presence = LocalPresence::new(Clock::manual(Timestamp::from_millis(0)));
        drop(presence.listen("a").await.unwrap());
        presence.publish("a", Bytes::from_static(b"x")).await.unwrap();
        assert!(presence.channels.lock().is_empty());
    }
}
