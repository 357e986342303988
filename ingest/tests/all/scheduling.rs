use axum::body::Body;
use eshaar_model::limits::SEND_AHEAD_MS;
use eshaar_model::{Lane, Shown, Status, Timestamp};
use eshaar_schemas::Message;
use eshaar_store::Step;
use eshaar_topics::flow::{self, Envelope};
use eshaar_topics::{Log as _, Topic};
use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Fixture, NOW, PHONE, call, request, submission, upload};

fn after(ms: i64) -> Timestamp {
    NOW.plus_millis(ms)
}

fn body(send_at: Timestamp) -> Value {
    json!({ "to": PHONE, "content": "a", "send_at": send_at })
}

/// Sends a message an hour ahead, and has it archived; its id.
async fn scheduled(fixture: &Fixture, key: &str) -> String {
    let answer = fixture.send(key, &body(after(3_600_000))).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    fixture.archive().await;
    answer.json()["id"].as_str().unwrap().to_owned()
}

/// What the stage schedule does when a message is due.
async fn comes_due(fixture: &Fixture) {
    for record in fixture.records(Topic::MessagesScheduled).await {
        let now = fixture.clock.now();
        let message: Message = fixture.codecs.decode(&record.value).unwrap();
        let record = flow::come_due(message, (record.key, &record.headers), now, &fixture.codecs).unwrap();
        fixture.log.append(vec![record]).await.unwrap();
    }
    fixture.archive().await;
}

#[tokio::test]
async fn a_message_of_later_waits_in_its_own_topic_and_its_time_to_live_begins_when_it_is_due() {
    let (fixture, at) = (Fixture::new().await, after(60_000));
    let key = fixture.sender().await;
    let sent = json!({ "to": PHONE, "content": "a", "priority": "high", "ttl_s": 5, "send_at": at });
    let answer = fixture.send(&key, &sent).await;
    assert_eq!(answer.status, 202);
    let answer = answer.json();
    assert_eq!((&answer["status"], &answer["send_at"]), (&json!("scheduled"), &json!(at)));
    assert_eq!((&answer["sent_at"], &answer["to"]), (&json!(null), &json!(PHONE)));

    assert!(fixture.accepted().await.is_empty());
    let records = fixture.records(Topic::MessagesScheduled).await;
    let (record, message) = (&records[0], fixture.message(&records[0]));
    assert_eq!((records.len(), record.timestamp, &record.key[..]), (1, NOW, PHONE.as_bytes()));
    assert_eq!((message.created_at, message.expires_at), (at.as_millis(), Some(at.as_millis() + 5_000)));
    let envelope = Envelope::read(&record.headers).unwrap();
    assert_eq!((envelope.id.to_string(), envelope.lane), (answer["id"].as_str().unwrap().to_owned(), Lane::High));
    assert_eq!((message.id, message.id.made_at()), (envelope.id, NOW));
}

#[tokio::test]
async fn a_message_of_now_or_before_is_sent_at_once() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    for at in [NOW, after(-1), after(-365 * 24 * 3_600_000)] {
        let answer = fixture.send(&key, &body(at)).await.json();
        assert_eq!((&answer["status"], &answer["send_at"]), (&json!("sent"), &json!(null)), "{at}");
        assert!(answer["sent_at"].is_string());
    }
    assert_eq!(fixture.accepted().await.len(), 3);
    assert!(fixture.records(Topic::MessagesScheduled).await.is_empty());
}

#[tokio::test]
async fn a_time_that_is_too_far_ahead_is_refused_with_the_limit() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    assert_eq!(fixture.send(&key, &body(after(SEND_AHEAD_MS))).await.status, 202);
    let answer = fixture.send(&key, &body(after(SEND_AHEAD_MS + 1))).await;
    assert_eq!(answer.problem(400), "invalid_send_at");
    assert_eq!(answer.json()["field"], "send_at");
    assert!(answer.json()["detail"].as_str().unwrap().contains("at most 30 days ahead"), "{answer:?}");
    assert_eq!(fixture.records(Topic::MessagesScheduled).await.len(), 1);
}

#[tokio::test]
async fn a_repeat_is_the_same_message_even_when_its_time_has_come_and_another_time_is_another_body() {
    let fixture = Fixture::new().await;
    let (key, at) = (fixture.sender().await, after(1_000));
    let send = |at: Timestamp| submission(&key, &[("idempotency-key", "k-1")], body(at).to_string());
    let first = fixture.call(send(at)).await;
    assert_eq!((first.status.as_u16(), &first.json()["status"]), (202, &json!("scheduled")));
    fixture.clock.advance_millis(5_000);
    let again = call(&fixture.restarted(), send(at)).await;
    assert_eq!((again.json(), again.header("idempotency-replayed")), (first.json(), Some("true")));
    assert_eq!(fixture.call(send(after(2_000))).await.problem(422), "idempotency_mismatch");
    assert_eq!(fixture.records(Topic::MessagesScheduled).await.len(), 1);
    assert!(fixture.accepted().await.is_empty());
}

#[tokio::test]
async fn lines_of_a_bulk_request_may_each_have_a_time() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let line = |content: &str, at: Option<Timestamp>, idempotency_key: Option<&str>| {
        json!({ "to": PHONE, "content": content, "send_at": at, "idempotency_key": idempotency_key }).to_string()
    };
    let lines = [
        line("one", Some(after(60_000)), None),
        line("two", None, None),
        line("three", Some(after(60_000)), Some("k-3")),
        line("four", Some(after(SEND_AHEAD_MS + 1)), None),
    ]
    .join("\n");
    for _ in 0..2 {
        let answer = fixture.call(upload(&key, &[("idempotency-key", "all")], lines.clone())).await.lines();
        let statuses: Vec<&Value> = answer.iter().map(|line| &line["status"]).collect();
        assert_eq!(statuses[..3], [&json!("scheduled"), &json!("sent"), &json!("scheduled")]);
        assert_eq!(answer[3]["error"]["code"], "invalid_send_at");
    }
    let waiting = fixture.records(Topic::MessagesScheduled).await;
    let mut ids: Vec<_> = waiting.iter().map(|record| fixture.message(record).id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 2);
    assert!(waiting.iter().all(|record| Envelope::read(&record.headers).unwrap().lane == Lane::Bulk));
}

#[tokio::test]
async fn it_is_shown_as_scheduled_to_its_sender_alone_until_it_is_sent() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let id = scheduled(&fixture, &key).await;
    let (path, phone) = (format!("/v1/messages/{id}"), fixture.token(PHONE));
    let message = fixture.get(&path, &key).await.json();
    assert_eq!((&message["status"], &message["timeline"]), (&json!("scheduled"), &json!([])));
    assert_eq!((&message["sent_at"], &message["send_at"]), (&json!(null), &json!(after(3_600_000))));
    assert_eq!(fixture.get(&path, &phone).await.problem(404), "message_not_found");
    let read = request(Method::POST, &format!("{path}/read"), &phone, &[], Body::empty());
    assert_eq!(fixture.call(read).await.problem(404), "message_not_found");
    for (status, count) in [("scheduled", 1), ("sent", 0)] {
        let listed = fixture.get(&format!("/v1/messages?status={status}"), &key).await.json();
        assert_eq!(listed["messages"].as_array().unwrap().len(), count, "{status}");
    }

    fixture.clock.advance_millis(3_600_002);
    comes_due(&fixture).await;
    let message = fixture.get(&path, &key).await.json();
    assert_eq!((&message["status"], &message["send_at"]), (&json!("sent"), &json!(null)));
    assert_eq!(message["sent_at"], json!(after(3_600_002)));
    assert_eq!((&message["timeline"][0]["step"], &message["timeline"][0]["offset"]), (&json!("sent"), &json!(0)));
    assert_eq!(fixture.get(&path, &phone).await.json()["status"], "sent");
}

#[tokio::test]
async fn it_is_taken_back_before_its_time() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let id = scheduled(&fixture, &key).await;
    let cancel = request(Method::POST, &format!("/v1/messages/{id}/cancel"), &key, &[], Body::empty());
    let answer = fixture.call(cancel).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!("cancelled")));
    assert_eq!(fixture.records(Topic::Cancellations).await[0].key[..], *id.as_bytes());
    let step = Step { id: id.parse().unwrap(), status: Status::Cancelled, at: NOW, reason: None };
    fixture.store.messages.reach(vec![step]).await.unwrap();
    let message = fixture.get(&format!("/v1/messages/{id}"), &key).await.json();
    assert_eq!((&message["status"], &message["sent_at"]), (&json!("cancelled"), &json!(null)));
    assert_eq!(message["timeline"], json!([{ "step": "cancelled", "at": NOW }]));
}

#[tokio::test]
async fn one_that_was_not_sent_before_it_expired_is_expired() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let sent = json!({ "to": PHONE, "content": "a", "ttl_s": 1, "send_at": after(1_000) });
    let id = fixture.send(&key, &sent).await.json()["id"].as_str().unwrap().to_owned();
    fixture.archive().await;
    let path = format!("/v1/messages/{id}");
    fixture.clock.advance_millis(1_999);
    assert_eq!(fixture.get(&path, &key).await.json()["status"], Shown::Scheduled.as_str());
    fixture.clock.advance_millis(1);
    let message = fixture.get(&path, &key).await.json();
    assert_eq!((&message["status"], &message["timeline"][0]["step"]), (&json!("expired"), &json!("expired")));
}

#[tokio::test]
async fn a_broadcast_has_no_time_yet_and_says_so() {
    let fixture = Fixture::new().await;
    let key = fixture.key("acme", &[eshaar_model::Permission::BroadcastsSend]).await;
    let body = json!({ "to": [PHONE], "content": "a", "send_at": after(1_000) }).to_string();
    let headers = [("content-type", "application/json")];
    let answer = fixture.call(request(Method::POST, "/v1/broadcasts", &key, &headers, body)).await;
    assert_eq!((answer.problem(400), &answer.json()["field"]), ("unknown_field".to_owned(), &json!("send_at")));
}
