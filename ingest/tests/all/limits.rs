use axum::body::Body;
use http::Method;
use serde_json::json;

use crate::fixture::{Fixture, PHONE, request, submission, upload};

fn good() -> String {
    json!({ "to": PHONE, "content": "a" }).to_string()
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_whether_its_length_is_declared_or_not() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let large = json!({ "to": PHONE, "content": "x".repeat(131_072) }).to_string();
    let chunks: Vec<_> = large.as_bytes().chunks(1_000).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect();
    let streamed = Body::from_stream(futures_util::stream::iter(chunks));
    for body in [Body::from(large.clone()), streamed] {
        assert_eq!(fixture.call(submission(&key, &[], body)).await.problem(413), "body_too_large");
    }
    let declared = fixture.call(submission(&key, &[("content-length", "199999")], good())).await;
    assert_eq!(declared.problem(413), "body_too_large");
    assert!(declared.json()["detail"].as_str().unwrap().contains("131072"));
}

#[tokio::test]
async fn json_that_is_deeper_than_allowed_is_refused() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let nested = |depth: usize| {
        format!(r#"{{"to": "{PHONE}", "content": "a", "media": {}{}}}"#, "[".repeat(depth), "]".repeat(depth))
    };
    assert_eq!(fixture.call(submission(&key, &[], nested(15))).await.problem(400), "media_unavailable");
    assert_eq!(fixture.call(submission(&key, &[], nested(16))).await.problem(400), "json_too_deep");
    assert_eq!(fixture.call(submission(&key, &[], nested(20_000))).await.problem(400), "json_too_deep");
}

#[tokio::test]
async fn json_that_is_wrong_says_where_and_never_what() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let answer = fixture.call(submission(&key, &[], "{\"to\":\n hidden}")).await;
    assert_eq!(answer.problem(400), "json_invalid");
    let detail = answer.json()["detail"].clone();
    assert!(detail.as_str().unwrap().contains("line 2 column 2"), "{detail}");
    for body in ["", "[]", "\"hidden\"", "null", "17", "{\"to\": \"\\ud800\"}", "{\"hidden\": 1} x"] {
        let answer = fixture.call(submission(&key, &[], body)).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(!answer.json()["detail"].to_string().contains("hidden"), "{body}");
    }
    let binary = fixture.call(submission(&key, &[], vec![0xff, 0xfe, 0x00])).await;
    assert_eq!(binary.problem(400), "json_invalid");
}

#[tokio::test]
async fn a_content_type_or_encoding_that_is_not_ours_is_415() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    for headers in [&[][..], &[("content-type", "text/plain")], &[("content-type", "application/x-ndjson")]] {
        let answer = fixture.call(request(Method::POST, "/v1/messages", &key, headers, good())).await;
        assert_eq!(answer.problem(415), "content_type_unsupported");
    }
    let bulk = request(Method::POST, "/v1/messages/bulk", &key, &[("content-type", "application/json")], good());
    assert_eq!(fixture.call(bulk).await.problem(415), "content_type_unsupported");
    let gzip = fixture.call(submission(&key, &[("content-encoding", "gzip")], good())).await;
    assert_eq!(gzip.problem(415), "content_encoding_unsupported");
    let charset = [("content-type", "Application/JSON; charset=utf-8")];
    assert_eq!(fixture.call(request(Method::POST, "/v1/messages", &key, &charset, good())).await.status, 202);
}

#[tokio::test]
async fn a_body_that_never_comes_is_408() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let never = Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    assert_eq!(fixture.call(submission(&key, &[], never)).await.problem(408), "body_timeout");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_400() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let parts = [Ok(b"{\"to\"".to_vec()), Err(std::io::Error::other("gone"))];
    let broken = Body::from_stream(futures_util::stream::iter(parts));
    assert_eq!(fixture.call(submission(&key, &[], broken)).await.problem(400), "body_broken");
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there_are_problems_too() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    for path in ["/v1", "/v1/message", "/v1/messages/", "/v1/messages/x/y/z", "/%ff"] {
        assert_eq!(fixture.get(path, &key).await.problem(404), "no_such_path", "{path}");
    }
    for (method, path) in
        [(Method::DELETE, "/v1/messages"), (Method::GET, "/v1/messages/bulk/read"), (Method::PUT, "/v1/stream")]
    {
        let answer = fixture.call(request(method, path, &key, &[], Body::empty())).await;
        assert_eq!(answer.problem(405), "method_not_allowed", "{path}");
        assert!(answer.header("allow").is_some());
    }
}

#[tokio::test]
async fn a_correlation_id_that_is_none_is_refused() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    for id in ["", "a b", &"x".repeat(65)] {
        let answer = fixture.call(submission(&key, &[("x-correlation-id", id)], good())).await;
        assert_eq!(answer.problem(400), "invalid_correlation_id");
    }
    let longest = "x".repeat(64);
    let answer = fixture.call(upload(&key, &[("x-correlation-id", &longest)], good())).await;
    assert_eq!(answer.header("x-correlation-id"), Some(longest.as_str()));
}

#[tokio::test]
async fn names_of_unknown_fields_are_said_back_bounded() {
    let fixture = Fixture::new().await;
    let key = fixture.sender().await;
    let name = format!("\u{1b}[31m{}", "x".repeat(1_000));
    let answer = fixture.send(&key, &json!({ "to": PHONE, "content": "a", name: 1 })).await;
    assert_eq!(answer.problem(400), "unknown_field");
    let field = answer.json()["field"].as_str().unwrap().to_owned();
    assert!(field.chars().count() == 64 && !field.contains(char::is_control), "{field:?}");
}
