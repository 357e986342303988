//! Keeps messages until their time, and has them accepted then.
//!
//! Reads `messages.scheduled`; writes timers of the partition in the store. Whoever owns the partition takes its timers over
//! and moves them on ([`mover`]) to `messages.accepted`, as messages that are accepted at that moment. Invariants:
//! - a record is settled when its timer is in the store, where whoever owns the partition is going to see it ([`timers`](crate::timers));
//! - a message is accepted at its time or later, never before (by this clock and by the store's), and under its own id: one that is appended again after a crash
//!   is dropped by `route`, as any repeat;
//! - what was taken back is not accepted;
//! - timers of a partition that the log has no more, since it was made anew with fewer, belong to whoever owns the number
//!   that is left of theirs modulo the partitions there are;
//! - timers are moved on only as there is room before the recipients, so that what is due all at once delays nobody else.

mod mover;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use eshaar_model::{Clock, Timestamp};
use eshaar_presence::depths::Depths;
use eshaar_schemas::{Codecs, Message};
use eshaar_service::metrics::SCHEDULE_WAITING;
use eshaar_service::workers;
use eshaar_store::timers::EXPIRY;
use eshaar_store::{Store, StoreError, Timer, TimerPlace};
use eshaar_topics::{Cancelled, Log, Outcome, Received, Stage, StageError, Topic};
use metrics::gauge;
use serde::Deserialize;
use tokio_util::task::AbortOnDropHandle;

use self::mover::Mover;
use crate::broadcast::room::Room;
use crate::timers::{Ours, Timers};
use crate::{decode, pause};

/// How messages wait for their time.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How many messages may wait in all lanes, and before them, for this process to move more of those on that are due.
    pub waiting: u64,
    /// How long is waited when the store or the registry does not answer, in milliseconds.
    pub pause_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { waiting: 20_000, pause_ms: 500 }
    }
}

/// What the stage reads and writes besides its records.
#[derive(Clone)]
pub struct Ports {
    /// Where messages go when they are due.
    pub log: Arc<dyn Log>,
    /// The timers.
    pub store: Store,
    /// How much waits.
    pub depths: Arc<dyn Depths>,
    /// What was taken back.
    pub cancelled: Arc<Cancelled>,
}

/// The stage.
pub struct Schedule {
    store: Store,
    codecs: Codecs,
    clock: Clock,
    mover: Arc<Mover>,
    options: Options,
}

/// The timers of a partition number, and who moves them on as long as this is there, with those that it has inherited.
pub struct Partition {
    timers: Arc<Timers>,
    _movers: Vec<AbortOnDropHandle<()>>,
}

impl Schedule {
    /// The stage.
    pub fn new(ports: Ports, codecs: Codecs, clock: Clock, options: Options) -> Self {
        let Ports { log, store, depths, cancelled } = ports;
        let room = Room::new(depths, options.waiting);
        let mover = Mover {
            log,
            engine: Arc::clone(&store.engine),
            codecs: codecs.clone(),
            cancelled,
            clock: clock.clone(),
            room,
            pause_ms: options.pause_ms,
        };
        Self { store, codecs, clock, mover: Arc::new(mover), options }
    }

    /// The partitions that the log has no more, and that belong to the owner of this one.
    async fn inherited(&self, partition: u32) -> Result<Vec<u32>, StoreError> {
        let partitions = self.mover.log.partitions(Topic::MessagesScheduled);
        let known = self.store.timers.partitions().await?;
        let is_ours = |known: &u32| (partitions..EXPIRY).contains(known) && known % partitions == partition;
        Ok(known.into_iter().filter(is_ours).collect())
    }

    /// Takes the timers of a partition over, and begins to move them on.
    async fn take(&self, partition: u32) -> Result<(Arc<Timers>, AbortOnDropHandle<()>), StoreError> {
        let waiting = gauge!(SCHEDULE_WAITING, "partition" => partition.to_string());
        let timers = Timers::take(Arc::clone(&self.store.timers), partition, self.clock.clone(), waiting).await?;
        let timers = Arc::new(timers);
        let (mover, of_mover) = (Arc::clone(&self.mover), Arc::clone(&timers));
        let moving = tokio::spawn(workers::guarded("timers", async move { mover.run(&of_mover).await }));
        Ok((timers, AbortOnDropHandle::new(moving)))
    }

    /// Writes timers one by one, up to the first that the store refuses: which of them it was is not known.
    async fn each(&self, partition: &Partition, timers: Vec<Timer>) -> Result<usize, StoreError> {
        for (written, timer) in timers.into_iter().enumerate() {
            match partition.timers.put(vec![timer]).await {
                Ok(Ours::Yes) => {}
                Ok(Ours::No) | Err(StoreError::Refused { .. }) => return Ok(written),
                Err(error) => return Err(error),
            }
        }
        Ok(usize::MAX)
    }
}

#[async_trait]
impl Stage for Schedule {
    const NAME: &'static str = "schedule";
    type Partition = Partition;

    fn inputs(&self) -> Vec<(Topic, u32)> {
        vec![(Topic::MessagesScheduled, 1)]
    }

    async fn open(&self, partition: u32, _next: &[(Topic, u64)]) -> Result<Partition, StageError> {
        let open = async {
            let (timers, mover) = self.take(partition).await?;
            let mut movers = vec![mover];
            for inherited in self.inherited(partition).await? {
                tracing::info!(partition, inherited, "moves the timers of a partition on that the log has no more");
                movers.push(self.take(inherited).await?.1);
            }
            Ok(Partition { timers, _movers: movers })
        };
        open.await.map_err(|error: StoreError| StageError(error.to_string()))
    }

    async fn handle(&self, partition: &mut Partition, batch: &[Received]) -> Vec<Outcome> {
        let (mut timers, mut outcomes) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        // The places in the batch of those that have a timer.
        let mut places = Vec::with_capacity(batch.len());
        for (place, record) in batch.iter().enumerate() {
            match decode::<Message>(&self.codecs, &record.value).await {
                Ok(message) => {
                    timers.push(timer(&message, record));
                    places.push(place);
                    outcomes.push(Outcome::Done);
                }
                Err(error) => outcomes.push(error.outcome(&self.clock, self.options.pause_ms)),
            }
        }
        let written = match partition.timers.put(timers.clone()).await {
            Err(error @ StoreError::Refused { .. }) => self.each(partition, timers).await.map(|written| {
                if let Some(place) = places.get(written) {
                    outcomes[*place] = Outcome::Retry { reason: error.to_string() };
                }
                Ours::Yes
            }),
            written => written,
        };
        match written {
            Ok(Ours::Yes) => outcomes,
            Ok(Ours::No) => vec![pause(&self.clock, self.options.pause_ms, &"another has taken the timers over")],
            Err(error) => vec![pause(&self.clock, self.options.pause_ms, &error)],
        }
    }

    async fn sync(&self) -> Result<(), StageError> {
        self.store.engine.sync().await.map_err(|error| StageError(error.to_string()))
    }
}

/// A message waits until the time that it was made for.
fn timer(message: &Message, record: &Received) -> Timer {
    Timer {
        place: TimerPlace::of(Timestamp::from_millis(message.created_at), message.id),
        key: record.key.clone(),
        headers: record.headers.as_bytes().clone(),
        value: record.value.clone(),
    }
}
