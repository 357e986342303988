//! Route on the embedded engines, with a store that fails and a stage that crashes where the test says.
#![allow(clippy::unwrap_used)]

mod repeats;

use std::collections::BTreeMap;

use bytes::Bytes;
use eshaar_model::{Cursor, Epoch, MessageId};
use eshaar_schemas::Message;
use eshaar_service::TraceContext;
use eshaar_store::{StreamPage, StreamStore};
use eshaar_topics::partitioner::partition_of;
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::testing::{Engines, START, message};
use crate::window::Repeat;

/// When the store fails, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    BeforeAppend,
    AfterAppend,
    Lookup,
}

/// Streams that fail when they are told to.
struct Flaky {
    inner: Arc<dyn StreamStore>,
    fault: Mutex<Option<Fault>>,
    /// Whether records are repeats, as it was asked.
    questions: Mutex<Vec<eshaar_store::Earlier>>,
}

impl Flaky {
    fn fails(&self, at: Fault) -> Result<(), StoreError> {
        let mut fault = self.fault.lock();
        if *fault == Some(at) {
            *fault = None;
            return Err(StoreError::Engine { action: "answer", reason: "told to fail".to_owned() });
        }
        Ok(())
    }
}

#[async_trait]
impl StreamStore for Flaky {
    async fn append(&self, partition: u32, rows: Vec<StreamRow>) -> Result<(), StoreError> {
        self.fails(Fault::BeforeAppend)?;
        self.inner.append(partition, rows).await?;
        self.fails(Fault::AfterAppend)
    }

    async fn read(&self, phone: Phone, after: Cursor, limit: usize) -> Result<StreamPage, StoreError> {
        self.inner.read(phone, after, limit).await
    }

    async fn before(&self, of: &[(Phone, StreamPosition)]) -> Result<Vec<Option<u64>>, StoreError> {
        self.fails(Fault::Lookup)?;
        self.inner.before(of).await
    }

    async fn stands_before(&self, of: &[eshaar_store::Earlier]) -> Result<Vec<bool>, StoreError> {
        self.fails(Fault::Lookup)?;
        self.questions.lock().extend(of);
        self.inner.stands_before(of).await
    }

    async fn head(&self, epoch: Epoch, lane: Lane, partition: u32) -> Result<Option<u64>, StoreError> {
        self.inner.head(epoch, lane, partition).await
    }

    async fn newest_epoch(&self) -> Result<Option<Epoch>, StoreError> {
        self.inner.newest_epoch().await
    }

    async fn floor(&self, epoch: Epoch, lane: Lane, partition: u32, now: Timestamp) -> Result<u64, StoreError> {
        self.inner.floor(epoch, lane, partition, now).await
    }

    async fn acked(&self, phone: Phone) -> Result<Option<Cursor>, StoreError> {
        self.inner.acked(phone).await
    }

    async fn ack(&self, acks: Vec<(Phone, Cursor)>) -> Result<(), StoreError> {
        self.inner.ack(acks).await
    }

    async fn trim(&self, now: Timestamp) -> Result<usize, StoreError> {
        self.inner.trim(now).await
    }
}

/// Where the next record of each lane is read.
type Offsets = [u64; 4];

/// The stage on partition 0, driven by hand: what is settled and what is committed are numbers that a crash sets back.
struct Rig {
    engines: Engines,
    flaky: Arc<Flaky>,
    route: Route,
    state: Partition,
    settled: Offsets,
    committed: Offsets,
}

impl Rig {
    async fn open(options: Options) -> Self {
        let engines = Engines::open().await;
        let inner = Arc::clone(&engines.store.streams);
        let flaky = Arc::new(Flaky { inner, fault: Mutex::default(), questions: Mutex::default() });
        let ports = Ports {
            log: Arc::new(engines.log.clone()),
            store: Store { streams: Arc::clone(&flaky) as _, ..engines.store.clone() },
            presence: Arc::clone(&engines.presence) as _,
            cancelled: Arc::clone(&engines.cancelled),
        };
        let route = Route::new(ports, engines.codecs.clone(), engines.clock.clone(), options);
        let next: Vec<_> = route.inputs().into_iter().map(|(topic, _)| (topic, 0)).collect();
        let state = route.open(0, &next).await.unwrap();
        Self { engines, flaky, route, state, settled: [0; 4], committed: [0; 4] }
    }

    /// Puts a message into its lane, as prioritize does.
    async fn enqueue(&self, message: &Message, lane: Lane) {
        let accepted = flow::accepted(message, lane, &self.engines.codecs, &TraceContext::new()).unwrap();
        let key = Bytes::copy_from_slice(message.recipient.as_bytes());
        self.engines.log.append(vec![NewRecord { topic: Topic::of_lane(lane), key, ..accepted }]).await.unwrap();
    }

    async fn end(&self, topic: Topic, partition: u32) -> u64 {
        self.engines.log.bounds(topic, partition).await.unwrap().end
    }

    async fn records(&self, topic: Topic, partition: u32, from: u64, most: usize) -> Vec<Received> {
        if from == self.end(topic, partition).await {
            return Vec::new();
        }
        let mut reader = self.engines.log.read(topic, partition, from).await.unwrap();
        reader.ready().await.unwrap();
        reader.take(most).into_iter().map(Received::from).collect()
    }

    /// Handles the next records of some lanes, at most so many of each, and appends what follows; `false` when the stage had
    /// to pause.
    async fn step(&mut self, most: &Most, crash_before_hints: bool) -> bool {
        let mut batch = Vec::new();
        for (lane, most) in most {
            batch.extend(self.records(Topic::of_lane(*lane), 0, self.settled[lane.index()], *most).await);
        }
        if batch.is_empty() {
            return true;
        }
        let mut follows = Vec::new();
        for outcome in self.route.handle(&mut self.state, &batch).await {
            match outcome {
                Outcome::Forward(records) => follows.extend(records),
                Outcome::Done => {}
                Outcome::Pause { .. } => return false,
                other => panic!("{other:?}"),
            }
        }
        if crash_before_hints {
            self.crash().await;
            return true;
        }
        if !follows.is_empty() {
            self.engines.log.append(follows).await.unwrap();
        }
        for record in &batch {
            self.settled[record.position.topic.lane().unwrap().index()] += 1;
        }
        true
    }

    /// Everything in memory is lost; it begins where it was committed.
    async fn crash(&mut self) {
        self.settled = self.committed;
        let next: Vec<_> = Lane::ALL.into_iter().map(Topic::of_lane).zip(self.settled).collect();
        self.state = self.route.open(0, &next).await.unwrap();
    }

    async fn finish(&mut self) {
        let all = Lane::ALL.into_iter().map(|lane| (lane, 100)).collect();
        for lane in Lane::ALL {
            while self.settled[lane.index()] < self.end(Topic::of_lane(lane), 0).await {
                self.step(&all, false).await;
            }
        }
        self.committed = self.settled;
    }

    /// The ids of a phone's stream behind `after`, with their lane and offset.
    async fn stream(&self, phone: &str, after: Offsets) -> Vec<(Lane, u64, MessageId)> {
        let offsets = after.map(|next| next.checked_sub(1));
        let after = Cursor { epoch: self.engines.log.epoch(), offsets };
        let page = self.engines.store.streams.read(phone.parse().unwrap(), after, 1_000).await.unwrap();
        page.rows.iter().map(|row| (row.position.lane, row.position.offset, row.id)).collect()
    }

    async fn hints(&self, from: u64) -> Vec<(String, MessageHint)> {
        let records = self.records(Topic::Deliveries, 3, from, 10_000).await;
        let deliveries = records.iter().map(|record| self.engines.codecs.decode::<Delivery>(&record.value).unwrap());
        deliveries
            .filter_map(|delivery| match delivery.hint {
                Hint::Message(hint) => Some((delivery.principal, hint)),
                Hint::Status(_) => None,
            })
            .collect()
    }
}

/// Phones whose streams are of partition 0.
fn phones() -> Vec<u32> {
    (0..10_000).filter(|phone| partition_of(message(*phone).recipient.as_bytes(), 6) == 0).take(4).collect()
}

#[tokio::test]
async fn what_was_taken_back_is_not_appended_and_nobody_is_told() {
    let mut rig = Rig::open(Options::default()).await;
    let messages = [message(phones()[0]), message(phones()[0]), message(phones()[0])];
    rig.engines.connect(&messages[0].recipient).await;
    for message in &messages {
        rig.enqueue(message, Lane::Normal).await;
    }
    rig.engines.cancelled.enter(&messages[1].sender, messages[1].id);
    rig.finish().await;
    let stream = rig.stream(&messages[0].recipient, [0; 4]).await;
    assert_eq!(stream, [(Lane::Normal, 0, messages[0].id), (Lane::Normal, 2, messages[2].id)]);
    let chain: Vec<_> = rig.hints(0).await.iter().map(|(_, hint)| (hint.offset, hint.prev)).collect();
    assert_eq!(chain, [(0, Some(-1)), (2, Some(0))]);
    assert_eq!(rig.end(Topic::MessageStatus, 0).await, 0, "ingest has said it");
}

#[tokio::test]
async fn a_message_is_in_the_stream_and_its_hint_names_what_stands_before_it() {
    let mut rig = Rig::open(Options::default()).await;
    let (first, second) = (message(phones()[0]), message(phones()[0]));
    rig.engines.connect(&first.recipient).await;
    rig.enqueue(&first, Lane::High).await;
    rig.enqueue(&second, Lane::High).await;
    rig.finish().await;
    let stream = rig.stream(&first.recipient, [0; 4]).await;
    assert_eq!(stream, [(Lane::High, 0, first.id), (Lane::High, 1, second.id)]);
    let hints = rig.hints(0).await;
    let chain: Vec<_> = hints.iter().map(|(_, hint)| (hint.lane, hint.offset, hint.prev)).collect();
    assert_eq!(chain, [(0, 0, Some(-1)), (0, 1, Some(0))]);
    let told: Message = rig.engines.codecs.decode(&hints[0].1.message).unwrap();
    assert_eq!(told, first);
}

#[tokio::test]
async fn nobody_is_told_of_a_message_to_a_phone_that_is_offline() {
    let mut rig = Rig::open(Options::default()).await;
    let message = message(phones()[0]);
    rig.enqueue(&message, Lane::Low).await;
    rig.finish().await;
    assert_eq!(rig.stream(&message.recipient, [0; 4]).await.len(), 1);
    assert_eq!(rig.end(Topic::Deliveries, 3).await, 0);
}

#[tokio::test]
async fn a_message_that_expired_in_its_lane_is_not_in_the_stream() {
    let mut rig = Rig::open(Options::default()).await;
    let message = Message { expires_at: Some(START.as_millis() - 1), ..message(phones()[0]) };
    rig.enqueue(&message, Lane::Bulk).await;
    rig.finish().await;
    assert_eq!(rig.stream(&message.recipient, [0; 4]).await, []);
}

#[tokio::test]
async fn a_window_read_back_knows_what_stood_before_and_not_what_comes() {
    let mut rig = Rig::open(Options::default()).await;
    let sent = message(phones()[0]);
    rig.enqueue(&sent, Lane::Normal).await;
    rig.finish().await;
    rig.enqueue(&sent, Lane::Normal).await;
    rig.crash().await;
    let window = &rig.state.windows[Lane::Normal.index()];
    assert_eq!(
        (window.repeats(sent.id, 1, START, START), window.repeats(sent.id, 0, START, START)),
        (Repeat::Yes, Repeat::No)
    );
    assert_eq!(rig.state.windows[Lane::High.index()].repeats(sent.id, 0, START, START), Repeat::No);
}

#[tokio::test]
async fn a_store_that_fails_holds_the_partition_and_then_writes_once() {
    let mut rig = Rig::open(Options::default()).await;
    let message = message(phones()[0]);
    rig.enqueue(&message, Lane::High).await;
    for fault in [Fault::BeforeAppend, Fault::AfterAppend] {
        *rig.flaky.fault.lock() = Some(fault);
        assert!(!rig.step(&Most::from([(Lane::High, 10)]), false).await);
    }
    rig.finish().await;
    assert_eq!(rig.stream(&message.recipient, [0; 4]).await.len(), 1);
}

#[tokio::test]
async fn a_record_that_is_bound_for_no_phone_is_dead() {
    let mut rig = Rig::open(Options::default()).await;
    let accepted = flow::accepted(&message(1), Lane::High, &rig.engines.codecs, &TraceContext::new()).unwrap();
    let headers = eshaar_topics::Headers::none();
    let record = crate::testing::at(NewRecord { headers, ..accepted }, Topic::LaneHigh, (0, 0));
    let outcomes = rig.route.handle(&mut rig.state, &[record]).await;
    assert!(matches!(outcomes[0], Outcome::Dead { code: "headers", .. }));
}

/// A message of a case: to which phone, in which lane, how long before the present its id was minted, and whether it was
/// accepted then or now.
#[derive(Clone, Debug)]
struct Sent {
    phone: usize,
    lane: Lane,
    age_ms: i64,
    late: bool,
}

/// At most so many records of each lane are in a batch.
type Most = BTreeMap<Lane, usize>;

#[derive(Clone, Debug)]
enum Step {
    Take(Most),
    CrashBeforeHints(Most),
    Crash,
    Commit,
    Fail(Fault),
}

fn lane() -> impl Strategy<Value = Lane> {
    prop::sample::select(Lane::ALL.to_vec())
}

/// Mostly one lane, so that much of it is repeated there.
fn busy_lane() -> impl Strategy<Value = Lane> {
    prop_oneof![3 => Just(Lane::Normal), 1 => lane()]
}

fn most() -> impl Strategy<Value = Most> {
    prop::collection::vec((busy_lane(), 1_usize..8), 1..4).prop_map(Most::from_iter)
}

fn sent() -> impl Strategy<Value = Sent> {
    let age_ms = prop_oneof![3 => 0_i64..1_000, 1 => 100_000_i64..400_000];
    (0_usize..4, busy_lane(), age_ms, any::<bool>()).prop_map(|(phone, lane, age_ms, late)| Sent {
        phone,
        lane,
        age_ms,
        late,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => most().prop_map(Step::Take),
        2 => most().prop_map(Step::CrashBeforeHints),
        1 => Just(Step::Crash),
        2 => Just(Step::Commit),
        2 => prop::sample::select(vec![Fault::BeforeAppend, Fault::AfterAppend, Fault::Lookup]).prop_map(Step::Fail),
    ]
}

/// One case: messages are put into their lanes in `order` (a message as often as it is named), the stage takes `steps`,
/// then finishes.
async fn carried(rig: &mut Rig, messages: &[Sent], order: &[usize], steps: &[Step]) -> Result<(), TestCaseError> {
    let (begun, hints_from) = (rig.settled, rig.end(Topic::Deliveries, 3).await);
    let numbers = phones();
    let made: Vec<(Lane, Message)> = messages
        .iter()
        .map(|sent| {
            let minted = START.plus_millis(-sent.age_ms);
            let created_at = if sent.late { START } else { minted }.as_millis();
            (sent.lane, Message { id: MessageId::new(minted), created_at, ..message(numbers[sent.phone]) })
        })
        .collect();
    let mut expected: BTreeMap<(String, Lane), Vec<MessageId>> = BTreeMap::new();
    for place in order {
        let (lane, message) = &made[place % made.len()];
        rig.enqueue(message, *lane).await;
        let ids = expected.entry((message.recipient.clone(), *lane)).or_default();
        if !ids.contains(&message.id) {
            ids.push(message.id);
        }
    }
    for step in steps {
        match *step {
            Step::Take(ref most) => drop(rig.step(most, false).await),
            Step::CrashBeforeHints(ref most) => drop(rig.step(most, true).await),
            Step::Crash => rig.crash().await,
            Step::Commit => rig.committed = rig.settled,
            Step::Fail(fault) => *rig.flaky.fault.lock() = Some(fault),
        }
    }
    rig.finish().await;
    let mut places: BTreeMap<(String, Lane), Vec<u64>> = BTreeMap::new();
    for ((phone, lane), ids) in &expected {
        let stream = rig.stream(phone, begun).await;
        let of_lane: Vec<_> = stream.into_iter().filter(|(of, _, _)| of == lane).collect();
        prop_assert_eq!(&of_lane.iter().map(|(_, _, id)| *id).collect::<Vec<_>>(), ids);
        places.insert((phone.clone(), *lane), of_lane.iter().map(|(_, offset, _)| *offset).collect());
    }
    for (phone, hint) in rig.hints(hints_from).await {
        let lane = Lane::from_index(hint.lane as usize).unwrap();
        let offsets = &places[&(phone, lane)];
        let place = offsets.iter().position(|offset| *offset == hint.offset as u64);
        prop_assert!(place.is_some(), "a hint of what is not in the stream");
        if let (Some(prev), Some(before)) = (hint.prev, place.unwrap().checked_sub(1)) {
            prop_assert_eq!(prev, offsets[before] as i64, "a hint that would leave a message out");
        }
    }
    Ok(())
}

/// R4.3: whatever is repeated, wherever the stage crashes and whenever the store fails, each message stands in its
/// recipient's stream once, in the order of its lane, and no hint leaves one out.
#[test]
fn every_message_is_appended_exactly_once_whatever_the_crash_point() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // A window so small that most repeats are older than it, and so little memory that most `prev` are looked up.
    let options = Options { window_ids: 2, previous_streams: 4, ..Options::default() };
    let rig = runtime.block_on(async {
        let rig = Rig::open(options).await;
        for phone in &phones()[..3] {
            rig.engines.connect(&message(*phone).recipient).await;
        }
        rig
    });
    let rig = Mutex::new(rig);
    let cases = (
        prop::collection::vec(sent(), 1..20),
        prop::collection::vec(0_usize..20, 1..50),
        prop::collection::vec(step(), 0..30),
    );
    let result = TestRunner::new(ProptestConfig::with_cases(150))
        .run(&cases, |(messages, order, steps)| runtime.block_on(carried(&mut rig.lock(), &messages, &order, &steps)));
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[tokio::test]
async fn the_history_shows_how_often_a_message_was_retried() {
    let mut rig = Rig::open(Options::default()).await;
    let message = message(phones()[0]);
    rig.enqueue(&message, Lane::Normal).await;
    let mut records = rig.records(Topic::of_lane(Lane::Normal), 0, 0, 1).await;
    let retries = async |rig: &Rig| rig.engines.store.messages.retries(message.id).await.unwrap();
    rig.route.handle(&mut rig.state, &records).await;
    assert_eq!(retries(&rig).await, 0);
    records[0].attempt = eshaar_model::Attempt::from_count(2).unwrap();
    rig.route.handle(&mut rig.state, &records).await;
    assert_eq!(retries(&rig).await, 2);
}
