//! R9.4: all times of a message count from its acceptance, whatever came of earlier attempts of its request.

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use eshaar_ingest::{BulkOptions, Live};
use eshaar_model::{MessageId, Permission, Timestamp};
use eshaar_schemas::Broadcast;
use eshaar_store::Task;
use eshaar_store::broadcasts::{Progress, TASKS};
use eshaar_topics::{Record, Topic, headers};
use http::Method;
use serde_json::{Value, json};
use tokio_stream::wrappers::ReceiverStream;
use tower::ServiceExt as _;

use crate::conversations::{SAID, identity};
use crate::fixture::{Answer, Fault, Fixture, NOW, PHONE, call, options, request, submission, upload};

const TTL_MS: i64 = 2_000;
/// Longer than the time to live.
const LATER_MS: i64 = 10_000;

fn one_way() -> Value {
    json!({ "to": PHONE, "content": "a", "ttl_s": 2 })
}

fn chat() -> Value {
    json!({ "to": "acme", "type": "chat", "content": "a", "ttl_s": 2 })
}

/// The times of a record's message.
fn times(fixture: &Fixture, record: &Record) -> (Timestamp, Option<Timestamp>, Timestamp) {
    let message = fixture.message(record);
    let expires_at = message.expires_at.map(Timestamp::from_millis);
    (Timestamp::from_millis(message.created_at), expires_at, record.timestamp)
}

/// The times of a message that is accepted at `at`, and lives for two seconds.
const fn accepted_at(at: Timestamp) -> (Timestamp, Option<Timestamp>, Timestamp) {
    (at, Some(at.plus_millis(TTL_MS)), at)
}

/// Where the first attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The log refuses the record: nothing is appended.
    Refused,
    /// The record is appended, and the process dies before it answers; the history has the message.
    Appended,
    /// The same, and the history does not have it yet.
    AppendedUnknown,
}

const ENDS: [End; 3] = [End::Refused, End::Appended, End::AppendedUnknown];

/// The first attempt of a request, which ends without an answer. The time to live passes afterwards.
async fn first_attempt(fixture: &Fixture, first: axum::http::Request<Body>, end: End) {
    let fault = if end == End::Refused { Fault::Refused } else { Fault::Lost };
    fixture.log.faults.lock().extend([fault; 1_000]);
    // What a phone sends goes to a business that exists.
    fixture.key("acme", &[Permission::Chat]).await;
    let refused = fixture.call(first).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    fixture.log.faults.lock().clear();
    if end == End::Appended {
        fixture.archive().await;
    }
    fixture.clock.advance_millis(LATER_MS);
}

/// Repeats a request in another process, twice: both answers are the same.
async fn repeat(fixture: &Fixture, request: impl Fn() -> axum::http::Request<Body>) -> Answer {
    let other: Router = fixture.restarted();
    let answer = call(&other, request()).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    fixture.clock.advance_millis(LATER_MS);
    assert_eq!(call(&other, request()).await.body, answer.body);
    answer
}

#[tokio::test]
async fn a_send_that_was_refused_for_its_rate_lives_from_when_it_is_accepted() {
    let fixture = Fixture::new().await;
    let key = fixture.key_of("1/s").await;
    assert_eq!(fixture.send(&key, &one_way()).await.status, 202);
    let keyed = || submission(&key, &[("idempotency-key", "k")], one_way().to_string());
    assert_eq!(fixture.call(keyed()).await.problem(429), "rate_limited");
    fixture.clock.advance_millis(LATER_MS);
    let answer = fixture.call(keyed()).await;
    let now = NOW.plus_millis(LATER_MS);
    assert_eq!((answer.status.as_u16(), &answer.json()["sent_at"]), (202, &json!(now)));
    let records = fixture.accepted().await;
    assert_eq!(times(&fixture, records.last().unwrap()), accepted_at(now));
    assert_eq!(records.len(), 2);
}

#[tokio::test]
async fn a_repeat_of_a_message_has_one_id_and_lives_from_its_acceptance_wherever_the_first_attempt_ended() {
    for end in ENDS {
        for (kind, body) in [("one_way", one_way()), ("chat", chat())] {
            let fixture = Fixture::new().await;
            let credential = if kind == "chat" { fixture.token(PHONE) } else { fixture.sender().await };
            let keyed = || submission(&credential, &[("idempotency-key", "k")], body.to_string());
            first_attempt(&fixture, keyed(), end).await;
            let before = fixture.accepted().await;
            let answer = repeat(&fixture, keyed).await.json();
            let records = fixture.accepted().await;
            let id: MessageId = answer["id"].as_str().unwrap().parse().unwrap();
            assert!(records.iter().all(|record| fixture.message(record).id == id), "{end:?} {kind}");
            let at = if end == End::Appended { NOW } else { NOW.plus_millis(LATER_MS) };
            assert_eq!(answer["sent_at"], json!(at), "{end:?} {kind}");
            assert_eq!(times(&fixture, records.last().unwrap()), accepted_at(at), "{end:?} {kind}");
            // What the history has is not appended again. What it may not have yet is, and its record says so.
            let expected = if end == End::Appended { before.len() } else { before.len() + 1 };
            assert_eq!(records.len(), expected, "{end:?} {kind}");
            let is_marked = records.last().unwrap().headers.get(headers::REPEAT).is_some();
            assert_eq!(is_marked, end != End::Appended, "{end:?} {kind}");
        }
    }
}

#[tokio::test]
async fn a_session_s_message_lives_from_its_acceptance_and_repeats_are_told_its_time() {
    let fixture = Fixture::new().await;
    fixture.key("acme", &[Permission::Chat]).await;
    let (live, phone) = (Live::new(fixture.deps(), options()), identity(PHONE, &[]));
    fixture.log.faults.lock().push_back(Fault::Refused);
    // The conversation is started by it, so the event and the message are one append.
    live.send(&phone, SAID).await.unwrap_err();
    fixture.clock.advance_millis(LATER_MS);
    let sent = live.send(&phone, SAID).await.unwrap();
    assert_eq!(sent.sent_at, NOW.plus_millis(LATER_MS));
    let record = fixture.accepted().await.pop().unwrap();
    assert_eq!(times(&fixture, &record), (sent.sent_at, None, sent.sent_at));
    fixture.clock.advance_millis(LATER_MS);
    let again = Live::new(fixture.deps(), options()).send(&phone, SAID).await.unwrap();
    assert_eq!((again.id, again.sent_at, again.replayed), (sent.id, sent.sent_at, true));
}

#[tokio::test]
async fn a_scheduled_message_lives_from_its_time_or_from_its_acceptance_whichever_is_later() {
    for (send_at_ms, topic) in [(LATER_MS / 2, Topic::MessagesAccepted), (LATER_MS * 2, Topic::MessagesScheduled)] {
        for end in [End::Refused, End::AppendedUnknown] {
            let fixture = Fixture::new().await;
            let key = fixture.sender().await;
            let send_at = NOW.plus_millis(send_at_ms);
            let body = json!({ "to": PHONE, "content": "a", "ttl_s": 2, "send_at": send_at }).to_string();
            let keyed = || submission(&key, &[("idempotency-key", "k")], body.clone());
            first_attempt(&fixture, keyed(), end).await;
            let answer = repeat(&fixture, keyed).await.json();
            let record = fixture.records(topic).await.pop().unwrap();
            let now = NOW.plus_millis(LATER_MS);
            let expected = (send_at.max(now), Some(send_at.max(now).plus_millis(TTL_MS)), now);
            assert_eq!(times(&fixture, &record), expected, "{send_at_ms} {end:?}");
            let status = if send_at > now { "scheduled" } else { "sent" };
            assert_eq!(answer["status"], status, "{end:?}");
            assert_eq!(answer["id"], fixture.message(&record).id.to_string(), "{end:?}");
        }
    }
}

#[tokio::test]
async fn a_broadcast_lives_from_its_acceptance_unless_the_first_attempt_is_being_sent() {
    for is_begun in [false, true] {
        let fixture = Fixture::new().await;
        let key = fixture.key("acme", &[Permission::BroadcastsSend]).await;
        let body = json!({ "to": [PHONE], "content": "a", "ttl_s": 2 }).to_string();
        let json_body = [("content-type", "application/json"), ("idempotency-key", "k")];
        let keyed = || request(Method::POST, "/v1/broadcasts", &key, &json_body, body.clone());
        first_attempt(&fixture, keyed(), if is_begun { End::AppendedUnknown } else { End::Refused }).await;
        if is_begun {
            let records = fixture.records(Topic::BroadcastsRequested).await;
            let broadcast: Broadcast = fixture.codecs.decode(&records[0].value).unwrap();
            let (id, progress) = (broadcast.id.to_string(), Progress::default().encode());
            let task = Task { kind: TASKS.to_owned(), id, made_at: NOW, progress, finished: false };
            fixture.store.tasks.make(task).await.unwrap();
        }
        let answer = repeat(&fixture, keyed).await.json();
        let record = fixture.records(Topic::BroadcastsRequested).await.pop().unwrap();
        let broadcast: Broadcast = fixture.codecs.decode(&record.value).unwrap();
        let at = if is_begun { NOW } else { NOW.plus_millis(LATER_MS) };
        assert_eq!((&answer["id"], &answer["created_at"]), (&json!(broadcast.id.to_string()), &json!(at)));
        let expires_at = at.plus_millis(TTL_MS).as_millis();
        assert_eq!((broadcast.created_at, broadcast.expires_at), (at.as_millis(), Some(expires_at)));
        // What is sent is what the row says.
        let rows = fixture.store.broadcasts.get(&[broadcast.id]).await.unwrap();
        assert_eq!(rows[0].value, record.value);
    }
}

fn line(content: &str) -> String {
    json!({ "to": PHONE, "content": content, "ttl_s": 2 }).to_string() + "\n"
}

#[tokio::test]
async fn a_line_of_an_upload_that_takes_longer_than_its_time_to_live_lives_from_its_own_acceptance() {
    for headers in [&[][..], &[("idempotency-key", "k")]] {
        let fixture = Fixture::new().await;
        let key = fixture.sender().await;
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let body = Body::from_stream(ReceiverStream::new(receiver));
        let response = fixture.api.clone().oneshot(upload(&key, headers, body)).await.unwrap();
        for number in 0..30 {
            sender.send(Ok(line(&number.to_string()).into())).await.unwrap();
            while fixture.accepted().await.len() <= number {
                tokio::task::yield_now().await;
            }
            fixture.clock.advance_millis(LATER_MS);
        }
        drop(sender);
        axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        for (number, record) in fixture.accepted().await.iter().enumerate() {
            let at = NOW.plus_millis(number as i64 * LATER_MS);
            assert_eq!(times(&fixture, record), accepted_at(at), "{headers:?} line {number}");
            // An id that is older than its record says so: nobody looks for an earlier record of it.
            let first_at = record.headers.text(headers::FIRST_MS).map(|ms| ms.parse().unwrap());
            let is_old = at.millis_since(fixture.message(record).id.made_at()) > 5_000;
            assert_eq!(first_at, is_old.then_some(at.as_millis()), "{headers:?} line {number}");
            assert!(record.headers.get(headers::REPEAT).is_none());
        }
    }
}

#[tokio::test]
async fn a_line_that_waits_for_the_rate_lives_from_when_it_is_let_in() {
    let patient = eshaar_ingest::Options { bulk: BulkOptions { patience_s: 30, ..options().bulk }, ..options() };
    let fixture = std::sync::Arc::new(Fixture::with(patient).await);
    let key = fixture.key_of("1/s").await;
    let request = upload(&key, &[], line("one") + &line("two"));
    let answer = tokio::spawn({
        let fixture = std::sync::Arc::clone(&fixture);
        async move { fixture.call(request).await }
    });
    while fixture.accepted().await.is_empty() {
        tokio::task::yield_now().await;
    }
    fixture.clock.advance_millis(LATER_MS);
    assert_eq!(answer.await.unwrap().lines()[2], json!({ "accepted": 2, "rejected": 0 }));
    let records = fixture.accepted().await;
    let at = [NOW, NOW.plus_millis(LATER_MS)];
    assert_eq!(records.iter().map(|record| times(&fixture, record)).collect::<Vec<_>>(), at.map(accepted_at));
}

#[tokio::test]
async fn a_repeated_upload_appends_no_line_that_the_history_has_and_all_others_under_their_ids() {
    let keys = |number: u32| json!({ "to": PHONE, "content": number.to_string(), "ttl_s": 2, "idempotency_key": format!("l-{number}") });
    let own = (0..20).fold(String::new(), |text, number| text + &keys(number).to_string() + "\n");
    let plain = (0..20).fold(String::new(), |text, number| text + &line(&number.to_string()));
    for (lines, headers) in [(plain, &[("idempotency-key", "k")][..]), (own, &[])] {
        let fixture = Fixture::new().await;
        let key = fixture.sender().await;
        // Half of the lines are appended: then the sender dies.
        let (half, _) = lines.split_at(lines.len() / 2 + 1);
        let half = &half[..=half.rfind('\n').unwrap()];
        let first = fixture.call(upload(&key, headers, half.to_owned())).await.lines();
        let appended = fixture.accepted().await.len();
        fixture.archive().await;
        fixture.clock.advance_millis(LATER_MS);
        let again = call(&fixture.restarted(), upload(&key, headers, lines.clone())).await.lines();
        assert_eq!(again[..first.len() - 1], first[..first.len() - 1]);
        assert_eq!(again[20], json!({ "accepted": 20, "rejected": 0 }));
        let records = fixture.accepted().await;
        assert_eq!(records.len(), 20, "no line stands twice");
        let late = NOW.plus_millis(LATER_MS);
        for (place, record) in records.iter().enumerate() {
            let at = if place < appended { NOW } else { late };
            assert_eq!(times(&fixture, record), accepted_at(at), "record {place}");
        }
    }
}
