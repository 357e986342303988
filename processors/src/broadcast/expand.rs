//! Sees broadcasts through: makes the message of each recipient, a chunk at a time, and has it accepted in the bulk lane.
//!
//! Runs beside the stages, in every process that runs `broadcast`. Each process holds a few broadcasts of each business
//! ([`choice`](super::choice)), and their chunks take turns by business ([`turns`](super::turns)): one that waits, for its
//! rate, the limit of its key or room, keeps nobody from going on. One broadcast is sent by one process at a time, under the
//! lease of its task. Before a chunk goes, the task says how far it reaches and which time its ids carry, durably; so whoever
//! goes on after a crash sends that chunk again, with the same ids, and no other: `route` drops what stands already, by its
//! window, or, where that chunk is older, by looking it up in the stream. A process that was thought dead and comes back
//! sends at most the chunk it had saved, under those same ids, and saves no other.

use std::sync::Arc;
use std::time::Duration;

use eshaar_model::{BroadcastId, Clock, Lane, MessageId, MessageType, Phone, Principal, Timestamp};
use eshaar_presence::depths::Depths;
use eshaar_presence::limits::{Limiter, Limits, Manner, Sender};
use eshaar_schemas::{Broadcast, Codecs, EncodeError, Message};
use eshaar_service::TraceContext;
use eshaar_service::metrics::{BROADCASTS_ENDED, INGEST_ACCEPTED};
use eshaar_store::audiences::PAGE_PHONES;
use eshaar_store::broadcasts::{Ended, Progress, TASKS};
use eshaar_store::{Holder, Lease, OpenBroadcast, Store, StoreError, Task};
use eshaar_topics::{AppendError, Cancelled, Log, NewRecord, flow};
use metrics::counter;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::Options;
use super::held::UnderWay;
use super::room::{Pace, Room};
use super::turns::{Turn, Turns};
use crate::decode;

/// Time between two looks for broadcasts that nobody sends.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a broadcast is held without being saved, in milliseconds: so long it rests when its process dies.
const LEASE_MS: i64 = 10_000;
/// One that is being sent is saved this often at least, so that it stays held.
const SAVE_EVERY: Duration = Duration::from_secs(3);
/// The same for one that waits: there may be many, and each save is a conditional write.
const LEASE_WAITING_MS: i64 = 40_000;
const SAVE_WAITING: Duration = Duration::from_secs(20);
/// Wait before it is looked again whether one that waits for its turn was taken back.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Longest wait before it is looked again whether one may go on.
const LONGEST_REST: Duration = Duration::from_secs(1);
/// Shortest wait for a limit that has no room.
const LIMITED_REST: Duration = Duration::from_millis(250);
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
    /// How much each may send.
    pub limits: Arc<Limiter>,
    /// What was taken back.
    pub cancelled: Arc<Cancelled>,
    /// The present.
    pub clock: Clock,
}

/// Sends broadcasts until `shutdown`, and returns when all that were under way have been let go of.
pub async fn run(ports: Ports, options: Options, shutdown: CancellationToken) {
    let turns = Turns::new(Room::new(Arc::clone(&ports.depths), options.waiting), options.at_once);
    let expander = Arc::new(Expander { ports, turns, holder: Holder::new(), shutdown: shutdown.clone() });
    let mut giving = JoinSet::new();
    giving.spawn({
        let expander = Arc::clone(&expander);
        async move { expander.turns.give().await }
    });
    let mut under_way = UnderWay::new(Arc::clone(&expander), &options);
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = under_way.next_ended() => {
                under_way.ended(ended);
                continue;
            }
            _ = looks.tick() => {}
        }
        let begun = Instant::now();
        if let Err(error) = under_way.look().await {
            tracing::warn!(%error, "it cannot be seen which broadcasts are to be sent; trying again");
        }
        // However many are open, looking takes a tenth of the time at most.
        looks.reset_after(LOOK_EVERY.max(begun.elapsed() * 9));
    }
    while under_way.next_ended().await.is_some() {}
    giving.shutdown().await;
}

/// Sends the broadcasts of this process.
pub(super) struct Expander {
    pub(super) ports: Ports,
    turns: Turns,
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
    #[error("it was let go of")]
    Released,
    #[error("another process has taken it over")]
    TakenOver,
}

/// A broadcast that this process holds.
struct Held {
    open: OpenBroadcast,
    task: Task,
    progress: Progress,
    /// When it was saved last, and after how long it must be again to stay held.
    saved: Instant,
    save_every: Duration,
    release: CancellationToken,
    limits: Limits,
}

impl Expander {
    /// Takes a broadcast, unless another process holds it.
    pub(super) async fn take(&self, open: &OpenBroadcast) -> Result<Option<Task>, StoreError> {
        let Ports { store, clock, .. } = &self.ports;
        let (name, now) = (open.id.to_string(), clock.now());
        let lease = Lease { holder: self.holder, now, until: now.plus_millis(LEASE_MS) };
        let taken = store.tasks.take(TASKS, &name, lease).await?;
        if taken.is_none() && store.tasks.get(TASKS, &name).await?.is_none_or(|task| task.finished) {
            // Who finished it died before it could say so.
            store.broadcasts.close(open).await?;
        }
        Ok(taken)
    }

    pub(super) async fn send(&self, open: OpenBroadcast, task: Task, release: CancellationToken) {
        let id = open.id;
        match self.see_through(open, task, release).await {
            Ok(ended) => {
                counter!(BROADCASTS_ENDED, "outcome" => outcome(ended)).increment(1);
                tracing::info!(broadcast = %id, outcome = outcome(ended), "a broadcast ended");
            }
            Err(Stopped::Released) => {}
            Err(error) => tracing::warn!(broadcast = %id, %error, "a broadcast rests; it is gone on with"),
        }
    }

    async fn see_through(&self, open: OpenBroadcast, task: Task, release: CancellationToken) -> Result<Ended, Stopped> {
        let id = open.id;
        let Some(progress) = Progress::decode(&task.progress) else {
            return Err(Stopped::Record("its task is of another version".to_owned()));
        };
        let broadcast = self.read(id).await?;
        let (trace, mut pace) = (TraceContext::new(), Pace::new(broadcast.rate.map(|rate| rate.max(1) as u64)));
        let limits = self.limits(&open, &broadcast);
        let save_every = SAVE_EVERY;
        let mut held = Held { open, task, progress, saved: Instant::now(), save_every, release, limits };
        let mut page = Page::default();
        let ended = loop {
            if let Some(ended) = self.end_of(&broadcast, &held) {
                break ended;
            }
            let Some(turn) = self.next_turn(&broadcast, &mut held, &mut pace).await? else { continue };
            let Some((end, at)) = held.progress.chunk else { continue };
            // The turn may have come late: nothing is sent on stale knowledge of cancellations.
            self.ports.cancelled.fresh().await;
            if self.ports.cancelled.covers(&broadcast.sender, id.into()) {
                continue;
            }
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
            drop(turn);
            counter!(INGEST_ACCEPTED, "lane" => Lane::Bulk.as_str()).increment(end - held.progress.done);
            held.progress = Progress { done: end, chunk: None, ended: None };
        };
        held.progress = Progress { chunk: None, ended: Some(ended), ..held.progress };
        self.save(&mut held, true).await?;
        self.ports.store.broadcasts.close(&held.open).await?;
        Ok(ended)
    }

    /// The reason why nothing more of a broadcast is sent, where there is one.
    fn end_of(&self, broadcast: &Broadcast, held: &Held) -> Option<Ended> {
        if held.progress.done >= broadcast.total as u64 {
            return Some(Ended::Sent);
        }
        if self.ports.cancelled.covers(&broadcast.sender, broadcast.id.into()) {
            return Some(Ended::Cancelled);
        }
        let now = self.ports.clock.now().as_millis();
        broadcast.expires_at.is_some_and(|at| at <= now).then_some(Ended::Expired)
    }

    /// The limits that a broadcast's messages take from: those of the key that it was sent with, and of everybody.
    fn limits(&self, open: &OpenBroadcast, broadcast: &Broadcast) -> Limits {
        let principal = Principal::Business(open.business.clone());
        let own = broadcast.key_rate.as_deref().and_then(|rate| rate.parse().ok());
        let key = broadcast.key_id.as_deref().map(|id| (id, own));
        self.ports.limits.limits_of(Sender { principal: &principal, key }, Manner::Broadcast)
    }

    async fn read(&self, id: BroadcastId) -> Result<Broadcast, Stopped> {
        let rows = self.ports.store.broadcasts.get(&[id]).await?;
        let row = rows.into_iter().next().ok_or_else(|| Stopped::Record("it is gone".to_owned()))?;
        decode::<Broadcast>(&self.ports.codecs, &row.value).await.map_err(|error| Stopped::Record(error.to_string()))
    }

    /// Waits for its rate and its turn, then says durably what the next chunk is; a chunk that was said before is sent first.
    /// `None`: its limit has no room now, or it ended meanwhile.
    async fn next_turn(
        &self,
        broadcast: &Broadcast,
        held: &mut Held,
        pace: &mut Pace,
    ) -> Result<Option<Turn>, Stopped> {
        let done = held.progress.done;
        if let Some((end, _)) = held.progress.chunk {
            // What it takes from limits was taken when it was said.
            return self.turn(held, end - done).await;
        }
        self.rest(held, pace.wait()).await?;
        let bytes = CHUNK_BYTES / (broadcast.content.len() + MESSAGE_BYTES);
        let to_page_end = PAGE_PHONES as u64 - done % PAGE_PHONES as u64;
        let most = to_page_end.min(bytes.max(CHUNK_LEAST) as u64).min(pace.most());
        let wanted = most.min(broadcast.total as u64 - done);
        let Some(turn) = self.turn(held, wanted).await? else { return Ok(None) };
        // The first message was taken from the limit when the broadcast was accepted.
        let paid = u64::from(done == 0);
        let (more, wait) = self.take_from_limits(held, wanted - paid).await;
        let count = paid + more;
        if count < wanted {
            self.turns.give_back(wanted - count).await;
        }
        if count == 0 {
            drop(turn);
            self.rest(held, wait).await?;
            return Ok(None);
        }
        if self.shutdown.is_cancelled() {
            return Err(self.let_go(held).await);
        }
        pace.went(count);
        held.save_every = SAVE_EVERY;
        held.progress.chunk = Some((done + count, self.ports.clock.now()));
        self.save(held, false).await?;
        Ok(Some(turn))
    }

    /// How many of `wanted` messages the limits let through now; where none, how long to wait.
    async fn take_from_limits(&self, held: &Held, wanted: u64) -> (u64, Duration) {
        if wanted == 0 || held.limits.is_empty() {
            return (wanted, Duration::ZERO);
        }
        let grant = self.ports.limits.take(&held.limits, wanted as u32).await;
        // Not for each slot of the window anew: that would make chunks of a few messages.
        (u64::from(grant.granted), grant.retry_after.max(LIMITED_REST))
    }

    /// Waits for a turn; `None` where the broadcast was taken back meanwhile.
    async fn turn(&self, held: &mut Held, count: u64) -> Result<Option<Turn>, Stopped> {
        let mut given = self.turns.ask(&held.open.business, count);
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Err(self.let_go(held).await),
                () = held.release.cancelled() => return Err(self.let_go(held).await),
                turn = &mut given => return Ok(turn.ok()),
                () = sleep(LOOK_AGAIN) => {}
            }
            if self.ports.cancelled.covers(held.open.business.as_str(), held.open.id.into()) {
                return Ok(None);
            }
            self.stay(held, SAVE_WAITING).await?;
        }
    }

    /// Waits, at most [`LONGEST_REST`], and stays the one who holds it.
    async fn rest(&self, held: &mut Held, wait: Duration) -> Result<(), Stopped> {
        if !wait.is_zero() {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Err(self.let_go(held).await),
                () = held.release.cancelled() => return Err(self.let_go(held).await),
                () = sleep(wait.min(LONGEST_REST)) => {}
            }
        }
        self.stay(held, SAVE_WAITING).await
    }

    /// Lets go of a broadcast, which any process may take at once.
    async fn let_go(&self, held: &Held) -> Stopped {
        let task = Task { progress: held.progress.encode(), ..held.task.clone() };
        match self.ports.store.tasks.save(task, self.holder, None).await {
            Ok(_) => Stopped::Released,
            Err(error) => error.into(),
        }
    }

    /// Stays the one who holds it, for longer than `save_every`; unless the process is shutting down.
    async fn stay(&self, held: &mut Held, save_every: Duration) -> Result<(), Stopped> {
        if self.shutdown.is_cancelled() {
            return Err(self.let_go(held).await);
        }
        if held.saved.elapsed() < held.save_every {
            return Ok(());
        }
        held.save_every = save_every;
        self.save(held, false).await
    }

    async fn save(&self, held: &mut Held, finished: bool) -> Result<(), Stopped> {
        let task = Task { progress: held.progress.encode(), finished, ..held.task.clone() };
        let lease_ms = if held.save_every == SAVE_WAITING { LEASE_WAITING_MS } else { LEASE_MS };
        let until = self.ports.clock.now().plus_millis(lease_ms);
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
                    tracing::warn!(broadcast = %held.open.id, %error, "a chunk is appended again");
                    self.stay(held, SAVE_EVERY).await?;
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
