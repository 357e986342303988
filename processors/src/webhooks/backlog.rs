//! What an endpoint is still to be told of one partition of `message.status`, and the task that tells it.
//!
//! A few records wait in memory, as the stage read them. Past that the endpoint is *behind*: the log itself is the queue, and
//! is read again from where it stands, by this endpoint alone and as fast as it takes. How far it was told stands in the
//! store from before the stage lets go of the first record until everything is told, so a crash repeats some requests (with
//! the same `webhook-id`) and loses none.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use eshaar_model::{Attempt, BusinessId, Status, WebhookId};
use eshaar_schemas::StatusChanged;
use eshaar_service::metrics::{WEBHOOK_BACKLOGS, WEBHOOK_REQUESTS, WEBHOOK_SECONDS};
use eshaar_store::WebhookCursor;
use eshaar_topics::runner::deleted_unread;
use eshaar_topics::{Gap, Reader, Received, Stage as _, Topic, headers};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use metrics::{counter, gauge, histogram};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::endpoint::Endpoint;
use super::request::{self, Answer};
use super::{Shared, Webhooks, status_of};
use crate::{Undecodable, decode};

/// Most messages that one endpoint is being told of at a time, those included that wait to be tried again.
const IN_HAND: usize = 64;
/// Records that are read from the log at once.
const READ_AT_ONCE: usize = 200;
/// How often it is written down how far an endpoint was told.
const SAVED_EVERY: Duration = Duration::from_secs(1);
/// How long is waited for an engine that does not answer.
const ENGINE_PAUSE: Duration = Duration::from_secs(1);

/// The backlogs of one partition, shared by the stage that fills them and the tasks that empty them.
pub(super) struct Shelf {
    pub(super) partition: u32,
    inner: Mutex<Inner>,
    /// Whoever makes or removes a backlog together with its row in the store.
    pub(super) rows: tokio::sync::Mutex<()>,
}

struct Inner {
    /// What the stage reads next: everything below was offered to the backlogs.
    live: u64,
    backlogs: AHashMap<WebhookId, Backlog>,
}

struct Backlog {
    queue: VecDeque<Received>,
    /// Where the log is to be read again, once the queue is empty.
    behind: Option<u64>,
    arrived: Arc<Notify>,
}

impl Shelf {
    pub(super) fn new(partition: u32, live: u64) -> Self {
        let inner = Mutex::new(Inner { live, backlogs: AHashMap::new() });
        Self { partition, inner, rows: tokio::sync::Mutex::new(()) }
    }

    /// Whether an endpoint has a backlog here, and so a row and a task.
    pub(super) fn has(&self, webhook: WebhookId) -> bool {
        self.inner.lock().backlogs.contains_key(&webhook)
    }

    /// Makes a backlog that begins in the log at `from`, or with what comes next.
    pub(super) fn make(&self, webhook: WebhookId, from: Option<u64>) {
        let mut inner = self.inner.lock();
        let behind = from.filter(|from| *from < inner.live);
        inner.backlogs.insert(webhook, Backlog { queue: VecDeque::new(), behind, arrived: Arc::default() });
    }

    /// Gives records to the backlogs that want them; from now on the stage reads at `live`.
    pub(super) fn offer(&self, wanted: Vec<(WebhookId, Received)>, live: u64, most: usize) {
        let mut inner = self.inner.lock();
        for (webhook, record) in wanted {
            let Some(backlog) = inner.backlogs.get_mut(&webhook) else { continue };
            match backlog.behind {
                // It is read again with the rest.
                Some(_) => {}
                None if backlog.queue.len() >= most => backlog.behind = Some(record.position.offset),
                None => backlog.queue.push_back(record),
            }
            backlog.arrived.notify_one();
        }
        inner.live = live;
    }
}

/// The task of one endpoint and partition.
pub(super) struct Teller {
    pub(super) shared: Arc<Shared>,
    pub(super) shelf: Arc<Shelf>,
    pub(super) endpoint: Arc<Endpoint>,
}

/// The log, while it is read again.
struct Rereading {
    reader: Box<dyn Reader>,
    _turn: OwnedSemaphorePermit,
}

impl Teller {
    /// Tells the endpoint until nothing is left and nothing has come for a while, or it is disabled or deleted.
    pub(super) async fn run(self) {
        gauge!(WEBHOOK_BACKLOGS).increment(1.0);
        self.work().await;
        gauge!(WEBHOOK_BACKLOGS).decrement(1.0);
    }

    async fn work(&self) {
        let mut telling = FuturesUnordered::new();
        let mut untold = BTreeSet::new();
        let mut rereading = None;
        let mut saved_at = None;
        let mut save = interval(SAVED_EVERY);
        save.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let idle = Duration::from_secs(self.shared.options.idle_s.max(1));
        let mut busy = Instant::now();
        let Some(arrived) = self.arrivals() else { return };
        loop {
            while telling.len() < IN_HAND
                && let Some(record) = self.next()
            {
                untold.insert(record.position.offset);
                telling.push(self.tell(record));
                busy = Instant::now();
            }
            if telling.len() < IN_HAND && self.is_behind() {
                if let Err(error) = self.reread(&mut rereading).await {
                    tracing::warn!(webhook = %self.endpoint.id, error, "a webhook's backlog cannot be read; trying again");
                    rereading = None;
                    tokio::time::sleep(ENGINE_PAUSE).await;
                }
                busy = Instant::now();
                continue;
            }
            tokio::select! {
                Some(offset) = telling.next() => {
                    untold.remove(&offset);
                    busy = Instant::now();
                }
                () = arrived.notified(), if telling.len() < IN_HAND => {}
                _ = save.tick() => {
                    // Others want to read, too, while this endpoint takes nothing.
                    if telling.len() >= IN_HAND || self.behind().is_none() {
                        rereading = None;
                    }
                    let told = self.told_before(untold.first().copied());
                    if saved_at != Some(told) && !telling.is_empty() && self.save(told).await {
                        saved_at = Some(told);
                    }
                    let is_over = self.known().await.is_none() || (telling.is_empty() && busy.elapsed() >= idle);
                    if is_over && self.end().await {
                        return;
                    }
                }
            }
        }
    }

    fn arrivals(&self) -> Option<Arc<Notify>> {
        self.shelf.inner.lock().backlogs.get(&self.endpoint.id).map(|backlog| Arc::clone(&backlog.arrived))
    }

    fn next(&self) -> Option<Received> {
        self.shelf.inner.lock().backlogs.get_mut(&self.endpoint.id)?.queue.pop_front()
    }

    fn is_behind(&self) -> bool {
        let inner = self.shelf.inner.lock();
        inner
            .backlogs
            .get(&self.endpoint.id)
            .is_some_and(|backlog| backlog.queue.is_empty() && backlog.behind.is_some())
    }

    /// The lowest offset that the endpoint may not have been told of.
    fn told_before(&self, untold: Option<u64>) -> u64 {
        let inner = self.shelf.inner.lock();
        let backlog = inner.backlogs.get(&self.endpoint.id);
        let queued = backlog.and_then(|backlog| backlog.queue.front()).map(|record| record.position.offset);
        let behind = backlog.and_then(|backlog| backlog.behind);
        [untold, queued, behind].into_iter().flatten().min().unwrap_or(inner.live)
    }

    /// Reads more of the log into the queue, up to where the stage is; from there on records come by themselves again.
    async fn reread(&self, rereading: &mut Option<Rereading>) -> Result<(), String> {
        let Some(from) = self.behind() else { return Ok(()) };
        if rereading.is_none() {
            let turn = Arc::clone(&self.shared.readers).acquire_owned().await.map_err(|error| error.to_string())?;
            let reader = self.shared.log.read(Topic::MessageStatus, self.shelf.partition, from).await;
            let reader = reader.map_err(|error| error.to_string())?;
            let (topic, partition) = reader.source();
            if from < reader.next_offset() {
                deleted_unread(Webhooks::NAME, Gap { topic, partition, from, to: reader.next_offset() });
            }
            *rereading = Some(Rereading { reader, _turn: turn });
        }
        let Some(Rereading { reader, .. }) = rereading else { return Ok(()) };
        let ready = timeout(ENGINE_PAUSE * 5, reader.ready()).await;
        ready.map_err(|_| "the log does not answer".to_owned())?.map_err(|error| error.to_string())?;
        let records: Vec<Received> = reader.take(READ_AT_ONCE).into_iter().map(Received::from).collect();
        let next = reader.next_offset();
        let mut inner = self.shelf.inner.lock();
        let live = inner.live;
        let Some(backlog) = inner.backlogs.get_mut(&self.endpoint.id) else { return Ok(()) };
        let ours = records.into_iter().filter(|record| record.position.offset < live && self.wants(record));
        backlog.queue.extend(ours);
        // What is at `live` or later the stage has not offered yet: it will.
        backlog.behind = (next < live).then_some(next);
        Ok(())
    }

    fn behind(&self) -> Option<u64> {
        self.shelf.inner.lock().backlogs.get(&self.endpoint.id)?.behind
    }

    fn wants(&self, record: &Received) -> bool {
        record.headers.text(headers::FROM) == Some(self.endpoint.business.as_str())
            && status_of(record).is_none_or(|status: Status| self.endpoint.wants(status))
    }

    /// The endpoint as it is now; `None` once it is disabled or deleted. While the store is down it is as it was.
    async fn known(&self) -> Option<()> {
        if let Err(error) = self.shared.endpoints.of(&self.endpoint.business).await {
            tracing::debug!(webhook = %self.endpoint.id, %error, "a webhook is taken to be as it was");
        }
        self.endpoint.enabled().map(drop)
    }

    async fn save(&self, told: u64) -> bool {
        let cursor = self.shared.cursor(self.endpoint.business.clone(), self.endpoint.id, told);
        match self.shared.store.put_cursors(self.shelf.partition, vec![cursor]).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(webhook = %self.endpoint.id, %error, "how far a webhook was told is not written down");
                false
            }
        }
    }

    /// Removes the backlog, unless something has come.
    async fn end(&self) -> bool {
        let _rows = self.shelf.rows.lock().await;
        let enabled = self.endpoint.enabled().is_some();
        let has_more = |backlog: &Backlog| !backlog.queue.is_empty() || backlog.behind.is_some();
        if enabled && self.shelf.inner.lock().backlogs.get(&self.endpoint.id).is_some_and(has_more) {
            return false;
        }
        if let Err(error) = self.shared.store.remove_cursor(self.shelf.partition, self.endpoint.id).await {
            tracing::debug!(webhook = %self.endpoint.id, %error, "the cursor of a webhook is not removed yet");
            return false;
        }
        // Nothing has come meanwhile: whoever offers holds `rows`.
        self.shelf.inner.lock().backlogs.remove(&self.endpoint.id);
        true
    }

    /// Tells of one record, until it is told, refused for good, or nobody is there to be told. Returns its offset.
    async fn tell(&self, record: Received) -> u64 {
        let offset = record.position.offset;
        let Some((id, body)) = self.body(&record).await else { return offset };
        let (endpoints, mut attempt) = (&self.shared.endpoints, Attempt::FIRST);
        loop {
            let Some(turn) = self.endpoint.turn(&self.shared.requests).await else { return offset };
            let begun = Instant::now();
            let answer = self.shared.sender.tell(&turn.webhook, &id, body.clone(), self.shared.clock.now()).await;
            histogram!(WEBHOOK_SECONDS).record(begun.elapsed().as_secs_f64());
            counter!(WEBHOOK_REQUESTS, "answer" => name(&answer)).increment(1);
            match answer {
                Answer::Taken => {
                    endpoints.succeeded(&self.endpoint).await;
                    return offset;
                }
                Answer::Gone => {
                    endpoints.disable(&self.endpoint, "it answered 410 Gone").await;
                    return offset;
                }
                Answer::Wait(wait) => self.endpoint.hold(wait),
                Answer::Silent(reason) => endpoints.failed(&self.endpoint, true, &reason).await,
                Answer::Refused(status) => {
                    endpoints.failed(&self.endpoint, false, &format!("it answered {status}")).await;
                    drop(turn);
                    let Some((next, delay)) = attempt.next() else {
                        let reason = format!("webhook {} answered {status}", self.endpoint.id);
                        self.shared.give_up(&record, i32::from(attempt.count()) + 1, &reason).await;
                        return offset;
                    };
                    attempt = next;
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    /// The event's id and body; `None` for a record that nobody could be told of, which `notify` has made a dead letter.
    async fn body(&self, record: &Received) -> Option<(String, Vec<u8>)> {
        loop {
            match decode::<StatusChanged>(&self.shared.codecs, &record.value).await {
                Ok(change) => return Some((format!("{}.{}", change.id, change.status), request::body(&change))),
                Err(Undecodable::Value(_)) => return None,
                Err(Undecodable::Registry(error)) => {
                    tracing::debug!(%error, "a status cannot be read yet");
                    tokio::time::sleep(ENGINE_PAUSE).await;
                }
            }
        }
    }
}

const fn name(answer: &Answer) -> &'static str {
    match answer {
        Answer::Taken => "taken",
        Answer::Gone => "gone",
        Answer::Wait(_) => "wait",
        Answer::Silent(_) => "silent",
        Answer::Refused(_) => "refused",
    }
}

impl Shared {
    /// How far an endpoint was told, to be written down.
    pub(super) fn cursor(&self, business: BusinessId, webhook: WebhookId, offset: u64) -> WebhookCursor {
        WebhookCursor { business, webhook, epoch: self.log.epoch(), offset }
    }
}
