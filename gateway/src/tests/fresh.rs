//! A process that may not know the newest cancellations sends no messages.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use eshaar_topics::{Headers, headers};

use super::*;

/// The sender cancels a message; the gateway reads it when its reader is not stalled.
async fn cancel(world: &World, id: MessageId) {
    let record = NewRecord {
        topic: Topic::Cancellations,
        partition: Some(0),
        key: Bytes::from(id.to_string()),
        value: Bytes::new(),
        headers: Headers::new([(headers::FROM, b"acme".as_slice())]),
        timestamp: world.clock.now(),
    };
    world.log.append(vec![record]).await.unwrap();
}

/// The process is stopped for 25 s, and its reader of cancellations comes later than everything else.
fn stop(world: &World) {
    world.log.stalled.store(true, Ordering::Relaxed);
    world.clock.advance_millis(25_000);
}

fn go_on(world: &World) {
    world.log.stalled.store(false, Ordering::Relaxed);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_was_stopped_sends_no_hint_of_a_message_that_was_cancelled_meanwhile() {
    let mut world = World::following().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    let (cancelled, kept) = (world.append(Lane::Normal, "a").await, world.append(Lane::Normal, "b").await);
    stop(&world);
    cancel(&world, cancelled.id).await;
    world.tell(&[&cancelled.hint, &kept.hint]).await;
    client.nothing_before_pong().await;
    let reads = world.streams.reads.load(Ordering::Relaxed);
    go_on(&world);
    assert_eq!(client.messages(1).await, [kept.id]);
    assert_eq!(world.streams.reads.load(Ordering::Relaxed), reads, "hints were kept, so no stream was read");
    let next = world.deliver(Lane::Normal, "c").await;
    assert_eq!(client.messages(1).await, [next.id]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_catches_up_waits_for_the_newest_cancellations() {
    let mut world = World::following().await;
    let (cancelled, kept) = (world.append(Lane::Normal, "a").await, world.append(Lane::Normal, "b").await);
    stop(&world);
    cancel(&world, cancelled.id).await;
    let mut client = world.connect(&phone().to_string()).await;
    client.send(json!({"op": "hello"})).await;
    client.expect("welcome").await;
    client.nothing_before_pong().await;
    go_on(&world);
    assert_eq!(client.messages(1).await, [kept.id]);
    client.expect("caught_up").await;
}

#[tokio::test(start_paused = true)]
async fn a_cursor_is_no_receipt_for_a_message_that_was_left_out_because_it_was_cancelled() {
    let mut world = World::following().await;
    let (cancelled, kept) = (world.append(Lane::Normal, "a").await, world.append(Lane::Normal, "b").await);
    let mut cursor = Cursor::start(EPOCH);
    cursor.advance(kept.position);
    stop(&world);
    cancel(&world, cancelled.id).await;
    let mut client = world.connect(&phone().to_string()).await;
    client.send(json!({"op": "hello", "after": cursor})).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(world.log.of(Topic::MessageStatus).is_empty());
    go_on(&world);
    client.expect("welcome").await;
    client.expect("caught_up").await;
    assert_eq!(world.statuses().await, [(kept.id, "delivered".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn sessions_stay_while_the_newest_cancellations_are_not_known_and_more_than_an_inbox_waits() {
    let mut world = World::following().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    // Its reader of cancellations gets nothing, though the log has something.
    world.log.stalled.store(true, Ordering::Relaxed);
    cancel(&world, MessageId::new(world.clock.now())).await;
    client.nothing_before_pong().await;
    client.nothing_before_pong().await;
    let mut sent = Vec::new();
    for _ in 0..100 {
        sent.push(world.deliver(Lane::Normal, "x").await);
    }
    for _ in 0..20 {
        client.nothing_before_pong().await;
    }
    assert_eq!(world.gateway.sessions(), 1);
    go_on(&world);
    assert_eq!(client.messages(100).await, ids(&sent));
}
