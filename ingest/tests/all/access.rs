use axum::body::Body;
use eshaar_auth::keys;
use eshaar_model::Permission;
use http::Method;
use serde_json::json;

use crate::fixture::{Fixture, NOW, PHONE, request, submission, upload};

const PLACES: [(Method, &str); 8] = [
    (Method::POST, "/v1/messages"),
    (Method::POST, "/v1/messages/bulk"),
    (Method::GET, "/v1/messages"),
    (Method::GET, "/v1/messages/019b7600-0000-7000-8000-000000000000"),
    (Method::POST, "/v1/messages/019b7600-0000-7000-8000-000000000000/read"),
    (Method::GET, "/v1/stream"),
    (Method::GET, "/v1/webhooks"),
    (Method::POST, "/v1/webhooks"),
];

#[tokio::test]
async fn nothing_is_answered_without_a_good_credential() {
    let fixture = Fixture::new().await;
    let unknown = keys::mint("acme".parse().unwrap(), "lost", Permission::ALL.to_vec(), None, NOW).text;
    for (method, path) in PLACES {
        for credential in ["", "garbage", "esk_short", &unknown, "a.b.c"] {
            let answer = fixture.call(request(method.clone(), path, credential, &[], Body::empty())).await;
            assert_eq!(answer.problem(401), "unauthenticated", "{method} {path}");
            assert!(credential.is_empty() || !answer.json().to_string().contains(credential));
        }
        let basic = [("authorization", "Basic YTpi")];
        let answer = fixture.call(request(method.clone(), path, "", &basic, Body::empty())).await;
        assert_eq!(answer.problem(401), "unauthenticated");
    }
}

#[tokio::test]
async fn a_key_without_the_permission_is_told_which_one() {
    let fixture = Fixture::new().await;
    let key = fixture.key("acme", &[Permission::MediaUpload, Permission::Chat]).await;
    let body = json!({ "to": PHONE, "content": "a" }).to_string();
    for request in [submission(&key, &[], body.clone()), upload(&key, &[], body)] {
        let answer = fixture.call(request).await;
        assert_eq!(answer.problem(403), "permission_missing");
        assert!(answer.json()["detail"].as_str().unwrap().contains("messages:send"));
    }
    let admin = fixture.key("acme", &[Permission::Admin]).await;
    assert_eq!(fixture.send(&admin, &json!({ "to": PHONE, "content": "a" })).await.status, 202);
}

#[tokio::test]
async fn what_is_for_one_kind_of_caller_is_refused_to_the_other() {
    let fixture = Fixture::new().await;
    let (key, token) = (fixture.sender().await, fixture.token(PHONE));
    assert_eq!(fixture.get("/v1/messages", &token).await.problem(403), "business_only");
    assert_eq!(fixture.get("/v1/stream", &key).await.problem(403), "phone_only");
    let read = format!("{}/read", PLACES[3].1);
    let answer = fixture.call(request(Method::POST, &read, &key, &[], Body::empty())).await;
    assert_eq!(answer.problem(403), "permission_missing");
}

#[tokio::test]
async fn a_revoked_or_expired_credential_is_refused() {
    let fixture = Fixture::new().await;
    let mut minted = keys::mint("acme".parse().unwrap(), "old", vec![Permission::Admin], None, NOW);
    minted.stored.revoked_at = Some(NOW);
    fixture.store.keys.put(minted.stored).await.unwrap();
    assert_eq!(fixture.get("/v1/messages", &minted.text).await.problem(401), "unauthenticated");
    let token = fixture.token(PHONE);
    assert_eq!(fixture.get("/v1/stream", &token).await.status, 200);
    fixture.clock.advance_millis(3_700_000);
    assert_eq!(fixture.get("/v1/stream", &token).await.problem(401), "unauthenticated");
}
