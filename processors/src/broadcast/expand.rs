//! Sees broadcasts through: makes the message of each recipient, a chunk at a time, and has it accepted in the bulk lane.
//!
//! Runs beside the stages, in every process that runs `broadcast`. One broadcast is sent by one process at a time, under the
//! lease of its task. Before a chunk goes, the task says how far it reaches and which time its ids carry, durably; so whoever
//! goes on after a crash sends that chunk again, with the same ids, and no other: `route` drops what stands already, by its
//! window, or, where that chunk is older, by looking it up in the stream. A process that was thought dead and comes back
//! sends at most the chunk it had saved, under those same ids, and saves no other.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use eshaar_model::{BroadcastId, Clock, Lane, MessageId, MessageType, Phone, Timestamp};
use eshaar_presence::depths::Depths;
use eshaar_schemas::{Broadcast, Codecs, EncodeError, Message};
use eshaar_service::TraceContext;
use eshaar_service::metrics::{BROADCASTS_ENDED, BROADCASTS_OPEN, INGEST_ACCEPTED};
use eshaar_store::audiences::PAGE_PHONES;
use eshaar_store::broadcasts::{Ended, Progress, TASKS};
use eshaar_store::{Holder, Lease, Store, StoreError, Task};
use eshaar_topics::{AppendError, Cancelled, Log, NewRecord, flow};
use metrics::{counter, gauge};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::Options;
use super::room::{Pace, Room};
use crate::decode;

/// Time between two looks for broadcasts that nobody sends.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Broadcasts that a look considers: the oldest.
const LOOKED_AT: usize = 1_000;
/// How long a broadcast is held without being saved, in milliseconds: so long it rests when its process dies.
const LEASE_MS: i64 = 10_000;
/// One that waits is saved this often, so that it stays held.
const SAVE_EVERY: Duration = Duration::from_secs(3);
/// Wait before it is looked again whether there is room.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Wait before an append whose outcome is unknown is tried again.
const APPEND_AGAIN: Duration = Duration::from_millis(200);
/// Most bytes of a chunk's messages, about; and the least messages of a chunk, however long they are.
const CHUNK_BYTES: usize = 2 << 20;
const CHUNK_LEAST: usize = 20;
/// What a message has besides its content, roughly, in bytes.
const MESSAGE_BYTES: usize = 400;

/// What broadcasts are sent with.
#[derive(Clone)]
pub struct Ports {
    /// Where messages go.
    pub log: Arc<dyn Log>,
    /// Tasks, broadcasts and their recipients.
    pub store: Store,
    /// Records to bytes and back.
    pub codecs: Codecs,
    /// How much waits.
    pub depths: Arc<dyn Depths>,
    /// What was taken back.
    pub cancelled: Arc<Cancelled>,
    /// The present.
    pub clock: Clock,
}

/// Sends broadcasts until `shutdown`, and returns when all that were under way have been let go of.
pub async fn run(ports: Ports, options: Options, shutdown: CancellationToken) {
    let room = Room::new(Arc::clone(&ports.depths), options.waiting);
    let at_once = options.at_once.max(1);
    let expander = Arc::new(Expander { ports, room, holder: Holder::new(), shutdown: shutdown.clone() });
    let (mut under_way, mut ids) = (JoinSet::new(), HashSet::new());
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = under_way.join_next_with_id() => {
                let task = ended.map_or_else(|error| error.id(), |(task, ())| task);
                ids.retain(|(_, of)| *of != task);
                continue;
            }
            _ = looks.tick() => {}
        }
        let found = match expander.look(|id| ids.iter().any(|(known, _)| *known == id), at_once - ids.len()).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "it cannot be seen which broadcasts are to be sent; trying again");
                continue;
            }
        };
        for (id, task) in found {
            let expander = Arc::clone(&expander);
            let spawned = under_way.spawn(async move { expander.send(id, task).await });
            ids.insert((id, spawned.id()));
        }
        gauge!(BROADCASTS_OPEN).set(ids.len() as f64);
    }
    while under_way.join_next().await.is_some() {}
}

struct Expander {
    ports: Ports,
    room: Room,
    holder: Holder,
    shutdown: CancellationToken,
}

/// A broadcast is not sent on by this process, for now.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("its record cannot be read: {0}")]
    Record(String),
    #[error("its messages cannot be written: {0}")]
    Encode(#[from] EncodeError),
    #[error("the log is closed")]
    Log,
    #[error("this process is shutting down")]
    Shutdown,
    #[error("another process has taken it over")]
    TakenOver,
}

/// A broadcast that this process holds.
struct Held {
    id: BroadcastId,
    task: Task,
    progress: Progress,
    saved: Instant,
}

impl Expander {
    /// Takes broadcasts that nobody sends, at most `room` of them.
    async fn look(
        &self,
        is_known: impl Fn(BroadcastId) -> bool,
        room: usize,
    ) -> Result<Vec<(BroadcastId, Task)>, StoreError> {
        let Ports { store, clock, .. } = &self.ports;
        let mut found = Vec::new();
        if room == 0 {
            return Ok(found);
        }
        for id in store.broadcasts.opened(LOOKED_AT).await? {
            if is_known(id) {
                continue;
            }
            let (name, now) = (id.to_string(), clock.now());
            let lease = Lease { holder: self.holder, now, until: now.plus_millis(LEASE_MS) };
            if let Some(task) = store.tasks.take(TASKS, &name, lease).await? {
                found.push((id, task));
                if found.len() == room {
                    break;
                }
            } else if store.tasks.get(TASKS, &name).await?.is_none_or(|task| task.finished) {
                // Who finished it died before it could say so.
                store.broadcasts.close(id).await?;
            }
        }
        Ok(found)
    }

    async fn send(&self, id: BroadcastId, task: Task) {
        match self.see_through(id, task).await {
            Ok(ended) => {
                counter!(BROADCASTS_ENDED, "outcome" => outcome(ended)).increment(1);
                tracing::info!(broadcast = %id, outcome = outcome(ended), "a broadcast ended");
            }
            Err(Stopped::Shutdown) => {}
            Err(error) => tracing::warn!(broadcast = %id, %error, "a broadcast rests; it is gone on with"),
        }
    }

    async fn see_through(&self, id: BroadcastId, task: Task) -> Result<Ended, Stopped> {
        let Some(progress) = Progress::decode(&task.progress) else {
            return Err(Stopped::Record("its task is of another version".to_owned()));
        };
        let broadcast = self.read(id).await?;
        let (trace, mut pace) = (TraceContext::new(), Pace::new(broadcast.rate.map(|rate| rate.max(1) as u64)));
        let mut held = Held { id, task, progress, saved: Instant::now() };
        let mut page = Page::default();
        let ended = loop {
            if held.progress.done >= broadcast.total as u64 {
                break Ended::Sent;
            }
            self.ports.cancelled.fresh().await;
            if self.ports.cancelled.covers(&broadcast.sender, id.into()) {
                break Ended::Cancelled;
            }
            let now = self.ports.clock.now();
            if broadcast.expires_at.is_some_and(|at| at <= now.as_millis()) {
                break Ended::Expired;
            }
            let Some((end, at)) = held.progress.chunk else {
                self.next_chunk(&broadcast, &mut held, &mut pace).await?;
                continue;
            };
            let Some(phones) = self.phones(&broadcast, held.progress.done, end, &mut page).await? else {
                tracing::error!(broadcast = %id, "the recipients of a broadcast are gone");
                break Ended::Failed;
            };
            let numbered = (held.progress.done..end).zip(phones);
            let record = |(number, to)| self.message(&broadcast, (number, to), at, &trace);
            let records = numbered.map(record).collect::<Result<Vec<_>, _>>()?;
            if let Err(reason) = self.append(records, &mut held).await? {
                tracing::error!(broadcast = %id, reason, "the log refuses the messages of a broadcast");
                break Ended::Failed;
            }
            counter!(INGEST_ACCEPTED, "lane" => Lane::Bulk.as_str()).increment(end - held.progress.done);
            held.progress = Progress { done: end, chunk: None, ended: None };
        };
        held.progress = Progress { chunk: None, ended: Some(ended), ..held.progress };
        self.save(&mut held, true).await?;
        self.ports.store.broadcasts.close(id).await?;
        Ok(ended)
    }

    async fn read(&self, id: BroadcastId) -> Result<Broadcast, Stopped> {
        let rows = self.ports.store.broadcasts.get(&[id]).await?;
        let row = rows.into_iter().next().ok_or_else(|| Stopped::Record("it is gone".to_owned()))?;
        decode::<Broadcast>(&self.ports.codecs, &row.value).await.map_err(|error| Stopped::Record(error.to_string()))
    }

    /// Waits for room and for its turn, then says durably what the next chunk is. It has none yet where it was taken back
    /// meanwhile.
    async fn next_chunk(&self, broadcast: &Broadcast, held: &mut Held, pace: &mut Pace) -> Result<(), Stopped> {
        let done = held.progress.done;
        let bytes = CHUNK_BYTES / (broadcast.content.len() + MESSAGE_BYTES);
        let to_page_end = PAGE_PHONES as u64 - done % PAGE_PHONES as u64;
        let most = to_page_end.min(bytes.max(CHUNK_LEAST) as u64).min(pace.most());
        let count = most.min(broadcast.total as u64 - done);
        pace.turn(count).await;
        while !self.room.take(count).await {
            if self.ports.cancelled.covers(&broadcast.sender, held.id.into()) {
                return Ok(());
            }
            self.stay(held).await?;
            sleep(LOOK_AGAIN).await;
        }
        self.stay(held).await?;
        held.progress.chunk = Some((done + count, self.ports.clock.now()));
        self.save(held, false).await
    }

    /// Stays the one who holds it; unless the process is shutting down.
    async fn stay(&self, held: &mut Held) -> Result<(), Stopped> {
        if self.shutdown.is_cancelled() {
            let task = Task { progress: held.progress.encode(), ..held.task.clone() };
            self.ports.store.tasks.save(task, self.holder, None).await?;
            return Err(Stopped::Shutdown);
        }
        if held.saved.elapsed() >= SAVE_EVERY { self.save(held, false).await } else { Ok(()) }
    }

    async fn save(&self, held: &mut Held, finished: bool) -> Result<(), Stopped> {
        let task = Task { progress: held.progress.encode(), finished, ..held.task.clone() };
        let until = self.ports.clock.now().plus_millis(LEASE_MS);
        held.saved = Instant::now();
        let is_ours = self.ports.store.tasks.save(task, self.holder, Some(until)).await?;
        if is_ours { Ok(()) } else { Err(Stopped::TakenOver) }
    }

    /// The recipients of that numbers, which are of one page; `None` where they are gone.
    async fn phones<'page>(
        &self,
        broadcast: &Broadcast,
        from: u64,
        end: u64,
        page: &'page mut Page,
    ) -> Result<Option<impl Iterator<Item = Phone> + 'page>, StoreError> {
        let number = (from / PAGE_PHONES as u64) as u32;
        if page.number != Some(number) {
            let phones = self.ports.store.audiences.page(broadcast.recipients, number).await?;
            *page = Page { number: Some(number), phones };
        }
        let first = u64::from(number) * PAGE_PHONES as u64;
        let range = page.phones.get((from - first) as usize..(end - first) as usize);
        Ok(range.map(|phones| phones.iter().copied()))
    }

    fn message(
        &self,
        broadcast: &Broadcast,
        (number, to): (u64, Phone),
        at: Timestamp,
        trace: &TraceContext,
    ) -> Result<NewRecord, EncodeError> {
        let now = self.ports.clock.now();
        let message = Message {
            id: MessageId::of_recipient(broadcast.id, number as u32, at),
            r#type: MessageType::OneWay,
            conversation_id: None,
            sender: broadcast.sender.clone(),
            recipient: to.to_string(),
            content: broadcast.content.clone(),
            content_ciphertext: None,
            content_key_id: None,
            media: Vec::new(),
            priority: broadcast.priority,
            // The chunk may have been begun by a clock that was ahead.
            created_at: at.min(now).as_millis(),
            expires_at: broadcast.expires_at,
            reference: broadcast.reference.clone(),
            collapse_key: broadcast.collapse_key.clone(),
            correlation_id: broadcast.correlation_id.clone(),
            broadcast_id: Some(broadcast.id.to_string()),
        };
        let record = flow::accepted(&message, Lane::Bulk, &self.ports.codecs, trace)?;
        Ok(NewRecord { timestamp: now, ..record })
    }

    /// Appends until it is known; why not, where the log refuses it.
    async fn append(&self, records: Vec<NewRecord>, held: &mut Held) -> Result<Result<(), String>, Stopped> {
        loop {
            match self.ports.log.append(records.clone()).await {
                Ok(_) => return Ok(Ok(())),
                Err(AppendError::Refused { reason }) => return Ok(Err(reason)),
                Err(AppendError::Closed) => return Err(Stopped::Log),
                Err(error @ AppendError::Unknown { .. }) => {
                    tracing::warn!(broadcast = %held.id, %error, "a chunk is appended again");
                    self.stay(held).await?;
                    sleep(APPEND_AGAIN).await;
                }
            }
        }
    }
}

/// The page of recipients that is at hand.
#[derive(Default)]
struct Page {
    number: Option<u32>,
    phones: Vec<Phone>,
}

const fn outcome(ended: Ended) -> &'static str {
    match ended {
        Ended::Sent => "sent",
        Ended::Cancelled => "cancelled",
        Ended::Expired => "expired",
        Ended::Failed => "failed",
    }
}
