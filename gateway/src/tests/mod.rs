//! Tests of the gateway over in-memory connections: a real WebSocket client at one end, the session at the other, and a
//! paused clock, so that nothing waits.

mod accepting;
mod fake_messages;
mod fake_presence;
mod fakes;
mod fresh;
mod fuzz;
mod large;
mod lifecycle;
mod look_ups;
mod operations;
mod receiving;
mod resuming;
mod storm;
mod talking;

use std::sync::Arc;
use std::time::Duration;

use eshaar_model::{Clock, Cursor, Lane, MessageId, MessageType, Pair, Phone, Priority, StreamPosition, Timestamp};
use eshaar_presence::Presence;
use eshaar_schemas::{Codecs, Delivery, Hint, Message, MessageHint, StatusChanged};
use eshaar_store::{StreamRow, StreamStore};
use eshaar_topics::{Cancelled, Log, NewRecord, Topic, flow};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use self::fake_messages::FakeMessages;
use self::fake_presence::FakePresence;
use self::fakes::{EPOCH, FakeConversations, FakeCredentials, FakeLog, FakeRegistry, FakeStreams};
use crate::shared::{Credentials, Parts, Shared};
use crate::{Close, Gateway, Options, session};

/// A gateway on fakes, with what stands in for route.
struct World {
    gateway: Gateway,
    shared: Arc<Shared>,
    clock: Clock,
    log: Arc<FakeLog>,
    streams: Arc<FakeStreams>,
    messages: Arc<FakeMessages>,
    presence: Arc<FakePresence>,
    conversations: Arc<FakeConversations>,
    credentials: Arc<FakeCredentials>,
    codecs: Codecs,
    next: [u64; 4],
}

/// A message that was appended to a stream, and the hint that tells of it.
#[derive(Clone)]
struct Appended {
    id: MessageId,
    position: StreamPosition,
    hint: NewRecord,
}

/// A mobile app, or a business's system.
struct Client(WebSocketStream<DuplexStream>);

fn phone() -> Phone {
    "+966501234567".parse().unwrap()
}

impl World {
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        Self::build(options, false).await
    }

    /// A gateway that reads cancellations from its log.
    async fn following() -> Self {
        Self::build(Options::default(), true).await
    }

    async fn build(options: Options, follows: bool) -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_760_000_000_000));
        let subjects = [("message", "Message"), ("deliveries", "Delivery"), ("status", "StatusChanged")];
        let subjects: Vec<_> = subjects.into_iter().map(|(subject, name)| (subject.to_owned(), name)).collect();
        let codecs = Codecs::register(Arc::new(FakeRegistry::default()), &subjects).await.unwrap();
        let (log, streams) = (Arc::new(FakeLog::new()), Arc::new(FakeStreams::default()));
        let (messages, presence) = (Arc::new(FakeMessages::default()), Arc::new(FakePresence::new(clock.clone())));
        let cancelled = if follows {
            let (log, options) = (Arc::clone(&log) as Arc<dyn Log>, eshaar_topics::cancelled::Options::default());
            Cancelled::follow(log, clock.clone(), &options, CancellationToken::new()).await.unwrap()
        } else {
            Arc::new(Cancelled::none(clock.clone()))
        };
        let pair = Pair { business: "acme".parse().unwrap(), phone: phone() };
        let conversations = Arc::new(FakeConversations::new(pair, clock.now()));
        let credentials = Arc::new(FakeCredentials::default());
        let parts = Parts {
            log: Arc::clone(&log) as _,
            codecs: codecs.clone(),
            streams: Arc::clone(&streams) as _,
            messages: Arc::clone(&messages) as _,
            presence: Arc::clone(&presence) as _,
            conversations: Arc::clone(&conversations) as _,
            credentials: Arc::clone(&credentials) as _,
            cancelled: Arc::clone(&cancelled),
            clock: clock.clone(),
        };
        let gateway = Gateway::start_with(parts, options, CancellationToken::new()).await.unwrap();
        let shared = Arc::clone(&gateway.shared);
        Self {
            gateway,
            shared,
            clock,
            log,
            streams,
            messages,
            presence,
            conversations,
            credentials,
            codecs,
            next: [0; 4],
        }
    }

    /// A client with this credential, before its hello.
    async fn connect(&self, credential: &str) -> Client {
        self.connect_through(credential, 64 * 1024).await
    }

    /// As [`World::connect`], over a connection that holds `buffer` bytes each way.
    async fn connect_through(&self, credential: &str, buffer: usize) -> Client {
        let identity = self.credentials.authenticate(credential).await.unwrap();
        let (ours, theirs) = tokio::io::duplex(buffer);
        tokio::spawn(session::run(Box::pin(session::open(Arc::clone(&self.shared), theirs, identity))));
        Client(WebSocketStream::from_raw_socket(ours, Role::Client, None).await)
    }

    /// A phone that has said hello, been welcomed and caught up; what waited is lost on the way.
    async fn phone(&self, hello: Value) -> Client {
        let mut client = self.connect("+966501234567").await;
        client.send(hello).await;
        while client.next().await["op"] != "caught_up" {}
        client
    }

    fn message(&self, content: &str) -> Message {
        let now = self.clock.now();
        Message {
            id: MessageId::new(now),
            r#type: MessageType::OneWay,
            conversation_id: None,
            sender: "acme".to_owned(),
            recipient: phone().to_string(),
            content: content.to_owned(),
            content_ciphertext: None,
            content_key_id: None,
            media: vec![],
            priority: Priority::Normal,
            created_at: now.as_millis(),
            expires_at: None,
            reference: None,
            collapse_key: None,
            correlation_id: "corr-1".to_owned(),
            broadcast_id: None,
        }
    }

    /// Appends to the phone's stream, as route does, without telling anybody.
    async fn append(&mut self, lane: Lane, content: &str) -> Appended {
        let message = self.message(content);
        self.append_message(lane, message).await
    }

    async fn append_message(&mut self, lane: Lane, message: Message) -> Appended {
        self.clock.advance_millis(1);
        // The partition is shared with other phones: offsets have gaps.
        let offset = self.next[lane.index()];
        self.next[lane.index()] += 3;
        let prev = offset.checked_sub(3).map_or(-1, |prev| prev as i64);
        let position = StreamPosition { epoch: EPOCH, lane, offset };
        let value = self.codecs.encode(&message).unwrap();
        let row = StreamRow {
            phone: phone(),
            position,
            id: message.id,
            at: Timestamp::from_millis(message.created_at),
            expires_at: message.expires_at.map(Timestamp::from_millis),
            value: value.clone(),
        };
        self.streams.append(0, vec![row]).await.unwrap();
        let hint = MessageHint {
            epoch: EPOCH.0 as i32,
            lane: lane.index() as i32,
            offset: offset as i64,
            prev: Some(prev),
            message: value,
            in_conversation: false,
        };
        Appended { id: message.id, position, hint: self.hint(&phone().to_string(), Hint::Message(hint)) }
    }

    fn hint(&self, principal: &str, hint: Hint) -> NewRecord {
        let slot = self.shared.node().unwrap().slot;
        let delivery = Delivery { principal: principal.to_owned(), hint };
        flow::delivery(&delivery, slot, self.clock.now(), &self.codecs, flow::Origin::default()).unwrap()
    }

    /// Hands hints to the gateway.
    async fn tell(&self, hints: &[&NewRecord]) {
        self.log.append(hints.iter().map(|hint| (*hint).clone()).collect()).await.unwrap();
    }

    /// Appends and tells.
    async fn deliver(&mut self, lane: Lane, content: &str) -> Appended {
        let appended = self.append(lane, content).await;
        self.tell(&[&appended.hint]).await;
        appended
    }

    /// The statuses appended so far, once everything acknowledged is written.
    async fn statuses(&self) -> Vec<(MessageId, String)> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.shared.receipts.flushed().await;
        let records = self.log.of(Topic::MessageStatus);
        let changes = records.iter().map(|record| self.codecs.decode::<StatusChanged>(&record.value).unwrap());
        changes.map(|change| (change.id, change.status.to_string())).collect()
    }

    async fn acked(&self) -> Option<Cursor> {
        self.statuses().await;
        self.streams.acked(phone()).await.unwrap()
    }

    async fn is_online(&self) -> bool {
        !self.presence.slots_of(&[phone().into()]).await.unwrap()[0].is_empty()
    }
}

impl Client {
    async fn send(&mut self, frame: Value) {
        self.send_text(&frame.to_string()).await;
    }

    async fn send_text(&mut self, text: &str) {
        self.0.send(Frame::text(text)).await.unwrap();
    }

    /// The next frame that is not a ping.
    async fn next(&mut self) -> Value {
        loop {
            match self.0.next().await.expect("the connection ended").unwrap() {
                Frame::Text(text) => return serde_json::from_str(&text).unwrap(),
                Frame::Ping(_) | Frame::Pong(_) => {}
                other => panic!("expected a frame, got {other:?}"),
            }
        }
    }

    /// The next frame, which must have this `op`.
    async fn expect(&mut self, op: &str) -> Value {
        let frame = self.next().await;
        assert_eq!(frame["op"], op, "{frame}");
        frame
    }

    /// The ids of the next `count` messages.
    async fn messages(&mut self, count: usize) -> Vec<MessageId> {
        let mut ids = vec![];
        for _ in 0..count {
            ids.push(self.expect("message").await["id"].as_str().unwrap().parse().unwrap());
        }
        ids
    }

    /// That nothing but pings comes before `op`, the answer to what is sent now.
    async fn nothing_before_pong(&mut self) {
        tokio::time::sleep(Duration::from_secs(3)).await;
        self.send(json!({"op": "ping"})).await;
        self.expect("pong").await;
    }

    /// The bytes that are still to be read: of a connection that cannot be written to any more.
    async fn rest(&mut self) -> String {
        let mut bytes = vec![];
        tokio::io::AsyncReadExt::read_to_end(self.0.get_mut(), &mut bytes).await.unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bye that comes next, and the close frame that must agree with it.
    async fn bye(&mut self) -> (Close, Value) {
        let bye = loop {
            let frame = self.next().await;
            if frame["op"] == "bye" {
                break frame;
            }
        };
        let close = Close::of_code(bye["code"].as_u64().unwrap() as u16).unwrap();
        assert_eq!(bye["reason"], close.reason());
        assert_eq!(bye["reconnect_after_ms"].is_u64(), close.reconnects());
        match self.0.next().await {
            Some(Ok(Frame::Close(Some(frame)))) => {
                assert_eq!((u16::from(frame.code), frame.reason.as_str()), (close.code(), close.reason()));
            }
            other => panic!("expected a close frame, got {other:?}"),
        }
        (close, bye)
    }
}

fn ids(appended: &[Appended]) -> Vec<MessageId> {
    appended.iter().map(|appended| appended.id).collect()
}
