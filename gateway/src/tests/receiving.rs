//! Receiving, acknowledging and reading.

use std::sync::atomic::Ordering;

use eshaar_model::{MessageType, Status, StatusSteps};
use eshaar_schemas::StatusHint;
use eshaar_store::{MessageRow, StoredMessage};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_message_is_sent_from_its_hint_without_reading_the_stream() {
    let mut world = World::new().await;
    let mut client = world.phone(json!({"op": "hello", "device": "pixel-7"})).await;
    let reads = world.streams.reads.load(Ordering::Relaxed);
    let mut message = world.message("Your card \"was\" used.\n");
    message.reference = Some("tx-81".to_owned());
    let sent = world.append_message(Lane::High, message.clone()).await;
    world.tell(&[&sent.hint]).await;
    let frame = client.expect("message").await;
    let cursor: Cursor = frame["cursor"].as_str().unwrap().parse().unwrap();
    assert_eq!(cursor.offset(Lane::High), Some(0));
    let expected = json!({
        "op": "message", "cursor": frame["cursor"], "id": sent.id.to_string(), "type": "one_way", "from": "acme",
        "to": "+966501234567", "conversation_id": null, "content": "Your card \"was\" used.\n", "media": [], "priority": "normal",
        "sent_at": Timestamp::from_millis(message.created_at).to_string(), "reference": "tx-81", "collapse_key": null,
    });
    assert_eq!(frame, expected);
    let rest = [world.deliver(Lane::High, "b").await, world.deliver(Lane::Low, "c").await];
    assert_eq!(client.messages(2).await, ids(&rest));
    assert_eq!(world.streams.reads.load(Ordering::Relaxed), reads);
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_sent_oldest_first_and_then_caught_up() {
    let mut world = World::new().await;
    let mut waiting = vec![];
    for number in 0..250 {
        waiting.push(world.append(Lane::ALL[number % 4], "waits").await);
    }
    let mut client = world.connect("+966501234567").await;
    client.send(json!({"op": "hello"})).await;
    let welcome = client.expect("welcome").await;
    assert_eq!(welcome["principal"], "+966501234567");
    assert!(welcome["session"].is_string());
    assert_eq!(client.messages(250).await, ids(&waiting));
    let cursor: Cursor = client.expect("caught_up").await["cursor"].as_str().unwrap().parse().unwrap();
    assert_eq!(cursor.offset(Lane::Normal), Some(waiting[249].position.offset));
}

#[tokio::test(start_paused = true)]
async fn a_hint_that_is_lost_doubled_or_late_changes_nothing_for_the_client() {
    let mut world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    let mut sent = vec![];
    for _ in 0..6 {
        sent.push(world.append(Lane::Normal, "x").await);
    }
    // Lost: 0. Doubled: 1. In the wrong order: 3, 2, and once more 0.
    let hints: Vec<_> = [1, 1, 3, 2, 0, 4, 5, 5].map(|number: usize| sent[number].hint.clone()).into();
    world.tell(&hints.iter().collect::<Vec<_>>()).await;
    assert_eq!(client.messages(6).await, ids(&sent));
    client.nothing_before_pong().await;
}

#[tokio::test(start_paused = true)]
async fn more_hints_at_once_than_the_inbox_holds_are_read_from_the_stream() {
    let mut world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    let mut sent = vec![];
    for _ in 0..150 {
        sent.push(world.append(Lane::Bulk, "x").await);
    }
    world.tell(&sent.iter().map(|sent| &sent.hint).collect::<Vec<_>>()).await;
    assert_eq!(client.messages(150).await, ids(&sent));
    client.nothing_before_pong().await;
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_window_is_under_way_and_an_ack_makes_room() {
    let mut world = World::new().await;
    let mut waiting = vec![];
    for _ in 0..600 {
        waiting.push(world.append(Lane::Normal, "x").await);
    }
    let mut client = world.connect("+966501234567").await;
    client.send(json!({"op": "hello"})).await;
    client.expect("welcome").await;
    assert_eq!(client.messages(256).await, ids(&waiting[..256]));
    client.nothing_before_pong().await;
    client.send(json!({"op": "ack", "ids": [waiting[0].id, waiting[1].id]})).await;
    assert_eq!(client.messages(2).await, ids(&waiting[256..258]));
    client.nothing_before_pong().await;
    // Hints in the meantime do not get past the window.
    let late = world.deliver(Lane::Normal, "late").await;
    client.nothing_before_pong().await;
    let acked: Vec<_> = waiting[2..258].iter().map(|waiting| waiting.id).collect();
    client.send(json!({"op": "ack", "ids": acked})).await;
    assert_eq!(client.messages(256).await, ids(&waiting[258..514]));
    client.send(json!({"op": "ack", "ids": ids(&waiting[258..514])})).await;
    assert_eq!(client.messages(86).await, ids(&waiting[514..]));
    assert_eq!(client.messages(1).await, [late.id]);
    client.expect("caught_up").await;
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_back_is_not_sent_from_a_hint_nor_on_replay_and_is_no_gap() {
    let mut world = World::new().await;
    let mut waiting = vec![];
    for _ in 0..4 {
        waiting.push(world.append(Lane::Normal, "waits").await);
    }
    world.shared.cancelled.enter("acme", waiting[1].id);
    world.shared.cancelled.enter("acme", waiting[3].id);
    let mut client = world.connect("+966501234567").await;
    client.send(json!({"op": "hello"})).await;
    client.expect("welcome").await;
    assert_eq!(client.messages(2).await, [waiting[0].id, waiting[2].id]);
    let cursor = client.expect("caught_up").await["cursor"].as_str().unwrap().to_owned();
    assert_eq!(cursor.parse::<Cursor>().unwrap().offset(Lane::Normal), Some(waiting[3].position.offset));

    let reads = world.streams.reads.load(Ordering::Relaxed);
    let taken_back = world.append(Lane::Normal, "taken back").await;
    world.shared.cancelled.enter("acme", taken_back.id);
    world.tell(&[&taken_back.hint]).await;
    let live = world.deliver(Lane::Normal, "live").await;
    assert_eq!(client.messages(1).await, [live.id]);
    assert_eq!(world.streams.reads.load(Ordering::Relaxed), reads, "what is left out is no gap");

    // A cursor behind what was left out is no receipt for it, and none of it comes again.
    let mut again = world.connect("+966501234567").await;
    again.send(json!({"op": "hello", "after": cursor})).await;
    again.expect("welcome").await;
    assert_eq!(again.messages(1).await, [live.id]);
    again.expect("caught_up").await;
    let delivered: Vec<_> = world.statuses().await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(delivered, [waiting[0].id, waiting[2].id]);
}

#[tokio::test(start_paused = true)]
async fn an_expired_message_is_skipped_and_the_cursor_moves_on() {
    let mut world = World::new().await;
    let expiring = |world: &World, content| {
        let expires_at = Some(world.clock.now().as_millis() + 10);
        Message { expires_at, ..world.message(content) }
    };
    let message = expiring(&world, "in the stream");
    world.append_message(Lane::Normal, message).await;
    world.clock.advance_millis(20);
    let mut client = world.connect("+966501234567").await;
    client.send(json!({"op": "hello"})).await;
    client.expect("welcome").await;
    let cursor: Cursor = client.expect("caught_up").await["cursor"].as_str().unwrap().parse().unwrap();
    assert_eq!(cursor.offset(Lane::Normal), Some(0));
    let message = expiring(&world, "as a hint");
    let late = world.append_message(Lane::Normal, message).await;
    world.clock.advance_millis(20);
    world.tell(&[&late.hint]).await;
    let sent = world.deliver(Lane::Normal, "good").await;
    let reads = world.streams.reads.load(Ordering::Relaxed);
    assert_eq!(client.messages(1).await, [sent.id]);
    assert_eq!(world.streams.reads.load(Ordering::Relaxed), reads, "an expired hint is no gap");
}

#[tokio::test(start_paused = true)]
async fn an_ack_makes_messages_delivered_and_moves_the_phones_place() {
    let mut world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    let sent = [
        world.deliver(Lane::High, "a").await,
        world.deliver(Lane::Normal, "b").await,
        world.deliver(Lane::Normal, "c").await,
    ];
    let mut cursors = vec![];
    for _ in 0..3 {
        cursors.push(client.expect("message").await["cursor"].clone());
    }
    client.send(json!({"op": "ack", "cursor": cursors[1]})).await;
    let delivered = |sent: &Appended| (sent.id, "delivered".to_owned());
    assert_eq!(world.statuses().await, [delivered(&sent[0]), delivered(&sent[1])]);
    let place = world.acked().await.unwrap();
    assert_eq!((place.offset(Lane::High), place.offset(Lane::Normal)), (Some(0), Some(0)));
    // Repeated, and what was never sent: ignored.
    client.send(json!({"op": "ack", "cursor": cursors[1]})).await;
    client.send(json!({"op": "ack", "ids": [MessageId::new(world.clock.now()), sent[2].id]})).await;
    assert_eq!(world.statuses().await.len(), 3);
    assert_eq!(world.acked().await.unwrap().offset(Lane::Normal), Some(3));
}

#[tokio::test(start_paused = true)]
async fn the_place_does_not_move_past_a_message_that_is_not_acknowledged() {
    let mut world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    let mut sent = vec![];
    for _ in 0..3 {
        sent.push(world.deliver(Lane::Normal, "x").await);
    }
    client.messages(3).await;
    client.send(json!({"op": "ack", "ids": [sent[2].id, sent[0].id]})).await;
    assert_eq!(world.statuses().await.len(), 2);
    assert_eq!(world.acked().await.unwrap().offset(Lane::Normal), Some(0));
    client.send(json!({"op": "ack", "ids": [sent[1].id]})).await;
    assert_eq!(world.acked().await.unwrap().offset(Lane::Normal), Some(6));
}

#[tokio::test(start_paused = true)]
async fn an_append_of_unknown_outcome_is_made_again_and_the_place_waits_for_it() {
    let mut world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    let sent = world.deliver(Lane::Normal, "x").await;
    client.messages(1).await;
    world.log.unknown.store(1, Ordering::Relaxed);
    client.send(json!({"op": "ack", "ids": [sent.id]})).await;
    let twice = vec![(sent.id, "delivered".to_owned()); 2];
    assert_eq!(world.statuses().await, twice);
    assert!(world.acked().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_read_makes_a_message_delivered_and_read() {
    let mut world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    let sent = world.deliver(Lane::Normal, "x").await;
    client.messages(1).await;
    client.send(json!({"op": "read", "ids": [sent.id]})).await;
    let expected = [(sent.id, "delivered".to_owned()), (sent.id, "read".to_owned())];
    assert_eq!(world.statuses().await, expected);
    assert!(world.acked().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_read_of_what_another_session_was_sent_is_looked_up_and_one_of_somebody_elses_is_ignored() {
    let world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    let (mine, others) = (MessageId::new(world.clock.now()), MessageId::new(world.clock.now()));
    client.send(json!({"op": "read", "ids": [mine, others]})).await;
    assert!(world.statuses().await.is_empty());
    // Its row is written later: archive is behind.
    for (id, recipient) in [(mine, "+966501234567"), (others, "+966501234568")] {
        let row = MessageRow {
            id,
            message_type: MessageType::OneWay,
            conversation: None,
            sender: "acme".parse().unwrap(),
            recipient: recipient.parse().unwrap(),
            created_at: world.clock.now(),
            expires_at: None,
            accepted: (0, Some(0)),
            may_repeat: false,
            value: bytes::Bytes::new(),
        };
        let mut steps = StatusSteps::default();
        steps.reach(Status::Delivered, world.clock.now());
        let stored = StoredMessage { row, steps, failure_reason: None };
        world.messages.rows.lock().insert(id, stored);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.statuses().await, [(mine, "read".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_sender_is_told_what_becomes_of_its_messages() {
    let world = World::new().await;
    let mut client = world.connect("acme").await;
    client.send(json!({"op": "hello"})).await;
    assert_eq!(client.expect("welcome").await["principal"], "acme");
    assert_eq!(client.expect("caught_up").await, json!({"op": "caught_up"}));
    let id = MessageId::new(world.clock.now());
    let status = StatusHint {
        id,
        status: "delivered".to_owned(),
        at: world.clock.now().as_millis(),
        conversation: None,
        of_chat: false,
    };
    world.tell(&[&world.hint("acme", Hint::Status(status)), &world.hint("other", unknown(id))]).await;
    let expected = json!({"op": "status", "id": id, "status": "delivered", "at": world.clock.now().to_string()});
    assert_eq!(client.next().await, expected);
    client.send(json!({"op": "ack", "cursor": "AQEAAAAA"})).await;
    assert_eq!(client.expect("error").await["code"], "not_a_recipient");
}

fn unknown(id: MessageId) -> Hint {
    Hint::Status(StatusHint { id, status: "read".to_owned(), at: 0, conversation: None, of_chat: false })
}

#[tokio::test(start_paused = true)]
async fn two_devices_of_one_user_both_get_every_message_and_acknowledge_apart() {
    let mut world = World::new().await;
    let mut first = world.phone(json!({"op": "hello"})).await;
    let mut second = world.phone(json!({"op": "hello"})).await;
    let sent = [world.deliver(Lane::Normal, "a").await, world.deliver(Lane::High, "b").await];
    assert_eq!(first.messages(2).await, ids(&sent));
    assert_eq!(second.messages(2).await, ids(&sent));
    first.send(json!({"op": "ack", "ids": ids(&sent)})).await;
    let place = world.acked().await;
    second.send(json!({"op": "ack", "ids": [sent[0].id]})).await;
    assert_eq!(world.acked().await, place, "the device that is further stays");
    assert_eq!(world.gateway.sessions(), 2);
}
