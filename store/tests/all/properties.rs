//! Correctness properties against the real store.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use eshaar_model::{Cursor, Epoch, Lane, MessageId, MessageType, Phone, Shown, Status, StreamPosition, Timestamp};
use eshaar_store::conformance::{Subject, start};
use eshaar_store::{MessageRow, Step, StreamRow};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{TestCaseResult, TestRunner};
use tokio::runtime::Runtime;

use super::cluster::Keyspace;
use super::open;

/// Runs `check` on a store in a file.
fn on_sqlite<S: Strategy>(strategy: &S, check: &impl AsyncFn(&Subject, u64, S::Value) -> TestCaseResult) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let subject = runtime.block_on(async { open(folder.path()) });
    for_all(&runtime, &subject, strategy, check);
}

/// Runs `check` on a store in the cluster.
fn on_cql<S: Strategy>(strategy: &S, check: &impl AsyncFn(&Subject, u64, S::Value) -> TestCaseResult) {
    let runtime = Runtime::new().unwrap();
    let keyspace = runtime.block_on(Keyspace::make());
    let subject = runtime.block_on(keyspace.subject(0));
    for_all(&runtime, &subject, strategy, check);
    runtime.block_on(keyspace.drop());
}

/// Runs `check` on 128 cases against one store; each case has a number of its own, to keep its keys apart.
fn for_all<S: Strategy>(
    runtime: &Runtime,
    subject: &Subject,
    strategy: &S,
    check: &impl AsyncFn(&Subject, u64, S::Value) -> TestCaseResult,
) {
    let case = std::cell::Cell::new(0);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) };
    let outcome = TestRunner::new(config).run(strategy, |value| {
        case.set(case.get() + 1);
        runtime.block_on(check(subject, case.get(), value))
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    runtime.block_on(subject.store.engine.close()).unwrap();
}

fn phone(number: u64) -> Phone {
    Phone::from_digits(966_500_000_000 + number).unwrap()
}

const fn rank(shown: Shown) -> u8 {
    match shown {
        Shown::Scheduled => 0,
        Shown::At(Status::Sent) => 1,
        Shown::At(Status::Failed | Status::Expired | Status::Cancelled) => 2,
        Shown::At(Status::Delivered) => 3,
        Shown::At(Status::Read) => 4,
    }
}

fn message(number: u64) -> MessageRow {
    MessageRow {
        id: MessageId::new(start()),
        message_type: MessageType::OneWay,
        conversation: None,
        sender: "acme".parse().unwrap(),
        recipient: phone(number).into(),
        created_at: start(),
        expires_at: None,
        accepted: (0, Some(number)),
        may_repeat: false,
        value: Bytes::new(),
    }
}

/// R9.1: events of a message in any order, late and repeated ones among them, in batches of any size, its own arrival
/// anywhere between them: the status shown only moves forward, and the earliest time of each step stands.
#[test]
fn property_03_status_progression() {
    on_sqlite(&histories(), &async |subject, case, history| status_progression(subject, case, history).await);
}

#[test]
#[ignore = "needs the real engines: ./test"]
fn property_03_status_progression_on_cql() {
    on_cql(&histories(), &async |subject, case, history| status_progression(subject, case, history).await);
}

/// Batches of events, and which of them the message itself comes before.
type History = (Vec<Vec<(Status, i64)>>, usize);

fn histories() -> impl Strategy<Value = History> {
    let event = (select(Status::ALL.to_vec()), 0..1_000_i64);
    (vec(vec(event, 1..4), 0..8), 0..8_usize)
}

async fn status_progression(subject: &Subject, case: u64, (batches, put_before): History) -> TestCaseResult {
    let messages = &subject.store.messages;
    let row = message(case);
    let mut first = HashMap::<Status, Timestamp>::from([(Status::Sent, row.created_at)]);
    let mut shown = None;
    for (number, batch) in batches.iter().enumerate() {
        if number == put_before {
            messages.put(vec![row.clone()]).await.unwrap();
        }
        let step = |(status, after_ms): &(Status, i64)| {
            let at = start().plus_millis(*after_ms);
            Step { id: row.id, status: *status, at, reason: None }
        };
        let steps: Vec<_> = batch.iter().map(step).collect();
        for step in &steps {
            let earliest = first.entry(step.status).or_insert(step.at);
            if step.status != Status::Sent {
                *earliest = step.at.min(*earliest);
            }
        }
        messages.reach(steps).await.unwrap();
        let stored = messages.get(row.id).await.unwrap();
        prop_assert_eq!(stored.is_some(), number >= put_before);
        if let Some(stored) = stored {
            let now = stored.status(start());
            prop_assert!(shown.is_none_or(|before| rank(now) >= rank(before)), "{shown:?} became {now}");
            prop_assert_eq!(stored.steps.reached().collect::<HashMap<_, _>>(), first.clone());
            shown = Some(now);
        }
    }
    Ok(())
}

/// R1.4: what waits for a phone comes in pages of any size, interrupted anywhere by a reconnect that resumes from what was
/// acknowledged, while more arrives: each row once, in the order of its lane.
#[test]
fn property_14_offline_queuing() {
    on_sqlite(&queues(), &async |subject, case, queue| offline_queuing(subject, case, queue).await);
}

#[test]
#[ignore = "needs the real engines: ./test"]
fn property_14_offline_queuing_on_cql() {
    on_cql(&queues(), &async |subject, case, queue| offline_queuing(subject, case, queue).await);
}

/// The offsets in each lane, the sizes of pages, and the lane that comes late.
type Queue = ([BTreeSet<u64>; 4], Vec<usize>, usize);

fn queues() -> impl Strategy<Value = Queue> {
    let offsets = || btree_set(0..200_u64, 0..30);
    let lanes = [offsets(), offsets(), offsets(), offsets()];
    (lanes, vec(1..12_usize, 1..6), 0..4_usize)
}

async fn offline_queuing(subject: &Subject, case: u64, (lanes, sizes, late): Queue) -> TestCaseResult {
    let streams = &subject.store.streams;
    let row = |lane: Lane, offset: u64| StreamRow {
        phone: phone(case),
        position: StreamPosition { epoch: Epoch(1), lane, offset },
        id: MessageId::new(start()),
        at: start().plus_millis((offset * 7 % 50) as i64),
        expires_at: None,
        value: Bytes::from(format!("{lane} {offset}")),
    };
    // A lane arrives when the first page was read already: as the lanes are separate, its order holds all the same.
    let (now, later): (Vec<_>, Vec<_>) = Lane::ALL
        .into_iter()
        .flat_map(|lane| lanes[lane.index()].iter().map(move |offset| (lane, *offset)))
        .partition(|(lane, _)| lane.index() != late);
    let rows = |of: &[(Lane, u64)]| of.iter().map(|(lane, offset)| row(*lane, *offset)).collect();
    streams.append(0, rows(&now)).await.unwrap();
    let mut later = Some(later);
    let mut seen = Vec::new();
    for size in sizes.iter().cycle() {
        let after = streams.acked(phone(case)).await.unwrap().unwrap_or(Cursor::start(Epoch(0)));
        let page = streams.read(phone(case), after, *size).await.unwrap();
        prop_assert!(page.rows.len() <= *size);
        let mut cursor = after;
        for row in &page.rows {
            prop_assert_eq!(&row.value, &Bytes::from(format!("{} {}", row.position.lane, row.position.offset)));
            cursor.advance(row.position);
        }
        streams.ack(vec![(phone(case), cursor)]).await.unwrap();
        seen.extend(page.rows.iter().map(|row| row.position));
        if let Some(later) = later.take() {
            streams.append(0, rows(&later)).await.unwrap();
        } else if !page.more {
            break;
        }
    }
    for lane in Lane::ALL {
        let in_lane: Vec<_> =
            seen.iter().filter(|position| position.lane == lane).map(|position| position.offset).collect();
        prop_assert_eq!(in_lane, lanes[lane.index()].iter().copied().collect::<Vec<_>>());
    }
    Ok(())
}
