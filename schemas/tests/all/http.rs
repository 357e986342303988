//! The registry over HTTP, as Confluent's clients expect it.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use eshaar_schemas::registry::embedded::EmbeddedRegistry;
use eshaar_schemas::registry::http::{Access, router};
use eshaar_schemas::{Contract, Message, Registry};
use serde_json::{Value, json};
use tower::ServiceExt;

struct Server {
    _dir: tempfile::TempDir,
    registry: EmbeddedRegistry,
    router: Router,
}

impl Server {
    fn new(access: Access) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = EmbeddedRegistry::open(&dir.path().join("registry.db")).unwrap();
        let router = Router::new().nest_service("/registry", router(registry.clone(), access));
        Self { _dir: dir, registry, router }
    }

    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let request = Request::builder().method(method).uri(format!("/registry{path}"));
        let request = request.header("content-type", "application/vnd.schemaregistry.v1+json");
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let response = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let status = response.status();
        assert_eq!(response.headers()["content-type"], "application/vnd.schemaregistry.v1+json", "{method} {path}");
        let body = to_bytes(response.into_body(), 1_000_000).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call("GET", path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    async fn refused(&self, method: &str, path: &str, body: Option<Value>) -> (u16, u64) {
        let (status, body) = self.call(method, path, body).await;
        assert!(body["message"].is_string(), "{path}: {body}");
        (status.as_u16(), body["error_code"].as_u64().unwrap())
    }
}

const ONE: &str = r#"{"type": "record", "name": "R", "fields": [{"name": "a", "type": "string"}]}"#;
const TWO: &str = r#"{"type": "record", "name": "R", "fields": [{"name": "a", "type": "string"}, {"name": "b", "type": "int", "default": 0}]}"#;
const BAD: &str = r#"{"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}]}"#;

#[tokio::test]
async fn schemas_are_registered_listed_and_read() {
    let server = Server::new(Access::ReadWrite);
    let register = |schema: &str| Some(json!({"schema": schema, "schemaType": "AVRO"}));
    let (_, first) = server.call("POST", "/subjects/r-value/versions", register(ONE)).await;
    let (_, second) = server.call("POST", "/subjects/r-value/versions", register(TWO)).await;
    let (_, other) = server.call("POST", "/subjects/other%2Fr/versions", register(TWO)).await;
    assert_eq!((first, second.clone(), other), (json!({"id": 1}), json!({"id": 2}), second));

    assert_eq!(server.get("/subjects").await, json!(["other/r", "r-value"]));
    assert_eq!(server.get("/subjects?subjectPrefix=r").await, json!(["r-value"]));
    assert_eq!(server.get("/subjects/r-value/versions").await, json!([1, 2]));
    let latest = json!({"subject": "r-value", "version": 2, "id": 2, "schema": TWO});
    assert_eq!(server.get("/subjects/r-value/versions/latest").await, latest);
    assert_eq!(server.get("/subjects/r-value/versions/2").await, latest);
    assert_eq!(server.get("/subjects/r-value/versions/1/schema").await["fields"][0]["name"], "a");
    let (_, found) = server.call("POST", "/subjects/r-value", register(TWO)).await;
    assert_eq!(found, latest);

    assert_eq!(server.get("/schemas/ids/1").await, json!({"schema": ONE}));
    assert_eq!(server.get("/schemas/ids/1/schema").await["name"], "R");
    assert_eq!(server.get("/schemas/ids/2/subjects").await, json!(["other/r", "r-value"]));
    let uses = json!([{"subject": "other/r", "version": 1}, {"subject": "r-value", "version": 2}]);
    assert_eq!(server.get("/schemas/ids/2/versions").await, uses);
    assert_eq!(server.get("/schemas/types").await, json!(["AVRO"]));
    assert_eq!(server.get("/mode").await, json!({"mode": "READWRITE"}));
}

#[tokio::test]
async fn levels_are_set_and_changes_are_checked() {
    let server = Server::new(Access::ReadWrite);
    let schema = |schema: &str| Some(json!({"schema": schema}));
    server.call("POST", "/subjects/r/versions", schema(ONE)).await;
    assert_eq!(server.get("/config").await, json!({"compatibilityLevel": "FULL_TRANSITIVE"}));
    assert_eq!(server.refused("GET", "/config/r", None).await, (404, 40408));
    assert_eq!(server.get("/config/r?defaultToGlobal=true").await["compatibilityLevel"], "FULL_TRANSITIVE");

    assert_eq!(server.refused("POST", "/subjects/r/versions", schema(BAD)).await, (409, 409));
    let check = "/compatibility/subjects/r/versions";
    let (_, verdict) = server.call("POST", &format!("{check}/latest"), schema(TWO)).await;
    assert_eq!(verdict, json!({"is_compatible": true}));
    for path in [format!("{check}/1?verbose=true"), format!("{check}?verbose=True&normalize=False")] {
        let (_, verdict) = server.call("POST", &path, schema(BAD)).await;
        assert_eq!(verdict["is_compatible"], false);
        assert_eq!(verdict["messages"].as_array().unwrap().len(), 2, "{verdict}");
    }

    let (_, set) = server.call("PUT", "/config/r", Some(json!({"compatibility": "NONE"}))).await;
    assert_eq!(set, json!({"compatibility": "NONE"}));
    assert_eq!(server.get("/config/r").await, json!({"compatibilityLevel": "NONE"}));
    let (status, _) = server.call("POST", "/subjects/r/versions", schema(BAD)).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn errors_have_confluents_codes() {
    let server = Server::new(Access::ReadWrite);
    let schema = |schema: &str| Some(json!({"schema": schema}));
    server.call("POST", "/subjects/r/versions", schema(ONE)).await;
    for path in ["/subjects/none/versions", "/subjects/none/versions/1", "/subjects/none/versions/latest"] {
        assert_eq!(server.refused("GET", path, None).await, (404, 40401), "{path}");
    }
    assert_eq!(server.refused("POST", "/subjects/none", schema(ONE)).await, (404, 40401));
    assert_eq!(server.refused("GET", "/subjects/r/versions/2", None).await, (404, 40402));
    for path in ["/schemas/ids/9", "/schemas/ids/9/versions", "/schemas/ids/x"] {
        assert_eq!(server.refused("GET", path, None).await, (404, 40403), "{path}");
    }
    assert_eq!(server.refused("POST", "/subjects/r", schema(TWO)).await, (404, 40403));
    assert_eq!(server.refused("POST", "/subjects/r/versions", schema("{")).await, (422, 42201));
    assert_eq!(server.refused("POST", "/subjects/r/versions", Some(json!({}))).await, (422, 42201));
    let protobuf = Some(json!({"schema": "message M {}", "schemaType": "PROTOBUF"}));
    assert_eq!(server.refused("POST", "/subjects/r/versions", protobuf).await, (422, 42201));
    for path in ["/subjects/r/versions/0", "/subjects/r/versions/x", "/subjects/r/versions/4294967296"] {
        assert_eq!(server.refused("GET", path, None).await, (422, 42202), "{path}");
    }
    let level = Some(json!({"compatibility": "SOME"}));
    assert_eq!(server.refused("PUT", "/config", level).await, (422, 42203));
    assert_eq!(server.refused("GET", "/nothing/here", None).await, (404, 404));
    assert_eq!(server.refused("DELETE", "/subjects/r", None).await, (405, 405));
}

#[tokio::test]
async fn read_only_access_refuses_writes_and_allows_all_else() {
    let server = Server::new(Access::ReadOnly);
    let id = server.registry.register("m-value", Message::SCHEMA).await.unwrap();
    let known = Some(json!({"schema": Message::SCHEMA}));
    assert_eq!(server.get("/mode").await, json!({"mode": "READONLY"}));
    let (_, found) = server.call("POST", "/subjects/m-value/versions", known.clone()).await;
    assert_eq!(found, json!({"id": id}), "registering what is there is no write");
    let (status, _) = server.call("POST", "/subjects/m-value", known.clone()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(server.refused("POST", "/subjects/new/versions", known).await, (422, 42205));
    let level = Some(json!({"compatibility": "NONE"}));
    assert_eq!(server.refused("PUT", "/config", level.clone()).await, (422, 42205));
    assert_eq!(server.refused("PUT", "/config/m-value", level).await, (422, 42205));
    assert_eq!(server.get("/subjects").await, json!(["m-value"]));
}

#[tokio::test]
async fn all_schemas_are_listed_and_a_slash_at_the_end_changes_nothing() {
    let server = Server::new(Access::ReadWrite);
    for (subject, schema) in [("a-value", ONE), ("a-value", TWO), ("b-value", ONE)] {
        server.call("POST", &format!("/subjects/{subject}/versions"), Some(json!({"schema": schema}))).await;
    }
    let listed = |found: Value| -> Vec<(String, u64)> {
        let found = found.as_array().unwrap().clone();
        found
            .iter()
            .map(|one| (one["subject"].as_str().unwrap().to_owned(), one["version"].as_u64().unwrap()))
            .collect()
    };
    let all = server.get("/schemas").await;
    assert_eq!(all[0]["schema"], ONE);
    assert!(all[0]["id"].is_u64());
    assert_eq!(listed(all), [("a-value".to_owned(), 1), ("a-value".to_owned(), 2), ("b-value".to_owned(), 1)]);
    let latest = server.get("/schemas?latestOnly=true&subjectPrefix=a").await;
    assert_eq!(listed(latest), [("a-value".to_owned(), 2)]);
    assert_eq!(listed(server.get("/schemas?offset=1&limit=1").await), [("a-value".to_owned(), 2)]);
    assert_eq!(listed(server.get("/schemas?limit=-1").await).len(), 3);
    for path in ["/", "/subjects", "/schemas", "/schemas/types", "/config", "/mode", "/subjects/a-value/versions"] {
        assert_eq!(server.get(&format!("{}/", path.trim_end_matches('/'))).await, server.get(path).await, "{path}");
    }
    assert_eq!(server.get("/subjects/?subjectPrefix=b").await, json!(["b-value"]));
    assert_eq!(server.refused("GET", "/nothing/", None).await, (404, 404));
    assert_eq!(server.refused("DELETE", "/subjects/", None).await, (405, 405));
}
