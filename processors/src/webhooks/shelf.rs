//! The backlogs of one partition: of each endpoint the events that wait in memory, as the stage read them, and where the log
//! is to be read again once they are told. Shared by the stage that fills them and the tasks that empty them.

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::AHashMap;
use eshaar_model::{BusinessId, MessageId, Status, Timestamp, WebhookId};
use eshaar_topics::Received;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::parked::{Place, Standing, TOPICS, place};
use super::{message_of, status_of};
use crate::window::{Repeat, Window};

/// How long an event is kept to find repeats, in milliseconds.
const WINDOW_MS: i64 = 600_000;
/// Most events of one step among which repeats are looked for: about 40 bytes each.
const WINDOW_EVENTS: usize = 10_000;

/// The backlogs of one partition.
pub(super) struct Shelf {
    pub(super) partition: u32,
    inner: Mutex<Inner>,
    /// Held by whoever makes or removes a backlog together with its row in the store.
    pub(super) rows: tokio::sync::Mutex<()>,
}

struct Inner {
    /// What the stage reads next of each topic: everything below was offered to the backlogs.
    live: [u64; 2],
    backlogs: AHashMap<WebhookId, Backlog>,
    /// Those of endpoints that are disabled: nobody empties them.
    dormant: AHashMap<WebhookId, Dormant>,
    /// The events that were seen last, by step.
    seen: [Window; 6],
}

/// The backlog of an endpoint that is told.
struct Backlog {
    queue: VecDeque<Received>,
    /// Where the log is to be read again, once the queue is empty: all of both topics from there on is.
    behind: Option<[u64; 2]>,
    waiting: u64,
    counted: [u64; 2],
    arrived: Arc<Notify>,
}

/// The backlog of an endpoint that is disabled.
pub(super) struct Dormant {
    pub(super) business: BusinessId,
    pub(super) standing: Standing,
    /// It has changed since it was written down.
    pub(super) is_new: bool,
}

impl Shelf {
    pub(super) fn new(partition: u32, live: [u64; 2]) -> Self {
        let seen = std::array::from_fn(|_| Window::new(WINDOW_MS, WINDOW_EVENTS, Timestamp::from_millis(i64::MIN)));
        let inner = Inner { live, backlogs: AHashMap::new(), dormant: AHashMap::new(), seen };
        Self { partition, inner: Mutex::new(inner), rows: tokio::sync::Mutex::new(()) }
    }

    /// What the stage reads next of each topic.
    pub(super) fn live(&self) -> [u64; 2] {
        self.inner.lock().live
    }

    /// Whether an endpoint has a row here.
    pub(super) fn has(&self, webhook: WebhookId) -> bool {
        let inner = self.inner.lock();
        inner.backlogs.contains_key(&webhook) || inner.dormant.contains_key(&webhook)
    }

    /// Makes the backlog of an endpoint that is told. With `is_resumed` it begins where the endpoint stands, otherwise with
    /// what the stage gives next.
    pub(super) fn make(&self, webhook: WebhookId, standing: &Standing, is_resumed: bool) {
        let mut inner = self.inner.lock();
        let is_behind = is_resumed && standing.told.iter().zip(&inner.live).any(|(told, live)| told < live);
        let backlog = Backlog {
            queue: VecDeque::new(),
            behind: is_behind.then_some(standing.told),
            waiting: standing.waiting,
            counted: standing.counted,
            arrived: Arc::default(),
        };
        inner.backlogs.insert(webhook, backlog);
    }

    /// Makes the backlog of an endpoint that is disabled; it takes the place of the one before.
    pub(super) fn put_away(&self, webhook: WebhookId, dormant: Dormant) {
        let mut inner = self.inner.lock();
        inner.backlogs.remove(&webhook);
        inner.dormant.insert(webhook, dormant);
    }

    /// Removes both.
    pub(super) fn remove(&self, webhook: WebhookId) {
        let mut inner = self.inner.lock();
        inner.backlogs.remove(&webhook);
        inner.dormant.remove(&webhook);
    }

    /// The endpoints that are disabled, and whose they are.
    pub(super) fn dormant(&self) -> Vec<(WebhookId, BusinessId)> {
        self.inner.lock().dormant.iter().map(|(id, dormant)| (*id, dormant.business.clone())).collect()
    }

    /// Takes out what an endpoint that was disabled stands at.
    pub(super) fn wake(&self, webhook: WebhookId) -> Option<Standing> {
        self.inner.lock().dormant.remove(&webhook).map(|dormant| dormant.standing)
    }

    /// The standing of each endpoint that is disabled, where it has changed since this was called last.
    pub(super) fn changed(&self) -> Vec<(WebhookId, BusinessId, Standing)> {
        let mut inner = self.inner.lock();
        let changed = inner.dormant.iter_mut().filter_map(|(id, dormant)| {
            let is_new = std::mem::take(&mut dormant.is_new);
            is_new.then(|| (*id, dormant.business.clone(), dormant.standing.clone()))
        });
        changed.collect()
    }

    /// Gives events to the backlogs that want them, in order; from now on the stage reads at `live`. Repeats are left out.
    pub(super) fn offer(&self, wanted: Vec<(WebhookId, Received)>, live: [u64; 2], most: usize, now: Timestamp) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let mut next = inner.live;
        for (webhook, record) in wanted {
            let (topic, offset) = place(&record.position);
            let mut here = next;
            here[topic] = offset;
            next[topic] = offset + 1;
            if inner.enter(&record, now) {
                continue;
            }
            if let Some(dormant) = inner.dormant.get_mut(&webhook) {
                dormant.standing.count((topic, offset));
                dormant.is_new = true;
            }
            let Some(backlog) = inner.backlogs.get_mut(&webhook) else { continue };
            backlog.count((topic, offset));
            if backlog.behind.is_none() {
                if backlog.queue.len() < most {
                    backlog.queue.push_back(record);
                } else {
                    // It is read again with the rest.
                    backlog.behind = Some(here);
                }
            }
            backlog.arrived.notify_one();
        }
        inner.live = live;
    }

    /// Whether an earlier record tells of the same event.
    pub(super) fn is_repeat(&self, record: &Received, now: Timestamp) -> bool {
        self.inner.lock().repeats(record, now)
    }

    /// Told when events have come.
    pub(super) fn arrivals(&self, webhook: WebhookId) -> Option<Arc<Notify>> {
        self.inner.lock().backlogs.get(&webhook).map(|backlog| Arc::clone(&backlog.arrived))
    }

    /// The next event of an endpoint.
    pub(super) fn next(&self, webhook: WebhookId) -> Option<Received> {
        self.inner.lock().backlogs.get_mut(&webhook)?.queue.pop_front()
    }

    /// Where the log is to be read again now: the queue is empty.
    pub(super) fn behind(&self, webhook: WebhookId) -> Option<[u64; 2]> {
        let inner = self.inner.lock();
        let backlog = inner.backlogs.get(&webhook)?;
        if backlog.queue.is_empty() { backlog.behind } else { None }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self, webhook: WebhookId) -> bool {
        let inner = self.inner.lock();
        inner.backlogs.get(&webhook).is_none_or(|backlog| backlog.queue.is_empty() && backlog.behind.is_none())
    }

    /// What was read of the log again, up to `read`. Returns whether the endpoint has caught up: from there on the stage
    /// gives it what comes.
    pub(super) fn refill(&self, webhook: WebhookId, events: Vec<Received>, read: [u64; 2]) -> bool {
        let mut inner = self.inner.lock();
        let live = inner.live;
        let Some(backlog) = inner.backlogs.get_mut(&webhook) else { return true };
        backlog.queue.extend(events);
        let is_behind = read.iter().zip(&live).any(|(read, live)| read < live);
        backlog.behind = is_behind.then_some(read);
        !is_behind
    }

    /// An event is settled.
    pub(super) fn settled(&self, webhook: WebhookId, events: u64) {
        if let Some(backlog) = self.inner.lock().backlogs.get_mut(&webhook) {
            backlog.waiting = backlog.waiting.saturating_sub(events);
        }
    }

    /// The endpoint has caught up on a log that had lost some of what it waited for, and has so many events in hand beside
    /// those that wait here: returns how many it missed.
    pub(super) fn missed(&self, webhook: WebhookId, in_hand: u64) -> u64 {
        let mut inner = self.inner.lock();
        let Some(backlog) = inner.backlogs.get_mut(&webhook) else { return 0 };
        let there = in_hand + backlog.queue.len() as u64;
        let missed = backlog.waiting.saturating_sub(there);
        backlog.waiting = there;
        missed
    }

    /// Where an endpoint stands; `in_hand` is the lowest offset of each topic that is being told.
    pub(super) fn standing(&self, webhook: WebhookId, in_hand: [Option<u64>; 2]) -> Standing {
        let inner = self.inner.lock();
        let Some(backlog) = inner.backlogs.get(&webhook) else { return Standing::at(inner.live) };
        let told = std::array::from_fn(|topic| {
            let queued = backlog.queue.iter().find(|record| record.position.topic == TOPICS[topic]);
            let queued = queued.map(|record| record.position.offset);
            let behind = backlog.behind.map(|behind| behind[topic]);
            [in_hand[topic], queued, behind].into_iter().flatten().min().unwrap_or(inner.live[topic])
        });
        let (waiting, counted) = (backlog.waiting, inner.live);
        Standing { told, waiting, counted, ..Standing::default() }
    }
}

/// The message and the step that a record tells of.
fn event_of(record: &Received) -> Option<(MessageId, Status)> {
    Some((message_of(record)?, status_of(record)?))
}

impl Inner {
    fn repeats(&self, record: &Received, now: Timestamp) -> bool {
        event_of(record).is_some_and(|(id, step)| {
            self.seen[step as usize].repeats(id, record.position.offset, id.made_at(), now) == Repeat::Yes
        })
    }

    /// Enters an event among those that were seen; returns whether it was already.
    fn enter(&mut self, record: &Received, now: Timestamp) -> bool {
        let Some((id, step)) = event_of(record) else { return false };
        let window = &mut self.seen[step as usize];
        if window.repeats(id, record.position.offset, id.made_at(), now) == Repeat::Yes {
            return true;
        }
        window.enter(id, record.position.offset, id.made_at(), now);
        false
    }
}

impl Backlog {
    fn count(&mut self, (topic, offset): Place) {
        if offset >= self.counted[topic] {
            self.counted[topic] = offset + 1;
            self.waiting += 1;
        }
    }
}
