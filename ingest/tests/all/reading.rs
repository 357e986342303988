use axum::body::Body;
use eshaar_model::{Epoch, Lane, Permission, Phone, Status, StreamPosition, Timestamp};
use eshaar_schemas::StatusChanged;
use eshaar_store::{Step, StreamRow};
use eshaar_topics::{Topic, partitioner};
use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Answer, Fixture, NOW, OTHER_PHONE, PHONE, request};

/// Sends a message, and has it archived.
async fn archived(fixture: &Fixture, change: &Value) -> String {
    let key = fixture.sender().await;
    let mut body = json!({ "to": PHONE, "content": "a" });
    for (name, value) in change.as_object().unwrap() {
        body[name] = value.clone();
    }
    let id = fixture.send(&key, &body).await.json()["id"].as_str().unwrap().to_owned();
    fixture.archive().await;
    id
}

async fn reach(fixture: &Fixture, id: &str, status: Status, after_ms: i64, reason: Option<&str>) {
    let step =
        Step { id: id.parse().unwrap(), status, at: NOW.plus_millis(after_ms), reason: reason.map(str::to_owned) };
    fixture.store.messages.reach(vec![step]).await.unwrap();
}

async fn mark_read(fixture: &Fixture, id: &str, credential: &str) -> Answer {
    fixture.call(request(Method::POST, &format!("/v1/messages/{id}/read"), credential, &[], Body::empty())).await
}

fn steps(message: &Value) -> Vec<&str> {
    message["timeline"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_message_is_shown_with_its_timeline_to_its_sender_and_its_recipient_alone() {
    let fixture = Fixture::new().await;
    let id = archived(&fixture, &json!({ "priority": "low", "reference": "r" })).await;
    reach(&fixture, &id, Status::Delivered, 100, None).await;
    reach(&fixture, &id, Status::Read, 200, None).await;
    let path = format!("/v1/messages/{id}");
    let sender = fixture.sender().await;
    for credential in [&sender, &fixture.token(PHONE)] {
        let message = fixture.get(&path, credential).await.json();
        assert_eq!(
            (&message["status"], &message["from"], &message["to"]),
            (&json!("read"), &json!("acme"), &json!(PHONE))
        );
        assert_eq!((&message["priority"], &message["reference"]), (&json!("low"), &json!("r")));
        assert_eq!(steps(&message), ["sent", "delivered", "read"]);
        assert_eq!(message["timeline"][0]["offset"], 0);
        assert!(message["timeline"][0]["partition"].is_u64());
        assert_eq!(message["timeline"][1]["at"], NOW.plus_millis(100).to_string());
    }
    let other = fixture.key("other", &[Permission::Admin]).await;
    for credential in [&other, &fixture.token(OTHER_PHONE)] {
        assert_eq!(fixture.get(&path, credential).await.problem(404), "message_not_found");
    }
    for unknown in ["019b7600-0000-7000-8000-000000000000", "x", "6f1b9a52-4b7e-4d0a-9a54-0f5e6f3b1c2d"] {
        let answer = fixture.get(&format!("/v1/messages/{unknown}"), &sender).await;
        assert_eq!(answer.problem(404), "message_not_found");
    }
}

#[tokio::test]
async fn a_failure_says_why_and_an_expiry_is_told_by_the_clock() {
    let fixture = Fixture::new().await;
    let sender = fixture.sender().await;
    let failed = archived(&fixture, &json!({})).await;
    reach(&fixture, &failed, Status::Failed, 10, Some("undecodable")).await;
    let message = fixture.get(&format!("/v1/messages/{failed}"), &sender).await.json();
    assert_eq!((&message["status"], &message["failure_reason"]), (&json!("failed"), &json!("undecodable")));
    assert_eq!(message["timeline"][1]["reason"], "undecodable");

    let short = archived(&fixture, &json!({ "ttl_s": 1 })).await;
    let delivered = archived(&fixture, &json!({ "ttl_s": 1 })).await;
    reach(&fixture, &delivered, Status::Delivered, 10, None).await;
    fixture.clock.advance_millis(999);
    assert_eq!(fixture.get(&format!("/v1/messages/{short}"), &sender).await.json()["status"], "sent");
    fixture.clock.advance_millis(1);
    let message = fixture.get(&format!("/v1/messages/{short}"), &sender).await.json();
    assert_eq!((message["status"].as_str(), steps(&message)), (Some("expired"), vec!["sent", "expired"]));
    assert_eq!(fixture.get(&format!("/v1/messages/{delivered}"), &sender).await.json()["status"], "delivered");
}

#[tokio::test]
async fn a_message_that_is_not_archived_yet_is_waited_for() {
    let fixture = Fixture::new().await;
    let sender = fixture.sender().await;
    let id =
        fixture.send(&sender, &json!({ "to": PHONE, "content": "a" })).await.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/messages/{id}");
    let (answer, ()) = tokio::join!(fixture.get(&path, &sender), fixture.archive());
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn sent_messages_are_listed_newest_first_in_pages_and_filtered() {
    let fixture = Fixture::new().await;
    let sender = fixture.sender().await;
    let mut ids = Vec::new();
    for number in 0..7 {
        let to = if number % 2 == 0 { PHONE } else { OTHER_PHONE };
        let answer = fixture.send(&sender, &json!({ "to": to, "content": number.to_string() })).await;
        ids.push(answer.json()["id"].as_str().unwrap().to_owned());
        fixture.clock.advance_millis(1);
    }
    fixture.archive().await;
    reach(&fixture, &ids[2], Status::Read, 50, None).await;
    ids.reverse();
    let listed = async |query: &str| {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = fixture.get(&format!("/v1/messages?limit=3{query}{cursor}"), &sender).await.json();
            let messages = page["messages"].as_array().unwrap();
            assert!(messages.len() <= 3 && messages.iter().all(|message| message.get("timeline").is_none()));
            found.extend(messages.iter().map(|message| message["id"].as_str().unwrap().to_owned()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return found,
            }
        }
    };
    assert_eq!(listed("").await, ids);
    let to_phone = listed("&to=%2B966501234567").await;
    assert_eq!(to_phone, [&ids[0], &ids[2], &ids[4], &ids[6]].map(String::clone));
    assert_eq!(listed("&status=read&type=one_way").await, [ids[4].clone()]);
    assert!(listed("&type=chat").await.is_empty());
    let other = fixture.key("other", &[Permission::Admin]).await;
    assert_eq!(fixture.get("/v1/messages", &other).await.json(), json!({ "messages": [], "next_cursor": null }));
}

#[tokio::test]
async fn query_parameters_that_are_wrong_are_named() {
    let fixture = Fixture::new().await;
    let (sender, phone) = (fixture.sender().await, fixture.token(PHONE));
    for (path, field) in [
        ("/v1/messages?limit=101", "limit"),
        ("/v1/messages?type=sms", "type"),
        ("/v1/messages?status=lost", "status"),
        ("/v1/messages?to=123", "to"),
        ("/v1/messages?cursor=x", "cursor"),
        ("/v1/messages?offset=1", "offset"),
    ] {
        let answer = fixture.get(path, &sender).await;
        assert_eq!(answer.status, 400, "{path}");
        assert_eq!(answer.json()["field"], field, "{path}");
    }
    for (path, field) in [("/v1/stream?after=x", "after"), ("/v1/stream?limit=0", "limit"), ("/v1/stream?x=1", "x")] {
        assert_eq!(fixture.get(path, &phone).await.json()["field"], field, "{path}");
    }
}

#[tokio::test]
async fn reading_is_written_to_the_log_once_and_only_by_the_recipient() {
    let fixture = Fixture::new().await;
    let id = archived(&fixture, &json!({})).await;
    let phone = fixture.token(PHONE);
    assert_eq!(mark_read(&fixture, &id, &fixture.token(OTHER_PHONE)).await.problem(404), "message_not_found");
    fixture.clock.advance_millis(500);
    let answer = mark_read(&fixture, &id, &phone).await;
    let expected = json!({ "id": id, "status": "read", "read_at": NOW.plus_millis(500).to_string() });
    assert_eq!((answer.status.as_u16(), answer.json()), (200, expected.clone()));
    let written: Vec<StatusChanged> = fixture
        .records(Topic::MessageStatus)
        .await
        .iter()
        .map(|record| fixture.codecs.decode(&record.value).unwrap())
        .collect();
    let steps: Vec<_> = written.iter().map(|change| (change.status, change.at)).collect();
    let at = NOW.plus_millis(500).as_millis();
    assert_eq!(steps, [(Status::Delivered, at), (Status::Read, at)]);
    assert!(written.iter().all(|change| change.sender == "acme" && change.recipient == PHONE));

    reach(&fixture, &id, Status::Read, 500, None).await;
    fixture.clock.advance_millis(1_000);
    assert_eq!(mark_read(&fixture, &id, &phone).await.json(), expected);
    assert_eq!(fixture.records(Topic::MessageStatus).await.len(), 2);
}

/// Puts what was accepted into the recipient's stream, as route does.
async fn routed(fixture: &Fixture, lane: Lane) {
    let phone: Phone = PHONE.parse().unwrap();
    let partition = partitioner::partition_of(PHONE.as_bytes(), 6);
    for (offset, record) in fixture.accepted().await.iter().enumerate() {
        let message = fixture.message(record);
        let row = StreamRow {
            phone,
            position: StreamPosition { epoch: fixture_epoch(fixture), lane, offset: offset as u64 },
            id: message.id,
            at: Timestamp::from_millis(message.created_at),
            expires_at: message.expires_at.map(Timestamp::from_millis),
            value: record.value.clone(),
        };
        fixture.store.streams.append(partition, vec![row]).await.unwrap();
    }
}

fn fixture_epoch(fixture: &Fixture) -> Epoch {
    eshaar_topics::Log::epoch(&*fixture.log)
}

#[tokio::test]
async fn a_stream_is_read_page_by_page_and_what_has_expired_is_passed_over() {
    let fixture = Fixture::new().await;
    let sender = fixture.sender().await;
    for number in 0..5 {
        let ttl = if number == 1 { json!(1) } else { Value::Null };
        fixture.send(&sender, &json!({ "to": PHONE, "content": number.to_string(), "ttl_s": ttl })).await;
        fixture.clock.advance_millis(1);
    }
    fixture.clock.advance_millis(2_000);
    routed(&fixture, Lane::Normal).await;
    let phone = fixture.token(PHONE);
    let first = fixture.get("/v1/stream?limit=3", &phone).await.json();
    let contents = |page: &Value| -> Vec<String> {
        page["messages"].as_array().unwrap().iter().map(|m| m["content"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        (contents(&first), &first["more"], &first["gap"]),
        (vec!["0".into(), "2".into()], &json!(true), &Value::Null)
    );
    let message = &first["messages"][1];
    assert_eq!(
        (&message["from"], &message["type"], &message["cursor"]),
        (&json!("acme"), &json!("one_way"), &first["cursor"])
    );
    let cursor = first["cursor"].as_str().unwrap();
    let second = fixture.get(&format!("/v1/stream?after={cursor}"), &phone).await.json();
    assert_eq!((contents(&second), &second["more"]), (vec!["3".into(), "4".into()], &json!(false)));
    let end = second["cursor"].as_str().unwrap();
    let third = fixture.get(&format!("/v1/stream?after={end}"), &phone).await.json();
    assert_eq!(third, json!({ "messages": [], "cursor": end, "more": false, "gap": null }));
    let other = fixture.get("/v1/stream", &fixture.token(OTHER_PHONE)).await.json();
    assert_eq!(other["messages"], json!([]));
}

#[tokio::test]
async fn a_cursor_that_does_not_fit_is_answered_with_a_gap_and_everything_kept() {
    let fixture = Fixture::new().await;
    let sender = fixture.sender().await;
    fixture.send(&sender, &json!({ "to": PHONE, "content": "a" })).await;
    routed(&fixture, Lane::Normal).await;
    let phone = fixture.token(PHONE);
    let epoch = fixture_epoch(&fixture);
    let past = eshaar_model::Cursor { epoch, offsets: [None, Some(99), None, None] };
    let elsewhere = eshaar_model::Cursor { epoch: Epoch(epoch.0 + 1), offsets: [None, Some(0), None, None] };
    for (cursor, reason) in [(past, "past_head"), (elsewhere, "other_epoch")] {
        let page = fixture.get(&format!("/v1/stream?after={cursor}"), &phone).await.json();
        assert_eq!(page["gap"]["reason"], reason);
        assert_eq!(page["messages"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_message_shows_how_often_it_was_retried() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let sent = fixture.send(&key, &json!({ "to": PHONE, "content": "a" })).await.json();
    fixture.archive().await;
    let path = format!("/v1/messages/{}", sent["id"].as_str().unwrap());
    assert_eq!(fixture.get(&path, &key).await.json()["retry_count"], 0);
    fixture.store.messages.set_retries(sent["id"].as_str().unwrap().parse().unwrap(), 3).await.unwrap();
    assert_eq!(fixture.get(&path, &key).await.json()["retry_count"], 3);
}
