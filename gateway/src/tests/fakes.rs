//! What a gateway rests on, in memory: deterministic under a paused clock, and able to fail when told to.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use eshaar_auth::{AuthError, Identity};
use eshaar_model::{
    ConversationId, ConversationPosition, Cursor, Epoch, Lane, MessageId, Pair, Permission, Phone, Principal,
    StreamPosition, Timestamp,
};
use eshaar_schemas::{Compatibility, Registry, RegistryError, SchemaId};
use eshaar_service::Problem;
use eshaar_store::{StoreError, StreamPage, StreamRow, StreamStore};
use eshaar_topics::{
    AppendError, Bounds, Consumer, Log, LogError, LogPosition, NewRecord, Reader, Record, StartAt, Topic,
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::chat::{Conversations, NewMessage, Sent};
use crate::shared::Credentials;

pub(super) const EPOCH: Epoch = Epoch(1);

/// Gives each schema an id.
#[derive(Default)]
pub(super) struct FakeRegistry(Mutex<Vec<String>>);

#[async_trait]
impl Registry for FakeRegistry {
    async fn register(&self, _subject: &str, schema: &str) -> Result<SchemaId, RegistryError> {
        let mut schemas = self.0.lock();
        let known = schemas.iter().position(|known| known == schema);
        Ok(known.unwrap_or_else(|| {
            schemas.push(schema.to_owned());
            schemas.len() - 1
        }) as SchemaId)
    }

    async fn lookup(&self, subject: &str, schema: &str) -> Result<SchemaId, RegistryError> {
        self.register(subject, schema).await
    }

    async fn schema(&self, id: SchemaId) -> Result<String, RegistryError> {
        let known = self.0.lock().get(id as usize).cloned();
        known.ok_or(RegistryError::Unavailable { reason: format!("no schema {id}") })
    }

    async fn set_compatibility(&self, _subject: &str, _level: Compatibility) -> Result<(), RegistryError> {
        Ok(())
    }
}

/// Whoever the credential names: `<principal>`, `<principal>@<expiry in ms>`, or `broken`. A business may chat, unless its id
/// begins with `mute`.
#[derive(Default)]
pub(super) struct FakeCredentials {
    /// The business whose key is revoked; `broken`: none can be looked at.
    pub(super) revoked: Mutex<Option<String>>,
}

#[async_trait]
impl Credentials for FakeCredentials {
    async fn authenticate(&self, credential: &str) -> Result<Identity, AuthError> {
        if credential == "broken" {
            return Err(AuthError::Unavailable("the key set cannot be fetched".to_owned()));
        }
        // `acme#chat+messages:read`: a key with these permissions.
        let (credential, named) = credential.split_once('#').map_or((credential, None), |(who, may)| (who, Some(may)));
        let (principal, expiry) = credential.split_once('@').unwrap_or((credential, ""));
        let principal: Principal = principal.parse().map_err(|_| AuthError::Refused("not a token"))?;
        let expires_at = expiry.parse().ok().map(Timestamp::from_millis);
        let chats = principal.business().is_some_and(|business| !business.as_str().starts_with("mute"));
        let permissions = match named {
            Some(named) => named.split('+').filter_map(|name| name.parse().ok()).collect(),
            None => chats.then_some(Permission::Chat).into_iter().chain([Permission::MessagesRead]).collect(),
        };
        let key_id = principal.business().map(ToString::to_string);
        Ok(Identity { principal, permissions, expires_at, rate: None, key_id })
    }

    async fn still(&self, identity: &Identity) -> Result<Identity, AuthError> {
        match self.revoked.lock().as_deref() {
            Some("broken") => Err(AuthError::Unavailable("the store does not answer".to_owned())),
            Some(revoked) if identity.key_id.as_deref() == Some(revoked) => Err(AuthError::Refused("revoked")),
            _ => Ok(identity.clone()),
        }
    }
}

/// Streams of phones.
pub(super) struct FakeStreams {
    pub(super) rows: Mutex<HashMap<Phone, Vec<StreamRow>>>,
    pub(super) acked: Mutex<HashMap<Phone, Cursor>>,
    pub(super) floors: Mutex<[u64; 4]>,
    pub(super) heads: Mutex<[Option<u64>; 4]>,
    pub(super) reads: AtomicUsize,
    pub(super) broken: AtomicBool,
    /// Reads of heads and floors.
    pub(super) edge_reads: AtomicUsize,
    pub(super) strain: Strain,
    /// A write of places takes one permit and does not give it back.
    pub(super) ack_gate: Semaphore,
}

impl Default for FakeStreams {
    fn default() -> Self {
        Self {
            rows: Mutex::default(),
            acked: Mutex::default(),
            floors: Mutex::default(),
            heads: Mutex::default(),
            reads: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            edge_reads: AtomicUsize::new(0),
            strain: Strain::default(),
            ack_gate: Semaphore::new(1_000_000),
        }
    }
}

/// How much a store takes: so many requests at once, each for some time; past that it says that it is overloaded.
pub(super) struct Strain {
    pub(super) room: AtomicUsize,
    pub(super) takes_ms: AtomicU64,
    under_way: AtomicUsize,
    /// The most that were under way.
    pub(super) most: AtomicUsize,
    pub(super) refused: AtomicUsize,
    /// It does not answer at all.
    pub(super) down: AtomicBool,
}

impl Default for Strain {
    fn default() -> Self {
        Self {
            room: AtomicUsize::new(usize::MAX),
            takes_ms: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            down: AtomicBool::new(false),
        }
    }
}

impl Strain {
    async fn request(&self) -> Result<(), StoreError> {
        let waiting = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(waiting, Ordering::Relaxed);
        let _ends = Ends(&self.under_way);
        if self.down.load(Ordering::Relaxed) {
            return Err(StoreError::Engine { action: "read", reason: "it is down".to_owned() });
        }
        if waiting > self.room.load(Ordering::Relaxed) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(StoreError::Overloaded { waiting });
        }
        let takes = self.takes_ms.load(Ordering::Relaxed);
        if takes > 0 {
            tokio::time::sleep(Duration::from_millis(takes)).await;
        }
        Ok(())
    }
}

struct Ends<'a>(&'a AtomicUsize);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl StreamStore for FakeStreams {
    async fn append(&self, _partition: u32, rows: Vec<StreamRow>) -> Result<(), StoreError> {
        for row in rows {
            let head = &mut self.heads.lock()[row.position.lane.index()];
            *head = (*head).max(Some(row.position.offset));
            self.rows.lock().entry(row.phone).or_default().push(row);
        }
        Ok(())
    }

    async fn read(&self, phone: Phone, after: Cursor, limit: usize) -> Result<StreamPage, StoreError> {
        // Others get a turn, as with a store that is somewhere else.
        tokio::task::yield_now().await;
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.broken.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        self.strain.request().await?;
        let all = self.rows.lock().get(&phone).cloned().unwrap_or_default();
        let mut rows: Vec<_> = all.into_iter().filter(|row| !after.covers(row.position)).collect();
        rows.sort_by_key(|row| (row.position.epoch, row.at, row.position.lane, row.position.offset));
        let more = rows.len() > limit;
        rows.truncate(limit);
        tokio::task::yield_now().await;
        Ok(StreamPage { rows, more })
    }

    async fn before(&self, _of: &[(Phone, StreamPosition)]) -> Result<Vec<Option<u64>>, StoreError> {
        unimplemented!("asked by route")
    }

    async fn stands_before(&self, _of: &[eshaar_store::Earlier]) -> Result<Vec<bool>, StoreError> {
        unimplemented!("asked by route")
    }

    async fn head(&self, _epoch: Epoch, lane: Lane, _partition: u32) -> Result<Option<u64>, StoreError> {
        self.edge_reads.fetch_add(1, Ordering::Relaxed);
        self.strain.request().await?;
        Ok(self.heads.lock()[lane.index()])
    }

    async fn newest_epoch(&self) -> Result<Option<Epoch>, StoreError> {
        Ok(Some(EPOCH))
    }

    async fn floor(&self, _epoch: Epoch, lane: Lane, _partition: u32, _now: Timestamp) -> Result<u64, StoreError> {
        self.edge_reads.fetch_add(1, Ordering::Relaxed);
        Ok(self.floors.lock()[lane.index()])
    }

    async fn acked(&self, phone: Phone) -> Result<Option<Cursor>, StoreError> {
        self.strain.request().await?;
        Ok(self.acked.lock().get(&phone).copied())
    }

    async fn ack(&self, acks: Vec<(Phone, Cursor)>) -> Result<(), StoreError> {
        self.ack_gate.acquire().await.unwrap().forget();
        for (phone, cursor) in acks {
            self.acked.lock().entry(phone).and_modify(|known| *known = known.max(cursor)).or_insert(cursor);
        }
        Ok(())
    }

    async fn trim(&self, _now: Timestamp) -> Result<usize, StoreError> {
        Ok(0)
    }
}

type Written = HashMap<(Topic, u32), Vec<NewRecord>>;

/// A log of one partition a topic, but for `deliveries`.
pub(super) struct FakeLog {
    records: Arc<Mutex<Written>>,
    length: watch::Sender<usize>,
    /// How many appends answer that the outcome is unknown, after having written.
    pub(super) unknown: AtomicUsize,
    /// Readers of cancellations get nothing.
    pub(super) stalled: Arc<AtomicBool>,
}

impl FakeLog {
    pub(super) fn new() -> Self {
        Self {
            records: Arc::default(),
            length: watch::Sender::new(0),
            unknown: AtomicUsize::new(0),
            stalled: Arc::default(),
        }
    }

    pub(super) fn of(&self, topic: Topic) -> Vec<NewRecord> {
        self.records.lock().get(&(topic, 0)).cloned().unwrap_or_default()
    }
}

#[async_trait]
impl Log for FakeLog {
    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<LogPosition>, AppendError> {
        let mut positions = vec![];
        for record in records {
            let (topic, partition) = (record.topic, record.partition.unwrap_or(0));
            let mut all = self.records.lock();
            let records = all.entry((topic, partition)).or_default();
            positions.push(LogPosition { topic, partition, offset: records.len() as u64 });
            records.push(record);
        }
        self.length.send_modify(|length| *length += positions.len());
        let answer = self.unknown.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if answer.is_ok() { Err(AppendError::Unknown { reason: "timeout".to_owned() }) } else { Ok(positions) }
    }

    async fn join(&self, _: &str, _: &[Topic], _: StartAt) -> Result<Box<dyn Consumer>, LogError> {
        unimplemented!("a gateway joins no group")
    }

    async fn read(&self, topic: Topic, partition: u32, offset: u64) -> Result<Box<dyn Reader>, LogError> {
        let (records, length) = (Arc::clone(&self.records), self.length.subscribe());
        let stalled = Arc::clone(&self.stalled);
        Ok(Box::new(FakeReader { source: (topic, partition), next: offset, records, length, stalled }))
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        let end = self.records.lock().get(&(topic, partition)).map_or(0, Vec::len) as u64;
        Ok(Bounds { start: 0, end })
    }

    async fn offset_at(&self, _: Topic, _: u32, _: Timestamp) -> Result<u64, LogError> {
        unimplemented!("asked by route")
    }

    async fn committed(&self, _: &str, _: Topic, _: u32) -> Result<Option<u64>, LogError> {
        unimplemented!("a gateway joins no group")
    }

    fn epoch(&self) -> Epoch {
        EPOCH
    }

    fn partitions(&self, topic: Topic) -> u32 {
        if topic == Topic::Deliveries { 4 } else { 1 }
    }

    async fn ping(&self) -> Result<(), LogError> {
        Ok(())
    }
}

/// Reads one partition of a [`FakeLog`].
struct FakeReader {
    source: (Topic, u32),
    next: u64,
    records: Arc<Mutex<Written>>,
    length: watch::Receiver<usize>,
    stalled: Arc<AtomicBool>,
}

#[async_trait]
impl Reader for FakeReader {
    fn source(&self) -> (Topic, u32) {
        self.source
    }

    fn next_offset(&self) -> u64 {
        self.next
    }

    async fn ready(&mut self) -> Result<(), LogError> {
        loop {
            self.length.borrow_and_update();
            while self.source.0 == Topic::Cancellations && self.stalled.load(Ordering::Relaxed) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            if self.records.lock().get(&self.source).map_or(0, Vec::len) as u64 > self.next {
                return Ok(());
            }
            self.length.changed().await.map_err(|_| LogError::Closed)?;
        }
    }

    fn take(&mut self, max: usize) -> Vec<Record> {
        let all = self.records.lock();
        let (topic, partition) = self.source;
        let new = all.get(&self.source).into_iter().flatten().enumerate().skip(self.next as usize).take(max);
        let records: Vec<_> = new
            .map(|(offset, record)| Record {
                position: LogPosition { topic, partition, offset: offset as u64 },
                timestamp: record.timestamp,
                key: record.key.clone(),
                value: record.value.clone(),
                headers: record.headers.clone(),
            })
            .collect();
        self.next += records.len() as u64;
        records
    }
}

/// What was asked of conversations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Send(Principal, NewMessage),
    Read(Principal, ConversationId, ConversationPosition),
    Pair(Principal, ConversationId),
}

/// One conversation, between `acme` and the phone of the tests; others there are none. It notes what it is asked, in order,
/// and answers a send when its gate lets one pass.
pub(super) struct FakeConversations {
    pub(super) id: ConversationId,
    pub(super) pair: Pair,
    pub(super) asked: Mutex<Vec<Asked>>,
    pub(super) gate: Semaphore,
    /// What the next send is refused with.
    pub(super) refusal: Mutex<Option<Problem>>,
}

impl FakeConversations {
    pub(super) fn new(pair: Pair, now: Timestamp) -> Self {
        let id = ConversationId::new(now);
        Self { id, pair, asked: Mutex::default(), gate: Semaphore::new(1_000), refusal: Mutex::default() }
    }

    fn ours(&self, by: &Identity, conversation: ConversationId) -> Result<(), Problem> {
        if self.id == conversation && self.pair.side_of(&by.principal).is_some() {
            return Ok(());
        }
        Err(Problem::new(
            http::StatusCode::NOT_FOUND,
            "conversation_not_found",
            "you are in no conversation of this id",
        ))
    }
}

#[async_trait]
impl Conversations for FakeConversations {
    async fn send(&self, by: &Identity, message: NewMessage) -> Result<Sent, Problem> {
        self.gate.acquire().await.unwrap().forget();
        if let Some(refusal) = self.refusal.lock().take() {
            return Err(refusal);
        }
        if let Some(id) = &message.conversation_id {
            self.ours(by, id.parse().unwrap())?;
        }
        let sent = Asked::Send(by.principal.clone(), message);
        let mut asked = self.asked.lock();
        let replayed = asked.contains(&sent);
        asked.push(sent);
        let id = MessageId::new(self.id.made_at());
        Ok(Sent { id, conversation: self.id, sent_at: id.made_at(), replayed })
    }

    async fn read(
        &self,
        by: &Identity,
        conversation: ConversationId,
        up_to: ConversationPosition,
    ) -> Result<(), Problem> {
        self.ours(by, conversation)?;
        self.asked.lock().push(Asked::Read(by.principal.clone(), conversation, up_to));
        Ok(())
    }

    async fn pair(&self, by: &Identity, conversation: ConversationId) -> Result<Pair, Problem> {
        self.ours(by, conversation)?;
        self.asked.lock().push(Asked::Pair(by.principal.clone(), conversation));
        Ok(self.pair.clone())
    }
}
