//! The API on embedded engines in a directory of its own, a log that can be told to fail, and callers.

use std::collections::VecDeque;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, to_bytes};
use eshaar_auth::jwt::Issuer;
use eshaar_auth::{Authenticator, keys};
use eshaar_ingest::{BulkOptions, Deps, Markup, Options, QueueOptions, router};
use eshaar_model::limits::MESSAGE_BYTES_DEFAULT;
use eshaar_model::{Clock, ConversationPosition, Epoch, Pair, Permission, Principal, Side, Timestamp};
use eshaar_presence::cache::Key;
use eshaar_presence::limits::{self, Limiter};
use eshaar_presence::local::{LocalCache, LocalPresence};
use eshaar_schemas::registry::embedded::EmbeddedRegistry;
use eshaar_schemas::{Codecs, Message, StatusChanged};
use eshaar_store::{ChatRow, MessageRow, Step, Store};
use eshaar_topics::embedded::EmbeddedLog;
use eshaar_topics::{
    AppendError, Bounds, Cancelled, Consumer, ConsumerEvent, Log, LogError, LogPosition, NewRecord, Reader, Record,
    StartAt, Topic, embedded,
};
use http::{HeaderMap, Method, Request, StatusCode};
use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

/// 2026-01-01T00:00:00Z.
pub const NOW: Timestamp = Timestamp::from_millis(1_767_225_600_000);
pub const PHONE: &str = "+966501234567";
pub const OTHER_PHONE: &str = "+966501234568";

/// How an append is made to fail.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Refused, nothing written.
    Refused,
    /// Written, but the answer is lost.
    Lost,
}

/// The embedded log, with faults in store for the next appends, and a gate that appends wait at.
pub struct FaultyLog {
    log: EmbeddedLog,
    pub faults: Mutex<VecDeque<Fault>>,
    pub gate: Semaphore,
    pub appends: AtomicUsize,
}

#[async_trait]
impl Log for FaultyLog {
    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<LogPosition>, AppendError> {
        self.appends.fetch_add(1, Ordering::SeqCst);
        let _open = self.gate.acquire().await.unwrap();
        let fault = self.faults.lock().pop_front();
        match fault {
            Some(Fault::Refused) => Err(AppendError::Refused { reason: "by the test".to_owned() }),
            Some(Fault::Lost) => {
                self.log.append(records).await?;
                Err(AppendError::Unknown { reason: "by the test".to_owned() })
            }
            None => self.log.append(records).await,
        }
    }

    async fn join(&self, group: &str, topics: &[Topic], start: StartAt) -> Result<Box<dyn Consumer>, LogError> {
        self.log.join(group, topics, start).await
    }

    async fn read(&self, topic: Topic, partition: u32, offset: u64) -> Result<Box<dyn Reader>, LogError> {
        self.log.read(topic, partition, offset).await
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        self.log.bounds(topic, partition).await
    }

    async fn offset_at(&self, topic: Topic, partition: u32, at: Timestamp) -> Result<u64, LogError> {
        self.log.offset_at(topic, partition, at).await
    }

    async fn committed(&self, group: &str, topic: Topic, partition: u32) -> Result<Option<u64>, LogError> {
        self.log.committed(group, topic, partition).await
    }

    fn epoch(&self) -> Epoch {
        self.log.epoch()
    }

    fn partitions(&self, topic: Topic) -> u32 {
        self.log.partitions(topic)
    }

    async fn ping(&self) -> Result<(), LogError> {
        self.log.ping().await
    }
}

pub struct Fixture {
    pub api: Router,
    pub log: Arc<FaultyLog>,
    pub store: Store,
    pub codecs: Codecs,
    pub clock: Clock,
    pub cancelled: Arc<Cancelled>,
    issuer: Issuer,
    deps: Deps,
    _dir: TempDir,
}

pub fn nonzero(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap()
}

pub fn options() -> Options {
    Options {
        body_limit_bytes: MESSAGE_BYTES_DEFAULT,
        json_depth: 16,
        markup: Markup::Allow,
        body_timeout_s: 1,
        append_timeout_s: 1,
        request_timeout_s: 5,
        cancellations: nonzero(6),
        cancellations_per_business: nonzero(4),
        redrives_per_s: std::num::NonZeroU32::new(1_000).unwrap(),
        queue: QueueOptions {
            interactive: NonZeroU64::new(10_000).unwrap(),
            bulk: NonZeroU64::new(1_000_000).unwrap(),
        },
        bulk: BulkOptions {
            line_limit_bytes: MESSAGE_BYTES_DEFAULT,
            max_lines: 1_000_000,
            max_bytes: 64 << 20,
            max_ratio: 200,
            batch_lines: nonzero(500),
            unread_answers_bytes: 64 << 20,
            stall_timeout_s: 1,
            min_rate_bytes_per_s: 1,
            min_rate_window_s: 60,
            max_duration_s: 60,
            patience_s: 0,
            concurrent: nonzero(2),
            concurrent_per_business: nonzero(2),
        },
    }
}

impl Fixture {
    pub async fn new() -> Self {
        Self::with(options()).await
    }

    pub async fn with(options: Options) -> Self {
        // Of everybody together and of keys: none, since the clock of the tests stands still.
        let limits = limits::Options {
            whole: None,
            key_per_s: 0,
            key_requests_per_s: 0,
            key_reads_per_s: 0,
            ..limits::Options::default()
        };
        Self::limited(options, limits).await
    }

    pub async fn limited(options: Options, limits: limits::Options) -> Self {
        let dir = TempDir::new().unwrap();
        let clock = Clock::manual(NOW);
        let log = EmbeddedLog::open(embedded::Options::in_dir(dir.path()), clock.clone()).unwrap();
        let log = Arc::new(FaultyLog { log, faults: Mutex::default(), gate: Semaphore::new(1_000), appends: 0.into() });
        let store_options = eshaar_store::sqlite::Options::at(dir.path().join("store.db"));
        let store = eshaar_store::sqlite::open(store_options, clock.clone()).unwrap();
        let registry = EmbeddedRegistry::open(&dir.path().join("registry.db")).unwrap();
        let subjects = [
            ("messages.accepted", "Message"),
            ("messages.scheduled", "Message"),
            ("message.status", "StatusChanged"),
            ("cancellations", "Cancellation"),
            ("conversation.events", "ConversationChanged"),
            ("broadcasts.requested", "Broadcast"),
        ];
        let subjects = subjects.map(|(topic, record)| (format!("{topic}-value"), record));
        let codecs = Codecs::register(Arc::new(registry), &subjects).await.unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "a secret of the tests, long enough for HS256").unwrap();
        let auth_options = eshaar_auth::Options {
            jwt_secret_file: secret.display().to_string(),
            jwks: String::new(),
            issuer: String::new(),
            audience: String::new(),
        };
        let issuer = Issuer::new(&auth_options).await.unwrap();
        let auth = Authenticator::new(auth_options, Arc::clone(&store.keys), clock.clone()).await.unwrap();
        let cancelled = Arc::new(Cancelled::none(clock.clone()));
        let deps = Deps {
            log: log.clone(),
            codecs: codecs.clone(),
            store: store.clone(),
            auth,
            signing: eshaar_auth::signing::SigningKeys::parse("a master key of the tests, long enough for it").unwrap(),
            private_webhooks: false,
            cancelled: Arc::clone(&cancelled),
            limits: Arc::new(Limiter::local(limits, clock.clone())),
            depths: Arc::new(LocalPresence::new(clock.clone())),
            cache: Arc::new(LocalCache::new(clock.clone())),
            clock: clock.clone(),
        };
        let api = router(deps.clone(), options);
        Self { api, log, store, codecs, clock, cancelled, issuer, deps, _dir: dir }
    }

    /// The API of another process on the same engines: what this one holds in memory it does not have.
    pub fn restarted(&self) -> Router {
        router(self.deps.clone(), options())
    }

    /// What the API rests on.
    pub fn deps(&self) -> Deps {
        self.deps.clone()
    }

    /// A new API key.
    pub async fn key(&self, business: &str, permissions: &[Permission]) -> String {
        let minted = keys::mint(business.parse().unwrap(), "tests", permissions.to_vec(), None, NOW);
        self.store.keys.put(minted.stored).await.unwrap();
        minted.text
    }

    /// A key that may send, see what was sent, and manage webhooks.
    pub async fn sender(&self) -> String {
        self.key("acme", &[Permission::MessagesSend, Permission::MessagesRead, Permission::WebhooksManage]).await
    }

    pub fn token(&self, phone: &str) -> String {
        self.issuer.issue(phone.parse().unwrap(), std::time::Duration::from_hours(1), self.clock.now()).unwrap()
    }

    /// The identity that a credential gives.
    pub async fn identity(&self, credential: &str) -> eshaar_auth::Identity {
        self.deps.auth.authenticate(credential).await.unwrap()
    }

    pub async fn call(&self, request: Request<Body>) -> Answer {
        call(&self.api, request).await
    }

    pub async fn get(&self, path: &str, credential: &str) -> Answer {
        self.call(request(Method::GET, path, credential, &[], Body::empty())).await
    }

    pub async fn post(&self, path: &str, credential: &str, body: &Value) -> Answer {
        let json = [("content-type", "application/json")];
        self.call(request(Method::POST, path, credential, &json, body.to_string())).await
    }

    pub async fn send(&self, credential: &str, body: &Value) -> Answer {
        self.call(submission(credential, &[], body.to_string())).await
    }

    /// Everything in `messages.accepted`, partition by partition, in order.
    pub async fn accepted(&self) -> Vec<Record> {
        self.records(Topic::MessagesAccepted).await
    }

    pub async fn records(&self, topic: Topic) -> Vec<Record> {
        let mut records = Vec::new();
        for partition in 0..self.log.partitions(topic) {
            let end = self.log.bounds(topic, partition).await.unwrap().end;
            let mut reader = self.log.read(topic, partition, 0).await.unwrap();
            while reader.next_offset() < end {
                reader.ready().await.unwrap();
                records.extend(reader.take(1_000));
            }
        }
        records
    }

    pub fn message(&self, record: &Record) -> Message {
        self.codecs.decode(&record.value).unwrap()
    }

    /// What the stage archive does: accepted and scheduled messages, what was said, and statuses into the store; and what of it
    /// has changed is said to the cache.
    pub async fn archive(&self) {
        for topic in [Topic::MessagesScheduled, Topic::MessagesAccepted] {
            let rows: Vec<_> = self.records(topic).await.iter().map(|record| self.row(record)).collect();
            let said: Vec<_> = rows.iter().filter_map(|row| said(row, self.log.epoch())).collect();
            self.store.messages.put(rows).await.unwrap();
            for row in said {
                let stored = self.store.messages.get(row.id).await.unwrap().unwrap();
                if stored.row.accepted.1 == Some(row.position.offset) {
                    let changed = Key::of_message(row.conversation, &row.pair, row.from.other()).collect();
                    self.store.conversations.append(vec![row]).await.unwrap();
                    self.deps.cache.invalidate(changed).await;
                }
            }
        }
        let changes = self.records(Topic::MessageStatus).await;
        let (mut steps, mut changed) = (Vec::new(), Vec::new());
        for record in &changes {
            let change: StatusChanged = self.codecs.decode(&record.value).unwrap();
            if let Ok(id) = std::str::from_utf8(&record.key).unwrap().parse() {
                let to = if change.recipient.starts_with('+') { Side::Phone } else { Side::Business };
                changed.extend(Key::of_step(id, to, change.status));
            }
            let at = Timestamp::from_millis(change.at);
            steps.push(Step { id: change.id, status: change.status, at, reason: change.reason });
        }
        self.store.messages.reach(steps).await.unwrap();
        self.deps.cache.invalidate(changed).await;
        self.commit_archived().await;
    }

    /// Commits everything that stands in the log for the group of archive.
    async fn commit_archived(&self) {
        let topics = [Topic::MessagesAccepted, Topic::MessagesScheduled, Topic::MessageStatus];
        let mut member = self.log.join("archive", &topics, StartAt::Oldest).await.unwrap();
        let ConsumerEvent::Assigned(assignment) = member.event().await.unwrap() else { panic!("nothing assigned") };
        let mut ends = Vec::new();
        for reader in &assignment.partitions {
            let (topic, partition) = reader.source();
            ends.push((topic, partition, self.log.bounds(topic, partition).await.unwrap().end));
        }
        member.committer().commit(assignment.generation, &ends).await.unwrap();
        member.leave().await;
    }

    fn row(&self, record: &Record) -> MessageRow {
        let message = self.message(record);
        MessageRow {
            id: message.id,
            message_type: message.r#type,
            conversation: message.conversation_id.as_ref().map(|id| id.parse().unwrap()),
            sender: message.sender.parse::<Principal>().unwrap(),
            recipient: message.recipient.parse::<Principal>().unwrap(),
            created_at: Timestamp::from_millis(message.created_at),
            expires_at: message.expires_at.map(Timestamp::from_millis),
            accepted: {
                let is_accepted = record.position.topic == Topic::MessagesAccepted;
                (record.position.partition, is_accepted.then_some(record.position.offset))
            },
            may_repeat: false,
            value: record.value.clone(),
        }
    }
}

/// The row in its conversation of a message that has one and was accepted.
fn said(row: &MessageRow, epoch: Epoch) -> Option<ChatRow> {
    Some(ChatRow {
        conversation: row.conversation?,
        pair: Pair::of(&row.sender, &row.recipient).unwrap(),
        from: if row.sender.business().is_some() { Side::Business } else { Side::Phone },
        position: ConversationPosition { epoch, offset: row.accepted.1? },
        id: row.id,
        at: row.created_at,
        expires_at: row.expires_at,
        value: row.value.clone(),
    })
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Each line of an NDJSON answer.
    pub fn lines(&self) -> Vec<Value> {
        self.body.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Checks that it is a problem document, and returns its code.
    #[track_caller]
    pub fn problem(&self, status: u16) -> String {
        let json = self.json();
        assert_eq!(self.status, status, "{json}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert_eq!(json["status"], status);
        assert!(json["title"].is_string() && json["detail"].is_string(), "{json}");
        assert!(self.header("x-correlation-id").is_some() || json["code"] == "invalid_correlation_id");
        assert_eq!(self.header("www-authenticate").is_some(), status == 401);
        json["code"].as_str().unwrap().to_owned()
    }
}

pub async fn call(api: &Router, request: Request<Body>) -> Answer {
    let response = api.clone().oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec();
    Answer { status, headers, body }
}

pub fn request(
    method: Method,
    path: &str,
    credential: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if !credential.is_empty() {
        request = request.header("authorization", format!("Bearer {credential}"));
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

pub fn submission(credential: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let headers: Vec<_> = headers.iter().copied().chain([("content-type", "application/json")]).collect();
    request(Method::POST, "/v1/messages", credential, &headers, body)
}

pub fn upload(credential: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let headers: Vec<_> = headers.iter().copied().chain([("content-type", "application/x-ndjson")]).collect();
    request(Method::POST, "/v1/messages/bulk", credential, &headers, body)
}
