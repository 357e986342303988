//! Look-ups of messages that a client acknowledged or read and that its session does not know. The status needs the sender
//! and the conversation, which the history has.
//!
//! The queue is separate from [`crate::receipts`]: a status that needs only the log never waits for the store. It is
//! bounded for each session and in all. Each session gets an equal part of every batch, so that none delays another. A
//! session without room does not read from its socket ([`crate::session`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ahash::AHashMap;
use eshaar_model::{MessageId, Status, Timestamp};
use eshaar_schemas::Message;
use eshaar_service::metrics::{GATEWAY_LOOK_UPS, GATEWAY_RECEIPTS_LOST};
use eshaar_store::StoredMessage;
use eshaar_topics::flow;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::hub::Handle;
use crate::message::{self, Subject};
use crate::receipts;
use crate::shared::Shared;

/// Look-ups that run at a time. The bound protects what else the store is asked.
pub(crate) const WORKERS: usize = 2;

/// Most messages of one look-up.
const BATCH: usize = 250;

/// Most messages of one session in a batch while other sessions wait.
const PART: usize = 25;

/// Waits before a message that the history does not have is looked up again. The history may be behind.
const RETRY_AFTER_S: [u64; 6] = [1, 2, 4, 8, 16, 32];

/// An id older than this is looked up once. It covers the day for which an Idempotency-Key keeps the id of its message.
const MAX_AGE_MS: i64 = 25 * 3600 * 1000;

/// Wait before a look-up that failed is repeated; also between look-ups during a drain.
const RETRY: Duration = Duration::from_millis(500);

/// A message that its recipient reports as delivered or read.
struct LookUp {
    by: Arc<Handle>,
    id: MessageId,
    status: Status,
    at: Timestamp,
    /// How often the history did not have it.
    misses: usize,
}

#[derive(Default)]
struct State {
    /// What is due, by session.
    due: AHashMap<u64, VecDeque<LookUp>>,
    /// The sessions in `due`, in the order of their turns.
    turns: VecDeque<u64>,
    /// What is due later, by time and a sequence number.
    later: BTreeMap<(Instant, u64), LookUp>,
    sequence: u64,
    /// Everything that is not settled, running look-ups included.
    pending: usize,
}

impl State {
    fn push(&mut self, look_up: LookUp) {
        let session = look_up.by.id;
        let queue = self.due.entry(session).or_default();
        if queue.is_empty() {
            self.turns.push_back(session);
        }
        queue.push_back(look_up);
    }

    /// Moves what has become due by `now` to the queues of its sessions.
    fn promote(&mut self, now: Instant) {
        while let Some(entry) = self.later.first_entry().filter(|entry| entry.key().0 <= now) {
            let look_up = entry.remove();
            self.push(look_up);
        }
    }

    fn take(&mut self, max: usize) -> Vec<LookUp> {
        let mut batch = Vec::new();
        while batch.len() < max
            && let Some(session) = self.turns.pop_front()
        {
            let Some(queue) = self.due.get_mut(&session) else { continue };
            let part = if self.turns.is_empty() { max } else { PART };
            let count = part.min(max - batch.len()).min(queue.len());
            batch.extend(queue.drain(..count));
            if queue.is_empty() {
                self.due.remove(&session);
            } else {
                self.turns.push_back(session);
            }
        }
        batch
    }
}

/// There is no room for more look-ups of a session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Look-ups of all sessions.
pub(crate) struct LookUps {
    state: Mutex<State>,
    limit: usize,
    limit_per_session: usize,
    more: Notify,
    settled: Notify,
    draining: AtomicBool,
}

impl LookUps {
    /// At most `limit` pending look-ups, and `limit_per_session` of one session.
    pub(crate) fn new(limit: usize, limit_per_session: usize) -> Self {
        Self {
            state: Mutex::default(),
            limit,
            limit_per_session,
            more: Notify::new(),
            settled: Notify::new(),
            draining: AtomicBool::new(false),
        }
    }

    /// Adds look-ups of messages that reached `status`, *delivered* or *read*, as the session `by` reports: all or none.
    pub(crate) fn add(&self, by: &Arc<Handle>, ids: &[MessageId], status: Status, at: Timestamp) -> Result<(), Full> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut state = self.state.lock();
        let pending = by.look_ups.load(Ordering::Acquire);
        if pending + ids.len() > self.limit_per_session || state.pending + ids.len() > self.limit {
            return Err(Full);
        }
        by.look_ups.fetch_add(ids.len(), Ordering::AcqRel);
        state.pending += ids.len();
        for id in ids {
            state.push(LookUp { by: Arc::clone(by), id: *id, status, at, misses: 0 });
        }
        drop(state);
        self.more.notify_one();
        Ok(())
    }

    /// Waits until every look-up is settled; repeats what waits for its time at once.
    pub(crate) async fn flushed(&self) {
        self.draining.store(true, Ordering::Release);
        {
            let mut state = self.state.lock();
            for (_, look_up) in std::mem::take(&mut state.later) {
                state.push(look_up);
            }
        }
        self.more.notify_one();
        loop {
            let settled = self.settled.notified();
            if self.state.lock().pending == 0 {
                return;
            }
            settled.await;
        }
    }

    /// How many are not settled.
    pub(crate) fn pending(&self) -> usize {
        self.state.lock().pending
    }

    /// What is due, and when the next becomes due.
    fn take(&self) -> (Vec<LookUp>, Option<Instant>) {
        let mut state = self.state.lock();
        state.promote(Instant::now());
        let batch = state.take(BATCH);
        let (left, next) = (!state.turns.is_empty(), state.later.keys().next().map(|(at, _)| *at));
        drop(state);
        if left {
            self.more.notify_one();
        }
        (batch, next)
    }

    fn again(&self, look_up: LookUp, after: Duration) {
        let after = if self.draining.load(Ordering::Acquire) { after.min(RETRY) } else { after };
        let mut state = self.state.lock();
        state.sequence += 1;
        let key = (Instant::now() + after, state.sequence);
        state.later.insert(key, look_up);
        drop(state);
        self.more.notify_one();
    }

    fn settle(&self, look_up: &LookUp) {
        self.state.lock().pending -= 1;
        look_up.by.look_ups.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Looks messages up until `shutdown`.
pub(crate) async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    let look_ups = &shared.look_ups;
    loop {
        let (batch, next) = look_ups.take();
        if batch.is_empty() {
            tokio::select! {
                () = look_ups.more.notified() => {}
                () = receipts::sleep_until(next) => {}
                () = shutdown.cancelled() => return,
            }
            continue;
        }
        tokio::select! {
            () = look_up(&shared, batch) => {}
            () = shutdown.cancelled() => return,
        }
        metrics::gauge!(GATEWAY_LOOK_UPS).set(look_ups.pending() as f64);
    }
}

/// Looks a batch up with one question, and records what is for those who reported it.
async fn look_up(shared: &Shared, batch: Vec<LookUp>) {
    let look_ups = &shared.look_ups;
    // Their statuses wait for the log, within its bound.
    shared.receipts.room().await;
    let ids: Vec<MessageId> = batch.iter().map(|look_up| look_up.id).collect();
    let found = match shared.messages.get_many(&ids).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, messages = ids.len(), "messages cannot be looked up; trying again");
            for look_up in batch {
                look_ups.again(look_up, RETRY);
            }
            return;
        }
    };
    let mut sessions: Vec<Arc<Handle>> = Vec::new();
    for (mut look_up, stored) in batch.into_iter().zip(found) {
        match stored {
            Some(stored) if stored.row.recipient == look_up.by.principal => reached(shared, &look_up, &stored).await,
            // The message of somebody else.
            Some(_) => {}
            None => {
                let age_ms = shared.clock.now().millis_since(look_up.id.made_at());
                if let Some(after_s) = RETRY_AFTER_S.get(look_up.misses).filter(|_| age_ms.abs() < MAX_AGE_MS) {
                    look_up.misses += 1;
                    look_ups.again(look_up, Duration::from_secs(*after_s));
                    continue;
                }
                metrics::counter!(GATEWAY_RECEIPTS_LOST, "cause" => "unknown_message").increment(1);
            }
        }
        look_ups.settle(&look_up);
        if sessions.last().is_none_or(|last| last.id != look_up.by.id) {
            sessions.push(look_up.by);
        }
    }
    // They may have waited for room.
    for session in &sessions {
        session.wake();
    }
    look_ups.settled.notify_waiters();
}

/// Records the steps that a message reached and the history does not have.
async fn reached(shared: &Shared, LookUp { by, id, status, at, .. }: &LookUp, stored: &StoredMessage) {
    let message = message::decode::<Message>(&shared.codecs, &stored.row.value).await.ok();
    let subject = Subject {
        broadcast: message.as_ref().and_then(flow::broadcast_of),
        id: *id,
        sender: stored.row.sender.to_string(),
        conversation: stored.row.conversation.map(|id| id.to_string()),
        correlation: id.to_string(),
    };
    let steps = [Status::Delivered, Status::Read].into_iter().take_while(|step| step <= status);
    let missing = steps.filter(|step| stored.steps.at(*step).is_none());
    let records: SmallVec<_> =
        missing.filter_map(|step| receipts::status(shared, &subject, &by.principal, step, *at)).collect();
    shared.receipts.add(records, None);
}
