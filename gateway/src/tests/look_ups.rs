//! Receipts of messages that a session does not know: what they cost others, and that none is lost.

use std::sync::atomic::Ordering;

use eshaar_model::{Status, StatusSteps};
use eshaar_store::{MessageRow, StoredMessage};

use super::*;

const OTHER: &str = "+966501234568";

/// Messages that the phone got in an earlier session, as the history has them.
fn earlier(world: &World, count: usize) -> Vec<MessageId> {
    let now = world.clock.now();
    let mut rows = world.messages.rows.lock();
    (0..count)
        .map(|_| {
            let id = MessageId::new(now);
            let row = MessageRow {
                id,
                message_type: MessageType::OneWay,
                conversation: None,
                sender: "acme".parse().unwrap(),
                recipient: phone().into(),
                created_at: now,
                expires_at: None,
                accepted: (0, Some(0)),
                may_repeat: false,
                value: bytes::Bytes::new(),
            };
            let mut steps = StatusSteps::default();
            steps.reach(Status::Delivered, now);
            rows.insert(id, StoredMessage { row, steps, failure_reason: None });
            id
        })
        .collect()
}

async fn read_all(client: &mut Client, ids: &[MessageId]) {
    for ids in ids.chunks(256) {
        client.send(json!({"op": "read", "ids": ids})).await;
    }
}

/// No look-up is answered from now on.
fn stop_store(world: &World) {
    world.messages.gate.forget_permits(usize::MAX);
}

async fn other_phone(world: &World) -> Client {
    let mut client = world.connect(OTHER).await;
    client.send(json!({"op": "hello"})).await;
    while client.next().await["op"] != "caught_up" {}
    client
}

fn reads(count: usize, ids: &[MessageId]) -> Vec<(MessageId, String)> {
    ids[..count].iter().map(|id| (*id, "read".to_owned())).collect()
}

#[tokio::test(start_paused = true)]
async fn statuses_of_others_do_not_wait_for_a_store_that_does_not_answer() {
    let mut world = World::new().await;
    stop_store(&world);
    let mut reader = other_phone(&world).await;
    let unknown: Vec<_> = (0..2_560).map(|_| MessageId::new(world.clock.now())).collect();
    for ids in unknown.chunks(256).take(4) {
        reader.send(json!({"op": "read", "ids": ids})).await;
    }
    let mut client = world.phone(json!({"op": "hello"})).await;
    for _ in 0..3 {
        let sent = world.deliver(Lane::Normal, "x").await;
        assert_eq!(client.messages(1).await, [sent.id]);
        client.send(json!({"op": "read", "ids": [sent.id]})).await;
        let statuses = world.statuses().await;
        let expected = [(sent.id, "delivered".to_owned()), (sent.id, "read".to_owned())];
        assert!(statuses.ends_with(&expected), "{statuses:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_that_the_store_does_not_take_holds_no_status_up() {
    let mut world = World::new().await;
    world.streams.ack_gate.forget_permits(usize::MAX);
    let mut client = world.phone(json!({"op": "hello"})).await;
    for count in 1..4 {
        let sent = world.deliver(Lane::Normal, "x").await;
        client.messages(1).await;
        client.send(json!({"op": "ack", "ids": [sent.id]})).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(world.log.of(Topic::MessageStatus).len(), count);
    }
    let acked = world.shared.receipts.acked(&*world.streams, phone()).await.unwrap().unwrap();
    assert_eq!(acked.offset(Lane::Normal), Some(6), "it is known before it is written");
    world.streams.ack_gate.add_permits(10);
    assert_eq!(world.acked().await.unwrap().offset(Lane::Normal), Some(6));
}

#[tokio::test(start_paused = true)]
async fn a_phone_that_reads_20_000_old_messages_has_them_all_recorded_by_few_look_ups() {
    let world = World::new().await;
    let ids = earlier(&world, 20_000);
    let mut client = world.phone(json!({"op": "hello"})).await;
    let begun = tokio::time::Instant::now();
    read_all(&mut client, &ids).await;
    client.send(json!({"op": "ping"})).await;
    client.expect("pong").await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    world.shared.look_ups.flushed().await;
    let mut statuses = world.statuses().await;
    statuses.sort();
    let mut expected = reads(ids.len(), &ids);
    expected.sort();
    assert_eq!(statuses, expected);
    assert!(world.messages.asked.lock().len() < 500, "{:?}", world.messages.asked.lock());
    assert_eq!(world.gateway.sessions(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_phone_that_reads_little_does_not_wait_for_all_that_another_reads() {
    let world = World::new().await;
    stop_store(&world);
    let ids = earlier(&world, 1_100);
    let (flood, few) = ids.split_at(1_024);
    let mut client = world.phone(json!({"op": "hello"})).await;
    read_all(&mut client, flood).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut second = world.phone(json!({"op": "hello"})).await;
    second.send(json!({"op": "read", "ids": few})).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Two look-ups were under way; the next two have as much of one session as of the other.
    world.messages.gate.add_permits(4);
    let statuses = world.statuses().await;
    let of_second = statuses.iter().filter(|(id, _)| few.contains(id)).count();
    assert_eq!((of_second, statuses.len()), (few.len(), 1_000));
}

#[tokio::test(start_paused = true)]
async fn while_the_store_does_not_answer_a_session_has_its_share_and_is_told_when_it_asks_for_more() {
    let mut world = World::new().await;
    stop_store(&world);
    let ids = earlier(&world, 1_280);
    let mut client = world.phone(json!({"op": "hello"})).await;
    read_all(&mut client, &ids[..1_024]).await;
    client.send(json!({"op": "read", "ids": &ids[1_024..]})).await;
    let sent = world.deliver(Lane::Normal, "it still receives").await;
    assert_eq!(client.messages(1).await, [sent.id]);
    let error = client.expect("error").await;
    assert_eq!((&error["code"], &error["temporary"]), (&json!("too_many_reads"), &json!(true)));
    client.send(json!({"op": "ack", "ids": [sent.id]})).await;
    assert_eq!(world.statuses().await, [(sent.id, "delivered".to_owned())]);
    // The store answers again: what was taken is recorded, and the rest is taken now.
    world.messages.gate.add_permits(100);
    world.shared.look_ups.flushed().await;
    client.send(json!({"op": "read", "ids": &ids[1_024..]})).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.statuses().await.len(), 1 + ids.len());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_asked_again_and_no_receipt_is_lost() {
    let world = World::new().await;
    let ids = earlier(&world, 300);
    let mut client = world.phone(json!({"op": "hello"})).await;
    world.messages.broken.store(true, Ordering::Relaxed);
    read_all(&mut client, &ids).await;
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert!(world.statuses().await.is_empty());
    world.messages.broken.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.statuses().await.len(), 300);
}

#[tokio::test(start_paused = true)]
async fn a_receipt_waits_a_minute_for_a_history_that_is_behind() {
    let world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    let ids = earlier(&world, 1);
    let rows = std::mem::take(&mut *world.messages.rows.lock());
    client.send(json!({"op": "read", "ids": &ids})).await;
    tokio::time::sleep(Duration::from_secs(40)).await;
    *world.messages.rows.lock() = rows;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(world.statuses().await, reads(1, &ids));
    // One that is too old to come is looked up once.
    let old = MessageId::new(world.clock.now().plus_millis(-30 * 3600 * 1000));
    let asked = world.messages.asked.lock().len();
    client.send(json!({"op": "read", "ids": [old]})).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(world.messages.asked.lock().len(), asked + 1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_looks_up_what_clients_read_before_it_ends() {
    let world = World::new().await;
    stop_store(&world);
    let ids = earlier(&world, 600);
    let mut client = world.phone(json!({"op": "hello"})).await;
    read_all(&mut client, &ids).await;
    client.send(json!({"op": "ping"})).await;
    client.expect("pong").await;
    let gateway = world.gateway.clone();
    let drained = tokio::spawn(async move { gateway.drain(Duration::from_secs(20)).await });
    client.bye().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.messages.gate.add_permits(100);
    drained.await.unwrap();
    assert_eq!(world.log.of(Topic::MessageStatus).len(), 600);
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_in_time_where_the_store_does_not_answer() {
    let world = World::new().await;
    stop_store(&world);
    world.streams.ack_gate.forget_permits(usize::MAX);
    let ids = earlier(&world, 10);
    let mut client = world.phone(json!({"op": "hello"})).await;
    read_all(&mut client, &ids).await;
    client.send(json!({"op": "ping"})).await;
    client.expect("pong").await;
    let begun = tokio::time::Instant::now();
    let gateway = world.gateway.clone();
    let drained = tokio::spawn(async move { gateway.drain(Duration::from_secs(8)).await });
    client.bye().await;
    drained.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn a_session_keeps_to_its_rate_after_a_pause_too() {
    let world = World::with(Options { look_ups_per_s: 10, ..Options::default() }).await;
    let ids = earlier(&world, 768);
    let mut client = world.phone(json!({"op": "hello"})).await;
    read_all(&mut client, &ids).await;
    client.send(json!({"op": "ping"})).await;
    // The first frame is what it may begin at once; the others are refused after a pause.
    for _ in 0..2 {
        assert_eq!(client.expect("error").await["code"], "too_many_reads");
    }
    client.expect("pong").await;
    assert_eq!(*world.messages.asked.lock(), [250, 6]);
    // After 26 s it has earned one more frame.
    tokio::time::sleep(Duration::from_secs(30)).await;
    read_all(&mut client, &ids[256..]).await;
    client.send(json!({"op": "ping"})).await;
    assert_eq!(client.expect("error").await["code"], "too_many_reads");
    assert_eq!(world.statuses().await.len(), 512);
}

#[tokio::test(start_paused = true)]
async fn look_ups_of_all_sessions_together_are_bounded() {
    let world = World::with(Options { look_ups: 600, ..Options::default() }).await;
    stop_store(&world);
    let ids = earlier(&world, 600);
    let (mine, others) = ids.split_at(400);
    let mut client = world.phone(json!({"op": "hello"})).await;
    read_all(&mut client, mine).await;
    client.nothing_before_pong().await;
    let mut second = world.phone(json!({"op": "hello"})).await;
    read_all(&mut second, others).await;
    second.nothing_before_pong().await;
    read_all(&mut second, &mine[..1]).await;
    second.send(json!({"op": "ping"})).await;
    assert_eq!(second.expect("error").await["code"], "too_many_reads");
    assert_eq!(world.shared.look_ups.pending(), 600);
}
