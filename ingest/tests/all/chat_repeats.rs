//! What is said again in a conversation: with an Idempotency-Key, or under a session's `ref`.

use eshaar_ingest::{Live, LiveMessage};
use eshaar_model::Permission;
use eshaar_topics::headers;
use serde_json::json;

use crate::conversations::{SAID, Talk, contents, identity};
use crate::fixture::{Fault, Fixture, OTHER_PHONE, PHONE, options, submission};

#[tokio::test]
async fn a_repeat_stays_in_the_conversation_of_the_first_though_it_was_closed_since() {
    let talk = Talk::new().await;
    let body = json!({ "to": "acme", "type": "chat", "content": "a" }).to_string();
    let keyed = || submission(&talk.phone, &[("idempotency-key", "k-1")], body.clone());
    // The message is in the log, and its sender never learns.
    talk.fixture.log.faults.lock().extend([Fault::Lost; 1_000]);
    assert_eq!(talk.fixture.call(keyed()).await.problem(503), "outcome_unknown");
    talk.fixture.log.faults.lock().clear();
    talk.fixture.archive().await;
    talk.act(&talk.business, "close", &json!({})).await;
    let answers = [talk.fixture.call(keyed()).await, talk.fixture.call(keyed()).await];
    for answer in &answers {
        assert_eq!((answer.status.as_u16(), answer.header("idempotency-replayed")), (202, Some("true")));
        assert_eq!(answer.json()["conversation_id"], json!(talk.id));
    }
    assert_eq!(contents(&talk.history(&talk.phone, "").await), ["a"]);
}

#[tokio::test]
async fn a_session_sends_once_however_often_it_sends_under_one_reference() {
    let fixture = Fixture::new().await;
    fixture.key("acme", &[Permission::Chat]).await;
    let phone = identity(PHONE, &[]);
    let (one, two) = (Live::new(fixture.deps(), options()), Live::new(fixture.deps(), options()));
    let first = one.send(&phone, SAID).await.unwrap();
    let again = [one.send(&phone, SAID).await.unwrap(), two.send(&phone, SAID).await.unwrap()];
    assert!(!first.replayed && again.iter().all(|again| again.replayed));
    assert!(again.iter().all(|again| (again.id, again.conversation) == (first.id, first.conversation)));
    assert_eq!(fixture.accepted().await.len(), 1);
    let other = LiveMessage { content: "b", ..SAID };
    assert_eq!(two.send(&phone, other).await.unwrap_err().code, "idempotency_mismatch");
    // Another sender's reference is another's.
    let stranger = one.send(&identity(OTHER_PHONE, &[]), SAID).await.unwrap();
    assert_ne!(stranger.id, first.id);
}

/// No answer is kept of what names its conversation: until the history has it a repeat is another record of the same message.
#[tokio::test]
async fn a_repeat_of_what_names_its_conversation_is_the_same_message_before_the_history_has_it_and_after() {
    let talk = Talk::new().await;
    let body = json!({ "conversation_id": talk.id, "type": "chat", "content": "a" }).to_string();
    let post = async || {
        let answer = talk.fixture.call(submission(&talk.phone, &[("idempotency-key", "k-1")], body.clone())).await;
        assert_eq!(answer.status, 202, "{}", answer.json());
        (answer.header("idempotency-replayed") == Some("true"), answer.json())
    };
    let (live, phone) = (Live::new(talk.fixture.deps(), options()), identity(PHONE, &[]));
    let into = LiveMessage { to: None, conversation_id: Some(&talk.id), content: "b", ..SAID };
    let ((is_repeat, posted), sent) = (post().await, live.send(&phone, into).await.unwrap());
    assert!(!is_repeat && !sent.replayed);
    let again = async || {
        assert_eq!(post().await, (true, posted.clone()));
        let again = live.send(&phone, into).await.unwrap();
        assert_eq!((again.id, again.conversation, again.replayed), (sent.id, sent.conversation, true));
    };
    again().await;
    let accepted = talk.fixture.accepted().await;
    let marked = accepted.iter().filter(|record| record.headers.get(headers::REPEAT).is_some()).count();
    assert_eq!((accepted.len(), marked), (4, 2), "sent again, in case that it was not");
    talk.fixture.archive().await;
    again().await;
    talk.act(&talk.business, "close", &json!({})).await;
    again().await;
    assert_eq!(talk.fixture.accepted().await.len(), 4, "the history has it");
    assert_eq!(contents(&talk.history(&talk.phone, "").await), ["a", "b"]);
}
