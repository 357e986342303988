//! What every session of a gateway shares.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use eshaar_auth::{AuthError, Authenticator, Identity};
use eshaar_model::{Clock, Epoch, Lane, Phone};
use eshaar_presence::{Connection, Node, Presence};
use eshaar_schemas::Codecs;
use eshaar_service::metrics as names;
use eshaar_store::{MessageStore, StreamStore};
use eshaar_topics::partitioner::partition_of;
use eshaar_topics::{Cancelled, Log, Topic};
use metrics::{Counter, Gauge, Histogram};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::Options;
use crate::admission::Admission;
use crate::chat::Conversations;
use crate::edges::Edges;
use crate::hub::{Handle, Hub, TICKS, Ticks};
use crate::look_ups::LookUps;
use crate::receipts::Receipts;
use crate::typing::Typists;

/// Checks the credential of a renewal or an upgrade, and from time to time whether it stands still.
#[async_trait]
pub(crate) trait Credentials: Send + Sync + 'static {
    async fn authenticate(&self, credential: &str) -> Result<Identity, AuthError>;

    async fn still(&self, identity: &Identity) -> Result<Identity, AuthError>;
}

#[async_trait]
impl Credentials for Authenticator {
    async fn authenticate(&self, credential: &str) -> Result<Identity, AuthError> {
        Self::authenticate(self, credential).await
    }

    async fn still(&self, identity: &Identity) -> Result<Identity, AuthError> {
        Self::still(self, identity).await
    }
}

/// Metrics that are touched for each message, looked up once.
pub(crate) struct Meters {
    pub(crate) sessions: Gauge,
    pub(crate) opened: Counter,
    pub(crate) sent_by_hint: Counter,
    pub(crate) sent_by_replay: Counter,
    pub(crate) expired: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) held: Counter,
    pub(crate) acked: Counter,
    pub(crate) delivery_seconds: Histogram,
}

impl Meters {
    fn new() -> Self {
        Self {
            sessions: metrics::gauge!(names::GATEWAY_SESSIONS),
            opened: metrics::counter!(names::GATEWAY_OPENED),
            sent_by_hint: metrics::counter!(names::GATEWAY_SENT, "how" => "hint"),
            sent_by_replay: metrics::counter!(names::GATEWAY_SENT, "how" => "replay"),
            expired: metrics::counter!(names::EXPIRED, "stage" => "gateway"),
            cancelled: metrics::counter!(names::CANCELLED, "stage" => "gateway"),
            held: metrics::counter!(names::HELD, "stage" => "gateway"),
            acked: metrics::counter!(names::ACKED),
            delivery_seconds: metrics::histogram!(names::DELIVERY_SECONDS),
        }
    }
}

/// What a gateway really uses of what it rests on.
pub(crate) struct Parts {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) codecs: Codecs,
    pub(crate) streams: Arc<dyn StreamStore>,
    pub(crate) messages: Arc<dyn MessageStore>,
    pub(crate) presence: Arc<dyn Presence>,
    pub(crate) conversations: Arc<dyn Conversations>,
    pub(crate) credentials: Arc<dyn Credentials>,
    pub(crate) cancelled: Arc<Cancelled>,
    pub(crate) clock: Clock,
}

/// What every session of a gateway shares.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) codecs: Codecs,
    pub(crate) streams: Arc<dyn StreamStore>,
    pub(crate) messages: Arc<dyn MessageStore>,
    pub(crate) presence: Arc<dyn Presence>,
    pub(crate) conversations: Arc<dyn Conversations>,
    pub(crate) credentials: Arc<dyn Credentials>,
    pub(crate) cancelled: Arc<Cancelled>,
    pub(crate) clock: Clock,
    pub(crate) hub: Hub,
    pub(crate) typists: Typists,
    pub(crate) receipts: Receipts,
    pub(crate) look_ups: LookUps,
    pub(crate) admission: Arc<Admission>,
    pub(crate) edges: Edges,
    /// All sessions are to be entered in presence again, at once.
    pub(crate) all_absent: Notify,
    pub(crate) meters: Meters,
    ticks: AtomicU32,
    node: Mutex<Option<Node>>,
    draining: AtomicBool,
}

impl Shared {
    pub(crate) fn new(parts: Parts, options: Options) -> Self {
        Self {
            receipts: Receipts::new(options.receipts),
            look_ups: LookUps::new(options.look_ups, options.look_ups_per_session),
            admission: Admission::new(&options),
            edges: Edges::default(),
            all_absent: Notify::new(),
            options,
            log: parts.log,
            codecs: parts.codecs,
            streams: parts.streams,
            messages: parts.messages,
            presence: parts.presence,
            conversations: parts.conversations,
            credentials: parts.credentials,
            cancelled: parts.cancelled,
            clock: parts.clock,
            hub: Hub::new(),
            typists: Typists::default(),
            meters: Meters::new(),
            ticks: AtomicU32::new(1),
            node: Mutex::new(None),
            draining: AtomicBool::new(false),
        }
    }

    /// The time of the shared timer: as coarse as it ticks, and read for nothing.
    pub(crate) fn ticks(&self) -> Ticks {
        self.ticks.load(Ordering::Relaxed)
    }

    pub(crate) fn set_ticks(&self, ticks: Ticks) {
        self.ticks.store(ticks, Ordering::Relaxed);
    }

    /// Life of the log.
    pub(crate) fn epoch(&self) -> Epoch {
        self.log.epoch()
    }

    /// The partition of a lane that a phone's messages are in.
    pub(crate) fn partition(&self, phone: Phone, lane: Lane) -> u32 {
        partition_of(phone.to_string().as_bytes(), self.log.partitions(Topic::of_lane(lane)))
    }

    /// This gateway, while it has a slot.
    pub(crate) fn node(&self) -> Option<Node> {
        self.node.lock().clone()
    }

    pub(crate) fn set_node(&self, node: Option<Node>) {
        *self.node.lock() = node;
    }

    /// A session, as presence knows it; `None` while the gateway has no slot.
    pub(crate) fn connection(&self, handle: &Handle) -> Option<Connection> {
        let node = self.node.lock();
        node.as_ref().map(|node| Connection { slot: node.slot, incarnation: node.incarnation, session: handle.id })
    }

    /// Presence may have lost the entry of any session.
    pub(crate) fn enter_all_again(&self) {
        self.hub.each(|handle| {
            handle.mark_absent();
            handle.times.refresh_due.store(0, Ordering::Relaxed);
        });
        self.all_absent.notify_one();
    }

    /// When an entry in presence that was made or refreshed at `now` is to be refreshed: spread out over a quarter of the
    /// time there is.
    pub(crate) fn refresh_due(&self, handle: &Handle, now: Ticks) -> Ticks {
        let every = self.options.presence_refresh_s * TICKS;
        now + every - (handle.id % u64::from(every / 4).max(1)) as Ticks
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn ready(&self) -> bool {
        !self.is_draining() && self.node.lock().is_some()
    }
}
