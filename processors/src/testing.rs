//! Messages and records to test stages with.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use async_trait::async_trait;
use eshaar_auth::signing::SigningKeys;
use eshaar_model::{Clock, Lane, MessageId, MessageType, Principal, Priority, Timestamp};
use eshaar_presence::local::{LocalCache, LocalPresence};
use eshaar_presence::{Connection, Presence};
use eshaar_schemas::{Codecs, Compatibility, Message, Registry, RegistryError, SchemaId};
use eshaar_service::TraceContext;
use eshaar_store::{Store, sqlite};
use eshaar_topics::embedded::{EmbeddedLog, Options};
use eshaar_topics::{Cancelled, LogPosition, NewRecord, Received, Record, Topic, flow};
use tempfile::TempDir;

/// The present of the tests.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_760_000_000_000);

/// Gives the ids of the subjects in the order of the alphabet, and knows nothing else.
struct Ids;

#[async_trait]
impl Registry for Ids {
    async fn register(&self, subject: &str, _: &str) -> Result<SchemaId, RegistryError> {
        Ok(u32::from(subject.as_bytes()[0]))
    }

    async fn lookup(&self, subject: &str, schema: &str) -> Result<SchemaId, RegistryError> {
        self.register(subject, schema).await
    }

    async fn schema(&self, id: SchemaId) -> Result<String, RegistryError> {
        Err(RegistryError::Unavailable { reason: format!("schema {id} is not known") })
    }

    async fn set_compatibility(&self, _: &str, _: Compatibility) -> Result<(), RegistryError> {
        Ok(())
    }
}

/// Codecs of every contract.
pub(crate) async fn codecs() -> Codecs {
    let names = ["Message", "Delivery", "StatusChanged", "DeadLetter", "Broadcast", "ConversationChanged"];
    let subjects = names.map(|name| (format!("{name}-value"), name));
    Codecs::register(Arc::new(Ids), &subjects).await.unwrap()
}

/// What makes and signs requests to webhooks, with one key.
pub(crate) fn sender(options: &crate::webhooks::Options) -> Arc<crate::webhooks::Sender> {
    // Another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Arc::new(crate::webhooks::Sender::new(signing_keys(), options).unwrap())
}

/// One master key.
pub(crate) fn signing_keys() -> SigningKeys {
    SigningKeys::parse("a master key of the tests, long enough for it").unwrap()
}

/// A one-way message to the phone of that number, made at [`START`].
pub(crate) fn message(phone: u32) -> Message {
    Message {
        id: MessageId::new(START),
        r#type: MessageType::OneWay,
        conversation_id: None,
        sender: "acme-bank".to_owned(),
        recipient: format!("+96650{phone:07}"),
        content: "hello".to_owned(),
        content_ciphertext: None,
        content_key_id: None,
        media: Vec::new(),
        priority: Priority::Normal,
        created_at: START.as_millis(),
        expires_at: None,
        reference: None,
        collapse_key: None,
        correlation_id: "c-1".to_owned(),
        broadcast_id: None,
    }
}

/// A message as it is read from `messages.accepted` at that partition and offset.
pub(crate) fn received(message: &Message, lane: Lane, codecs: &Codecs, (partition, offset): (u32, u64)) -> Received {
    let new = flow::accepted(message, lane, codecs, &TraceContext::new()).unwrap();
    at(new, Topic::MessagesAccepted, (partition, offset))
}

/// A record as it is read from that place.
pub(crate) fn at(new: NewRecord, topic: Topic, (partition, offset): (u32, u64)) -> Received {
    let position = LogPosition { topic, partition, offset };
    Record { position, timestamp: new.timestamp, key: new.key, value: new.value, headers: new.headers }.into()
}

/// The embedded engines, on files of their own, under a clock that stands at [`START`].
pub(crate) struct Engines {
    pub(crate) log: EmbeddedLog,
    pub(crate) store: Store,
    pub(crate) presence: Arc<LocalPresence>,
    pub(crate) cache: Arc<LocalCache>,
    pub(crate) codecs: Codecs,
    pub(crate) cancelled: Arc<Cancelled>,
    pub(crate) clock: Clock,
    _dir: TempDir,
}

impl Engines {
    pub(crate) async fn open() -> Self {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::manual(START));
        Self {
            log: EmbeddedLog::open(Options::in_dir(dir.path()), clock.clone()).unwrap(),
            store: sqlite::open(sqlite::Options::at(dir.path().join("store.db")), clock.clone()).unwrap(),
            presence: Arc::new(LocalPresence::new(clock.clone())),
            cache: Arc::new(LocalCache::new(clock.clone())),
            codecs: codecs().await,
            cancelled: Arc::new(Cancelled::none(clock.clone())),
            clock,
            _dir: dir,
        }
    }

    /// Has `principal` connected to the gateway of slot 3.
    pub(crate) async fn connect(&self, principal: &str) {
        let slot = self.presence.lease_slot(1, Some(3), 16, "here").await.unwrap();
        let principal: Principal = principal.parse().unwrap();
        let connection = Connection { slot, incarnation: 1, session: 1 };
        self.presence.connect(&principal, connection).await.unwrap();
    }
}
