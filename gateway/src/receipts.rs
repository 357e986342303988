//! What clients acknowledged and read, on its way to `message.status` and to the store.
//!
//! Statuses are gathered for a few milliseconds and appended together; how far each phone acknowledged is written less
//! often, and only behind the statuses it stands for: after a crash a status may come twice, never not at all. Bounded:
//! a session waits for room before it reads the next frame.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ahash::AHashMap;
use eshaar_model::{Cursor, MessageId, Phone, Principal, Status, Timestamp};
use eshaar_schemas::{Message, StatusChanged};
use eshaar_store::{StoreError, StreamStore};
use eshaar_topics::{AppendError, NewRecord, flow};
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::message::{self, Subject};
use crate::shared::Shared;

/// Most records of one append.
const BATCH: usize = 1_000;

/// Waits before a failed append or write is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// A receipt for a message that is not known to its session: its row may not be written yet when it is looked for.
const LOOKS: u8 = 6;

/// Wait between looks.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A message that its recipient says to have got, or read, and that is still to be looked up.
struct Unknown {
    by: Principal,
    id: MessageId,
    status: Status,
    at: Timestamp,
    looks: u8,
    due: Instant,
}

#[derive(Default)]
struct Waiting {
    statuses: Vec<NewRecord>,
    unknown: Vec<Unknown>,
    /// How far phones acknowledged; the statuses before it are in `statuses` or appended.
    places: AHashMap<Phone, Cursor>,
    /// Places that are being written.
    writing: AHashMap<Phone, Cursor>,
}

/// Receipts of all sessions.
pub(crate) struct Receipts {
    waiting: Mutex<Waiting>,
    limit: usize,
    more: Notify,
    room: Notify,
    idle: Notify,
    busy: AtomicBool,
}

impl Receipts {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            limit,
            more: Notify::new(),
            room: Notify::new(),
            idle: Notify::new(),
            busy: AtomicBool::new(false),
        }
    }

    /// Takes statuses, and how far the phone has acknowledged with them.
    pub(crate) fn add(&self, statuses: SmallVec<[NewRecord; 2]>, place: Option<(Phone, Cursor)>) {
        let mut waiting = self.waiting.lock();
        let was_empty = waiting.statuses.is_empty() && waiting.places.is_empty();
        waiting.statuses.extend(statuses);
        if let Some((phone, cursor)) = place {
            waiting.places.entry(phone).and_modify(|known| *known = known.max(cursor)).or_insert(cursor);
        }
        drop(waiting);
        if was_empty {
            self.more.notify_one();
        }
    }

    /// A message that is not known to the session of `by` has reached `status`, *delivered* or *read*, if it is for them.
    pub(crate) fn look_up(&self, by: Principal, id: MessageId, status: Status, at: Timestamp) {
        let unknown = Unknown { by, id, status, at, looks: 0, due: Instant::now() };
        self.waiting.lock().unknown.push(unknown);
        self.more.notify_one();
    }

    /// Whether as many receipts wait as may.
    pub(crate) fn is_full(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.statuses.len() + waiting.unknown.len() >= self.limit
    }

    /// Waits until fewer receipts wait than the limit.
    pub(crate) async fn room(&self) {
        loop {
            let room = self.room.notified();
            if !self.is_full() {
                return;
            }
            room.await;
        }
    }

    /// How far a phone acknowledged, what is not written yet included.
    pub(crate) async fn acked(&self, streams: &dyn StreamStore, phone: Phone) -> Result<Option<Cursor>, StoreError> {
        let unwritten = |waiting: &Waiting| {
            let (a, b) = (waiting.places.get(&phone).copied(), waiting.writing.get(&phone).copied());
            further(a, b)
        };
        // Before the store: what is written in between is in one or the other.
        let ours = unwritten(&self.waiting.lock());
        Ok(further(ours, streams.acked(phone).await?))
    }

    /// Waits until everything that came before has been written.
    pub(crate) async fn flushed(&self) {
        loop {
            let idle = self.idle.notified();
            {
                let waiting = self.waiting.lock();
                let empty = waiting.statuses.is_empty() && waiting.places.is_empty() && waiting.writing.is_empty();
                if empty && !self.busy.load(Ordering::Acquire) {
                    return;
                }
            }
            idle.await;
        }
    }
}

fn further(a: Option<Cursor>, b: Option<Cursor>) -> Option<Cursor> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (known, None) | (None, known) => known,
    }
}

/// The record that says that a message reached a step.
pub(crate) fn status(
    shared: &Shared,
    subject: &Subject,
    recipient: &Principal,
    status: Status,
    at: Timestamp,
) -> Option<NewRecord> {
    let recipient = recipient.to_string();
    let key = subject.conversation.as_ref().unwrap_or(&recipient).clone();
    let change = StatusChanged {
        id: subject.id,
        status,
        at: at.as_millis(),
        sender: subject.sender.clone(),
        recipient,
        reason: None,
    };
    let origin = flow::Origin { traceparent: None, correlation: Some(&subject.correlation) };
    flow::status(&change, key.into(), &shared.codecs, origin)
        .map(|record| flow::part_of(record, subject.broadcast))
        .inspect_err(|error| tracing::error!(message = %subject.id, %error, "a status cannot be written"))
        .ok()
}

/// Writes receipts until `shutdown`, then what is left.
pub(crate) async fn run(shared: std::sync::Arc<Shared>, shutdown: CancellationToken) {
    let receipts = &shared.receipts;
    let gather = Duration::from_millis(shared.options.acks_every_ms);
    let between_places = Duration::from_millis(shared.options.places_every_ms);
    let mut places_due = Instant::now();
    loop {
        let next = next_due(receipts, places_due);
        tokio::select! {
            () = receipts.more.notified() => tokio::time::sleep(gather).await,
            () = sleep_until(next) => {}
            () = shutdown.cancelled() => break,
        }
        look_up(&shared).await;
        write(&shared, Instant::now() >= places_due).await;
        if Instant::now() >= places_due {
            places_due = Instant::now() + between_places;
        }
    }
    write(&shared, true).await;
}

/// When the writer must look again by itself.
fn next_due(receipts: &Receipts, places_due: Instant) -> Option<Instant> {
    let waiting = receipts.waiting.lock();
    let places = (!waiting.places.is_empty()).then_some(places_due);
    let unknown = waiting.unknown.iter().map(|unknown| unknown.due).min();
    places.into_iter().chain(unknown).min()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Appends the statuses that wait, and then, when they are due, writes the places they stand for.
async fn write(shared: &Shared, places: bool) {
    let receipts = &shared.receipts;
    let (mut statuses, places) = {
        let mut waiting = receipts.waiting.lock();
        receipts.busy.store(true, Ordering::Release);
        if places {
            waiting.writing = std::mem::take(&mut waiting.places);
        }
        let places: Vec<_> = waiting.writing.iter().map(|(phone, cursor)| (*phone, *cursor)).collect();
        (std::mem::take(&mut waiting.statuses), places)
    };
    receipts.room.notify_waiters();
    while !statuses.is_empty() {
        let rest = statuses.split_off(statuses.len().min(BATCH));
        append(shared, statuses).await;
        statuses = rest;
    }
    if !places.is_empty() {
        while let Err(error) = shared.streams.ack(places.clone()).await {
            if matches!(error, StoreError::Closed) {
                break;
            }
            tracing::warn!(%error, phones = places.len(), "acknowledged positions were not written; trying again");
            tokio::time::sleep(RETRY).await;
        }
        receipts.waiting.lock().writing.clear();
    }
    receipts.busy.store(false, Ordering::Release);
    receipts.idle.notify_waiters();
    let waiting = receipts.waiting.lock();
    if !waiting.statuses.is_empty() {
        receipts.more.notify_one();
    }
}

/// Appends until it is known to be done: an unknown outcome is tried again, a repeat changes nothing.
async fn append(shared: &Shared, records: Vec<NewRecord>) {
    loop {
        match shared.log.append(records.clone()).await {
            Ok(_) => return,
            Err(AppendError::Unknown { reason }) => {
                tracing::warn!(reason, records = records.len(), "statuses were not acknowledged; appending them again");
                tokio::time::sleep(RETRY).await;
            }
            Err(error @ (AppendError::Refused { .. } | AppendError::Closed)) => {
                tracing::error!(%error, records = records.len(), "statuses were lost");
                return;
            }
        }
    }
}

/// Looks up the messages that are not known to the sessions that got or read them, and records it for those that are theirs.
async fn look_up(shared: &Shared) {
    let now = Instant::now();
    let due: Vec<Unknown> = {
        let mut waiting = shared.receipts.waiting.lock();
        waiting.unknown.extract_if(.., |unknown| unknown.due <= now).collect()
    };
    for mut unknown in due {
        match shared.messages.get(unknown.id).await {
            Ok(Some(stored)) if stored.row.recipient == unknown.by => {
                let message = message::decode::<Message>(&shared.codecs, &stored.row.value).await.ok();
                let subject = Subject {
                    broadcast: message.as_ref().and_then(flow::broadcast_of),
                    id: unknown.id,
                    sender: stored.row.sender.to_string(),
                    conversation: stored.row.conversation.map(|id| id.to_string()),
                    correlation: unknown.id.to_string(),
                };
                let reached = [Status::Delivered, Status::Read].into_iter().take_while(|step| *step <= unknown.status);
                let steps = reached.filter(|step| stored.steps.at(*step).is_none());
                let records =
                    steps.filter_map(|step| status(shared, &subject, &unknown.by, step, unknown.at)).collect();
                shared.receipts.add(records, None);
            }
            Ok(None) | Err(_) if unknown.looks < LOOKS => {
                unknown.looks += 1;
                unknown.due = now + LOOK_AGAIN;
                shared.receipts.waiting.lock().unknown.push(unknown);
            }
            // Another's message, or none.
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(message = %unknown.id, %error, "a receipt was lost: the message cannot be looked up");
            }
        }
    }
}
