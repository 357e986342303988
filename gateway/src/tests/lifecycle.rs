//! The life of a session: every close code, staying connected, presence, the slot, the drain.

use std::sync::atomic::Ordering;

use eshaar_presence::Node;

use super::*;

async fn refused(world: &World, frames: &[&str]) -> (Close, Value) {
    let mut client = world.connect("+966501234567").await;
    for frame in frames {
        client.send_text(frame).await;
    }
    client.bye().await
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_say_hello_is_closed() {
    let world = World::new().await;
    let begun = tokio::time::Instant::now();
    assert_eq!(refused(&world, &[r#"{"op":"ping"}"#]).await.0, Close::HelloTimeout);
    assert!((Duration::from_secs(9)..Duration::from_secs(12)).contains(&begun.elapsed()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.gateway.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn frames_that_make_no_sense_close_the_session_and_say_why() {
    let world = World::new().await;
    let hello = r#"{"op":"hello"}"#;
    for frames in [
        &["nonsense"][..],
        &[r#"{"op":"fly"}"#],
        &[r#"{"op":"hello","after":"not a cursor"}"#],
        &[r#"{"op":"ack","cursor":"AQAAAAAA"}"#],
        &[hello, r#"{"op":"ack"}"#],
        &[hello, r#"{"op":"ack","ids":["x"]}"#],
    ] {
        let (close, bye) = refused(&world, frames).await;
        assert_eq!(close, Close::BadFrame, "{frames:?}");
        assert!(bye["detail"].is_string(), "{bye}");
    }
    assert_eq!(refused(&world, &[hello, hello]).await.0, Close::AlreadyGreeted);
    let huge = format!(r#"{{"op":"hello","device":"{}"}}"#, "x".repeat(8 * 128 * 1024));
    assert_eq!(refused(&world, &[&huge]).await.0, Close::FrameTooLarge);
    let mut client = world.connect("+966501234567").await;
    client.0.send(Frame::binary(vec![1, 2, 3])).await.unwrap();
    assert_eq!(client.bye().await.0, Close::BinaryFrame);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_websocket_frames_close_the_session() {
    let world = World::new().await;
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x81, 0x01, b'x'], &[0xff; 32], &[0x81, 0x82, 0, 0, 0, 0, 0xff, 0xff]]
    {
        let mut client = world.connect("+966501234567").await;
        tokio::io::AsyncWriteExt::write_all(client.0.get_mut(), garbage).await.unwrap();
        assert_eq!(client.bye().await.0, Close::BadFrame, "{garbage:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_too_many_frames_is_closed_but_not_for_acknowledging() {
    let mut world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    for _ in 0..1_500 {
        let sent = world.deliver(Lane::Normal, "x").await;
        client.messages(1).await;
        client.send(json!({"op": "ack", "ids": [sent.id]})).await;
    }
    client.nothing_before_pong().await;
    let flood = async {
        for _ in 0..1_100 {
            if client.0.send(Frame::text(r#"{"op":"ack","ids":[]}"#)).await.is_err() {
                break;
            }
        }
        client.bye().await.0
    };
    assert_eq!(flood.await, Close::TooManyFrames);
}

#[tokio::test(start_paused = true)]
async fn a_client_is_pinged_and_one_that_is_silent_is_closed() {
    let world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    // It answers pings as long as it is polled: three minutes of nothing else.
    let alive = tokio::time::timeout(Duration::from_mins(3), client.next()).await;
    assert!(alive.is_err(), "still open, nothing said");
    // Now it hangs: nobody polls it, so no pong is sent.
    tokio::time::sleep(Duration::from_secs(80)).await;
    assert_eq!(world.gateway.sessions(), 0);
    assert!(client.rest().await.contains(r#""code":4008"#));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_a_byte_now_and_then_is_not_taken_for_alive() {
    let world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    let frame = [0x81, 0xfe, 0x10, 0x00, 1, 2, 3, 4];
    for sent in 0..200 {
        let byte = frame.get(sent).copied().unwrap_or(b'x');
        if tokio::io::AsyncWriteExt::write_all(client.0.get_mut(), &[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(world.gateway.sessions(), 0);
    assert!(client.rest().await.contains(r#""code":4008"#));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_cut_off_and_holds_no_memory_meanwhile() {
    let mut world = World::new().await;
    let mut client = world.connect_through("+966501234567", 2_048).await;
    client.send(json!({"op": "hello"})).await;
    for _ in 0..400 {
        world.deliver(Lane::Normal, &"x".repeat(500)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let handle = world.shared.hub.of(&phone().into())[0].clone();
    assert!(handle.take_inbox().hints.len() <= 32);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert!(handle.is_cut());
    assert_eq!(world.gateway.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_in_time_or_the_session_is_closed() {
    let world = World::new().await;
    let soon = world.clock.now().as_millis() + 60_000;
    let mut client = world.connect(&format!("+966501234567@{soon}")).await;
    client.send(json!({"op": "hello"})).await;
    client.expect("welcome").await;
    client.expect("caught_up").await;
    client.send(json!({"op": "renew", "access_token": "broken"})).await;
    assert_eq!(client.expect("error").await["temporary"], true);
    let later = Timestamp::from_millis(soon + 60_000);
    client.send(json!({"op": "renew", "access_token": format!("+966501234567@{}", later.as_millis())})).await;
    assert_eq!(client.next().await, json!({"op": "renewed", "expires_at": later.to_string()}));
    world.clock.advance_millis(100_000);
    client.nothing_before_pong().await;
    world.clock.advance_millis(100_000);
    assert_eq!(client.bye().await.0, Close::TokenExpired);
    for credential in ["+966501234568", "no token"] {
        let renew = json!({"op": "renew", "access_token": credential}).to_string();
        assert_eq!(refused(&world, &[r#"{"op":"hello"}"#, &renew]).await.0, Close::TokenInvalid);
    }
}

#[tokio::test(start_paused = true)]
async fn a_principal_with_as_many_sessions_as_it_may_have_gets_no_more() {
    let world = World::with(Options { sessions_per_principal: 2, ..Options::default() }).await;
    let _first = world.phone(json!({"op": "hello"})).await;
    let second = world.phone(json!({"op": "hello"})).await;
    assert_eq!(refused(&world, &[]).await.0, Close::TooManySessions);
    drop(second);
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.phone(json!({"op": "hello"})).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_is_online_from_its_hello_to_its_end() {
    let world = World::new().await;
    let mut client = world.connect("+966501234567").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!world.is_online().await);
    client.send(json!({"op": "hello"})).await;
    client.expect("welcome").await;
    assert!(world.is_online().await);
    client.0.close(None).await.unwrap();
    while let Some(Ok(_)) = client.0.next().await {}
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!world.is_online().await);
    assert_eq!(world.gateway.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_entry_in_presence_is_gone_enters_again_and_reads_its_stream() {
    let mut world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    let handle = world.shared.hub.of(&phone().into())[0].clone();
    let connection = world.shared.connection(&handle).unwrap();
    world.presence.disconnect(&phone().into(), connection).await.unwrap();
    let unseen = world.append(Lane::Normal, "nobody was told").await;
    let begun = tokio::time::Instant::now();
    client.expect("missed").await;
    assert_eq!(client.messages(1).await, [unseen.id]);
    assert!(world.is_online().await);
    assert!(begun.elapsed() <= Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn sessions_that_presence_forgot_together_with_their_gateway_are_entered_again_soon() {
    let mut world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    world.presence.withdraw(&world.shared.node().unwrap()).await.unwrap();
    assert!(!world.is_online().await);
    let unseen = world.append(Lane::Normal, "nobody was told").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(world.is_online().await);
    client.expect("missed").await;
    assert_eq!(client.messages(1).await, [unseen.id]);
    client.nothing_before_pong().await;
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_loses_its_slot_closes_its_sessions_and_takes_another() {
    let world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    let lost = world.shared.node().unwrap();
    world.presence.lease_slot(lost.incarnation + 1, Some(lost.slot), 4, "usurper").await.unwrap();
    assert_eq!(client.bye().await.0, Close::PresenceLost);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let node: Node = world.shared.node().unwrap();
    assert_ne!(node.slot, lost.slot);
    world.phone(json!({"op": "hello"})).await;
    assert!(world.is_online().await);
}

#[tokio::test(start_paused = true)]
async fn a_jump_in_the_slot_makes_every_session_read_its_stream_once() {
    let mut world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    let unseen = world.append(Lane::Normal, "the hint is gone").await;
    let reads = world.streams.reads.load(Ordering::Relaxed);
    world.shared.hub.begin_rescue(world.shared.ticks());
    client.expect("missed").await;
    assert_eq!(client.messages(1).await, [unseen.id]);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(world.streams.reads.load(Ordering::Relaxed), reads + 1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_tells_clients_to_come_back_and_writes_what_they_acknowledged() {
    let mut world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    let sent = world.deliver(Lane::Normal, "x").await;
    client.messages(1).await;
    client.send(json!({"op": "ack", "ids": [sent.id]})).await;
    tokio::task::yield_now().await;
    let gateway = world.gateway.clone();
    let drained = tokio::spawn(async move { gateway.drain(Duration::from_secs(20)).await });
    let (close, bye) = client.bye().await;
    assert_eq!(close, Close::ShuttingDown);
    assert!(bye["reconnect_after_ms"].as_u64().unwrap() <= 5_000);
    drained.await.unwrap();
    assert_eq!(world.streams.acked(phone()).await.unwrap().unwrap().offset(Lane::Normal), Some(0));
    assert_eq!(world.log.of(Topic::MessageStatus).len(), 1);
    assert!(world.presence.nodes().await.unwrap().is_empty());
    assert!(!world.shared.ready());
    assert_eq!(refused(&world, &[]).await.0, Close::ShuttingDown);
}
