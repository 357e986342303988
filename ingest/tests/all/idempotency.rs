use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use eshaar_model::{MessageId, Permission};
use eshaar_store::{Claim, ClaimKey, Claimed};
use eshaar_topics::Topic;
use http::{Method, StatusCode};
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::fixture::{Answer, Fault, Fixture, NOW, PHONE, call, request, submission, upload};

fn body(content: &str) -> String {
    json!({ "to": PHONE, "content": content }).to_string()
}

async fn send(fixture: &Fixture, credential: &str, key: &str, content: &str) -> Answer {
    fixture.call(submission(credential, &[("idempotency-key", key)], body(content))).await
}

#[tokio::test]
async fn a_repeat_gets_the_same_answer_and_sends_nothing() {
    let fixture = Fixture::new().await;
    let credential = fixture.sender().await;
    let first = send(&fixture, &credential, "k", "a").await;
    fixture.clock.advance_millis(60_000);
    let repeat = send(&fixture, &credential, "k", "a").await;
    assert_eq!((first.status, repeat.status), (StatusCode::ACCEPTED, StatusCode::ACCEPTED));
    assert_eq!(first.body, repeat.body);
    assert_eq!((first.header("idempotency-replayed"), repeat.header("idempotency-replayed")), (None, Some("true")));
    assert_eq!(fixture.accepted().await.len(), 1);
}

#[tokio::test]
async fn a_key_with_another_body_is_422_and_sends_nothing() {
    let fixture = Fixture::new().await;
    let credential = fixture.sender().await;
    send(&fixture, &credential, "k", "a").await;
    assert_eq!(send(&fixture, &credential, "k", "b").await.problem(422), "idempotency_mismatch");
    assert_eq!(fixture.accepted().await.len(), 1);
}

#[tokio::test]
async fn a_key_is_its_business_s_own() {
    let fixture = Fixture::new().await;
    let (ours, theirs) = (fixture.sender().await, fixture.key("other", &[eshaar_model::Permission::Admin]).await);
    let (first, second) = (send(&fixture, &ours, "k", "a").await, send(&fixture, &theirs, "k", "a").await);
    assert_ne!(first.json()["id"], second.json()["id"]);
    assert_eq!(fixture.accepted().await.len(), 2);
}

#[tokio::test]
async fn a_body_that_is_refused_uses_up_no_key() {
    let fixture = Fixture::new().await;
    let credential = fixture.sender().await;
    assert_eq!(send(&fixture, &credential, "k", "").await.problem(400), "content_empty");
    assert_eq!(send(&fixture, &credential, "k", "a").await.status, 202);
}

#[tokio::test]
async fn a_repeat_while_the_first_is_in_flight_is_409_and_later_gets_its_answer() {
    let fixture = Arc::new(Fixture::new().await);
    let credential = fixture.sender().await;
    let closed = fixture.log.gate.acquire_many(1_000).await.unwrap();
    let first = tokio::spawn({
        let (fixture, credential) = (Arc::clone(&fixture), credential.clone());
        async move { send(&fixture, &credential, "k", "a").await }
    });
    while fixture.log.appends.load(std::sync::atomic::Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let repeat = send(&fixture, &credential, "k", "a").await;
    assert_eq!(repeat.problem(409), "idempotency_in_flight");
    assert!(repeat.header("retry-after").is_some());
    drop(closed);
    let first = first.await.unwrap();
    assert_eq!(send(&fixture, &credential, "k", "a").await.body, first.body);
    assert_eq!(fixture.accepted().await.len(), 1);
}

#[tokio::test]
async fn repeats_that_come_together_after_the_first_was_answered_all_get_its_answer() {
    let fixture = Fixture::new().await;
    let credential = fixture.sender().await;
    let first = send(&fixture, &credential, "k", "a").await;
    let fresh = fixture.restarted();
    let send = |content: &str| call(&fresh, submission(&credential, &[("idempotency-key", "k")], body(content)));
    let (same, changed) = tokio::join!(
        futures_util::future::join_all((0..200).map(|_| send("a"))),
        futures_util::future::join_all((0..200).map(|_| send("b"))),
    );
    for repeat in same {
        assert_eq!((repeat.status.as_u16(), repeat.header("idempotency-replayed")), (202, Some("true")));
        assert_eq!(repeat.body, first.body);
    }
    for repeat in changed {
        assert_eq!(repeat.problem(422), "idempotency_mismatch");
    }
    assert_eq!(fixture.accepted().await.len(), 1);
}

#[tokio::test]
async fn a_first_whose_sender_goes_away_leaves_its_key_to_the_next() {
    let fixture = Arc::new(Fixture::new().await);
    let credential = fixture.sender().await;
    let closed = fixture.log.gate.acquire_many(1_000).await.unwrap();
    let first = tokio::spawn({
        let (fixture, credential) = (Arc::clone(&fixture), credential.clone());
        async move { send(&fixture, &credential, "k", "a").await }
    });
    while fixture.log.appends.load(std::sync::atomic::Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(send(&fixture, &credential, "k", "b").await.problem(422), "idempotency_mismatch");
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    drop(closed);
    assert_eq!(send(&fixture, &credential, "k", "b").await.problem(422), "idempotency_mismatch");
    let again = send(&fixture, &credential, "k", "a").await;
    assert_eq!((again.status.as_u16(), again.header("idempotency-replayed")), (202, Some("true")));
    let ids: Vec<_> = fixture.accepted().await.iter().map(|record| fixture.message(record).id.to_string()).collect();
    assert!(ids.iter().all(|id| *id == again.json()["id"]), "{ids:?}");
}

#[tokio::test]
async fn a_claim_that_was_never_produced_is_produced_again_with_the_same_id() {
    let fixture = Fixture::new().await;
    let credential = fixture.sender().await;
    // Written, and the process died before it could know.
    fixture.log.faults.lock().extend([Fault::Lost; 1_000]);
    assert_eq!(send(&fixture, &credential, "k", "a").await.problem(503), "outcome_unknown");
    fixture.log.faults.lock().clear();
    let written = fixture.message(&fixture.accepted().await[0]).id;
    fixture.clock.advance_millis(600_000);
    let repeat = call(&fixture.restarted(), submission(&credential, &[("idempotency-key", "k")], body("a"))).await;
    assert_eq!(repeat.status, 202);
    assert_eq!(repeat.json()["id"], written.to_string());
    assert_eq!(repeat.header("idempotency-replayed"), Some("true"));
    let records = fixture.accepted().await;
    assert!(records.iter().all(|record| fixture.message(record).id == written));
}

#[tokio::test]
async fn a_key_that_is_none_is_refused() {
    let fixture = Fixture::new().await;
    let credential = fixture.sender().await;
    for key in ["", "a b", &"k".repeat(129)] {
        assert_eq!(send(&fixture, &credential, key, "a").await.problem(400), "invalid_idempotency_key");
    }
    assert_eq!(send(&fixture, &credential, &"k".repeat(128), "a").await.status, 202);
}

#[tokio::test]
async fn a_bulk_request_that_is_repeated_has_the_same_ids_and_a_changed_line_another() {
    let fixture = Fixture::new().await;
    let credential = fixture.sender().await;
    let lines = |last: &str| format!("{}\n{}\n{}\n", body("a"), body("a"), body(last));
    let headers = [("idempotency-key", "k"), ("content-length", "150")];
    let first = fixture.call(upload(&credential, &headers, lines("b"))).await;
    let repeat = fixture.call(upload(&credential, &headers, lines("b"))).await;
    assert_eq!(first.body, repeat.body);
    assert_eq!(repeat.header("idempotency-replayed"), Some("true"));
    let changed = fixture.call(upload(&credential, &headers, lines("c"))).await.lines();
    assert_eq!(changed[..2], first.lines()[..2]);
    assert_ne!(changed[2], first.lines()[2]);
}

/// Spellings of one request, each of which a client may send again after another.
fn spellings(more: &str) -> [String; 4] {
    [
        format!(r#"{{"to":"{PHONE}","content":"a/é🎉","ttl_s":60{more}}}"#),
        format!("{{ \"content\" : \"a/é🎉\" ,\t\"ttl_s\" : 60.0 {more}, \"to\" : \"{PHONE}\" }}"),
        format!(
            r#"{{"t\u006f":"{}","content":"a\/\u00e9\ud83c\udf89","ttl_s":6e1{more}}}"#,
            PHONE.replace('+', "\\u002b")
        ),
        format!(r#"{{"to":"{PHONE}","reference":null,"content":"a/é🎉","ttl_s":60,"media":[],"send_at":null{more}}}"#),
    ]
}

#[tokio::test]
async fn one_meaning_is_one_request_however_its_json_is_spelled() {
    let fixture = Fixture::new().await;
    let credential =
        fixture.key("acme", &[Permission::MessagesSend, Permission::Chat, Permission::BroadcastsSend]).await;
    for (key, more) in [("one-way", ""), ("chat", r#","type":"chat""#)] {
        let headers = [("idempotency-key", key)];
        let mut ids = Vec::new();
        for body in spellings(more) {
            let answer = call(&fixture.restarted(), submission(&credential, &headers, body)).await;
            assert_eq!(answer.status, 202, "{}", answer.json());
            ids.push(answer.json()["id"].clone());
        }
        ids.dedup();
        assert_eq!(ids.len(), 1, "{key}");
        let other = spellings(more)[0].replace("60", "61");
        assert_eq!(fixture.call(submission(&credential, &headers, other)).await.problem(422), "idempotency_mismatch");
    }
    let broadcast = |body: String| {
        let headers = [("idempotency-key", "many"), ("content-type", "application/json")];
        request(Method::POST, "/v1/broadcasts", &credential, &headers, body)
    };
    let mut ids = Vec::new();
    for (body, to) in spellings("").iter().zip([
        r#"["+966501234567","+966501234568"]"#,
        r#"["+966501234568", "+966501234567"]"#,
        r#"["\u002b966501234568","+966501234567","+966501234567"]"#,
        r#"[ "+966501234567", "+966501234568" ]"#,
    ]) {
        let body = body
            .replace("\\u002b966501234567", PHONE)
            .replace(&format!("\"{PHONE}\""), to)
            .replace(r#","send_at":null"#, "");
        let answer = fixture.call(broadcast(body)).await;
        assert_eq!(answer.status, 202, "{}", answer.json());
        ids.push(answer.json()["id"].clone());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    let other = broadcast(json!({ "to": [PHONE], "content": "a/é🎉", "ttl_s": 60 }).to_string());
    assert_eq!(fixture.call(other).await.problem(422), "idempotency_mismatch");
}

#[tokio::test]
async fn lines_of_one_meaning_are_one_message_however_they_are_spelled() {
    let fixture = Fixture::new().await;
    let credential = fixture.sender().await;
    // Keyed as a whole: the same ids, though lengths and what blank lines are made of differ.
    let mut ids = Vec::new();
    for (number, body) in spellings("").into_iter().enumerate() {
        let blank = " ".repeat(number);
        let upload_of = format!("{blank}\n{body}\r\n{blank}{}\n", self::body("b"));
        let answers = fixture.call(upload(&credential, &[("idempotency-key", "k")], upload_of)).await.lines();
        assert_eq!(answers.last().unwrap(), &json!({ "accepted": 2, "rejected": 0 }));
        ids.push((answers[0]["id"].clone(), answers[1]["id"].clone()));
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    // Keyed by line.
    let lines = spellings(r#","idempotency_key":"line""#).join("\n");
    let answers = fixture.call(upload(&credential, &[], lines)).await.lines();
    assert_eq!(answers.last().unwrap(), &json!({ "accepted": 4, "rejected": 0 }));
    assert!(answers[..4].iter().all(|answer| answer["id"] == answers[0]["id"]), "{answers:?}");
}

/// The hash that releases before 0.2 stored.
fn hash_of_bytes(kind: &str, bytes: &str) -> [u8; 32] {
    Sha256::digest([kind.as_bytes(), &[0_u8][..], bytes.as_bytes()].concat()).into()
}

#[tokio::test]
async fn a_claim_of_an_earlier_release_is_answered_to_a_repeat_of_the_same_bytes() {
    let fixture = Fixture::new().await;
    let credential = fixture.sender().await;
    let claim = async |key: &str, body_hash: [u8; 32], answer: Option<&'static [u8]>| {
        let key = ClaimKey { principal: "acme".to_owned(), key: key.to_owned() };
        let minted = Bytes::copy_from_slice(MessageId::new(NOW).as_bytes());
        let claim = Claim { body_hash, minted: minted.clone(), answer: None, claimed_at: NOW };
        assert_eq!(fixture.store.claims.claim(&key, claim).await.unwrap(), Claimed::First);
        if let Some(answer) = answer {
            fixture.store.claims.answered(&key, &minted, Bytes::from_static(answer)).await.unwrap();
        }
        MessageId::from_bytes(&minted).unwrap().to_string()
    };
    claim("answered", hash_of_bytes("POST /v1/messages", &body("a")), Some(b"{\"earlier\":1}")).await;
    let repeat = send(&fixture, &credential, "answered", "a").await;
    assert_eq!((repeat.status.as_u16(), repeat.json()), (202, json!({ "earlier": 1 })));
    assert_eq!(send(&fixture, &credential, "answered", "b").await.problem(422), "idempotency_mismatch");
    let id = claim("open", hash_of_bytes("POST /v1/messages", &body("a")), None).await;
    assert_eq!(send(&fixture, &credential, "open", "a").await.json()["id"], id);
    // Lines of an upload that was begun by an earlier release keep the ids that it gave them: of their bytes.
    let lines = format!("{}\n", body("a"));
    let length = lines.len().to_string();
    let base = claim("bulk", hash_of_bytes("POST /v1/messages/bulk", &length), None).await;
    let headers = [("idempotency-key", "bulk"), ("content-length", length.as_str())];
    let answers = fixture.call(upload(&credential, &headers, lines)).await.lines();
    let line = Sha256::new()
        .chain_update(base.parse::<MessageId>().unwrap().as_bytes())
        .chain_update(1_u64.to_be_bytes())
        .chain_update(body("a"))
        .finalize();
    let low = 1_u64 << 50 | u64::from_be_bytes(line[..8].try_into().unwrap()) >> 14;
    let expected = format!("{:04x}-{:012x}", low >> 48 & 0x3fff | 0x8000, low & 0xffff_ffff_ffff);
    assert_eq!(answers[0]["id"].as_str().unwrap()[19..], expected);
}

#[tokio::test]
async fn a_line_with_its_own_key_is_sent_once_within_a_request_and_across_requests() {
    let fixture = Fixture::new().await;
    let credential = fixture.sender().await;
    let line =
        |key: &str, content: &str| json!({ "to": PHONE, "content": content, "idempotency_key": key }).to_string();
    let lines = [line("1", "a"), line("2", "b"), line("1", "a"), line("2", "changed")].join("\n");
    let first = fixture.call(upload(&credential, &[], lines.clone())).await.lines();
    assert_eq!(first[0]["id"], first[2]["id"]);
    assert_eq!(first[3]["error"]["code"], "idempotency_mismatch");
    assert_eq!(first[4], json!({ "accepted": 3, "rejected": 1 }));
    let repeat = call(&fixture.restarted(), upload(&credential, &[], lines)).await.lines();
    assert_eq!(first, repeat);
    assert_eq!(fixture.accepted().await.len(), 2);
}

/// What a client that never gives up does to a service that fails now and then.
#[derive(Clone, Copy, Debug)]
enum Step {
    Send { key: u8 },
    Changed { key: u8 },
    Lose,
    Refuse,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0_u8..4;
    let step = prop_oneof![
        6 => key.clone().prop_map(|key| Step::Send { key }),
        1 => key.prop_map(|key| Step::Changed { key }),
        2 => Just(Step::Lose),
        1 => Just(Step::Refuse),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..20)
}

/// Returns the id that each key was answered with.
async fn drive(fixture: &Fixture, run: usize, steps: &[Step]) -> HashMap<u8, Value> {
    let credential = fixture.sender().await;
    let mut api = fixture.api.clone();
    let mut answers: HashMap<u8, Value> = HashMap::new();
    for step in steps {
        let (key, content) = match step {
            Step::Send { key } => (*key, format!("{run}-{key}")),
            Step::Changed { key } => (*key, "changed".to_owned()),
            Step::Lose => {
                fixture.log.faults.lock().push_back(Fault::Lost);
                continue;
            }
            Step::Refuse => {
                fixture.log.faults.lock().push_back(Fault::Refused);
                continue;
            }
            Step::Restart => {
                api = fixture.restarted();
                continue;
            }
        };
        let name = format!("{run}-{key}");
        let answer = call(&api, submission(&credential, &[("idempotency-key", &name)], body(&content))).await;
        if answer.status == StatusCode::ACCEPTED && content != "changed" {
            let id = answer.json()["id"].clone();
            assert_eq!(*answers.entry(key).or_insert_with(|| id.clone()), id, "key {key} has two ids");
        }
    }
    fixture.log.faults.lock().clear();
    answers
}

#[test]
fn property_08_delivery_idempotency_of_submissions() {
    // R4.3: however often a submission is repeated, through lost answers and restarts, its message has one id.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let fixture = runtime.block_on(Fixture::new());
    let run = std::cell::Cell::new(0);
    proptest!(ProptestConfig::with_cases(120), |(steps in steps())| {
        run.set(run.get() + 1);
        let answers = runtime.block_on(drive(&fixture, run.get(), &steps));
        let records = runtime.block_on(fixture.records(Topic::MessagesAccepted));
        let mut ids: HashMap<String, Vec<String>> = HashMap::new();
        for message in records.iter().map(|record| fixture.message(record)) {
            ids.entry(message.content).or_default().push(message.id.to_string());
        }
        for (key, id) in answers {
            let of_key = ids.remove(&format!("{}-{key}", run.get())).unwrap_or_default();
            prop_assert!(!of_key.is_empty(), "answered, and not in the log");
            prop_assert!(of_key.iter().all(|found| id == *found), "{of_key:?} for one key");
        }
    });
}
