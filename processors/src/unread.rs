//! Records that retention deletes before a stage reads them, on the embedded log, whose retention follows the tests' clock.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use eshaar_model::{Cursor, Epoch, Lane, MessageId, Status};
use eshaar_schemas::{Message, StatusChanged};
use eshaar_service::TraceContext;
use eshaar_topics::flow;
use eshaar_topics::{Log as _, Topic};
use tokio_util::sync::CancellationToken;

use super::tests::deps;
use super::{Options, StageName, run};
use crate::testing::{Engines, START, message};

const PHONES: u32 = 5;
const DAY_MS: i64 = 24 * 3_600_000;

async fn send(engines: &Engines, messages: &[Message]) {
    let record = |message| flow::accepted(message, Lane::Normal, &engines.codecs, &TraceContext::new()).unwrap();
    engines.log.append(messages.iter().map(record).collect()).await.unwrap();
}

fn messages(count: u32) -> Vec<Message> {
    (0..count).map(|number| message(number % PHONES)).collect()
}

/// Runs stages until everything in `inputs` is settled by the last of them.
async fn run_until_settled(engines: &Engines, stages: &[StageName], group: &str, inputs: &[Topic]) -> super::Deps {
    let (deps, shutdown) = (deps(engines), CancellationToken::new());
    let options = Options { run: stages.to_vec(), ..Options::default() };
    let running = tokio::spawn(run(deps.clone(), options, shutdown.clone()));
    for topic in inputs {
        for partition in 0..engines.log.partitions(*topic) {
            loop {
                let end = engines.log.bounds(*topic, partition).await.unwrap().end;
                if engines.log.committed(group, *topic, partition).await.unwrap().unwrap_or(0) == end {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        }
    }
    shutdown.cancel();
    running.await.unwrap();
    deps
}

async fn prioritize(engines: &Engines) {
    let stages = [StageName::Prioritize];
    run_until_settled(engines, &stages, "prioritize", &[Topic::MessagesAccepted]).await;
}

async fn archive(engines: &Engines) {
    let inputs = [Topic::MessagesAccepted, Topic::MessageStatus];
    run_until_settled(engines, &[StageName::Archive], "archive", &inputs).await;
}

/// Runs the archive until a message has reached a step.
async fn archive_until(engines: &Engines, id: MessageId, step: Status) {
    let (deps, shutdown) = (deps(engines), CancellationToken::new());
    let options = Options { run: vec![StageName::Archive], ..Options::default() };
    let running = tokio::spawn(run(deps, options, shutdown.clone()));
    while engines.store.messages.get(id).await.unwrap().unwrap().steps.current() != Some(step) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    shutdown.cancel();
    running.await.unwrap();
}

async fn route(engines: &Engines) -> super::Deps {
    run_until_settled(engines, &[StageName::Route], "route", &[Topic::LaneNormal]).await
}

/// How often each message stands in its phone's stream.
async fn stands(engines: &Engines) -> BTreeMap<MessageId, u32> {
    let mut stands = BTreeMap::new();
    for phone in 0..PHONES {
        let phone = message(phone).recipient.parse().unwrap();
        let page = engines.store.streams.read(phone, Cursor::start(Epoch(0)), 1_000).await.unwrap();
        assert!(!page.more);
        page.rows.iter().for_each(|row| *stands.entry(row.id).or_default() += 1);
    }
    stands
}

fn once(messages: &[Message]) -> BTreeMap<MessageId, u32> {
    messages.iter().map(|message| (message.id, 1)).collect()
}

async fn records_in(engines: &Engines, topic: Topic) -> u64 {
    let mut records = 0;
    for partition in 0..engines.log.partitions(topic) {
        let bounds = engines.log.bounds(topic, partition).await.unwrap();
        records += bounds.end - bounds.start;
    }
    records
}

async fn let_go(engines: &Engines, after_ms: i64) {
    engines.clock.advance_millis(after_ms);
    engines.log.sweep().await.unwrap();
}

#[tokio::test]
async fn what_prioritize_forwards_after_a_long_outage_stays_in_its_lane_for_a_day() {
    let engines = Engines::open().await;
    let sent = messages(20);
    send(&engines, &sent).await;
    // Nothing runs for longer than a lane keeps records.
    let_go(&engines, 6 * DAY_MS).await;
    prioritize(&engines).await;
    let_go(&engines, DAY_MS - 60_000).await;
    assert_eq!(records_in(&engines, Topic::LaneNormal).await, 20);
    let deps = route(&engines).await;
    assert_eq!(stands(&engines).await, once(&sent));
    assert_eq!(deps.watchdog.check_unread(), Ok(()));
}

#[tokio::test]
async fn messages_that_a_lane_deleted_unread_are_carried_on_from_what_was_accepted() {
    let engines = Engines::open().await;
    let (arrived, mut lost) = (messages(20), messages(30));
    send(&engines, &arrived).await;
    prioritize(&engines).await;
    route(&engines).await;
    lost[7].expires_at = Some((START.as_millis()) + DAY_MS);
    send(&engines, &lost).await;
    prioritize(&engines).await;
    archive(&engines).await;
    engines.cancelled.enter(&lost[8].sender, lost[8].id);
    // The store is away for longer than a lane keeps records: route stands still.
    let_go(&engines, 2 * DAY_MS + 1).await;
    assert_eq!(records_in(&engines, Topic::LaneNormal).await, 0);

    let deps = route(&engines).await;
    let expected: Vec<Message> = arrived.iter().chain(&lost).cloned().collect();
    let mut expected = once(&expected);
    expected.remove(&lost[7].id);
    expected.remove(&lost[8].id);
    assert_eq!(stands(&engines).await, expected);
    let shown = deps.watchdog.check_unread().unwrap_err();
    assert!(shown.contains("records of lane.normal were deleted before route read them"), "{shown}");

    // The one that expired in between ends so, in the history too.
    archive_until(&engines, lost[7].id, Status::Expired).await;
    let mut expired = Vec::new();
    for partition in 0..engines.log.partitions(Topic::MessageStatus) {
        let mut reader = engines.log.read(Topic::MessageStatus, partition, 0).await.unwrap();
        let end = engines.log.bounds(Topic::MessageStatus, partition).await.unwrap().end;
        while reader.next_offset() < end {
            reader.ready().await.unwrap();
            let statuses = reader.take(100).into_iter().map(|record| engines.codecs.decode(&record.value).unwrap());
            expired.extend(statuses.map(|change: StatusChanged| (change.id, change.status)));
        }
    }
    assert_eq!(expired, [(lost[7].id, Status::Expired)]);
    // Whoever owns the partitions next finds nothing to do.
    let before = records_in(&engines, Topic::LaneNormal).await;
    let deps = route(&engines).await;
    assert_eq!((records_in(&engines, Topic::LaneNormal).await, deps.watchdog.check_unread()), (before, Ok(())));
}

#[tokio::test]
async fn messages_that_have_a_further_step_are_not_carried_on() {
    let engines = Engines::open().await;
    let lost = messages(10);
    send(&engines, &lost).await;
    prioritize(&engines).await;
    archive(&engines).await;
    let at = START;
    let delivered = eshaar_store::Step { id: lost[3].id, status: Status::Delivered, at, reason: None };
    engines.store.messages.reach(vec![delivered]).await.unwrap();
    let_go(&engines, 2 * DAY_MS + 1).await;
    route(&engines).await;
    let mut expected = once(&lost);
    expected.remove(&lost[3].id);
    assert_eq!(stands(&engines).await, expected);
}

#[tokio::test]
async fn a_stage_that_cannot_recover_says_what_it_missed_and_goes_on() {
    let engines = Engines::open().await;
    send(&engines, &messages(10)).await;
    let_go(&engines, 7 * DAY_MS + 1).await;
    let sent = messages(5);
    send(&engines, &sent).await;
    let stages = [StageName::Prioritize];
    let deps = run_until_settled(&engines, &stages, "prioritize", &[Topic::MessagesAccepted]).await;
    assert_eq!(records_in(&engines, Topic::LaneNormal).await, 5);
    let shown = deps.watchdog.check_unread().unwrap_err();
    assert!(shown.contains("records of messages.accepted were deleted before prioritize read them"), "{shown}");
}
