//! The stage on the embedded engines, before a real HTTP server that answers as it is told.
#![allow(clippy::unwrap_used)]

mod failing;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use bytes::Bytes;
use eshaar_model::{MessageId, Status, Timestamp, WebhookId};
use eshaar_schemas::{DeadLetter, Message, StatusChanged};
use eshaar_store::Webhook;
use eshaar_topics::Topic;
use eshaar_topics::flow::{self, Origin};
use eshaar_topics::runner;
use parking_lot::Mutex;
use reqwest::header::HeaderMap;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::*;
use crate::testing::{Engines, START, message, sender, signing_keys};

/// Longest that anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request as it arrived.
#[derive(Clone, Debug)]
struct Arrived {
    id: String,
    timestamp: i64,
    signatures: Vec<String>,
    body: Bytes,
}

impl Arrived {
    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// An endpoint: answers with what is in `answers`, then with 204.
#[derive(Default)]
struct Receiver {
    arrived: Mutex<Vec<Arrived>>,
    answers: Mutex<VecDeque<(u16, &'static str)>>,
    /// Answers every request with this instead.
    always: Mutex<Option<u16>>,
    /// Answers requests about this message so.
    refused: Mutex<Option<(String, u16)>>,
    /// The ids of those that were answered 204, in order.
    taken: Mutex<Vec<String>>,
    news: Notify,
}

impl Receiver {
    async fn start() -> (Arc<Self>, String) {
        let receiver = Arc::new(Self::default());
        let router = axum::Router::new().route("/hook", post(Self::take)).with_state(Arc::clone(&receiver));
        let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (receiver, url)
    }

    #[expect(clippy::unused_async, reason = "axum's handlers are async")]
    async fn take(State(receiver): State<Arc<Self>>, headers: HeaderMap, body: Bytes) -> Response {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        receiver.arrived.lock().push(Arrived {
            id: text("webhook-id").to_owned(),
            timestamp: text("webhook-timestamp").parse().unwrap(),
            signatures: text("webhook-signature").split(' ').map(str::to_owned).collect(),
            body,
        });
        receiver.news.notify_waiters();
        let always = *receiver.always.lock();
        let (status, wait) = match always {
            Some(status) => (status, ""),
            None => receiver.answers.lock().pop_front().unwrap_or((204, "")),
        };
        let about =
            receiver.refused.lock().clone().filter(|(message, _)| text("webhook-id").starts_with(message.as_str()));
        let status = about.map_or(status, |(_, status)| status);
        if status == 204 {
            receiver.taken.lock().push(text("webhook-id").to_owned());
        }
        let status = axum::http::StatusCode::from_u16(status).unwrap();
        if wait.is_empty() { status.into_response() } else { (status, [("retry-after", wait)]).into_response() }
    }

    /// Waits for so many requests.
    async fn requests(&self, count: usize) -> Vec<Arrived> {
        let all = async {
            loop {
                let news = self.news.notified();
                let arrived = self.arrived.lock().clone();
                if arrived.len() >= count {
                    return arrived;
                }
                news.await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, all).await;
        waited.unwrap_or_else(|_| panic!("{} of {count} requests came", self.arrived.lock().len()))
    }

    /// Waits for so many requests, and meanwhile moves the clock on by `step_ms` at a time.
    async fn requests_by(&self, clock: &Clock, step_ms: i64, count: usize) -> Vec<Arrived> {
        let moving = async {
            while self.arrived.lock().len() < count {
                clock.advance_millis(step_ms);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let moved = tokio::time::timeout(PATIENCE, moving).await;
        moved.unwrap_or_else(|_| panic!("{} of {count} requests came", self.arrived.lock().len()));
        self.arrived.lock().clone()
    }

    fn ids(&self) -> Vec<String> {
        self.arrived.lock().iter().map(|arrived| arrived.id.clone()).collect()
    }
}

fn options() -> Options {
    Options { allow_private: true, idle_s: 1, known_for_ms: 50, ..Options::default() }
}

/// The stage, running.
struct Running {
    shutdown: CancellationToken,
    stage: JoinHandle<()>,
}

impl Running {
    fn start(engines: &Engines, options: Options) -> Self {
        Self::on(engines, Arc::new(engines.log.clone()), options)
    }

    fn on(engines: &Engines, log: Arc<dyn Log>, options: Options) -> Self {
        let ports = Ports {
            log: Arc::clone(&log),
            store: Arc::clone(&engines.store.webhooks),
            audit: Arc::clone(&engines.store.audit),
            codecs: engines.codecs.clone(),
            sender: sender(&options),
            clock: engines.clock.clone(),
        };
        let stage = Arc::new(Webhooks::new(ports, options));
        let deps = runner::Deps {
            log,
            codecs: engines.codecs.clone(),
            clock: engines.clock.clone(),
            watchdog: runner::Watchdog::new(Duration::from_mins(1)),
            backlogs: Arc::new(()),
        };
        let shutdown = CancellationToken::new();
        let stage = tokio::spawn(runner::run(stage, deps, runner::Options::default(), shutdown.clone()));
        Self { shutdown, stage }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.stage.await.unwrap();
    }
}

async fn webhook(engines: &Engines, url: &str, events: &[Status]) -> Webhook {
    engines.store.webhooks.create(webhook_at(url, events)).await.unwrap()
}

fn webhook_at(url: &str, events: &[Status]) -> Webhook {
    Webhook {
        id: WebhookId::new(START),
        business: "acme-bank".parse().unwrap(),
        url: url.to_owned(),
        events: events.to_vec(),
        key: signing_keys().newest().unwrap().to_owned(),
        generation: 0,
        rotated_at: None,
        created_at: START,
        disabled: None,
        failures: 0,
        failing_since: None,
        last_failure: None,
        missed: 0,
        revision: Uuid::nil(),
    }
}

/// Appends a status of each message, in order.
async fn report(engines: &Engines, changes: impl IntoIterator<Item = (MessageId, Status)>) {
    report_to(engines, "key", changes).await;
}

/// The same, under the key of a recipient.
async fn report_to(engines: &Engines, key: &str, changes: impl IntoIterator<Item = (MessageId, Status)>) {
    report_as(engines, ("acme-bank", key), changes).await;
}

/// The same, of messages of a business.
async fn report_as(
    engines: &Engines,
    (business, key): (&str, &str),
    changes: impl IntoIterator<Item = (MessageId, Status)>,
) {
    let sent = Message { sender: business.to_owned(), ..message(1) };
    let key = Bytes::copy_from_slice(key.as_bytes());
    let records = changes.into_iter().map(|(id, status)| {
        let change = StatusChanged {
            id,
            status,
            at: START.as_millis(),
            sender: sent.sender.clone(),
            recipient: sent.recipient.clone(),
            reason: None,
        };
        flow::status(&change, key.clone(), &engines.codecs, Origin::default()).unwrap()
    });
    engines.log.append(records.collect()).await.unwrap();
}

fn ids(count: usize) -> Vec<MessageId> {
    (0..count).map(|_| MessageId::new(START)).collect()
}

/// Waits until the stage has settled all that was reported.
async fn settled(engines: &Engines) {
    let settled = async {
        loop {
            let mut left = 0;
            for partition in 0..engines.log.partitions(Topic::MessageStatus) {
                let end = engines.log.bounds(Topic::MessageStatus, partition).await.unwrap().end;
                let committed = engines.log.committed("webhooks", Topic::MessageStatus, partition).await.unwrap();
                left += end - committed.unwrap_or(0);
            }
            if left == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.unwrap();
}

/// All dead letters.
async fn letters(engines: &Engines) -> Vec<DeadLetter> {
    let mut letters = Vec::new();
    for partition in 0..engines.log.partitions(Topic::DeadLetters) {
        let end = engines.log.bounds(Topic::DeadLetters, partition).await.unwrap().end;
        let mut reader = engines.log.read(Topic::DeadLetters, partition, 0).await.unwrap();
        while reader.next_offset() < end {
            reader.ready().await.unwrap();
            letters.extend(reader.take(100).iter().map(|record| engines.codecs.decode(&record.value).unwrap()));
        }
    }
    letters
}

/// Waits until the webhook is as is wanted.
async fn becomes(engines: &Engines, of: &Webhook, wanted: impl Fn(&Webhook) -> bool) -> Webhook {
    let look = async {
        loop {
            let found = engines.store.webhooks.get(&of.business, of.id).await.unwrap().unwrap();
            if wanted(&found) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap()
}

#[tokio::test]
async fn a_status_is_told_signed_and_named_as_the_specification_says() {
    let engines = Engines::open().await;
    let (receiver, url) = Receiver::start().await;
    let made = webhook(&engines, &url, &[Status::Delivered]).await;
    let running = Running::start(&engines, options());
    let id = MessageId::new(START);
    report(&engines, [(id, Status::Read), (id, Status::Delivered)]).await;
    let arrived = receiver.requests(1).await.remove(0);
    assert_eq!(arrived.id, format!("{id}.delivered"));
    assert_eq!(arrived.timestamp, START.as_millis() / 1_000);
    let secret = signing_keys().secret(&made.key, made.id, 0).unwrap();
    assert_eq!(arrived.signatures, [secret.sign(&arrived.id, START, &arrived.body)]);
    let at = START.to_string();
    let data = serde_json::json!({ "id": id.to_string(), "status": "delivered", "at": at, "to": "+966500000001" });
    let event = serde_json::json!({ "type": "message.delivered", "timestamp": at, "data": data });
    assert_eq!(arrived.json(), event);
    running.stop().await;
    assert_eq!(receiver.ids().len(), 1, "what was not asked for is not told");
}

#[tokio::test]
async fn after_a_rotation_both_secrets_sign_for_a_day() {
    let engines = Engines::open().await;
    let (receiver, url) = Receiver::start().await;
    let made = webhook(&engines, &url, &[]).await;
    let rotated = Webhook { generation: 1, rotated_at: Some(START), ..made };
    let rotated = engines.store.webhooks.replace(rotated).await.unwrap().unwrap();
    let running = Running::start(&engines, options());
    let sign = |arrived: &Arrived, generation, at: Timestamp| {
        let secret = signing_keys().secret(&rotated.key, rotated.id, generation).unwrap();
        secret.sign(&arrived.id, at, &arrived.body)
    };
    report(&engines, [(MessageId::new(START), Status::Delivered)]).await;
    let first = receiver.requests(1).await.remove(0);
    assert_eq!(first.signatures, [sign(&first, 1, START), sign(&first, 0, START)]);
    engines.clock.advance_millis(24 * 3_600 * 1_000);
    report(&engines, [(MessageId::new(START), Status::Delivered)]).await;
    let second = receiver.requests(2).await.remove(1);
    assert_eq!(second.signatures, [sign(&second, 1, engines.clock.now())]);
    running.stop().await;
}

#[tokio::test]
async fn what_fails_is_tried_again_as_the_same_event() {
    let engines = Engines::open().await;
    let (receiver, url) = Receiver::start().await;
    receiver.answers.lock().extend([(500, ""), (503, ""), (429, "1")]);
    webhook(&engines, &url, &[]).await;
    let running = Running::start(&engines, options());
    report(&engines, [(MessageId::new(START), Status::Delivered)]).await;
    let arrived = receiver.requests_by(&engines.clock, 100, 4).await;
    assert!(arrived.iter().all(|again| again.id == arrived[0].id && again.body == arrived[0].body));
    running.stop().await;
    assert_eq!(receiver.ids().len(), 4);
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_delays_no_other() {
    let engines = Engines::open().await;
    // Takes connections and says nothing.
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (receiver, url) = Receiver::start().await;
    for _ in 0..9 {
        webhook(&engines, &format!("http://{}/hook", deaf.local_addr().unwrap()), &[]).await;
    }
    webhook(&engines, &url, &[]).await;
    let options = Options { queue_records: 16, timeout_s: 1, ..options() };
    let running = Running::start(&engines, options);
    let sent = ids(1_000);
    report(&engines, sent.iter().map(|id| (*id, Status::Delivered))).await;
    let told: BTreeSet<_> = receiver.requests(1_000).await.into_iter().map(|one| one.id).collect();
    assert_eq!(told, sent.iter().map(|id| format!("{id}.delivered")).collect());
    running.stop().await;
}

#[tokio::test]
async fn the_endpoints_of_a_business_that_hang_leave_places_to_others() {
    let engines = Engines::open().await;
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (receiver, url) = Receiver::start().await;
    for _ in 0..10 {
        webhook(&engines, &format!("http://{}/hook", deaf.local_addr().unwrap()), &[]).await;
    }
    let other = Webhook { business: "globex".parse().unwrap(), ..webhook_at(&url, &[]) };
    engines.store.webhooks.create(other).await.unwrap();
    // None of the places that are taken is free again before this test is over.
    let options = Options { timeout_s: 120, concurrent: NonZeroUsize::new(12).unwrap(), ..options() };
    let running = Running::start(&engines, options);
    let (hang, sent) = (ids(500), ids(100));
    for (at, id) in hang.iter().enumerate() {
        report_as(&engines, ("acme-bank", &at.to_string()), [(*id, Status::Delivered)]).await;
    }
    settled(&engines).await;
    report_as(&engines, ("globex", "key"), sent.iter().map(|id| (*id, Status::Delivered))).await;
    assert_eq!(receiver.requests(100).await.len(), 100);
    running.stage.abort();
}

#[tokio::test]
async fn what_an_endpoint_was_not_told_of_it_is_told_after_a_crash() {
    let engines = Engines::open().await;
    let (receiver, url) = Receiver::start().await;
    *receiver.always.lock() = Some(503);
    webhook(&engines, &url, &[]).await;
    let running = Running::start(&engines, Options { queue_records: 10, ..options() });
    let sent = ids(300);
    report(&engines, sent.iter().map(|id| (*id, Status::Delivered))).await;
    receiver.requests(1).await;
    // All of them are settled, though none is told.
    settled(&engines).await;
    running.stage.abort();
    receiver.arrived.lock().clear();
    *receiver.always.lock() = None;

    let running = Running::start(&engines, options());
    receiver.requests(300).await;
    let mut told = receiver.ids();
    told.sort();
    told.dedup();
    assert_eq!(told.len(), 300);
    // Nothing is left: the next start tells nothing.
    let forgotten = async {
        loop {
            let mut cursors = 0;
            for partition in 0..engines.log.partitions(Topic::MessageStatus) {
                cursors += engines.store.webhooks.cursors(partition).await.unwrap().len();
            }
            if cursors == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn the_dead_letter_of_an_event_says_who_refused_it() {
    let engines = Engines::open().await;
    let log: Arc<dyn Log> = Arc::new(engines.log.clone());
    let webhooks = Webhooks::new(
        Ports {
            log: Arc::clone(&log),
            store: Arc::clone(&engines.store.webhooks),
            audit: Arc::clone(&engines.store.audit),
            codecs: engines.codecs.clone(),
            sender: sender(&options()),
            clock: engines.clock.clone(),
        },
        options(),
    );
    report(&engines, [(MessageId::new(START), Status::Delivered)]).await;
    let mut record = None;
    for partition in 0..log.partitions(Topic::MessageStatus) {
        if log.bounds(Topic::MessageStatus, partition).await.unwrap().end > 0 {
            let mut reader = log.read(Topic::MessageStatus, partition, 0).await.unwrap();
            reader.ready().await.unwrap();
            record = reader.take(1).pop().map(Received::from);
        }
    }
    let record = record.unwrap();
    webhooks.0.give_up(&record, 7, "webhook w answered 400 Bad Request").await;
    for partition in 0..log.partitions(Topic::DeadLetters) {
        if log.bounds(Topic::DeadLetters, partition).await.unwrap().end > 0 {
            let mut reader = log.read(Topic::DeadLetters, partition, 0).await.unwrap();
            reader.ready().await.unwrap();
            let letter: DeadLetter = engines.codecs.decode(&reader.take(1)[0].value).unwrap();
            assert_eq!(
                (letter.stage.as_str(), letter.code.as_str(), letter.attempts),
                ("webhooks", "webhook_refused", 7)
            );
            return;
        }
    }
    panic!("no dead letter");
}

#[tokio::test]
async fn our_own_network_is_not_asked() {
    let engines = Engines::open().await;
    let (receiver, url) = Receiver::start().await;
    let port = url.rsplit_once(':').unwrap().1;
    let guarded = sender(&Options::default());
    for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"] {
        let mut asked = webhook(&engines, &url, &[]).await;
        asked.url = format!("https://{host}:{port}");
        let answer = guarded.tell(&asked, "id", b"{}".to_vec(), START).await;
        let request::Answer::Silent { reason, .. } = answer else { panic!("{host}: {answer:?}") };
        assert!(reason.ends_with("its host has no address of the internet"), "{host}: {reason}");
    }
    let plain = webhook(&engines, &url, &[]).await;
    let answer = guarded.tell(&plain, "id", b"{}".to_vec(), START).await;
    assert_eq!(answer, request::Answer::Silent { reason: "its URL is not https".to_owned(), wait: None });
    assert_eq!(receiver.ids().len(), 0);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let engines = Engines::open().await;
    let (receiver, url) = Receiver::start().await;
    receiver.answers.lock().push_back((307, ""));
    let made = webhook(&engines, &url, &[]).await;
    let answer = sender(&options()).tell(&made, "id", b"{}".to_vec(), START).await;
    assert_eq!(answer, request::Answer::Refused(reqwest::StatusCode::TEMPORARY_REDIRECT));
    assert_eq!(receiver.ids().len(), 1);
}
