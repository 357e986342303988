//! Many sessions at once, a store that does not take all of it, and presence that fails.

use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::admission::Class;

/// A phone of a crowd.
fn member(number: u64) -> Phone {
    Phone::from_digits(966_510_000_000 + number).unwrap()
}

impl World {
    /// Appends to a phone's stream, as route does; the hint that tells of it.
    async fn append_for(&self, to: Phone, offset: u64) -> NewRecord {
        let message = Message { recipient: to.to_string(), ..self.message("x") };
        let position = StreamPosition { epoch: EPOCH, lane: Lane::Normal, offset };
        let value = self.codecs.encode(&message).unwrap();
        let row = StreamRow {
            phone: to,
            position,
            id: message.id,
            at: Timestamp::from_millis(message.created_at),
            expires_at: None,
            value: value.clone(),
        };
        self.streams.append(0, vec![row]).await.unwrap();
        let hint = MessageHint {
            epoch: EPOCH.0 as i32,
            lane: Lane::Normal.index() as i32,
            offset: offset as i64,
            prev: Some(offset.checked_sub(1).map_or(-1, |prev| prev as i64)),
            message: value,
            in_conversation: false,
        };
        self.hint(&to.to_string(), Hint::Message(hint))
    }

    /// So many phones, each with a message that waits, that say hello at once.
    async fn crowd(&self, count: u64) -> Vec<Client> {
        let mut clients = vec![];
        for number in 0..count {
            self.append_for(member(number), 0).await;
            let mut client = self.connect_through(&member(number).to_string(), 4_096).await;
            client.send(json!({"op": "hello"})).await;
            clients.push(client);
        }
        clients
    }
}

/// Clients that are not polled answer no ping.
fn patient() -> Options {
    Options { idle_timeout_s: 3_600, ..Options::default() }
}

/// The frames of a client up to `caught_up`; fails where it is closed.
async fn caught_up(client: &mut Client) -> Vec<Value> {
    let mut frames = vec![];
    loop {
        let frame = client.next().await;
        assert_ne!(frame["op"], "bye", "{frame}");
        if frame["op"] == "caught_up" {
            return frames;
        }
        frames.push(frame);
    }
}

#[tokio::test(start_paused = true)]
async fn a_storm_is_taken_as_fast_as_the_store_takes_it_and_others_are_served_meanwhile() {
    const PHONES: u64 = 2_000;
    let mut world = World::new().await;
    let mut served = world.phone(json!({"op": "hello"})).await;
    world.streams.strain.room.store(12, Relaxed);
    world.streams.strain.takes_ms.store(5, Relaxed);
    let mut crowd = world.crowd(PHONES).await;
    let begun = tokio::time::Instant::now();
    let storm = tokio::spawn(async move {
        for client in &mut crowd {
            let frames = caught_up(client).await;
            assert_eq!(frames.iter().filter(|frame| frame["op"] == "message").count(), 1);
        }
        crowd
    });
    let mut slowest = Duration::ZERO;
    while !storm.is_finished() {
        let sent = world.deliver(Lane::Normal, "for somebody else").await;
        let told = tokio::time::Instant::now();
        assert_eq!(served.messages(1).await, [sent.id]);
        slowest = slowest.max(told.elapsed());
        served.send(json!({"op": "ack", "ids": [sent.id]})).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let _crowd = storm.await.unwrap();
    assert!(slowest < Duration::from_millis(100), "{slowest:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let strain = &world.streams.strain;
    assert!(strain.most.load(Relaxed) <= 12, "{} at once", strain.most.load(Relaxed));
    assert_eq!(strain.refused.load(Relaxed), 0);
    assert_eq!(world.gateway.sessions() as u64, PHONES + 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_less_than_is_asked_or_is_down_for_a_while_closes_nobody() {
    let mut world = World::new().await;
    let mut served = world.phone(json!({"op": "hello"})).await;
    let streams = Arc::clone(&world.streams);
    let strain = &streams.strain;
    strain.room.store(3, Relaxed);
    strain.takes_ms.store(20, Relaxed);
    let mut crowd = world.crowd(300).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    strain.down.store(true, Relaxed);
    let reads = world.streams.reads.load(Relaxed);
    tokio::time::sleep(Duration::from_mins(1)).await;
    let asked = world.streams.reads.load(Relaxed) - reads;
    assert!(asked <= 60, "a store that is down was asked {asked} times in a minute");
    let sent = world.deliver(Lane::Normal, "hints go on").await;
    assert_eq!(served.messages(1).await, [sent.id]);
    world.streams.strain.down.store(false, Relaxed);
    for client in &mut crowd {
        caught_up(client).await;
    }
    assert_eq!(world.gateway.sessions(), 301);
}

#[tokio::test(start_paused = true)]
async fn a_gap_while_the_store_is_down_is_filled_when_it_answers_and_the_session_stays() {
    let mut world = World::new().await;
    let mut client = world.phone(json!({"op": "hello"})).await;
    world.streams.strain.down.store(true, Relaxed);
    let unseen = world.append(Lane::Normal, "the hint was lost").await;
    let next = world.deliver(Lane::Normal, "it does not follow").await;
    client.nothing_before_pong().await;
    world.streams.strain.down.store(false, Relaxed);
    assert_eq!(client.messages(2).await, [unseen.id, next.id]);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_while_its_phone_waits_for_its_turn_is_sent_once() {
    let mut world = World::with(Options { reads_at_once: 1, ..Options::default() }).await;
    let turn = world.shared.admission.turn(Class::Hello).await;
    let first = world.append(Lane::Normal, "waits").await;
    let mut client = world.connect("+966501234567").await;
    client.send(json!({"op": "hello"})).await;
    client.expect("welcome").await;
    let second = world.deliver(Lane::Normal, "comes meanwhile").await;
    client.send(json!({"op": "ack", "ids": [first.id]})).await;
    client.nothing_before_pong().await;
    drop(turn);
    assert_eq!(client.messages(2).await, [first.id, second.id]);
    client.expect("caught_up").await;
    client.nothing_before_pong().await;
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_finds_too_many_before_it_is_told_when_to_come_back_and_nothing_is_read_for_it() {
    let world = World::with(Options { reads_at_once: 1, hellos_waiting: 5, ..Options::default() }).await;
    let _turn = world.shared.admission.turn(Class::Hello).await;
    let mut waiting = world.crowd(5).await;
    for client in &mut waiting {
        client.expect("welcome").await;
    }
    let entered = world.presence.slots_of(&[phone().into()]).await.unwrap();
    let mut late = world.connect("+966501234567").await;
    late.send(json!({"op": "hello"})).await;
    let (close, bye) = late.bye().await;
    assert_eq!(close, Close::Overloaded);
    assert!(bye["reconnect_after_ms"].as_u64().unwrap() >= 900, "{bye}");
    assert!(entered[0].is_empty());
    assert_eq!(world.streams.reads.load(Relaxed), 0);
    // They are held: pinged, and not closed.
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(world.gateway.sessions(), 5);
}

#[tokio::test(start_paused = true)]
async fn heads_and_floors_are_read_once_for_all() {
    let world = World::new().await;
    world.streams.strain.takes_ms.store(5, Relaxed);
    for number in 0..100 {
        world.append_for(member(number), number).await;
    }
    let mut clients = vec![];
    for number in 0..100 {
        let mut client = world.connect(&member(number).to_string()).await;
        let after = Cursor { epoch: EPOCH, offsets: [None, Some(number), None, None] };
        client.send(json!({"op": "hello", "after": after})).await;
        clients.push(client);
    }
    for client in &mut clients {
        assert_eq!(caught_up(client).await.len(), 1, "only welcome");
    }
    // A head and a floor of each of four lanes.
    assert_eq!(world.streams.edge_reads.load(Relaxed), 8);
    // A cursor that is newer than the head that is known is decided by the head of now.
    world.append_for(member(7), 500).await;
    let mut client = world.connect(&member(7).to_string()).await;
    let after = Cursor { epoch: EPOCH, offsets: [None, Some(500), None, None] };
    client.send(json!({"op": "hello", "after": after})).await;
    assert_eq!(caught_up(&mut client).await.len(), 1, "no gap");
    assert_eq!(world.streams.edge_reads.load(Relaxed), 10);
}

#[tokio::test(start_paused = true)]
async fn a_backlog_is_read_ahead_of_its_acks_in_few_large_pages() {
    const MESSAGES: u64 = 5_000;
    let world = World::new().await;
    world.streams.strain.takes_ms.store(20, Relaxed);
    for offset in 0..MESSAGES {
        world.append_for(member(0), offset).await;
    }
    let begun = tokio::time::Instant::now();
    let mut client = world.connect(&member(0).to_string()).await;
    client.send(json!({"op": "hello"})).await;
    client.expect("welcome").await;
    let mut got = 0;
    loop {
        let frame = client.next().await;
        if frame["op"] == "caught_up" {
            break;
        }
        got += 1;
        if got % 64 == 0 {
            client.send(json!({"op": "ack", "cursor": frame["cursor"]})).await;
        }
    }
    assert_eq!(got, MESSAGES);
    let reads = world.streams.reads.load(Relaxed);
    assert!(reads <= 14, "{reads} reads of 20 ms each");
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_acknowledge_holds_no_rows_and_is_not_read_for() {
    let world = World::new().await;
    for offset in 0..2_000 {
        world.append_for(member(0), offset).await;
    }
    let mut client = world.connect(&member(0).to_string()).await;
    client.send(json!({"op": "hello"})).await;
    client.expect("welcome").await;
    let first = client.messages(256).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let reads = world.streams.reads.load(Relaxed);
    assert!(reads <= 3, "{reads} reads for a window of 256 messages");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(world.shared.admission.ahead(), 0);
    assert_eq!(world.streams.reads.load(Relaxed), reads);
    client.nothing_before_pong().await;
    assert_eq!(world.streams.reads.load(Relaxed), reads);
    client.send(json!({"op": "ack", "ids": first})).await;
    client.messages(256).await;
}

#[tokio::test(start_paused = true)]
async fn slow_answers_of_presence_and_an_outage_of_it_make_nobody_read() {
    let world = World::with(patient()).await;
    let mut crowd = world.crowd(200).await;
    for client in &mut crowd {
        caught_up(client).await;
    }
    let reads = world.streams.reads.load(Relaxed);
    for outage in [6, 60] {
        world.presence.down.store(true, Relaxed);
        for _ in 0..outage {
            tokio::time::sleep(Duration::from_secs(1)).await;
            world.clock.advance_millis(1_000);
        }
        world.presence.down.store(false, Relaxed);
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(world.gateway.sessions(), 200);
        assert_eq!(world.streams.reads.load(Relaxed), reads, "after {outage} s");
        for client in &mut crowd {
            client.expect("missed").await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn presence_that_lost_everything_makes_each_session_read_once_and_hints_go_on() {
    let world = World::with(patient()).await;
    let mut crowd = world.crowd(200).await;
    for client in &mut crowd {
        caught_up(client).await;
    }
    let reads = world.streams.reads.load(Relaxed);
    world.streams.strain.takes_ms.store(1_000, Relaxed);
    let node = world.shared.node().unwrap();
    world.presence.withdraw(&node).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let slots = world.presence.slots_of(&[member(199).into()]).await.unwrap();
    assert_eq!(slots[0].len(), 1, "all are entered again at once");
    let hint = world.append_for(member(199), 1).await;
    world.tell(&[&hint]).await;
    let told = tokio::time::Instant::now();
    crowd[199].expect("missed").await;
    crowd[199].messages(1).await;
    assert!(told.elapsed() < Duration::from_millis(100), "while it waits to check its stream: {:?}", told.elapsed());
    tokio::time::sleep(Duration::from_mins(3)).await;
    assert_eq!(world.streams.reads.load(Relaxed) - reads, 200);
}
