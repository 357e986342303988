//! An endpoint as this process knows it: what it is, whether it is told now, and what becomes of one that fails.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use eshaar_model::retry::DELAYS;
use eshaar_model::{BusinessId, Clock, Status, Timestamp, WebhookId};
use eshaar_service::metrics::WEBHOOK_DISABLED;
use eshaar_store::{StoreError, Webhook, WebhookStore};
use metrics::counter;
use moka::future::Cache;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Options;

/// Businesses that are remembered to have webhooks or none.
const KNOWN_BUSINESSES: u64 = 100_000;
/// Failures in a row after which an endpoint is left alone for a while, and then tried by one request at a time.
const BREAK_AFTER: u32 = 5;
/// How often, at most, it is written down how an endpoint is.
const NOTED_EVERY: Duration = Duration::from_secs(5);
/// Rounds of writing a webhook that others change at the same time.
const ROUNDS: usize = 4;

/// An endpoint.
pub(super) struct Endpoint {
    pub(super) id: WebhookId,
    pub(super) business: BusinessId,
    webhook: Mutex<Option<Webhook>>,
    health: Mutex<Health>,
    changed: Notify,
    requests: Arc<Semaphore>,
    trial: Arc<AsyncMutex<()>>,
}

#[derive(Default)]
struct Health {
    /// Requests that failed since one went well.
    failures: u32,
    failing_since: Option<Timestamp>,
    /// Failures that were not written down yet.
    unwritten: u32,
    written: Option<Instant>,
    /// Not to be asked before.
    hold: Option<Instant>,
}

/// Leave to make one request.
pub(super) struct Turn {
    _requests: [OwnedSemaphorePermit; 2],
    _trial: Option<OwnedMutexGuard<()>>,
    /// The endpoint as it is now.
    pub(super) webhook: Webhook,
}

impl Endpoint {
    fn new(webhook: &Webhook, requests: usize) -> Self {
        Self {
            id: webhook.id,
            business: webhook.business.clone(),
            webhook: Mutex::new(None),
            health: Mutex::default(),
            changed: Notify::new(),
            requests: Arc::new(Semaphore::new(requests)),
            trial: Arc::default(),
        }
    }

    /// The endpoint, unless it is disabled or deleted.
    pub(super) fn enabled(&self) -> Option<Webhook> {
        self.webhook.lock().clone().filter(|webhook| webhook.disabled.is_none())
    }

    /// Whether it wants to be told of this.
    pub(super) fn wants(&self, status: Status) -> bool {
        self.webhook.lock().as_ref().is_some_and(|webhook| {
            webhook.disabled.is_none() && (webhook.events.is_empty() || webhook.events.contains(&status))
        })
    }

    fn tell_disabled(&self, reason: &str) {
        counter!(WEBHOOK_DISABLED).increment(1);
        tracing::warn!(webhook = %self.id, business = %self.business, reason, "a webhook is disabled");
    }

    /// Whether how it fares may be written down again already; says so once in a while.
    fn may_write(&self) -> bool {
        let mut health = self.health.lock();
        let due = health.written.is_none_or(|written| written.elapsed() >= NOTED_EVERY);
        if due {
            health.written = Some(Instant::now());
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
            *self.health.lock() = Health::default();
        }
        self.changed.notify_waiters();
    }

    /// Leave to make a request, once the endpoint may be asked; `None` when it is disabled or deleted.
    pub(super) async fn turn(&self, all: &Arc<Semaphore>) -> Option<Turn> {
        loop {
            let changed = self.changed.notified();
            let webhook = self.enabled()?;
            let (hold, failing) = {
                let health = self.health.lock();
                (health.hold, health.failures >= BREAK_AFTER)
            };
            if let Some(until) = hold.filter(|until| *until > Instant::now()) {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    () = changed => {}
                }
                continue;
            }
            let trial = if failing { Some(Arc::clone(&self.trial).lock_owned().await) } else { None };
            let requests =
                [Arc::clone(&self.requests).acquire_owned().await.ok()?, Arc::clone(all).acquire_owned().await.ok()?];
            // Whoever had the turn before may have learned that it is not to be asked.
            let held = self.health.lock().hold.is_some_and(|until| until > Instant::now());
            if !held {
                return Some(Turn { _requests: requests, _trial: trial, webhook });
            }
        }
    }

    /// Lets nobody ask it for a while.
    pub(super) fn hold(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut health = self.health.lock();
        health.hold = Some(health.hold.map_or(until, |hold| hold.max(until)));
    }
}

/// The endpoints of all businesses that were asked for.
pub(super) struct Endpoints {
    store: Arc<dyn WebhookStore>,
    clock: Clock,
    options: Options,
    known: Cache<BusinessId, Arc<[Arc<Endpoint>]>>,
    /// As they were before they were looked up again: an endpoint stays the same one.
    all: Mutex<AHashMap<WebhookId, Arc<Endpoint>>>,
}

impl Endpoints {
    pub(super) fn new(store: Arc<dyn WebhookStore>, clock: Clock, options: Options) -> Self {
        let known = Cache::builder().max_capacity(KNOWN_BUSINESSES);
        let known = known.time_to_live(Duration::from_millis(options.known_for_ms)).build();
        Self { store, clock, options, known, all: Mutex::default() }
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
            let endpoint = all.entry(webhook.id).or_insert_with(|| Arc::new(Endpoint::new(&webhook, most)));
            endpoint.become_known(Some(webhook));
            Arc::clone(endpoint)
        });
        Ok(endpoints.collect())
    }

    /// A request went well.
    pub(super) async fn succeeded(&self, endpoint: &Endpoint) {
        let was_failing = {
            let mut health = endpoint.health.lock();
            let written = health.written;
            let was_failing = health.failures > 0;
            *health = Health { written, ..Health::default() };
            was_failing
        };
        if was_failing {
            endpoint.changed.notify_waiters();
        }
        let stands = endpoint.webhook.lock().as_ref().is_some_and(|webhook| webhook.failures > 0);
        if stands && endpoint.may_write() {
            self.write(endpoint, |webhook| {
                webhook.failures = 0;
                webhook.failing_since = None;
            })
            .await;
        }
    }

    /// A request failed: the endpoint is left alone for longer and longer, and in the end disabled.
    pub(super) async fn failed(&self, endpoint: &Endpoint, silent: bool, reason: &str) {
        let now = self.clock.now();
        let (failures, since) = {
            let mut health = endpoint.health.lock();
            health.failures += 1;
            health.unwritten += 1;
            let since = *health.failing_since.get_or_insert(now);
            (health.failures, since)
        };
        if failures >= BREAK_AFTER {
            endpoint.hold(Duration::from_secs(self.options.open_for_s));
        } else if silent {
            endpoint.hold(DELAYS[failures as usize - 1]);
        }
        if failures == BREAK_AFTER {
            tracing::warn!(webhook = %endpoint.id, business = %endpoint.business, reason, "a webhook fails: left alone for a while");
        }
        let known = endpoint.webhook.lock().as_ref().map_or((0, None), |known| (known.failures, known.failing_since));
        let since = known.1.map_or(since, |known| known.min(since));
        let too_often = known.0.max(failures) + 1 > self.options.disable_after_failures;
        let too_long = now.millis_since(since) >= self.options.disable_after_s.saturating_mul(1_000);
        if too_often || too_long || endpoint.may_write() {
            self.note(endpoint, now, since, reason).await;
        }
    }

    async fn note(&self, endpoint: &Endpoint, now: Timestamp, since: Timestamp, reason: &str) {
        let unwritten = std::mem::take(&mut endpoint.health.lock().unwritten);
        let (most, longest_ms) =
            (self.options.disable_after_failures, self.options.disable_after_s.saturating_mul(1_000));
        let mut disabled = false;
        self.write(endpoint, |webhook| {
            webhook.failures = webhook.failures.saturating_add(unwritten);
            let since = *webhook.failing_since.get_or_insert(since);
            if webhook.failures >= most || now.millis_since(since) >= longest_ms {
                let failures = webhook.failures;
                let why = format!("{failures} requests in a row failed since {since}, the last one so: {reason}");
                webhook.disabled.get_or_insert((now, why));
                disabled = true;
            }
        })
        .await;
        if disabled {
            endpoint.tell_disabled(reason);
        }
    }

    /// Disables it at once.
    pub(super) async fn disable(&self, endpoint: &Endpoint, reason: &str) {
        let now = self.clock.now();
        self.write(endpoint, |webhook| {
            webhook.disabled.get_or_insert_with(|| (now, reason.to_owned()));
        })
        .await;
        endpoint.tell_disabled(reason);
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
