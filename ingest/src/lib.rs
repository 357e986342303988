//! The HTTP API: it takes messages in, and tells of them.
//!
//! A submission goes, in this order: `context` (who asks, joined to which trace) → `body` (bounded bytes) → `submit`
//! (parsed, validated, made a record, appended to `messages.accepted`) → the answer. `bulk` does the same for a stream of
//! lines. `idempotency` stands around both. The rest reads the store: `messages`, `stream`; `read` and `cancel` move a
//! status on.
//!
//! Ingest accepts; it delivers nothing, and writes no history: that follows from the log.
//! `console` is a page that calls all of this as any client does.

mod body;
mod bulk;
mod caller;
mod cancel;
pub mod console;
mod context;
mod idempotency;
mod json;
mod messages;
mod openapi;
mod options;
mod problems;
mod query;
mod read;
mod router;
mod stream;
mod submit;
mod unread;
mod view;

use std::sync::Arc;

use eshaar_auth::Authenticator;
use eshaar_model::Clock;
use eshaar_schemas::Codecs;
use eshaar_store::Store;
use eshaar_topics::{Cancelled, Log};

pub use openapi::document as openapi_document;
pub use options::{BulkOptions, Options};
pub use router::router;

/// What the API rests on.
#[derive(Clone)]
pub struct Deps {
    /// Where accepted messages go.
    pub log: Arc<dyn Log>,
    /// How records are written and read.
    pub codecs: Codecs,
    /// Where claims are kept and messages are found.
    pub store: Store,
    /// Who may call.
    pub auth: Authenticator,
    /// What was taken back: it is not shown to its recipient.
    pub cancelled: Arc<Cancelled>,
    /// The present.
    pub clock: Clock,
}

/// What every handler has.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) deps: Deps,
    pub(crate) options: Options,
    pub(crate) ids: submit::Ids,
    pub(crate) claims: idempotency::Claims,
    /// Bulk requests that may still begin.
    pub(crate) bulk_slots: Arc<tokio::sync::Semaphore>,
}

impl App {
    pub(crate) fn new(deps: Deps, options: Options) -> Self {
        let claims = idempotency::Claims::new(Arc::clone(&deps.store.claims));
        let bulk_slots = Arc::new(tokio::sync::Semaphore::new(options.bulk.concurrent.get()));
        Self(Arc::new(Inner { deps, options, ids: submit::Ids::default(), claims, bulk_slots }))
    }
}

impl std::ops::Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}
