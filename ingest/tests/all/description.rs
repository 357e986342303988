use axum::body::Body;
use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Fixture, PHONE, request, submission};

/// A schema, or the one that it refers to.
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let referred = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    referred.map_or(schema, |pointer| document.pointer(pointer).unwrap())
}

#[tokio::test]
async fn the_document_and_the_pages_are_served_without_a_credential() {
    let fixture = Fixture::new().await;
    let document = fixture.get("/openapi.json", "").await;
    assert_eq!((document.status.as_u16(), document.header("content-type")), (200, Some("application/json")));
    assert_eq!(document.json()["openapi"], "3.1.0");
    assert_eq!(fixture.get("/docs/", "").await.status, 200);
    assert_eq!(fixture.get("/docs", "").await.status, 303);
    fixture.get("/docs/nothing.js", "").await.problem(404);
}

#[tokio::test]
async fn every_operation_says_who_may_call_it_and_every_problem_it_may_answer() {
    let document = Fixture::new().await.get("/openapi.json", "").await.json();
    let mut operations = 0;
    for path in document["paths"].as_object().unwrap().values() {
        for operation in path.as_object().unwrap().values() {
            operations += 1;
            for status in ["400", "401", "500", "503"] {
                let answer = &operation["responses"][status];
                let schema = &answer["content"]["application/problem+json"]["schema"];
                assert_eq!(
                    resolve(&document, schema)["required"],
                    json!(["type", "title", "status", "code", "detail"])
                );
            }
        }
    }
    assert_eq!(operations, 35);
    assert_eq!(document["components"]["securitySchemes"]["api_key"]["scheme"], "bearer");
}

#[tokio::test]
async fn what_is_to_be_asked_again_later_says_when_and_limits_say_where_a_caller_stands() {
    let document = Fixture::new().await.get("/openapi.json", "").await.json();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let has = |header: &str| answer["headers"].get(header).is_some();
                let later = ["409", "429", "503"].contains(&status.as_str());
                assert_eq!(has("Retry-After"), later, "{method} {path}: {status}");
                let limited = match path.as_str() {
                    "/v1/messages" => method == "post" && ["202", "429"].contains(&status.as_str()),
                    "/v1/messages/bulk" => status == "200",
                    _ => false,
                };
                assert_eq!(
                    (has("RateLimit"), has("RateLimit-Policy")),
                    (limited, limited),
                    "{method} {path}: {status}"
                );
            }
        }
    }
    assert!(document["paths"]["/v1/messages"]["post"]["responses"]["429"].is_object());
}

#[tokio::test]
async fn what_is_answered_is_what_is_described() {
    let fixture = Fixture::new().await;
    let document = fixture.get("/openapi.json", "").await.json();
    let key = fixture.sender().await;
    let sent = fixture.call(submission(&key, &[], json!({ "to": PHONE, "content": "a" }).to_string())).await.json();
    fixture.archive().await;
    let id = sent["id"].as_str().unwrap();
    let phone = fixture.token(PHONE);
    let read = request(Method::POST, &format!("/v1/messages/{id}/read"), &phone, &[], Body::empty());
    for (schema, answer) in [
        ("Accepted", sent.clone()),
        ("Page", fixture.get("/v1/messages", &key).await.json()),
        ("MessageView", fixture.get("/v1/messages", &key).await.json()["messages"][0].clone()),
        ("StreamAnswer", fixture.get("/v1/stream", &phone).await.json()),
        ("ReadAnswer", fixture.call(read).await.json()),
        ("Problem", fixture.get("/v1/messages?limit=0", &key).await.json()),
    ] {
        let described = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
        let mut described: Vec<_> = described.keys().collect();
        let mut found: Vec<_> = answer.as_object().unwrap().keys().collect();
        described.sort();
        found.sort();
        assert_eq!(found, described, "{schema}");
    }
}

#[tokio::test]
async fn behind_a_prefix_the_document_and_the_pages_lead_to_where_the_proxy_serves_them() {
    let fixture = Fixture::new().await;
    let ask = async |path: &str, accept: &str, prefix: Option<&str>| {
        let mut asked = request(Method::GET, path, "", &[("accept", accept)], Body::empty());
        if let Some(prefix) = prefix {
            asked.extensions_mut().insert(eshaar_service::listener::PublicPrefix(prefix.into()));
        }
        fixture.call(asked).await
    };
    let plain = ask("/openapi.json", "", None).await.json();
    let mut under = ask("/openapi.json", "", Some("/gate")).await.json();
    assert_eq!(under["servers"], json!([{ "url": "/gate" }]));
    under.as_object_mut().unwrap().remove("servers");
    assert_eq!(under, plain);
    assert_eq!(ask("/docs", "", None).await.header("location"), Some("docs/"), "relative: any prefix stays");
    let script = ask("/docs/swagger-initializer.js", "", None).await;
    let script = String::from_utf8(script.body).unwrap();
    assert!(script.contains("../openapi.json") && !script.contains("\"/openapi.json"), "{script}");
}

#[tokio::test]
async fn the_root_says_what_this_is_and_where_to_go_on() {
    let fixture = Fixture::new().await;
    let plain = fixture.get("/", "").await;
    assert_eq!((plain.status.as_u16(), plain.header("content-type")), (200, Some("application/json")));
    let answer = plain.json();
    assert_eq!((&answer["name"], &answer["links"]["openapi"]), (&json!("eshaar"), &json!("/openapi.json")));
    for link in ["docs", "openapi"] {
        assert_eq!(fixture.get(answer["links"][link].as_str().unwrap(), "").await.status, 200);
    }
    let browser = "text/html,application/xhtml+xml,*/*;q=0.8";
    let mut asked = request(Method::GET, "/", "", &[("accept", browser)], Body::empty());
    asked.extensions_mut().insert(eshaar_service::listener::PublicPrefix("/gate".into()));
    let page = fixture.call(asked).await;
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert!(String::from_utf8(page.body).unwrap().contains("href=\"/gate/docs/\""));
}
