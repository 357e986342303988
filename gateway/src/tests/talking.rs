use eshaar_model::{ConversationId, ConversationPosition, Principal, Status};
use eshaar_schemas::{ConversationHint, StatusHint};
use eshaar_service::Problem;
use eshaar_store::{MessageRow, StoredMessage};

use super::fakes::Asked;
use super::*;
use crate::chat::{JOINED, NewMessage, WAITING};

const PHONE: &str = "+966501234567";

impl World {
    /// A session that has said hello, been welcomed and caught up.
    async fn session(&self, credential: &str) -> Client {
        let mut client = self.connect(credential).await;
        client.send(json!({"op": "hello"})).await;
        while client.next().await["op"] != "caught_up" {}
        client
    }

    /// What archive tells `principal` of, which was said in the conversation at an offset, behind that of `prev`.
    pub(super) fn said(&self, principal: &str, message: &Message, offset: i64, prev: Option<i64>) -> NewRecord {
        let message = self.codecs.encode(message).unwrap();
        let hint = MessageHint { epoch: EPOCH.0 as i32, lane: 0, offset, prev, message, in_conversation: true };
        self.hint(principal, Hint::Message(hint))
    }

    /// A chat message of the phone to the business, or back.
    pub(super) fn chat(&self, from_phone: bool, content: &str) -> Message {
        let (sender, recipient) = if from_phone { (PHONE, "acme") } else { ("acme", PHONE) };
        Message {
            r#type: MessageType::Chat,
            conversation_id: Some(self.conversations.id.to_string()),
            sender: sender.to_owned(),
            recipient: recipient.to_owned(),
            ..self.message(content)
        }
    }

    pub(super) fn id(&self) -> ConversationId {
        self.conversations.id
    }

    async fn joined(&self, credential: &str) -> Client {
        let mut client = self.session(credential).await;
        client.send(json!({"op": "join", "conversation_id": self.id(), "ref": "j"})).await;
        let expected = json!({"op": "joined", "conversation_id": self.id(), "ref": "j"});
        assert_eq!(client.next().await, expected);
        client
    }
}

fn place(offset: u64) -> ConversationPosition {
    ConversationPosition { epoch: EPOCH, offset }
}

fn send(reference: &str, content: &str) -> Value {
    json!({"op": "send", "ref": reference, "to": "acme", "content": content})
}

#[tokio::test(start_paused = true)]
async fn a_message_is_accepted_under_the_clients_ref() {
    let world = World::new().await;
    let mut client = world.session(PHONE).await;
    client
        .send(json!({"op": "send", "ref": "r-1", "to": "acme", "content": "a", "reference": "mine", "media": [{"id": 1}]}))
        .await;
    let sent = client.expect("sent").await;
    let message = NewMessage {
        r#ref: "r-1".to_owned(),
        to: Some("acme".to_owned()),
        conversation_id: None,
        content: "a".to_owned(),
        reference: Some("mine".to_owned()),
        has_media: true,
    };
    assert_eq!(*world.conversations.asked.lock(), [Asked::Send(phone().into(), message)]);
    let expected = json!({"op": "sent", "ref": "r-1", "id": sent["id"], "conversation_id": world.id(),
        "sent_at": world.id().made_at(), "replayed": false});
    assert_eq!(sent, expected);
    client
        .send(json!({"op": "send", "ref": "r-1", "to": "acme", "content": "a", "reference": "mine", "media": [0]}))
        .await;
    assert_eq!(client.expect("sent").await["replayed"], true);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_said_under_its_ref_with_whether_to_send_it_again() {
    let world = World::new().await;
    let mut client = world.session(PHONE).await;
    let refuse = |problem: Problem| *world.conversations.refusal.lock() = Some(problem);
    refuse(Problem::field("content", "content_empty", "must have at least 1 character"));
    client.send(send("r-1", "")).await;
    let expected = json!({"op": "error", "ref": "r-1", "code": "content_empty", "field": "content",
        "detail": "must have at least 1 character", "temporary": false});
    assert_eq!(client.next().await, expected);
    refuse(Problem::new(http::StatusCode::TOO_MANY_REQUESTS, "rate_limited", "wait").retry_after(3));
    client.send(send("r-2", "b")).await;
    let error = client.expect("error").await;
    assert_eq!(
        (&error["ref"], &error["temporary"], &error["retry_after_ms"]),
        (&json!("r-2"), &json!(true), &json!(3_000))
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_session_sends_is_done_in_order_while_it_goes_on_receiving() {
    let mut world = World::new().await;
    let mut client = world.session(PHONE).await;
    world.conversations.gate.forget_permits(1_000);
    for number in 0..5 {
        client.send(send(&format!("r-{number}"), "a")).await;
    }
    client.send(json!({"op": "read", "conversation_id": world.id(), "up_to": place(4)})).await;
    world.deliver(Lane::Normal, "meanwhile").await;
    assert_eq!(client.expect("message").await["content"], "meanwhile");
    client.nothing_before_pong().await;
    world.conversations.gate.add_permits(5);
    for number in 0..5 {
        assert_eq!(client.expect("sent").await["ref"], format!("r-{number}"));
    }
    client.nothing_before_pong().await;
    let asked = world.conversations.asked.lock().clone();
    assert!(asked[..5].iter().all(|asked| matches!(asked, Asked::Send(..))));
    assert_eq!(asked[5..], [Asked::Read(phone().into(), world.id(), place(4))]);
}

#[tokio::test(start_paused = true)]
async fn so_many_wait_for_their_turn_and_no_more() {
    let world = World::new().await;
    let mut client = world.session(PHONE).await;
    world.conversations.gate.forget_permits(1_000);
    // One is under way, and these wait.
    for number in 0..=WAITING {
        client.send(send(&number.to_string(), "a")).await;
    }
    client.send(send("over", "a")).await;
    let error = client.expect("error").await;
    assert_eq!(
        (&error["ref"], &error["code"], &error["temporary"]),
        (&json!("over"), &json!("too_many_waiting"), &json!(true))
    );
    world.conversations.gate.add_permits(WAITING + 1);
    for number in 0..=WAITING {
        assert_eq!(client.expect("sent").await["ref"], number.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn agents_are_sent_what_is_said_with_its_place_and_what_stands_before() {
    let world = World::new().await;
    let (mut one, mut two) = (world.session("acme").await, world.session("acme").await);
    let (asked, answered) = (world.chat(true, "Is it lost?"), world.chat(false, "No."));
    let unknown = world.chat(true, "Thanks");
    let hints = [
        world.said("acme", &asked, 7, Some(-1)),
        world.said("acme", &answered, 9, Some(7)),
        world.said("acme", &unknown, 12, None),
    ];
    world.tell(&hints.each_ref()).await;
    for client in [&mut one, &mut two] {
        let expected = json!({"op": "message", "position": place(7), "previous": null, "id": asked.id, "type": "chat",
            "from": PHONE, "to": "acme", "conversation_id": world.id(), "content": "Is it lost?", "media": [],
            "priority": "normal", "sent_at": world.clock.now().to_string(), "reference": null, "collapse_key": null});
        assert_eq!(client.next().await, expected);
        let next = client.expect("message").await;
        assert_eq!((&next["position"], &next["previous"]), (&json!(place(9)), &json!(place(7))));
        let last = client.expect("message").await;
        assert_eq!((&last["position"], last.get("previous")), (&json!(place(12)), None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_phones_other_devices_are_sent_what_it_said() {
    let world = World::new().await;
    let mut other = world.session(PHONE).await;
    let message = world.chat(true, "a");
    world.tell(&[&world.said(PHONE, &message, 7, Some(-1))]).await;
    let frame = other.expect("message").await;
    assert_eq!((&frame["from"], &frame["position"], frame.get("cursor")), (&json!(PHONE), &json!(place(7)), None));
    // It is not theirs to acknowledge.
    other.send(json!({"op": "ack", "ids": [message.id]})).await;
    assert_eq!(world.statuses().await, []);
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_back_or_has_expired_is_not_sent_to_agents_either() {
    let world = World::new().await;
    let mut client = world.session("acme").await;
    let expires_at = Some(world.clock.now().as_millis());
    let expired = Message { expires_at, ..world.chat(true, "late") };
    let hints = [world.said("acme", &expired, 7, Some(-1)), world.said("acme", &world.chat(true, "b"), 8, Some(7))];
    world.tell(&hints.each_ref()).await;
    assert_eq!(client.expect("message").await["content"], "b");
}

#[tokio::test(start_paused = true)]
async fn a_business_acknowledges_and_reads_what_it_was_sent_and_what_it_was_not() {
    let world = World::new().await;
    let mut client = world.session("acme").await;
    let (got, seen) = (world.chat(true, "a"), world.chat(true, "b"));
    let hints = [world.said("acme", &got, 7, Some(-1)), world.said("acme", &seen, 8, Some(7))];
    world.tell(&hints.each_ref()).await;
    client.messages(2).await;
    let earlier = world.chat(true, "earlier");
    let others = Message { recipient: "other".to_owned(), ..world.chat(true, "other") };
    for message in [&earlier, &others] {
        let row = MessageRow {
            id: message.id,
            message_type: MessageType::Chat,
            conversation: Some(world.id()),
            sender: message.sender.parse().unwrap(),
            recipient: message.recipient.parse().unwrap(),
            created_at: world.clock.now(),
            expires_at: None,
            accepted: (0, Some(3)),
            may_repeat: false,
            value: world.codecs.encode(message).unwrap(),
        };
        let stored = StoredMessage { row, steps: eshaar_model::StatusSteps::default(), failure_reason: None };
        world.messages.rows.lock().insert(message.id, stored);
    }
    client.send(json!({"op": "ack", "ids": [got.id, others.id]})).await;
    client.send(json!({"op": "read", "ids": [seen.id, earlier.id]})).await;
    client.nothing_before_pong().await;
    let mut statuses = world.statuses().await;
    statuses.sort();
    let mut expected = vec![(got.id, "delivered")];
    expected.extend([seen.id, earlier.id].into_iter().flat_map(|id| [(id, "delivered"), (id, "read")]));
    expected.sort();
    assert_eq!(statuses, expected.into_iter().map(|(id, step)| (id, step.to_owned())).collect::<Vec<_>>());
    let records = world.log.of(Topic::MessageStatus);
    let change: StatusChanged = world.codecs.decode(&records[0].value).unwrap();
    assert_eq!((change.sender.as_str(), change.recipient.as_str()), (PHONE, "acme"));
    assert!(records.iter().all(|record| record.key == world.id().to_string()));
}

#[tokio::test(start_paused = true)]
async fn whose_key_does_not_allow_it_is_told_of_no_conversation() {
    let world = World::new().await;
    let mut client = world.session("mute").await;
    let told = world.conversation("mute", "closed", None);
    let id = MessageId::new(world.clock.now());
    let status = StatusHint { id, status: "delivered".to_owned(), at: 0, conversation: None, of_chat: false };
    let message = Message { recipient: "mute".to_owned(), ..world.chat(true, "a") };
    world.tell(&[&told, &world.said("mute", &message, 7, Some(-1)), &world.hint("mute", Hint::Status(status))]).await;
    assert_eq!(client.expect("status").await["id"], json!(id));
    client.send(json!({"op": "ack", "ids": [message.id]})).await;
    assert_eq!(client.expect("error").await["code"], "permission_missing");
}

impl World {
    pub(super) fn conversation(&self, principal: &str, change: &str, up_to: Option<ConversationPosition>) -> NewRecord {
        let about = ConversationHint {
            with: PHONE.to_owned(),
            by: "acme".to_owned(),
            up_to: up_to.map(|position| position.to_string()),
        };
        let id = self.id().to_string().parse().unwrap();
        let at = self.clock.now().as_millis();
        let hint = StatusHint { id, status: change.to_owned(), at, conversation: Some(about), of_chat: false };
        self.hint(principal, Hint::Status(hint))
    }
}

#[tokio::test(start_paused = true)]
async fn both_sides_are_told_what_becomes_of_their_conversation_and_of_their_messages() {
    let world = World::new().await;
    let (mut agent, mut device) = (world.session("acme").await, world.session(PHONE).await);
    let id = MessageId::new(world.clock.now());
    let status = StatusHint { id, status: "read".to_owned(), at: 0, conversation: None, of_chat: false };
    let hints = [
        world.conversation("acme", "read", Some(place(5))),
        world.conversation(PHONE, "closed", None),
        world.hint(PHONE, Hint::Status(status)),
    ];
    world.tell(&hints.each_ref()).await;
    let expected = json!({"op": "conversation", "conversation_id": world.id(), "change": "read", "with": PHONE,
        "by": "acme", "at": world.clock.now().to_string(), "up_to": place(5)});
    assert_eq!(agent.next().await, expected);
    let closed = device.expect("conversation").await;
    assert_eq!((&closed["change"], closed.get("up_to")), (&json!("closed"), None));
    let status = device.expect("status").await;
    assert_eq!((&status["id"], &status["status"]), (&json!(id), &json!(Status::Read)));
}

#[tokio::test(start_paused = true)]
async fn who_types_is_shown_to_those_who_joined_and_lapses_by_itself() {
    let world = World::new().await;
    let (mut agent, mut device) = (world.joined("acme").await, world.joined(PHONE).await);
    let (mut second, mut aside) = (world.joined(PHONE).await, world.session("acme").await);
    let typing = |on: bool| json!({"op": "typing", "conversation_id": world.id(), "on": on});
    let shown = |on: bool| json!({"op": "typing", "conversation_id": world.id(), "from": PHONE, "on": on});
    device.send(typing(true)).await;
    assert_eq!(agent.next().await, shown(true));
    assert_eq!(second.next().await, shown(true), "on the phone's other device");
    // Said again it is the same.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        device.send(typing(true)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    agent.send(json!({"op": "ping"})).await;
    agent.expect("pong").await;
    device.send(typing(false)).await;
    assert_eq!(agent.next().await, shown(false));
    device.send(typing(true)).await;
    assert_eq!(agent.next().await, shown(true));
    // The phone goes away without a word.
    let begun = tokio::time::Instant::now();
    drop(device);
    assert_eq!(agent.next().await, shown(false));
    assert!((5_500..7_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    aside.nothing_before_pong().await;
    agent.send(json!({"op": "leave", "conversation_id": world.id(), "ref": "l"})).await;
    assert_eq!(agent.next().await, json!({"op": "left", "conversation_id": world.id(), "ref": "l"}));
    second.send(typing(true)).await;
    agent.nothing_before_pong().await;
    assert_eq!(world.log.of(Topic::ConversationEvents).len() + world.log.of(Topic::MessagesAccepted).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_typed_said_it_and_types_on_is_shown_to_type_again() {
    let world = World::new().await;
    let (mut agent, mut device) = (world.joined("acme").await, world.joined(PHONE).await);
    let typing = |on: bool| json!({"op": "typing", "conversation_id": world.id(), "on": on});
    device.send(typing(true)).await;
    assert_eq!(agent.expect("typing").await["on"], true);
    device.send(send("r", "a")).await;
    device.expect("sent").await;
    world.tell(&[&world.said("acme", &world.chat(true, "a"), 7, Some(-1))]).await;
    agent.messages(1).await;
    device.send(typing(true)).await;
    assert_eq!(agent.expect("typing").await["on"], true);
    // The message alone ended the first, so that nothing is said of it any more.
    device.send(typing(false)).await;
    assert_eq!(agent.expect("typing").await["on"], false);
    agent.nothing_before_pong().await;
}

#[tokio::test(start_paused = true)]
async fn a_stranger_learns_nothing_from_any_frame() {
    let world = World::new().await;
    let missing = ConversationId::new(world.clock.now());
    for stranger in ["other", "+966501234599"] {
        let mut client = world.session(stranger).await;
        for id in [world.id(), missing] {
            for frame in [
                json!({"op": "join", "conversation_id": id}),
                json!({"op": "send", "ref": "r", "conversation_id": id, "content": "a"}),
                json!({"op": "read", "conversation_id": id, "up_to": place(3)}),
            ] {
                client.send(frame.clone()).await;
                let error = client.expect("error").await;
                assert_eq!(error["code"], "conversation_not_found", "{frame}");
            }
            client.send(json!({"op": "typing", "conversation_id": id, "on": true})).await;
            assert_eq!(client.expect("error").await["code"], "not_joined");
            client.send(json!({"op": "leave", "conversation_id": id})).await;
            client.expect("left").await;
        }
    }
    assert!(world.conversations.asked.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_session_joins_so_many_conversations_and_no_more() {
    let world = World::new().await;
    let pair = Pair { business: "acme".parse().unwrap(), phone: phone() };
    let mut chat = crate::chat::Chat::default();
    let ids: Vec<_> = (0..=JOINED).map(|_| ConversationId::new(world.clock.now())).collect();
    for id in &ids[..JOINED] {
        assert_eq!(chat.join(*id, pair.clone()), Ok(()));
    }
    assert_eq!(chat.join(ids[JOINED], pair.clone()), Err(crate::chat::TooMany));
    assert_eq!(chat.join(ids[0], pair.clone()), Ok(()), "again");
    chat.leave(ids[0]);
    assert_eq!(chat.join(ids[JOINED], pair), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_may_have_missed_something_says_so() {
    let world = World::new().await;
    let mut agent = world.session("acme").await;
    let principal: Principal = "acme".parse().unwrap();
    world.shared.hub.of(&principal)[0].fall_behind();
    assert_eq!(agent.next().await, json!({"op": "missed"}));
    // A hint that cannot be understood is missing too.
    let hint = MessageHint {
        epoch: EPOCH.0 as i32,
        lane: 0,
        offset: 7,
        prev: None,
        message: bytes::Bytes::from_static(b"nonsense"),
        in_conversation: true,
    };
    world.tell(&[&world.hint("acme", Hint::Message(hint))]).await;
    assert_eq!(agent.next().await, json!({"op": "missed"}));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_does_nothing_in_conversations_holds_nothing_for_them() {
    let world = World::new().await;
    let pair = world.conversations.pair.clone();
    let mut chat = crate::chat::Chat::default();
    assert!(chat.is_idle());
    chat.join(world.id(), pair).unwrap();
    assert!(!chat.is_idle());
    chat.leave(world.id());
    assert!(chat.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_key_is_revoked_ends_within_the_time_of_a_ping() {
    let world = World::new().await;
    let (mut agent, mut other) = (world.session("acme").await, world.session("other").await);
    *world.credentials.revoked.lock() = Some("acme".to_owned());
    let begun = tokio::time::Instant::now();
    let (close, bye) = agent.bye().await;
    assert_eq!((close, bye["detail"].as_str()), (Close::TokenInvalid, Some("the credential was refused: revoked")));
    assert!(begun.elapsed() <= Duration::from_secs(31), "{:?}", begun.elapsed());
    other.nothing_before_pong().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_goes_on_while_its_key_cannot_be_looked_at() {
    let world = World::new().await;
    let mut agent = world.session("acme").await;
    *world.credentials.revoked.lock() = Some("broken".to_owned());
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(30)).await;
        agent.send(json!({"op": "ping"})).await;
        agent.expect("pong").await;
    }
}
