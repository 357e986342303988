//! Timers on the embedded engines, under a clock that the tests move.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{Clock, Epoch, Lane, MessageId, Status, Timestamp};
use eshaar_presence::depths::{Depth, Depths as _};
use eshaar_schemas::{Message, StatusChanged};
use eshaar_service::TraceContext;
use eshaar_store::{Holder, StoreEngine, StoreError, TimerPlace};
use eshaar_topics::flow::{self, Envelope};
use eshaar_topics::{
    AppendError, Bounds, Consumer, Log, LogError, LogPosition, NewRecord, Outcome, Reader, Received, Record,
    Stage as _, StartAt, Topic, headers,
};
use tokio::time::{sleep, timeout};

use super::{Options, Partition, Ports, Schedule};
use crate::testing::{Engines, START, at, message};
use crate::timers::{Ours, Timers};

/// The partition of the tests.
const PARTITION: u32 = 2;
/// Long enough for a mover to have done what it was about to.
const MOMENT: Duration = Duration::from_millis(400);

fn after(ms: i64) -> Timestamp {
    START.plus_millis(ms)
}

/// A message that is due so long after [`START`].
fn due(ms: i64) -> Message {
    Message { created_at: after(ms).as_millis(), ..message(1) }
}

fn record(engines: &Engines, message: &Message, offset: u64) -> Received {
    let new = flow::accepted(message, Lane::Normal, &engines.codecs, &TraceContext::new()).unwrap();
    at(flow::scheduled(new, START), Topic::MessagesScheduled, (PARTITION, offset))
}

/// A store whose servers have a clock of their own.
struct Server {
    inner: Arc<dyn StoreEngine>,
    clock: Clock,
}

#[async_trait]
impl StoreEngine for Server {
    async fn sync(&self) -> Result<(), StoreError> {
        self.inner.sync().await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.inner.close().await
    }

    async fn time(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(Some(self.clock.now()))
    }
}

#[tokio::test]
async fn a_clock_that_is_ahead_of_the_stores_releases_nothing_early() {
    let mut engines = Engines::open().await;
    let right = Clock::manual(START);
    let server = Server { inner: Arc::clone(&engines.store.engine), clock: right.clone() };
    engines.store.engine = Arc::new(server);
    let stage = stage(&engines);
    let mut partition = opened(&stage).await;
    let (hour, now) = (due(3_600_000), due(500));
    keep(&engines, &stage, &mut partition, &[hour.clone(), now.clone()]).await;
    engines.clock.advance_millis(24 * 3_600_000);
    assert_eq!(accepts(&engines, 1).await, ids(&[&now]));
    right.advance_millis(3_600_000);
    assert_eq!(accepts(&engines, 2).await, ids(&[&now, &hour]));
}

fn on(engines: &Engines, log: Arc<dyn Log>) -> Schedule {
    let ports = Ports {
        log,
        store: engines.store.clone(),
        depths: Arc::clone(&engines.presence) as _,
        cancelled: Arc::clone(&engines.cancelled),
    };
    Schedule::new(ports, engines.codecs.clone(), engines.clock.clone(), Options { pause_ms: 20, ..Options::default() })
}

fn stage(engines: &Engines) -> Schedule {
    on(engines, Arc::new(engines.log.clone()))
}

async fn opened(stage: &Schedule) -> Partition {
    stage.open(PARTITION, &[]).await.unwrap()
}

async fn keep(engines: &Engines, stage: &Schedule, partition: &mut Partition, messages: &[Message]) {
    let batch: Vec<Received> =
        messages.iter().enumerate().map(|(offset, message)| record(engines, message, offset as u64)).collect();
    let outcomes = stage.handle(partition, &batch).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done)), "{outcomes:?}");
    assert_eq!(outcomes.len(), messages.len());
}

async fn records(engines: &Engines, topic: Topic) -> Vec<Record> {
    let mut all = Vec::new();
    for partition in 0..engines.log.partitions(topic) {
        let end = engines.log.bounds(topic, partition).await.unwrap().end;
        let mut reader = engines.log.read(topic, partition, 0).await.unwrap();
        while reader.next_offset() < end {
            reader.ready().await.unwrap();
            all.extend(reader.take(1_000));
        }
    }
    all
}

/// The ids of what was accepted, all of it to one phone, in order.
async fn accepted(engines: &Engines) -> Vec<MessageId> {
    let records = records(engines, Topic::MessagesAccepted).await;
    records.iter().map(|record| Envelope::read(&record.headers).unwrap().id).collect()
}

/// Waits until so many were accepted, and a moment more.
async fn accepts(engines: &Engines, count: usize) -> Vec<MessageId> {
    let enough = async {
        while accepted(engines).await.len() < count {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), enough).await.expect("what is due is not accepted");
    sleep(MOMENT).await;
    accepted(engines).await
}

fn ids(messages: &[&Message]) -> Vec<MessageId> {
    messages.iter().map(|message| message.id).collect()
}

/// What stands between timers and the log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// An append is written, and never answered: its process dies then.
    Unanswered,
    /// What has this id is refused.
    Refuses(MessageId),
}

struct Gated {
    log: eshaar_topics::embedded::EmbeddedLog,
    gate: Gate,
}

#[async_trait]
impl Log for Gated {
    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<LogPosition>, AppendError> {
        let gate = self.gate;
        if let Gate::Refuses(id) = gate {
            let is_refused = |record: &NewRecord| record.headers.text(headers::CE_ID) == Some(id.to_string().as_str());
            if records.iter().any(is_refused) {
                return Err(AppendError::Refused { reason: "by the test".to_owned() });
            }
        }
        let positions = self.log.append(records).await?;
        if gate == Gate::Unanswered { std::future::pending().await } else { Ok(positions) }
    }

    async fn join(&self, group: &str, topics: &[Topic], start: StartAt) -> Result<Box<dyn Consumer>, LogError> {
        self.log.join(group, topics, start).await
    }

    async fn read(&self, topic: Topic, partition: u32, offset: u64) -> Result<Box<dyn Reader>, LogError> {
        self.log.read(topic, partition, offset).await
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        self.log.bounds(topic, partition).await
    }

    async fn offset_at(&self, topic: Topic, partition: u32, at: Timestamp) -> Result<u64, LogError> {
        self.log.offset_at(topic, partition, at).await
    }

    async fn committed(&self, group: &str, topic: Topic, partition: u32) -> Result<Option<u64>, LogError> {
        self.log.committed(group, topic, partition).await
    }

    fn epoch(&self) -> Epoch {
        self.log.epoch()
    }

    fn partitions(&self, topic: Topic) -> u32 {
        self.log.partitions(topic)
    }

    async fn ping(&self) -> Result<(), LogError> {
        self.log.ping().await
    }
}

fn gated(engines: &Engines, gate: Gate) -> Arc<Gated> {
    Arc::new(Gated { log: engines.log.clone(), gate })
}

#[tokio::test]
async fn messages_are_accepted_in_the_order_they_are_due_and_none_before_its_time() {
    let engines = Engines::open().await;
    let stage = stage(&engines);
    let mut partition = opened(&stage).await;
    let (first, second, third) = (due(60_000), due(60_001), due(3_600_000));
    keep(&engines, &stage, &mut partition, &[third.clone(), second.clone(), first.clone()]).await;
    engines.clock.advance_millis(59_999);
    sleep(MOMENT).await;
    assert_eq!(accepted(&engines).await, []);
    engines.clock.advance_millis(1);
    assert_eq!(accepts(&engines, 1).await, ids(&[&first]));
    engines.clock.advance_millis(1);
    assert_eq!(accepts(&engines, 2).await, ids(&[&first, &second]));
    engines.clock.advance_millis(3_600_000);
    assert_eq!(accepts(&engines, 3).await, ids(&[&first, &second, &third]));
}

#[tokio::test]
async fn a_message_is_accepted_as_if_it_were_sent_then_and_lives_as_long_as_it_was_given() {
    let engines = Engines::open().await;
    let stage = stage(&engines);
    let mut partition = opened(&stage).await;
    let expires_at = Some(after(70_000).as_millis());
    let waiting = Message { expires_at, reference: Some("r".to_owned()), ..due(60_000) };
    keep(&engines, &stage, &mut partition, std::slice::from_ref(&waiting)).await;
    engines.clock.advance_millis(60_007);
    accepts(&engines, 1).await;
    let record = &records(&engines, Topic::MessagesAccepted).await[0];
    let now = after(60_007);
    assert_eq!((record.timestamp, &record.key[..]), (now, waiting.recipient.as_bytes()));
    let sent: Message = engines.codecs.decode(&record.value).unwrap();
    assert_eq!(sent, Message { created_at: now.as_millis(), ..waiting.clone() });
    let envelope = Envelope::read(&record.headers).unwrap();
    assert_eq!((envelope.id, envelope.lane), (waiting.id, Lane::Normal));
    assert_eq!(envelope.expires_at.map(Timestamp::as_millis), expires_at);
    assert_eq!(record.headers.text(headers::CE_TIME), Some(now.to_string().as_str()));
}

#[tokio::test]
async fn what_is_due_already_goes_at_once_also_where_later_ones_went_before() {
    let engines = Engines::open().await;
    let stage = stage(&engines);
    let mut partition = opened(&stage).await;
    engines.clock.advance_millis(10_000);
    let (later, earlier) = (due(9_000), due(5_000));
    keep(&engines, &stage, &mut partition, std::slice::from_ref(&later)).await;
    accepts(&engines, 1).await;
    keep(&engines, &stage, &mut partition, std::slice::from_ref(&earlier)).await;
    // The later one is not accepted again though the mark was moved back before it.
    assert_eq!(accepts(&engines, 2).await, ids(&[&later, &earlier]));
    // Nor is it by the next owner.
    drop(partition);
    let _partition = opened(&stage).await;
    sleep(MOMENT).await;
    assert_eq!(accepted(&engines).await.len(), 2);
}

#[tokio::test]
async fn one_that_is_not_due_by_this_clock_but_stands_before_the_mark_is_accepted_at_its_time() {
    let engines = Engines::open().await;
    // Whoever had it before had a clock ahead of ours.
    let before = Holder::new();
    engines.store.timers.take(PARTITION, before).await.unwrap();
    assert!(engines.store.timers.mark(PARTITION, before, TimerPlace::after(after(5_000))).await.unwrap());
    let stage = stage(&engines);
    let mut partition = opened(&stage).await;
    let late = due(4_000);
    keep(&engines, &stage, &mut partition, std::slice::from_ref(&late)).await;
    sleep(MOMENT).await;
    assert_eq!(accepted(&engines).await, []);
    engines.clock.advance_millis(4_000);
    assert_eq!(accepts(&engines, 1).await, ids(&[&late]));
}

#[tokio::test]
async fn a_crash_between_the_append_and_the_mark_sends_the_same_message_again_under_its_id() {
    let engines = Engines::open().await;
    let gated = gated(&engines, Gate::Unanswered);
    let (dying, message) = (on(&engines, gated), due(60_000));
    let mut partition = opened(&dying).await;
    keep(&engines, &dying, &mut partition, std::slice::from_ref(&message)).await;
    engines.clock.advance_millis(60_000);
    assert_eq!(accepts(&engines, 1).await, [message.id]);
    drop(partition);

    // Its record is taken again, too: it was not committed.
    let next = stage(&engines);
    let mut partition = opened(&next).await;
    keep(&engines, &next, &mut partition, std::slice::from_ref(&message)).await;
    let accepted = accepts(&engines, 2).await;
    assert!(accepted.iter().all(|id| *id == message.id), "{accepted:?}");
    assert!(accepted.len() <= 3, "{accepted:?}");

    // Route drops what comes again, and archive keeps the first.
    let route = crate::route::Ports {
        log: Arc::new(engines.log.clone()),
        store: engines.store.clone(),
        presence: Arc::clone(&engines.presence) as _,
        cancelled: Arc::clone(&engines.cancelled),
    };
    let route =
        crate::Route::new(route, engines.codecs.clone(), engines.clock.clone(), crate::route::Options::default());
    let records = records(&engines, Topic::MessagesAccepted).await;
    let phone = message.recipient.parse().unwrap();
    for (offset, record) in records.iter().enumerate() {
        let timestamp = engines.clock.now();
        let Record { key, value, headers, .. } = record.clone();
        let record = NewRecord { topic: Topic::LaneNormal, partition: Some(0), key, value, headers, timestamp };
        engines.log.append(vec![record.clone()]).await.unwrap();
        let next = offset as u64;
        let mut of_route = route.open(0, &[(Topic::LaneNormal, next)]).await.unwrap();
        assert_eq!(route.handle(&mut of_route, &[at(record, Topic::LaneNormal, (0, next))]).await.len(), 1);
        // Also much later, and by another owner, who has not seen the first.
        engines.clock.advance_millis(300_000);
    }
    let page = engines.store.streams.read(phone, eshaar_model::Cursor::start(Epoch(0)), 10).await.unwrap();
    assert_eq!(page.rows.iter().map(|row| row.id).collect::<Vec<_>>(), [message.id]);
}

#[tokio::test]
async fn who_takes_a_partition_over_goes_on_and_who_had_it_stops() {
    let engines = Engines::open().await;
    let (one, other) = (stage(&engines), stage(&engines));
    let mut of_one = opened(&one).await;
    let early = due(60_000);
    keep(&engines, &one, &mut of_one, std::slice::from_ref(&early)).await;
    let mut of_other = opened(&other).await;

    // What is due soon may be passed over by the other at this moment: it is not taken in any more.
    let soon = record(&engines, &due(61_000), 1);
    engines.clock.advance_millis(55_000);
    let outcomes = one.handle(&mut of_one, &[soon]).await;
    assert!(matches!(outcomes[..], [Outcome::Pause { .. }]), "{outcomes:?}");
    // Nor anything else from then on.
    let outcomes = one.handle(&mut of_one, &[record(&engines, &due(3_600_000), 2)]).await;
    assert!(matches!(outcomes[..], [Outcome::Pause { .. }]), "{outcomes:?}");

    let late = due(62_000);
    keep(&engines, &other, &mut of_other, std::slice::from_ref(&late)).await;
    engines.clock.advance_millis(5_000);
    assert_eq!(accepts(&engines, 1).await, [early.id]);
    engines.clock.advance_millis(2_000);
    let accepted = accepts(&engines, 2).await;
    assert_eq!(accepted.last(), Some(&late.id));
    assert_eq!(accepted.iter().filter(|id| **id == early.id).count(), 1, "both have moved it on");
}

#[tokio::test]
async fn what_waits_in_partitions_that_are_no_more_goes_once_by_the_owner_of_their_number_modulo_those_there_are() {
    let engines = Engines::open().await;
    let partitions = engines.log.partitions(Topic::MessagesScheduled);
    // As a log with three times as many had it. The timers of the last belong to another owner.
    let (inherited, also, another) = (PARTITION + partitions, PARTITION + 2 * partitions, PARTITION + 1 + partitions);
    let messages = [due(1_000), due(1_001), due(1_002)];
    for (partition, message) in [inherited, also, another].into_iter().zip(&messages) {
        let before =
            Timers::take(Arc::clone(&engines.store.timers), partition, engines.clock.clone(), metrics::Gauge::noop())
                .await
                .unwrap();
        let written = before.put(vec![super::timer(message, &record(&engines, message, 0))]).await.unwrap();
        assert_eq!(written, Ours::Yes);
    }
    let stage = stage(&engines);
    let mut partition = opened(&stage).await;
    let own = due(1_003);
    keep(&engines, &stage, &mut partition, std::slice::from_ref(&own)).await;
    engines.clock.advance_millis(2_000);
    let mut sent = accepts(&engines, 3).await;
    sent.sort_unstable();
    let mut expected = ids(&[&messages[0], &messages[1], &own]);
    expected.sort_unstable();
    assert_eq!(sent, expected);
    // The next owner finds nothing of it left.
    drop(partition);
    let _partition = opened(&stage).await;
    let _next = stage.open(PARTITION + 1, &[]).await.unwrap();
    assert_eq!(accepts(&engines, 4).await.last(), Some(&messages[2].id));
}

#[tokio::test]
async fn what_was_taken_back_is_not_accepted() {
    let engines = Engines::open().await;
    let stage = stage(&engines);
    let mut partition = opened(&stage).await;
    let (one, cancelled, other) = (due(1_000), due(1_001), due(1_002));
    keep(&engines, &stage, &mut partition, &[one.clone(), cancelled.clone(), other.clone()]).await;
    engines.cancelled.enter(&cancelled.sender, cancelled.id);
    engines.clock.advance_millis(2_000);
    assert_eq!(accepts(&engines, 2).await, ids(&[&one, &other]));
    let mark = engines.store.timers.take(PARTITION, Holder::new()).await.unwrap();
    assert_eq!(engines.store.timers.count(PARTITION, mark).await.unwrap(), 0);
}

#[tokio::test]
async fn many_that_are_due_at_once_go_as_there_is_room_and_each_once() {
    let engines = Engines::open().await;
    let depths = Arc::clone(&engines.presence);
    let full = |bulk| [Depth { stage: "route".to_owned(), partition: 0, interactive: 0, bulk }];
    depths.publish(&full(19_000)).await.unwrap();
    let stage = stage(&engines);
    let mut partition = opened(&stage).await;
    let messages: Vec<Message> = (0..3_000).map(|_| due(1_000)).collect();
    for messages in messages.chunks(100) {
        keep(&engines, &stage, &mut partition, messages).await;
    }
    engines.clock.advance_millis(1_000);
    // Within the time in which what was let in may not be told yet, there is room for so many.
    assert_eq!(accepts(&engines, 1_000).await.len(), 1_000);
    depths.publish(&full(0)).await.unwrap();
    let mut accepted = accepts(&engines, 3_000).await;
    let mut expected: Vec<MessageId> = messages.iter().map(|message| message.id).collect();
    accepted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(accepted, expected);
}

#[tokio::test]
async fn what_comes_while_others_are_moved_on_is_not_passed_over() {
    let engines = Engines::open().await;
    let stage = stage(&engines);
    let mut partition = opened(&stage).await;
    engines.clock.advance_millis(100_000);
    // All of it is due, in no order, while it is written.
    let messages: Vec<Message> = (0..2_000).map(|number| due(number * 7_919 % 100_000)).collect();
    for messages in messages.chunks(20) {
        keep(&engines, &stage, &mut partition, messages).await;
    }
    let mut accepted = accepts(&engines, messages.len()).await;
    accepted.sort_unstable();
    accepted.dedup();
    assert_eq!(accepted.len(), messages.len());
}

#[tokio::test]
async fn a_message_that_the_log_refuses_has_failed_and_the_others_go() {
    let engines = Engines::open().await;
    let (one, refused, other) = (due(1_000), due(1_001), due(1_002));
    let stage = on(&engines, gated(&engines, Gate::Refuses(refused.id)));
    let mut partition = opened(&stage).await;
    keep(&engines, &stage, &mut partition, &[one.clone(), refused.clone(), other.clone()]).await;
    engines.clock.advance_millis(2_000);
    assert_eq!(accepts(&engines, 2).await, ids(&[&one, &other]));
    let statuses = records(&engines, Topic::MessageStatus).await;
    let change: StatusChanged = engines.codecs.decode(&statuses[0].value).unwrap();
    assert_eq!((statuses.len(), change.id, change.status), (1, refused.id, Status::Failed));
    assert_eq!(change.reason.as_deref(), Some("append_refused"));
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_dead_and_a_store_that_is_silent_holds_all() {
    let engines = Engines::open().await;
    let stage = stage(&engines);
    let mut partition = opened(&stage).await;
    let good = record(&engines, &due(1_000), 1);
    let wrong = Received { value: Bytes::from_static(b"nonsense"), ..good.clone() };
    let outcomes = stage.handle(&mut partition, &[wrong, good.clone()]).await;
    assert!(matches!(outcomes[..], [Outcome::Dead { code: "undecodable", .. }, Outcome::Done]), "{outcomes:?}");
    engines.store.engine.close().await.unwrap();
    let outcomes = stage.handle(&mut partition, &[good]).await;
    assert!(matches!(outcomes[..], [Outcome::Pause { .. }]), "{outcomes:?}");
    assert!(stage.open(PARTITION, &[]).await.is_err());
}
