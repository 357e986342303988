//! R15.4: a hostile or careless caller meets limits of its own, and takes nothing from others.

use axum::body::Body;
use eshaar_auth::keys;
use eshaar_ingest::Live;
use eshaar_model::{Permission, Rate};
use eshaar_presence::limits::Options as Limits;
use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Answer, Fixture, NOW, OTHER_PHONE, PHONE, options, request};

/// An API whose keys may do `few` of everything in a second; the clock stands still.
async fn tight(few: u32) -> Fixture {
    let rate = Rate::new(few, eshaar_model::Per::Minute).unwrap();
    let limits = Limits {
        user: rate,
        user_requests: rate,
        user_reads: rate,
        key_per_s: few,
        key_requests_per_s: few,
        key_reads_per_s: few,
        whole: None,
        bulk_percent: 80,
    };
    Fixture::limited(options(), limits).await
}

async fn key_with(fixture: &Fixture, rate: Option<&str>) -> String {
    let mut minted = keys::mint("acme".parse().unwrap(), "tests", Permission::ALL.to_vec(), None, NOW);
    minted.stored.rate = rate.map(|rate| rate.parse().unwrap());
    fixture.store.keys.put(minted.stored).await.unwrap();
    minted.text
}

/// A request of an operation of the document, as good as it need be to reach its limit.
async fn ask(fixture: &Fixture, method: &str, path: &str, credential: &str) -> Answer {
    let path = path.replace("{id}", "019b7600-0000-7000-8000-000000000000").replace("{name}", "all");
    let (content_type, body) = match (method, path.as_str()) {
        ("post", "/v1/messages") => ("application/json", json!({"to": PHONE, "content": "c"}).to_string()),
        ("post", "/v1/messages/bulk") => ("application/x-ndjson", json!({"to": PHONE, "content": "c"}).to_string()),
        ("post", "/v1/conversations") => ("application/json", json!({"with": PHONE}).to_string()),
        ("post", "/v1/broadcasts") => ("application/json", json!({"to": [PHONE], "content": "c"}).to_string()),
        _ => ("application/json", "{}".to_owned()),
    };
    let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
    let body = if method == Method::GET { Body::empty() } else { Body::from(body) };
    fixture.call(request(method, &path, credential, &[("content-type", content_type)], body)).await
}

#[tokio::test]
async fn every_operation_takes_from_a_limit_of_its_caller_and_of_nobody_else() {
    let document = serde_json::to_value(eshaar_ingest::openapi_document()).unwrap();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let fixture = tight(2).await;
            let (key, other) = (key_with(&fixture, None).await, key_with(&fixture, None).await);
            let is_refused = |answer: &Answer| {
                let text = String::from_utf8_lossy(&answer.body).into_owned();
                answer.status == 429 || path == "/v1/messages/bulk" && text.contains("\"rate_limited\"")
            };
            for asked in 0..3 {
                let answer = ask(&fixture, method, path, &key).await;
                assert_eq!(is_refused(&answer), asked == 2, "{method} {path}, request {asked}: {}", answer.json());
            }
            let others = ask(&fixture, method, path, &other).await;
            assert!(!is_refused(&others), "{method} {path} of another key");
        }
    }
}

#[tokio::test]
async fn look_ups_and_other_writes_do_not_take_from_what_may_be_sent() {
    let fixture = tight(3).await;
    let key = key_with(&fixture, None).await;
    for _ in 0..4 {
        fixture.get("/v1/messages", &key).await;
        fixture.post("/v1/messages/019b7600-0000-7000-8000-000000000000/cancel", &key, &json!({})).await;
    }
    for _ in 0..3 {
        assert_eq!(fixture.send(&key, &json!({"to": PHONE, "content": "c"})).await.status, 202);
    }
    let refused = fixture.get("/v1/messages", &key).await;
    assert_eq!(refused.problem(429), "rate_limited");
    assert_eq!(refused.json()["detail"], "the limit `reads` of 3/s is reached; nothing was accepted");
    assert!(refused.header("retry-after").is_some());
}

#[tokio::test]
async fn a_phone_starts_no_more_conversations_than_it_may_send_messages() {
    let fixture = tight(5).await;
    fixture.key("acme", &[Permission::Chat]).await;
    let phone = fixture.token(PHONE);
    let mut answers = Vec::new();
    for _ in 0..8 {
        answers.push(fixture.post("/v1/conversations", &phone, &json!({"with": "acme"})).await.status.as_u16());
    }
    assert_eq!(answers, [201, 200, 200, 200, 200, 429, 429, 429]);
    let other = fixture.token(OTHER_PHONE);
    assert_eq!(fixture.post("/v1/conversations", &other, &json!({"with": "acme"})).await.status, 201);
}

#[tokio::test]
async fn a_conversation_needs_a_business_that_exists() {
    let fixture = Fixture::new().await;
    let phone = fixture.token(PHONE);
    let started = fixture.post("/v1/conversations", &phone, &json!({"with": "nobody"})).await;
    assert_eq!(started.problem(400), "business_unknown");
    assert_eq!(started.json()["field"], "with");
    let sent = fixture.send(&phone, &json!({"to": "nobody", "type": "chat", "content": "c"})).await;
    assert_eq!(sent.problem(400), "business_unknown");
    assert_eq!(sent.json()["field"], "to");

    // The same over a WebSocket.
    let live = Live::new(fixture.deps(), options());
    let by = fixture.identity(&phone).await;
    let message = eshaar_ingest::LiveMessage {
        reference: "m-1",
        to: Some("nobody"),
        conversation_id: None,
        content: "c",
        own_reference: None,
        has_media: false,
    };
    assert_eq!(live.send(&by, message).await.unwrap_err().code, "business_unknown");
    assert_eq!(fixture.get("/v1/conversations", &phone).await.json()["conversations"], json!([]));

    fixture.key("somebody", &[Permission::Chat]).await;
    assert_eq!(fixture.post("/v1/conversations", &phone, &json!({"with": "somebody"})).await.status, 201);
}

#[tokio::test]
async fn marking_conversations_over_a_websocket_takes_from_the_limit_of_http() {
    let fixture = tight(2).await;
    let business = fixture.key("acme", &[Permission::Chat]).await;
    let phone = fixture.token(PHONE);
    let conversation = fixture.post("/v1/conversations", &phone, &json!({"with": "acme"})).await.json();
    let id = conversation["id"].as_str().unwrap().to_owned();
    fixture.send(&business, &json!({"conversation_id": id, "type": "chat", "content": "c"})).await;
    fixture.archive().await;
    let page = fixture.get(&format!("/v1/conversations/{id}/messages"), &phone).await.json();
    let up_to = page["newest"].as_str().unwrap().parse().unwrap();
    let (live, by) = (Live::new(fixture.deps(), options()), fixture.identity(&phone).await);
    for _ in 0..2 {
        live.read(&by, id.parse().unwrap(), up_to).await.unwrap();
    }
    let refused = live.read(&by, id.parse().unwrap(), up_to).await.unwrap_err();
    assert_eq!((refused.code, refused.retry_after_s.is_some()), ("rate_limited", true));
    let path = format!("/v1/conversations/{id}/read");
    assert_eq!(fixture.post(&path, &phone, &json!({})).await.problem(429), "rate_limited");
}

fn phones(count: u64) -> Vec<String> {
    (0..count).map(|number| format!("+{}", 966_501_000_000 + number)).collect()
}

async fn broadcast(fixture: &Fixture, key: &str, more: &Value, count: u64) -> Answer {
    let mut body = json!({"to": phones(count), "content": "c"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    fixture.post("/v1/broadcasts", key, &body).await
}

#[tokio::test]
async fn a_broadcast_that_the_limit_of_its_key_cannot_hold_is_refused_with_limit_and_size() {
    let fixture = tight(1_000).await;
    let key = key_with(&fixture, Some("1/d")).await;
    let refused = broadcast(&fixture, &key, &json!({}), 2_000).await;
    assert_eq!(refused.problem(400), "broadcast_too_large");
    let detail = "the limit `key` of 1/d lets 30 messages be sent in 30 days, the longest that a broadcast may take; it \
                  has 2000 recipients";
    assert_eq!(refused.json()["detail"], detail);
    assert_eq!(fixture.records(eshaar_topics::Topic::BroadcastsRequested).await.len(), 0);

    // One of a size that it can hold takes its first message now: the second waits for the next day.
    assert_eq!(broadcast(&fixture, &key, &json!({}), 2).await.status, 202);
    assert_eq!(broadcast(&fixture, &key, &json!({}), 2).await.problem(429), "rate_limited");
    assert_eq!(fixture.send(&key, &json!({"to": PHONE, "content": "c"})).await.problem(429), "rate_limited");
}

#[tokio::test]
async fn a_broadcast_says_with_which_key_it_was_sent() {
    let fixture = tight(1_000).await;
    let key = key_with(&fixture, Some("100/min")).await;
    assert_eq!(broadcast(&fixture, &key, &json!({}), 3).await.status, 202);
    let records = fixture.records(eshaar_topics::Topic::BroadcastsRequested).await;
    let record: eshaar_schemas::Broadcast = fixture.codecs.decode(&records[0].value).unwrap();
    assert_eq!((record.key_id.is_some(), record.key_rate.as_deref()), (true, Some("100/min")));
}
