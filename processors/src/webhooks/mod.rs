//! Tells businesses at their webhooks what becomes of their messages (R9.3), by Standard Webhooks 1.0.
//!
//! Reads `message.status`; writes nothing but a dead letter of what an endpoint refused seven times. A stage of its own, in a
//! group of its own, so that no endpoint ever delays what `notify` tells live. It makes no request itself: it hands records
//! to the [`backlog`] of each endpoint, which are told side by side and each at its own pace, and goes on. So a record is
//! settled when it is written down that its endpoints are still to be told of it, not when they are.
//!
//! [`request`]: one request and its answer · [`endpoint`]: who may be asked now, who is disabled · [`backlog`]: what is still
//! to be told, and the telling.
//!
//! *An answer is about the message, silence about the endpoint*: a refusal (4xx, 5xx) is tried again after 1, 2, 4, 8, 16 and
//! 32 s and is then a dead letter (R4.1, R4.2); what does not answer, or is answered 502, 503 or 504 by what stands before
//! it, spends no tries (R4.7). After 5 failures in a row an endpoint is left alone for a minute, then tried by one request.

mod backlog;
mod endpoint;
mod request;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use async_trait::async_trait;
use eshaar_model::{BusinessId, Clock, Principal, Status};
use eshaar_schemas::Codecs;
use eshaar_service::metrics::DEAD_LETTERS;
use eshaar_store::{StoreError, WebhookStore};
use eshaar_topics::{AppendError, Log, NewRecord, Outcome, Received, Stage, StageError, Topic, headers, runner};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::backlog::{Shelf, Teller};
use self::endpoint::{Endpoint, Endpoints};
pub use self::request::{Sender, SetupError};
use crate::pause;

/// How long is waited before an append that failed is tried again.
const APPEND_AGAIN: Duration = Duration::from_secs(1);

/// How endpoints are told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Whether endpoints may be reached by http, and at addresses of private networks; from `webhooks.allow_private`.
    #[serde(skip)]
    pub allow_private: bool,
    /// Authorities that are trusted besides the system's, PEM; from `webhooks.ca_file`.
    #[serde(skip)]
    pub ca_file: Option<PathBuf>,
    /// Seconds that a request may take in all.
    pub timeout_s: u64,
    /// Most requests at once, to all endpoints (R6.7).
    pub concurrent: NonZeroUsize,
    /// Most requests at once to one endpoint.
    pub concurrent_per_endpoint: NonZeroUsize,
    /// Records that wait in memory for an endpoint, for each partition; past it the log is read again.
    pub queue_records: usize,
    /// Endpoints for which the log is read again at a time.
    pub readers: NonZeroUsize,
    /// Milliseconds after which it is looked up again which webhooks a business has.
    pub known_for_ms: u64,
    /// Seconds without anything to tell after which a backlog is put away.
    pub idle_s: u64,
    /// Seconds that an endpoint is left alone after 5 failures in a row (R6.2).
    pub open_for_s: u64,
    /// Failures in a row after which an endpoint is disabled.
    pub disable_after_failures: u32,
    /// Seconds of nothing but failures after which an endpoint is disabled.
    pub disable_after_s: i64,
    /// Milliseconds that are waited when the store does not answer.
    pub pause_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        let nonzero = |number| NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN);
        Self {
            allow_private: false,
            ca_file: None,
            timeout_s: 10,
            concurrent: nonzero(64),
            concurrent_per_endpoint: nonzero(8),
            queue_records: 256,
            readers: nonzero(4),
            known_for_ms: 5_000,
            idle_s: 30,
            open_for_s: 60,
            disable_after_failures: 140,
            disable_after_s: 86_400,
            pause_ms: 200,
        }
    }
}

/// What the stage rests on.
pub struct Ports {
    /// The log, to be read again for who is behind; and for dead letters.
    pub log: Arc<dyn Log>,
    /// Webhooks, and how far they were told.
    pub store: Arc<dyn WebhookStore>,
    /// Records to bytes and back.
    pub codecs: Codecs,
    /// What makes and signs requests.
    pub sender: Arc<Sender>,
    /// The present.
    pub clock: Clock,
}

/// The stage.
pub struct Webhooks(Arc<Shared>);

/// What the stage and the tasks of all backlogs have.
struct Shared {
    log: Arc<dyn Log>,
    store: Arc<dyn WebhookStore>,
    codecs: Codecs,
    clock: Clock,
    sender: Arc<Sender>,
    endpoints: Endpoints,
    requests: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    options: Options,
}

/// The backlogs of a partition and their tasks, which end with it.
pub struct Partition {
    shelf: Arc<Shelf>,
    tellers: JoinSet<()>,
}

impl Webhooks {
    /// The stage.
    pub fn new(ports: Ports, options: Options) -> Self {
        let Ports { log, store, codecs, sender, clock } = ports;
        Self(Arc::new(Shared {
            sender,
            endpoints: Endpoints::new(Arc::clone(&store), clock.clone(), options.clone()),
            requests: Arc::new(Semaphore::new(options.concurrent.get())),
            readers: Arc::new(Semaphore::new(options.readers.get())),
            log,
            store,
            codecs,
            clock,
            options,
        }))
    }

    /// Which endpoint is to be told of which record.
    async fn wanted(&self, batch: &[Received]) -> Result<Vec<(Arc<Endpoint>, Received)>, Arc<StoreError>> {
        let mut known: AHashMap<BusinessId, Arc<[Arc<Endpoint>]>> = AHashMap::new();
        let mut wanted = Vec::new();
        for record in batch {
            let Some(business) = sender(record) else { continue };
            let endpoints = if let Some(endpoints) = known.get(&business) {
                endpoints
            } else {
                let endpoints = self.0.endpoints.of(&business).await?;
                known.entry(business).or_insert(endpoints)
            };
            // Most businesses have none: not even the status is read.
            if endpoints.is_empty() {
                continue;
            }
            let status = status_of(record);
            let told = endpoints.iter().filter(|endpoint| status.is_none_or(|status| endpoint.wants(status)));
            wanted.extend(told.map(|endpoint| (Arc::clone(endpoint), record.clone())));
        }
        Ok(wanted)
    }

    /// Makes the backlogs that are not there yet: first their rows, then they themselves.
    async fn make_backlogs(
        &self,
        partition: &mut Partition,
        wanted: &[(Arc<Endpoint>, Received)],
    ) -> Result<(), Arc<StoreError>> {
        let mut fresh: Vec<(&Arc<Endpoint>, u64)> = Vec::new();
        for (endpoint, record) in wanted {
            if !partition.shelf.has(endpoint.id) && fresh.iter().all(|(known, _)| known.id != endpoint.id) {
                fresh.push((endpoint, record.position.offset));
            }
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let cursor =
            |(endpoint, offset): &(&Arc<Endpoint>, u64)| self.0.cursor(endpoint.business.clone(), endpoint.id, *offset);
        let cursors = fresh.iter().map(cursor).collect();
        self.0.store.put_cursors(partition.shelf.partition, cursors).await.map_err(Arc::new)?;
        for (endpoint, _) in fresh {
            partition.shelf.make(endpoint.id, None);
            partition.start(&self.0, Arc::clone(endpoint));
        }
        Ok(())
    }

    async fn hand_over(&self, partition: &mut Partition, batch: &[Received]) -> Result<(), String> {
        let wanted = self.wanted(batch).await.map_err(|error| error.to_string())?;
        if let Some((endpoint, _)) = wanted.iter().find(|(endpoint, _)| !self.can_sign(endpoint)) {
            return Err(format!("the key of webhook {} is not in webhooks.key_file", endpoint.id));
        }
        let live = batch.last().map_or(0, |record| record.position.offset + 1);
        let shelf = Arc::clone(&partition.shelf);
        let _rows = shelf.rows.lock().await;
        self.make_backlogs(partition, &wanted).await.map_err(|error| error.to_string())?;
        let wanted = wanted.into_iter().map(|(endpoint, record)| (endpoint.id, record)).collect();
        shelf.offer(wanted, live, self.0.options.queue_records);
        Ok(())
    }

    fn can_sign(&self, endpoint: &Endpoint) -> bool {
        endpoint.enabled().is_none_or(|webhook| self.0.sender.can_sign(&webhook))
    }
}

impl Partition {
    fn start(&mut self, shared: &Arc<Shared>, endpoint: Arc<Endpoint>) {
        let teller = Teller { shared: Arc::clone(shared), shelf: Arc::clone(&self.shelf), endpoint };
        self.tellers.spawn(teller.run());
    }
}

#[async_trait]
impl Stage for Webhooks {
    const NAME: &'static str = "webhooks";
    /// A receipt is no message.
    const PATIENCE: Duration = Duration::from_millis(50);
    type Partition = Partition;

    fn inputs(&self) -> Vec<(Topic, u32)> {
        vec![(Topic::MessageStatus, 1)]
    }

    /// Goes on with who was behind when the owner before left.
    async fn open(&self, partition: u32, next: &[(Topic, u64)]) -> Result<Partition, StageError> {
        let live = next.first().map_or(0, |(_, offset)| *offset);
        let mut opened = Partition { shelf: Arc::new(Shelf::new(partition, live)), tellers: JoinSet::new() };
        let failed = |error: &dyn std::fmt::Display| StageError(error.to_string());
        for cursor in self.0.store.cursors(partition).await.map_err(|error| failed(&error))? {
            let endpoints = self.0.endpoints.of(&cursor.business).await.map_err(|error| failed(&error))?;
            let endpoint = endpoints.iter().find(|endpoint| endpoint.id == cursor.webhook);
            let goes_on = |endpoint: &Arc<Endpoint>| endpoint.enabled().is_some() && cursor.epoch == self.0.log.epoch();
            if let Some(endpoint) = endpoint.filter(|endpoint| goes_on(endpoint)) {
                opened.shelf.make(endpoint.id, Some(cursor.offset));
                opened.start(&self.0, Arc::clone(endpoint));
            } else {
                let removed = self.0.store.remove_cursor(partition, cursor.webhook).await;
                removed.map_err(|error| failed(&error))?;
            }
        }
        Ok(opened)
    }

    async fn handle(&self, partition: &mut Partition, batch: &[Received]) -> Vec<Outcome> {
        while partition.tellers.try_join_next().is_some() {}
        match self.hand_over(partition, batch).await {
            Ok(()) => batch.iter().map(|_| Outcome::Done).collect(),
            Err(reason) => vec![pause(&self.0.clock, self.0.options.pause_ms, &reason)],
        }
    }
}

impl Shared {
    /// The dead letter of a record that an endpoint refused on its last try; returns when it is there.
    async fn give_up(&self, record: &Received, attempts: i32, reason: &str) {
        const CODE: &str = "webhook_refused";
        metrics::counter!(DEAD_LETTERS, "stage" => Webhooks::NAME, "code" => CODE).increment(1);
        let at = self.clock.now();
        let mut letter = runner::dead_letter(Webhooks::NAME, record, (CODE, reason), at);
        letter.attempts = attempts;
        let (key, headers) = (record.key.clone(), record.headers.clone());
        let letter = match self.codecs.encode(&letter) {
            Ok(value) => NewRecord { topic: Topic::DeadLetters, partition: None, key, value, headers, timestamp: at },
            Err(error) => {
                tracing::error!(stage = Webhooks::NAME, %error, "a dead letter cannot be written");
                return;
            }
        };
        loop {
            match self.log.append(vec![letter.clone()]).await {
                Ok(_) | Err(AppendError::Closed) => return,
                Err(error) => tracing::warn!(stage = Webhooks::NAME, %error, "a dead letter is tried again"),
            }
            tokio::time::sleep(APPEND_AGAIN).await;
        }
    }
}

fn sender(record: &Received) -> Option<BusinessId> {
    match record.headers.text(headers::FROM)?.parse().ok()? {
        Principal::Business(business) => Some(business),
        Principal::Phone(_) => None,
    }
}

/// The status that a record tells of, as its id says: `<message id>.<status>`.
fn status_of(record: &Received) -> Option<Status> {
    record.headers.text(headers::CE_ID)?.split_once('.')?.1.parse().ok()
}
