//! Tells businesses at their webhooks what becomes of their messages (R9.3), by Standard Webhooks 1.0.
//!
//! Reads `message.status`, and `messages.accepted` for the step `sent`; writes nothing but a dead letter of what an endpoint
//! refused on every try. A stage of its own, in a group of its own, so that no endpoint ever delays what `notify` tells live.
//! It makes no request itself: it hands records to the backlog of each endpoint, which are told side by side and each at its
//! own pace, and goes on. So a record is settled when it is written down that its endpoints are still to be told of it, not
//! when they are.
//!
//! [`request`]: one request and its answer · [`places`]: how many requests there are at a time, and whose · [`pace`]: how many
//! an endpoint gets, and when it is left alone · [`endpoint`]: its webhook, and when it is disabled · [`shelf`]: what waits in
//! memory · [`catchup`]: the log, read again for who is behind · [`parked`] and [`work`]: what was refused, and the order of
//! events · [`teller`]: the task that tells · [`keeper`]: those that are disabled.
//!
//! *An answer is about the message, silence about the endpoint*: an event that is refused (4xx, 500) is tried again by
//! [`pace::DELAYS`]; it becomes a dead letter only after the last of them, and only if the endpoint takes others (R4.2).
//! Silence, 429, 502, 503 and 504 are about the endpoint, and spend no tries of the event (R4.7).

mod catchup;
mod endpoint;
mod keeper;
mod pace;
mod parked;
mod places;
mod request;
mod shelf;
mod teller;
#[cfg(test)]
mod tests;
mod work;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use async_trait::async_trait;
use eshaar_model::{BusinessId, Clock, MessageId, Status, Timestamp, WebhookId};
use eshaar_schemas::Codecs;
use eshaar_service::metrics::DEAD_LETTERS;
use eshaar_service::workers;
use eshaar_store::{AuditStore, StoreError, WebhookCursor, WebhookStore};
use eshaar_topics::{
    AppendError, Log, LogError, NewRecord, Outcome, Received, Stage, StageError, Topic, headers, runner,
};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use self::endpoint::{Endpoint, Endpoints, State, sender};
use self::keeper::Keeper;
use self::parked::{ACCEPTED, STATUS, Standing, TOPICS, index, place};
use self::places::Places;
pub use self::request::{Sender, SetupError};
use self::shelf::{Dormant, Shelf};
use self::teller::Teller;
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
    /// Most requests at once, to all endpoints (R6.7). A business has at most a fifth of them, and slow endpoints half.
    pub concurrent: NonZeroUsize,
    /// Most requests at once to one endpoint.
    pub concurrent_per_endpoint: NonZeroUsize,
    /// Records that wait in memory for an endpoint, for each partition; past it the log is read again.
    pub queue_records: usize,
    /// Endpoints for which the log is read again at a time, shared by businesses in the same way.
    pub readers: NonZeroUsize,
    /// Milliseconds after which it is looked up again which webhooks a business has.
    pub known_for_ms: u64,
    /// Seconds without anything to tell after which a backlog is put away.
    pub idle_s: u64,
    /// Milliseconds after which an answer counts as slow: the endpoint gets fewer requests at a time.
    pub slow_ms: u64,
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
            slow_ms: 2_000,
            disable_after_s: 5 * 86_400,
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
    /// Is told which endpoints were disabled.
    pub audit: Arc<dyn AuditStore>,
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
    requests: Arc<Places>,
    readers: Arc<Places>,
    options: Options,
}

/// The backlogs of a partition and their tasks, which end with it.
pub struct Partition {
    tellers: Arc<Tellers>,
    _keeper: AbortOnDropHandle<()>,
    /// Records of `messages.accepted` from before are not told of.
    accepted_from: Timestamp,
}

/// The tasks of a partition's endpoints.
struct Tellers {
    shared: Arc<Shared>,
    shelf: Arc<Shelf>,
    tasks: Mutex<JoinSet<()>>,
}

impl Webhooks {
    /// The stage.
    pub fn new(ports: Ports, options: Options) -> Self {
        let Ports { log, store, audit, codecs, sender, clock } = ports;
        Self(Arc::new(Shared {
            sender,
            endpoints: Endpoints::new(Arc::clone(&store), audit, clock.clone(), options.clone()),
            requests: Places::new(options.concurrent.get()),
            readers: Places::new(options.readers.get()),
            log,
            store,
            codecs,
            clock,
            options,
        }))
    }

    /// Which endpoint is to be told of which record.
    async fn wanted(
        &self,
        batch: &[Received],
        accepted_from: Timestamp,
    ) -> Result<Vec<(Arc<Endpoint>, Received)>, Arc<StoreError>> {
        let mut known: AHashMap<BusinessId, Arc<[Arc<Endpoint>]>> = AHashMap::new();
        let mut wanted = Vec::new();
        for record in batch {
            if record.position.topic == Topic::MessagesAccepted && record.timestamp < accepted_from {
                continue;
            }
            let Some(business) = sender(record) else { continue };
            let endpoints = if let Some(endpoints) = known.get(&business) {
                endpoints
            } else {
                let endpoints = self.0.endpoints.of(&business).await?;
                known.entry(business).or_insert(endpoints)
            };
            // Most businesses have none: the record is not looked at.
            let told = endpoints.iter().filter(|endpoint| endpoint.wants_record(record));
            wanted.extend(told.map(|endpoint| (Arc::clone(endpoint), record.clone())));
        }
        Ok(wanted)
    }

    /// Makes the backlogs that are not there yet: first their rows, then they themselves.
    async fn make_backlogs(
        &self,
        tellers: &Arc<Tellers>,
        wanted: &[(Arc<Endpoint>, Received)],
    ) -> Result<(), Arc<StoreError>> {
        let shelf = &tellers.shelf;
        let (live, mut fresh) = (shelf.live(), Vec::<(Arc<Endpoint>, Standing)>::new());
        for (endpoint, record) in wanted {
            let (topic, offset) = place(&record.position);
            if shelf.has(endpoint.id) || fresh.iter().any(|(known, _)| known.id == endpoint.id) {
                continue;
            }
            let mut standing = Standing::at(live);
            // Nothing before it is this endpoint's.
            standing.told[topic] = standing.told[topic].max(offset);
            standing.counted = standing.told;
            fresh.push((Arc::clone(endpoint), standing));
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let cursor =
            |(endpoint, standing): &(Arc<Endpoint>, Standing)| self.0.cursor(&endpoint.business, endpoint.id, standing);
        self.0.store.put_cursors(shelf.partition, fresh.iter().map(cursor).collect()).await.map_err(Arc::new)?;
        for (endpoint, standing) in fresh {
            tellers.take_on(endpoint, standing, false);
        }
        Ok(())
    }

    async fn hand_over(&self, partition: &Partition, batch: &[Received]) -> Result<(), Arc<StoreError>> {
        let wanted = self.wanted(batch, partition.accepted_from).await?;
        let shelf = &partition.tellers.shelf;
        let mut live = shelf.live();
        for record in batch {
            live[index(record.position.topic)] = record.position.offset + 1;
        }
        let _rows = shelf.rows.lock().await;
        self.make_backlogs(&partition.tellers, &wanted).await?;
        let wanted = wanted.into_iter().map(|(endpoint, record)| (endpoint.id, record)).collect();
        shelf.offer(wanted, live, self.0.options.queue_records, self.0.clock.now());
        Ok(())
    }

    /// From when on records of `messages.accepted` are told of. A group of a version that did not read the topic begins it now.
    async fn accepted_from(&self, partition: u32) -> Result<Timestamp, LogError> {
        let committed = async |topic| self.0.log.committed(Self::NAME, topic, partition).await;
        let is_new = committed(Topic::MessagesAccepted).await?.is_none();
        let is_upgraded = is_new && committed(Topic::MessageStatus).await?.is_some();
        Ok(if is_upgraded { self.0.clock.now() } else { Timestamp::from_millis(i64::MIN) })
    }
}

impl Tellers {
    /// Takes an endpoint on that stands there: begins to tell it, or remembers it while it is disabled. With `is_resumed` what
    /// the stage has read meanwhile is in the log alone.
    fn take_on(self: &Arc<Self>, endpoint: Arc<Endpoint>, standing: Standing, is_resumed: bool) {
        if endpoint.state() == State::Disabled {
            let dormant = Dormant { business: endpoint.business.clone(), standing, is_new: false };
            return self.shelf.put_away(endpoint.id, dormant);
        }
        self.shelf.make(endpoint.id, &standing, is_resumed);
        let teller = Teller { shared: Arc::clone(&self.shared), shelf: Arc::clone(&self.shelf), endpoint };
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(workers::guarded("webhook", teller.run(standing)));
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        self.tellers.tasks.lock().abort_all();
    }
}

#[async_trait]
impl Stage for Webhooks {
    const NAME: &'static str = "webhooks";
    /// A receipt is no message.
    const PATIENCE: Duration = Duration::from_millis(50);
    type Partition = Partition;

    fn inputs(&self) -> Vec<(Topic, u32)> {
        TOPICS.map(|topic| (topic, 1)).to_vec()
    }

    /// Goes on with who was behind when the owner before left.
    async fn open(&self, partition: u32, next: &[(Topic, u64)]) -> Result<Partition, StageError> {
        let failed = |error: &dyn std::fmt::Display| StageError(error.to_string());
        let live = TOPICS.map(|topic| next.iter().find(|(of, _)| *of == topic).map_or(0, |(_, offset)| *offset));
        let shelf = Arc::new(Shelf::new(partition, live));
        let tellers = Arc::new(Tellers { shared: Arc::clone(&self.0), shelf, tasks: Mutex::default() });
        for cursor in self.0.store.cursors(partition).await.map_err(|error| failed(&error))? {
            let endpoints = self.0.endpoints.of(&cursor.business).await.map_err(|error| failed(&error))?;
            let endpoint = endpoints.iter().find(|endpoint| endpoint.id == cursor.webhook);
            let standing = Standing::decode(cursor.offset, &cursor.state, live[ACCEPTED]);
            if let Some(endpoint) = endpoint.filter(|_| cursor.epoch == self.0.log.epoch()) {
                tellers.take_on(Arc::clone(endpoint), standing, true);
                continue;
            }
            if let Some(endpoint) = endpoint.filter(|_| standing.waiting > 0) {
                // The log was made anew.
                self.0.endpoints.missed(endpoint, standing.waiting).await;
            }
            let removed = self.0.store.remove_cursor(partition, cursor.webhook).await;
            removed.map_err(|error| failed(&error))?;
        }
        let accepted_from = self.accepted_from(partition).await.map_err(|error| failed(&error))?;
        let keeper = Keeper { tellers: Arc::clone(&tellers) };
        let keeper = AbortOnDropHandle::new(tokio::spawn(workers::guarded("webhook-keeper", keeper.run())));
        Ok(Partition { tellers, _keeper: keeper, accepted_from })
    }

    async fn handle(&self, partition: &mut Partition, batch: &[Received]) -> Vec<Outcome> {
        match self.hand_over(partition, batch).await {
            Ok(()) => batch.iter().map(|_| Outcome::Done).collect(),
            Err(error) => vec![pause(&self.0.clock, self.0.options.pause_ms, &error)],
        }
    }
}

impl Shared {
    /// Where an endpoint stands, to be written down.
    fn cursor(&self, business: &BusinessId, webhook: WebhookId, standing: &Standing) -> WebhookCursor {
        let (offset, state) = (standing.told[STATUS], standing.encode());
        WebhookCursor { business: business.clone(), webhook, epoch: self.log.epoch(), offset, state }
    }

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

/// The message that a record is about: its id is that of the record, up to the step.
fn message_of(record: &Received) -> Option<MessageId> {
    record.headers.text(headers::CE_ID)?.split('.').next()?.parse().ok()
}

/// The step that a record tells of. That in `messages.accepted` is `sent`; that of a status is in its id.
fn status_of(record: &Received) -> Option<Status> {
    if record.position.topic == Topic::MessagesAccepted {
        return Some(Status::Sent);
    }
    record.headers.text(headers::CE_ID)?.split_once('.')?.1.parse().ok()
}
