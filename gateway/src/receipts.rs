//! What clients acknowledged and read, on its way to `message.status` and to the store.
//!
//! Statuses are gathered for a few milliseconds and appended together; how far each phone acknowledged is written less
//! often, and only behind the statuses it stands for: after a crash a status may come twice, never not at all. Bounded:
//! a session waits for room before it reads the next frame.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ahash::AHashMap;
use eshaar_model::{Cursor, Phone, Principal, Status, Timestamp};
use eshaar_schemas::StatusChanged;
use eshaar_store::{StoreError, StreamStore};
use eshaar_topics::{AppendError, NewRecord, flow};
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::message::Subject;
use crate::shared::Shared;

/// Most records of one append.
const BATCH: usize = 1_000;

/// Waits before a failed append or write is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// How long the last write of places may take, at the end of a process.
const LAST_WRITE: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Waiting {
    statuses: Vec<NewRecord>,
    /// How far phones acknowledged; the statuses before it are in `statuses`, or are in the log.
    places: Places,
    /// Places whose statuses are being appended.
    appending: Places,
    /// Places whose statuses are in the log.
    appended: Places,
    /// Places that are being written to the store.
    writing: Places,
}

/// How far phones acknowledged.
type Places = AHashMap<Phone, Cursor>;

impl Waiting {
    /// How far a phone acknowledged, as far as the store may not know it.
    fn place(&self, phone: Phone) -> Option<Cursor> {
        [&self.places, &self.appending, &self.appended, &self.writing]
            .into_iter()
            .fold(None, |known, places| further(known, places.get(&phone).copied()))
    }

    fn is_empty(&self) -> bool {
        self.statuses.is_empty()
            && [&self.places, &self.appending, &self.appended, &self.writing]
                .into_iter()
                .all(|places| places.is_empty())
    }
}

fn merge(places: &mut Places, more: Places) {
    for (phone, cursor) in more {
        places.entry(phone).and_modify(|known| *known = known.max(cursor)).or_insert(cursor);
    }
}

/// Receipts of all sessions.
pub(crate) struct Receipts {
    waiting: Mutex<Waiting>,
    limit: usize,
    more: Notify,
    /// Places may be written.
    placed: Notify,
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
            placed: Notify::new(),
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
        merge(&mut waiting.places, place.into_iter().collect());
        drop(waiting);
        if was_empty {
            self.more.notify_one();
        }
    }

    /// Whether as many receipts wait as may.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.lock().statuses.len() >= self.limit
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
        // Before the store: what is written in between is in one or the other.
        let ours = self.waiting.lock().place(phone);
        Ok(further(ours, streams.acked(phone).await?))
    }

    /// Takes the places that may be written, those of a write that failed included.
    fn take_appended(&self) -> Vec<(Phone, Cursor)> {
        let mut waiting = self.waiting.lock();
        let appended = std::mem::take(&mut waiting.appended);
        merge(&mut waiting.writing, appended);
        waiting.writing.iter().map(|(phone, cursor)| (*phone, *cursor)).collect()
    }

    /// Waits until everything that came before has been written.
    pub(crate) async fn flushed(&self) {
        loop {
            let idle = self.idle.notified();
            {
                if self.waiting.lock().is_empty() && !self.busy.load(Ordering::Acquire) {
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

/// Writes receipts until `shutdown`, then what is left. Statuses and places are written side by side: a status needs only
/// the log, and does not wait for the store.
pub(crate) async fn run(shared: std::sync::Arc<Shared>, shutdown: CancellationToken) {
    tokio::join!(append_statuses(&shared, &shutdown), write_places(&shared, &shutdown));
    append_waiting(&shared).await;
    let left = shared.receipts.take_appended();
    // What is not written is sent again, to clients that do not resume by a cursor.
    if !left.is_empty() {
        match tokio::time::timeout(LAST_WRITE, shared.streams.ack(left)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "acknowledged positions were not written at the end"),
            Err(_) => tracing::warn!("acknowledged positions were not written at the end: the store did not answer"),
        }
    }
}

async fn append_statuses(shared: &Shared, shutdown: &CancellationToken) {
    let gather = Duration::from_millis(shared.options.acks_every_ms);
    loop {
        tokio::select! {
            () = shared.receipts.more.notified() => tokio::time::sleep(gather).await,
            () = shutdown.cancelled() => return,
        }
        append_waiting(shared).await;
    }
}

/// Writes places to the store, behind the statuses that they stand for, until `shutdown`.
async fn write_places(shared: &Shared, shutdown: &CancellationToken) {
    let between = Duration::from_millis(shared.options.places_every_ms);
    loop {
        tokio::select! {
            () = shared.receipts.placed.notified() => {}
            () = shutdown.cancelled() => return,
        }
        let mut places = shared.receipts.take_appended();
        while !places.is_empty() {
            match shared.streams.ack(places.clone()).await {
                Ok(()) | Err(StoreError::Closed) => places = Vec::new(),
                Err(error) => {
                    tracing::warn!(%error, phones = places.len(), "acknowledged positions were not written; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => places = shared.receipts.take_appended(),
                        () = shutdown.cancelled() => return,
                    }
                }
            }
        }
        shared.receipts.waiting.lock().writing.clear();
        shared.receipts.idle.notify_waiters();
        tokio::select! {
            () = tokio::time::sleep(between) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Waits until `at`, or for ever.
pub(crate) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Appends the statuses that wait.
async fn append_waiting(shared: &Shared) {
    let receipts = &shared.receipts;
    let mut statuses = {
        let mut waiting = receipts.waiting.lock();
        receipts.busy.store(true, Ordering::Release);
        waiting.appending = std::mem::take(&mut waiting.places);
        std::mem::take(&mut waiting.statuses)
    };
    receipts.room.notify_waiters();
    while !statuses.is_empty() {
        let rest = statuses.split_off(statuses.len().min(BATCH));
        append(shared, statuses).await;
        statuses = rest;
    }
    let mut waiting = receipts.waiting.lock();
    let appended = std::mem::take(&mut waiting.appending);
    if !appended.is_empty() {
        merge(&mut waiting.appended, appended);
        receipts.placed.notify_one();
    }
    receipts.busy.store(false, Ordering::Release);
    receipts.idle.notify_waiters();
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
