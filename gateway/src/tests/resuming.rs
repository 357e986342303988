//! Beginning a stream: resuming by cursor, gaps, receipts.

use std::sync::atomic::Ordering;

use super::*;

/// Says hello, and returns the frames up to `caught_up`, without it.
async fn hello(world: &World, hello: Value) -> Vec<Value> {
    let mut client = world.connect("+966501234567").await;
    client.send(hello).await;
    client.expect("welcome").await;
    let mut frames = vec![];
    loop {
        let frame = client.next().await;
        if frame["op"] == "caught_up" {
            return frames;
        }
        frames.push(frame);
    }
}

fn ids_of(frames: &[Value]) -> Vec<MessageId> {
    frames.iter().map(|frame| frame["id"].as_str().unwrap_or_default().parse().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_gives_its_cursor_back_gets_what_comes_behind_it() {
    let mut world = World::new().await;
    let mut sent = vec![];
    for number in 0..10 {
        sent.push(world.append(Lane::ALL[number % 3], "x").await);
    }
    let first = hello(&world, json!({"op": "hello"})).await;
    let rest = hello(&world, json!({"op": "hello", "after": first[6]["cursor"]})).await;
    assert_eq!(ids_of(&rest), ids(&sent[7..]));
}

#[tokio::test(start_paused = true)]
async fn a_cursor_is_a_receipt_for_everything_before_it_but_what_expired() {
    let mut world = World::new().await;
    let expires_at = Some(world.clock.now().as_millis() + 100);
    let mut sent = vec![];
    for number in 0..150 {
        let message = world.message("x");
        let message = if number == 3 { Message { expires_at, ..message } } else { message };
        sent.push(world.append_message(Lane::Normal, message).await);
    }
    world.clock.advance_millis(1_000);
    let after = Cursor { epoch: EPOCH, offsets: [None, Some(sent[119].position.offset), None, None] };
    let rest = hello(&world, json!({"op": "hello", "after": after})).await;
    assert_eq!(ids_of(&rest), ids(&sent[120..]));
    let mut expected = ids(&sent[..120]);
    expected.remove(3);
    let statuses = world.statuses().await;
    assert_eq!(statuses.iter().map(|(id, _)| *id).collect::<Vec<_>>(), expected);
    assert!(statuses.iter().all(|(_, status)| status == "delivered"));
    assert_eq!(world.acked().await, Some(after));
    hello(&world, json!({"op": "hello", "after": after})).await;
    assert_eq!(world.statuses().await.len(), 119, "a receipt that is repeated changes nothing");
}

#[tokio::test(start_paused = true)]
async fn without_a_cursor_delivery_starts_behind_what_was_acknowledged_even_a_moment_ago() {
    let mut world = World::new().await;
    let sent = [world.append(Lane::Normal, "a").await, world.append(Lane::Normal, "b").await];
    let mut client = world.connect("+966501234567").await;
    client.send(json!({"op": "hello"})).await;
    client.expect("welcome").await;
    client.messages(2).await;
    client.expect("caught_up").await;
    client.send(json!({"op": "ack", "ids": [sent[0].id]})).await;
    client.send(json!({"op": "ping"})).await;
    client.expect("pong").await;
    assert!(world.streams.acked.lock().is_empty(), "it is not written yet");
    assert_eq!(ids_of(&hello(&world, json!({"op": "hello"})).await), [sent[1].id]);
}

#[tokio::test(start_paused = true)]
async fn from_start_is_everything_and_from_head_only_what_is_new() {
    let mut world = World::new().await;
    let sent = [world.append(Lane::Normal, "a").await, world.append(Lane::High, "b").await];
    let started = hello(&world, json!({"op": "hello", "from": "start"})).await;
    assert_eq!(ids_of(&started), ids(&sent));
    let mut client = world.phone(json!({"op": "hello", "from": "head"})).await;
    let new = world.deliver(Lane::Normal, "c").await;
    let frame = client.expect("message").await;
    assert_eq!(frame["id"], new.id.to_string());
    client.send(json!({"op": "ack", "cursor": frame["cursor"]})).await;
    assert_eq!(world.statuses().await, [(new.id, "delivered".to_owned())]);
    assert_eq!(world.acked().await, None, "what waits before the head is not acknowledged with it");
}

#[tokio::test(start_paused = true)]
async fn from_head_with_nothing_waiting_keeps_the_phones_place() {
    let mut world = World::new().await;
    let mut client = world.phone(json!({"op": "hello", "from": "head"})).await;
    let new = world.deliver(Lane::Normal, "a").await;
    client.messages(1).await;
    client.send(json!({"op": "ack", "ids": [new.id]})).await;
    assert_eq!(world.acked().await.unwrap().offset(Lane::Normal), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_cursor_that_does_not_fit_is_answered_with_a_gap_and_is_no_receipt() {
    let mut world = World::new().await;
    let mut sent = vec![];
    for _ in 0..3 {
        sent.push(world.append(Lane::Normal, "x").await);
    }
    world.streams.floors.lock()[Lane::Normal.index()] = 5;
    let cursor = |epoch: u32, normal| Cursor { epoch: eshaar_model::Epoch(epoch), offsets: [None, normal, None, None] };
    for (after, reason) in [
        (cursor(0, Some(2)), "other_epoch"),
        (cursor(9, None), "other_epoch"),
        (cursor(1, Some(7)), "past_head"),
        (cursor(1, Some(3)), "too_old"),
        (cursor(1, None), "too_old"),
    ] {
        let frames = hello(&world, json!({"op": "hello", "after": after})).await;
        assert_eq!(frames[0], json!({"op": "gap", "reason": reason, "oldest": "AQAAAAAA"}), "{after}");
        assert_eq!(ids_of(&frames[1..]), ids(&sent), "everything kept follows");
    }
    assert!(world.statuses().await.is_empty());
    assert_eq!(world.acked().await, None);
    let oldest = hello(&world, json!({"op": "hello", "after": "AQAAAAAA"})).await;
    assert_eq!(ids_of(&oldest), ids(&sent), "the cursor that a gap names fits");
    let fits = hello(&world, json!({"op": "hello", "after": cursor(1, Some(4))})).await;
    assert_eq!(ids_of(&fits), [sent[2].id]);
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_is_recent_proves_that_the_cursor_is() {
    let mut world = World::new().await;
    world.append(Lane::Normal, "x").await;
    world.append(Lane::High, "x").await;
    *world.streams.floors.lock() = [0, 0, 50, 0];
    let after = Cursor { epoch: EPOCH, offsets: [Some(0), Some(0), None, None] };
    assert!(hello(&world, json!({"op": "hello", "after": after})).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_while_the_stream_is_read_is_sent_once() {
    let mut world = World::new().await;
    for round in 0..50 {
        let mut waiting = vec![];
        for _ in 0..round {
            waiting.push(world.append(Lane::Normal, "waits").await);
        }
        let mut client = world.connect("+966501234567").await;
        client.send(json!({"op": "hello"})).await;
        // Turns of the scheduler: the hint meets every state of the beginning session.
        for _ in 0..round % 12 {
            tokio::task::yield_now().await;
        }
        waiting.push(world.deliver(Lane::Normal, "late").await);
        let (mut got, mut caught_up) = (vec![], false);
        while got.len() < waiting.len() || !caught_up {
            let frame = client.next().await;
            caught_up |= frame["op"] == "caught_up";
            got.extend((frame["op"] == "message").then(|| frame["id"].as_str().unwrap().parse::<MessageId>().unwrap()));
        }
        assert_eq!(got, ids(&waiting), "round {round}");
        client.send(json!({"op": "ack", "ids": got})).await;
        client.nothing_before_pong().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_ends_the_session_with_a_reason_to_come_back() {
    let world = World::new().await;
    world.streams.broken.store(true, Ordering::Relaxed);
    let mut client = world.connect("+966501234567").await;
    client.send(json!({"op": "hello"})).await;
    assert_eq!(client.bye().await.0, Close::InternalError);
}
