//! The API, described: OpenAPI 3.1 at `/openapi.json`, for people at `/docs`.
//!
//! Each handler describes its own path; here is what they share: the form of a submission, `parameters`, credentials, and
//! the problems that every operation may answer.

mod parameters;

use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use eshaar_auth::operations::{self, Surface};
use eshaar_service::listener::PublicPrefix;
use http::{HeaderValue, header};
use serde::{Deserialize, Serialize};
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, ObjectBuilder, OpenApi, Ref, RefOr, Required, ResponseBuilder, Type};
use utoipa::{Modify, OpenApi as _, ToSchema};

use crate::{App, admin, audiences, broadcasts, bulk, cancel, conversations, messages, read, stream, webhooks};

pub(crate) use parameters::*;

/// Of a bulk request.
pub(crate) const BULK_EXAMPLE: &str = "{\"to\": \"+966501234567\", \"type\": \"one_way\", \"content\": \"one\"}\n\
     {\"to\": \"+966501234568\", \"type\": \"one_way\", \"content\": \"two\", \"idempotency_key\": \"tx-82\"}\n";
/// Of a bulk answer.
pub(crate) const BULK_ANSWER_EXAMPLE: &str = "{\"line\":1,\"id\":\"019b7600-0000-7000-8000-000000000000\",\"status\":\"sent\"}\n\
     {\"line\":2,\"error\":{\"code\":\"invalid_phone\",\"detail\":\"expected an E.164 phone number\",\"field\":\"to\"}}\n\
     {\"accepted\":1,\"rejected\":1}\n";

/// What an operation may answer besides what it is for: its name, and these; 429 is added.
const PROBLEMS: [(&str, &[u16]); 35] = [
    ("send_message", &[400, 401, 403, 404, 408, 409, 413, 415, 422, 500, 503]),
    ("send_messages", &[400, 401, 403, 409, 415, 422, 500, 503]),
    ("get_message", &[400, 401, 403, 404, 500, 503]),
    ("list_messages", &[400, 401, 403, 500, 503]),
    ("mark_read", &[400, 401, 403, 404, 500, 503]),
    ("cancel_message", &[400, 401, 403, 404, 409, 500, 503]),
    ("start_conversation", &[400, 401, 403, 408, 413, 415, 500, 503]),
    ("list_conversations", &[400, 401, 403, 500, 503]),
    ("count_unread", &[400, 401, 403, 500, 503]),
    ("get_conversation", &[400, 401, 403, 404, 500, 503]),
    ("list_conversation_messages", &[400, 401, 403, 404, 500, 503]),
    ("read_conversation", &[400, 401, 403, 404, 408, 413, 415, 500, 503]),
    ("archive_conversation", &[400, 401, 403, 404, 409, 500, 503]),
    ("close_conversation", &[400, 401, 403, 404, 500, 503]),
    ("send_broadcast", &[400, 401, 403, 404, 408, 409, 413, 415, 422, 500, 503]),
    ("get_broadcast", &[400, 401, 403, 404, 500, 503]),
    ("list_broadcasts", &[400, 401, 403, 500, 503]),
    ("cancel_broadcast", &[400, 401, 403, 404, 500, 503]),
    ("upload_audience", &[400, 401, 403, 408, 413, 415, 500, 503]),
    ("get_audience", &[400, 401, 403, 404, 500, 503]),
    ("list_audiences", &[400, 401, 403, 500, 503]),
    ("delete_audience", &[400, 401, 403, 404, 500, 503]),
    ("read_stream", &[400, 401, 403, 500, 503]),
    ("make_webhook", &[400, 401, 403, 408, 409, 413, 415, 500, 503]),
    ("list_webhooks", &[400, 401, 403, 500, 503]),
    ("delete_webhook", &[400, 401, 403, 404, 500, 503]),
    ("enable_webhook", &[400, 401, 403, 404, 500, 503]),
    ("rotate_webhook_secret", &[400, 401, 403, 404, 500, 503]),
    ("list_dead_letters", &[400, 401, 403, 500, 503]),
    ("show_dead_letter", &[400, 401, 403, 404, 500, 503]),
    ("redrive_dead_letters", &[400, 401, 403, 404, 408, 409, 413, 415, 500, 503]),
    ("discard_dead_letters", &[400, 401, 403, 404, 408, 409, 413, 415, 500, 503]),
    ("list_dead_letter_tasks", &[400, 401, 403, 500, 503]),
    ("get_dead_letter_task", &[400, 401, 403, 404, 500, 503]),
    ("read_audit", &[400, 401, 403, 500, 503]),
];

/// Operations whose answers say where the caller stands, each with the answer, besides 429, that does.
const LIMITED: [(&str, &str); 2] = [("send_message", "202"), ("send_messages", "200")];

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "eshaar",
        description = "Delivers messages of businesses to mobile users. Every error is `application/problem+json` with \
                       a stable `code`; every answer has an `X-Correlation-Id`."
    ),
    paths(
        messages::send, messages::list, messages::get, bulk::send, read::mark, cancel::cancel, stream::read,
        conversations::start, conversations::list, conversations::unread_count, conversations::get,
        conversations::history::read, conversations::reading::mark, conversations::standing::archive,
        conversations::standing::close,
        broadcasts::send, broadcasts::list, broadcasts::get, broadcasts::cancel,
        audiences::upload, audiences::list, audiences::get, audiences::delete,
        webhooks::make, webhooks::list, webhooks::delete, webhooks::enable, webhooks::rotate,
        admin::letters::list, admin::letters::show, admin::work::redrive, admin::work::discard, admin::work::list,
        admin::work::get, admin::audit::list
    ),
    components(schemas(Submission, ProblemDocument)),
    security(("api_key" = []), ("token" = [])),
    tags(
        (name = "messages", description = "Sending messages, and seeing what became of them"),
        (name = "conversations", description = "What businesses and mobile users say to each other"),
        (name = "broadcasts", description = "One message to many, and the audiences that it goes to"),
        (name = "webhooks", description = "Being told, by signed requests, what becomes of your messages"),
        (name = "operators", description = "Dead letters and the audit log; for keys with the permission `admin`")
    ),
    modifiers(&Shared)
)]
struct Document;

/// A message to be sent. Fields that are not named here are refused.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it describes what `submit` reads")]
pub(crate) struct Submission {
    /// The phone, in E.164; a number of its country's numbering plan. Of a chat message that a mobile user sends: the business's
    /// id. Required where there is no `conversation_id`.
    #[schema(example = "+966501234567", nullable = false)]
    to: Option<String>,
    /// Of a chat message, in place of `to`.
    #[schema(format = "uuid", nullable = false)]
    conversation_id: Option<String>,
    /// `one_way` when it is left out.
    r#type: Option<MessageType>,
    /// Plain text, stored and delivered byte for byte. At least one character is visible; control characters other than tab and
    /// line ends are refused.
    #[schema(min_length = 1, max_length = 10_000, example = "Your card was used.")]
    content: String,
    /// `normal` when it is left out, and for every chat message. Order holds within a priority.
    priority: Option<Priority>,
    /// Not delivered after so many seconds, counted from when it is sent.
    #[schema(minimum = 1, maximum = 2_592_000, example = 3_600)]
    ttl_s: Option<i64>,
    /// When it is sent: a time with its offset, at most 30 days ahead. At once when it is left out, or past, as every chat message.
    #[schema(format = DateTime, example = "2026-01-31T12:00:00+03:00")]
    send_at: Option<String>,
    /// Your own reference; it comes back as it is wherever the message is shown.
    #[schema(min_length = 1, max_length = 128, example = "tx-81")]
    reference: Option<String>,
    /// Messages of one key replace one another on the screen. At most 64 bytes.
    #[schema(min_length = 1, max_length = 64, example = "card")]
    collapse_key: Option<String>,
}

/// A broadcast to be sent. Fields that are not named here are refused.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it describes what `submit` reads")]
pub(crate) struct NewBroadcast {
    /// The name of an audience. Either this or `to`.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,64}$", example = "card-holders")]
    audience: Option<String>,
    /// Up to 10,000 phones; one that comes again counts once. Either this or `audience`.
    #[schema(min_items = 1, max_items = 10_000, nullable = false)]
    to: Option<Vec<String>>,
    /// `one_way` when it is left out.
    r#type: Option<SendableType>,
    /// Plain text, stored and delivered byte for byte. At least one character is visible; control characters other than tab and
    /// line ends are refused.
    #[schema(min_length = 1, max_length = 10_000, example = "We are closed on Friday.")]
    content: String,
    /// `normal` when it is left out. Whichever it is, the messages take the bulk lane.
    priority: Option<Priority>,
    /// Not delivered after so many seconds, counted from now for all of its messages.
    #[schema(minimum = 1, maximum = 2_592_000, example = 3_600)]
    ttl_s: Option<u64>,
    /// Your own reference.
    #[schema(min_length = 1, max_length = 128, example = "spring")]
    reference: Option<String>,
    /// Messages of the same key replace one another on a phone's screen.
    #[schema(min_length = 1, max_length = 64, example = "offer")]
    collapse_key: Option<String>,
    /// Most of its messages that are sent in a second; as many as can be when it is left out.
    #[schema(minimum = 1, maximum = 1_000_000, example = 500)]
    rate: Option<u32>,
}

/// An error (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
struct ProblemDocument {
    #[schema(example = "about:blank")]
    r#type: String,
    #[schema(example = "Bad Request")]
    title: String,
    #[schema(minimum = 400, maximum = 599, example = 400)]
    status: u16,
    /// Stable, for programs.
    #[schema(pattern = "^[a-z0-9_]+$", example = "content_too_long")]
    code: String,
    /// What is wrong and what is allowed, for people. Never what was sent.
    #[schema(example = "must have at most 10000 characters, has 10001")]
    detail: String,
    /// The field, parameter or header at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "content")]
    field: Option<String>,
}

/// What may be sent to many.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum SendableType {
    OneWay,
}

/// From a business to a phone, or within a conversation.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MessageType {
    OneWay,
    Chat,
}

/// Which message waits behind which.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Priority {
    High,
    Normal,
    Low,
}

/// `scheduled` < `sent` < `failed`, `expired`, `cancelled` < `delivered` < `read`: a status only moves up.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Scheduled,
    Sent,
    Failed,
    Expired,
    Cancelled,
    Delivered,
    Read,
}

/// What a message can come to: `sent` < `failed`, `expired`, `cancelled` < `delivered` < `read`.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    Sent,
    Failed,
    Expired,
    Cancelled,
    Delivered,
    Read,
}

/// How a conversation stands: in use; put away until there is a message; over.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ConversationStatus {
    Active,
    Archived,
    Closed,
}

/// An attached file.
#[derive(Serialize, ToSchema)]
pub(crate) struct Attachment {
    id: String,
    content_type: String,
    size_bytes: i64,
    file_name: Option<String>,
}

/// What became of a dead letter.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "it describes a field")]
pub(crate) enum DeadLetterState {
    Open,
    Redriven,
    Discarded,
}

/// Which dead letters: either `ids` or `filter`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it describes what `admin` reads")]
pub(crate) struct DeadLetterSelection {
    /// These.
    #[schema(min_items = 1, max_items = 100, nullable = false)]
    ids: Option<Vec<String>>,
    /// All that are open when it is asked for, and are as the filter says; `{}` is every one.
    #[schema(nullable = false)]
    filter: Option<DeadLetterFilter>,
}

/// What dead letters have in common.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it describes what `admin` reads")]
pub(crate) struct DeadLetterFilter {
    #[schema(min_length = 1, max_length = 64, nullable = false, example = "route")]
    stage: Option<String>,
    #[schema(min_length = 1, max_length = 64, nullable = false, example = "retries_exhausted")]
    code: Option<String>,
    #[schema(pattern = "^[a-z0-9][a-z0-9_-]{0,63}$", nullable = false, example = "acme")]
    business: Option<String>,
    /// Given up on at this time or later.
    #[schema(format = DateTime, nullable = false)]
    from: Option<String>,
    /// Given up on before this time.
    #[schema(format = DateTime, nullable = false)]
    until: Option<String>,
}

/// Adds to every operation what all have in common.
struct Shared;

impl Modify for Shared {
    fn modify(&self, document: &mut OpenApi) {
        let bearer = |format: &str, description: &str| {
            let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format(format);
            SecurityScheme::Http(scheme.description(Some(description)).build())
        };
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("api_key", bearer("esk_…", "An API key of a business"));
        components.add_security_scheme("token", bearer("JWT", "A mobile user's token; its `sub` is the phone"));
        for (path, item) in &mut document.paths.paths {
            for (method, operation) in each_of(item) {
                require(operation, method, path);
                share(operation);
            }
        }
    }
}

fn each_of(path: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let PathItem { get, post, put, delete, .. } = path;
    let operations = [("GET", get), ("POST", post), ("PUT", put), ("DELETE", delete)];
    operations.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Says who may call an operation, as the table of operations has it.
fn require(operation: &mut Operation, method: &str, path: &str) {
    let Some(row) = operations::find(Surface::Api, method, path) else { return };
    let said = operation.description.take().unwrap_or_default();
    operation.description = Some(format!("{said}\n\n{}", row.requirement()).trim().to_owned());
}

fn share(operation: &mut Operation) {
    let text = |pattern: &str| ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern));
    let correlation = ParameterBuilder::new()
        .name("X-Correlation-Id")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("Joins logs, records and answers; a new one is made when it is left out"))
        .schema(Some(text("^[!-~]{1,64}$")))
        .build();
    operation.parameters.get_or_insert_default().push(RefOr::T(correlation));
    let name = operation.operation_id.as_deref().unwrap_or_default();
    let statuses = PROBLEMS.iter().find(|(known, _)| *known == name).map(|(_, statuses)| *statuses);
    // Every operation takes from a limit of its caller; an upload is refused by lines.
    let limited_whole: &[u16] = if name == "send_messages" { &[] } else { &[429] };
    for status in statuses.unwrap_or_default().iter().chain(limited_whole) {
        operation.responses.responses.insert(status.to_string(), RefOr::T(problem(*status)));
    }
    let limited = LIMITED.iter().find(|(known, _)| *known == name).map(|(_, status)| *status);
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response {
            if limited.is_some_and(|of| of == status || status == "429") {
                response.headers.extend(rate_limits());
            }
            let header = HeaderBuilder::new().schema(Some(text("^[!-~]{1,64}$"))).build();
            response.headers.insert("X-Correlation-Id".to_owned(), RefOr::T(header));
        }
    }
}

/// What says where a caller stands; none of it where nothing is limited.
fn rate_limits() -> [(String, RefOr<Header>); 2] {
    let header = |name: &str, description: &str, example: &str| {
        let schema = ObjectBuilder::new().schema_type(Type::String).examples([example]);
        let header = HeaderBuilder::new().description(Some(description)).schema(Some(schema)).build();
        (name.to_owned(), RefOr::T(header))
    };
    [
        header(
            "RateLimit-Policy",
            "The limits that hold for you (draft-ietf-httpapi-ratelimit-headers-11): `q` messages within `w` seconds each",
            r#""key";q=1000;w=60, "service";q=10000;w=1"#,
        ),
        header(
            "RateLimit",
            "What is left of each: `r` messages, and no more within `t` seconds",
            r#""key";r=998;t=59, "service";r=9999;t=1"#,
        ),
    ]
}

fn problem(status: u16) -> utoipa::openapi::Response {
    let description = match status {
        400 => "A field, a parameter, a header or the JSON is wrong; `field` says which",
        401 => "No credential, or one that is wrong, expired or revoked",
        403 => "The credential does not allow this",
        404 => "There is no such thing, or it is not yours",
        408 => "The body came too slowly",
        409 => {
            "The first request with this Idempotency-Key is still under way; or it is too late, or the conversation is closed: `code` says which"
        }
        413 => "The body is too large",
        415 => "The type or encoding of the body is not one of those named here",
        422 => "The Idempotency-Key was used with another request",
        429 => "Your rate, or everybody's, is reached; nothing was accepted: see `Retry-After`",
        500 => "A failure of this service",
        _ => {
            "Too much waits, too much is asked at once, an engine does not answer, or this process stops: see `Retry-After`"
        }
    };
    let content = Content::new(Some(Ref::from_schema_name("Problem")));
    let response = ResponseBuilder::new().description(description).content("application/problem+json", content);
    let seconds = || {
        let schema = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
        HeaderBuilder::new().description(Some("Seconds to wait before it is asked again")).schema(Some(schema)).build()
    };
    let string = || HeaderBuilder::new().schema(Some(ObjectBuilder::new().schema_type(Type::String))).build();
    match status {
        401 => response.header("WWW-Authenticate", string()).build(),
        409 | 429 | 503 => response.header("Retry-After", seconds()).build(),
        _ => response.build(),
    }
}

/// The OpenAPI document of the HTTP API.
pub fn document() -> OpenApi {
    Document::openapi()
}

/// `/openapi.json` and `/docs`.
pub(crate) fn router() -> Router<App> {
    let json = Bytes::from(eshaar_service::json::to_vec(&document()).unwrap_or_default());
    let answer = move |prefix: Option<Extension<PublicPrefix>>| async move {
        let json = match prefix {
            Some(Extension(PublicPrefix(prefix))) => under(&prefix, &json),
            None => json,
        };
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response()
    };
    // Relative, so that it holds behind a proxy that serves this under a prefix.
    let ui = utoipa_swagger_ui::SwaggerUi::new("/docs").config(utoipa_swagger_ui::Config::from("../openapi.json"));
    let ui = Router::new().merge(ui).layer(map_response(relative));
    Router::new().route("/openapi.json", get(answer)).merge(ui)
}

/// The document, with the address that its operations have behind a proxy.
fn under(prefix: &str, json: &Bytes) -> Bytes {
    let rest = json.strip_prefix(b"{").unwrap_or_default();
    [format!(r#"{{"servers":[{{"url":"{prefix}"}}],"#).as_bytes(), rest].concat().into()
}

/// The redirect of `/docs`, whatever stands before it.
async fn relative(mut response: Response) -> Response {
    if response.headers().get(header::LOCATION).is_some_and(|location| location == "/docs/") {
        response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("docs/"));
    }
    response
}
