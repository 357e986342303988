//! What is remembered, as ports by aggregate, and the engines behind them.
//!
//! `stream` (what waits for a phone) · `messages` (each message and its steps) · `claims` (idempotency) · `keys` (who may
//! call). Rests on `model` alone: it knows positions, not topics; values are opaque bytes.

pub mod claims;
pub mod conformance;
pub mod error;
pub mod keys;
pub mod messages;
pub mod scylla;
pub mod sqlite;
pub mod stream;

use std::sync::Arc;

pub use claims::{Claim, ClaimKey, ClaimStore, Claimed};
pub use error::StoreError;
pub use keys::{ApiKey, KeyStore};
pub use messages::{MessageRow, MessageStore, SentPage, SentQuery, Step, StoredMessage};
pub use stream::{StreamPage, StreamRow, StreamStore};

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

    /// Ends the engine in order: what was called before is done, what is called later fails as closed. Returns when
    /// nothing of it runs any more.
    async fn close(&self) -> Result<(), StoreError>;
}
