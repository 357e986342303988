//! What operators do: dead letters and the audit log.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use eshaar_model::{Epoch, MessageId, MessageType, Permission, Priority, Timestamp};
use eshaar_schemas::Message;
use eshaar_store::dead_letters::Origin;
use eshaar_store::{DeadLetterId, LetterBody, LetterHead, LetterState};
use eshaar_topics::{Headers, Topic};
use http::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::fixture::{Answer, Fault, Fixture, NOW, PHONE, options, request};

const LETTERS: &str = "/v1/admin/dead-letters";

fn message() -> Message {
    Message {
        id: MessageId::new(NOW),
        r#type: MessageType::OneWay,
        conversation_id: None,
        sender: "acme".to_owned(),
        recipient: PHONE.to_owned(),
        content: "hello".to_owned(),
        content_ciphertext: None,
        content_key_id: None,
        media: Vec::new(),
        priority: Priority::Normal,
        created_at: NOW.as_millis(),
        expires_at: None,
        reference: None,
        collapse_key: None,
        correlation_id: "c-1".to_owned(),
        broadcast_id: None,
    }
}

/// A message that route gave up on; or another value in its place.
async fn letter(fixture: &Fixture, offset: u64, redrives: u32, value: Option<Bytes>) -> DeadLetterId {
    let origin = Origin { stage: "route", epoch: Epoch(0), topic: "lane.normal", partition: 2, offset, redrives };
    let id = DeadLetterId::of(&origin);
    let value = value.unwrap_or_else(|| fixture.codecs.encode(&message()).unwrap());
    let head = LetterHead {
        id,
        stage: "route".to_owned(),
        topic: "lane.normal".to_owned(),
        partition: 2,
        offset,
        redrives,
        business: Some("acme".parse().unwrap()),
        event: Some("m-1".to_owned()),
        correlation: Some("c-1".to_owned()),
        code: "retries_exhausted".to_owned(),
        reason: "the store refused it".to_owned(),
        attempts: 7,
        at: NOW.plus_millis(offset as i64),
        bytes: value.len() as u64,
    };
    let headers = Headers::new([("ce_id", &b"m-1"[..]), ("es-attempt", b"6"), ("es-from", b"acme")]);
    let headers = if redrives == 0 { headers } else { headers.with("es-redrive", redrives.to_string().as_bytes()) };
    let body = LetterBody { key: Bytes::from_static(PHONE.as_bytes()), value, headers: headers.as_bytes().clone() };
    fixture.store.dead_letters.put(vec![(head, body)]).await.unwrap();
    id
}

async fn operator(fixture: &Fixture) -> String {
    fixture.key("operators", &[Permission::Admin]).await
}

async fn ask(fixture: &Fixture, action: &str, key: &str, body: &Value) -> Answer {
    let headers = [("content-type", "application/json")];
    let path = format!("{LETTERS}/{action}");
    fixture.call(request(Method::POST, &path, key, &headers, Body::from(body.to_string()))).await
}

/// Runs the redriver until the task is finished.
async fn finished(fixture: &Fixture, key: &str, task: &str) -> Value {
    let stop = CancellationToken::new();
    let redriver = tokio::spawn({
        let (deps, stop) = (fixture.deps(), stop.clone());
        async move { eshaar_ingest::redriver(deps, &options(), stop).await }
    });
    let found = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let task = fixture.get(&format!("{LETTERS}/tasks/{task}"), key).await.json();
            if task["finished"] == true {
                return task;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let found = found.await.unwrap();
    stop.cancel();
    redriver.await.unwrap();
    found
}

async fn state(fixture: &Fixture, id: DeadLetterId) -> LetterState {
    fixture.store.dead_letters.get(id).await.unwrap().unwrap().0.state()
}

#[tokio::test]
async fn only_a_key_with_admin_may_do_what_operators_do() {
    let fixture = Fixture::new().await;
    let id = letter(&fixture, 1, 0, None).await;
    let all_but_admin: Vec<_> = Permission::ALL.into_iter().filter(|one| *one != Permission::Admin).collect();
    let business = fixture.key("acme", &all_but_admin).await;
    for (credential, code) in [(business, "permission_missing"), (fixture.token(PHONE), "business_only")] {
        for path in [LETTERS, &format!("{LETTERS}/{id}"), &format!("{LETTERS}/tasks"), "/v1/admin/audit"] {
            assert_eq!(fixture.get(path, &credential).await.problem(403), code, "{path}");
        }
        for action in ["redrive", "discard"] {
            let answer = ask(&fixture, action, &credential, &json!({"ids": [id.to_string()]})).await;
            assert_eq!(answer.problem(403), code);
        }
    }
    assert_eq!(state(&fixture, id).await, LetterState::Open);
    assert!(
        fixture
            .store
            .audit
            .list(eshaar_store::AuditQuery { limit: 9, ..Default::default() })
            .await
            .unwrap()
            .entries
            .is_empty()
    );
}

#[tokio::test]
async fn a_letter_is_shown_decoded_and_that_it_was_is_audited() {
    let fixture = Fixture::new().await;
    let (readable, garbage) =
        (letter(&fixture, 1, 0, None).await, letter(&fixture, 2, 0, Some(Bytes::from_static(b"\xff\x00"))).await);
    let key = operator(&fixture).await;
    let shown = fixture.get(&format!("{LETTERS}/{readable}"), &key).await.json();
    assert_eq!((&shown["payload"]["content"], &shown["payload_base64"]), (&json!("hello"), &Value::Null));
    assert_eq!((&shown["key"], &shown["headers"]["es-from"]), (&json!(PHONE), &json!("acme")));
    fixture.clock.advance_millis(1);
    let shown = fixture.get(&format!("{LETTERS}/{garbage}"), &key).await.json();
    assert_eq!(
        (&shown["payload"], &shown["payload_base64"], &shown["size_bytes"]),
        (&Value::Null, &json!("/wA="), &json!(2))
    );
    let audit = fixture.get("/v1/admin/audit", &key).await.json();
    let subjects: Vec<_> = audit["entries"].as_array().unwrap().iter().map(|entry| &entry["subject"]).collect();
    assert_eq!(subjects, [&json!(garbage.to_string()), &json!(readable.to_string())]);
    assert_eq!(fixture.get(&format!("{LETTERS}/x"), &key).await.problem(404), "dead_letter_not_found");
}

#[tokio::test]
async fn a_redrive_is_a_new_record_of_the_same_topic_and_ends_the_letter() {
    let fixture = Fixture::new().await;
    let (id, key) = (letter(&fixture, 1, 2, None).await, operator(&fixture).await);
    let answer = ask(&fixture, "redrive", &key, &json!({"ids": [id.to_string(), id.to_string()]})).await;
    assert_eq!(answer.status, 202, "{}", answer.json());
    let task = answer.json()["task"]["id"].as_str().unwrap().to_owned();
    assert!(fixture.records(Topic::LaneNormal).await.is_empty(), "it is done in the background");
    fixture.clock.advance_millis(1);
    let done = finished(&fixture, &key, &task).await;
    assert_eq!((&done["done"], &done["refused"], &done["skipped"]), (&json!(1), &json!(0), &json!(0)));
    let [record] = &fixture.records(Topic::LaneNormal).await[..] else { panic!("not one record") };
    assert_eq!((record.headers.text("es-redrive"), record.headers.text("es-attempt")), (Some("3"), None));
    assert_eq!((&record.key[..], record.headers.text("ce_id")), (PHONE.as_bytes(), Some("m-1")));
    assert_eq!(fixture.message(record).content, "hello");
    assert_eq!(state(&fixture, id).await, LetterState::Redriven);
    let again = ask(&fixture, "redrive", &key, &json!({"ids": [id.to_string()]})).await;
    assert_eq!(again.problem(409), "dead_letter_settled");
    let audit = fixture.get("/v1/admin/audit", &key).await.json();
    let told: Vec<_> =
        audit["entries"].as_array().unwrap().iter().map(|entry| (&entry["action"], &entry["subject"])).collect();
    let task = json!(task);
    assert_eq!(told, [(&json!("dead_letters.redriven"), &task), (&json!("dead_letters.redrive"), &task)]);
}

#[tokio::test]
async fn what_was_redriven_three_times_is_refused_and_can_be_discarded() {
    let fixture = Fixture::new().await;
    let (spent, fresh, key) =
        (letter(&fixture, 1, 3, None).await, letter(&fixture, 2, 0, None).await, operator(&fixture).await);
    let answer = ask(&fixture, "redrive", &key, &json!({"ids": [spent.to_string()]})).await;
    assert_eq!(answer.problem(409), "redrive_limit");
    let both = ask(&fixture, "redrive", &key, &json!({"ids": [spent.to_string(), fresh.to_string()]})).await.json();
    assert_eq!(both["refused"][0]["code"], "redrive_limit");
    finished(&fixture, &key, both["task"]["id"].as_str().unwrap()).await;
    assert_eq!(
        (state(&fixture, spent).await, state(&fixture, fresh).await),
        (LetterState::Open, LetterState::Redriven)
    );
    fixture.clock.advance_millis(10);
    let answer = ask(&fixture, "discard", &key, &json!({"filter": {"stage": "route"}})).await.json();
    let done = finished(&fixture, &key, answer["task"]["id"].as_str().unwrap()).await;
    assert_eq!((&done["action"], &done["done"]), (&json!("discard"), &json!(1)));
    assert_eq!(
        (state(&fixture, spent).await, state(&fixture, fresh).await),
        (LetterState::Discarded, LetterState::Redriven)
    );
}

#[tokio::test]
async fn a_filter_names_what_is_open_when_it_is_asked_and_two_at_once_send_each_letter_once() {
    let fixture = Fixture::new().await;
    let key = operator(&fixture).await;
    for offset in 0..120 {
        letter(&fixture, offset, 0, None).await;
    }
    fixture.clock.advance_millis(100);
    let filter = json!({"filter": {"code": "retries_exhausted", "business": "acme", "from": NOW.plus_millis(10)}});
    let tasks =
        [ask(&fixture, "redrive", &key, &filter).await.json(), ask(&fixture, "redrive", &key, &filter).await.json()];
    let stop = CancellationToken::new();
    let other = tokio::spawn({
        let (deps, stop) = (fixture.deps(), stop.clone());
        async move { eshaar_ingest::redriver(deps, &options(), stop).await }
    });
    let mut done = 0;
    for task in &tasks {
        done += finished(&fixture, &key, task["task"]["id"].as_str().unwrap()).await["done"].as_u64().unwrap();
    }
    stop.cancel();
    other.await.unwrap();
    // From the tenth on; those of the last 20 ms died after it was asked for.
    assert_eq!(done, 90);
    assert_eq!(fixture.records(Topic::LaneNormal).await.len(), 90);
    let page = fixture.get(&format!("{LETTERS}?state=open&limit=100"), &key).await.json();
    assert_eq!(page["dead_letters"].as_array().unwrap().len(), 30);
}

#[tokio::test]
async fn a_record_that_the_log_refuses_leaves_its_letter_open() {
    let fixture = Fixture::new().await;
    let (id, key) = (letter(&fixture, 1, 0, None).await, operator(&fixture).await);
    let asked = ask(&fixture, "redrive", &key, &json!({"ids": [id.to_string()]})).await.json();
    fixture.log.faults.lock().push_back(Fault::Refused);
    let done = finished(&fixture, &key, asked["task"]["id"].as_str().unwrap()).await;
    assert_eq!((&done["done"], &done["refused"]), (&json!(0), &json!(1)));
    assert_eq!(state(&fixture, id).await, LetterState::Open);
    // An append whose outcome is unknown is tried until it is known: then there may be two records of one message.
    let asked = ask(&fixture, "redrive", &key, &json!({"ids": [id.to_string()]})).await.json();
    fixture.log.faults.lock().push_back(Fault::Lost);
    let done = finished(&fixture, &key, asked["task"]["id"].as_str().unwrap()).await;
    assert_eq!((&done["done"], state(&fixture, id).await), (&json!(1), LetterState::Redriven));
    assert_eq!(fixture.records(Topic::LaneNormal).await.len(), 2);
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let fixture = Fixture::new().await;
    let key = operator(&fixture).await;
    for offset in 0..7 {
        letter(&fixture, offset, 0, None).await;
    }
    let (mut path, mut offsets) = (format!("{LETTERS}?limit=3&stage=route"), Vec::new());
    loop {
        let page = fixture.get(&path, &key).await.json();
        offsets
            .extend(page["dead_letters"].as_array().unwrap().iter().map(|letter| letter["offset"].as_u64().unwrap()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("{LETTERS}?limit=3&stage=route&cursor={cursor}");
    }
    assert_eq!(offsets, [6, 5, 4, 3, 2, 1, 0]);
    let until: Timestamp = NOW.plus_millis(2);
    let page = fixture.get(&format!("{LETTERS}?until={until}"), &key).await.json();
    assert_eq!(page["dead_letters"].as_array().unwrap().len(), 2);
    for (query, field) in
        [("state=lost", "state"), ("from=soon", "from"), ("cursor=AQ", "cursor"), ("offset=1", "offset")]
    {
        let answer = fixture.get(&format!("{LETTERS}?{query}"), &key).await;
        answer.problem(400);
        assert_eq!(answer.json()["field"], field);
    }
}
