use std::collections::BTreeSet;

use axum::body::Body;
use bytes::Bytes;
use eshaar_ingest::router;
use eshaar_model::{Lane, MessageId, Permission, Phone, Status, StreamPosition};
use eshaar_schemas::{Cancellation, StatusChanged};
use eshaar_store::{Step, StreamRow};
use eshaar_topics::{Log as _, Topic, headers, partitioner};
use http::Method;
use serde_json::json;

use crate::fixture::{self, Answer, Fixture, NOW, PHONE, options, request};

/// Sends a message, and has it archived.
async fn archived(fixture: &Fixture, ttl_s: Option<u64>) -> String {
    let key = fixture.sender().await;
    let answer = fixture.send(&key, &json!({ "to": PHONE, "content": "a", "ttl_s": ttl_s })).await;
    fixture.archive().await;
    answer.json()["id"].as_str().unwrap().to_owned()
}

async fn cancel(fixture: &Fixture, id: &str, credential: &str) -> Answer {
    fixture.call(request(Method::POST, &format!("/v1/messages/{id}/cancel"), credential, &[], Body::empty())).await
}

#[tokio::test]
async fn a_message_is_taken_back_for_every_reader_and_its_status_says_so() {
    let fixture = Fixture::new().await;
    let (id, key) = (archived(&fixture, None).await, fixture.sender().await);
    fixture.clock.advance_millis(5);
    let answer = cancel(&fixture, &id, &key).await;
    let at = NOW.plus_millis(5);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json(), json!({ "id": id, "status": "cancelled", "cancelled_at": at.to_string() }));

    let cancellations = fixture.records(Topic::Cancellations).await;
    let cancellation: Cancellation = fixture.codecs.decode(&cancellations[0].value).unwrap();
    assert_eq!((cancellations.len(), &cancellations[0].key[..]), (1, id.as_bytes()));
    assert_eq!((cancellation.id.to_string(), cancellation.sender.as_str()), (id.clone(), "acme"));
    let statuses = fixture.records(Topic::MessageStatus).await;
    let change: StatusChanged = fixture.codecs.decode(&statuses[0].value).unwrap();
    assert_eq!((statuses.len(), &statuses[0].key[..]), (1, PHONE.as_bytes()));
    assert_eq!((change.id.to_string(), change.status, change.at), (id.clone(), Status::Cancelled, at.as_millis()));

    // Once history has followed, a repeat answers the first time and writes nothing.
    fixture.archive().await;
    fixture.clock.advance_millis(5);
    assert_eq!(cancel(&fixture, &id, &key).await.json()["cancelled_at"], at.to_string());
    assert_eq!(fixture.records(Topic::Cancellations).await.len(), 1);
    let path = format!("/v1/messages/{id}");
    let message = fixture.get(&path, &key).await.json();
    assert_eq!(message["status"], "cancelled");
    assert_eq!(message["timeline"][1], json!({ "step": "cancelled", "at": at.to_string() }));
    assert_eq!(fixture.get(&path, &fixture.token(PHONE)).await.problem(404), "message_not_found");
}

#[tokio::test]
async fn a_message_can_be_cancelled_before_the_history_has_it_and_is_not_said_to_be_unknown() {
    let fixture = Fixture::new().await;
    let (key, token) = (fixture.sender().await, fixture.token(PHONE));
    let other = fixture.key("other", &[Permission::MessagesSend]).await;
    let id =
        fixture.send(&key, &json!({ "to": PHONE, "content": "a" })).await.json()["id"].as_str().unwrap().to_owned();
    let (path, read) = (format!("/v1/messages/{id}"), format!("/v1/messages/{id}/read"));
    let read = request(Method::POST, &read, &token, &[], Body::empty());
    let (ours, others, shown, read) = tokio::join!(
        cancel(&fixture, &id, &key),
        cancel(&fixture, &id, &other),
        fixture.get(&path, &key),
        fixture.call(read),
    );
    let expected = json!({ "id": id, "status": "cancelled", "cancelled_at": NOW.to_string() });
    assert_eq!((ours.status.as_u16(), ours.json()), (202, expected));
    for answer in [shown, read] {
        assert_eq!(answer.problem(503), "not_yet_known");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    // Whose it is is not known yet, so another's cancellation is taken too: it holds for that one's own messages.
    assert_eq!(others.status, 202);
    let by = fixture.records(Topic::Cancellations).await;
    let mut by: Vec<_> =
        by.iter().map(|record| (&record.key[..], record.headers.text(headers::FROM).unwrap())).collect();
    by.sort_unstable();
    assert_eq!(by, [(id.as_bytes(), "acme"), (id.as_bytes(), "other")]);
    assert!(fixture.records(Topic::MessageStatus).await.is_empty(), "whom it is for is not known");

    // What other processes do when they read both.
    let message_id = id.parse().unwrap();
    fixture.cancelled.enter("other", message_id);
    fixture.archive().await;
    assert_eq!(fixture.get(&path, &key).await.json()["status"], "sent");
    fixture.cancelled.enter("acme", message_id);
    assert_eq!(fixture.get(&path, &key).await.json()["status"], "cancelled");
    assert_eq!(fixture.get(&path, &token).await.problem(404), "message_not_found");
    assert_eq!(cancel(&fixture, &id, &other).await.problem(404), "message_not_found");
}

#[tokio::test]
async fn ids_of_messages_that_cannot_have_been_accepted_are_said_to_be_unknown_at_once() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    archived(&fixture, None).await;
    let from_the_future = MessageId::new(NOW.plus_millis(120_000)).to_string();
    let (recent, old) =
        (MessageId::new(NOW).to_string(), MessageId::new(NOW.plus_millis(-30 * 3600 * 1000)).to_string());
    for id in [&from_the_future, &recent, &old] {
        assert_eq!(cancel(&fixture, id, &key).await.problem(404), "message_not_found");
        assert_eq!(fixture.get(&format!("/v1/messages/{id}"), &key).await.problem(404), "message_not_found");
    }
    // The history is known to have been complete after the old one could have been accepted, though it is behind now.
    fixture.send(&key, &json!({ "to": PHONE, "content": "a" })).await;
    assert_eq!(cancel(&fixture, &old, &key).await.problem(404), "message_not_found");
    assert!(fixture.records(Topic::Cancellations).await.is_empty());
}

#[tokio::test]
async fn messages_and_broadcasts_are_cancelled_while_the_history_does_not_answer() {
    let fixture = Fixture::new().await;
    let key = fixture.key("acme", &[Permission::MessagesSend, Permission::BroadcastsSend]).await;
    let sent = fixture.send(&key, &json!({ "to": PHONE, "content": "a" })).await.json();
    let message = sent["id"].as_str().unwrap();
    let sent = fixture.post("/v1/broadcasts", &key, &json!({ "to": [PHONE], "content": "b" })).await.json();
    let broadcast = sent["id"].as_str().unwrap();
    let mut deps = fixture.deps();
    let gone = tempfile::tempdir().unwrap();
    let options_of_gone = eshaar_store::sqlite::Options::at(gone.path().join("store.db"));
    let gone = eshaar_store::sqlite::open(options_of_gone, fixture.clock.clone()).unwrap();
    gone.engine.close().await.unwrap();
    (deps.store.messages, deps.store.broadcasts) = (gone.messages, gone.broadcasts);
    let api = router(deps, options());
    let post = |path: String| fixture::call(&api, request(Method::POST, &path, &key, &[], Body::empty()));
    let old = MessageId::new(NOW.plus_millis(-62 * 24 * 3600 * 1000));
    let answer = post(format!("/v1/messages/{message}/cancel")).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (202, &json!("cancelled")));
    let answer = post(format!("/v1/broadcasts/{broadcast}/cancel")).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (202, &json!("cancelled")));
    assert_eq!(post(format!("/v1/messages/{old}/cancel")).await.problem(503), "store_unavailable");
    let cancelled: BTreeSet<_> =
        fixture.records(Topic::Cancellations).await.into_iter().map(|record| record.key).collect();
    assert_eq!(cancelled, [message, broadcast].map(|id| Bytes::copy_from_slice(id.as_bytes())).into());
}

#[tokio::test]
async fn nobody_but_its_sender_cancels_a_message() {
    let fixture = Fixture::new().await;
    let id = archived(&fixture, None).await;
    let other = fixture.key("other", &[Permission::MessagesSend]).await;
    let powerless = fixture.key("acme", &[Permission::Chat]).await;
    assert_eq!(cancel(&fixture, &id, &other).await.problem(404), "message_not_found");
    assert_eq!(cancel(&fixture, &id, &powerless).await.problem(403), "permission_missing");
    assert_eq!(cancel(&fixture, &id, &fixture.token(PHONE)).await.problem(403), "business_only");
    let unknown = "019b7600-0000-7000-8000-000000000000";
    assert_eq!(cancel(&fixture, unknown, &fixture.sender().await).await.problem(404), "message_not_found");
    assert!(fixture.records(Topic::Cancellations).await.is_empty());
}

#[tokio::test]
async fn it_is_too_late_once_a_message_came_to_an_end() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let ends = [
        (Status::Delivered, "already_delivered"),
        (Status::Read, "already_read"),
        (Status::Failed, "already_failed"),
        (Status::Expired, "already_expired"),
    ];
    for (status, code) in ends {
        let id = archived(&fixture, None).await;
        let step = Step { id: id.parse().unwrap(), status, at: NOW, reason: None };
        fixture.store.messages.reach(vec![step]).await.unwrap();
        assert_eq!(cancel(&fixture, &id, &key).await.problem(409), code);
    }
    let expired_by_the_clock = archived(&fixture, Some(1)).await;
    fixture.clock.advance_millis(1_000);
    assert_eq!(cancel(&fixture, &expired_by_the_clock, &key).await.problem(409), "already_expired");
    assert!(fixture.records(Topic::Cancellations).await.is_empty());
}

#[tokio::test]
async fn a_business_that_cancels_all_it_may_takes_nothing_from_others() {
    // Limits of the fixture: 4 for a business, 6 for all.
    for (own, of_others, expected) in
        [(4, 0, Err((429, "business_cancellations_full"))), (3, 3, Err((503, "cancellations_full"))), (1, 5, Ok(()))]
    {
        let fixture = Fixture::new().await;
        let (id, key) = (archived(&fixture, None).await, fixture.sender().await);
        for (business, count) in [("acme", own), ("hostile", of_others)] {
            (0..count).for_each(|_| fixture.cancelled.enter(business, eshaar_model::MessageId::new(NOW)));
        }
        let answer = cancel(&fixture, &id, &key).await;
        match expected {
            Ok(()) => assert_eq!(answer.status, 200, "a business below an equal share goes on"),
            Err((status, code)) => {
                assert!(answer.header("retry-after").is_some());
                assert_eq!(answer.problem(status), code);
                assert!(fixture.records(Topic::Cancellations).await.is_empty(), "a refused cancellation is in no log");
                assert!(fixture.records(Topic::MessageStatus).await.is_empty());
            }
        }
    }
}

#[tokio::test]
async fn a_stream_leaves_out_what_was_taken_back_and_its_cursor_moves_on() {
    let fixture = Fixture::new().await;
    let phone: Phone = PHONE.parse().unwrap();
    for _ in 0..3 {
        archived(&fixture, None).await;
    }
    let accepted = fixture.accepted().await;
    let rows: Vec<StreamRow> = accepted
        .iter()
        .enumerate()
        .map(|(offset, record)| StreamRow {
            phone,
            position: StreamPosition { epoch: fixture.log.epoch(), lane: Lane::Normal, offset: offset as u64 },
            id: fixture.message(record).id,
            at: record.timestamp,
            expires_at: None,
            value: record.value.clone(),
        })
        .collect();
    fixture.cancelled.enter("acme", rows[1].id);
    fixture.cancelled.enter("acme", rows[2].id);
    let shown = rows[0].id.to_string();
    let partition = partitioner::partition_of(PHONE.as_bytes(), fixture.log.partitions(Topic::LaneNormal));
    fixture.store.streams.append(partition, rows).await.unwrap();
    let token = fixture.token(PHONE);
    let answer = fixture.get("/v1/stream", &token).await.json();
    let ids: Vec<_> = answer["messages"].as_array().unwrap().iter().map(|message| message["id"].clone()).collect();
    assert_eq!((ids, &answer["gap"]), (vec![json!(shown)], &json!(null)));
    let after = answer["cursor"].as_str().unwrap();
    let next = fixture.get(&format!("/v1/stream?after={after}"), &token).await.json();
    assert_eq!((&next["messages"], &next["cursor"], &next["more"]), (&json!([]), &json!(after), &json!(false)));
}
