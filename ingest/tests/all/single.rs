use eshaar_model::{MessageId, Permission};
use eshaar_topics::headers;
use serde_json::json;

use crate::fixture::{Fault, Fixture, NOW, PHONE, submission};

#[tokio::test]
async fn a_message_is_answered_202_once_it_is_in_the_log() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let body = json!({ "to": PHONE, "type": "one_way", "content": "Your card was used.", "priority": "high",
        "ttl_s": 60, "reference": "tx-81", "collapse_key": "card" });
    let answer = fixture.send(&key, &body).await;
    assert_eq!(answer.status, 202);
    let json = answer.json();
    let id: MessageId = json["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(
        json,
        json!({ "id": id.to_string(), "type": "one_way", "status": "sent", "to": PHONE,
        "conversation_id": null, "sent_at": NOW.to_string(), "send_at": null })
    );

    let records = fixture.accepted().await;
    assert_eq!(records.len(), 1);
    let message = fixture.message(&records[0]);
    assert_eq!((message.id, message.sender.as_str(), message.recipient.as_str()), (id, "acme", PHONE));
    assert_eq!(message.expires_at, Some(NOW.plus_millis(60_000).as_millis()));
    assert_eq!((message.reference.as_deref(), message.collapse_key.as_deref()), (Some("tx-81"), Some("card")));
    assert_eq!(records[0].key, PHONE.as_bytes());
    assert_eq!(records[0].headers.text(headers::LANE), Some("high"));
}

#[tokio::test]
async fn messages_are_accepted_in_the_order_of_their_ids() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    for _ in 0..50 {
        fixture.send(&key, &json!({ "to": PHONE, "content": "a" })).await;
    }
    let ids: Vec<_> = fixture.accepted().await.iter().map(|record| fixture.message(record).id).collect();
    assert!(ids.len() == 50 && ids.is_sorted_by(|a, b| a < b));
}

#[tokio::test]
async fn the_correlation_id_and_the_trace_go_into_the_record_and_back_to_the_sender() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let body = json!({ "to": PHONE, "content": "a" }).to_string();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let answer =
        fixture.call(submission(&key, &[("x-correlation-id", "order-17"), ("traceparent", trace)], body.clone())).await;
    assert_eq!(answer.header("x-correlation-id"), Some("order-17"));
    let answer = fixture.call(submission(&key, &[("traceparent", trace)], body)).await;
    assert_eq!(answer.header("x-correlation-id"), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
    let records = fixture.accepted().await;
    assert_eq!(fixture.message(&records[0]).correlation_id, "order-17");
    assert_eq!(records[0].headers.text(headers::CORRELATION), Some("order-17"));
    assert_eq!(records[0].headers.text(headers::TRACEPARENT), Some(trace));
}

#[tokio::test]
async fn a_lost_acknowledgement_is_asked_for_again_with_the_same_id() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    fixture.log.faults.lock().extend([Fault::Lost, Fault::Lost]);
    let answer = fixture.send(&key, &json!({ "to": PHONE, "content": "a" })).await;
    assert_eq!(answer.status, 202);
    let ids: Vec<_> = fixture.accepted().await.iter().map(|record| fixture.message(record).id).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| answer.json()["id"] == id.to_string()));
}

#[tokio::test]
async fn a_log_that_refuses_is_503_with_a_time_to_come_back() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    fixture.log.faults.lock().push_back(Fault::Refused);
    let answer = fixture.send(&key, &json!({ "to": PHONE, "content": "a" })).await;
    assert_eq!(answer.problem(503), "log_unavailable");
    assert!(answer.header("retry-after").is_some());
    assert!(fixture.accepted().await.is_empty());
}

#[tokio::test]
async fn an_outcome_that_stays_unknown_tells_to_repeat_with_the_same_key() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    fixture.log.faults.lock().extend([Fault::Lost; 1_000]);
    let answer = fixture.send(&key, &json!({ "to": PHONE, "content": "a" })).await;
    assert_eq!(answer.problem(503), "outcome_unknown");
    assert!(answer.json()["detail"].as_str().unwrap().contains("Idempotency-Key"));
}

#[tokio::test]
async fn property_12_one_way_read_only() {
    // R1.5: a recipient has no way to reply to a one-way message.
    let fixture = Fixture::new().await;
    let phone = fixture.token(PHONE);
    let sender = fixture.sender().await;
    let id = fixture.send(&sender, &json!({ "to": PHONE, "content": "a" })).await.json()["id"].clone();
    fixture.archive().await;
    for (body, status, code) in [
        (json!({ "to": "acme", "content": "reply" }), 400, "invalid_phone"),
        (json!({ "to": PHONE, "content": "reply" }), 403, "permission_missing"),
        (json!({ "conversation_id": id, "type": "one_way", "content": "reply" }), 400, "one_way_in_conversation"),
        (json!({ "conversation_id": id, "type": "chat", "content": "reply" }), 400, "reply_refused"),
        (json!({ "in_reply_to": id, "to": "acme", "content": "reply" }), 400, "unknown_field"),
    ] {
        assert_eq!(fixture.send(&phone, &body).await.problem(status), code, "{body}");
    }
    // Nor does anybody else learn what that id is of.
    let stranger = fixture.token("+966500000099");
    let body = json!({ "conversation_id": id, "type": "chat", "content": "reply" });
    assert_eq!(fixture.send(&stranger, &body).await.problem(404), "conversation_not_found");
    let chat = fixture.key("acme", &[Permission::MessagesSend, Permission::Chat]).await;
    let joined = json!({ "to": PHONE, "type": "one_way", "conversation_id": id, "content": "a" });
    assert_eq!(fixture.send(&chat, &joined).await.problem(400), "one_way_in_conversation");
    assert_eq!(fixture.accepted().await.len(), 1);
}
