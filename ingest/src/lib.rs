//! The HTTP API: it takes messages in, and tells of them.
//!
//! Every request passes one admission: `guard` authenticates it and takes what its operation costs (`costs`) from the
//! caller's limits (`admission`).
//!
//! A submission goes, in this order: `context` (who asks, joined to which trace) → `body` (bounded bytes) → `submit`
//! (parsed, validated, let in by `admission`, made a record, appended to `messages.accepted`) → the answer. `bulk` does the same for a stream of
//! lines. `idempotency` stands around both. The rest reads the store: `messages`, `stream`; `read` and `cancel` move a
//! status on. `conversations` are what businesses and phones say to each other. `broadcasts` are messages to many, to `audiences`. `webhooks` are where businesses are told. `admin` is for operators: dead letters, and the audit log.
//!
//! Ingest accepts; it delivers nothing, and writes no history: that follows from the log.
//! `console` is a page that calls all of this as any client does.

mod admin;
mod admission;
mod audiences;
mod body;
mod broadcasts;
mod bulk;
mod caller;
mod cancel;
pub mod console;
mod context;
mod conversations;
mod costs;
mod guard;
mod idempotency;
mod json;
mod messages;
mod openapi;
mod options;
mod problems;
mod progress;
mod query;
mod queues;
mod read;
mod root;
mod router;
mod shares;
mod stream;
mod submit;
mod unread;
mod view;
mod webhooks;

use std::sync::Arc;

use eshaar_auth::Authenticator;
use eshaar_auth::signing::SigningKeys;
use eshaar_model::Clock;
use eshaar_presence::cache::Cache;
use eshaar_presence::depths::Depths;
use eshaar_presence::limits::Limiter;
use eshaar_schemas::Codecs;
use eshaar_store::Store;
use eshaar_topics::{Cancelled, Log};

pub use conversations::live::{Live, LiveMessage, LiveSent};
pub use openapi::document as openapi_document;
pub use options::{BulkOptions, Markup, Options, QueueOptions};
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
    /// What signs webhooks.
    pub signing: SigningKeys,
    /// Whether webhooks may be reached by http, and at addresses of private networks (`webhooks.allow_private`).
    pub private_webhooks: bool,
    /// What was taken back: it is not shown to its recipient.
    pub cancelled: Arc<Cancelled>,
    /// How much each may send.
    pub limits: Arc<Limiter>,
    /// How much waits to be delivered.
    pub depths: Arc<dyn Depths>,
    /// What of the store need not be read again.
    pub cache: Arc<dyn Cache>,
    /// The present.
    pub clock: Clock,
}

/// Sees to the dead letters that operators asked to have redriven or discarded, until `shutdown`. To be run beside the
/// [`router()`]; another process's does as well.
pub async fn redriver(deps: Deps, options: &Options, shutdown: tokio_util::sync::CancellationToken) {
    admin::redriver::run(deps, options.redrives_per_s.get(), shutdown).await;
}

/// How long a request waits for the newest cancellations.
const FRESH_LIMIT: std::time::Duration = std::time::Duration::from_secs(2);

/// What every handler has.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) deps: Deps,
    pub(crate) options: Options,
    pub(crate) ids: submit::Ids,
    pub(crate) claims: idempotency::Claims,
    pub(crate) admission: admission::Admission,
    pub(crate) progress: progress::Progress,
    /// Places for uploads.
    pub(crate) uploads: Arc<shares::Shares>,
    /// Memory for answers of bulk requests, in bytes.
    pub(crate) answers: Arc<shares::Shares>,
}

impl App {
    pub(crate) fn new(deps: Deps, options: Options) -> Self {
        let claims = idempotency::Claims::new(Arc::clone(&deps.store.claims));
        let (limits, depths, log) = (Arc::clone(&deps.limits), Arc::clone(&deps.depths), Arc::clone(&deps.log));
        let admission = admission::Admission::new(limits, depths, log, &options.queue, options.bulk.patience());
        let progress = progress::Progress::new(Arc::clone(&deps.log), deps.clock.clone());
        let bulk = &options.bulk;
        let uploads = shares::Shares::new(bulk.concurrent.get(), bulk.concurrent_per_business.get());
        let answers = shares::Shares::new(bulk.unread_answers_bytes, bulk.unread_answers_bytes / 4);
        let ids = submit::Ids::default();
        Self(Arc::new(Inner { deps, options, ids, claims, admission, progress, uploads, answers }))
    }
}

impl App {
    /// Waits until the newest cancellations are known, before a message is shown to its recipient.
    pub(crate) async fn fresh(&self) -> Result<(), eshaar_service::Problem> {
        if self.deps.cancelled.is_fresh() {
            return Ok(());
        }
        metrics::counter!(eshaar_service::metrics::HELD, "stage" => "ingest").increment(1);
        let fresh = tokio::time::timeout(FRESH_LIMIT, self.deps.cancelled.fresh()).await;
        fresh.map_err(|_| problems::not_yet_known("the newest cancellations are not known at the moment"))
    }
}

impl std::ops::Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}
