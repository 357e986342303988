//! The embedded registry over HTTP, as Confluent's clients speak to theirs: same paths, JSON, error codes.
//!
//! Source: Confluent's Schema Registry API reference. Avro only, no references between schemas, no contexts, nothing is
//! ever deleted. Whoever reaches the port may read; [`Access`] says whether they may write.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use eshaar_service::json as safe_json;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tower::Layer as _;
use tower::util::MapRequestLayer;

use super::embedded::{EmbeddedRegistry, MAX_SCHEMA, Registered, Version};
use super::{Missing, Registry, RegistryError, SchemaId};

const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// Longest request body, in bytes: a schema, escaped.
const MAX_BODY: usize = 2 * MAX_SCHEMA;

/// How long a request may take.
const REQUEST_TIME: Duration = Duration::from_secs(20);

/// What may be done over HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading, looking up and checking. Registering is refused, with the answer of a registry in mode READONLY.
    ReadOnly,
    /// Registering schemas and setting levels too, by anyone who reaches the port.
    ReadWrite,
}

#[derive(Clone)]
struct Shared {
    registry: EmbeddedRegistry,
    access: Access,
}

/// The routes, to be nested where the registry is to be found.
pub fn router(registry: EmbeddedRegistry, access: Access) -> Router {
    let routes = Router::new()
        .route("/", get(async || answer(json!({}))))
        .route("/subjects", get(subjects))
        .route("/subjects/{subject}", post(lookup))
        .route("/subjects/{subject}/versions", get(versions).post(register))
        .route("/subjects/{subject}/versions/{version}", get(version))
        .route("/subjects/{subject}/versions/{version}/schema", get(version_text))
        .route("/subjects/{subject}/versions/{version}/referencedby", get(async || answer(json!([]))))
        .route("/schemas", get(schemas))
        .route("/schemas/types", get(async || answer(json!(["AVRO"]))))
        .route("/schemas/ids/{id}", get(schema))
        .route("/schemas/ids/{id}/schema", get(schema_text))
        .route("/schemas/ids/{id}/versions", get(schema_versions))
        .route("/schemas/ids/{id}/subjects", get(schema_subjects))
        .route("/config", get(level).put(set_level))
        .route("/config/{subject}", get(subject_level).put(set_subject_level))
        .route("/mode", get(mode))
        .route("/mode/{subject}", get(mode))
        .route("/compatibility/subjects/{subject}/versions", post(check_all))
        .route("/compatibility/subjects/{subject}/versions/{version}", post(check))
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, 404, "HTTP 404 Not Found".to_owned()))
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, 405, "HTTP 405 Method Not Allowed".to_owned())
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn(in_time))
        .with_state(Shared { registry, access });
    // Paths with a slash at their end are the same paths.
    Router::new().fallback_service(MapRequestLayer::new(trim).layer(routes))
}

/// Bounds a request, the reading of its body included.
async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal::new(StatusCode::REQUEST_TIMEOUT, 408, "HTTP 408 Request Timeout".to_owned()).into_response(),
    }
}

fn trim(mut request: Request) -> Request {
    let uri = request.uri();
    let trimmed = uri.path().trim_end_matches('/');
    if trimmed.len() < uri.path().len() && !trimmed.is_empty() {
        let path = uri.query().map_or_else(|| trimmed.to_owned(), |query| format!("{trimmed}?{query}"));
        if let Ok(path) = path.parse() {
            *request.uri_mut() = path;
        }
    }
    request
}

fn answer(body: impl Serialize) -> Response {
    text(&serde_json::to_string(&body).unwrap_or_default())
}

/// Answers with JSON as text.
fn text(body: &str) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], safe_json::escaped(body)).into_response()
}

/// An error in Confluent's form: an HTTP status, and a code that begins with it.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    code: u32,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, code: u32, message: String) -> Self {
        Self { status, code, message }
    }

    fn unprocessable(code: u32, message: String) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, answer(json!({"error_code": self.code, "message": self.message}))).into_response()
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::NotFound { what } => {
                let (code, message) = match what {
                    Missing::Subject(subject) => (40401, format!("Subject '{subject}' not found.")),
                    Missing::Version(version) => (40402, format!("Version {version} not found.")),
                    Missing::Schema => (40403, "Schema not found".to_owned()),
                    Missing::Level(subject) => {
                        (40408, format!("Subject '{subject}' does not have subject-level compatibility configured"))
                    }
                };
                Self::new(StatusCode::NOT_FOUND, code, message)
            }
            RegistryError::Incompatible { subject, reason } => {
                let message = format!("Schema being registered is incompatible with subject \"{subject}\": {reason}");
                Self::new(StatusCode::CONFLICT, 409, message)
            }
            RegistryError::Invalid { reason } => Self::unprocessable(42201, format!("Invalid schema: {reason}")),
            error => {
                tracing::error!(%error, "the embedded schema registry failed");
                let message = "Error in the backend data store".to_owned();
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, 50001, message)
            }
        }
    }
}

type Answer = Result<Response, Refusal>;

fn parse_version(text: &str) -> Result<Version, Refusal> {
    if text == "latest" || text == "-1" {
        return Ok(Version::Latest);
    }
    match text.parse() {
        Ok(number @ 1..=0x7fff_ffff) => Ok(Version::Number(number)),
        _ => Err(Refusal::unprocessable(
            42202,
            "The specified version is not a valid version id. Allowed values are between [1, 2^31-1] and the string \
             \"latest\""
                .to_owned(),
        )),
    }
}

fn parse_id(text: &str) -> Result<SchemaId, Refusal> {
    text.parse().map_err(|_| RegistryError::NotFound { what: Missing::Schema }.into())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SchemaBody {
    schema: String,
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<serde_json::Value>,
}

/// The schema in a body, which must be one that this registry can hold.
fn parse_schema(body: &[u8]) -> Result<String, Refusal> {
    let body: SchemaBody = serde_json::from_slice(body)
        .map_err(|error| Refusal::unprocessable(42201, format!("Invalid body: {error}")))?;
    if body.schema_type.is_some_and(|kind| kind != "AVRO") || !body.references.is_empty() {
        let message = "Invalid schema: only Avro without references is supported".to_owned();
        return Err(Refusal::unprocessable(42201, message));
    }
    Ok(body.schema)
}

impl Shared {
    fn may_write(&self) -> Result<(), Refusal> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Refusal::unprocessable(42205, "The registry is in read-only mode".to_owned())),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Prefix {
    #[serde(default)]
    subject_prefix: String,
}

async fn subjects(State(shared): State<Shared>, Query(prefix): Query<Prefix>) -> Answer {
    let mut subjects = shared.registry.subjects().await?;
    subjects.retain(|subject| subject.starts_with(&prefix.subject_prefix));
    Ok(answer(subjects))
}

fn describe(found: &Registered) -> serde_json::Value {
    json!({"subject": found.subject, "version": found.version, "id": found.id, "schema": found.schema})
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SchemasQuery {
    #[serde(default)]
    subject_prefix: String,
    #[serde(default)]
    latest_only: Flag,
    #[serde(default)]
    offset: usize,
    /// Negative: all.
    limit: Option<i64>,
}

/// Every version of every subject.
async fn schemas(State(shared): State<Shared>, Query(query): Query<SchemasQuery>) -> Answer {
    let mut found = Vec::new();
    for subject in shared.registry.subjects().await? {
        if !subject.starts_with(&query.subject_prefix) {
            continue;
        }
        let mut versions = shared.registry.versions(&subject).await?;
        if query.latest_only.0 {
            versions.drain(..versions.len().saturating_sub(1));
        }
        for version in versions {
            found.push(describe(&shared.registry.version(&subject, Version::Number(version)).await?));
        }
    }
    let limit = query.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    Ok(answer(found.into_iter().skip(query.offset).take(limit).collect::<Vec<_>>()))
}

async fn lookup(State(shared): State<Shared>, Path(subject): Path<String>, body: Bytes) -> Answer {
    Ok(answer(describe(&shared.registry.lookup(&subject, &parse_schema(&body)?).await?)))
}

async fn versions(State(shared): State<Shared>, Path(subject): Path<String>) -> Answer {
    Ok(answer(shared.registry.versions(&subject).await?))
}

async fn register(State(shared): State<Shared>, Path(subject): Path<String>, body: Bytes) -> Answer {
    let schema = parse_schema(&body)?;
    if shared.may_write().is_err() {
        // Clients register before they look up: what is there already is no write.
        return match shared.registry.lookup(&subject, &schema).await {
            Ok(found) => Ok(answer(json!({"id": found.id}))),
            Err(RegistryError::NotFound { .. }) => shared.may_write().map(IntoResponse::into_response),
            Err(error) => Err(error.into()),
        };
    }
    let id = shared.registry.register(&subject, &schema).await?;
    Ok(answer(json!({"id": id})))
}

async fn find(shared: &Shared, subject: &str, version: &str) -> Result<Registered, Refusal> {
    Ok(shared.registry.version(subject, parse_version(version)?).await?)
}

async fn version(State(shared): State<Shared>, Path((subject, version)): Path<(String, String)>) -> Answer {
    Ok(answer(describe(&find(&shared, &subject, &version).await?)))
}

async fn version_text(State(shared): State<Shared>, Path((subject, version)): Path<(String, String)>) -> Answer {
    Ok(text(&find(&shared, &subject, &version).await?.schema))
}

async fn schema(State(shared): State<Shared>, Path(id): Path<String>) -> Answer {
    Ok(answer(json!({"schema": shared.registry.schema(parse_id(&id)?).await?})))
}

async fn schema_text(State(shared): State<Shared>, Path(id): Path<String>) -> Answer {
    Ok(text(&shared.registry.schema(parse_id(&id)?).await?))
}

async fn schema_versions(State(shared): State<Shared>, Path(id): Path<String>) -> Answer {
    let uses = shared.registry.uses(parse_id(&id)?).await?;
    let uses = uses.iter().map(|(subject, version)| json!({"subject": subject, "version": version}));
    Ok(answer(uses.collect::<Vec<_>>()))
}

async fn schema_subjects(State(shared): State<Shared>, Path(id): Path<String>) -> Answer {
    let uses = shared.registry.uses(parse_id(&id)?).await?;
    let mut subjects: Vec<_> = uses.into_iter().map(|(subject, _)| subject).collect();
    subjects.dedup();
    Ok(answer(subjects))
}

async fn level(State(shared): State<Shared>) -> Answer {
    Ok(answer(json!({"compatibilityLevel": shared.registry.level(None).await?.as_str()})))
}

/// A flag of a query: `true` in any case, as Java reads it and Python's client writes it; anything else is no.
#[derive(Clone, Copy, Default)]
struct Flag(bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self(text.eq_ignore_ascii_case("true")))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LevelQuery {
    #[serde(default)]
    default_to_global: Flag,
}

async fn subject_level(
    State(shared): State<Shared>,
    Path(subject): Path<String>,
    Query(query): Query<LevelQuery>,
) -> Answer {
    let level = match shared.registry.level(Some(&subject)).await {
        Err(RegistryError::NotFound { .. }) if query.default_to_global.0 => shared.registry.level(None).await?,
        other => other?,
    };
    Ok(answer(json!({"compatibilityLevel": level.as_str()})))
}

async fn set_level(State(shared): State<Shared>, body: Bytes) -> Answer {
    change_level(&shared, None, &body).await
}

async fn set_subject_level(State(shared): State<Shared>, Path(subject): Path<String>, body: Bytes) -> Answer {
    change_level(&shared, Some(&subject), &body).await
}

async fn change_level(shared: &Shared, subject: Option<&str>, body: &[u8]) -> Answer {
    #[derive(Deserialize)]
    struct Body {
        compatibility: String,
    }
    shared.may_write()?;
    let invalid = |reason: String| Refusal::unprocessable(42203, format!("Invalid compatibility level: {reason}"));
    let body: Body = serde_json::from_slice(body).map_err(|error| invalid(error.to_string()))?;
    let wanted = body
        .compatibility
        .to_uppercase()
        .parse()
        .map_err(|error: super::CompatibilityError| invalid(error.to_string()))?;
    shared.registry.set_level(subject, wanted).await?;
    Ok(answer(json!({"compatibility": wanted.as_str()})))
}

async fn mode(State(shared): State<Shared>) -> Response {
    let mode = match shared.access {
        Access::ReadOnly => "READONLY",
        Access::ReadWrite => "READWRITE",
    };
    answer(json!({"mode": mode}))
}

#[derive(Deserialize)]
struct Verbose {
    #[serde(default)]
    verbose: Flag,
}

fn verdict(messages: Vec<String>, verbose: bool) -> Response {
    let mut verdict = json!({"is_compatible": messages.is_empty()});
    if verbose {
        verdict["messages"] = messages.into();
    }
    answer(verdict)
}

async fn check(
    State(shared): State<Shared>,
    Path((subject, version)): Path<(String, String)>,
    Query(query): Query<Verbose>,
    body: Bytes,
) -> Answer {
    let (version, schema) = (parse_version(&version)?, parse_schema(&body)?);
    Ok(verdict(shared.registry.check(&subject, version, &schema).await?, query.verbose.0))
}

async fn check_all(
    State(shared): State<Shared>,
    Path(subject): Path<String>,
    Query(query): Query<Verbose>,
    body: Bytes,
) -> Answer {
    let schema = parse_schema(&body)?;
    Ok(verdict(shared.registry.check_all(&subject, &schema).await?, query.verbose.0))
}
