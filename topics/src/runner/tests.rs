//! The runner over a log in memory, under a clock that stands still.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use eshaar_model::{Clock, Timestamp};
use eshaar_schemas::{Codecs, Compatibility, DeadLetter, Registry, RegistryError, SchemaId};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::memory::{MemoryLog, Port, record};
use super::{Deps, Options, Outcome, Stage, StageError, Watchdog, run};
use crate::{AppendError, Assignment, ConsumerEvent, NewRecord, Received, Release, Topic};

const INPUT: Topic = Topic::MessagesAccepted;
const ANOTHER: Topic = Topic::MessagesScheduled;
const OUTPUT: Topic = Topic::LaneNormal;

/// Gives ids, and knows nothing else.
pub(super) struct Ids(pub(super) Mutex<SchemaId>);

#[async_trait]
impl Registry for Ids {
    async fn register(&self, _: &str, _: &str) -> Result<SchemaId, RegistryError> {
        let mut last = self.0.lock();
        *last += 1;
        Ok(*last)
    }

    async fn lookup(&self, subject: &str, schema: &str) -> Result<SchemaId, RegistryError> {
        self.register(subject, schema).await
    }

    async fn schema(&self, id: SchemaId) -> Result<String, RegistryError> {
        Err(RegistryError::Unavailable { reason: format!("no schema {id}") })
    }

    async fn set_compatibility(&self, _: &str, _: Compatibility) -> Result<(), RegistryError> {
        Ok(())
    }
}

/// A stage that does what the values say: `forward`, `done`, `dead`, `retry N` (fails N times), `pause`, `panic`, `hang`.
#[derive(Default)]
struct Scripted {
    tried: Mutex<BTreeMap<u64, u32>>,
    batches: Mutex<Vec<usize>>,
    /// Where each input was to be read when it was opened.
    opened: Mutex<Vec<Vec<u64>>>,
    reads_another: bool,
    synced: Mutex<u32>,
    sync_fails: Mutex<bool>,
    paused_until: Option<Timestamp>,
    now: Option<Clock>,
}

impl Scripted {
    fn outcome(&self, record: &Received) -> Outcome {
        let value = std::str::from_utf8(&record.value).unwrap();
        let mut tried = self.tried.lock();
        let tries = tried.entry(record.position.offset).or_default();
        *tries += 1;
        let (word, number) = value.split_once(' ').unwrap_or((value, "0"));
        match word {
            "done" => Outcome::Done,
            "dead" => Outcome::Dead { code: "bad", reason: "said so".to_owned() },
            "retry" if *tries <= number.parse().unwrap() => Outcome::Retry { reason: "not yet".to_owned() },
            "pause" if self.now.as_ref().unwrap().now() < self.paused_until.unwrap() => {
                Outcome::Pause { until: self.paused_until.unwrap(), reason: "down".to_owned() }
            }
            "panic" => panic!("as the record says"),
            _ => Outcome::Forward(vec![NewRecord { topic: OUTPUT, ..record_of(record) }]),
        }
    }

    fn tries(&self, offset: u64) -> u32 {
        self.tried.lock().get(&offset).copied().unwrap_or(0)
    }
}

fn record_of(record: &Received) -> NewRecord {
    NewRecord {
        topic: record.position.topic,
        partition: None,
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.clone(),
        timestamp: record.timestamp,
    }
}

#[async_trait]
impl Stage for Scripted {
    const NAME: &'static str = "scripted";
    type Partition = ();

    fn inputs(&self) -> Vec<(Topic, u32)> {
        if self.reads_another { vec![(INPUT, 1), (ANOTHER, 1)] } else { vec![(INPUT, 1)] }
    }

    async fn open(&self, _: u32, next: &[(Topic, u64)]) -> Result<(), StageError> {
        self.opened.lock().push(next.iter().map(|(_, offset)| *offset).collect());
        Ok(())
    }

    async fn handle(&self, (): &mut (), batch: &[Received]) -> Vec<Outcome> {
        self.batches.lock().push(batch.len());
        if batch.iter().any(|record| &record.value[..] == b"hang") {
            std::future::pending::<()>().await;
        }
        batch.iter().map(|record| self.outcome(record)).collect()
    }

    async fn sync(&self) -> Result<(), StageError> {
        *self.synced.lock() += 1;
        if *self.sync_fails.lock() { Err(StageError("disk".to_owned())) } else { Ok(()) }
    }
}

struct Rig {
    log: Arc<MemoryLog>,
    stage: Arc<Scripted>,
    codecs: Codecs,
    clock: Clock,
    watchdog: Watchdog,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Rig {
    async fn start(values: &[&str]) -> Self {
        Self::with(values, Scripted::default(), Clock::manual(Timestamp::from_millis(0)), Arc::default()).await
    }

    async fn with(values: &[&str], stage: Scripted, clock: Clock, log: Arc<MemoryLog>) -> Self {
        for value in values {
            log.write(record(INPUT, value));
        }
        let codecs = Codecs::register(Arc::new(Ids(Mutex::new(0))), &[("dead-letters-value".to_owned(), "DeadLetter")])
            .await
            .unwrap();
        let (stage, shutdown) = (Arc::new(stage), CancellationToken::new());
        let watchdog = Watchdog::new(Duration::from_mins(1));
        let deps = Deps {
            log: Arc::new(Port(Arc::clone(&log))),
            codecs: codecs.clone(),
            clock: clock.clone(),
            watchdog: watchdog.clone(),
            backlogs: Arc::new(()),
        };
        let task = tokio::spawn(run(Arc::clone(&stage), deps, Options::default(), shutdown.clone()));
        Self { log, stage, codecs, clock, watchdog, shutdown, task }
    }

    /// Lets `time` pass; as it is paused, no longer than the work takes.
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn stop(self) -> Arc<MemoryLog> {
        self.shutdown.cancel();
        self.task.await.unwrap();
        self.log
    }

    fn letters(&self) -> Vec<DeadLetter> {
        let records = self.log.records.lock();
        let letters = records.get(&(Topic::DeadLetters, 0)).into_iter().flatten();
        letters.map(|record| self.codecs.decode(&record.value).unwrap()).collect()
    }
}

const SOON: Duration = Duration::from_millis(1_100);

#[tokio::test(start_paused = true)]
async fn what_a_batch_forwards_is_appended_at_once_in_order_and_committed() {
    let rig = Rig::start(&["a", "done", "b", "c"]).await;
    rig.pass(SOON).await;
    assert_eq!(rig.log.values(OUTPUT), ["a", "b", "c"]);
    assert_eq!(*rig.log.appends.lock(), [3]);
    assert_eq!(rig.log.committed(INPUT), Some(4));
    assert!(*rig.stage.synced.lock() > 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_at_most_a_hundred_records() {
    let rig = Rig::start(&["done"; 250]).await;
    rig.pass(SOON).await;
    assert_eq!(*rig.stage.batches.lock(), [100, 100, 50]);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_fails_holds_those_behind_it_and_order_stays() {
    let rig = Rig::start(&["a", "retry 2", "b"]).await;
    rig.pass(Duration::from_millis(2_900)).await;
    assert_eq!(rig.log.values(OUTPUT), ["a"]);
    assert_eq!(rig.log.committed(INPUT), Some(1));
    rig.pass(Duration::from_millis(200)).await;
    assert_eq!(rig.log.values(OUTPUT), ["a", "retry 2", "b"]);
    assert_eq!(rig.stage.tries(1), 3);
}

#[tokio::test(start_paused = true)]
async fn after_the_last_retry_a_record_is_a_dead_letter_and_the_next_goes_on() {
    let rig = Rig::start(&["retry 100", "b"]).await;
    rig.pass(Duration::from_millis(62_900)).await;
    assert_eq!((rig.letters().len(), rig.stage.tries(0)), (0, 6));
    rig.pass(Duration::from_secs(2)).await;
    let letters = rig.letters();
    assert_eq!(rig.stage.tries(0), 7);
    assert_eq!((letters[0].code.as_str(), letters[0].reason.as_str()), ("retries_exhausted", "not yet"));
    assert_eq!((letters[0].attempts, letters[0].offset, &letters[0].value[..]), (7, 0, &b"retry 100"[..]));
    assert_eq!(rig.log.values(OUTPUT), ["b"]);
    assert_eq!(rig.log.committed(INPUT), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_dead_record_is_settled_once_its_letter_is_acknowledged() {
    let rig = Rig::start(&["a", "dead", "b"]).await;
    rig.log.failures.lock().push_back(AppendError::Unknown { reason: "timeout".to_owned() });
    rig.pass(SOON).await;
    let letters = rig.letters();
    assert_eq!((letters.len(), letters[0].code.as_str(), letters[0].attempts), (1, "bad", 1));
    assert_eq!((letters[0].stage.as_str(), letters[0].topic.as_str()), ("scripted", "messages.accepted"));
    assert_eq!(rig.log.committed(INPUT), Some(3));
}

#[tokio::test(start_paused = true)]
async fn an_append_of_unknown_outcome_is_tried_until_it_is_known() {
    let rig = Rig::start(&[]).await;
    let unknown = || AppendError::Unknown { reason: "timeout".to_owned() };
    rig.log.failures.lock().extend(std::iter::repeat_with(unknown).take(20));
    rig.log.write(record(INPUT, "a"));
    rig.pass(Duration::from_secs(10)).await;
    assert_eq!((rig.log.values(OUTPUT).len(), rig.log.committed(INPUT)), (0, None));
    rig.pass(Duration::from_secs(30)).await;
    assert_eq!((rig.log.values(OUTPUT), rig.log.committed(INPUT)), (vec!["a".to_owned()], Some(1)));
    assert_eq!(rig.letters(), []);
}

#[tokio::test(start_paused = true)]
async fn of_a_refused_batch_only_the_record_at_fault_becomes_a_dead_letter() {
    let rig = Rig::start(&["a", "b", "c"]).await;
    let refused = || AppendError::Refused { reason: "too large".to_owned() };
    // The batch, then `a` alone.
    rig.log.failures.lock().extend([refused(), refused()]);
    rig.pass(SOON).await;
    assert_eq!(rig.log.values(OUTPUT), ["b", "c"]);
    assert_eq!((rig.letters()[0].code.as_str(), rig.letters()[0].offset), ("append_refused", 0));
    assert_eq!(rig.log.committed(INPUT), Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_partition_whose_dead_letter_is_refused_holds() {
    let rig = Rig::start(&["dead", "b"]).await;
    let refused = || AppendError::Refused { reason: "no such topic".to_owned() };
    rig.log.failures.lock().extend(std::iter::repeat_with(refused).take(10));
    rig.pass(Duration::from_secs(5)).await;
    assert_eq!((rig.log.values(OUTPUT).len(), rig.log.committed(INPUT)), (0, None));
    rig.pass(Duration::from_mins(1)).await;
    assert_eq!((rig.letters().len(), rig.log.committed(INPUT)), (1, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_pause_ends_when_the_clock_says_so_and_spends_no_attempt() {
    let clock = Clock::manual(Timestamp::from_millis(0));
    let paused_until = Some(Timestamp::from_millis(3_600_000));
    let stage = Scripted { paused_until, now: Some(clock.clone()), ..Scripted::default() };
    let rig = Rig::with(&["a", "pause", "b"], stage, clock, Arc::default()).await;
    rig.pass(Duration::from_mins(10)).await;
    assert_eq!(rig.log.values(OUTPUT), ["a"]);
    assert_eq!(rig.stage.tries(1), 1);
    rig.clock.advance_millis(3_600_000);
    rig.pass(Duration::from_millis(200)).await;
    assert_eq!(rig.log.values(OUTPUT), ["a", "pause", "b"]);
    assert_eq!(rig.letters(), []);
}

#[tokio::test(start_paused = true)]
async fn a_record_on_which_the_stage_panics_becomes_a_dead_letter_and_holds_nobody_for_ever() {
    let rig = Rig::start(&["a", "panic", "b"]).await;
    rig.pass(Duration::from_secs(70)).await;
    assert_eq!(rig.log.values(OUTPUT), ["a", "b"]);
    assert_eq!((rig.letters()[0].reason.as_str(), rig.letters()[0].offset), ("the stage panicked", 1));
    // Opened anew where it was: first at the batch, then at the record itself.
    assert_eq!(rig.stage.opened.lock()[..3], [[0], [0], [1]]);
}

/// Two records of the input, and these of another behind them.
async fn with_another(values: &[&str]) -> Rig {
    let log = Arc::new(MemoryLog::default());
    for value in values {
        log.write(record(ANOTHER, value));
    }
    let stage = Scripted { reads_another: true, ..Scripted::default() };
    Rig::with(&["a", "b"], stage, Clock::manual(Timestamp::from_millis(0)), log).await
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_two_inputs_is_settled_in_each_as_far_as_it_was_seen_through() {
    let rig = with_another(&["c", "d", "retry 2", "e"]).await;
    rig.pass(Duration::from_millis(2_900)).await;
    assert_eq!(rig.stage.batches.lock()[0], 6);
    assert_eq!(rig.log.values(OUTPUT), ["a", "b", "c", "d"]);
    assert_eq!((rig.log.committed(INPUT), rig.log.committed(ANOTHER)), (Some(2), Some(2)));
    rig.pass(2 * SOON).await;
    assert_eq!(rig.log.values(OUTPUT), ["a", "b", "c", "d", "retry 2", "e"]);
    assert_eq!((rig.log.committed(INPUT), rig.log.committed(ANOTHER)), (Some(2), Some(4)));
}

#[tokio::test(start_paused = true)]
async fn after_a_panic_the_stage_is_opened_where_each_input_is_unsettled() {
    let rig = with_another(&["c", "panic", "d"]).await;
    rig.pass(Duration::from_secs(70)).await;
    assert_eq!(rig.log.values(OUTPUT), ["a", "b", "c", "d"]);
    assert_eq!(rig.letters()[0].topic, ANOTHER.name());
    assert_eq!(rig.stage.opened.lock()[..3], [[0, 0], [0, 0], [2, 1]]);
    assert_eq!((rig.log.committed(INPUT), rig.log.committed(ANOTHER)), (Some(2), Some(3)));
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_and_commits_what_was_taken() {
    let rig = Rig::start(&["a", "b"]).await;
    rig.pass(Duration::from_millis(10)).await;
    let log = rig.stop().await;
    assert_eq!((log.values(OUTPUT).len(), log.committed(INPUT)), (2, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_retry() {
    let rig = Rig::start(&["a", "retry 5", "b"]).await;
    rig.pass(Duration::from_secs(10)).await;
    let begun = tokio::time::Instant::now();
    let log = rig.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(log.committed(INPUT), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_hangs_is_cut_off_and_what_is_unsettled_is_not_committed() {
    let rig = Rig::start(&["a"]).await;
    rig.pass(SOON).await;
    rig.log.write(record(INPUT, "hang"));
    rig.pass(SOON).await;
    let begun = tokio::time::Instant::now();
    let log = rig.stop().await;
    assert!(begun.elapsed() >= Duration::from_secs(20) && begun.elapsed() < Duration::from_secs(21));
    assert_eq!(log.committed(INPUT), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_revoked_partition_is_committed_before_it_is_released_and_taken_from_no_more() {
    let rig = Rig::start(&["a"]).await;
    rig.pass(Duration::from_millis(10)).await;
    let (release, released) = oneshot::channel();
    let revoked = ConsumerEvent::Revoked { partitions: vec![0], release: Release(release) };
    rig.log.events.lock().as_ref().unwrap().send(revoked).ok().unwrap();
    released.await.unwrap();
    assert_eq!(rig.log.committed(INPUT), Some(1));
    rig.log.write(record(INPUT, "b"));
    rig.pass(SOON).await;
    assert_eq!(rig.log.values(OUTPUT), ["a"]);
    let assignment = Assignment { generation: 2, partitions: vec![rig.log.stream(INPUT)] };
    rig.log.events.lock().as_ref().unwrap().send(ConsumerEvent::Assigned(assignment)).ok().unwrap();
    rig.pass(SOON).await;
    assert_eq!((rig.log.values(OUTPUT).len(), rig.log.committed(INPUT)), (2, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_committed_that_the_stage_has_not_made_durable() {
    let stage = Scripted { sync_fails: Mutex::new(true), ..Scripted::default() };
    let rig = Rig::with(&["a"], stage, Clock::manual(Timestamp::from_millis(0)), Arc::default()).await;
    rig.pass(Duration::from_secs(5)).await;
    assert_eq!((rig.log.values(OUTPUT).len(), rig.log.committed(INPUT)), (1, None));
    *rig.stage.sync_fails.lock() = false;
    rig.pass(SOON).await;
    assert_eq!(rig.log.committed(INPUT), Some(1));
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_what_was_not_committed_is_handled_again_and_nothing_is_left_out() {
    let rig = Rig::start(&["a", "b"]).await;
    rig.pass(SOON).await;
    rig.log.write(record(INPUT, "c"));
    rig.pass(Duration::from_millis(10)).await;
    rig.task.abort();
    let log = Arc::clone(&rig.log);
    assert_eq!(log.committed(INPUT), Some(2));
    let clock = Clock::manual(Timestamp::from_millis(0));
    let again = Rig::with(&["d"], Scripted::default(), clock, Arc::clone(&log)).await;
    again.pass(SOON).await;
    assert_eq!(log.values(OUTPUT)[2..], ["c", "c", "d"]);
    assert_eq!(again.stage.tries(0), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_group_is_joined_again() {
    let rig = Rig::start(&["a"]).await;
    rig.pass(SOON).await;
    *rig.log.events.lock() = None;
    rig.pass(SOON).await;
    rig.log.write(record(INPUT, "b"));
    rig.pass(SOON).await;
    assert_eq!(rig.log.values(OUTPUT), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_hangs_is_stuck_after_a_minute_and_one_that_pauses_or_tries_again_is_not() {
    let clock = Clock::manual(Timestamp::from_millis(0));
    let paused_until = Some(Timestamp::from_millis(3_600_000));
    let paused = Scripted { paused_until, now: Some(clock.clone()), ..Scripted::default() };
    let pausing = Rig::with(&["pause"], paused, clock, Arc::default()).await;
    let (hanging, trying) = (Rig::start(&["a", "hang", "b"]).await, Rig::start(&["retry 100"]).await);
    hanging.pass(Duration::from_secs(59)).await;
    assert_eq!(hanging.watchdog.check(), Ok(()));
    hanging.pass(Duration::from_secs(2)).await;
    assert_eq!(hanging.watchdog.check(), Err("scripted, partition 0: handling for 61 s".to_owned()));
    assert_eq!((pausing.watchdog.check(), trying.watchdog.check()), (Ok(()), Ok(())));
}

#[tokio::test(start_paused = true)]
async fn a_stage_whose_effects_do_not_become_durable_is_stuck_and_says_so() {
    let stage = Scripted { sync_fails: Mutex::new(true), ..Scripted::default() };
    let rig = Rig::with(&["a"], stage, Clock::manual(Timestamp::from_millis(0)), Arc::default()).await;
    rig.pass(Duration::from_secs(62)).await;
    assert_eq!(rig.watchdog.stuck()[0].doing, "committing");
    *rig.stage.sync_fails.lock() = false;
    rig.pass(SOON).await;
    assert_eq!(rig.watchdog.check(), Ok(()));
}
