//! The one connection that all calls share, and the task that keeps it: connects, sees whether it is still of use, and
//! connects again.
//!
//! While there is no connection, calls fail at once; while there is one, none takes longer than the time for it. So
//! nothing piles up here, however long Redis is away. Callers wait for Redis nowhere: presence is a hint.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use eshaar_service::breaker::{Breaker, policies};
use futures_util::future::try_join_all;
use parking_lot::RwLock;
use redis::cluster_async::ClusterConnection;
use redis::{Cmd, ErrorKind, Pipeline, PushKind, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::sync::{Mutex, Notify, broadcast, oneshot};

use super::channels::Channels;
use super::endpoint::{self, Connection};
use super::options::{Options, SetupError};
use super::scripts::Scripts;
use crate::PresenceError;

/// Calls in a row that were not answered in time after which the connection is given up (R6.2).
const TIMEOUTS: u32 = policies::REDIS.failures;

/// How often a connection that nothing is wrong with is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Who waits for the first attempt.
type First = oneshot::Sender<Result<(), SetupError>>;

/// The shared connection.
pub(super) struct Link {
    options: Options,
    scripts: Scripts,
    channels: Arc<Channels>,
    /// The connection, or why there is none.
    state: RwLock<Result<Live, Arc<str>>>,
    /// Open while there is no connection: for metrics, logs and health.
    breaker: Arc<Breaker>,
    /// How many connections there have been.
    connections: AtomicU64,
    /// Held while the channels of the connection change, so that none is forgotten when it is replaced.
    subscribing: Mutex<()>,
}

/// A connection that is thought to work.
#[derive(Clone)]
struct Live {
    connection: Connection,
    health: Arc<Health>,
}

/// What calls and pushes have seen of one connection.
#[derive(Default)]
struct Health {
    timeouts: AtomicU32,
    lost: Notify,
}

impl Health {
    fn answered(&self) {
        // Read first: the line is shared by all calls, and hardly ever written.
        if self.timeouts.load(Relaxed) != 0 {
            self.timeouts.store(0, Relaxed);
        }
    }

    fn timed_out(&self) {
        if self.timeouts.fetch_add(1, Relaxed) + 1 >= TIMEOUTS {
            self.lost.notify_one();
        }
    }
}

impl Link {
    /// Without a connection yet.
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            scripts: Scripts::new(),
            channels: Arc::default(),
            state: RwLock::new(Err("not connected yet".into())),
            breaker: Breaker::new(policies::REDIS),
            connections: AtomicU64::new(0),
            subscribing: Mutex::default(),
        }
    }

    /// How many connections there have been: what was told over an earlier one may be forgotten.
    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    pub(super) fn response_timeout(&self) -> Duration {
        self.options.response_timeout()
    }

    pub(super) fn scripts(&self) -> &Scripts {
        &self.scripts
    }

    pub(super) fn breaker(&self) -> Arc<Breaker> {
        Arc::clone(&self.breaker)
    }

    pub(super) fn prefix(&self) -> &str {
        &self.options.prefix
    }

    /// Keeps the connection, for ever. `first` is told how the first attempt went.
    pub(super) async fn keep(self: Arc<Self>, first: First) {
        let mut first = Some(first);
        let shortest = Duration::from_millis(self.options.reconnect_min_ms);
        let longest = Duration::from_millis(self.options.reconnect_max_ms);
        let mut wait = shortest;
        loop {
            match self.establish().await {
                Ok(live) => {
                    tracing::info!(addresses = self.options.places(), mode = %self.options.mode, "connected to Redis");
                    self.breaker.reset();
                    tell(&mut first, Ok(()));
                    wait = shortest;
                    self.watch(&live).await;
                    self.breaker.trip("the connection is lost");
                    tracing::warn!(addresses = self.options.places(), "the connection to Redis is lost");
                    *self.state.write() = Err("the connection is lost".into());
                }
                Err(error) => {
                    tracing::debug!(%error, "not connected to Redis");
                    self.breaker.trip(&error.to_string());
                    *self.state.write() = Err(error.to_string().into());
                    tell(&mut first, Err(error));
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(longest);
        }
    }

    /// Connects once, to see whether that works.
    pub(super) async fn try_out(&self) -> Result<(), SetupError> {
        self.establish().await.map(drop)
    }

    /// Connects, and makes the connection what calls need: scripts are known, channels are subscribed.
    async fn establish(&self) -> Result<Live, SetupError> {
        let health = Arc::new(Health::default());
        let (channels, lost) = (Arc::clone(&self.channels), Arc::clone(&health));
        let connection = endpoint::open(&self.options, move |push| {
            if push.kind == PushKind::Disconnection {
                lost.lost.notify_one();
            } else {
                channels.hand_on(push);
            }
        });
        let mut live = Live { connection: connection.await?, health };
        let _subscribing = self.subscribing.lock().await;
        let preparing = async {
            live.connection.send(&self.scripts.loading(), &self.scripts).await?;
            for channel in self.channels.names() {
                live.connection.subscribe(&channel).await?;
            }
            Ok(())
        };
        match tokio::time::timeout(self.options.connect_timeout(), preparing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(SetupError::of(&self.options, &error)),
            Err(_) => return Err(SetupError::timed_out(&self.options)),
        }
        // First, so that nobody asks over the new one as if it were the one before.
        self.connections.fetch_add(1, Relaxed);
        *self.state.write() = Ok(live.clone());
        Ok(live)
    }

    /// Returns when the connection is of no use any more.
    async fn watch(&self, live: &Live) {
        loop {
            let is_due = tokio::time::timeout(CHECK_EVERY, live.health.lost.notified()).await.is_err();
            if !is_due {
                return;
            }
            // What it says of the connection is noted by the call itself.
            let _ = self.ping().await;
            self.give_up_deserted().await;
        }
    }

    /// Asks who lives: what every look-up rests on.
    pub(super) async fn ping(&self) -> Result<(), PresenceError> {
        let mut pipeline = redis::pipe();
        let mut live = self.scripts.live.call(self.nodes_key(), 0);
        live.arg("0");
        pipeline.add_command(live);
        self.run("ping", &pipeline).await.map(drop)
    }

    pub(super) fn nodes_key(&self) -> String {
        format!("{}nodes", self.prefix())
    }

    /// Whether there is a connection; why not, where there is none.
    pub(super) fn reachable(&self, action: &'static str) -> Result<(), PresenceError> {
        self.state.read().as_ref().map(drop).map_err(|reason| engine(action, &**reason))
    }

    fn live(&self, action: &'static str) -> Result<Live, PresenceError> {
        self.state.read().clone().map_err(|reason| engine(action, &*reason))
    }

    /// Runs commands in one round trip, and returns their answers.
    pub(super) async fn run(&self, action: &'static str, pipeline: &Pipeline) -> Result<Vec<Value>, PresenceError> {
        let mut live = self.live(action)?;
        self.timed(action, &live.health, live.connection.send(pipeline, &self.scripts)).await
    }

    /// Waits for an answer as long as a call may take, and notes what it says of the connection.
    async fn timed<T>(
        &self,
        action: &'static str,
        health: &Health,
        call: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, PresenceError> {
        match tokio::time::timeout(self.options.response_timeout(), call).await {
            Ok(Ok(answer)) => {
                health.answered();
                Ok(answer)
            }
            Ok(Err(error)) => {
                // A master that became a replica answers, but is not the one to ask.
                let is_replica = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
                if error.is_unrecoverable_error() || is_replica {
                    health.lost.notify_one();
                }
                Err(engine(action, error.to_string()))
            }
            Err(_) => {
                health.timed_out();
                Err(engine(action, format!("no answer within {} ms", self.options.response_timeout_ms)))
            }
        }
    }

    /// Listens on a channel, by its name in Redis.
    pub(super) async fn listen(&self, channel: &str) -> Result<broadcast::Receiver<bytes::Bytes>, PresenceError> {
        const ACTION: &str = "listen";
        let _subscribing = self.subscribing.lock().await;
        let mut live = self.live(ACTION)?;
        if let Some(receiver) = self.channels.join(channel) {
            return Ok(receiver);
        }
        // Before the server pushes anything.
        let receiver = self.channels.add(channel);
        let subscribed = self.timed(ACTION, &live.health, live.connection.subscribe(channel)).await;
        if subscribed.is_err() {
            self.channels.remove(channel);
        }
        subscribed.map(|()| receiver)
    }

    pub(super) async fn give_up_deserted(&self) {
        const ACTION: &str = "stop listening";
        let _subscribing = self.subscribing.lock().await;
        for channel in self.channels.take_deserted() {
            let Ok(mut live) = self.live(ACTION) else { return };
            // Should it fail, what is pushed for the channel is dropped.
            let _ = self.timed(ACTION, &live.health, live.connection.unsubscribe(&channel)).await;
        }
    }
}

/// Tells how the first attempt went, if this was it.
fn tell(first: &mut Option<First>, how: Result<(), SetupError>) {
    if let Some(first) = first.take() {
        // It has left where nobody waits for it any more.
        let _ = first.send(how);
    }
}

pub(super) fn engine(action: &'static str, reason: impl Into<String>) -> PresenceError {
    PresenceError::Engine { action, reason: reason.into() }
}

impl Connection {
    /// Runs commands, together. A server that does not know our scripts, because it began anew, learns them.
    async fn send(&mut self, pipeline: &Pipeline, scripts: &Scripts) -> RedisResult<Vec<Value>> {
        match self {
            Self::One(connection) => match pipeline.query_async(connection).await {
                Err(error) if knows_no_script(&error) => {
                    scripts.loading().exec_async(connection).await?;
                    pipeline.query_async(connection).await
                }
                answer => answer,
            },
            // The client refuses a pipeline whose keys are on several nodes. Commands sent side by side share each
            // node's connection, and come back in the time of one.
            Self::Cluster(connection) => {
                let commands = pipeline.cmd_iter();
                try_join_all(commands.map(|command| send_to_cluster(connection.clone(), command, scripts))).await
            }
        }
    }
}

async fn send_to_cluster(mut connection: ClusterConnection, command: &Cmd, scripts: &Scripts) -> RedisResult<Value> {
    match command.query_async(&mut connection).await {
        Err(error) if knows_no_script(&error) => {
            for load in scripts.loading().cmd_iter() {
                load.exec_async(&mut connection).await?;
            }
            command.query_async(&mut connection).await
        }
        answer => answer,
    }
}

fn knows_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}
