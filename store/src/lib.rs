//! What is remembered, as ports by aggregate, and the engines behind them.
//!
//! `stream` (what waits for a phone) · `messages` (each message and its steps) · `claims` (idempotency) · `keys` (who may
//! call) · `dead_letters` (what stages gave up on) · `tasks` (work that outlives a process) · `audit` (who did what) ·
//! `webhooks` (where businesses are told) · `timers` (what waits for its time) ·
//! `audiences` (lists of recipients) · `broadcasts` (messages to many) · `conversations` (which a pair has, what was
//! said). Rests on `model` alone: it knows positions, not topics; values are opaque bytes.

pub mod audiences;
pub mod audit;
pub mod broadcasts;
pub mod claims;
pub mod conformance;
pub mod conversations;
pub mod dead_letters;
pub mod error;
pub mod keys;
pub mod messages;
pub mod scylla;
pub mod sqlite;
pub mod stream;
pub mod tasks;
pub mod timers;
pub mod webhooks;

use std::sync::Arc;

use eshaar_model::Timestamp;

pub use audiences::{Audience, AudienceStore, Expiry};
pub use audit::{AuditEntry, AuditPage, AuditQuery, AuditStore};
pub use broadcasts::{BroadcastRow, BroadcastStore, Counts, OpenBroadcast, Tally};
pub use claims::{Claim, ClaimKey, ClaimStore, Claimed};
pub use conversations::{
    Archived, ChatPage, ChatRow, ConversationPage, ConversationStore, How, ListQuery, ReadFrom, ReadMark, Started,
    Unread,
};
pub use dead_letters::{
    DeadLetterId, DeadLetterStore, Hold, Letter, LetterBody, LetterClaim, LetterHead, LetterPage, LetterPlace,
    LetterQuery, LetterState, Settlement,
};
pub use error::StoreError;
pub use keys::{ApiKey, KeyStore};
pub use messages::{MessageRow, MessageStore, SentPage, SentQuery, Step, StoredMessage};
pub use stream::{Earlier, StreamPage, StreamRow, StreamStore};
pub use tasks::{Holder, Lease, Task, TaskStore};
pub use timers::{Timer, TimerPlace, TimerStore};
pub use webhooks::{Webhook, WebhookCursor, WebhookStore};

/// Every aggregate's store, of one engine. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    /// What waits for a phone.
    pub streams: Arc<dyn StreamStore>,
    /// Each message and its steps.
    pub messages: Arc<dyn MessageStore>,
    /// Idempotency claims.
    pub claims: Arc<dyn ClaimStore>,
    /// API keys.
    pub keys: Arc<dyn KeyStore>,
    /// Records that stages gave up on.
    pub dead_letters: Arc<dyn DeadLetterStore>,
    /// Work that outlives a process.
    pub tasks: Arc<dyn TaskStore>,
    /// Who did what.
    pub audit: Arc<dyn AuditStore>,
    /// Where businesses are told what becomes of their messages.
    pub webhooks: Arc<dyn WebhookStore>,
    /// Lists of recipients.
    pub audiences: Arc<dyn AudienceStore>,
    /// Messages to many.
    pub broadcasts: Arc<dyn BroadcastStore>,
    /// Conversations and what was said in them.
    pub conversations: Arc<dyn ConversationStore>,
    /// Records that wait for their time.
    pub timers: Arc<dyn TimerStore>,
    /// The engine as a whole.
    pub engine: Arc<dyn StoreEngine>,
}

/// The engine as a whole.
#[async_trait::async_trait]
pub trait StoreEngine: Send + Sync + 'static {
    /// Makes every write that has returned durable against a power cut. Called before offsets are committed.
    async fn sync(&self) -> Result<(), StoreError>;

    /// Whether the engine answers, for health.
    async fn ping(&self) -> Result<(), StoreError>;

    /// The time by the clock of a server of the engine, to find a clock that is off; `None` where that is this process's own.
    async fn time(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }

    /// What leaves the engine alone after failures; `None` where a failure costs nobody any time.
    fn breaker(&self) -> Option<Arc<eshaar_service::Breaker>> {
        None
    }

    /// Ends the engine in order: what was called before is done, what is called later fails as closed. Returns when
    /// nothing of it runs any more.
    async fn close(&self) -> Result<(), StoreError>;
}
