//! The gateway: holds the WebSockets of mobile apps and of businesses' systems (docs/protocol.md), sends them what comes
//! and what waits, and takes their acknowledgements.
//!
//! Reads `deliveries` (its own slot) and the history store; writes `message.status`, acknowledged positions and presence.
//! It never writes history, and accepts no message itself: what clients send goes through the port [`Conversations`]. Files
//! in the order of a connection's life: `accept` → `session` (over `socket`, `wire`, `protocol`; `chat` where it talks) ←
//! `hub` ← `slot`; `receipts` takes what clients acknowledge, `look_ups` what of it must be looked up first; `typing` goes
//! from gateway to gateway; `timer` ends what goes on for too long. `admission` bounds what sessions read from the store,
//! `edges` keeps what all of them need of it, `entries` keeps them in presence.

mod accept;
mod admission;
mod chat;
mod close;
mod edges;
mod entries;
mod hub;
mod look_ups;
mod message;
mod options;
mod protocol;
mod reader;
mod receipts;
mod reference;
mod session;
mod shared;
mod slot;
mod socket;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod timer;
mod typing;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use eshaar_auth::Authenticator;
use eshaar_model::Clock;
use eshaar_presence::{Presence, PresenceError};
use eshaar_schemas::Codecs;
use eshaar_service::metrics::GATEWAY_RECEIPTS_LOST;
use eshaar_service::workers;
use eshaar_store::Store;
use eshaar_topics::{Cancelled, Log, LogError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use accept::SUBPROTOCOL;
pub use chat::{Conversations, NewMessage, Sent};
pub use close::Close;
pub use options::Options;

use shared::{Parts, Shared};

/// What a gateway rests on.
#[derive(Clone)]
pub struct Deps {
    /// The log: its slot is read, statuses are appended.
    pub log: Arc<dyn Log>,
    /// Decodes deliveries and messages, encodes statuses.
    pub codecs: Codecs,
    /// Streams, and messages that are read.
    pub store: Store,
    /// Where sessions are entered.
    pub presence: Arc<dyn Presence>,
    /// Takes what clients send and read in conversations.
    pub conversations: Arc<dyn Conversations>,
    /// Checks credentials.
    pub auth: Authenticator,
    /// What was taken back: it is not sent.
    pub cancelled: Arc<Cancelled>,
    /// The present, for expiry.
    pub clock: Clock,
}

/// The gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It has no slot.
    #[error("the gateway has no slot: {0}")]
    Presence(#[source] PresenceError),
    /// Its slot cannot be read.
    #[error("the gateway cannot read its slot: {0}")]
    Log(#[source] LogError),
}

/// A gateway that runs. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Gateway {
    /// Leases a slot, finds its end and starts what runs beside the sessions. `shutdown` stops it at once, what was
    /// acknowledged written first; call [`Gateway::drain`] before it to let clients go in order.
    pub async fn start(deps: Deps, options: Options, shutdown: CancellationToken) -> Result<Self, StartError> {
        let parts = Parts {
            log: deps.log,
            codecs: deps.codecs,
            streams: deps.store.streams,
            messages: deps.store.messages,
            presence: deps.presence,
            conversations: deps.conversations,
            credentials: Arc::new(deps.auth),
            cancelled: deps.cancelled,
            clock: deps.clock,
        };
        Self::start_with(parts, options, shutdown).await
    }

    async fn start_with(parts: Parts, options: Options, shutdown: CancellationToken) -> Result<Self, StartError> {
        let shared = Arc::new(Shared::new(parts, options));
        let slot = slot::lease(&shared).await?;
        let (tasks, stop) = (TaskTracker::new(), shutdown.child_token());
        tasks.spawn(workers::guarded("gateway-slot", slot::run(Arc::clone(&shared), slot, stop.clone())));
        tasks.spawn(workers::guarded("gateway-timer", timer::run(Arc::clone(&shared), stop.clone())));
        tasks.spawn(workers::guarded("gateway-entries", entries::run(Arc::clone(&shared), stop.clone())));
        tasks.spawn(workers::guarded("gateway-receipts", receipts::run(Arc::clone(&shared), stop.clone())));
        for _ in 0..look_ups::WORKERS {
            tasks.spawn(workers::guarded("gateway-look-ups", look_ups::run(Arc::clone(&shared), stop.clone())));
        }
        Ok(Self { shared, tasks, stop })
    }

    /// `GET /v1/ws`.
    pub fn router(&self) -> Router {
        accept::router(Arc::clone(&self.shared))
    }

    /// How many sessions are open.
    pub fn sessions(&self) -> usize {
        self.shared.hub.count()
    }

    /// Lets every client go, in at most `deadline`: new ones are answered 503, those connected are told to come back
    /// (4001) at times spread out, their acknowledgements are written, and presence forgets this gateway.
    pub async fn drain(&self, deadline: Duration) {
        self.shared.begin_drain();
        let in_order = async {
            self.shared.hub.close_all(Close::ShuttingDown);
            self.shared.hub.emptied().await;
            self.shared.look_ups.flushed().await;
            self.shared.receipts.flushed().await;
        };
        if tokio::time::timeout(deadline, in_order).await.is_err() {
            let look_ups = self.shared.look_ups.pending();
            metrics::counter!(GATEWAY_RECEIPTS_LOST, "cause" => "drain").increment(look_ups as u64);
            tracing::warn!(
                sessions = self.sessions(),
                look_ups,
                "the drain took too long: sessions were cut off, and receipts of messages that were not looked up are lost"
            );
        }
        if let Some(node) = self.shared.node()
            && let Err(error) = self.shared.presence.withdraw(&node).await
        {
            tracing::warn!(%error, "the gateway's slot was not given back; it lapses by itself");
        }
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!("the gateway's tasks did not end in time");
        }
    }
}
