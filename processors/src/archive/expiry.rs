//! Says of messages whose time to live has passed that they have expired: one event each, on `message.status`, from which
//! history, webhooks, live sessions and the progress of broadcasts follow.
//!
//! Each accepted message with a time to live has a timer in the store, written with the message itself. The owner of the
//! partition moves the timers on: it looks up the steps of what is due, and appends `expired` for each message that went no
//! further. No other stage says that a message expired. Invariants:
//! - no event is appended before the message's time, nor before every status that was in the log by then is in the history:
//!   what was acknowledged in time has no event;
//! - a page that is taken again after a crash finds its own events in the history, and appends none twice;
//! - an acknowledgement that comes after the event stands above it: `delivered` is a higher step than `expired`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use eshaar_model::{Clock, MessageId, Status, Timestamp};
use eshaar_schemas::{Codecs, EncodeError, Message, StatusChanged};
use eshaar_service::metrics::EXPIRY_EVENTS;
use eshaar_service::workers;
use eshaar_store::timers::EXPIRY;
use eshaar_store::{Store, StoreError, StoredMessage, Timer, TimerPlace};
use eshaar_topics::flow::{self, Envelope};
use eshaar_topics::{AppendError, Cancelled, Headers, Log, LogError, NewRecord, Received, Topic};
use metrics::{Gauge, counter};
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::timers::{Ours, Timers};

/// How long after its time a message is looked at, in milliseconds: an acknowledgement of the last moment is in the log then.
pub(super) const GRACE_MS: i64 = 1_000;
/// How far this clock may be ahead of the store's before timers wait for that, in milliseconds.
const MAX_AHEAD_MS: i64 = 1_000;
/// Most timers that are moved on at once.
const PAGE: usize = 200;
/// Longest sleep before the clock is looked at again.
const CLOCK_CHECK: Duration = Duration::from_millis(250);
/// Longest wait before the store is looked into again, whatever is known.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// Wait before it is looked again whether the history has caught up.
const CAUGHT_UP_AGAIN: Duration = Duration::from_millis(50);
/// Wait after something did not answer.
const AGAIN: Duration = Duration::from_millis(500);
/// Who had the timers taken from it, and is not told that it has lost the partition, takes them back after this time.
const TAKE_AGAIN: Duration = Duration::from_secs(15);

/// What moves timers on; one for all partitions of a process.
#[derive(Clone)]
pub(super) struct Mover {
    pub(super) log: Arc<dyn Log>,
    pub(super) store: Store,
    pub(super) codecs: Codecs,
    pub(super) cancelled: Arc<Cancelled>,
    pub(super) clock: Clock,
}

/// The timers of a partition, and who moves them on as long as this is there.
pub(super) struct Expiry {
    timers: Arc<Timers>,
    /// The offset in `message.status` up to which the history has everything.
    archived: Arc<AtomicU64>,
    _movers: Vec<AbortOnDropHandle<()>>,
}

/// Timers are not moved on, for now.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("an event cannot be written: {0}")]
    Encode(#[from] EncodeError),
    #[error("the log does not take events: {0}")]
    Append(#[from] AppendError),
    #[error("another has taken them over")]
    TakenOver,
}

impl Expiry {
    /// Takes the timers of a partition over, and of those that the log has no more what belongs to this one; the history has
    /// the statuses of the partition up to `archived`.
    pub(super) async fn open(mover: &Mover, partition: u32, archived: u64) -> Result<Self, StoreError> {
        let archived = Arc::new(AtomicU64::new(archived));
        let (timers, own) = mover.take(partition, partition, &archived).await?;
        let mut movers = vec![own];
        let partitions = mover.log.partitions(Topic::MessagesAccepted);
        for known in mover.store.timers.partitions().await? {
            let Some(number) = known.checked_sub(EXPIRY) else { continue };
            if number >= partitions && number % partitions == partition {
                movers.push(mover.take(number, partition, &archived).await?.1);
            }
        }
        Ok(Self { timers, archived, _movers: movers })
    }

    /// Writes timers; where this ends well, whoever owns the partition when they are due is going to see them.
    pub(super) async fn put(&self, timers: Vec<Timer>) -> Result<Ours, StoreError> {
        self.timers.put(timers).await
    }

    /// The history has the statuses of the partition up to this offset.
    pub(super) fn archived(&self, offset: u64) {
        self.archived.fetch_max(offset, Ordering::AcqRel);
    }
}

/// The timer of a message that was accepted by this record, if it has a time to live.
pub(super) fn timer(message: &Message, record: &Received) -> Option<Timer> {
    let due = Timestamp::from_millis(message.expires_at?).plus_millis(GRACE_MS);
    Some(Timer {
        place: TimerPlace::of(due, message.id),
        key: record.key.clone(),
        headers: record.headers.as_bytes().clone(),
        // All that an event needs and that is not in the headers of every record.
        value: Bytes::copy_from_slice(message.recipient.as_bytes()),
    })
}

impl Mover {
    async fn take(
        &self,
        number: u32,
        partition: u32,
        archived: &Arc<AtomicU64>,
    ) -> Result<(Arc<Timers>, AbortOnDropHandle<()>), StoreError> {
        let store = Arc::clone(&self.store.timers);
        let timers = Arc::new(Timers::take(store, EXPIRY + number, self.clock.clone(), Gauge::noop()).await?);
        let (mover, of_mover, archived) = (self.clone(), Arc::clone(&timers), Arc::clone(archived));
        let run = async move { mover.run(&of_mover, partition, &archived).await };
        let moving = tokio::spawn(workers::guarded("expiry", run));
        Ok((timers, AbortOnDropHandle::new(moving)))
    }

    /// Moves timers on until it is dropped, or the log is closed.
    async fn run(&self, timers: &Timers, partition: u32, archived: &AtomicU64) {
        loop {
            match self.turn(timers, partition, archived).await {
                Ok(()) => {}
                Err(Stopped::Append(AppendError::Closed) | Stopped::Log(LogError::Closed)) => return,
                Err(Stopped::TakenOver) => {
                    tracing::info!(partition, "another has taken the timers of expiry over");
                    sleep(TAKE_AGAIN).await;
                    if let Err(error) = timers.take_again().await {
                        tracing::warn!(partition, %error, "timers of expiry cannot be taken back; trying again");
                    }
                }
                Err(error) => {
                    tracing::warn!(partition, %error, "timers of expiry are not moved on; trying again");
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// Moves a page on, or waits until one is due.
    async fn turn(&self, timers: &Timers, partition: u32, archived: &AtomicU64) -> Result<(), Stopped> {
        let mut page = timers.due(PAGE).await?.ok_or(Stopped::TakenOver)?;
        if page.is_empty() {
            let due = timers.next_due().await?;
            self.wait(timers, due).await;
            return Ok(());
        }
        // By the store's clock too, where that is another: a clock that is ahead says nothing early.
        if let Some(time) = self.store.engine.time().await? {
            page.retain(|timer| timer.place.due <= time.plus_millis(MAX_AHEAD_MS));
        }
        if page.is_empty() {
            sleep(CLOCK_CHECK).await;
            return Ok(());
        }
        // What was acknowledged in time is in the log by now.
        let bounds = self.log.bounds(Topic::MessageStatus, partition).await?;
        while archived.load(Ordering::Acquire) < bounds.end && bounds.start < bounds.end {
            sleep(CAUGHT_UP_AGAIN).await;
        }
        self.cancelled.fresh().await;
        let events = self.events(&page).await?;
        let count = events.len() as u64;
        if !events.is_empty() {
            self.log.append(events).await?;
            counter!(EXPIRY_EVENTS).increment(count);
        }
        match timers.done(&page).await? {
            Ours::Yes => Ok(()),
            Ours::No => Err(Stopped::TakenOver),
        }
    }

    /// Waits until `due` has come, one is written that is due before it, or it is time to look anyway.
    async fn wait(&self, timers: &Timers, due: Option<Timestamp>) {
        let begun = Instant::now();
        while begun.elapsed() < LOOK_EVERY {
            let left_ms = due.map(|due| due.millis_since(self.clock.now()));
            if left_ms.is_some_and(|left| left <= 0) {
                return;
            }
            let nap = left_ms.map_or(LOOK_EVERY, |left| Duration::from_millis(left as u64).min(CLOCK_CHECK));
            tokio::select! {
                () = timers.earlier() => return,
                () = sleep(nap) => {}
            }
        }
    }

    /// The events of those messages of a page that went no further.
    async fn events(&self, page: &[Timer]) -> Result<Vec<NewRecord>, Stopped> {
        let headers: Vec<Headers> = page.iter().map(|timer| Headers::from_bytes(timer.headers.clone())).collect();
        let mut due = Vec::with_capacity(page.len());
        for (timer, headers) in page.iter().zip(&headers) {
            match Envelope::read(headers) {
                Ok(envelope) if self.cancelled.takes(envelope.from, envelope.id, envelope.broadcast) => {}
                Ok(envelope) => due.push((timer, envelope)),
                // It was read when it was accepted: nobody but us writes here.
                Err(error) => tracing::error!(%error, "a timer of expiry cannot be read"),
            }
        }
        let ids: Vec<MessageId> = due.iter().map(|(_, envelope)| envelope.id).collect();
        let stored = self.store.messages.get_many(&ids).await?;
        let (mut events, mut seen) = (Vec::new(), BTreeSet::new());
        for ((timer, envelope), stored) in due.into_iter().zip(&stored) {
            if may_expire(stored.as_ref()) && seen.insert(envelope.id) {
                events.push(self.event(timer, &envelope)?);
            }
        }
        Ok(events)
    }

    fn event(&self, timer: &Timer, envelope: &Envelope<'_>) -> Result<NewRecord, EncodeError> {
        let at = envelope.expires_at.unwrap_or_else(|| timer.place.due.plus_millis(-GRACE_MS));
        let change = StatusChanged {
            id: envelope.id,
            status: Status::Expired,
            at: at.as_millis(),
            sender: envelope.from.to_owned(),
            recipient: String::from_utf8_lossy(&timer.value).into_owned(),
            reason: None,
        };
        let status = flow::status(&change, timer.key.clone(), &self.codecs, envelope.origin)?;
        Ok(flow::part_of(status, envelope.broadcast))
    }
}

/// Whether a message went no further than being accepted.
fn may_expire(stored: Option<&StoredMessage>) -> bool {
    let reached = stored.and_then(|stored| stored.steps.current());
    reached.is_none_or(|reached| reached.can_become(Status::Expired))
}
