//! Endpoints that fail, refuse, are disabled, or are hostile.
#![allow(clippy::unwrap_used)]

use eshaar_model::{Epoch, Lane};
use eshaar_service::TraceContext;
use eshaar_store::AuditQuery;
use eshaar_topics::{Bounds, Consumer, LogPosition, Reader, StartAt};

use super::*;

async fn made_of(engines: &Engines) -> Webhook {
    engines.store.webhooks.list(&"acme-bank".parse().unwrap()).await.unwrap().remove(0)
}

/// A log that has removed what stood before `start` of each partition of `message.status`.
struct Trimmed {
    log: eshaar_topics::embedded::EmbeddedLog,
    start: u64,
}

#[async_trait]
impl Log for Trimmed {
    async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<LogPosition>, AppendError> {
        self.log.append(records).await
    }

    async fn join(&self, group: &str, topics: &[Topic], start: StartAt) -> Result<Box<dyn Consumer>, LogError> {
        self.log.join(group, topics, start).await
    }

    async fn read(&self, topic: Topic, partition: u32, offset: u64) -> Result<Box<dyn Reader>, LogError> {
        self.log.read(topic, partition, offset.max(self.bounds(topic, partition).await?.start)).await
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        let bounds = self.log.bounds(topic, partition).await?;
        let start = if topic == Topic::MessageStatus { self.start.min(bounds.end) } else { bounds.start };
        Ok(Bounds { start, ..bounds })
    }

    async fn offset_at(&self, topic: Topic, partition: u32, at: Timestamp) -> Result<u64, LogError> {
        self.log.offset_at(topic, partition, at).await
    }

    async fn committed(&self, group: &str, topic: Topic, partition: u32) -> Result<Option<u64>, LogError> {
        self.log.committed(group, topic, partition).await
    }

    fn epoch(&self) -> Epoch {
        self.log.epoch()
    }

    fn partitions(&self, topic: Topic) -> u32 {
        self.log.partitions(topic)
    }

    async fn ping(&self) -> Result<(), LogError> {
        self.log.ping().await
    }
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_disabled_and_told_the_rest_when_it_is_enabled() {
    let engines = Engines::open().await;
    let (receiver, url) = Receiver::start().await;
    receiver.answers.lock().push_back((410, ""));
    let made = webhook(&engines, &url, &[]).await;
    let running = Running::start(&engines, options());
    let sent = ids(40);
    report(&engines, [(sent[0], Status::Delivered)]).await;
    let disabled = becomes(&engines, &made, |webhook| webhook.disabled.is_some()).await;
    assert_eq!(disabled.disabled, Some((START, "it answered 410 Gone".to_owned())));
    let query = AuditQuery { limit: 10, ..AuditQuery::default() };
    let audit = engines.store.audit.list(query).await.unwrap().entries;
    assert_eq!((audit[0].action.as_str(), audit[0].subject.clone()), ("webhook.disabled", made.id.to_string()));
    report(&engines, sent[1..].iter().map(|id| (*id, Status::Delivered))).await;
    settled(&engines).await;
    assert_eq!(receiver.ids().len(), 1);
    // Also by another process.
    running.stop().await;
    let running = Running::start(&engines, options());
    engines.store.webhooks.replace(Webhook { disabled: None, ..disabled }).await.unwrap().unwrap();
    receiver.requests(41).await;
    running.stop().await;
    let told: BTreeSet<_> = receiver.ids()[1..].iter().cloned().collect();
    assert_eq!(told, sent.iter().map(|id| format!("{id}.delivered")).collect());
    let found = engines.store.webhooks.get(&made.business, made.id).await.unwrap().unwrap();
    assert_eq!((found.missed, receiver.ids().len()), (0, 41));
}

#[tokio::test]
async fn an_endpoint_that_fails_for_five_days_is_tried_ever_more_rarely_and_then_disabled() {
    /// Long enough for the stage to have seen what time it is.
    const MOMENT: Duration = Duration::from_millis(200);
    let engines = Engines::open().await;
    let (receiver, url) = Receiver::start().await;
    *receiver.always.lock() = Some(503);
    let made = webhook(&engines, &url, &[]).await;
    let running = Running::start(&engines, options());
    report(&engines, [(MessageId::new(START), Status::Delivered)]).await;
    receiver.requests(1).await;
    for (asked, delay_s) in (1..).zip([5, 300, 1_800, 7_200, 18_000, 36_000, 36_000, 36_000]) {
        // The answer has come, and counts.
        tokio::time::sleep(MOMENT).await;
        engines.clock.advance_millis(delay_s * 1_000 - 1);
        tokio::time::sleep(MOMENT).await;
        assert_eq!(receiver.ids().len(), asked, "asked again before {delay_s} s");
        // A tenth is random.
        engines.clock.advance_millis(delay_s * 100 + 1);
        receiver.requests(asked + 1).await;
    }
    let failing = engines.store.webhooks.get(&made.business, made.id).await.unwrap().unwrap();
    assert_eq!((failing.disabled, failing.failing_since), (None, Some(START)));
    tokio::time::sleep(MOMENT).await;
    engines.clock.advance_millis(5 * 86_400_000);
    let disabled = becomes(&engines, &made, |webhook| webhook.disabled.is_some()).await;
    assert!(disabled.disabled.unwrap().1.ends_with("it answered 503 Service Unavailable"));
    assert_eq!(disabled.failures, 10);
    running.stop().await;
}

#[tokio::test]
async fn nothing_is_lost_while_an_endpoint_refuses_everything() {
    let engines = Engines::open().await;
    let (receiver, url) = Receiver::start().await;
    *receiver.always.lock() = Some(500);
    let made = webhook(&engines, &url, &[]).await;
    let running = Running::start(&engines, Options { queue_records: 10, ..options() });
    let sent = ids(200);
    report(&engines, sent.iter().map(|id| (*id, Status::Delivered))).await;
    let failing = becomes(&engines, &made, |webhook| webhook.failures > 0).await;
    assert_eq!(failing.last_failure.as_deref(), Some("it answered 500 Internal Server Error"));
    for _ in 0..24 {
        engines.clock.advance_millis(10_000);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    receiver.arrived.lock().clear();
    *receiver.always.lock() = None;
    receiver.requests_by(&engines.clock, 1_000, 200).await;
    let told: BTreeSet<_> = receiver.ids().into_iter().collect();
    assert_eq!(told, sent.iter().map(|id| format!("{id}.delivered")).collect());
    assert_eq!(letters(&engines).await.len(), 0);
    becomes(&engines, &made, |webhook| webhook.failures == 0 && webhook.last_failure.is_none()).await;
    running.stop().await;
}

#[tokio::test]
async fn an_event_that_is_refused_on_every_try_is_a_dead_letter_and_others_go_on() {
    let engines = Engines::open().await;
    let (receiver, url) = Receiver::start().await;
    let poison = MessageId::new(START);
    *receiver.refused.lock() = Some((poison.to_string(), 400));
    webhook(&engines, &url, &[]).await;
    let running = Running::start(&engines, options());
    report(&engines, [(poison, Status::Delivered), (poison, Status::Read)]).await;
    let mut good = 0;
    while letters(&engines).await.is_empty() {
        good += 1;
        assert!(good < 400, "it is never given up");
        let before = receiver.arrived.lock().len();
        report(&engines, [(MessageId::new(START), Status::Delivered)]).await;
        receiver.requests(before + 1).await;
        engines.clock.advance_millis(1_800_000);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let letter = letters(&engines).await.remove(0);
    assert_eq!((letter.code.as_str(), letter.attempts), ("webhook_refused", 8));
    let tries = receiver.arrived.lock().iter().filter(|one| one.id == format!("{poison}.delivered")).count();
    assert_eq!(tries, 8);
    // What stood behind it goes on then, and not before.
    let read = format!("{poison}.read");
    let before = receiver.ids().into_iter().take_while(|id| *id != read);
    assert_eq!(before.filter(|id| id.starts_with(&poison.to_string())).count(), 8);
    *receiver.refused.lock() = None;
    let told = async {
        while !receiver.ids().contains(&read) {
            engines.clock.advance_millis(1_000);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn the_steps_of_a_message_are_told_in_order_once_and_sent_before_all() {
    let engines = Engines::open().await;
    let (receiver, url) = Receiver::start().await;
    receiver.answers.lock().extend((0..30).map(|at| ([204, 500, 503, 429][at % 4], "1")));
    webhook(&engines, &url, &[]).await;
    let messages: Vec<_> = (0..60).map(|_| message(1)).collect();
    let accepted = |message| flow::accepted(message, Lane::Normal, &engines.codecs, &TraceContext::new()).unwrap();
    // Each of them twice, as after a crash.
    let twice = messages.iter().flat_map(|message| [accepted(message), accepted(message)]);
    engines.log.append(twice.collect()).await.unwrap();
    for step in [Status::Delivered, Status::Delivered, Status::Read] {
        report_to(&engines, &message(1).recipient, messages.iter().map(|message| (message.id, step))).await;
    }
    let running = Running::start(&engines, Options { queue_records: 8, ..options() });
    let all = async {
        while receiver.taken.lock().len() < 180 {
            engines.clock.advance_millis(100);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
    running.stop().await;
    let taken = receiver.taken.lock().clone();
    assert_eq!(taken.len(), 180);
    for message in &messages {
        let steps: Vec<_> = taken.iter().filter_map(|id| id.strip_prefix(&format!("{}.", message.id))).collect();
        assert_eq!(steps, ["sent", "delivered", "read"]);
    }
    let sent = receiver.arrived.lock().iter().find(|one| one.json()["type"] == "message.sent").unwrap().json();
    assert_eq!((&sent["type"], &sent["data"]["to"]), (&"message.sent".into(), &"+966500000001".into()));
}

#[tokio::test]
async fn a_webhook_whose_key_is_missing_says_so_and_holds_up_no_other() {
    let engines = Engines::open().await;
    let (receiver, url) = Receiver::start().await;
    let lost = webhook(&engines, &url, &[]).await;
    let lost = Webhook { key: "0123456789abcdef".to_owned(), ..lost };
    let lost = engines.store.webhooks.replace(lost).await.unwrap().unwrap();
    webhook(&engines, &url, &[]).await;
    let running = Running::start(&engines, options());
    let sent = ids(100);
    report(&engines, sent.iter().map(|id| (*id, Status::Delivered))).await;
    receiver.requests(100).await;
    settled(&engines).await;
    let failing = becomes(&engines, &lost, |webhook| webhook.last_failure.is_some()).await;
    assert!(failing.last_failure.unwrap().contains("key"));
    running.stop().await;
    assert_eq!(receiver.ids().len(), 100);
}

#[tokio::test]
async fn hostile_answers_are_over_in_time() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let engines = Engines::open().await;
    let options = Options { timeout_s: 1, ..options() };
    for (head, again, is_taken) in [
        // Headers, and a body, without an end.
        ("HTTP/1.1 200 OK\r\n", "a: b\r\n", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n", "0123456789", true),
        ("HTTP/1.1 200 OK\r\n", "", false),
        ("\0\0\0", "\0", false),
        ("HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n", false),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let made = webhook(&engines, &format!("http://{}/hook", listener.local_addr().unwrap()), &[]).await;
        let hostile = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            drop(socket.read(&mut [0; 1_024]).await);
            drop(socket.write_all(head.as_bytes()).await);
            while !again.is_empty() && socket.write_all(again.as_bytes()).await.is_ok() {
                tokio::task::yield_now().await;
            }
            std::future::pending::<()>().await;
        });
        let answer = sender(&options).tell(&made, "id", b"{}".to_vec(), START).await;
        hostile.abort();
        match answer {
            request::Answer::Taken => assert!(is_taken, "{head:?}"),
            request::Answer::Silent { .. } => assert!(!is_taken, "{head:?}"),
            other => panic!("{head:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_the_log_removed_before_an_endpoint_took_it_is_counted() {
    let engines = Engines::open().await;
    let (receiver, url) = Receiver::start().await;
    let made = webhook(&engines, &url, &[]).await;
    let disabled = Webhook { disabled: Some((START, "by the test".to_owned())), ..made };
    let disabled = engines.store.webhooks.replace(disabled).await.unwrap().unwrap();
    let running = Running::start(&engines, options());
    let sent = ids(50);
    report_to(&engines, "+966500000001", sent.iter().map(|id| (*id, Status::Delivered))).await;
    settled(&engines).await;
    let counted = async {
        loop {
            for partition in 0..engines.log.partitions(Topic::MessageStatus) {
                let cursors = engines.store.webhooks.cursors(partition).await.unwrap();
                if cursors.iter().any(|cursor| Standing::decode(0, &cursor.state, 0).waiting == 50) {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.unwrap();
    running.stop().await;
    let running = Running::on(&engines, Arc::new(Trimmed { log: engines.log.clone(), start: 30 }), options());
    engines.store.webhooks.replace(Webhook { disabled: None, ..disabled }).await.unwrap().unwrap();
    receiver.requests(20).await;
    let made = becomes(&engines, &made_of(&engines).await, |webhook| webhook.missed > 0).await;
    running.stop().await;
    assert_eq!((made.missed, receiver.ids().len()), (30, 20));
}
