//! The task that tells one endpoint of the events of one partition.
//!
//! It takes events from the backlog ([`Shelf`]), and has the log read again where the endpoint is behind ([`Catchup`]); begins
//! requests as the endpoint's pace allows, each a task of its own; and parks what is refused ([`Work`]). The row in the store
//! says at any time where to go on: an event was told, or stands behind the row's offsets, or is parked in it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eshaar_model::{MessageId, Status, Timestamp};
use eshaar_schemas::{Message, StatusChanged};
use eshaar_service::metrics::{
    WEBHOOK_BACKLOGS, WEBHOOK_PARKED, WEBHOOK_PLACE_SECONDS, WEBHOOK_REQUESTS, WEBHOOK_SECONDS,
};
use eshaar_topics::{Received, Topic};
use metrics::{counter, gauge, histogram};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::catchup::{Catchup, Turn, read_again};
use super::endpoint::{Endpoint, Slot, State};
use super::pace::{DELAYS, Failure, delay};
use super::parked::Standing;
use super::request::{self, Answer};
use super::shelf::{Dormant, Shelf};
use super::work::{Event, Work};
use super::{Shared, message_of};
use crate::{Undecodable, decode};

/// How often it is written down how far an endpoint was told.
const SAVED_EVERY: Duration = Duration::from_secs(1);
/// How long is waited for an engine that does not answer.
const ENGINE_PAUSE: Duration = Duration::from_secs(1);
/// Events that are tried again within this time are kept in memory; others are read again.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// The task of one endpoint and partition.
pub(super) struct Teller {
    pub(super) shared: Arc<Shared>,
    pub(super) shelf: Arc<Shelf>,
    pub(super) endpoint: Arc<Endpoint>,
}

/// What became of an event.
enum Verdict {
    /// It was taken, or given up, or is nothing to tell of.
    Settled,
    /// The log has it no more.
    Lost,
    /// It was refused at this time.
    Refused(Timestamp),
    /// The endpoint was not asked, or said nothing about it.
    NotNow,
}

/// A turn of reading the log again: whether the endpoint has caught up on a log that had lost some of its events.
type Reading = AbortOnDropHandle<(Catchup, bool)>;

impl Teller {
    /// Tells the endpoint until nothing is left and nothing has come for a while, or it is disabled or deleted.
    pub(super) async fn run(self, standing: Standing) {
        gauge!(WEBHOOK_BACKLOGS).increment(1.0);
        let mut work = Work::new(standing.parked);
        Arc::new(self).work(&mut work).await;
        gauge!(WEBHOOK_BACKLOGS).decrement(1.0);
    }

    async fn work(self: Arc<Self>, work: &mut Work) {
        let (mut telling, mut catchup, mut reading) = (JoinSet::new(), Some(Catchup::default()), None::<Reading>);
        let (mut saved, mut recoveries) = (None, self.endpoint.recoveries());
        let options = &self.shared.options;
        let mut tick = interval(SAVED_EVERY.min(Duration::from_millis(options.known_for_ms.max(1))));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let idle = Duration::from_secs(options.idle_s.max(1));
        let (mut busy, mut saved_at, mut parked) = (Instant::now(), Instant::now(), Gauged(0));
        let Some(arrived) = self.shelf.arrivals(self.endpoint.id) else { return };
        loop {
            let changed = self.endpoint.changed.notified();
            if std::mem::replace(&mut recoveries, self.endpoint.recoveries()) != recoveries {
                work.try_all_now(self.shared.clock.now());
            }
            self.take(work);
            self.begin(work, &mut telling);
            parked.set(work.parked().len());
            if reading.is_none() && work.has_room() && self.shelf.behind(self.endpoint.id).is_some() {
                let next = catchup.take().unwrap_or_default();
                reading = Some(AbortOnDropHandle::new(tokio::spawn(Arc::clone(&self).read(next))));
            }
            if !work.is_empty() || reading.is_some() {
                busy = Instant::now();
            }
            tokio::select! {
                Some(told) = telling.join_next() => self.done(work, told).await,
                read = finished(&mut reading) => {
                    reading = None;
                    let (read, has_lost) = read.unwrap_or_default();
                    catchup = Some(read);
                    if has_lost {
                        self.lost(self.shelf.missed(self.endpoint.id, work.count())).await;
                    }
                }
                () = arrived.notified(), if work.has_room() => {}
                () = changed => {}
                _ = tick.tick() => {
                    // Others want to read, too, while this endpoint takes nothing.
                    if let Some(catchup) = catchup.as_mut().filter(|_| !work.has_room()) {
                        catchup.rest();
                    }
                    let is_told = self.known().await == State::Enabled;
                    if is_told && !work.is_empty() && saved_at.elapsed() >= SAVED_EVERY {
                        saved_at = Instant::now();
                        self.save(work, &mut saved).await;
                    }
                    let is_over = work.is_empty() && busy.elapsed() >= idle;
                    if (is_over || !is_told) && self.end(work).await {
                        return;
                    }
                }
            }
        }
    }

    /// Reads the log again for a turn.
    async fn read(self: Arc<Self>, mut catchup: Catchup) -> (Catchup, bool) {
        match catchup.turn(&self.shared, &self.shelf, &self.endpoint).await {
            Ok(Turn::More) => (catchup, false),
            Ok(Turn::CaughtUp) => {
                let has_lost = std::mem::take(&mut catchup.has_lost);
                (catchup, has_lost)
            }
            Err(error) => {
                tracing::warn!(webhook = %self.endpoint.id, error, "the backlog of a webhook cannot be read; trying again");
                catchup.rest();
                sleep(ENGINE_PAUSE).await;
                (catchup, false)
            }
        }
    }

    /// Takes what is to be tried again, and what waits.
    fn take(&self, work: &mut Work) {
        work.take_due(self.shared.clock.now());
        while work.has_room()
            && let Some(record) = self.shelf.next(self.endpoint.id)
        {
            match message_of(&record) {
                Some(id) => work.admit(id, record),
                // Of no message: `notify` has made it a dead letter.
                None => self.shelf.settled(self.endpoint.id, 1),
            }
        }
    }

    /// Begins as many requests as the endpoint's pace allows.
    fn begin(self: &Arc<Self>, work: &mut Work, telling: &mut JoinSet<(Event, Verdict)>) {
        if self.endpoint.state() != State::Enabled {
            return;
        }
        while work.is_ready()
            && let Some(slot) = self.endpoint.begin()
            && let Some(event) = work.next()
        {
            telling.spawn(Arc::clone(self).tell(event, slot));
        }
    }

    async fn done(&self, work: &mut Work, told: Result<(Event, Verdict), JoinError>) {
        let (event, verdict) = match told {
            Ok(told) => told,
            // The row stays where it is, so that the event is told after the next start.
            Err(error) => {
                return tracing::error!(webhook = %self.endpoint.id, %error, "a request to a webhook panicked");
            }
        };
        match verdict {
            Verdict::NotNow => work.not_now(event),
            Verdict::Refused(at) => {
                let wait = delay(usize::from(event.tries) + 1, jitter(event.id, event.tries));
                let due = at.plus_millis(wait.as_millis() as i64);
                work.refused(event, at, due, wait <= KEPT_FOR);
            }
            Verdict::Settled => {
                work.settled(&event);
                self.shelf.settled(self.endpoint.id, 1);
            }
            Verdict::Lost => {
                work.settled(&event);
                self.shelf.settled(self.endpoint.id, 1);
                self.lost(1).await;
            }
        }
    }

    async fn lost(&self, events: u64) {
        if events > 0 {
            self.shared.endpoints.missed(&self.endpoint, events).await;
        }
    }

    /// Whether the endpoint is told now; while the store is down it is as it was.
    async fn known(&self) -> State {
        if let Err(error) = self.shared.endpoints.of(&self.endpoint.business).await {
            tracing::debug!(webhook = %self.endpoint.id, %error, "a webhook is taken to be as it was");
        }
        self.endpoint.state()
    }

    fn standing(&self, work: &Work) -> Standing {
        Standing { parked: work.parked().clone(), ..self.shelf.standing(self.endpoint.id, work.lowest()) }
    }

    async fn save(&self, work: &Work, saved: &mut Option<(u64, Bytes)>) {
        let cursor = self.shared.cursor(&self.endpoint.business, self.endpoint.id, &self.standing(work));
        let now = (cursor.offset, cursor.state.clone());
        if saved.as_ref() == Some(&now) {
            return;
        }
        match self.shared.store.put_cursors(self.shelf.partition, vec![cursor]).await {
            Ok(()) => *saved = Some(now),
            Err(error) => {
                tracing::debug!(webhook = %self.endpoint.id, %error, "how far a webhook was told is not written down");
            }
        }
    }

    /// Removes the backlog, unless something has come; of an endpoint that is disabled it is kept.
    async fn end(&self, work: &Work) -> bool {
        let (id, partition) = (self.endpoint.id, self.shelf.partition);
        let _rows = self.shelf.rows.lock().await;
        let state = self.endpoint.state();
        if state == State::Disabled {
            let standing = self.standing(work);
            let cursor = self.shared.cursor(&self.endpoint.business, id, &standing);
            if let Err(error) = self.shared.store.put_cursors(partition, vec![cursor]).await {
                tracing::debug!(webhook = %id, %error, "how far a webhook was told is not written down yet");
                return false;
            }
            let dormant = Dormant { business: self.endpoint.business.clone(), standing, is_new: false };
            self.shelf.put_away(id, dormant);
            return true;
        }
        if state == State::Enabled && !(work.is_empty() && self.shelf.is_empty(id)) {
            return false;
        }
        if let Err(error) = self.shared.store.remove_cursor(partition, id).await {
            tracing::debug!(webhook = %id, %error, "the cursor of a webhook is not removed yet");
            return false;
        }
        // Nothing has come meanwhile: whoever offers holds `rows`.
        self.shelf.remove(id);
        true
    }

    /// Tells of one event, once.
    async fn tell(self: Arc<Self>, mut event: Event, slot: Slot) -> (Event, Verdict) {
        let verdict = self.attempt(&mut event, &slot).await;
        (event, verdict)
    }

    async fn attempt(&self, event: &mut Event, slot: &Slot) -> Verdict {
        if event.record.is_none() {
            match read_again(&*self.shared.log, self.shelf.partition, event.place).await {
                Ok(Some(record)) => event.record = Some(record),
                Ok(None) => return Verdict::Lost,
                Err(error) => {
                    tracing::debug!(webhook = %self.endpoint.id, error, "an event cannot be read again yet");
                    sleep(ENGINE_PAUSE).await;
                    return Verdict::NotNow;
                }
            }
        }
        let Some(record) = &event.record else { return Verdict::NotNow };
        let Some((id, body)) = self.body(record).await else { return Verdict::Settled };
        let waiting = Instant::now();
        let place = self.shared.requests.take(&self.endpoint.business, self.endpoint.is_slow()).await;
        histogram!(WEBHOOK_PLACE_SECONDS).record(waiting.elapsed().as_secs_f64());
        let Some(webhook) = self.endpoint.enabled().filter(|_| !self.endpoint.is_held()) else {
            return Verdict::NotNow;
        };
        let begun = Instant::now();
        let answer = self.shared.sender.tell(&webhook, &id, body, self.shared.clock.now()).await;
        drop(place);
        histogram!(WEBHOOK_SECONDS).record(begun.elapsed().as_secs_f64());
        counter!(WEBHOOK_REQUESTS, "answer" => answer.name()).increment(1);
        let endpoints = &self.shared.endpoints;
        match answer {
            Answer::Taken => {
                endpoints.succeeded(&self.endpoint, begun.elapsed()).await;
                Verdict::Settled
            }
            Answer::Gone => {
                endpoints.disable(&self.endpoint, "it answered 410 Gone").await;
                Verdict::NotNow
            }
            Answer::Wait(wait) => {
                let reason = "it answered 429 Too Many Requests";
                endpoints.failed(&self.endpoint, slot.begun, Failure::Throttled(wait), reason).await;
                Verdict::NotNow
            }
            Answer::Silent { reason, wait } => {
                endpoints.failed(&self.endpoint, slot.begun, Failure::Unavailable(wait), &reason).await;
                Verdict::NotNow
            }
            Answer::Refused(status) => {
                let reason = format!("it answered {status}");
                let is_last = usize::from(event.tries) >= DELAYS.len() && self.endpoint.took_after(event.tried);
                endpoints.failed(&self.endpoint, slot.begun, Failure::Refused, &reason).await;
                if !is_last {
                    return Verdict::Refused(self.shared.clock.now());
                }
                let reason = format!("webhook {} answered {status}", self.endpoint.id);
                self.shared.give_up(record, i32::from(event.tries) + 1, &reason).await;
                Verdict::Settled
            }
        }
    }

    /// The event's id and body; `None` for a record that nobody could be told of, which others have made a dead letter.
    async fn body(&self, record: &Received) -> Option<(String, Vec<u8>)> {
        loop {
            let change = if record.position.topic == Topic::MessagesAccepted {
                decode::<Message>(&self.shared.codecs, &record.value).await.map(sent)
            } else {
                decode::<StatusChanged>(&self.shared.codecs, &record.value).await
            };
            match change {
                Ok(change) => return Some((format!("{}.{}", change.id, change.status), request::body(&change))),
                Err(Undecodable::Value(_)) => return None,
                Err(Undecodable::Registry(error)) => {
                    tracing::debug!(%error, "an event cannot be read yet");
                    sleep(ENGINE_PAUSE).await;
                }
            }
        }
    }
}

/// The first step of a message, which its record in `messages.accepted` is.
fn sent(message: Message) -> StatusChanged {
    StatusChanged {
        id: message.id,
        status: Status::Sent,
        at: message.created_at,
        sender: message.sender,
        recipient: message.recipient,
        reason: None,
    }
}

/// A number that differs from event to event and try to try.
fn jitter(id: MessageId, tries: u8) -> u64 {
    let random = id.as_bytes().last_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    random.wrapping_add(u64::from(tries))
}

/// Waits until a turn of reading is over; for ever while there is none.
async fn finished(reading: &mut Option<Reading>) -> Result<(Catchup, bool), JoinError> {
    match reading {
        Some(reading) => reading.await,
        None => std::future::pending().await,
    }
}

/// A part of the gauge of parked events, which goes with its task.
struct Gauged(usize);

impl Gauged {
    fn set(&mut self, count: usize) {
        if count != self.0 {
            gauge!(WEBHOOK_PARKED).increment(count as f64 - self.0 as f64);
            self.0 = count;
        }
    }
}

impl Drop for Gauged {
    fn drop(&mut self) {
        self.set(0);
    }
}
