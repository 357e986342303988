//! The table of operations, walked: every row of the HTTP API × every permission and kind of caller × the caller's own tenant
//! and another.

use axum::body::Body;
use eshaar_auth::operations::{self, Access, Operation, Scope, Surface, TABLE};
use eshaar_model::Permission;
use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Answer, Fixture, OTHER_PHONE, PHONE, request};

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Nobody,
    Phone,
    /// A key of `acme` with these permissions.
    Key(&'static [Permission]),
}

const CALLERS: [Who; 11] = [
    Who::Nobody,
    Who::Phone,
    Who::Key(&[]),
    Who::Key(&[Permission::MessagesSend]),
    Who::Key(&[Permission::MessagesRead]),
    Who::Key(&[Permission::BroadcastsSend]),
    Who::Key(&[Permission::Chat]),
    Who::Key(&[Permission::ConversationsManage]),
    Who::Key(&[Permission::MediaUpload]),
    Who::Key(&[Permission::WebhooksManage]),
    Who::Key(&[Permission::Admin]),
];

/// What a business and a phone have.
struct Tenant {
    business: &'static str,
    phone: &'static str,
    key: String,
    message: String,
    /// From the phone to the business.
    said: String,
    conversation: String,
    broadcast: String,
}

impl Tenant {
    async fn make(fixture: &Fixture, business: &'static str, phone: &'static str) -> Self {
        let key = fixture.key(business, &Permission::ALL).await;
        let id = |answer: Answer| answer.json()["id"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned();
        let message = id(fixture.send(&key, &json!({ "to": phone, "content": "a" })).await);
        let token = fixture.token(phone);
        let said = fixture.send(&token, &json!({ "to": business, "type": "chat", "content": "b" })).await;
        let conversation = said.json()["conversation_id"].as_str().unwrap().to_owned();
        let broadcast = id(fixture.post("/v1/broadcasts", &key, &json!({ "to": [phone], "content": "c" })).await);
        Self { business, phone, key, message, said: id(said), conversation, broadcast }
    }

    /// The path of a row, about what this tenant has.
    async fn path(&self, fixture: &Fixture, row: &Operation, who: Who) -> String {
        if row.path.starts_with("/v1/webhooks/{id}") {
            let made = fixture.post("/v1/webhooks", &self.key, &json!({ "url": "https://example.com/" })).await.json();
            return row.path.replace("{id}", made["id"].as_str().unwrap());
        }
        if row.method == "PUT" {
            return row.path.replace("{name}", "new-list");
        }
        if row.path.contains("{name}") {
            let csv = [("content-type", "text/csv")];
            let name = format!("{}-list", self.business);
            let path = row.path.replace("{name}", &name);
            let body = format!("to\n{}\n", self.phone);
            assert_eq!(fixture.call(request(Method::PUT, &path, &self.key, &csv, body)).await.status, 200);
            return path;
        }
        let id = match row.path {
            "/v1/messages/{id}/read" if who != Who::Phone => &self.said,
            // One-way messages are for `messages:read` alone.
            "/v1/messages/{id}" if matches!(who, Who::Key([Permission::Chat | Permission::ConversationsManage])) => {
                &self.said
            }
            path if path.starts_with("/v1/messages/") => &self.message,
            path if path.starts_with("/v1/conversations/") => &self.conversation,
            _ => &self.broadcast,
        };
        row.path.replace("{id}", id)
    }

    /// Webhooks are few: those that a call was about go.
    async fn clean(&self, fixture: &Fixture) {
        for webhook in fixture.get("/v1/webhooks", &self.key).await.json()["webhooks"].as_array().unwrap() {
            let path = format!("/v1/webhooks/{}", webhook["id"].as_str().unwrap());
            fixture.call(request(Method::DELETE, &path, &self.key, &[], Body::empty())).await;
        }
    }

    fn names(&self) -> [&str; 5] {
        [&self.message, &self.said, &self.conversation, &self.broadcast, self.phone]
    }
}

/// The body of a call, and its type.
fn body(row: &Operation, who: Who) -> (&'static str, String) {
    let json = |value: Value| ("application/json", value.to_string());
    match (row.method, row.path) {
        ("POST", "/v1/messages") => json(match who {
            Who::Phone => json!({ "to": "acme", "type": "chat", "content": "x" }),
            Who::Key(&[Permission::Chat]) => json!({ "to": PHONE, "type": "chat", "content": "x" }),
            _ => json!({ "to": PHONE, "content": "x" }),
        }),
        ("POST", "/v1/messages/bulk") => {
            ("application/x-ndjson", format!("{}\n", json!({"to": PHONE, "content": "x"})))
        }
        ("POST", "/v1/conversations") => json(json!({ "with": if who == Who::Phone { "acme" } else { PHONE } })),
        ("POST", "/v1/broadcasts") => json(json!({ "to": [PHONE], "content": "x" })),
        ("POST", "/v1/webhooks") => json(json!({ "url": "https://example.com/" })),
        ("PUT", _) => ("text/csv", format!("to\n{PHONE}\n")),
        (_, path) if path.ends_with("/redrive") || path.ends_with("/discard") => json(json!({ "filter": {} })),
        ("POST", _) => json(json!({})),
        _ => ("application/json", String::new()),
    }
}

fn may(row: &Operation, who: Who) -> bool {
    match (row.access, who) {
        (Access::Public, _) | (Access::Phone | Access::PhoneOrBusiness(_) | Access::Authenticated, Who::Phone) => true,
        (Access::Business(wanted) | Access::PhoneOrBusiness(wanted), Who::Key(has)) => {
            has.iter().any(|has| *has == Permission::Admin || wanted.contains(has))
        }
        _ => false,
    }
}

fn api() -> impl Iterator<Item = &'static Operation> {
    TABLE.iter().filter(|row| row.surface == Surface::Api && row.access != Access::Public)
}

#[tokio::test]
async fn every_operation_is_for_whom_the_table_says_and_shows_nobody_elses() {
    let fixture = Fixture::new().await;
    let own = Tenant::make(&fixture, "acme", PHONE).await;
    let other = Tenant::make(&fixture, "other", OTHER_PHONE).await;
    fixture.archive().await;
    let mut calls = 0;
    for row in api() {
        for who in CALLERS {
            let credential = match who {
                Who::Nobody => String::new(),
                Who::Phone => fixture.token(PHONE),
                Who::Key(permissions) => fixture.key("acme", permissions).await,
            };
            for tenant in [&own, &other] {
                let path = tenant.path(&fixture, row, who).await;
                let (content_type, body) = body(row, who);
                let method: Method = row.method.parse().unwrap();
                let headers = [("content-type", content_type)];
                let answer = fixture.call(request(method, &path, &credential, &headers, body)).await;
                let case = format!("{} {path} by {who:?} about {}", row.method, tenant.business);
                check(&answer, row, who, tenant.business == "acme", &case);
                let text = String::from_utf8_lossy(&answer.body);
                if row.scope == Scope::Own {
                    assert!(!other.names().iter().any(|name| text.contains(name)), "{case}: {text}");
                }
                tenant.clean(&fixture).await;
                calls += 1;
            }
        }
    }
    assert_eq!(calls, api().count() * CALLERS.len() * 2);
}

fn check(answer: &Answer, row: &Operation, who: Who, is_own: bool, case: &str) {
    let status = answer.status.as_u16();
    let is_about_one = row.path.contains('{') && row.method != "PUT";
    match (may(row, who), who) {
        (false, Who::Nobody) => assert_eq!(answer.problem(401), "unauthenticated", "{case}"),
        (false, _) => {
            let code = answer.problem(403);
            assert!(["permission_missing", "business_only", "phone_only"].contains(&code.as_str()), "{case}: {code}");
        }
        (true, _) if row.scope == Scope::All => assert!(status != 401 && status != 403, "{case}: {status}"),
        (true, _) if is_own || !is_about_one => {
            // What an earlier call has done already is a conflict.
            assert!(status < 400 || status == 409, "{case}: {status} {}", answer.json());
        }
        (true, _) => assert_eq!(status, 404, "{case}"),
    }
}

#[tokio::test]
async fn the_description_has_every_operation_of_the_table_and_names_its_permissions() {
    let document = Fixture::new().await.get("/openapi.json", "").await.json();
    for row in api() {
        let operation = &document["paths"][row.path][row.method.to_lowercase()];
        let description = operation["description"].as_str().unwrap_or_default();
        assert!(description.contains(&row.requirement()), "{} {}: {description}", row.method, row.path);
        let refused = &operation["responses"]["403"];
        assert!(refused.is_object(), "{} {}", row.method, row.path);
    }
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            assert!(operations::find(Surface::Api, &method.to_uppercase(), path).is_some(), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_method_that_the_table_does_not_have_is_not_allowed() {
    let fixture = Fixture::new().await;
    let key = fixture.key("acme", &Permission::ALL).await;
    for row in api() {
        let path = row.path.replace("{id}", "019b7600-0000-7000-8000-000000000000").replace("{name}", "list");
        let answer = fixture.call(request(Method::PATCH, &path, &key, &[], Body::empty())).await;
        assert_eq!(answer.problem(405), "method_not_allowed", "{path}");
        assert!(answer.header("allow").unwrap().contains(row.method), "{path}");
    }
    let head = request(Method::HEAD, "/v1/messages", &key, &[], Body::empty());
    assert_eq!(fixture.call(head).await.status, 200);
    let head = request(Method::HEAD, "/v1/messages", "", &[], Body::empty());
    assert_eq!(fixture.call(head).await.status, 401);
}

#[tokio::test]
async fn a_key_for_chat_alone_sees_chat_messages_and_no_one_way_messages() {
    let fixture = Fixture::new().await;
    let own = Tenant::make(&fixture, "acme", PHONE).await;
    fixture.archive().await;
    for permission in [Permission::Chat, Permission::ConversationsManage] {
        let key = fixture.key("acme", &[permission]).await;
        assert_eq!(fixture.get(&format!("/v1/messages/{}", own.said), &key).await.status, 200);
        let one_way = fixture.get(&format!("/v1/messages/{}", own.message), &key).await;
        assert_eq!(one_way.problem(403), "permission_missing");
        assert!(one_way.json()["detail"].as_str().unwrap().contains("`messages:read`"));
        assert_eq!(fixture.get("/v1/messages?type=chat", &key).await.problem(403), "permission_missing");
    }
}
