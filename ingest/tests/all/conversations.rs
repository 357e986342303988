use std::collections::BTreeSet;
use std::sync::Arc;

use eshaar_auth::Identity;
use eshaar_ingest::{Live, LiveMessage};
use eshaar_model::{ConversationId, ConversationPosition, Epoch, Permission, Status};
use eshaar_schemas::{Change, ConversationChanged, StatusChanged};
use eshaar_topics::{Topic, headers};
use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Fixture, NOW, OTHER_PHONE, PHONE, options, request, submission};

/// A business's key, a phone's token, and the conversation that they have.
pub struct Talk {
    pub fixture: Fixture,
    pub business: String,
    pub phone: String,
    pub id: String,
}

impl Talk {
    pub async fn new() -> Self {
        let fixture = Fixture::new().await;
        let business = fixture.key("acme", &[Permission::Chat, Permission::ConversationsManage]).await;
        let phone = fixture.token(PHONE);
        let answer = fixture.post("/v1/conversations", &phone, &json!({ "with": "acme" })).await;
        assert_eq!(answer.status, 201, "{}", answer.json());
        let id = text(&answer.json()["id"]);
        Self { fixture, business, phone, id }
    }

    /// Something said by whom a credential is of, and archived; its id.
    pub async fn say(&self, credential: &str, content: &str) -> String {
        let body = json!({ "conversation_id": self.id, "type": "chat", "content": content });
        let answer = self.fixture.send(credential, &body).await;
        assert_eq!(answer.status, 202, "{}", answer.json());
        self.fixture.archive().await;
        text(&answer.json()["id"])
    }

    async fn get(&self, credential: &str) -> Value {
        let answer = self.fixture.get(&format!("/v1/conversations/{}", self.id), credential).await;
        assert_eq!(answer.status, 200, "{}", answer.json());
        answer.json()
    }

    pub async fn act(&self, credential: &str, action: &str, body: &Value) -> crate::fixture::Answer {
        self.fixture.post(&format!("/v1/conversations/{}/{action}", self.id), credential, body).await
    }

    pub async fn history(&self, credential: &str, query: &str) -> Value {
        let answer = self.fixture.get(&format!("/v1/conversations/{}/messages{query}", self.id), credential).await;
        assert_eq!(answer.status, 200, "{}", answer.json());
        answer.json()
    }

    async fn unread(&self) -> (u64, u64) {
        let of = async |credential: &str| self.get(credential).await["unread"].as_u64().unwrap();
        (of(&self.business).await, of(&self.phone).await)
    }

    async fn events(&self) -> Vec<ConversationChanged> {
        let records = self.fixture.records(Topic::ConversationEvents).await;
        let mut events: Vec<ConversationChanged> =
            records.iter().map(|record| self.fixture.codecs.decode(&record.value).unwrap()).collect();
        events.sort_by_key(|event| (event.at, event.change.as_str()));
        events
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

pub fn contents(page: &Value) -> Vec<String> {
    page["messages"].as_array().unwrap().iter().map(|message| text(&message["content"])).collect()
}

#[tokio::test]
async fn a_pair_gets_the_same_conversation_whichever_side_asks() {
    let talk = Talk::new().await;
    let again = talk.fixture.post("/v1/conversations", &talk.business, &json!({ "with": PHONE })).await;
    assert_eq!((again.status.as_u16(), &again.json()["id"]), (200, &json!(talk.id)));
    let expected = json!({ "id": talk.id, "with": PHONE, "business": "acme", "phone": PHONE, "status": "active",
        "created_at": NOW.to_string(), "last_activity_at": NOW.to_string(), "last_message": null, "unread": 0,
        "more_unread": false, "read_up_to": null, "other_read_up_to": null });
    assert_eq!(talk.get(&talk.business).await, expected);
    assert_eq!(talk.get(&talk.phone).await["with"], "acme");
    // Nothing was said yet, so it is told again, as the same event: whoever made it may have died before it was told.
    let records = talk.fixture.records(Topic::ConversationEvents).await;
    let ids: BTreeSet<_> = records.iter().map(|record| record.headers.text(headers::CE_ID).unwrap()).collect();
    assert_eq!((records.len(), ids.len()), (2, 1));
    assert_eq!(talk.events().await[0].change, Change::Created);
}

#[tokio::test]
async fn property_2_of_many_that_begin_to_talk_at_once_all_are_in_one_conversation() {
    let fixture = Arc::new(Fixture::new().await);
    let business = fixture.key("acme", &[Permission::Chat]).await;
    let phone = fixture.token(PHONE);
    // Two processes, both sides.
    let (one, two) = (fixture.api.clone(), fixture.restarted());
    let mut sends = tokio::task::JoinSet::new();
    for round in 0..60 {
        let (credential, to) = if round % 2 == 0 { (&business, PHONE) } else { (&phone, "acme") };
        let body = json!({ "to": to, "type": "chat", "content": "a" }).to_string();
        let (api, request) = (if round % 3 == 0 { &one } else { &two }.clone(), submission(credential, &[], body));
        sends.spawn(async move { crate::fixture::call(&api, request).await });
    }
    let answers = sends.join_all().await;
    assert!(answers.iter().all(|answer| answer.status == 202));
    let ids: BTreeSet<_> = answers.iter().map(|answer| text(&answer.json()["conversation_id"])).collect();
    assert_eq!(ids.len(), 1);
    let accepted = fixture.accepted().await;
    assert_eq!(accepted.iter().filter(|record| record.key == ids.first().unwrap().as_bytes()).count(), 60);
}

#[tokio::test]
async fn property_13_chat_goes_both_ways() {
    let talk = Talk::new().await;
    let asked = talk.say(&talk.phone, "Is my card lost?").await;
    let answer = json!({ "to": PHONE, "type": "chat", "content": "It is not.", "reference": "case-7", "ttl_s": 60 });
    let answered = talk.fixture.send(&talk.business, &answer).await.json();
    assert_eq!(
        answered,
        json!({ "id": answered["id"], "type": "chat", "status": "sent", "to": PHONE, "conversation_id": talk.id,
            "sent_at": NOW.to_string(), "send_at": null })
    );
    let records = talk.fixture.accepted().await;
    let of = |id: &str| {
        let record = records.iter().find(|record| record.headers.text(headers::CE_ID) == Some(id)).unwrap();
        assert_eq!((&record.key[..], record.headers.text(headers::LANE)), (talk.id.as_bytes(), Some("normal")));
        (record.headers.text(headers::FROM).unwrap(), record.headers.text(headers::TO))
    };
    assert_eq!(of(&asked), (PHONE, None));
    assert_eq!(of(answered["id"].as_str().unwrap()), ("acme", Some(PHONE)));
    talk.fixture.archive().await;
    for credential in [&talk.business, &talk.phone] {
        let page = talk.history(credential, "").await;
        assert_eq!(contents(&page), ["Is my card lost?", "It is not."]);
        assert_eq!((&page["messages"][0]["from"], &page["messages"][0]["to"]), (&json!(PHONE), &json!("acme")));
        assert_eq!(page["messages"][1]["reference"], "case-7");
        assert_eq!(talk.get(credential).await["last_message"]["id"], answered["id"]);
    }
}

#[tokio::test]
async fn what_is_said_in_a_closed_conversation_is_refused_and_another_is_started() {
    let talk = Talk::new().await;
    talk.say(&talk.phone, "a").await;
    for _ in 0..2 {
        assert_eq!(talk.act(&talk.business, "close", &json!({})).await.json()["status"], "closed");
    }
    let into = json!({ "conversation_id": talk.id, "type": "chat", "content": "b" });
    for credential in [&talk.business, &talk.phone] {
        assert_eq!(talk.fixture.send(credential, &into).await.problem(409), "conversation_closed");
    }
    assert_eq!(talk.act(&talk.business, "archive", &json!({})).await.problem(409), "conversation_closed");
    let body = json!({ "to": "acme", "type": "chat", "content": "c" });
    let other = text(&talk.fixture.send(&talk.phone, &body).await.json()["conversation_id"]);
    assert_ne!(other, talk.id);
    assert_eq!(contents(&talk.history(&talk.phone, "").await), ["a"]);
    let changes: Vec<_> = talk.events().await.iter().map(|event| (event.change, event.id.to_string())).collect();
    assert_eq!(changes.iter().filter(|change| **change == (Change::Created, other.clone())).count(), 1);
    assert!(changes.contains(&(Change::Closed, talk.id.clone())));
}

#[tokio::test]
async fn an_archived_conversation_is_active_again_with_a_message_or_when_it_is_taken_up() {
    let talk = Talk::new().await;
    talk.say(&talk.phone, "a").await;
    assert_eq!(talk.act(&talk.business, "archive", &json!({})).await.json()["status"], "archived");
    talk.say(&talk.phone, "b").await;
    assert_eq!(talk.get(&talk.business).await["status"], "active");
    assert_eq!(talk.act(&talk.business, "archive", &json!({})).await.json()["status"], "archived");
    let taken_up = talk.fixture.post("/v1/conversations", &talk.phone, &json!({ "with": "acme" })).await.json();
    assert_eq!((&taken_up["id"], &taken_up["status"]), (&json!(talk.id), &json!("active")));
    let changes: Vec<_> = talk.events().await.iter().map(|event| event.change).collect();
    assert_eq!(changes.iter().filter(|change| **change == Change::TakenUp).count(), 1);
    assert_eq!(changes.iter().filter(|change| **change == Change::Archived).count(), 2);
}

#[tokio::test]
async fn history_is_read_in_pages_both_ways() {
    let talk = Talk::new().await;
    for number in 0..7 {
        let side = if number % 2 == 0 { &talk.phone } else { &talk.business };
        talk.say(side, &number.to_string()).await;
    }
    let newest = talk.history(&talk.business, "?limit=3").await;
    assert_eq!((contents(&newest), &newest["more"]), (vec!["4".into(), "5".into(), "6".into()], &json!(true)));
    let before = format!("?limit=3&before={}", newest["oldest"].as_str().unwrap());
    let older = talk.history(&talk.business, &before).await;
    assert_eq!((contents(&older), &older["more"]), (vec!["1".into(), "2".into(), "3".into()], &json!(true)));
    let before = format!("?limit=3&before={}", older["oldest"].as_str().unwrap());
    let first = talk.history(&talk.business, &before).await;
    assert_eq!((contents(&first), &first["more"]), (vec!["0".into()], &json!(false)));
    let after = format!("?limit=2&after={}", older["newest"].as_str().unwrap());
    let next = talk.history(&talk.phone, &after).await;
    assert_eq!((contents(&next), &next["more"]), (vec!["4".into(), "5".into()], &json!(true)));
    assert_eq!(contents(&talk.history(&talk.phone, "?after=start&limit=2").await), ["0", "1"]);
    let path = format!("/v1/conversations/{}/messages", talk.id);
    for query in ["?after=x", "?before=start", "?after=start&before=AQAA", "?limit=0", "?offset=3"] {
        talk.fixture.get(&format!("{path}{query}"), &talk.phone).await.problem(400);
    }
}

#[tokio::test]
async fn what_was_taken_back_or_expired_is_not_shown_to_the_other_side() {
    let fixture = Fixture::new().await;
    let business = fixture.key("acme", &[Permission::Chat, Permission::MessagesSend]).await;
    let phone = fixture.token(PHONE);
    let say = async |content: &str, ttl_s: Option<u32>| {
        let body = json!({ "to": PHONE, "type": "chat", "content": content, "ttl_s": ttl_s });
        let answer = fixture.send(&business, &body).await.json();
        fixture.archive().await;
        (text(&answer["conversation_id"]), text(&answer["id"]))
    };
    say("stays", None).await;
    say("expires", Some(1)).await;
    let (conversation, id) = say("is taken back", None).await;
    assert_eq!(fixture.post(&format!("/v1/messages/{id}/cancel"), &business, &json!({})).await.status, 200);
    fixture.archive().await;
    fixture.clock.advance_millis(2_000);
    let path = format!("/v1/conversations/{conversation}/messages");
    assert_eq!(contents(&fixture.get(&path, &phone).await.json()), ["stays"]);
    assert_eq!(contents(&fixture.get(&path, &business).await.json()), ["stays", "expires", "is taken back"]);
}

#[tokio::test]
async fn property_6_unread_counts_are_what_the_other_side_said_behind_what_was_read() {
    let talk = Talk::new().await;
    for content in ["a", "b", "c"] {
        talk.say(&talk.phone, content).await;
    }
    talk.say(&talk.business, "d").await;
    assert_eq!(talk.unread().await, (3, 1));
    let page = talk.history(&talk.business, "").await;
    let position = |place: usize| page["messages"][place]["position"].clone();

    talk.fixture.clock.advance_millis(9);
    let read = talk.act(&talk.business, "read", &json!({ "up_to": position(1) })).await;
    assert_eq!((&read.json()["unread"], &read.json()["read_up_to"]), (&json!(1), &position(1)));
    talk.fixture.archive().await;
    assert_eq!(talk.unread().await, (1, 1));
    let statuses = talk.history(&talk.phone, "").await;
    let statuses: Vec<_> = statuses["messages"].as_array().unwrap().iter().map(|of| text(&of["status"])).collect();
    assert_eq!(statuses, ["read", "read", "sent", "sent"]);
    assert_eq!(talk.get(&talk.phone).await["other_read_up_to"], position(1));

    // Never back; and without a position, all there is.
    talk.act(&talk.business, "read", &json!({ "up_to": position(0) })).await;
    assert_eq!(talk.get(&talk.business).await["read_up_to"], position(1));
    talk.act(&talk.business, "read", &json!({})).await;
    assert_eq!(talk.unread().await, (0, 1));
    let ahead = ConversationPosition { epoch: Epoch(9), offset: 5 };
    assert_eq!(talk.act(&talk.phone, "read", &json!({ "up_to": ahead })).await.status, 200);
    assert_eq!(talk.get(&talk.phone).await["read_up_to"], position(3), "what is not there yet cannot be read");
    talk.say(&talk.business, "e").await;
    assert_eq!(talk.unread().await, (0, 1));

    let events = talk.events().await;
    let read: Vec<_> = events.iter().filter(|event| event.change == Change::Read).collect();
    let expected = [("acme", position(1)), ("acme", position(3)), (PHONE, position(3))];
    let found: BTreeSet<_> = read.iter().map(|event| (event.by.as_str(), event.up_to.clone().unwrap())).collect();
    assert_eq!(found, expected.iter().map(|(by, at)| (*by, text(at))).collect());
    for (body, code) in [
        (json!({ "up_to": "x" }), "invalid_position"),
        (json!({ "up_to": 5 }), "wrong_type"),
        (json!({ "upto": "x" }), "unknown_field"),
        (json!([]), "json_not_object"),
    ] {
        assert_eq!(talk.act(&talk.phone, "read", &body).await.problem(400), code, "{body}");
    }
}

#[tokio::test]
async fn a_message_that_was_read_was_delivered_and_is_said_to_be_once() {
    let talk = Talk::new().await;
    let id = talk.say(&talk.phone, "a").await;
    for _ in 0..2 {
        talk.act(&talk.business, "read", &json!({})).await;
        let answer = talk.fixture.post(&format!("/v1/messages/{id}/read"), &talk.business, &json!({})).await;
        assert_eq!(answer.json()["status"], "read");
        talk.fixture.archive().await;
    }
    let records = talk.fixture.records(Topic::MessageStatus).await;
    let changes: Vec<StatusChanged> =
        records.iter().map(|record| talk.fixture.codecs.decode(&record.value).unwrap()).collect();
    let steps: BTreeSet<_> = changes.iter().map(|change| change.status).collect();
    assert_eq!(steps, [Status::Delivered, Status::Read].into());
    assert!(changes.iter().all(|change| (change.sender.as_str(), change.recipient.as_str()) == (PHONE, "acme")));
    assert!(records.iter().all(|record| record.key == talk.id.as_bytes()));
}

#[tokio::test]
async fn unread_messages_are_counted_over_the_active_conversations() {
    let talk = Talk::new().await;
    talk.say(&talk.phone, "a").await;
    talk.say(&talk.phone, "b").await;
    let other = talk.fixture.token(OTHER_PHONE);
    let sent = talk.fixture.send(&other, &json!({ "to": "acme", "type": "chat", "content": "c" })).await;
    let other_id = text(&sent.json()["conversation_id"]);
    talk.fixture.archive().await;
    let count = async || talk.fixture.get("/v1/conversations/unread-count", &talk.business).await.json();
    assert_eq!(count().await, json!({ "unread": 3, "conversations": 2, "more": false }));
    talk.fixture.post(&format!("/v1/conversations/{other_id}/close"), &talk.business, &json!({})).await;
    assert_eq!(count().await, json!({ "unread": 2, "conversations": 1, "more": false }));
    assert_eq!(
        talk.fixture.get("/v1/conversations/unread-count", &other).await.json(),
        json!({ "unread": 0, "conversations": 0, "more": false })
    );
}

#[tokio::test]
async fn a_list_is_newest_activity_first_in_pages_and_by_status() {
    let fixture = Fixture::new().await;
    let business = fixture.key("acme", &[Permission::Chat, Permission::ConversationsManage]).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        fixture.clock.advance_millis(10);
        let body = json!({ "to": format!("+96650123456{number}"), "type": "chat", "content": "a" });
        ids.push(text(&fixture.send(&business, &body).await.json()["conversation_id"]));
    }
    fixture.archive().await;
    ids.reverse();
    let page = async |query: &str| {
        let page = fixture.get(&format!("/v1/conversations{query}"), &business).await.json();
        let found: Vec<_> = page["conversations"].as_array().unwrap().iter().map(|one| text(&one["id"])).collect();
        (found, page["next_cursor"].as_str().map(str::to_owned))
    };
    let (first, next) = page("?limit=3").await;
    assert_eq!(first, ids[..3]);
    let (second, end) = page(&format!("?limit=3&cursor={}", next.unwrap())).await;
    assert_eq!((second, end), (ids[3..].to_vec(), None));
    fixture.post(&format!("/v1/conversations/{}/close", ids[1]), &business, &json!({})).await;
    assert_eq!(page("?status=closed").await.0, ids[1..2]);
    assert_eq!(page("?status=active").await.0, [&ids[..1], &ids[2..]].concat());
    assert!(page("?status=archived").await.0.is_empty());
    for query in ["?status=open", "?cursor=x", "?limit=101", "?page=2"] {
        fixture.get(&format!("/v1/conversations{query}"), &business).await.problem(400);
    }
}

#[tokio::test]
async fn nobody_else_learns_that_a_conversation_exists() {
    let talk = Talk::new().await;
    talk.say(&talk.phone, "a").await;
    let all = [Permission::Chat, Permission::ConversationsManage, Permission::MessagesSend];
    let strangers = [talk.fixture.key("other", &all).await, talk.fixture.token(OTHER_PHONE)];
    let unknown = ConversationId::new(NOW).to_string();
    for credential in &strangers {
        for id in [&talk.id, &unknown, &"x".to_owned()] {
            for (method, path) in [
                (Method::GET, format!("/v1/conversations/{id}")),
                (Method::GET, format!("/v1/conversations/{id}/messages")),
                (Method::POST, format!("/v1/conversations/{id}/read")),
                (Method::POST, format!("/v1/conversations/{id}/archive")),
                (Method::POST, format!("/v1/conversations/{id}/close")),
            ] {
                let json = [("content-type", "application/json")];
                let answer = talk.fixture.call(request(method, &path, credential, &json, "{}")).await;
                if credential == &strangers[1] && (path.ends_with("archive") || path.ends_with("close")) {
                    assert_eq!(answer.problem(403), "business_only", "{path}");
                } else {
                    assert_eq!(answer.problem(404), "conversation_not_found", "{path}");
                }
            }
        }
        for id in [&talk.id, &unknown] {
            let body = json!({ "conversation_id": id, "type": "chat", "content": "b" });
            assert_eq!(talk.fixture.send(credential, &body).await.problem(404), "conversation_not_found");
        }
        let list = talk.fixture.get("/v1/conversations", credential).await.json();
        assert_eq!(list["conversations"], json!([]));
    }
    assert_eq!(talk.fixture.accepted().await.len(), 1);
    assert_eq!(talk.get(&talk.phone).await["status"], "active");
}

#[tokio::test]
async fn what_a_key_does_not_allow_is_refused() {
    let talk = Talk::new().await;
    let sends = talk.fixture.key("acme", &[Permission::MessagesSend]).await;
    let manages = talk.fixture.key("acme", &[Permission::ConversationsManage]).await;
    let chats = talk.fixture.key("acme", &[Permission::Chat]).await;
    let into = json!({ "conversation_id": talk.id, "type": "chat", "content": "b" });
    assert_eq!(talk.fixture.send(&sends, &into).await.problem(403), "permission_missing");
    assert_eq!(talk.fixture.get("/v1/conversations", &sends).await.problem(403), "permission_missing");
    assert_eq!(talk.fixture.get("/v1/conversations/unread-count", &sends).await.problem(403), "permission_missing");
    assert_eq!(talk.fixture.post("/v1/conversations", &manages, &json!({ "with": PHONE })).await.status, 403);
    assert_eq!(talk.fixture.send(&manages, &into).await.problem(403), "permission_missing");
    assert_eq!(talk.act(&manages, "read", &json!({})).await.problem(403), "permission_missing");
    assert_eq!(talk.get(&manages).await["id"], json!(talk.id));
    for action in ["archive", "close"] {
        assert_eq!(talk.act(&chats, action, &json!({})).await.problem(403), "permission_missing");
        assert_eq!(talk.act(&talk.phone, action, &json!({})).await.problem(403), "business_only");
    }
    assert_eq!(
        talk.fixture.send(&chats, &json!({ "to": PHONE, "content": "a" })).await.problem(403),
        "permission_missing"
    );
}

#[tokio::test]
async fn two_of_a_kind_do_not_talk_and_what_is_wrong_is_named() {
    let talk = Talk::new().await;
    for (credential, body, code) in [
        (&talk.business, json!({ "with": "other" }), "invalid_recipient"),
        (&talk.phone, json!({ "with": OTHER_PHONE }), "invalid_recipient"),
        (&talk.phone, json!({ "with": "A B" }), "invalid_recipient"),
        (&talk.phone, json!({}), "missing_field"),
        (&talk.phone, json!({ "with": null }), "wrong_type"),
        (&talk.phone, json!({ "with": "acme", "x": 1 }), "unknown_field"),
    ] {
        let answer = talk.fixture.post("/v1/conversations", credential, &body).await;
        assert_eq!(answer.problem(400), code, "{body}");
    }
    let to_business = json!({ "to": "other", "type": "chat", "content": "a" });
    assert_eq!(talk.fixture.send(&talk.business, &to_business).await.problem(400), "invalid_recipient");
}

pub fn identity(principal: &str, permissions: &[Permission]) -> Identity {
    let principal = principal.parse().unwrap();
    Identity { principal, permissions: permissions.to_vec(), expires_at: None, rate: None, key_id: None }
}

pub const SAID: LiveMessage<'_> = LiveMessage {
    reference: "0b9b7a52-7f0c-4f5e-9a59-2f3ffb3f2c11",
    to: Some("acme"),
    conversation_id: None,
    content: "a",
    own_reference: None,
    has_media: false,
};

#[tokio::test]
async fn a_session_may_what_its_principal_may() {
    let talk = Talk::new().await;
    let live = Live::new(talk.fixture.deps(), options());
    let id: ConversationId = talk.id.parse().unwrap();
    let code = |refused: Result<(), eshaar_service::Problem>| refused.unwrap_err().code;
    let sent = async |by: &Identity, message: LiveMessage<'_>| live.send(by, message).await.map(|_| ());
    let agent = identity("acme", &[Permission::Chat]);
    let into = LiveMessage { to: None, conversation_id: Some(&talk.id), ..SAID };
    sent(&agent, into).await.unwrap();
    talk.fixture.archive().await;
    let position = talk.fixture.store.conversations.get(id).await.unwrap().unwrap().last_position().unwrap();
    let (phone, strangers) =
        (identity(PHONE, &[]), [identity("other", &[Permission::Chat]), identity(OTHER_PHONE, &[])]);
    assert_eq!(live.pair(&phone, id).await.unwrap().business.as_str(), "acme");
    live.read(&phone, id, position).await.unwrap();
    assert_eq!(talk.unread().await, (0, 0));
    for stranger in &strangers {
        assert_eq!(code(sent(stranger, into).await), "conversation_not_found");
        assert_eq!(code(live.read(stranger, id, position).await), "conversation_not_found");
        assert_eq!(code(live.pair(stranger, id).await.map(|_| ())), "conversation_not_found");
    }
    let mute = identity("acme", &[Permission::MessagesSend]);
    assert_eq!(code(sent(&mute, into).await), "permission_missing");
    assert_eq!(code(live.read(&mute, id, position).await), "permission_missing");
    assert_eq!(code(live.pair(&mute, id).await.map(|_| ())), "permission_missing");
    for (message, field) in [
        (LiveMessage { reference: "", ..SAID }, "ref"),
        (LiveMessage { reference: "a b", ..SAID }, "ref"),
        (LiveMessage { content: "", ..SAID }, "content"),
        (LiveMessage { conversation_id: Some(&talk.id), ..SAID }, "conversation_id"),
        (LiveMessage { to: None, ..SAID }, "to"),
        (LiveMessage { to: Some(OTHER_PHONE), ..SAID }, "to"),
        (LiveMessage { has_media: true, ..SAID }, "media"),
    ] {
        let refused = live.send(&phone, message).await.unwrap_err();
        assert_eq!(refused.field.as_deref(), Some(field), "{refused:?}");
    }
}
