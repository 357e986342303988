//! One partition number of a stage: takes a batch, has it handled, appends what follows, settles, and takes the next.
//! Nothing is taken before what was taken before it is settled or waits in a retry topic, so a crash at any point repeats
//! at most one batch.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashSet;
use eshaar_model::{Clock, Timestamp};
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::appender::{Appender, Closed, log_failure};
use super::gaps::{self, Gaps};
use super::lanes::Lanes;
use super::ledger::Ledger;
use super::member::Commits;
use super::plan::{Effect, Plan, Stop};
use super::progress::{Seat, Watchdog};
use super::retry::Retries;
use super::retry::waiting::{Bounds, Waiting};
use crate::{LogError, Outcome, PartitionStream, Received, Stage, StageError, Topic};

/// Longest sleep before the clock is looked at again; also how late a pause may end, and a retry begin.
const CLOCK_CHECK: Duration = Duration::from_millis(100);

/// Shortest pause: a stage that names a time in the past does not spin.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// How often the retry topics are looked at while there is other work.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Longest wait before a partition that could not be opened is tried again.
const LONGEST_REOPEN: Duration = Duration::from_secs(5);

/// Code of the dead letter of a record that failed on its last attempt.
pub(super) const EXHAUSTED: &str = "retries_exhausted";

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
    pub(super) commits: Arc<Commits<S>>,
    pub(super) appender: Appender,
    pub(super) clock: Clock,
    pub(super) bounds: Bounds,
    pub(super) seat: Seat,
    pub(super) watchdog: Watchdog,
    /// Cancelled when nothing more is to be taken.
    pub(super) drain: CancellationToken,
}

/// The worker must end.
pub(super) struct Ended(End);

impl From<Closed> for Ended {
    fn from(_: Closed) -> Self {
        Self(End::Lost(LogError::Closed))
    }
}

impl From<LogError> for Ended {
    fn from(error: LogError) -> Self {
        Self(End::Lost(error))
    }
}

impl<S: Stage> Worker<S> {
    /// Works through `streams` until it is drained or the log is lost.
    pub(super) async fn run(self, streams: Vec<PartitionStream>) -> End {
        match self.work(streams).await {
            Ok(()) => End::Drained,
            Err(Ended(end)) => end,
        }
    }

    async fn work(&self, streams: Vec<PartitionStream>) -> Result<(), Ended> {
        let (inputs, topics) = (self.stage.inputs(), S::RETRIES.topics());
        let (of_retries, streams): (Vec<_>, Vec<_>) =
            streams.into_iter().partition(|stream| topics.contains(&stream.source().0));
        let mut gaps = self.gaps(&of_retries);
        let mut lanes = Lanes::new(streams, &inputs, self.bounds.batch);
        gaps.note(lanes.gaps());
        let mut waiting = self.open_retries(of_retries, inputs).await?;
        let mut state = self.open(lanes.next_offsets()).await?;
        self.seat.rest();
        loop {
            match &mut waiting {
                Some(waiting) => self.step(&mut state, &mut lanes, waiting, &mut gaps).await?,
                None => match lanes.at_hand()? {
                    Some(mut batch) => {
                        gaps.look(self.partition, &mut lanes);
                        self.process(&mut state, &lanes.next_offsets(), &mut batch).await?;
                    }
                    None => self.idle(&mut lanes, None, &mut gaps).await?,
                },
            }
            if self.drain.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Gaps, with those before the retry topics.
    fn gaps(&self, of_retries: &[PartitionStream]) -> Gaps<S> {
        let (stage, ledger) = (Arc::clone(&self.stage), Arc::clone(&self.ledger));
        let mut gaps = Gaps::new(stage, ledger, self.generation, self.watchdog.clone());
        gaps.note(of_retries.iter().filter_map(|stream| stream.gap_before()).collect());
        gaps
    }

    /// Waits until something comes. A partition that stays empty may have been emptied: then that is noted.
    async fn idle(&self, lanes: &mut Lanes, waiting: Option<&mut Waiting>, gaps: &mut Gaps<S>) -> Result<(), Ended> {
        let ready = async {
            match waiting {
                Some(waiting) => tokio::select! {
                    ready = lanes.ready() => ready,
                    ready = waiting.ready() => ready,
                },
                None => lanes.ready().await,
            }
        };
        if let Ok(ready) = self.unless_drained(tokio::time::timeout(gaps::LOOK_EVERY, ready)).await? {
            return Ok(ready?);
        }
        gaps.look(self.partition, lanes);
        Ok(())
    }

    /// A turn of those that wait and a batch of those that come, or a wait for either.
    async fn step(
        &self,
        state: &mut S::Partition,
        lanes: &mut Lanes,
        waiting: &mut Waiting,
        gaps: &mut Gaps<S>,
    ) -> Result<(), Ended> {
        gaps.look(self.partition, lanes);
        waiting.fill()?;
        let mut worked = self.take_turn(state, &lanes.next_offsets(), waiting).await?;
        let looked = Instant::now();
        while !self.drain.is_cancelled()
            && !waiting.is_full()
            && let Some(batch) = lanes.at_hand()?
        {
            worked = true;
            gaps.look(self.partition, lanes);
            self.take_in(state, &lanes.next_offsets(), waiting, &batch).await?;
            if looked.elapsed() >= LOOK_EVERY {
                break;
            }
        }
        if worked {
            return Ok(());
        }
        let left_ms = waiting.next_due().map(|due| due.millis_since(self.clock.now()).max(1));
        let left = left_ms.map_or(CLOCK_CHECK, |left| Duration::from_millis(left as u64).min(CLOCK_CHECK));
        let (is_full, is_idle) = (waiting.is_full(), left_ms.is_none());
        if is_idle && !is_full {
            return self.idle(lanes, Some(waiting), gaps).await;
        }
        self.unless_drained(async {
            tokio::select! {
                ready = lanes.ready(), if !is_full => ready,
                ready = waiting.ready() => ready,
                () = tokio::time::sleep(left), if !is_idle => Ok(()),
            }
        })
        .await??;
        Ok(())
    }

    /// Reads the retry topics back, before any input is opened.
    async fn open_retries(
        &self,
        streams: Vec<PartitionStream>,
        inputs: Vec<(Topic, u32)>,
    ) -> Result<Option<Waiting>, Ended> {
        let (Retries::Ordered(topics) | Retries::Unordered(topics)) = S::RETRIES else { return Ok(None) };
        let from: Vec<_> = streams.iter().map(|stream| (stream.source(), stream.next_offset())).collect();
        let read = || async {
            let read = Waiting::read_back(S::RETRIES, &from, &inputs, &*self.appender.log).await;
            read.map_err(|error| StageError(error.to_string()))
        };
        let Some(fences) = self.until_opened(read).await? else { return Ok(None) };
        Ok(Some(Waiting::new(topics, fences, streams, inputs, self.bounds)))
    }

    /// Sees one batch through, with retries in place: every record of it is settled when this returns well.
    async fn process(
        &self,
        state: &mut S::Partition,
        next: &[(Topic, u64)],
        batch: &mut [Received],
    ) -> Result<(), Ended> {
        let begun = Instant::now();
        self.taken(batch);
        let (mut settled, mut one_by_one) = (0, false);
        while settled < batch.len() {
            self.seat.begin("handling");
            let end = if one_by_one { settled + 1 } else { batch.len() };
            let rest = &batch[settled..end];
            let handled = AssertUnwindSafe(self.stage.handle(state, rest)).catch_unwind().await;
            let mut plan = if let Ok(outcomes) = handled {
                Plan::of(outcomes, rest.len())
            } else {
                // Which record it was is not known: from here one by one, on a state made anew.
                one_by_one = true;
                *state = self.open(next_with(next, &batch[settled..])).await?;
                let stop = (rest.len() == 1).then(|| Stop::Retry { reason: PANICKED.to_owned() });
                Plan { effects: Vec::new(), stop }
            };
            give_up_on_head(&mut plan, &rest[0]);
            let count = plan.effects.len();
            if count > 0 {
                self.appender.carry_out(rest.iter().zip(plan.effects).collect()).await?;
                settled += count;
                self.settled(batch, settled);
            }
            if let (Some(stop), Some(record)) = (plan.stop, batch.get_mut(settled)) {
                let failed = matches!(stop, Stop::Retry { .. });
                self.hold(record, stop).await?;
                if failed && let Some((attempt, _)) = record.attempt.next() {
                    record.attempt = attempt;
                }
            }
        }
        self.appender.measures.batch(batch.len(), begun.elapsed());
        self.seat.rest();
        Ok(())
    }

    /// A batch was taken.
    pub(super) fn taken(&self, batch: &[Received]) {
        for run in by_source(batch) {
            self.ledger.taken(self.generation, source(&run[0]), run[0].timestamp);
        }
    }

    /// The first `settled` records of a batch are.
    pub(super) fn settled(&self, batch: &[Received], settled: usize) {
        let mut left = settled;
        for run in by_source(batch) {
            let count = left.min(run.len());
            left -= count;
            let Some(last) = run[..count].last() else { return };
            let oldest = run.get(count).map(|record| record.timestamp);
            self.ledger.settle(self.generation, source(last), last.position.offset + 1, oldest);
        }
    }

    /// Has records handled; where the stage panics, one by one, so that only the one at fault has failed. One outcome for
    /// each, up to the first that has to be held.
    pub(super) async fn handle(
        &self,
        state: &mut S::Partition,
        next: &[(Topic, u64)],
        batch: &[Received],
    ) -> Result<Vec<Outcome>, Ended> {
        if let Ok(outcomes) = AssertUnwindSafe(self.stage.handle(state, batch)).catch_unwind().await {
            return Ok(outcomes);
        }
        *state = self.open(next.to_vec()).await?;
        let ordered = matches!(S::RETRIES, Retries::Ordered(_));
        let mut failed = AHashSet::new();
        let mut outcomes = Vec::with_capacity(batch.len());
        for record in batch {
            if ordered && failed.contains(&(record.position.topic, &record.key)) {
                outcomes.push(Outcome::Retry { reason: "one before it failed".to_owned() });
                continue;
            }
            let one = AssertUnwindSafe(self.stage.handle(state, std::slice::from_ref(record))).catch_unwind().await;
            let outcome = if let Ok(mut outcomes) = one {
                outcomes.pop().unwrap_or_else(|| Outcome::Retry { reason: "the stage gave no answer".to_owned() })
            } else {
                *state = self.open(next.to_vec()).await?;
                Outcome::Retry { reason: PANICKED.to_owned() }
            };
            if matches!(outcome, Outcome::Retry { .. }) {
                failed.insert((record.position.topic, &record.key));
            }
            let held = matches!(outcome, Outcome::Pause { .. });
            outcomes.push(outcome);
            if held {
                break;
            }
        }
        Ok(outcomes)
    }

    /// Waits before the first unsettled record is taken again.
    pub(super) async fn hold(&self, record: &Received, stop: Stop) -> Result<(), Ended> {
        let measures = &self.appender.measures;
        let paused = self.seat.pause();
        match stop {
            Stop::Retry { reason } => {
                log_failure(S::NAME, record, "retry", &reason);
                measures.retried.increment(1);
                let Some((_, delay)) = record.attempt.next() else { return Ok(()) };
                self.unless_drained(tokio::time::sleep(delay)).await
            }
            Stop::Pause { until, reason } => {
                if !paused {
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

    pub(super) async fn unless_drained<T>(&self, work: impl Future<Output = T>) -> Result<T, Ended> {
        tokio::select! {
            biased;
            () = self.drain.cancelled() => Err(Ended(End::Drained)),
            done = work => Ok(done),
        }
    }

    /// Opens the partition, until it opens.
    async fn open(&self, next: Vec<(Topic, u64)>) -> Result<S::Partition, Ended> {
        self.until_opened(|| self.stage.open(self.partition, &next)).await
    }

    async fn until_opened<T, F>(&self, open: impl Fn() -> F) -> Result<T, Ended>
    where
        F: Future<Output = Result<T, StageError>>,
    {
        self.seat.begin("opening");
        let mut wait = Duration::from_millis(100);
        loop {
            let opened = AssertUnwindSafe(open()).catch_unwind();
            let error = match self.unless_drained(opened).await? {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(error)) => error.to_string(),
                Err(_) => PANICKED.to_owned(),
            };
            tracing::error!(stage = S::NAME, partition = self.partition, %error, "partition did not open; trying again");
            self.unless_drained(tokio::time::sleep(wait)).await?;
            wait = (wait * 2).min(LONGEST_REOPEN);
        }
    }
}

/// Why a record failed on which the stage panicked.
const PANICKED: &str = "the stage panicked";

/// The first record has failed on its last attempt: a dead letter.
fn give_up_on_head(plan: &mut Plan, head: &Received) {
    if plan.effects.is_empty()
        && head.attempt.next().is_none()
        && let Some(Stop::Retry { reason }) = plan.stop.take_if(|stop| matches!(stop, Stop::Retry { .. }))
    {
        plan.effects.push(Effect::Dead { code: EXHAUSTED, reason });
    }
}

/// The offsets to be handled next when these records of a batch were taken and not settled.
pub(super) fn next_with(next: &[(Topic, u64)], unsettled: &[Received]) -> Vec<(Topic, u64)> {
    let mut next = next.to_vec();
    for first in by_source(unsettled).map(|run| &run[0]) {
        for (_, offset) in next.iter_mut().filter(|(topic, _)| *topic == first.position.topic) {
            *offset = first.position.offset;
        }
    }
    next
}

fn source(record: &Received) -> (Topic, u32) {
    (record.position.topic, record.position.partition)
}

/// The records of a batch, input by input.
fn by_source(batch: &[Received]) -> impl Iterator<Item = &[Received]> {
    batch.chunk_by(|one, other| source(one) == source(other))
}
