//! What drives a stage: it alone takes batches, opens spans, appends what a stage forwards, awaits the acknowledgements,
//! settles offsets in order, tries again, commits, pauses, measures and drains. A stage is a decision with its effects
//! around it.
//!
//! Reads top-down: `member` (the life of a member of a group) → `worker` (one partition number: take, handle, append,
//! settle) → `retry` (what waits in retry topics, and what waits behind it) → `lanes` (which input is taken from next), `plan`
//! (what becomes of a batch), `appender` (appends until it is known), `ledger` (what may be committed) and `progress`
//! (whether a stage is stuck).

mod appender;
mod gaps;
mod lanes;
mod ledger;
mod measures;
mod member;
#[cfg(test)]
mod memory;
mod plan;
mod progress;
mod retry;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use eshaar_model::{Clock, Timestamp};
use eshaar_schemas::Codecs;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::{Gap, Log, NewRecord, Received, Topic};

pub use gaps::deleted_unread;
pub use progress::{Stuck, Watchdog};
pub use retry::Retries;

pub use plan::dead_letter;

/// How long is waited before a group that was lost is joined again.
const REJOIN_AFTER: Duration = Duration::from_secs(1);

/// How stages are run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Most records of a batch (R5.3), 1 to 1,000. A batch never waits to be filled.
    pub batch_records: usize,
    /// How often settled offsets are committed, in milliseconds.
    pub commit_every_ms: u64,
    /// How long a drain may take before what is unsettled is left to the next owner, in milliseconds (kafka-rules 9).
    pub drain_ms: u64,
    /// Most records of retry topics that are held in memory for a partition number. What waits beyond that stays in the
    /// log.
    pub retry_read_ahead: usize,
    /// Most records of a partition number that may wait in retry topics, of which about 100 bytes each are kept in memory;
    /// at that many its inputs wait too.
    pub retry_records: usize,
    /// How long a stage may make no progress before it counts as stuck, in milliseconds (R11.2).
    pub stuck_after_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            batch_records: 100,
            commit_every_ms: 1_000,
            drain_ms: 20_000,
            retry_read_ahead: 10_000,
            retry_records: 50_000,
            stuck_after_ms: 60_000,
        }
    }
}

/// What the runner works with.
#[derive(Clone)]
pub struct Deps {
    /// Where records come from and go to.
    pub log: Arc<dyn Log>,
    /// For dead letters.
    pub codecs: Codecs,
    /// Decides when a pause is over, and a retry due.
    pub clock: Clock,
    /// Is told what the stage is at.
    pub watchdog: Watchdog,
    /// Is told what waits.
    pub backlogs: Arc<dyn Backlogs>,
}

/// Runs `stage` as a member of the group of its name until `shutdown`: then takes nothing more, drains, commits, leaves
/// and returns. A group that is lost, or a stage that panics where it must not, is logged and joined again from what was
/// committed.
pub async fn run<S: Stage>(stage: Arc<S>, deps: Deps, options: Options, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        let life = member::live(Arc::clone(&stage), deps.clone(), options.clone(), shutdown.clone());
        // Its own task, so that a panic ends in a log line and a new beginning.
        match AbortOnDropHandle::new(tokio::spawn(life)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::error!(stage = S::NAME, %error, "left the group; joining again"),
            Err(error) => tracing::error!(stage = S::NAME, %error, "panicked; joining again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(REJOIN_AFTER) => {}
        }
    }
}

/// Is told of what waits before stages.
pub trait Backlogs: Send + Sync + 'static {
    /// What waits for this process's member of the group `stage`, each second: of each partition that it owns, the records
    /// that are not settled. A partition of which that is not known is left out.
    fn told(&self, stage: &'static str, waits: &[(Topic, u32, u64)]);
}

/// Nobody needs to know.
impl Backlogs for () {
    fn told(&self, _stage: &'static str, _waits: &[(Topic, u32, u64)]) {}
}

/// What becomes of a record.
#[derive(Debug)]
#[must_use]
pub enum Outcome {
    /// These records follow from it; it is settled when they are acknowledged.
    Forward(Vec<NewRecord>),
    /// Nothing follows; its effects are done.
    Done,
    /// It failed in a way that may pass, and nothing of it was done. It is tried again after the delays of
    /// `eshaar_model::retry`, as [`Stage::RETRIES`] says; after the last of them it is a dead letter.
    Retry {
        /// What was wrong. Never content.
        reason: String,
    },
    /// It can never succeed: to `dead-letters`.
    Dead {
        /// A stable code, e.g. `undecodable`.
        code: &'static str,
        /// What was wrong.
        reason: String,
    },
    /// Something it depends on is down: take it again at `until`; no attempt is spent (R4.7).
    Pause {
        /// When to go on.
        until: Timestamp,
        /// What is down.
        reason: String,
    },
}

/// One step of the flow.
///
/// Batches are of one partition number: of the stage's inputs, those that are co-partitioned share one worker, which
/// picks between them by weight ([`Stage::inputs`]).
#[async_trait]
pub trait Stage: Send + Sync + 'static {
    /// Its name in logs, metrics, consumer groups and dead letters.
    const NAME: &'static str;

    /// How long a record may wait for others to be read with it, where the engine's price is by the read. Zero for a stage
    /// that a recipient waits for.
    const PATIENCE: Duration = Duration::ZERO;

    /// What becomes of records that it wants to try again.
    const RETRIES: Retries = Retries::InPlace;

    /// What the stage remembers of a partition number while it owns it.
    type Partition: Send + 'static;

    /// The topics it reads, with the weight of each: of records that wait in several, how many are taken of each in a
    /// round. Earlier topics go first within a round.
    fn inputs(&self) -> Vec<(Topic, u32)>;

    /// Called before the first batch of a newly assigned partition number; `next` is the offset to be read next of each
    /// input.
    async fn open(&self, partition: u32, next: &[(Topic, u64)]) -> Result<Self::Partition, StageError>;

    /// Handles a batch of 1 to 100 records ([`Options::batch_records`]), input by input, those of an input in order; returns
    /// one outcome for each, in order.
    ///
    /// A batch may hold records that are tried again, beside or without others; [`Received::position`] is always that in
    /// the input. Records of one input stand together, and those of one key in the order of their positions.
    ///
    /// When the outcome of a record is `Pause`, those after it in the batch are taken again too; and so are, when it is
    /// `Retry`, those after it of the same key ([`Retries::Ordered`]) or all after it ([`Retries::InPlace`]). Their outcomes
    /// are not looked at, and what order forbids must not have been done: with `Ordered`, nothing of a key behind the first of
    /// its records that failed. Otherwise effects must bear repetition.
    async fn handle(&self, partition: &mut Self::Partition, batch: &[Received]) -> Vec<Outcome>;

    /// Records of one of its topics were deleted before this stage had read them. Does again what led to them, as far as it can
    /// be found, and returns how many records it wrote. Runs beside [`Self::handle`], and again after a crash or an error: its
    /// effects must bear repetition. Most stages cannot do anything.
    async fn recover(&self, _gap: Gap) -> Result<u64, StageError> {
        Ok(0)
    }

    /// Makes the effects of everything handled so far durable; called before offsets are committed.
    async fn sync(&self) -> Result<(), StageError> {
        Ok(())
    }
}

/// A stage could not open a partition or make its effects durable; it is tried again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StageError(pub String);
