//! The timers of one partition, as their owner sees them: what is due, what was done with, and what is written meanwhile.
//!
//! The store gives only what stands behind the mark, so nothing may be written before it, nor may the mark be moved over what
//! was written after the owner looked. Both are decided here, under one lock. What another owner may be passing over at this
//! moment is little: it moves the mark over nothing but what was due when it looked. So whoever writes a timer that is due
//! soon asks the store whether the partition is still its own, after it has written it; what is due later is seen by whoever
//! has the partition then.

use std::sync::Arc;
use std::time::Duration;

use eshaar_model::{Clock, Timestamp, limits};
use eshaar_service::metrics::SCHEDULE_BEHIND;
use eshaar_store::{Holder, StoreError, Timer, TimerPlace, TimerStore};
use metrics::{Gauge, counter};
use tokio::sync::{Mutex, Notify};
use tokio::time::{MissedTickBehavior, interval};

/// What is due within this time may be due by the clock of another owner, in milliseconds.
const NEAR_MS: i64 = 10_000;

/// How far ahead it is looked for the next timer: no message waits longer.
const AHEAD_MS: i64 = limits::SEND_AHEAD_MS + 24 * 3600 * 1000;

/// How often timers are counted. In between what is written and done with is added up.
const COUNT_EVERY: Duration = Duration::from_mins(10);

/// Whether the partition's timers are still this owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Ours {
    Yes,
    /// Another has taken them over: nothing was decided.
    No,
}

/// Timers of a partition.
pub(crate) struct Timers {
    store: Arc<dyn TimerStore>,
    pub(crate) partition: u32,
    clock: Clock,
    state: Mutex<State>,
    /// One was written that is due before all that were known; or they are not ours any more.
    earlier: Notify,
    waiting: Gauge,
}

struct State {
    holder: Holder,
    ours: Ours,
    /// All up to it is done with.
    mark: TimerPlace,
    /// The first that was written since the store was last looked into.
    first: Option<TimerPlace>,
    /// When the next is due, as far as is known.
    next_due: Option<Timestamp>,
}

impl Timers {
    /// Takes the timers of a partition over; `waiting` shows how many there are.
    pub(crate) async fn take(
        store: Arc<dyn TimerStore>,
        partition: u32,
        clock: Clock,
        waiting: Gauge,
    ) -> Result<Self, StoreError> {
        let state = Mutex::new(State::take(&*store, partition).await?);
        Ok(Self { store, partition, clock, state, earlier: Notify::new(), waiting })
    }

    /// Takes them over again.
    pub(crate) async fn take_again(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        *state = State::take(&*self.store, self.partition).await?;
        Ok(())
    }

    /// Writes timers; where this ends well, whoever owns the partition when they are due is going to see them.
    pub(crate) async fn put(&self, timers: Vec<Timer>) -> Result<Ours, StoreError> {
        let Some(first) = timers.iter().map(|timer| timer.place).min() else { return Ok(Ours::Yes) };
        let mut state = self.state.lock().await;
        if state.ours == Ours::No {
            return Ok(Ours::No);
        }
        let (count, mark) = (timers.len(), state.mark);
        let behind = timers.iter().filter(|timer| timer.place <= mark).count();
        self.store.put(self.partition, timers).await?;
        if behind > 0 {
            counter!(SCHEDULE_BEHIND).increment(behind as u64);
            self.mark(&mut state, TimerPlace::before(first.due)).await?;
        } else if first.due <= self.clock.now().plus_millis(NEAR_MS) {
            self.mark(&mut state, mark).await?;
        }
        if state.ours == Ours::No {
            return Ok(Ours::No);
        }
        self.waiting.increment(count as f64);
        state.first = Some(state.first.map_or(first, |known| known.min(first)));
        if state.next_due.is_none_or(|due| first.due < due) {
            self.earlier.notify_one();
        }
        Ok(Ours::Yes)
    }

    /// The first timers that are due, in order, at most `limit`; `None` where another has taken them over.
    pub(crate) async fn due(&self, limit: usize) -> Result<Option<Vec<Timer>>, StoreError> {
        let Some(mark) = self.look().await else { return Ok(None) };
        self.store.next(self.partition, mark, self.clock.now(), limit).await.map(Some)
    }

    /// When the next is due; `None` while there is none.
    pub(crate) async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        let Some(mark) = self.look().await else { return Ok(None) };
        let until = self.clock.now().plus_millis(AHEAD_MS);
        let found = self.store.next(self.partition, mark, until, 1).await?;
        let mut state = self.state.lock().await;
        let found = found.first().map(|timer| timer.place.due);
        state.next_due = found.into_iter().chain(state.first.map(|first| first.due)).min();
        Ok(state.next_due)
    }

    /// Waits until one is written that is due before all that were known, or it is found that another has taken them over.
    pub(crate) async fn earlier(&self) {
        self.earlier.notified().await;
    }

    /// All of `page`, as it was given by [`due`](Self::due), is done with. What was written meanwhile is not.
    pub(crate) async fn done(&self, page: &[Timer]) -> Result<Ours, StoreError> {
        let Some(last) = page.last().map(|timer| timer.place) else { return Ok(Ours::Yes) };
        let mut state = self.state.lock().await;
        let before = state.first.filter(|first| *first <= last).map(|first| TimerPlace::before(first.due));
        let mark = before.unwrap_or(last);
        if state.ours == Ours::Yes && mark > state.mark {
            self.mark(&mut state, mark).await?;
            self.waiting.decrement(page.len() as f64);
        }
        Ok(state.ours)
    }

    /// Counts them from time to time.
    pub(crate) async fn count(&self) {
        let mut rounds = interval(COUNT_EVERY);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            let mark = self.state.lock().await.mark;
            match self.store.count(self.partition, mark).await {
                Ok(count) => self.waiting.set(count as f64),
                Err(error) => tracing::debug!(partition = self.partition, %error, "timers could not be counted"),
            }
        }
    }

    /// The mark, while they are ours; from now on it is remembered what is written.
    async fn look(&self) -> Option<TimerPlace> {
        let mut state = self.state.lock().await;
        state.first = None;
        (state.ours == Ours::Yes).then_some(state.mark)
    }

    async fn mark(&self, state: &mut State, mark: TimerPlace) -> Result<(), StoreError> {
        if self.store.mark(self.partition, state.holder, mark).await? {
            state.mark = mark;
        } else {
            state.ours = Ours::No;
            self.earlier.notify_one();
        }
        Ok(())
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        self.waiting.set(0.0);
    }
}

impl State {
    async fn take(store: &dyn TimerStore, partition: u32) -> Result<Self, StoreError> {
        let holder = Holder::new();
        let mark = store.take(partition, holder).await?;
        Ok(Self { holder, ours: Ours::Yes, mark, first: None, next_due: None })
    }
}
