//! An endpoint as this process knows it: its webhook, its pace, and what is written down of its failures.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use eshaar_model::{AuditId, BusinessId, Clock, Principal, Status, Timestamp, WebhookId};
use eshaar_service::metrics::{WEBHOOK_DISABLED, WEBHOOK_MISSED};
use eshaar_store::{AuditEntry, AuditStore, StoreError, Webhook, WebhookStore};
use eshaar_topics::{Received, Topic, headers};
use metrics::counter;
use moka::future::Cache;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::pace::{Begun, FAILING_AFTER, Failure, Pace};
use super::{Options, status_of};

/// Businesses that are remembered to have webhooks or none.
const KNOWN_BUSINESSES: u64 = 100_000;
/// How often, at most, it is written down how an endpoint is.
const NOTED_EVERY: Duration = Duration::from_secs(5);
/// Rounds of writing a webhook that others change at the same time.
const ROUNDS: usize = 4;

/// An endpoint.
pub(super) struct Endpoint {
    pub(super) id: WebhookId,
    pub(super) business: BusinessId,
    webhook: Mutex<Option<Webhook>>,
    pace: Mutex<Pace>,
    notes: Mutex<Notes>,
    /// It may be asked again, or was changed.
    pub(super) changed: Notify,
    clock: Clock,
}

/// What is still to be written down.
#[derive(Default)]
struct Notes {
    failures: u32,
    written: Option<Instant>,
}

/// Whether an endpoint is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Enabled,
    Disabled,
    Deleted,
}

/// Leave to make one request.
pub(super) struct Slot {
    endpoint: Arc<Endpoint>,
    pub(super) begun: Begun,
}

impl Endpoint {
    fn new(webhook: &Webhook, requests: usize, clock: Clock) -> Self {
        Self {
            id: webhook.id,
            business: webhook.business.clone(),
            webhook: Mutex::new(None),
            pace: Mutex::new(Pace::new(u32::try_from(requests).unwrap_or(u32::MAX))),
            notes: Mutex::default(),
            changed: Notify::new(),
            clock,
        }
    }

    pub(super) fn state(&self) -> State {
        match &*self.webhook.lock() {
            None => State::Deleted,
            Some(webhook) if webhook.disabled.is_some() => State::Disabled,
            Some(_) => State::Enabled,
        }
    }

    /// The endpoint, unless it is disabled or deleted.
    pub(super) fn enabled(&self) -> Option<Webhook> {
        self.webhook.lock().clone().filter(|webhook| webhook.disabled.is_none())
    }

    /// Whether it is to be told of this step, now or once it is enabled.
    pub(super) fn wants(&self, step: Status) -> bool {
        let webhook = self.webhook.lock();
        webhook.as_ref().is_some_and(|webhook| webhook.events.is_empty() || webhook.events.contains(&step))
    }

    /// Whether it is to be told of anything in `messages.accepted`.
    pub(super) fn wants_accepted(&self) -> bool {
        self.wants(Status::Sent)
    }

    /// Whether it is to be told of this record.
    pub(super) fn wants_record(&self, record: &Received) -> bool {
        let is_ours = record.headers.text(headers::FROM) == Some(self.business.as_str());
        // What was accepted before the webhook was made is not news.
        let is_news = record.position.topic != Topic::MessagesAccepted
            || self.webhook.lock().as_ref().is_some_and(|webhook| webhook.created_at <= record.timestamp);
        is_ours && is_news && status_of(record).is_some_and(|step| self.wants(step))
    }

    /// Leave to make a request, if there may be one more now.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Slot> {
        let begun = self.pace.lock().begin(self.clock.now())?;
        Some(Slot { endpoint: Arc::clone(self), begun })
    }

    /// Whether it is left alone for a while.
    pub(super) fn is_held(&self) -> bool {
        self.pace.lock().held_until(self.clock.now()).is_some()
    }

    pub(super) fn is_slow(&self) -> bool {
        self.pace.lock().slow
    }

    /// Grows when it recovers from failing.
    pub(super) fn recoveries(&self) -> u64 {
        self.pace.lock().recoveries
    }

    /// Whether it took a request after `at`.
    pub(super) fn took_after(&self, at: Timestamp) -> bool {
        self.pace.lock().took_after(at)
    }

    fn tell_disabled(&self, reason: &str) {
        counter!(WEBHOOK_DISABLED).increment(1);
        tracing::warn!(webhook = %self.id, business = %self.business, reason, "a webhook is disabled");
    }

    /// Whether its failures may be written down again already.
    fn may_write(&self) -> bool {
        let mut notes = self.notes.lock();
        let due = notes.written.is_none_or(|written| written.elapsed() >= NOTED_EVERY);
        if due {
            notes.written = Some(Instant::now());
        }
        due
    }

    fn become_known(&self, webhook: Option<Webhook>) {
        let mut known = self.webhook.lock();
        let enabled_again = webhook.as_ref().is_some_and(|new| new.disabled.is_none())
            && known.as_ref().is_some_and(|old| old.disabled.is_some());
        *known = webhook;
        drop(known);
        if enabled_again {
            self.pace.lock().forgive();
            *self.notes.lock() = Notes::default();
        }
        self.changed.notify_waiters();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.endpoint.pace.lock().end();
        self.endpoint.changed.notify_waiters();
    }
}

/// The endpoints of all businesses that were asked for.
pub(super) struct Endpoints {
    store: Arc<dyn WebhookStore>,
    audit: Arc<dyn AuditStore>,
    clock: Clock,
    options: Options,
    known: Cache<BusinessId, Arc<[Arc<Endpoint>]>>,
    /// As they were before they were looked up again: an endpoint stays the same one.
    all: Mutex<AHashMap<WebhookId, Arc<Endpoint>>>,
}

impl Endpoints {
    pub(super) fn new(
        store: Arc<dyn WebhookStore>,
        audit: Arc<dyn AuditStore>,
        clock: Clock,
        options: Options,
    ) -> Self {
        let known = Cache::builder().max_capacity(KNOWN_BUSINESSES);
        let known = known.time_to_live(Duration::from_millis(options.known_for_ms)).build();
        Self { store, audit, clock, options, known, all: Mutex::default() }
    }

    /// The endpoints of a business, as they were a few seconds ago or are now.
    pub(super) async fn of(&self, business: &BusinessId) -> Result<Arc<[Arc<Endpoint>]>, Arc<StoreError>> {
        self.known.try_get_with_by_ref(business, self.look_up(business)).await
    }

    async fn look_up(&self, business: &BusinessId) -> Result<Arc<[Arc<Endpoint>]>, StoreError> {
        let webhooks = self.store.list(business).await?;
        let mut all = self.all.lock();
        let gone = all.values().filter(|known| known.business == *business);
        let gone: Vec<_> =
            gone.filter(|known| webhooks.iter().all(|webhook| webhook.id != known.id)).cloned().collect();
        for endpoint in gone {
            all.remove(&endpoint.id);
            endpoint.become_known(None);
        }
        let most = self.options.concurrent_per_endpoint.get();
        let endpoints = webhooks.into_iter().map(|webhook| {
            let new = || Arc::new(Endpoint::new(&webhook, most, self.clock.clone()));
            let endpoint = Arc::clone(all.entry(webhook.id).or_insert_with(new));
            endpoint.become_known(Some(webhook));
            endpoint
        });
        Ok(endpoints.collect())
    }

    /// A request was taken, in `took`.
    pub(super) async fn succeeded(&self, endpoint: &Endpoint, took: Duration) {
        let slow_after = Duration::from_millis(self.options.slow_ms);
        let had_failed = endpoint.pace.lock().taken(self.clock.now(), took, slow_after);
        endpoint.notes.lock().failures = 0;
        if had_failed {
            endpoint.changed.notify_waiters();
        }
        let stands = endpoint.webhook.lock().as_ref().is_some_and(|webhook| webhook.failures > 0);
        if stands && (had_failed || endpoint.may_write()) {
            self.write(endpoint, |webhook| {
                webhook.failures = 0;
                webhook.failing_since = None;
                webhook.last_failure = None;
            })
            .await;
        }
    }

    /// A request failed: the endpoint is left alone for longer and longer, and in the end disabled.
    pub(super) async fn failed(&self, endpoint: &Endpoint, begun: Begun, failure: Failure, reason: &str) {
        let now = self.clock.now();
        let (failures, since) = {
            let mut pace = endpoint.pace.lock();
            let jitter = u64::from_be_bytes(*endpoint.id.as_bytes().last_chunk().unwrap_or(&[0; 8]));
            let jitter = jitter.wrapping_add(u64::from(pace.failures));
            pace.failed(begun, failure, now, jitter);
            (pace.failures, *pace.failing_since.get_or_insert(now))
        };
        endpoint.notes.lock().failures += 1;
        if failures == FAILING_AFTER {
            tracing::warn!(webhook = %endpoint.id, business = %endpoint.business, reason, "a webhook fails: left alone for a while");
        }
        let known = endpoint.webhook.lock().as_ref().and_then(|known| known.failing_since);
        let since = known.map_or(since, |known| known.min(since));
        if self.is_too_long(now, since) || known.is_none() || endpoint.may_write() {
            self.note(endpoint, now, since, reason).await;
        }
    }

    fn is_too_long(&self, now: Timestamp, since: Timestamp) -> bool {
        now.millis_since(since) >= self.options.disable_after_s.saturating_mul(1_000)
    }

    async fn note(&self, endpoint: &Endpoint, now: Timestamp, since: Timestamp, reason: &str) {
        let failures = std::mem::take(&mut endpoint.notes.lock().failures);
        let mut disabled = None;
        self.write(endpoint, |webhook| {
            webhook.failures = webhook.failures.saturating_add(failures);
            webhook.last_failure = Some(reason.to_owned());
            let since = *webhook.failing_since.get_or_insert(since);
            if self.is_too_long(now, since) && webhook.disabled.is_none() {
                let failures = webhook.failures;
                let why = format!("{failures} requests in a row failed since {since}, the last one so: {reason}");
                disabled = Some(why.clone());
                webhook.disabled = Some((now, why));
            }
        })
        .await;
        if let Some(why) = disabled {
            self.was_disabled(endpoint, now, &why).await;
        }
    }

    /// Disables it at once.
    pub(super) async fn disable(&self, endpoint: &Endpoint, reason: &str) {
        let now = self.clock.now();
        self.write(endpoint, |webhook| {
            webhook.disabled.get_or_insert_with(|| (now, reason.to_owned()));
        })
        .await;
        self.was_disabled(endpoint, now, reason).await;
    }

    async fn was_disabled(&self, endpoint: &Endpoint, now: Timestamp, reason: &str) {
        endpoint.tell_disabled(reason);
        let entry = AuditEntry {
            id: AuditId::new(now),
            actor: "stage:webhooks".to_owned(),
            action: "webhook.disabled".to_owned(),
            subject: endpoint.id.to_string(),
            detail: serde_json::json!({ "business": endpoint.business.as_str(), "reason": reason }).to_string(),
            correlation: None,
        };
        if let Err(error) = self.audit.append(entry).await {
            tracing::warn!(webhook = %endpoint.id, %error, "the audit log does not say that a webhook was disabled");
        }
    }

    /// The log removed events before the endpoint took them.
    pub(super) async fn missed(&self, endpoint: &Endpoint, events: u64) {
        counter!(WEBHOOK_MISSED).increment(events);
        tracing::warn!(webhook = %endpoint.id, business = %endpoint.business, events, "a webhook missed events that the log removed");
        self.write(endpoint, |webhook| webhook.missed = webhook.missed.saturating_add(events)).await;
    }

    /// Changes the webhook in the store, on what others may have made of it meanwhile.
    async fn write(&self, endpoint: &Endpoint, mut change: impl FnMut(&mut Webhook)) {
        for _ in 0..ROUNDS {
            let read = self.store.get(&endpoint.business, endpoint.id).await;
            let written = match read {
                Ok(Some(mut webhook)) => {
                    change(&mut webhook);
                    self.store.replace(webhook).await
                }
                Ok(None) => {
                    endpoint.become_known(None);
                    return;
                }
                Err(error) => Err(error),
            };
            match written {
                Ok(Some(webhook)) => {
                    endpoint.become_known(Some(webhook));
                    return;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(webhook = %endpoint.id, %error, "how a webhook is could not be written down");
                    return;
                }
            }
        }
    }
}

/// The business that sent the message of a record.
pub(super) fn sender(record: &Received) -> Option<BusinessId> {
    match record.headers.text(headers::FROM)?.parse().ok()? {
        Principal::Business(business) => Some(business),
        Principal::Phone(_) => None,
    }
}
