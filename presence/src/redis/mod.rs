//! Presence in Redis: shared by all processes, on one server, behind Sentinel or in a cluster.
//!
//! | key | what | lapses |
//! |---|---|---|
//! | `<prefix>at:<principal>` | sorted set: `slot:incarnation:session` → when it lapses | with its last entry |
//! | `<prefix>nodes` | hash: slot → `incarnation end @since address` | an hour after its last node |
//! | `<prefix>on:<channel>` | channel (pub/sub) | – |
//! | `<prefix>depths` | hash: `stage:partition` → `interactive bulk end` | with its last publisher |
//! | `<prefix>{limit}:…` | windows of limits (`limits`) | when nothing is in them |
//! | `<prefix>cache:…` | values in front of the store (`cache`) | after 5 min |
//!
//! Times are the server's, in milliseconds. No command touches two keys but those of limits, which are on one node; none looks through the keyspace: a node
//! that withdrew, or lapsed, or began another life is no longer in `nodes`, and its connections are hidden by that.

mod cache;
mod channels;
mod depths;
mod endpoint;
mod limits;
mod link;
mod options;
mod scripts;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{Principal, Timestamp};
use eshaar_service::{Breaker, workers};
use parking_lot::Mutex;
use redis::{Cmd, Pipeline, RedisWrite, Value};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;

pub use options::{Mode, Options, SetupError};

use self::link::{Link, engine};
use crate::{Announced, CONNECTION_TTL, Connection, NODE_TTL, Node, Presence, PresenceError, Slot, Slots};

/// Presence in Redis.
pub struct RedisPresence {
    link: Arc<Link>,
    keeper: JoinHandle<()>,
    /// Callers whose limits are to be counted.
    asks: mpsc::Sender<limits::Ask>,
    /// What of the cache Redis has not been told has changed.
    debt: Arc<cache::Debt>,
    settler: JoinHandle<()>,
    /// Added to the server's time, in milliseconds. Only tests move it.
    shift: Arc<AtomicI64>,
    /// The server's time of the last answer that had it, without the shift, and when that answer came.
    server_time: Mutex<Option<(f64, Instant)>>,
}

/// Time, beyond that of two answers, in which Redis must run a look-up for it to count.
const LOOK_UP_LATE: Duration = Duration::from_secs(1);

/// The end of a look-up's time while the server's time is not known.
const NO_END: f64 = 1e15;

impl RedisPresence {
    /// Comes up, also while Redis is down: calls fail at once then, until it is there.
    ///
    /// # Errors
    /// What waiting does not help: an option or a file that cannot be used, a password that is refused.
    pub async fn connect(options: Options) -> Result<Arc<Self>, SetupError> {
        options.validate()?;
        let (told, first) = oneshot::channel();
        let link = Arc::new(Link::new(options));
        let keeper = tokio::spawn(workers::guarded("redis-link", Arc::clone(&link).keep(told)));
        let shift = Arc::new(AtomicI64::new(0));
        let asks = limits::start(Arc::clone(&link), Arc::clone(&shift));
        let debt = Arc::<cache::Debt>::default();
        let settler =
            tokio::spawn(workers::guarded("redis-cache", cache::keep_settling(Arc::clone(&link), Arc::clone(&debt))));
        let presence = Arc::new(Self { link, keeper, asks, debt, settler, shift, server_time: Mutex::default() });
        match first.await {
            Ok(Err(error)) if !error.may_pass() => return Err(error),
            Ok(Err(error)) => tracing::warn!(%error, "going on without presence until Redis answers"),
            Ok(Ok(())) | Err(_) => {}
        }
        Ok(presence)
    }

    /// Open while Redis cannot be reached. Calls fail at once then.
    pub fn breaker(&self) -> Arc<Breaker> {
        self.link.breaker()
    }

    /// Puts `time` between what was and what will be.
    #[cfg(test)]
    fn pass(&self, time: Duration) {
        self.shift.fetch_add(millis(time), Ordering::Relaxed);
    }

    fn shift(&self) -> i64 {
        self.shift.load(Ordering::Relaxed)
    }

    /// A session is there, for another while. Answered with whether it was.
    fn enter(&self, principal: &Principal, connection: Connection) -> Cmd {
        let mut command = self.link.scripts().enter.call(Key(self.link.prefix(), principal), self.shift());
        command.arg(millis(CONNECTION_TTL));
        command.write_arg_fmt(Member(connection));
        command
    }

    /// Asks who lives, and where `principals` are; as a look-up until the server's time is `look_up_until`.
    fn locate<'a>(&self, principals: impl ExactSizeIterator<Item = &'a Principal>, look_up_until: f64) -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(principals.len() + 1);
        pipeline.add_command(self.live_nodes(look_up_until));
        for principal in principals {
            let mut command = redis::cmd("ZRANGE");
            command.arg(Key(self.link.prefix(), principal)).arg("0").arg("-1").arg("WITHSCORES");
            pipeline.add_command(command);
        }
        pipeline
    }

    /// Asks who lives; a look-up, until the server's time is `look_up_until`, marks those that have lapsed.
    fn live_nodes(&self, look_up_until: f64) -> Cmd {
        let mut command = self.link.scripts().live.call(self.link.nodes_key(), self.shift());
        command.arg(format!("{look_up_until:.0}"));
        command
    }

    /// The server's time at which a look-up that is sent now is too late.
    fn look_up_end(&self) -> f64 {
        let Some((time, seen)) = *self.server_time.lock() else { return NO_END };
        let patience = seen.elapsed() + 2 * self.link.response_timeout() + LOOK_UP_LATE;
        time + (millis(patience) + self.shift()) as f64
    }

    fn saw_time(&self, live: &Live) {
        *self.server_time.lock() = Some((live.now - self.shift() as f64, Instant::now()));
    }

    /// Runs one command.
    async fn run(&self, action: &'static str, command: Cmd) -> Result<Value, PresenceError> {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(command);
        let mut answers = self.link.run(action, &pipeline).await?;
        answers.pop().ok_or_else(|| unexpected(action))
    }
}

impl Drop for RedisPresence {
    fn drop(&mut self) {
        self.keeper.abort();
        self.settler.abort();
    }
}

/// Whether Redis can be used as `options` say: it is reached, lets us in, runs in that mode, and knows our scripts.
pub async fn check(options: &Options) -> Result<(), SetupError> {
    options.validate()?;
    endpoint::check_mode(options).await?;
    Link::new(options.clone()).try_out().await
}

fn millis(time: Duration) -> i64 {
    time.as_millis() as i64
}

fn unexpected(action: &'static str) -> PresenceError {
    engine(action, "Redis answered what was not asked for: does something else use the prefix?")
}

/// Where the connections of a principal are.
struct Key<'a>(&'a str, &'a Principal);

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}at:{}", self.0, self.1)
    }
}

impl redis::ToRedisArgs for Key<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.write_arg_fmt(self);
    }
}

impl redis::ToSingleRedisArg for Key<'_> {}

/// A connection, as an entry of its principal.
struct Member(Connection);

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connection { slot, incarnation, session } = self.0;
        write!(f, "{slot}:{incarnation}:{session}")
    }
}

impl Member {
    fn parse(text: &[u8]) -> Option<Connection> {
        let mut numbers = std::str::from_utf8(text).ok()?.splitn(3, ':');
        Some(Connection {
            slot: numbers.next()?.parse().ok()?,
            incarnation: numbers.next()?.parse().ok()?,
            session: numbers.next()?.parse().ok()?,
        })
    }
}

/// The nodes that lived at one moment.
struct Live {
    now: f64,
    nodes: Vec<Node>,
}

impl Live {
    fn parse(answer: Value) -> Option<Self> {
        let Value::Array(fields) = answer else { return None };
        let mut fields = fields.into_iter();
        let Value::Int(now) = fields.next()? else { return None };
        let mut nodes = Vec::with_capacity(fields.len() / 3);
        while let Some(slot) = fields.next() {
            let (Value::Int(slot), Value::BulkString(incarnation)) = (slot, fields.next()?) else { return None };
            let Value::BulkString(address) = fields.next()? else { return None };
            nodes.push(Node {
                slot: Slot::try_from(slot).ok()?,
                incarnation: std::str::from_utf8(&incarnation).ok()?.parse().ok()?,
                address: String::from_utf8(address).ok()?,
            });
        }
        Some(Self { now: now as f64, nodes })
    }

    /// Incarnations by slot: what connections are held against.
    fn incarnations(&self) -> AHashMap<Slot, u64> {
        self.nodes.iter().map(|node| (node.slot, node.incarnation)).collect()
    }
}

/// The entries of one principal that have not lapsed and whose node lives.
fn entries(answer: &Value, now: f64, live: &AHashMap<Slot, u64>) -> Option<impl Iterator<Item = Connection>> {
    let Value::Array(entries) = answer else { return None };
    Some(entries.iter().filter_map(move |entry| {
        let Value::Array(entry) = entry else { return None };
        let [Value::BulkString(member), Value::Double(ends)] = &entry[..] else { return None };
        let connection = Member::parse(member)?;
        let is_live = *ends > now && live.get(&connection.slot) == Some(&connection.incarnation);
        is_live.then_some(connection)
    }))
}

#[async_trait]
impl Presence for RedisPresence {
    async fn lease_slot(
        &self,
        incarnation: u64,
        wanted: Option<Slot>,
        slots: u32,
        address: &str,
    ) -> Result<Slot, PresenceError> {
        const ACTION: &str = "lease a slot";
        let mut command = self.link.scripts().lease.call(self.link.nodes_key(), self.shift());
        command.arg(millis(NODE_TTL)).arg(slots);
        command.arg(wanted.map_or(String::new(), |slot| slot.to_string())).arg(incarnation).arg(address);
        match self.run(ACTION, command).await? {
            Value::Int(-1) => Err(PresenceError::NoSlot { slots }),
            Value::Int(slot) => Slot::try_from(slot).map_err(|_| unexpected(ACTION)),
            _ => Err(unexpected(ACTION)),
        }
    }

    async fn announce(&self, node: &Node) -> Result<Announced, PresenceError> {
        const ACTION: &str = "announce a node";
        let mut command = self.link.scripts().announce.call(self.link.nodes_key(), self.shift());
        command.arg(millis(NODE_TTL)).arg(node.slot).arg(node.incarnation).arg(&node.address);
        match self.run(ACTION, command).await? {
            Value::Int(0) => Ok(Announced::Lost),
            Value::Int(since) => Ok(Announced::Live { since }),
            _ => Err(unexpected(ACTION)),
        }
    }

    async fn withdraw(&self, node: &Node) -> Result<(), PresenceError> {
        let mut command = self.link.scripts().withdraw.call(self.link.nodes_key(), self.shift());
        command.arg(node.slot).arg(node.incarnation);
        self.run("withdraw a node", command).await.map(drop)
    }

    async fn nodes(&self) -> Result<Vec<Node>, PresenceError> {
        const ACTION: &str = "list nodes";
        let live = Live::parse(self.run(ACTION, self.live_nodes(0.0)).await?).ok_or_else(|| unexpected(ACTION))?;
        let mut nodes = live.nodes;
        nodes.sort_unstable_by_key(|node| node.slot);
        Ok(nodes)
    }

    async fn connect(&self, principal: &Principal, connection: Connection) -> Result<(), PresenceError> {
        self.run("enter a connection", self.enter(principal, connection)).await.map(drop)
    }

    async fn refresh(&self, sessions: &[(Principal, Connection)]) -> Result<Vec<bool>, PresenceError> {
        let mut pipeline = Pipeline::with_capacity(sessions.len());
        for (principal, connection) in sessions {
            pipeline.add_command(self.enter(principal, *connection));
        }
        let answers = self.link.run("refresh connections", &pipeline).await?;
        Ok(answers.iter().map(|was_there| *was_there == Value::Int(1)).collect())
    }

    async fn disconnect(&self, principal: &Principal, connection: Connection) -> Result<(), PresenceError> {
        let mut command = redis::cmd("ZREM");
        command.arg(Key(self.link.prefix(), principal));
        command.write_arg_fmt(Member(connection));
        self.run("remove a connection", command).await.map(drop)
    }

    async fn slots_of(&self, principals: &[Principal]) -> Result<Vec<Slots>, PresenceError> {
        let end = self.look_up_end();
        self.find_slots(principals, end).await
    }

    async fn slots_of_unmarked(&self, principals: &[Principal]) -> Result<Vec<Slots>, PresenceError> {
        self.find_slots(principals, 0.0).await
    }

    async fn connections(&self, principal: &Principal) -> Result<Vec<Connection>, PresenceError> {
        const ACTION: &str = "list connections";
        let answers = self.link.run(ACTION, &self.locate([principal].into_iter(), 0.0)).await?;
        let [live, connections] = <[Value; 2]>::try_from(answers).map_err(|_| unexpected(ACTION))?;
        let live = Live::parse(live).ok_or_else(|| unexpected(ACTION))?;
        let connections = entries(&connections, live.now, &live.incarnations()).map(Iterator::collect);
        connections.ok_or_else(|| unexpected(ACTION))
    }

    async fn publish(&self, channel: &str, payload: Bytes) -> Result<(), PresenceError> {
        let mut command = redis::cmd("PUBLISH");
        command.arg(self.channel(channel)).arg(&payload[..]);
        self.run("publish", command).await.map(drop)
    }

    async fn listen(&self, channel: &str) -> Result<broadcast::Receiver<Bytes>, PresenceError> {
        self.link.listen(&self.channel(channel)).await
    }

    async fn ping(&self) -> Result<(), PresenceError> {
        self.link.ping().await
    }

    async fn time(&self) -> Result<Option<Timestamp>, PresenceError> {
        const ACTION: &str = "ask for the time";
        // Its answer begins with the time.
        let command = self.link.scripts().live.call(self.link.nodes_key(), self.shift());
        match self.run(ACTION, command).await? {
            Value::Array(values) => match values.first() {
                Some(Value::Int(millis)) => Ok(Some(Timestamp::from_millis(*millis))),
                _ => Err(unexpected(ACTION)),
            },
            _ => Err(unexpected(ACTION)),
        }
    }
}

impl RedisPresence {
    async fn find_slots(&self, principals: &[Principal], look_up_until: f64) -> Result<Vec<Slots>, PresenceError> {
        const ACTION: &str = "look up slots";
        let mut answers = self.link.run(ACTION, &self.locate(principals.iter(), look_up_until)).await?.into_iter();
        let live = answers.next().and_then(Live::parse).ok_or_else(|| unexpected(ACTION))?;
        self.saw_time(&live);
        if look_up_until > 0.0 && live.now > look_up_until {
            // It marked nothing, so it must not be relied on.
            return Err(engine(ACTION, "Redis ran it too late, or its clock was set"));
        }
        let incarnations = live.incarnations();
        let slots_of_one = |answer: Value| {
            let mut slots = Slots::new();
            for connection in entries(&answer, live.now, &incarnations)? {
                if !slots.contains(&connection.slot) {
                    slots.push(connection.slot);
                }
            }
            Some(slots)
        };
        answers.map(slots_of_one).collect::<Option<_>>().ok_or_else(|| unexpected(ACTION))
    }

    fn channel(&self, name: &str) -> String {
        format!("{}on:{name}", self.link.prefix())
    }
}
