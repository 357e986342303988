//! How much waits to be delivered, and whether that is too much (R5.4).
//!
//! The stages tell presence, each second, how much waits before them; here it is looked up when messages come. A stage of
//! which nothing is heard any more (its processes are dead, or stopped) is looked at in the log instead: what is there past
//! what it has committed waits. Where presence does not answer, nothing is known and nothing is refused: its outage is no
//! reason to take nothing in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eshaar_presence::depths::{DEPTH_TTL, Depth, Depths};
use eshaar_service::{Problem, metrics as names, workers};
use eshaar_topics::{Log, LogError, Topic};
use http::StatusCode;
use metrics::gauge;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::options::QueueOptions;

/// How long what is known of the queues is believed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a stage may be silent before the log is asked, and again between questions: long enough for stages that were
/// parted from presence to be back, and to have told it anew.
const SILENT_AFTER: Duration = Duration::from_secs(2 * DEPTH_TTL.as_secs());

/// When to come back where a queue is full, in seconds: it is looked at each second, and must fall by a fifth.
const FULL_RETRY_AFTER_S: u64 = 2;

/// A queue that was full takes in again when it holds so many hundredths of its limit.
const OPEN_AGAIN_PERCENT: u64 = 80;

/// What messages wait before until they are delivered: the stages, each with its inputs.
const STAGES: [(&str, &[Topic]); 2] = [
    ("prioritize", &[Topic::MessagesAccepted]),
    ("route", &[Topic::LaneHigh, Topic::LaneNormal, Topic::LaneLow, Topic::LaneBulk]),
];

/// Two queues, each with a limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// What people wait for.
    Interactive,
    /// What was sent in bulk.
    Bulk,
}

impl Queue {
    const ALL: [Self; 2] = [Self::Interactive, Self::Bulk];

    const fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Bulk => "bulk",
        }
    }
}

/// Messages, by queue.
type Waiting = [u64; 2];

/// What waits in the queues, as it was found last.
pub(crate) struct Queues {
    depths: Arc<dyn Depths>,
    log: Arc<dyn Log>,
    limits: Waiting,
    full: [AtomicBool; 2],
    looked: Mutex<Looked>,
    /// Of each of [`STAGES`].
    known: tokio::sync::Mutex<[Known; STAGES.len()]>,
}

/// When the queues were looked at last, and whether somebody does so now.
#[derive(Default)]
struct Looked {
    at: Option<Instant>,
    now: bool,
}

/// What is known of a stage, and since when.
#[derive(Clone, Copy)]
struct Known {
    waiting: Waiting,
    at: Instant,
}

impl Queues {
    pub(crate) fn new(depths: Arc<dyn Depths>, log: Arc<dyn Log>, options: &QueueOptions) -> Self {
        let limits = [options.interactive.get(), options.bulk.get()];
        let nothing = Known { waiting: [0, 0], at: Instant::now() };
        let known = tokio::sync::Mutex::new([nothing; STAGES.len()]);
        Self { depths, log, limits, full: Default::default(), looked: Mutex::default(), known }
    }

    /// Why a message is not taken in. Answers from what is known, and has it looked up when that is old: no request waits
    /// for it.
    pub(crate) fn refusal(self: &Arc<Self>, queue: Queue) -> Option<Problem> {
        let is_old = {
            let mut looked = self.looked.lock();
            let is_old = !looked.now && looked.at.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
            looked.now |= is_old;
            is_old
        };
        if is_old {
            let queues = Arc::clone(self);
            tokio::spawn(workers::guarded("queues", async move {
                queues.look().await;
                *queues.looked.lock() = Looked { at: Some(Instant::now()), now: false };
            }));
        }
        let full = self.full[queue as usize].load(Ordering::Relaxed);
        full.then(|| queue_full(queue, self.limits[queue as usize]))
    }

    async fn look(&self) {
        let waiting = match self.depths.depths().await {
            Ok(told) => self.heard(&told).await,
            Err(error) => {
                tracing::debug!(%error, "how much waits is not known; nothing is refused for it");
                let nothing = Known { waiting: [0, 0], at: Instant::now() };
                *self.known.lock().await = [nothing; STAGES.len()];
                [0, 0]
            }
        };
        for queue in Queue::ALL {
            self.decide(queue, waiting[queue as usize]);
        }
    }

    /// What waits before all stages, by what they told, or by the log.
    async fn heard(&self, told: &[Depth]) -> Waiting {
        let mut all = self.known.lock().await;
        for (known, (stage, inputs)) in all.iter_mut().zip(STAGES) {
            if let Some(waiting) = told_by(stage, told) {
                *known = Known { waiting, at: Instant::now() };
            } else if known.at.elapsed() > SILENT_AFTER {
                match in_log(&*self.log, stage, inputs).await {
                    Ok(waiting) => {
                        tracing::warn!(stage, ?waiting, "the stage is silent; counted in the log what waits before it");
                        *known = Known { waiting, at: Instant::now() };
                    }
                    Err(error) => tracing::warn!(stage, %error, "what waits before a silent stage cannot be counted"),
                }
            }
        }
        all.iter().fold([0, 0], |sum, known| plus(sum, known.waiting))
    }

    fn decide(&self, queue: Queue, depth: u64) {
        let (limit, full) = (self.limits[queue as usize], &self.full[queue as usize]);
        let was = full.load(Ordering::Relaxed);
        let opens_at = (u128::from(limit) * u128::from(OPEN_AGAIN_PERCENT) / 100) as u64;
        let is = if was { depth > opens_at } else { depth > limit };
        full.store(is, Ordering::Relaxed);
        gauge!(names::QUEUE_DEPTH, "queue" => queue.name()).set(depth as f64);
        gauge!(names::QUEUE_FULL, "queue" => queue.name()).set(f64::from(u8::from(is)));
        match (was, is) {
            (false, true) => {
                tracing::error!(queue = queue.name(), depth, limit, "too much waits; refusing new messages");
            }
            (true, false) => tracing::info!(queue = queue.name(), depth, limit, "taking new messages in again"),
            _ => {}
        }
    }
}

const fn plus(one: Waiting, other: Waiting) -> Waiting {
    [one[0].saturating_add(other[0]), one[1].saturating_add(other[1])]
}

/// What a stage told of all its partitions; `None` where it told nothing.
fn told_by(stage: &str, told: &[Depth]) -> Option<Waiting> {
    let of_stage = told.iter().filter(|depth| depth.stage == stage);
    of_stage.map(|depth| [depth.interactive, depth.bulk]).reduce(plus)
}

/// What stands in a stage's inputs past what it has committed. What is not in a lane yet may be either, so it counts as both.
async fn in_log(log: &dyn Log, stage: &str, inputs: &[Topic]) -> Result<Waiting, LogError> {
    let mut waiting = [0, 0];
    for &topic in inputs {
        for partition in 0..log.partitions(topic) {
            let bounds = log.bounds(topic, partition).await?;
            let next = log.committed(stage, topic, partition).await?.unwrap_or(bounds.start).max(bounds.start);
            let records = bounds.end.saturating_sub(next);
            let of_both = match topic {
                Topic::MessagesAccepted => [records, records],
                Topic::LaneBulk => [0, records],
                _ => [records, 0],
            };
            waiting = plus(waiting, of_both);
        }
    }
    Ok(waiting)
}

fn queue_full(queue: Queue, limit: u64) -> Problem {
    let detail = format!("more than {limit} {} messages wait to be delivered; send it again later", queue.name());
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "queue_full", detail).retry_after(FULL_RETRY_AFTER_S)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::num::NonZeroU64;

    use bytes::Bytes;
    use eshaar_model::{Clock, Timestamp};
    use eshaar_presence::PresenceError;
    use eshaar_presence::local::LocalPresence;
    use eshaar_topics::embedded::{EmbeddedLog, Options};
    use eshaar_topics::{ConsumerEvent, Headers, NewRecord, StartAt};
    use tempfile::TempDir;

    use super::*;

    /// Queues over a log of their own, and what they are told by.
    struct Fixture {
        presence: Arc<LocalPresence>,
        log: Arc<EmbeddedLog>,
        queues: Arc<Queues>,
        clock: Clock,
        _dir: TempDir,
    }

    impl Fixture {
        fn new(interactive: u64, bulk: u64) -> Self {
            let (dir, clock) = (TempDir::new().unwrap(), Clock::manual(Timestamp::from_millis(1_760_000_000_000)));
            let presence = Arc::new(LocalPresence::new(clock.clone()));
            let log = Arc::new(EmbeddedLog::open(Options::in_dir(dir.path()), clock.clone()).unwrap());
            let queues =
                Arc::new(Queues::new(Arc::clone(&presence) as _, Arc::clone(&log) as _, &options(interactive, bulk)));
            Self { presence, log, queues, clock, _dir: dir }
        }

        async fn tell(&self, stage: &str, interactive: u64, bulk: u64) {
            let depth = Depth { stage: stage.to_owned(), partition: 0, interactive, bulk };
            self.presence.publish(&[depth]).await.unwrap();
        }

        /// What the queues say once they have been looked at.
        async fn refused(&self) -> (bool, bool) {
            self.queues.look().await;
            let refused = |queue| self.queues.refusal(queue).is_some();
            (refused(Queue::Interactive), refused(Queue::Bulk))
        }

        async fn append(&self, topic: Topic, records: usize) {
            let record = NewRecord {
                topic,
                key: Bytes::from_static(b"+966500000001"),
                value: Bytes::from_static(b"value"),
                headers: Headers::default(),
                timestamp: self.clock.now(),
                partition: None,
            };
            self.log.append(vec![record; records]).await.unwrap();
        }

        /// What was told lapses.
        fn lapse(&self) {
            self.clock.advance_millis(DEPTH_TTL.as_millis() as i64 + 1);
        }

        /// What was told has lapsed, and that was long ago.
        async fn silence(&self) {
            self.lapse();
            for known in &mut *self.queues.known.lock().await {
                known.at = known.at.checked_sub(SILENT_AFTER + Duration::from_secs(1)).unwrap();
            }
        }

        /// Takes all there is of a topic as a member of a stage's group, and commits it.
        async fn settle(&self, stage: &str, topic: Topic) {
            let mut member = self.log.join(stage, &[topic], StartAt::Oldest).await.unwrap();
            let ConsumerEvent::Assigned(assignment) = member.event().await.unwrap() else { panic!("nothing assigned") };
            let mut ends = Vec::new();
            for reader in &assignment.partitions {
                let (topic, partition) = reader.source();
                ends.push((topic, partition, self.log.bounds(topic, partition).await.unwrap().end));
            }
            member.committer().commit(assignment.generation, &ends).await.unwrap();
        }
    }

    fn options(interactive: u64, bulk: u64) -> QueueOptions {
        let limit = |most| NonZeroU64::new(most).unwrap();
        QueueOptions { interactive: limit(interactive), bulk: limit(bulk) }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_until_a_fifth_of_it_is_gone_and_the_other_one_does_not() {
        let fixture = Fixture::new(100, 1_000);
        for (interactive, bulk, expected) in [
            (100, 1_000, (false, false)),
            (101, 900, (true, false)),
            (81, 1_001, (true, true)),
            (80, 801, (false, true)),
        ] {
            fixture.tell("route", interactive, bulk).await;
            assert_eq!(fixture.refused().await, expected, "{interactive} and {bulk}");
        }
    }

    #[tokio::test]
    async fn limits_as_large_as_there_are_hold_nobody_up() {
        let fixture = Fixture::new(u64::MAX, u64::MAX);
        fixture.tell("prioritize", u64::MAX - 1, u64::MAX - 1).await;
        assert_eq!(fixture.refused().await, (false, false));
    }

    #[tokio::test]
    async fn what_waits_before_a_stage_that_fell_silent_is_counted_in_the_log() {
        let fixture = Fixture::new(10, 50);
        fixture.tell("prioritize", 0, 0).await;
        fixture.tell("route", 0, 0).await;
        fixture.append(Topic::MessagesAccepted, 11).await;
        assert_eq!(fixture.refused().await, (false, false), "it is what the stages say, while they do");
        fixture.lapse();
        assert_eq!(fixture.refused().await, (false, false), "a pause is no silence");
        fixture.silence().await;
        assert_eq!(fixture.refused().await, (true, false), "11 wait");
        fixture.append(Topic::LaneBulk, 40).await;
        fixture.silence().await;
        assert_eq!(fixture.refused().await, (true, true), "and 40 in bulk");
        fixture.settle("prioritize", Topic::MessagesAccepted).await;
        fixture.silence().await;
        assert_eq!(fixture.refused().await, (false, false), "what was committed waits no more");
    }

    #[tokio::test]
    async fn where_a_full_stage_is_silent_for_a_moment_it_is_still_full() {
        let fixture = Fixture::new(10, 50);
        fixture.tell("prioritize", 0, 0).await;
        fixture.tell("route", 11, 0).await;
        assert_eq!(fixture.refused().await, (true, false));
        fixture.lapse();
        assert_eq!(fixture.refused().await, (true, false));
    }

    /// Presence that does not answer.
    struct Down;

    #[async_trait::async_trait]
    impl Depths for Down {
        async fn publish(&self, _: &[Depth]) -> Result<(), PresenceError> {
            Ok(())
        }

        async fn depths(&self) -> Result<Vec<Depth>, PresenceError> {
            Err(PresenceError::Engine { action: "look up depths", reason: "told to fail".to_owned() })
        }
    }

    #[tokio::test]
    async fn while_presence_is_down_nothing_is_refused() {
        let fixture = Fixture::new(1, 1);
        fixture.append(Topic::MessagesAccepted, 50).await;
        let queues = Arc::new(Queues::new(Arc::new(Down), Arc::clone(&fixture.log) as _, &options(1, 1)));
        for _ in 0..3 {
            queues.look().await;
            assert!(queues.refusal(Queue::Interactive).is_none());
        }
    }
}
