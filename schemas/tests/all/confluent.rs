//! The client of Confluent's API, against our embedded registry over HTTP and against Apicurio; and how codecs begin with
//! it: in order, with the registry down, before `eshaar topics apply`, with an older contract.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use eshaar_schemas::registry::confluent::{self, ConfluentRegistry, Options, SetupError};
use eshaar_schemas::registry::embedded::EmbeddedRegistry;
use eshaar_schemas::registry::http::{Access, router};
use eshaar_schemas::{Codecs, Compatibility, Contract, Message, Registry, RegistryError, SchemaId, StatusChanged};
use tempfile::TempDir;

use crate::conformance::{self, USER, USER_MUST_AGE, USER_WITH_AGE};

/// Our own registry on a socket, which can be made not to answer.
struct Server {
    dir: TempDir,
    registry: EmbeddedRegistry,
    address: SocketAddr,
    fault: Arc<Fault>,
}

#[derive(Default)]
struct Fault {
    is_down: AtomicBool,
    asked: AtomicU32,
}

async fn fail(State(fault): State<Arc<Fault>>, request: Request, next: Next) -> Response {
    fault.asked.fetch_add(1, Ordering::Relaxed);
    if fault.is_down.load(Ordering::Relaxed) {
        return (StatusCode::BAD_GATEWAY, "<html>no registry here</html>").into_response();
    }
    next.run(request).await
}

impl Server {
    async fn start(access: Access) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let registry = EmbeddedRegistry::open(&dir.path().join("registry.db")).unwrap();
        let fault = Arc::new(Fault::default());
        let routes = Router::new()
            .nest("/apis/ccompat/v7", router(registry.clone(), access))
            .layer(middleware::from_fn_with_state(Arc::clone(&fault), fail));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { dir, registry, address, fault }
    }

    fn options(&self) -> Options {
        Options { url: format!("http://{}/apis/ccompat/v7/", self.address), ..Options::default() }
    }

    fn cached(&self) -> Options {
        Options { cache_file: Some(self.cache_file()), ..self.options() }
    }

    fn cache_file(&self) -> PathBuf {
        self.dir.path().join("schemas.json")
    }

    async fn client(&self, options: Options) -> Arc<ConfluentRegistry> {
        Arc::new(ConfluentRegistry::new(options).await.unwrap())
    }

    fn set_down(&self, is_down: bool) {
        self.fault.is_down.store(is_down, Ordering::Relaxed);
    }
}

fn subjects() -> Vec<(String, &'static str)> {
    vec![("m-value".to_owned(), Message::NAME), ("s-value".to_owned(), "StatusChanged")]
}

/// A `Message` as a later version writes it: what this version has not, under an id that it does not know.
fn later_message() -> String {
    Message::SCHEMA.replacen(
        r#"{"name": "sender""#,
        r#"{"name": "thread", "type": ["null", "string"], "default": null}, {"name": "sender""#,
        1,
    )
}

#[tokio::test]
async fn the_embedded_registry_conforms_through_the_client() {
    let server = Server::start(Access::ReadWrite).await;
    conformance::conforms(server.client(server.cached()).await, |name| format!("with/slash {name}-value")).await;
}

#[tokio::test]
#[ignore = "needs the real engines: ./test"]
async fn apicurio_conforms_through_the_client() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = std::env::var("ENGINE_REGISTRY").expect("ENGINE_REGISTRY is not set: ./test starts it and sets it");
    let options = Options { url, timeout_ms: 20_000, ..Options::default() };
    let registry = Arc::new(ConfluentRegistry::new(options.clone()).await.unwrap());
    registry.ping().await.unwrap();
    let run = uuid::Uuid::now_v7();
    conformance::conforms(registry.clone(), |name| format!("{run}-{name}-value")).await;

    let subjects: Vec<_> = subjects().into_iter().map(|(subject, name)| (format!("{run}-{subject}"), name)).collect();
    assert_eq!(confluent::check(&options, &subjects).await.unwrap().len(), 2);
    Codecs::register(registry.clone(), &subjects).await.unwrap();
    Codecs::lookup(registry, &subjects).await.unwrap();
    assert!(confluent::check(&options, &subjects).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_role_looks_up_what_was_applied_and_registers_nothing() {
    let server = Server::start(Access::ReadOnly).await;
    let registry = server.client(server.options()).await;
    let missing = Codecs::lookup(registry.clone(), &subjects()).await.err().unwrap().to_string();
    assert_eq!(missing, "subject m-value is not in the schema registry: run `eshaar topics apply`");
    assert!(server.registry.subjects().await.unwrap().is_empty());

    let applied = Codecs::register(Arc::new(server.registry.clone()), &subjects()).await.unwrap();
    let codecs = Codecs::lookup(registry, &subjects()).await.unwrap();
    assert_eq!(codecs.encode(&record()).unwrap(), applied.encode(&record()).unwrap(), "with the same ids");
}

fn record() -> StatusChanged {
    let json = serde_json::json!({
        "id": "0199c82c-c07b-700d-80b0-a879c8549d2a", "status": "read", "at": 1_760_000_000_000_i64,
        "sender": "bank", "recipient": "+966500000001", "reason": null
    });
    serde_json::from_value(json).unwrap()
}

#[tokio::test]
async fn check_has_one_finding_a_subject_and_one_alone_for_a_registry_that_is_down() {
    let server = Server::start(Access::ReadWrite).await;
    let options = server.cached();
    let said = async || {
        let findings = confluent::check(&options, &subjects()).await.unwrap();
        findings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    server.registry.register("m-value", &later_message()).await.unwrap();
    assert_eq!(
        said().await,
        [
            "subject m-value does not have eshaar.Message as this build writes it: run `eshaar topics apply`",
            "subject s-value is not in the schema registry: run `eshaar topics apply`",
        ]
    );
    Codecs::register(server.client(options.clone()).await, &subjects()).await.unwrap();
    assert!(said().await.is_empty());
    server.set_down(true);
    let down = said().await;
    assert_eq!(down.len(), 1, "{down:?}");
    assert!(down[0].contains("502") && down[0].contains(&server.address.to_string()), "{down:?}");
}

#[tokio::test]
async fn a_role_starts_again_while_the_registry_is_down() {
    let server = Server::start(Access::ReadWrite).await;
    let first = Codecs::register(server.client(server.cached()).await, &subjects()).await.unwrap();
    let later = server.registry.register("m-value", &later_message()).await.unwrap();
    first.learn(later).await.unwrap();
    let written = first.encode(&record()).unwrap();

    server.set_down(true);
    let without = Codecs::lookup(server.client(server.options()).await, &subjects()).await.err().unwrap();
    assert!(matches!(without, RegistryError::Unavailable { .. }), "{without}");
    let again = Codecs::lookup(server.client(server.cached()).await, &subjects()).await.unwrap();
    assert_eq!(again.encode(&record()).unwrap(), written);
    assert_eq!(again.decode::<StatusChanged>(&written).unwrap(), record());
    again.learn(later).await.unwrap();

    // another registry's ids mean other schemas
    let elsewhere = Options { url: "http://127.0.0.1:1".to_owned(), ..server.cached() };
    let other = Codecs::lookup(server.client(elsewhere).await, &subjects()).await.err().unwrap();
    assert!(other.to_string().contains("127.0.0.1:1"), "{other}");
}

#[tokio::test]
async fn a_damaged_cache_is_begun_anew() {
    let server = Server::start(Access::ReadWrite).await;
    std::fs::write(server.cache_file(), "{ half a").unwrap();
    Codecs::register(server.client(server.cached()).await, &subjects()).await.unwrap();
    server.set_down(true);
    Codecs::lookup(server.client(server.cached()).await, &subjects()).await.unwrap();
}

#[tokio::test]
async fn decoding_goes_on_while_the_registry_is_down_and_learns_when_it_is_back() {
    let server = Server::start(Access::ReadWrite).await;
    let codecs = Codecs::register(server.client(server.options()).await, &subjects()).await.unwrap();
    let written = codecs.encode(&record()).unwrap();
    let later = server.registry.register("m-value", &later_message()).await.unwrap();
    server.set_down(true);
    assert_eq!(codecs.decode::<StatusChanged>(&written).unwrap(), record());
    let unknown = codecs.learn(later).await;
    assert!(matches!(unknown, Err(RegistryError::Unavailable { .. })), "{unknown:?}");

    server.set_down(false);
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(2_001)).await;
    tokio::time::resume();
    codecs.learn(later).await.unwrap();
}

#[tokio::test]
async fn an_incompatible_change_is_refused_with_the_subject_and_the_reason() {
    let server = Server::start(Access::ReadWrite).await;
    let registry = server.client(server.options()).await;
    registry.set_compatibility("users", Compatibility::FullTransitive).await.unwrap();
    registry.register("users", USER).await.unwrap();
    let refused = registry.register("users", USER_MUST_AGE).await.unwrap_err().to_string();
    assert!(refused.starts_with("schema refused for subject users: ") && refused.contains("age"), "{refused}");
    registry.register("users", USER_WITH_AGE).await.unwrap();
}

#[tokio::test]
async fn what_answers_but_is_no_registry_is_named() {
    let server = Server::start(Access::ReadOnly).await;
    let elsewhere = Options { url: format!("http://{}/nothing/here", server.address), ..Options::default() };
    let error = server.client(elsewhere).await.ping().await.unwrap_err().to_string();
    assert!(error.contains("is this the URL of a schema registry?"), "{error}");
    let refused = server.client(server.options()).await.register("new", USER).await.unwrap_err().to_string();
    assert!(refused.contains("read-only mode"), "{refused}");
    for url in ["", "localhost:8081", "ftp://localhost"] {
        let error = ConfluentRegistry::new(Options { url: url.to_owned(), ..Options::default() }).await.err().unwrap();
        assert!(matches!(error, SetupError::Url { .. }), "{error}");
    }
    let options = Options { password_file: Some("/no/such/file".into()), ..server.options() };
    let error = ConfluentRegistry::new(options).await.err().unwrap().to_string();
    assert!(error.starts_with("cannot read /no/such/file (registry.password_file)"), "{error}");
}

#[tokio::test]
async fn a_user_and_password_are_sent_and_never_printed() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let only_us = async |request: Request| {
        let is_us = request.headers().get("authorization").is_some_and(|value| value == "Basic dXM6c2VjcmV0");
        if is_us {
            (StatusCode::OK, r#"["AVRO"]"#)
        } else {
            (StatusCode::UNAUTHORIZED, r#"{"error_code":401,"message":"who?"}"#)
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(only_us)).await.unwrap() });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "secret\n").unwrap();
    let options = Options { url, username: "us".to_owned(), ..Options::default() };
    let with_file = Options { password_file: Some(file), ..options.clone() };
    ConfluentRegistry::new(with_file).await.unwrap().ping().await.unwrap();
    let with_wrong = Options { password: Some("wrong".to_owned().into()), ..options };
    assert!(!format!("{with_wrong:?}").contains("wrong"));
    let refused = ConfluentRegistry::new(with_wrong).await.unwrap().ping().await.unwrap_err().to_string();
    assert!(refused.contains("401") && refused.contains("who?"), "{refused}");
}

/// Knows nothing, and counts who asks; it takes its time.
#[derive(Default)]
struct Counting(AtomicU32);

#[async_trait]
impl Registry for Counting {
    async fn register(&self, _: &str, _: &str) -> Result<SchemaId, RegistryError> {
        Ok(1)
    }

    async fn lookup(&self, _: &str, _: &str) -> Result<SchemaId, RegistryError> {
        Ok(1)
    }

    async fn schema(&self, id: SchemaId) -> Result<String, RegistryError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(100)).await;
        if id == 7 {
            Ok(USER.to_owned())
        } else {
            Err(RegistryError::NotFound { what: eshaar_schemas::Missing::Schema })
        }
    }

    async fn set_compatibility(&self, _: &str, _: Compatibility) -> Result<(), RegistryError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_id_is_asked_for_once_and_again_after_a_while() {
    let registry = Arc::new(Counting::default());
    let codecs = Codecs::register(registry.clone(), &[]).await.unwrap();
    let asked = || registry.0.load(Ordering::Relaxed);
    let all_ask = async |id: SchemaId| {
        let asking: Vec<_> = (0..100)
            .map(|_| {
                let codecs = codecs.clone();
                tokio::spawn(async move { codecs.learn(id).await.is_ok() })
            })
            .collect();
        let mut learned = 0;
        for answer in asking {
            learned += u32::from(answer.await.unwrap());
        }
        learned
    };
    assert_eq!((all_ask(7).await, asked()), (100, 1));
    assert_eq!((all_ask(8).await, asked()), (0, 2));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!((all_ask(8).await, asked()), (0, 2));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!((all_ask(8).await, asked()), (0, 3), "what it does not know now it may know later");
}
