use axum::body::Body;
use eshaar_model::Permission;
use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Answer, Fixture, NOW, request};

const URL: &str = "https://example.com/hooks?of=acme";

async fn call(fixture: &Fixture, method: Method, path: &str, key: &str, body: &Value) -> Answer {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    fixture.call(request(method, path, key, &[("content-type", "application/json")], body)).await
}

async fn make(fixture: &Fixture, key: &str, body: &Value) -> Answer {
    call(fixture, Method::POST, "/v1/webhooks", key, body).await
}

async fn list(fixture: &Fixture, key: &str) -> Vec<Value> {
    fixture.get("/v1/webhooks", key).await.json()["webhooks"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_webhook_is_made_with_a_secret_that_is_shown_once() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let answer = make(&fixture, &key, &json!({ "url": URL, "events": ["delivered", "read"] })).await;
    assert_eq!(answer.status, 201);
    let mut made = answer.json();
    let secret = made["secret"].as_str().unwrap().to_owned();
    assert!(secret.starts_with("whsec_") && secret.len() == 50, "{secret}");
    assert_eq!(
        (&made["url"], &made["events"], &made["state"]),
        (&json!(URL), &json!(["delivered", "read"]), &json!("enabled"))
    );
    for field in ["secret", "previous_secret_until"] {
        made.as_object_mut().unwrap().remove(field);
    }
    assert_eq!(list(&fixture, &key).await, [made]);
    let everything = make(&fixture, &key, &json!({ "url": URL })).await.json();
    assert_eq!(everything["events"].as_array().unwrap().len(), 6);
    assert_ne!(everything["secret"], json!(secret));
}

#[tokio::test]
async fn what_is_no_place_to_tell_anybody_at_is_refused_and_named() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    for url in [
        "http://example.com",
        "ftp://example.com",
        "example.com",
        "https://user@example.com",
        "https://example.com/#a",
        "https://127.0.0.1/",
        "https://10.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://0x7f000001/",
        "https://localhost:8443/",
        "https://169.254.169.254/latest/meta-data",
        "",
    ] {
        let answer = make(&fixture, &key, &json!({ "url": url })).await;
        assert_eq!((answer.problem(400).as_str(), &answer.json()["field"]), ("invalid_url", &json!("url")), "{url}");
    }
    let long = format!("https://example.com/{}", "a".repeat(2_000));
    let answer = make(&fixture, &key, &json!({ "url": long })).await;
    assert!(answer.problem(400) == "invalid_url" && answer.json()["detail"].as_str().unwrap().contains("2000"));
    for events in [json!([]), json!("read"), json!(["opened"]), json!(["read", "read"]), json!([1])] {
        let answer = make(&fixture, &key, &json!({ "url": URL, "events": events })).await;
        assert_eq!(answer.problem(400), "invalid_events");
    }
    assert_eq!(make(&fixture, &key, &json!({})).await.problem(400), "missing_url");
    assert_eq!(make(&fixture, &key, &json!({ "url": URL, "secret": "s" })).await.problem(400), "unknown_field");
    let twice = request(
        Method::POST,
        "/v1/webhooks",
        &key,
        &[("content-type", "application/json")],
        r#"{"url": "a", "url": "b"}"#,
    );
    assert_eq!(fixture.call(twice).await.problem(400), "repeated_field");
    assert_eq!(list(&fixture, &key).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_business_has_ten_at_most_and_may_delete_them() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    for _ in 0..10 {
        assert_eq!(make(&fixture, &key, &json!({ "url": URL })).await.status, 201);
    }
    assert_eq!(make(&fixture, &key, &json!({ "url": URL })).await.problem(409), "too_many_webhooks");
    let path = format!("/v1/webhooks/{}", list(&fixture, &key).await[0]["id"].as_str().unwrap());
    assert_eq!(call(&fixture, Method::DELETE, &path, &key, &Value::Null).await.status, 204);
    assert_eq!(call(&fixture, Method::DELETE, &path, &key, &Value::Null).await.problem(404), "webhook_not_found");
    assert_eq!(make(&fixture, &key, &json!({ "url": URL })).await.status, 201);
}

#[tokio::test]
async fn a_new_secret_is_another_and_the_one_before_holds_for_a_day() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let made = make(&fixture, &key, &json!({ "url": URL })).await.json();
    let path = format!("/v1/webhooks/{}/rotate-secret", made["id"].as_str().unwrap());
    let rotated = call(&fixture, Method::POST, &path, &key, &Value::Null).await;
    assert_eq!(rotated.status, 200);
    let rotated = rotated.json();
    assert_ne!(rotated["secret"], made["secret"]);
    assert_eq!(rotated["secret_rotated_at"], json!(NOW.to_string()));
    assert_eq!(rotated["previous_secret_until"], json!(NOW.plus_millis(24 * 3_600 * 1_000).to_string()));
    let again = call(&fixture, Method::POST, &path, &key, &Value::Null).await.json();
    assert!(again["secret"] != rotated["secret"] && again["secret"] != made["secret"]);
}

#[tokio::test]
async fn one_that_was_disabled_says_why_and_is_enabled_again_by_its_owner() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let made = make(&fixture, &key, &json!({ "url": URL })).await.json();
    let (business, id) = ("acme".parse().unwrap(), made["id"].as_str().unwrap());
    let mut stored = fixture.store.webhooks.get(&business, id.parse().unwrap()).await.unwrap().unwrap();
    stored.disabled = Some((NOW, "it answered 410 Gone".to_owned()));
    stored.failures = 3;
    stored.last_failure = Some("it answered 500 Internal Server Error".to_owned());
    stored.missed = 7;
    fixture.store.webhooks.replace(stored).await.unwrap().unwrap();
    let shown = list(&fixture, &key).await.remove(0);
    assert_eq!((&shown["state"], &shown["disabled_reason"]), (&json!("disabled"), &json!("it answered 410 Gone")));
    assert_eq!(shown["disabled_at"], json!(NOW.to_string()));
    assert_eq!(shown["last_failure"], json!("it answered 500 Internal Server Error"));
    assert_eq!((&shown["failures"], &shown["missed"]), (&json!(3), &json!(7)));
    let path = format!("/v1/webhooks/{id}/enable");
    for _ in 0..2 {
        let enabled = call(&fixture, Method::POST, &path, &key, &Value::Null).await.json();
        assert_eq!((&enabled["state"], &enabled["failures"]), (&json!("enabled"), &json!(0)));
        assert_eq!((&enabled["last_failure"], &enabled["missed"]), (&Value::Null, &json!(7)));
    }
}

#[tokio::test]
async fn anothers_webhook_is_as_good_as_none() {
    let fixture = Fixture::new().await;
    let (key, stranger) = (fixture.sender().await, fixture.key("other", &[Permission::WebhooksManage]).await);
    let made = make(&fixture, &key, &json!({ "url": URL })).await.json();
    let id = made["id"].as_str().unwrap();
    for (method, path) in [
        (Method::DELETE, format!("/v1/webhooks/{id}")),
        (Method::POST, format!("/v1/webhooks/{id}/enable")),
        (Method::POST, format!("/v1/webhooks/{id}/rotate-secret")),
        (Method::DELETE, "/v1/webhooks/7".to_owned()),
    ] {
        assert_eq!(call(&fixture, method, &path, &stranger, &Value::Null).await.problem(404), "webhook_not_found");
    }
    assert_eq!(list(&fixture, &stranger).await, Vec::<Value>::new());
    assert_eq!(list(&fixture, &key).await.len(), 1);
    let chat = fixture.key("acme", &[Permission::Chat]).await;
    assert_eq!(make(&fixture, &chat, &json!({ "url": URL })).await.problem(403), "permission_missing");
    let phone = fixture.token("+966501234567");
    assert_eq!(fixture.get("/v1/webhooks", &phone).await.problem(403), "business_only");
}
