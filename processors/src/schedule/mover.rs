//! Moves the timers of a partition on when they are due: reads a page, has its messages accepted, and says that it is done
//! with. A crash in between has at most that page appended again, under the same ids.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eshaar_model::{Clock, Status, Timestamp};
use eshaar_schemas::{Codecs, EncodeError, Message, RegistryError, StatusChanged};
use eshaar_service::metrics::{SCHEDULE_LATE_SECONDS, SCHEDULE_SETTLED};
use eshaar_store::{StoreEngine, StoreError, Timer, TimerPlace};
use eshaar_topics::flow::{self, Origin};
use eshaar_topics::{AppendError, Cancelled, Headers, Log, NewRecord};
use metrics::{counter, histogram};
use tokio::time::{Instant, sleep};

use crate::broadcast::room::Room;
use crate::timers::{Ours, Timers};
use crate::{Undecodable, decode};

/// Most timers that are moved on at once.
const PAGE: usize = 200;
/// Timers that were moved on last, and are remembered: their page may come again when one was written before them.
const REMEMBERED: usize = 4 * PAGE;
/// Longest sleep before the clock is looked at again.
const CLOCK_CHECK: Duration = Duration::from_millis(250);
/// How far this clock may be ahead of the store's before timers wait for that, in milliseconds.
const MAX_AHEAD_MS: i64 = 1_000;
/// Longest wait before the store is looked into again, whatever is known.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// Wait before it is looked again whether there is room.
const ROOM_AGAIN: Duration = Duration::from_millis(50);
/// Wait before an append whose outcome is unknown is tried again.
const APPEND_AGAIN: Duration = Duration::from_millis(200);
/// Who had the timers taken from it, and is not told that it has lost the partition, takes them back after this time. One
/// that has lost it is told so before.
const TAKE_AGAIN: Duration = Duration::from_secs(15);
/// Code of a message that the log refuses.
const REFUSED: &str = "append_refused";

/// Moves timers on; one for all partitions of a process.
pub(super) struct Mover {
    pub(super) log: Arc<dyn Log>,
    /// Another clock, which a time must have come by too.
    pub(super) engine: Arc<dyn StoreEngine>,
    pub(super) codecs: Codecs,
    pub(super) cancelled: Arc<Cancelled>,
    pub(super) clock: Clock,
    pub(super) room: Room,
    /// How long is waited when the store or the registry does not answer.
    pub(super) pause_ms: u64,
}

/// Timers are not moved on, for now.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("a message cannot be written: {0}")]
    Encode(#[from] EncodeError),
    #[error("another has taken them over")]
    TakenOver,
    #[error("the log is closed")]
    Closed,
}

/// A message whose time has come.
struct Due {
    place: TimerPlace,
    message: Message,
    key: Bytes,
    headers: Headers,
}

impl Mover {
    /// Moves timers on until it is dropped, or the log is closed.
    pub(super) async fn run(&self, timers: &Timers) {
        tokio::select! {
            () = self.move_on(timers) => {}
            () = timers.count() => {}
        }
    }

    async fn move_on(&self, timers: &Timers) {
        let (partition, mut moved) = (timers.partition, Moved::default());
        loop {
            let Err(stopped) = self.turn(timers, &mut moved).await else { continue };
            match stopped {
                Stopped::Closed => return,
                Stopped::TakenOver => {
                    tracing::info!(partition, "another has taken the timers over");
                    sleep(TAKE_AGAIN).await;
                    if let Err(error) = timers.take_again().await {
                        tracing::warn!(partition, %error, "timers cannot be taken back; trying again");
                    }
                }
                error => {
                    tracing::warn!(partition, %error, "timers are not moved on; trying again");
                    sleep(Duration::from_millis(self.pause_ms)).await;
                }
            }
        }
    }

    /// Moves a page on, or waits until one is due.
    async fn turn(&self, timers: &Timers, moved: &mut Moved) -> Result<(), Stopped> {
        let page = timers.due(PAGE).await?.ok_or(Stopped::TakenOver)?;
        if page.is_empty() {
            let due = timers.next_due().await?;
            self.wait(timers, due).await;
            return Ok(());
        }
        let page = self.due_by_the_store(page).await?;
        if page.is_empty() {
            sleep(CLOCK_CHECK).await;
            return Ok(());
        }
        // Nothing is sent before the newest cancellations are known.
        self.cancelled.fresh().await;
        let due = self.still_due(&page, moved).await?;
        self.accept(due).await?;
        moved.enter(&page);
        match timers.done(&page).await? {
            Ours::Yes => Ok(()),
            Ours::No => Err(Stopped::TakenOver),
        }
    }

    /// What of a page is due by the store's clock too, where that is another: a clock that is ahead releases nothing early.
    async fn due_by_the_store(&self, mut page: Vec<Timer>) -> Result<Vec<Timer>, StoreError> {
        if let Some(time) = self.engine.time().await? {
            let latest = time.plus_millis(MAX_AHEAD_MS);
            page.retain(|timer| timer.place.due <= latest);
        }
        Ok(page)
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

    /// What of a page is to be accepted: not what was just now, nor what was taken back.
    async fn still_due(&self, page: &[Timer], moved: &Moved) -> Result<Vec<Due>, Stopped> {
        let mut due = Vec::with_capacity(page.len());
        for Timer { place, key, headers, value } in page.iter().filter(|timer| !moved.has(timer.place)) {
            let message = match decode::<Message>(&self.codecs, value).await {
                Ok(message) => message,
                Err(Undecodable::Registry(error)) => return Err(error.into()),
                Err(Undecodable::Value(error)) => {
                    // It was read when it was written: nobody but us writes here.
                    tracing::error!(due = %place.due, %error, "a timer cannot be read; its message is not sent");
                    settled("refused", 1);
                    continue;
                }
            };
            if self.cancelled.takes(&message.sender, message.id, flow::broadcast_of(&message)) {
                settled("cancelled", 1);
                continue;
            }
            let (place, headers) = (*place, Headers::from_bytes(headers.clone()));
            due.push(Due { place, message, key: key.clone(), headers });
        }
        Ok(due)
    }

    /// Has messages accepted, once there is room for them.
    async fn accept(&self, due: Vec<Due>) -> Result<(), Stopped> {
        if due.is_empty() {
            return Ok(());
        }
        while !self.room.take(due.len() as u64).await {
            sleep(ROOM_AGAIN).await;
        }
        let now = self.clock.now();
        let mut records = Vec::with_capacity(due.len());
        for Due { message, key, headers, .. } in &due {
            records.push(flow::come_due(message.clone(), (key.clone(), headers), now, &self.codecs)?);
        }
        if self.append(&records).await?.is_ok() {
            settled("sent", records.len());
        } else {
            // Which of them it was is not known: one by one, so that only the one at fault is not sent.
            for (record, due) in records.into_iter().zip(&due) {
                match self.append(&[record]).await? {
                    Ok(()) => settled("sent", 1),
                    Err(reason) => self.fail(due, &reason, now).await?,
                }
            }
        }
        for Due { place, .. } in &due {
            histogram!(SCHEDULE_LATE_SECONDS).record(now.millis_since(place.due) as f64 / 1000.0);
        }
        Ok(())
    }

    /// Says of a message that it is not going to be sent.
    async fn fail(&self, Due { message, key, headers, .. }: &Due, reason: &str, now: Timestamp) -> Result<(), Stopped> {
        tracing::error!(message_id = %message.id, reason, "the log refuses a message that is due");
        settled("refused", 1);
        let change = StatusChanged {
            id: message.id,
            status: Status::Failed,
            at: now.as_millis(),
            sender: message.sender.clone(),
            recipient: message.recipient.clone(),
            reason: Some(REFUSED.to_owned()),
        };
        let status = flow::status(&change, key.clone(), &self.codecs, Origin::of(headers))?;
        if let Err(reason) = self.append(&[flow::part_of(status, flow::broadcast_of(message))]).await? {
            tracing::error!(message_id = %message.id, reason, "the log refuses to be told that a message failed");
        }
        Ok(())
    }

    /// Appends until it is known; why not, where the log refuses it.
    async fn append(&self, records: &[NewRecord]) -> Result<Result<(), String>, Stopped> {
        loop {
            match self.log.append(records.to_vec()).await {
                Ok(_) => return Ok(Ok(())),
                Err(AppendError::Refused { reason }) => return Ok(Err(reason)),
                Err(AppendError::Closed) => return Err(Stopped::Closed),
                Err(error @ AppendError::Unknown { .. }) => {
                    tracing::warn!(%error, records = records.len(), "messages that are due are appended again");
                    sleep(APPEND_AGAIN).await;
                }
            }
        }
    }
}

/// What was moved on last: none of it is moved on again though the mark stands before it.
#[derive(Default)]
struct Moved(BTreeSet<TimerPlace>);

impl Moved {
    fn has(&self, place: TimerPlace) -> bool {
        self.0.contains(&place)
    }

    fn enter(&mut self, page: &[Timer]) {
        self.0.extend(page.iter().map(|timer| timer.place));
        while self.0.len() > REMEMBERED {
            self.0.pop_first();
        }
    }
}

fn settled(outcome: &'static str, count: usize) {
    counter!(SCHEDULE_SETTLED, "outcome" => outcome).increment(count as u64);
}
