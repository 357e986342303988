//! Webhooks: the endpoints at which businesses are told what becomes of their messages, and how far each endpoint has been
//! told. No secret is here: it is made from the master key that `key` names, the id and the generation
//! (`eshaar_auth::signing`).

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{BusinessId, Epoch, Status, Timestamp, WebhookId};
use uuid::Uuid;

use crate::StoreError;

/// Most webhooks of a list: a business has far fewer.
pub const LISTED: usize = 100;

/// An endpoint of a business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Which one.
    pub id: WebhookId,
    /// Whose it is.
    pub business: BusinessId,
    /// Where requests go.
    pub url: String,
    /// The statuses it is told of; empty: all.
    pub events: Vec<Status>,
    /// Which master key its secret is made from.
    pub key: String,
    /// How often its secret was changed.
    pub generation: u32,
    /// When it was changed last: the one before is valid for a while longer.
    pub rotated_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Told nothing since, and why.
    pub disabled: Option<(Timestamp, String)>,
    /// Requests that failed since one went well.
    pub failures: u32,
    /// When the first of them did.
    pub failing_since: Option<Timestamp>,
    /// Why the last of them failed.
    pub last_failure: Option<String>,
    /// Events that the log removed before the endpoint took them.
    pub missed: u64,
    /// Changes with each change of the row; nil before it is written.
    pub revision: Uuid,
}

/// How far an endpoint has been told of a partition of `message.status`: there is one only while something waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookCursor {
    /// Whose it is.
    pub business: BusinessId,
    /// The endpoint.
    pub webhook: WebhookId,
    /// The life of the log that the offset belongs to.
    pub epoch: Epoch,
    /// It was told of everything before, but for the events that `state` lists.
    pub offset: u64,
    /// The rest of what the stage keeps of the backlog: opaque here, at most [`STATE_BYTES`].
    pub state: Bytes,
}

/// Largest state of a cursor, in bytes.
pub const STATE_BYTES: usize = 64 << 10;

/// Webhooks.
#[async_trait]
pub trait WebhookStore: Send + Sync + 'static {
    /// Writes a new webhook, durably; returns it with its revision. The same id again changes nothing.
    async fn create(&self, webhook: Webhook) -> Result<Webhook, StoreError>;

    /// Writes a changed webhook, durably, if it still is as it was read: its revision says. Returns it with its new
    /// revision; `None` where it was changed or deleted meanwhile: read it again.
    async fn replace(&self, webhook: Webhook) -> Result<Option<Webhook>, StoreError>;

    /// A webhook of a business.
    async fn get(&self, business: &BusinessId, id: WebhookId) -> Result<Option<Webhook>, StoreError>;

    /// The webhooks of a business, oldest first, at most [`LISTED`].
    async fn list(&self, business: &BusinessId) -> Result<Vec<Webhook>, StoreError>;

    /// Deletes a webhook, durably; returns whether there was one.
    async fn delete(&self, business: &BusinessId, id: WebhookId) -> Result<bool, StoreError>;

    /// Writes how far endpoints were told of a partition; the newest write stands.
    async fn put_cursors(&self, partition: u32, cursors: Vec<WebhookCursor>) -> Result<(), StoreError>;

    /// Forgets the cursor of an endpoint that is no longer behind.
    async fn remove_cursor(&self, partition: u32, webhook: WebhookId) -> Result<(), StoreError>;

    /// The cursors of a partition, of every epoch, at most 100,000.
    async fn cursors(&self, partition: u32) -> Result<Vec<WebhookCursor>, StoreError>;
}

/// Most cursors that are read of a partition.
pub(crate) const CURSORS: i32 = 100_000;

/// The names of statuses, as a row has them.
pub(crate) fn event_names(events: &[Status]) -> String {
    events.iter().map(|status| status.as_str()).collect::<Vec<_>>().join(" ")
}
