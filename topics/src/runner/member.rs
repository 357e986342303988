//! The life of a member of a stage's group: joins, gives each partition number it is assigned a worker, commits what they
//! settle, and gives partitions up only when they are drained and committed (kafka-rules 9).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;

use super::appender::Appender;
use super::ledger::{Commit, Ledger};
use super::measures::Measures;
use super::progress::Seat;
use super::retry::waiting::Bounds;
use super::worker::{End, Worker};
use super::{Deps, Options, Stage};
use crate::{Assignment, Committer, ConsumerEvent, LogError, PartitionStream, Release, StageError, StartAt, Topic};

/// How often the backlog is measured.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// How long the log may take to say how much waits.
const MEASURE_LIMIT: Duration = Duration::from_secs(10);

/// How long is waited before a commit of a drain that failed is tried again.
const COMMIT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Why a member had to leave its group.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemberError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the worker of partition {partition} ended: {reason}")]
    Worker { partition: u32, reason: String },
}

/// Settled offsets were not committed; they are still in the ledger.
#[derive(Debug, thiserror::Error)]
enum CommitError {
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Joins, works until `shutdown`, drains, commits and leaves.
pub(super) async fn live<S: Stage>(
    stage: Arc<S>,
    deps: Deps,
    options: Options,
    shutdown: CancellationToken,
) -> Result<(), MemberError> {
    let inputs = stage.inputs();
    let topics: Vec<Topic> = inputs.iter().map(|(topic, _)| *topic).chain(S::RETRIES.topics()).collect();
    let seat = deps.watchdog.sit(S::NAME, None);
    seat.begin("joining");
    let mut consumer = deps.log.join_patiently(S::NAME, &topics, StartAt::Oldest, S::PATIENCE).await?;
    let ledger = Arc::new(Ledger::default());
    let commits = Arc::new(Commits {
        stage: Arc::clone(&stage),
        ledger: Arc::clone(&ledger),
        committer: consumer.committer(),
        turn: tokio::sync::Mutex::new(()),
        seat,
    });
    commits.seat.rest();
    let measures = Measures::new(S::NAME);
    let mut beside = JoinSet::new();
    beside.spawn(commit_regularly(Arc::clone(&commits), Duration::from_millis(options.commit_every_ms.max(1))));
    let inputs = inputs.iter().map(|(topic, _)| *topic).collect();
    beside.spawn(measure_regularly(inputs, topics, Arc::clone(&ledger), deps.clone(), measures.clone()));
    let drain_limit = Duration::from_millis(options.drain_ms);
    let of_workers = Arc::clone(&commits);
    let mut member =
        Member { stage, deps, options, ledger, commits: of_workers, measures, workers: Workers::default() };
    let lost = loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break None,
            Some((partition, reason)) = member.workers.ended() => break Some(MemberError::Worker { partition, reason }),
            event = consumer.event() => match event {
                Ok(ConsumerEvent::Assigned(assignment)) => member.assigned(assignment),
                Ok(ConsumerEvent::Revoked { partitions, release }) => {
                    member.revoked(&partitions, release, drain_limit, &commits).await;
                }
                Err(error) => break Some(error.into()),
            },
        }
    };
    let all = member.workers.partitions();
    member.give_up(&all, drain_limit, &commits).await;
    beside.shutdown().await;
    consumer.leave().await;
    lost.map_or(Ok(()), Err)
}

struct Member<S: Stage> {
    stage: Arc<S>,
    deps: Deps,
    options: Options,
    ledger: Arc<Ledger>,
    commits: Arc<Commits<S>>,
    measures: Measures,
    workers: Workers,
}

impl<S: Stage> Member<S> {
    fn assigned(&mut self, Assignment { generation, partitions }: Assignment) {
        let mut by_number: BTreeMap<u32, Vec<PartitionStream>> = BTreeMap::new();
        for stream in partitions {
            self.ledger.assign(generation, stream.source(), stream.next_offset());
            by_number.entry(stream.source().1).or_default().push(stream);
        }
        tracing::info!(stage = S::NAME, generation, partitions = ?by_number.keys(), "partitions assigned");
        for (partition, streams) in by_number {
            let drain = CancellationToken::new();
            let worker = Worker {
                stage: Arc::clone(&self.stage),
                partition,
                generation,
                ledger: Arc::clone(&self.ledger),
                commits: Arc::clone(&self.commits),
                appender: Appender {
                    stage: S::NAME,
                    log: Arc::clone(&self.deps.log),
                    codecs: self.deps.codecs.clone(),
                    clock: self.deps.clock.clone(),
                    measures: self.measures.clone(),
                },
                clock: self.deps.clock.clone(),
                bounds: Bounds {
                    batch: self.options.batch_records.clamp(1, 1_000),
                    read_ahead: self.options.retry_read_ahead,
                    most: self.options.retry_records.max(1),
                },
                seat: self.deps.watchdog.sit(S::NAME, Some(partition)),
                watchdog: self.deps.watchdog.clone(),
                drain: drain.clone(),
            };
            self.workers.spawn(partition, drain, worker.run(streams));
        }
    }

    async fn revoked(&mut self, partitions: &[u32], release: Release, limit: Duration, commits: &Commits<S>) {
        self.give_up(partitions, limit, commits).await;
        tracing::info!(stage = S::NAME, ?partitions, "partitions revoked");
        release.done();
    }

    /// Drains partitions, commits what they settled, and forgets them; all within `limit`.
    async fn give_up(&mut self, partitions: &[u32], limit: Duration, commits: &Commits<S>) {
        let deadline = Instant::now() + limit;
        let left = self.workers.drain(partitions, deadline).await;
        if !left.is_empty() {
            tracing::warn!(stage = S::NAME, partitions = ?left, "not drained in time; left to the next owner");
        }
        while let Err(error) = commits.now().await {
            tracing::warn!(stage = S::NAME, %error, "commit failed");
            if timeout_at(deadline, tokio::time::sleep(COMMIT_AGAIN_AFTER)).await.is_err() {
                break;
            }
        }
        self.ledger.give_up(partitions);
    }
}

/// The workers of a member, by partition number. Dropped, they are aborted.
#[derive(Default)]
struct Workers {
    tasks: JoinSet<End>,
    running: BTreeMap<u32, Running>,
}

struct Running {
    drain: CancellationToken,
    task: AbortHandle,
}

impl Workers {
    fn spawn(&mut self, partition: u32, drain: CancellationToken, work: impl Future<Output = End> + Send + 'static) {
        let task = self.tasks.spawn(work);
        self.running.insert(partition, Running { drain, task });
    }

    fn partitions(&self) -> Vec<u32> {
        self.running.keys().copied().collect()
    }

    /// Waits for a worker that ends without having been told to; `None` while there is none at all. Cancel-safe.
    async fn ended(&mut self) -> Option<(u32, String)> {
        let ended = self.tasks.join_next_with_id().await?;
        let (partition, reason) = self.forget(ended);
        Some((partition.unwrap_or(u32::MAX), reason))
    }

    /// Lets the workers of `partitions` finish what they hold; those that have not by `deadline` are aborted, and returned.
    async fn drain(&mut self, partitions: &[u32], deadline: Instant) -> Vec<u32> {
        for running in partitions.iter().filter_map(|partition| self.running.get(partition)) {
            running.drain.cancel();
        }
        let remain = |workers: &Self| -> Vec<u32> {
            partitions.iter().copied().filter(|partition| workers.running.contains_key(partition)).collect()
        };
        while !remain(self).is_empty() {
            let Ok(Some(ended)) = timeout_at(deadline, self.tasks.join_next_with_id()).await else { break };
            self.forget(ended);
        }
        let left = remain(self);
        for running in left.iter().filter_map(|partition| self.running.get(partition)) {
            running.task.abort();
        }
        while !remain(self).is_empty() {
            let Some(ended) = self.tasks.join_next_with_id().await else { break };
            self.forget(ended);
        }
        left
    }

    fn forget(&mut self, ended: Result<(Id, End), JoinError>) -> (Option<u32>, String) {
        let (id, reason) = match ended {
            Ok((id, End::Drained)) => (id, "drained".to_owned()),
            Ok((id, End::Lost(error))) => (id, error.to_string()),
            Err(error) => (error.id(), error.to_string()),
        };
        let partition = self.running.iter().find(|(_, running)| running.task.id() == id).map(|(number, _)| *number);
        if let Some(partition) = partition {
            self.running.remove(&partition);
        }
        (partition, reason)
    }
}

/// Commits what is settled, one at a time: of two at once, the older could take the newer back.
pub(super) struct Commits<S: Stage> {
    stage: Arc<S>,
    ledger: Arc<Ledger>,
    committer: Arc<dyn Committer>,
    turn: tokio::sync::Mutex<()>,
    seat: Seat,
}

impl<S: Stage> Commits<S> {
    /// Commits what is settled by now, until that is done.
    pub(super) async fn until_done(&self) {
        while let Err(error) = self.now().await {
            tracing::warn!(stage = S::NAME, %error, "commit failed; trying again");
            tokio::time::sleep(COMMIT_AGAIN_AFTER).await;
        }
    }

    async fn now(&self) -> Result<(), CommitError> {
        let _turn = self.turn.lock().await;
        // Looked at before the sync: what is settled during it is not known to be durable.
        let commits = self.ledger.uncommitted();
        if commits.is_empty() {
            return Ok(());
        }
        self.seat.keep_at("committing");
        self.stage.sync().await?;
        for commit in &commits {
            match self.committer.commit(commit.generation, &commit.offsets).await {
                Ok(()) => self.ledger.committed(commit),
                // One of them was taken from us; the others are still ours.
                Err(LogError::NotOwned { .. }) => self.each_owned(commit).await?,
                Err(error) => return Err(error.into()),
            }
        }
        self.seat.rest();
        Ok(())
    }

    /// Commits offset by offset. What is owned by another by now is let go: its owner repeats what we did, to no effect.
    async fn each_owned(&self, commit: &Commit) -> Result<(), CommitError> {
        for offset in &commit.offsets {
            let one = Commit { generation: commit.generation, offsets: vec![*offset] };
            match self.committer.commit(one.generation, &one.offsets).await {
                Ok(()) => {}
                Err(LogError::NotOwned { topic, partition }) => {
                    tracing::info!(stage = S::NAME, %topic, partition, "not committed: owned by another by now");
                }
                Err(error) => return Err(error.into()),
            }
            self.ledger.committed(&one);
        }
        Ok(())
    }
}

async fn commit_regularly<S: Stage>(commits: Arc<Commits<S>>, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = commits.now().await {
            tracing::warn!(stage = S::NAME, %error, "commit failed; trying again");
        }
    }
}

async fn measure_regularly(
    inputs: Vec<Topic>,
    topics: Vec<Topic>,
    ledger: Arc<Ledger>,
    deps: Deps,
    mut measures: Measures,
) {
    let mut ticks = interval(MEASURE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        measures.progress(&deps.watchdog, &ledger, &deps.clock);
        // A log that does not answer must not end the watch.
        let backlog = measures.backlog(&inputs, &topics, &ledger, &deps);
        if tokio::time::timeout(MEASURE_LIMIT, backlog).await.is_err() {
            tracing::debug!("the log did not say in time how far it is");
        }
    }
}
