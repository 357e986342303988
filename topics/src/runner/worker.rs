//! One partition number of a stage: takes a batch, has it handled, appends what follows, settles, and takes the next.
//! Nothing is taken before what was taken before it is settled, so a crash at any point repeats at most one batch.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eshaar_model::{Attempt, Clock, Timestamp};
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::appender::{Appender, Closed, log_failure};
use super::lanes::Lanes;
use super::ledger::Ledger;
use super::plan::{Effect, Plan, Stop};
use crate::{LogError, Received, Stage, Topic};

/// Longest sleep of a pause before the clock is looked at again; also how late a pause may end.
const CLOCK_CHECK: Duration = Duration::from_millis(100);

/// Shortest pause: a stage that names a time in the past does not spin.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// Longest wait before a partition that could not be opened is tried again.
const LONGEST_REOPEN: Duration = Duration::from_secs(5);

/// Code of the dead letter of a record that failed on its last attempt.
const EXHAUSTED: &str = "retries_exhausted";

/// Why a worker ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was told to.
    Drained,
    /// The log is being closed, or cannot be read.
    Lost(LogError),
}

/// The owner of one partition number.
pub(super) struct Worker<S: Stage> {
    pub(super) stage: Arc<S>,
    pub(super) partition: u32,
    pub(super) generation: u64,
    pub(super) ledger: Arc<Ledger>,
    pub(super) appender: Appender,
    pub(super) clock: Clock,
    /// Cancelled when nothing more is to be taken.
    pub(super) drain: CancellationToken,
}

/// How often the first unsettled record has failed, and whether it has been held up already.
#[derive(Default)]
struct Head {
    attempt: Attempt,
    paused: bool,
}

/// The worker must end.
struct Ended(End);

impl From<Closed> for Ended {
    fn from(_: Closed) -> Self {
        Self(End::Lost(LogError::Closed))
    }
}

impl<S: Stage> Worker<S> {
    /// Works through `lanes` until it is drained or the log is lost.
    pub(super) async fn run(self, lanes: Lanes) -> End {
        match self.work(lanes).await {
            Ok(()) => End::Drained,
            Err(Ended(end)) => end,
        }
    }

    async fn work(&self, mut lanes: Lanes) -> Result<(), Ended> {
        let mut state = self.open(lanes.next_offsets()).await?;
        loop {
            let batch = self.unless_drained(lanes.next()).await?.map_err(|error| Ended(End::Lost(error)))?;
            state = self.process(state, &mut lanes, &batch).await?;
        }
    }

    /// Sees one batch through: every record of it is settled when this returns well. Returns what the stage remembers.
    async fn process(
        &self,
        mut state: S::Partition,
        lanes: &mut Lanes,
        batch: &[Received],
    ) -> Result<S::Partition, Ended> {
        let begun = Instant::now();
        self.ledger.taken(self.generation, source(&batch[0]), batch[0].timestamp);
        let (mut settled, mut head, mut one_by_one) = (0, Head::default(), false);
        while let Some(first) = batch.get(settled) {
            let end = if one_by_one { settled + 1 } else { batch.len() };
            let rest = &batch[settled..end];
            let handled = AssertUnwindSafe(self.stage.handle(&mut state, rest)).catch_unwind().await;
            let mut plan = if let Ok(outcomes) = handled {
                Plan::of(outcomes, rest.len())
            } else {
                // Which record it was is not known: from here one by one, on a state made anew.
                one_by_one = true;
                state = self.open(next_with(lanes.next_offsets(), first)).await?;
                let stop = (rest.len() == 1).then(|| Stop::Retry { reason: "the stage panicked".to_owned() });
                Plan { effects: Vec::new(), stop }
            };
            give_up_on_head(&mut plan, &head);
            let count = plan.effects.len();
            if count > 0 {
                let attempts = i32::from(head.attempt.count()) + 1;
                self.appender.carry_out(rest, plan.effects, attempts).await?;
                settled += count;
                head = Head::default();
                let next = batch[settled - 1].position.offset + 1;
                let oldest = batch.get(settled).map(|record| record.timestamp);
                self.ledger.settle(self.generation, source(first), next, oldest);
            }
            if let (Some(stop), Some(record)) = (plan.stop, batch.get(settled)) {
                self.hold(record, stop, &mut head).await?;
            }
        }
        self.appender.measures.batch(batch.len(), begun.elapsed());
        Ok(state)
    }

    /// Waits before the first unsettled record is taken again.
    async fn hold(&self, record: &Received, stop: Stop, head: &mut Head) -> Result<(), Ended> {
        let measures = &self.appender.measures;
        match stop {
            Stop::Retry { reason } => {
                let failed = i32::from(head.attempt.count()) + 1;
                log_failure(S::NAME, record, failed, "retry", &reason);
                measures.retried.increment(1);
                let Some((attempt, delay)) = head.attempt.next() else { return Ok(()) };
                head.attempt = attempt;
                self.unless_drained(tokio::time::sleep(delay)).await
            }
            Stop::Pause { until, reason } => {
                if !std::mem::replace(&mut head.paused, true) {
                    tracing::warn!(stage = S::NAME, partition = self.partition, %until, %reason, "paused");
                    measures.paused.increment(1);
                }
                self.unless_drained(self.until(until)).await
            }
        }
    }

    async fn until(&self, at: Timestamp) {
        tokio::time::sleep(SHORTEST_PAUSE).await;
        loop {
            let left_ms = at.millis_since(self.clock.now());
            if left_ms <= 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(left_ms as u64).min(CLOCK_CHECK)).await;
        }
    }

    async fn unless_drained<T>(&self, work: impl Future<Output = T>) -> Result<T, Ended> {
        tokio::select! {
            biased;
            () = self.drain.cancelled() => Err(Ended(End::Drained)),
            done = work => Ok(done),
        }
    }

    /// Opens the partition, until it opens.
    async fn open(&self, next: Vec<(Topic, u64)>) -> Result<S::Partition, Ended> {
        let mut wait = Duration::from_millis(100);
        loop {
            let opened = AssertUnwindSafe(self.stage.open(self.partition, &next)).catch_unwind();
            let error = match self.unless_drained(opened).await? {
                Ok(Ok(state)) => return Ok(state),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the stage panicked".to_owned(),
            };
            tracing::error!(stage = S::NAME, partition = self.partition, %error, "partition did not open; trying again");
            self.unless_drained(tokio::time::sleep(wait)).await?;
            wait = (wait * 2).min(LONGEST_REOPEN);
        }
    }
}

/// The first record has failed on its last attempt: a dead letter.
fn give_up_on_head(plan: &mut Plan, head: &Head) {
    if plan.effects.is_empty()
        && head.attempt.next().is_none()
        && let Some(Stop::Retry { reason }) = plan.stop.take_if(|stop| matches!(stop, Stop::Retry { .. }))
    {
        plan.effects.push(Effect::Dead { code: EXHAUSTED, reason });
    }
}

/// The offsets to be handled next when `first` was taken and not settled.
fn next_with(mut next: Vec<(Topic, u64)>, first: &Received) -> Vec<(Topic, u64)> {
    for (_, offset) in next.iter_mut().filter(|(topic, _)| *topic == first.position.topic) {
        *offset = first.position.offset;
    }
    next
}

fn source(record: &Received) -> (Topic, u32) {
    (record.position.topic, record.position.partition)
}
