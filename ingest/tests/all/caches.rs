//! What is read of conversations through the cache: the store is asked once, and again when the cache is told.

use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use eshaar_ingest::{Deps, router};
use eshaar_model::{ConversationId, ConversationPosition, Side};
use eshaar_presence::PresenceError;
use eshaar_presence::cache::{Cache, Fill, Key, Lookup};
use eshaar_store::ReadMark;
use http::Method;
use serde_json::Value;

use crate::conversations::{Talk, contents};
use crate::fixture::{OTHER_PHONE, call, options, request};

const PATHS: [&str; 3] = ["/v1/conversations", "/v1/conversations?status=active", "/v1/conversations/unread-count"];

async fn read(api: &Router, credential: &str, path: &str) -> Value {
    let answer = call(api, request(Method::GET, path, credential, &[], Body::empty())).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.json());
    answer.json()
}

async fn read_all(talk: &Talk, api: &Router) -> Vec<Value> {
    let mut all = Vec::new();
    for credential in [&talk.business, &talk.phone] {
        for path in PATHS {
            all.push(read(api, credential, path).await);
        }
        all.push(read(api, credential, &format!("/v1/conversations/{}/messages", talk.id)).await);
    }
    all
}

/// Changes what the store has behind the cache's back: the phone has read all, and the conversation is closed.
async fn change_unsaid(talk: &Talk) -> Vec<Key> {
    let id: ConversationId = talk.id.parse().unwrap();
    let conversations = &talk.fixture.store.conversations;
    let known = conversations.get(id).await.unwrap().unwrap();
    let up_to: ConversationPosition = known.last_position().unwrap();
    let mark = ReadMark { conversation: id, side: Side::Phone, up_to };
    conversations.mark_read(vec![mark]).await.unwrap();
    conversations.close(id).await.unwrap();
    Key::of_reading(id, &known.pair, Side::Phone).collect()
}

#[tokio::test]
async fn the_store_is_read_once_until_the_cache_is_told_of_a_change() {
    let talk = Talk::new().await;
    talk.say(&talk.business, "one").await;
    let other = talk.fixture.restarted();
    let before = read_all(&talk, &talk.fixture.api).await;
    assert_eq!(before[6]["unread"], 1);
    let changed = change_unsaid(&talk).await;
    assert_eq!(read_all(&talk, &other).await, before, "what another API has read is not read again");
    talk.fixture.deps().cache.invalidate(changed).await;
    let behind = read_all(&talk, &other).await;
    assert_eq!(behind[0]["conversations"][0]["status"], "closed");
    assert_eq!((&behind[1]["conversations"], &behind[6]["unread"]), (&Value::Array(Vec::new()), &Value::from(0)));
}

#[tokio::test]
async fn a_page_is_what_the_store_would_say_whatever_part_of_it_is_cached() {
    let talk = Talk::new().await;
    for number in 0..60 {
        talk.say(if number % 2 == 0 { &talk.business } else { &talk.phone }, &number.to_string()).await;
    }
    let numbers = |from: u32, to: u32| (from..to).map(|number| number.to_string()).collect::<Vec<_>>();
    let all = talk.history(&talk.phone, "?after=start&limit=100").await;
    let position = |number: usize| all["messages"][number]["position"].as_str().unwrap().to_owned();
    let cases = [
        (String::new(), numbers(10, 60), true),
        ("?limit=7".into(), numbers(53, 60), true),
        ("?limit=100".into(), numbers(0, 60), false),
        (format!("?after={}", position(57)), numbers(58, 60), false),
        (format!("?after={}&limit=3", position(20)), numbers(21, 24), true),
        (format!("?after={}&limit=3", position(10)), numbers(11, 14), true),
        (format!("?after={}&limit=3", position(9)), numbers(10, 13), true),
        (format!("?after={}&limit=3", position(3)), numbers(4, 7), true),
        (format!("?after={}", position(59)), Vec::new(), false),
        (format!("?before={}&limit=5", position(55)), numbers(50, 55), true),
        (format!("?before={}&limit=9", position(4)), numbers(0, 4), false),
    ];
    for round in ["read", "cached"] {
        for (query, expected, more) in &cases {
            let page = talk.history(&talk.phone, query).await;
            assert_eq!((&contents(&page), &page["more"]), (expected, &Value::from(*more)), "{query}, {round}");
        }
    }
}

#[tokio::test]
async fn a_conversation_that_is_cached_is_still_nobody_elses() {
    let talk = Talk::new().await;
    talk.say(&talk.business, "secret").await;
    talk.history(&talk.phone, "").await;
    let path = format!("/v1/conversations/{}/messages", talk.id);
    let answer = talk.fixture.get(&path, &talk.fixture.token(OTHER_PHONE)).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (404, &Value::from("conversation_not_found")));
}

/// A cache that cannot be asked.
struct Away;

#[async_trait]
impl Cache for Away {
    async fn look_up(&self, _: &[Key]) -> Result<Vec<Lookup>, PresenceError> {
        Err(PresenceError::Engine { action: "look up in the cache", reason: "told to fail".to_owned() })
    }

    async fn fill(&self, _: Vec<Fill>) -> Result<(), PresenceError> {
        unreachable!("nobody was given a lease")
    }

    async fn invalidate(&self, _: Vec<Key>) {}

    async fn invalidate_all(&self) {}
}

#[tokio::test]
async fn without_a_cache_the_store_is_read() {
    let talk = Talk::new().await;
    talk.say(&talk.business, "one").await;
    let alone = router(Deps { cache: Arc::new(Away), ..talk.fixture.deps() }, options());
    assert_eq!(read_all(&talk, &alone).await, read_all(&talk, &talk.fixture.api).await);
    change_unsaid(&talk).await;
    assert_eq!(read(&alone, &talk.phone, PATHS[2]).await["unread"], 0);
}
