//! What is said of messages whose time to live passes.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use eshaar_model::{BroadcastId, Lane, MessageType, Shown, Status};
use eshaar_service::TraceContext;
use eshaar_topics::flow::{self, Origin};
use eshaar_topics::{NewRecord, Record};
use tokio::time::{sleep, timeout};

use super::expiry::GRACE_MS;
use super::*;
use crate::testing::{Engines, START, message};

const TTL_MS: i64 = 2_000;
/// Long enough for timers to have been moved on.
const MOMENT: Duration = Duration::from_millis(600);

fn archive(engines: &Engines) -> Archive {
    let ports = Ports {
        log: Arc::new(engines.log.clone()),
        store: engines.store.clone(),
        presence: Arc::clone(&engines.presence) as _,
        cache: Arc::clone(&engines.cache) as _,
        cancelled: Arc::clone(&engines.cancelled),
    };
    Archive::new(ports, engines.codecs.clone(), engines.clock.clone(), Options::default())
}

fn expiring() -> Message {
    Message { expires_at: Some(START.plus_millis(TTL_MS).as_millis()), ..message(1) }
}

fn accepted(engines: &Engines, message: &Message) -> NewRecord {
    flow::accepted(message, Lane::Normal, &engines.codecs, &TraceContext::new()).unwrap()
}

fn status(engines: &Engines, of: &Message, status: Status, at: Timestamp) -> NewRecord {
    let change = StatusChanged {
        id: of.id,
        status,
        at: at.as_millis(),
        sender: of.sender.clone(),
        recipient: of.recipient.clone(),
        reason: None,
    };
    let key = Bytes::copy_from_slice(flow::key(of).as_bytes());
    flow::status(&change, key, &engines.codecs, Origin::default()).unwrap()
}

/// Appends a record; as it is read then.
async fn append(engines: &Engines, record: NewRecord) -> Received {
    let position = engines.log.append(vec![record]).await.unwrap()[0];
    let mut reader = engines.log.read(position.topic, position.partition, position.offset).await.unwrap();
    reader.ready().await.unwrap();
    reader.take(1).remove(0).into()
}

/// All statuses of a partition.
async fn statuses(engines: &Engines, partition: u32) -> Vec<Record> {
    let end = engines.log.bounds(Topic::MessageStatus, partition).await.unwrap().end;
    let mut reader = engines.log.read(Topic::MessageStatus, partition, 0).await.unwrap();
    let mut all = Vec::new();
    while reader.next_offset() < end {
        reader.ready().await.unwrap();
        all.extend(reader.take(100));
    }
    all
}

/// The archive of a partition, with a message in it.
struct Rig {
    engines: Engines,
    archive: Archive,
    partition: Partition,
    number: u32,
}

impl Rig {
    async fn with(message: &Message) -> Self {
        let engines = Engines::open().await;
        let record = append(&engines, accepted(&engines, message)).await;
        let number = record.position.partition;
        let archive = archive(&engines);
        let partition = archive.open(number, &[]).await.unwrap();
        let mut rig = Self { engines, archive, partition, number };
        rig.handle(record).await;
        rig
    }

    async fn handle(&mut self, record: Received) {
        let outcomes = self.archive.handle(&mut self.partition, &[record]).await;
        assert!(matches!(outcomes[..], [Outcome::Done | Outcome::Forward(_)]), "{outcomes:?}");
    }

    /// Its process dies, and another goes on at these statuses.
    async fn crash(&mut self, next: u64) {
        self.archive = archive(&self.engines);
        self.partition = self.archive.open(self.number, &[(Topic::MessageStatus, next)]).await.unwrap();
    }

    async fn event(&self) -> StatusChanged {
        let come = async {
            loop {
                if let Some(record) = statuses(&self.engines, self.number).await.pop() {
                    return record;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        let record = timeout(Duration::from_secs(10), come).await.expect("nothing is said");
        self.engines.codecs.decode(&record.value).unwrap()
    }

    /// How many statuses there are, after a moment.
    async fn count(&self) -> usize {
        sleep(MOMENT).await;
        statuses(&self.engines, self.number).await.len()
    }

    async fn shown(&self, of: &Message) -> Shown {
        let stored = self.engines.store.messages.get(of.id).await.unwrap().unwrap();
        stored.status(self.engines.clock.now())
    }
}

#[tokio::test]
async fn a_message_that_nobody_took_is_said_to_have_expired_once_and_never_early() {
    let broadcast = BroadcastId::new(START).to_string();
    let message = Message { broadcast_id: Some(broadcast.clone()), ..expiring() };
    let mut rig = Rig::with(&message).await;
    rig.engines.clock.advance_millis(TTL_MS + GRACE_MS - 1);
    assert_eq!(rig.count().await, 0);
    rig.engines.clock.advance_millis(1);
    let event = rig.event().await;
    assert_eq!((event.id, event.status, event.at), (message.id, Status::Expired, START.as_millis() + TTL_MS));
    assert_eq!((event.sender, event.recipient), (message.sender.clone(), message.recipient.clone()));
    let record = statuses(&rig.engines, rig.number).await.remove(0);
    assert_eq!(record.headers.text(headers::BROADCAST), Some(broadcast.as_str()));
    // Before the timer is done with, its process dies: the history knows the event by then.
    rig.engines
        .store
        .timers
        .take(eshaar_store::timers::EXPIRY + rig.number, eshaar_store::Holder::new())
        .await
        .unwrap();
    rig.crash(0).await;
    rig.handle(record.into()).await;
    assert_eq!(rig.count().await, 1);
    assert_eq!(rig.shown(&message).await, Status::Expired.into());
}

#[tokio::test]
async fn what_was_acknowledged_in_time_has_no_event_though_the_history_lags() {
    let message = expiring();
    let mut rig = Rig::with(&message).await;
    let delivered = status(&rig.engines, &message, Status::Delivered, START.plus_millis(TTL_MS - 1));
    let delivered = append(&rig.engines, delivered).await;
    rig.engines.clock.advance_millis(10 * TTL_MS);
    assert_eq!(rig.count().await, 1, "the event waits for the history");
    rig.handle(delivered).await;
    assert_eq!(rig.count().await, 1);
    assert_eq!(rig.shown(&message).await, Status::Delivered.into());
}

#[tokio::test]
async fn an_acknowledgement_after_the_event_stands_above_it() {
    let message = expiring();
    let mut rig = Rig::with(&message).await;
    rig.engines.clock.advance_millis(10 * TTL_MS);
    rig.event().await;
    let event = statuses(&rig.engines, rig.number).await.remove(0);
    rig.handle(event.into()).await;
    let late = status(&rig.engines, &message, Status::Delivered, rig.engines.clock.now());
    let late = append(&rig.engines, late).await;
    rig.handle(late).await;
    assert_eq!(rig.shown(&message).await, Status::Delivered.into());
}

#[tokio::test]
async fn what_was_taken_back_or_waits_for_its_time_has_no_event() {
    let message = expiring();
    let rig = Rig::with(&message).await;
    rig.engines.cancelled.enter(&message.sender, message.id);
    rig.engines.clock.advance_millis(10 * TTL_MS);
    assert_eq!(rig.count().await, 0);

    let engines = Engines::open().await;
    let waiting = flow::scheduled(accepted(&engines, &expiring()), START);
    let record = append(&engines, waiting).await;
    let (archive, number) = (archive(&engines), record.position.partition);
    let mut partition = archive.open(number, &[]).await.unwrap();
    drop(archive.handle(&mut partition, &[record]).await);
    engines.clock.advance_millis(10 * TTL_MS);
    sleep(MOMENT).await;
    assert_eq!(statuses(&engines, number).await.len(), 0);
}

#[tokio::test]
async fn a_message_without_a_time_to_live_has_no_timer_and_one_to_a_business_names_it() {
    let rig = Rig::with(&message(1)).await;
    let after = eshaar_store::TimerPlace::before(Timestamp::default());
    let number = eshaar_store::timers::EXPIRY + rig.number;
    assert_eq!(rig.engines.store.timers.count(number, after).await.unwrap(), 0);

    let reply = Message {
        r#type: MessageType::Chat,
        conversation_id: Some(ConversationId::new(START).to_string()),
        sender: "+966500000001".to_owned(),
        recipient: "acme-bank".to_owned(),
        ..expiring()
    };
    let rig = Rig::with(&reply).await;
    rig.engines.clock.advance_millis(10 * TTL_MS);
    let event = rig.event().await;
    assert_eq!((event.recipient.as_str(), event.sender.as_str()), ("acme-bank", "+966500000001"));
}
