//! A host whose clock was a day ahead, and was corrected: what is accepted from then on has the right time.

use eshaar_model::{MessageId, Timestamp};
use eshaar_topics::Topic;
use serde_json::{Value, json};

use crate::fixture::{Fault, Fixture, NOW, PHONE, call, submission, upload};

const DAY_MS: i64 = 24 * 3_600_000;
const HOUR_MS: i64 = 3_600_000;

/// A fixture whose clock was a day ahead while one message was accepted.
async fn corrected() -> (Fixture, String) {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    fixture.clock.advance_millis(DAY_MS);
    assert_eq!(fixture.send(&key, &body(None)).await.status, 202);
    fixture.clock.advance_millis(-DAY_MS);
    (fixture, key)
}

fn body(send_at: Option<Timestamp>) -> Value {
    json!({ "to": PHONE, "content": "a", "send_at": send_at })
}

fn id_of(answer: &Value) -> MessageId {
    answer["id"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn messages_are_dated_by_the_clock_once_it_was_corrected() {
    let (fixture, key) = corrected().await;
    let answer = fixture.send(&key, &body(None)).await.json();
    assert_eq!((id_of(&answer).made_at(), &answer["sent_at"]), (NOW, &json!(NOW)));
    let lines = [body(None), body(None)].map(|line| line.to_string()).join("\n");
    let bulk = fixture.call(upload(&key, &[], lines)).await.lines();
    assert!(bulk[..2].iter().all(|line| id_of(line).made_at() == NOW), "{bulk:?}");
    let records = fixture.accepted().await;
    for record in records.iter().filter(|record| record.position.offset > 0) {
        let message = fixture.message(record);
        assert_eq!((record.timestamp, message.created_at), (NOW, NOW.as_millis()));
    }
    assert_eq!(records.len(), 4);
}

#[tokio::test]
async fn nothing_is_released_before_its_time_once_the_clock_was_corrected() {
    let (fixture, key) = corrected().await;
    let at = NOW.plus_millis(HOUR_MS);
    let answer = fixture.send(&key, &body(Some(at))).await.json();
    assert_eq!((&answer["status"], &answer["send_at"]), (&json!("scheduled"), &json!(at)));
    let bulk = fixture.call(upload(&key, &[], body(Some(at)).to_string())).await.lines();
    assert_eq!(bulk[0]["status"], "scheduled");
    let waiting = fixture.records(Topic::MessagesScheduled).await;
    assert_eq!(waiting.len(), 2);
    assert!(waiting.iter().all(|record| record.timestamp == NOW));
    assert_eq!(fixture.accepted().await.len(), 1, "the first alone");
}

#[tokio::test]
async fn a_key_that_was_claimed_by_a_clock_that_was_ahead_dates_its_message_by_the_clock_of_its_repeat() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let send = |name: &str, send_at| submission(&key, &[("idempotency-key", name)], body(send_at).to_string());
    // Past by the clock that is ahead, still to come by the right one.
    let later = NOW.plus_millis(12 * HOUR_MS);
    fixture.clock.advance_millis(DAY_MS);
    for (name, send_at) in [("now", None), ("later", Some(later))] {
        fixture.log.faults.lock().push_back(Fault::Refused);
        assert!(fixture.call(send(name, send_at)).await.status.is_server_error(), "claimed, and not accepted");
    }
    fixture.clock.advance_millis(-DAY_MS);

    let answer = call(&fixture.restarted(), send("now", None)).await.json();
    assert_eq!((&answer["status"], &answer["sent_at"]), (&json!("sent"), &json!(NOW)));
    let record = &fixture.accepted().await[0];
    assert_eq!((record.timestamp, fixture.message(record).created_at), (NOW, NOW.as_millis()));
    assert_eq!(fixture.message(record).id, id_of(&answer));
    let answer = call(&fixture.restarted(), send("later", Some(later))).await.json();
    assert_eq!((&answer["status"], &answer["send_at"]), (&json!("scheduled"), &json!(later)));
    assert_eq!(fixture.accepted().await.len(), 1);
}
