//! The runner with retries on topics of their own, over a log in memory, under a clock that stands still but for the tests.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::retry::DELAYS;
use eshaar_model::{Clock, Timestamp};
use eshaar_schemas::{Codecs, DeadLetter};
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;

use super::Retries;
use crate::headers::{ATTEMPT, ORIGIN};
use crate::runner::memory::{MemoryLog, Port, record};
use crate::runner::tests::Ids;
use crate::runner::{Deps, Options, Watchdog, run};
use crate::{NewRecord, Outcome, Received, Stage, StageError, Topic};

const INPUT: Topic = Topic::LaneNormal;
/// How far the clock moves at a time.
const TICK: Duration = Duration::from_millis(20);

/// What the stage did, in every life of it: the time, the offset in the input, and the attempt.
type Tried = Vec<(i64, u64, u8)>;

/// A stage that refuses a record as often as its value says, then applies it. `hang` waits for ever.
struct Refusing {
    clock: Clock,
    world: Arc<World>,
}

/// What outlives a crash.
#[derive(Default)]
struct World {
    tried: Mutex<Tried>,
    /// Key and offset, in the order in which they were applied.
    applied: Mutex<Vec<(Bytes, u64)>>,
    down_until: Mutex<Timestamp>,
}

#[async_trait]
impl Stage for Refusing {
    const NAME: &'static str = "refusing";
    const RETRIES: Retries = Retries::Ordered(Topic::RETRY_ROUTE);
    type Partition = ();

    fn inputs(&self) -> Vec<(Topic, u32)> {
        vec![(INPUT, 1)]
    }

    async fn open(&self, _: u32, _: &[(Topic, u64)]) -> Result<(), StageError> {
        Ok(())
    }

    async fn handle(&self, (): &mut (), batch: &[Received]) -> Vec<Outcome> {
        tokio::task::yield_now().await;
        let (now, down_until) = (self.clock.now(), *self.world.down_until.lock());
        if now < down_until {
            return vec![Outcome::Pause { until: down_until, reason: "down".to_owned() }];
        }
        let mut failed = BTreeSet::new();
        let mut outcomes = Vec::new();
        for record in batch {
            assert_eq!(record.position.topic, INPUT, "always as it came into the stage");
            assert_eq!((record.headers.get(ATTEMPT), record.headers.get(ORIGIN)), (None, None));
            let refused: u8 = std::str::from_utf8(&record.value).unwrap().parse().unwrap();
            if failed.contains(&record.key) {
                outcomes.push(Outcome::Done);
                continue;
            }
            self.world.tried.lock().push((now.as_millis(), record.position.offset, record.attempt.count()));
            if record.attempt.count() < refused {
                failed.insert(record.key.clone());
                outcomes.push(Outcome::Retry { reason: "refused".to_owned() });
            } else {
                self.world.applied.lock().push((record.key.clone(), record.position.offset));
                outcomes.push(Outcome::Done);
            }
        }
        outcomes
    }
}

struct Rig {
    log: Arc<MemoryLog>,
    world: Arc<World>,
    codecs: Codecs,
    clock: Clock,
    options: Options,
    life: Option<JoinHandle<()>>,
    ticking: AbortHandle,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.ticking.abort();
        self.crash();
    }
}

impl Rig {
    async fn start(options: Options) -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_000));
        let ticking = tokio::spawn({
            let clock = clock.clone();
            async move {
                loop {
                    tokio::time::sleep(TICK).await;
                    clock.advance_millis(TICK.as_millis() as i64);
                }
            }
        });
        let codecs = Codecs::register(Arc::new(Ids(Mutex::new(0))), &[("dead-letters-value".to_owned(), "DeadLetter")])
            .await
            .unwrap();
        let mut rig = Self {
            log: Arc::default(),
            world: Arc::default(),
            codecs,
            clock,
            options,
            life: None,
            ticking: ticking.abort_handle(),
        };
        rig.live();
        rig
    }

    /// Begins a life of the stage; one that is not over goes on as a zombie.
    fn live(&mut self) -> Option<JoinHandle<()>> {
        let stage = Refusing { clock: self.clock.clone(), world: Arc::clone(&self.world) };
        let deps = Deps {
            log: Arc::new(Port(Arc::clone(&self.log))),
            codecs: self.codecs.clone(),
            clock: self.clock.clone(),
            watchdog: Watchdog::new(Duration::from_mins(1)),
            backlogs: Arc::new(()),
        };
        self.life.replace(tokio::spawn(run(Arc::new(stage), deps, self.options.clone(), CancellationToken::new())))
    }

    fn crash(&mut self) {
        if let Some(life) = self.life.take() {
            life.abort();
        }
    }

    /// A record that is refused so many times.
    fn send(&self, key: &str, refused: u8) -> u64 {
        let key = Bytes::copy_from_slice(key.as_bytes());
        self.log.write(NewRecord { key, ..record(INPUT, &refused.to_string()) }).offset
    }

    async fn settled(&self) {
        let topics: Vec<Topic> = [INPUT].into_iter().chain(Topic::RETRY_ROUTE).collect();
        for _ in 0..3_000 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if self.log.is_settled(&topics) {
                return;
            }
        }
        panic!("not everything was settled: {:?}", self.world.tried.lock());
    }

    fn letters(&self) -> Vec<DeadLetter> {
        let records = self.log.records.lock();
        let letters = records.get(&(Topic::DeadLetters, 0)).into_iter().flatten();
        letters.map(|record| self.codecs.decode(&record.value).unwrap()).collect()
    }

    /// When a record was tried, in milliseconds since the first time.
    fn tries(&self, offset: u64) -> Vec<i64> {
        let tried = self.world.tried.lock();
        let times: Vec<i64> = tried.iter().filter(|(_, of, _)| *of == offset).map(|(at, ..)| *at).collect();
        times.iter().map(|at| at - times[0]).collect()
    }

    fn applied(&self, key: &str) -> Vec<u64> {
        let applied = self.world.applied.lock();
        applied.iter().filter(|(of, _)| of == key.as_bytes()).map(|(_, offset)| *offset).collect()
    }

    fn appended(&self, topic: Topic) -> usize {
        self.log.records.lock().get(&(topic, 0)).map_or(0, Vec::len)
    }
}

async fn pass(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_fails_is_tried_again_after_each_delay_and_holds_up_its_key_alone() {
    let rig = Rig::start(Options::default()).await;
    rig.send("poisoned", 5);
    for _ in 0..60 {
        rig.send("poisoned", 0);
        rig.send("other", 0);
        pass(500).await;
    }
    assert_eq!(rig.applied("other").len(), 60, "nobody else waits");
    assert_eq!(rig.applied("poisoned"), [0; 0]);
    pass(1_500).await;
    let poisoned = rig.applied("poisoned");
    assert_eq!(poisoned.len(), 61, "and what stood behind it goes on at once");
    assert!(poisoned.is_sorted());
    let gaps: Vec<i64> = rig.tries(0).windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (gap, delay) in gaps.iter().zip([1_000, 2_000, 4_000, 8_000, 16_000]) {
        assert!((delay..=delay + 250).contains(gap), "{gaps:?}");
    }
    assert_eq!(gaps.len(), 5);
    rig.settled().await;
}

#[tokio::test(start_paused = true)]
async fn after_the_sixth_retry_a_record_is_a_dead_letter_and_its_followers_go_on_at_once() {
    let rig = Rig::start(Options::default()).await;
    rig.send("poisoned", 100);
    let follower = rig.send("poisoned", 0);
    pass(62_900).await;
    assert_eq!((rig.letters().len(), rig.tries(0).len()), (0, 6));
    pass(1_500).await;
    let letters = rig.letters();
    assert_eq!((letters.len(), letters[0].code.as_str(), letters[0].attempts), (1, "retries_exhausted", 7));
    assert_eq!((letters[0].topic.as_str(), letters[0].offset, &letters[0].value[..]), ("lane.normal", 0, &b"100"[..]));
    assert!(!letters[0].headers.contains_key(ORIGIN));
    let died = rig.tries(0)[6];
    assert!(died >= 63_000);
    assert_eq!(rig.applied("poisoned"), [follower]);
    let tried = rig.world.tried.lock().clone();
    let (first, went_on) = (tried[0].0, tried.iter().find(|(_, of, _)| *of == follower).unwrap().0);
    assert!(went_on - first - died <= 100, "{went_on} {died}");
}

#[tokio::test(start_paused = true)]
async fn a_follower_is_moved_only_a_few_times_while_it_waits_a_minute() {
    let rig = Rig::start(Options::default()).await;
    rig.send("poisoned", 100);
    for _ in 0..10 {
        rig.send("poisoned", 0);
    }
    rig.settled().await;
    let copies: usize = Topic::RETRY_ROUTE.into_iter().map(|topic| rig.appended(topic)).sum();
    assert!(copies <= 6 + 10 * 25, "{copies}");
    assert_eq!(rig.applied("poisoned").len(), 10);
}

#[tokio::test(start_paused = true)]
async fn while_its_dependency_is_down_the_stage_pauses_and_spends_no_attempts() {
    let rig = Rig::start(Options::default()).await;
    rig.send("a", 1);
    pass(200).await;
    *rig.world.down_until.lock() = rig.clock.now().plus_millis(180_000);
    for _ in 0..100 {
        rig.send("a", 0);
        rig.send("b", 0);
    }
    pass(179_000).await;
    assert_eq!(rig.world.tried.lock().len(), 1);
    pass(3_000).await;
    assert_eq!((rig.applied("a").len(), rig.applied("b").len(), rig.letters().len()), (101, 100, 0));
    assert_eq!(rig.world.tried.lock().iter().map(|(.., attempt)| *attempt).max(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn more_than_may_wait_holds_the_inputs_and_loses_nothing() {
    let options = Options { retry_records: 50, retry_read_ahead: 60, ..Options::default() };
    let rig = Rig::start(options).await;
    for number in 0..400 {
        rig.send(&format!("key {}", number % 20), 2);
    }
    pass(500).await;
    let waiting: usize = Topic::RETRY_ROUTE.into_iter().map(|topic| rig.appended(topic)).sum();
    assert!(waiting <= 150, "{waiting}: a batch more than the bound at most");
    rig.settled().await;
    for key in 0..20 {
        let applied = rig.applied(&format!("key {key}"));
        assert_eq!(applied.len(), 20);
        assert!(applied.is_sorted());
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_in_a_retry_topic_that_is_no_copy_becomes_a_dead_letter() {
    let rig = Rig::start(Options::default()).await;
    rig.log.write(record(Topic::RetryRoute4s, "0"));
    rig.settled().await;
    assert_eq!(rig.letters()[0].code, "no_retry");
}

/// What happens to the stage.
#[derive(Clone, Debug)]
enum Event {
    Send {
        key: u8,
        refused: u8,
    },
    Pass(u64),
    Crash,
    /// Another begins while the stage is at work, which goes on for so long.
    Zombie(u64),
    /// The next append is written in part, and nobody knows.
    Unheard(Vec<bool>),
    Down(i64),
}

fn quiet() -> impl Strategy<Value = Event> {
    let refused = prop_oneof![6 => Just(0_u8), 3 => 1_u8..5, 1 => Just(9)];
    prop_oneof![
        3 => (0_u8..3, refused).prop_map(|(key, refused)| Event::Send { key, refused }),
        1 => (0_u64..6_000).prop_map(Event::Pass),
    ]
}

fn faulty() -> impl Strategy<Value = Event> {
    prop_oneof![
        10 => quiet(),
        2 => Just(Event::Crash),
        2 => prop::collection::vec(any::<bool>(), 1..6).prop_map(Event::Unheard),
        1 => (100_i64..5_000).prop_map(Event::Down),
    ]
}

fn haunted() -> impl Strategy<Value = Event> {
    prop_oneof![8 => faulty(), 2 => (0_u64..8_000).prop_map(Event::Zombie)]
}

/// Plays `events` to their end, and checks what must hold of any.
async fn played(events: &[Event], options: Options) -> Result<(Rig, Vec<u8>), TestCaseError> {
    let mut rig = Rig::start(options).await;
    let (mut refused, mut zombies) = (Vec::new(), Vec::new());
    for event in events {
        match event {
            Event::Send { key, refused: times } => {
                rig.send(&key.to_string(), *times);
                refused.push(*times);
            }
            Event::Pass(millis) => pass(*millis).await,
            Event::Crash => {
                rig.crash();
                rig.live();
            }
            Event::Zombie(millis) => {
                let (zombie, millis) = (rig.live().unwrap(), *millis);
                zombies.push(tokio::spawn(async move {
                    pass(millis).await;
                    zombie.abort();
                }));
            }
            Event::Unheard(written) => rig.log.unheard.lock().push_back(written.clone()),
            Event::Down(millis) => *rig.world.down_until.lock() = rig.clock.now().plus_millis(*millis),
        }
    }
    for zombie in zombies {
        zombie.await.unwrap();
    }
    rig.settled().await;
    let letters: BTreeSet<u64> = rig.letters().iter().map(|letter| letter.offset as u64).collect();
    let applied: BTreeSet<u64> = rig.world.applied.lock().iter().map(|(_, offset)| *offset).collect();
    for (offset, times) in refused.iter().enumerate() {
        let offset = offset as u64;
        prop_assert_eq!(applied.contains(&offset), *times <= 6, "{} is refused {} times", offset, times);
        prop_assert_eq!(letters.contains(&offset), *times > 6);
    }
    for key in 0..3 {
        let mut first = Vec::new();
        for offset in rig.applied(&key.to_string()) {
            if !first.contains(&offset) {
                first.push(offset);
            }
        }
        prop_assert!(first.is_sorted(), "key {key} was applied as {first:?}");
    }
    Ok((rig, refused))
}

/// The tries of each record never spend an attempt twice back, and never come early.
fn check_tries(rig: &Rig, late: Option<i64>) -> Result<(), TestCaseError> {
    let mut of_each: BTreeMap<u64, Vec<(i64, u8)>> = BTreeMap::new();
    for (at, offset, attempt) in rig.world.tried.lock().iter() {
        of_each.entry(*offset).or_default().push((*at, *attempt));
    }
    for tries in of_each.values() {
        for pair in tries.windows(2) {
            let ((before, earlier), (now, attempt)) = (pair[0], pair[1]);
            prop_assert!(attempt >= earlier && attempt <= earlier + 1, "{tries:?}");
            if attempt > earlier {
                let delay = DELAYS[usize::from(earlier)].as_millis() as i64;
                prop_assert!(now - before >= delay, "early: {tries:?}");
                if let Some(late) = late {
                    prop_assert!(now - before <= delay + late, "late: {tries:?}");
                }
            }
        }
    }
    let records = rig.log.records.lock();
    for topic in Topic::RETRY_ROUTE {
        for record in records.get(&(topic, 0)).into_iter().flatten() {
            let attempt: u8 = record.headers.text(ATTEMPT).unwrap().parse().unwrap();
            prop_assert!(attempt <= 6);
        }
    }
    Ok(())
}

fn cases(count: u32, events: impl Strategy<Value = Event>, check: impl Fn(Vec<Event>) -> Result<(), TestCaseError>) {
    let all = prop::collection::vec(events, 1..40);
    if let Err(error) = TestRunner::new(ProptestConfig::with_cases(count)).run(&all, check) {
        panic!("{error}");
    }
}

fn run_paused<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(work)
}

fn small() -> Options {
    Options { batch_records: 4, retry_read_ahead: 12, ..Options::default() }
}

/// R4.1, R4.5: without a fault each retry is on time, keys keep their order, and what is refused too often dies.
#[test]
fn property_04_retries_are_on_time_and_keep_the_order_of_each_key() {
    cases(100, quiet(), |events| {
        run_paused(async {
            let (rig, _) = played(&events, small()).await?;
            check_tries(&rig, Some(250))
        })
    });
}

/// R4.1, R4.5: whatever the crash point, whatever append nobody heard of, and while a dependency is down in between: attempts
/// only grow, none comes early, and keys keep their order.
#[test]
fn property_04_retry_count_monotonicity_through_crashes() {
    cases(100, faulty(), |events| {
        run_paused(async {
            let (rig, _) = played(&events, small()).await?;
            check_tries(&rig, None)
        })
    });
}

/// R4.5: an owner that was given up for dead and is not changes neither the order nor what becomes of a record.
#[test]
fn a_zombie_changes_nothing_that_can_be_seen() {
    cases(100, haunted(), |events| run_paused(async { played(&events, small()).await.map(drop) }));
}
