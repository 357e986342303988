//! `/v1/audiences`: lists of recipients with a name, uploaded as CSV or NDJSON.
//!
//! An upload is read a record at a time (`csv`, `lines`; `phones`: what is a phone, and what is wrong with the others) and
//! gathered in the store (`gather`: each phone once, in memory that does not grow with the upload). The audience is the new list once all of it is
//! there; until then, and where the upload fails, it is what it was.

mod csv;
mod gather;
mod lines;
mod phones;

use axum::body::Body;
use axum::extract::{Path, State};
use eshaar_model::limits::{AUDIENCE_LINES, AUDIENCE_NAME_CHARS};
use eshaar_model::{BusinessId, MessageId, RecipientsId, Timestamp};
use eshaar_service::{Json, Problem};
use eshaar_store::{Audience, audiences};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use self::csv::{Csv, Limits, Row};
use self::gather::Gather;
use self::lines::Ndjson;
use crate::bulk::NDJSON;
use crate::bulk::lines::Lines;
use crate::bulk::source::{self, Encoding, Source};
use crate::caller::Caller;
use crate::options::BulkOptions;
use crate::{App, body, openapi, problems};

/// Lines that were refused and are told of; of the others it is told how many there are.
const TOLD: usize = 100;

/// An audience.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AudienceView {
    #[schema(example = "card-holders")]
    name: String,
    /// How many recipients it has.
    recipients: u64,
    #[schema(value_type = String, format = DateTime)]
    uploaded_at: Timestamp,
}

/// What came of an upload.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Uploaded {
    #[serde(flatten)]
    audience: AudienceView,
    /// Lines with a phone that an earlier line has.
    duplicates: u64,
    /// Lines that were refused.
    rejected: u64,
    /// The first 100 of them.
    errors: Vec<RejectedLine>,
}

/// A line that was refused.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RejectedLine {
    /// From 1; a header and blank lines count.
    line: u64,
    #[schema(example = "invalid_phone")]
    code: &'static str,
    detail: String,
}

/// The audiences of a business.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Audiences {
    audiences: Vec<AudienceView>,
}

/// An upload, a record at a time.
enum Records {
    Csv(Box<Csv>),
    Ndjson(Box<Ndjson>),
}

impl Records {
    /// The next record that is not blank; `None` at the end.
    async fn next(&mut self) -> Result<Option<Row>, Problem> {
        match self {
            Self::Csv(csv) => csv.next().await,
            Self::Ndjson(ndjson) => ndjson.next().await,
        }
    }
}

/// Upload an audience
///
/// A recipient a line, up to 10,000,000: CSV (RFC 4180; separated by `,`, `;` or tabs) with a header that names a column `to`,
/// or NDJSON, each line a phone as a string or an object with `to`. A line that is refused does not fail the rest; a phone
/// that comes again counts once. `Content-Encoding: gzip` and `zstd` are understood. The audience of that name becomes this one
/// when all of it was read, and stays what it was where that fails; broadcasts that were accepted before go to what it was.
#[utoipa::path(
    put, path = "/v1/audiences/{name}", tag = "broadcasts", operation_id = "upload_audience",
    params(openapi::AudienceNamePath),
    request_body(content(
        (String = "text/csv", example = "to,name\n+966501234567,Sara\n+966501234568,Omar\n"),
        (String = "text/tab-separated-values", example = "to\tname\n+966501234567\tSara\n"),
        (String = "application/x-ndjson", example = "{\"to\": \"+966501234567\"}\n\"+966501234568\"\n")
    )),
    responses((status = 200, description = "It is the audience of that name", body = Uploaded))
)]
pub(crate) async fn upload(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Uploaded>, Problem> {
    let business = caller.business()?;
    check(&name)?;
    let separator = if body::is_of_type(&headers, &["text/tab-separated-values"]) { Some(b'\t') } else { None };
    let is_csv = separator.is_some() || body::is_of_type(&headers, &["text/csv"]);
    if !is_csv && !body::is_of_type(&headers, &NDJSON) {
        return Err(problems::content_type("text/csv, text/tab-separated-values or application/x-ndjson"));
    }
    let encoding = Encoding::of(&headers)?;
    let _place = source::place(&app, business)?;
    let options = BulkOptions { max_lines: AUDIENCE_LINES, ..app.options.bulk.clone() };
    let source = Source::new(body, encoding, &options);
    let limits = Limits { record_bytes: options.line_limit_bytes, records: AUDIENCE_LINES };
    let records = if is_csv {
        Records::Csv(Box::new(Csv::new(source, separator, limits)))
    } else {
        Records::Ndjson(Box::new(Ndjson::new(Lines::new(source, &options), limits)))
    };
    read(&app, business, name, records).await.map(Json)
}

async fn read(app: &App, business: &BusinessId, name: String, mut records: Records) -> Result<Uploaded, Problem> {
    let store = &*app.deps.store.audiences;
    let begun = app.deps.clock.now();
    let mut gather = Gather::begin(store, business, &name, begun).await.map_err(|error| problems::store(&error))?;
    let (mut valid, mut rejected, mut errors) = (0_u64, 0, Vec::new());
    while let Some((line, phone)) = records.next().await? {
        match phone {
            Ok(phone) => {
                valid += 1;
                gather.add(phone).await.map_err(|error| problems::store(&error))?;
            }
            Err((code, detail)) => {
                rejected += 1;
                if errors.len() < TOLD {
                    errors.push(RejectedLine { line, code, detail: detail.into_owned() });
                }
            }
        }
    }
    if valid == 0 {
        let first = errors.first().map_or(String::new(), |first| format!("; line {}: {}", first.line, first.detail));
        let detail = format!("no line of it has a phone, {rejected} were refused{first}");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "audience_empty", detail));
    }
    let (recipients, total) = gather.end().await.map_err(|error| problems::store(&error))?;
    let now = app.deps.clock.now();
    let audience = Audience { business: business.clone(), name, recipients, total, uploaded_at: now };
    audiences::replace(store, audience.clone(), now).await.map_err(|error| problems::store(&error))?;
    Ok(Uploaded { audience: view(audience), duplicates: valid - total, rejected, errors })
}

/// Show an audience
#[utoipa::path(
    get, path = "/v1/audiences/{name}", tag = "broadcasts", operation_id = "get_audience",
    params(openapi::AudienceNamePath),
    responses((status = 200, description = "How large it is, and since when", body = AudienceView))
)]
pub(crate) async fn get(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<AudienceView>, Problem> {
    let business = caller.business()?;
    find(&app, business, &name).await.map(view).map(Json)
}

/// List your audiences
///
/// By name, at most 1,000.
#[utoipa::path(
    get, path = "/v1/audiences", tag = "broadcasts", operation_id = "list_audiences",
    responses((status = 200, description = "Your audiences", body = Audiences))
)]
pub(crate) async fn list(State(app): State<App>, caller: Caller) -> Result<Json<Audiences>, Problem> {
    let business = caller.business()?;
    let found = app.deps.store.audiences.list(business).await.map_err(|error| problems::store(&error))?;
    Ok(Json(Audiences { audiences: found.into_iter().map(view).collect() }))
}

/// Delete an audience
///
/// Broadcasts that were accepted before still go to it. Its list itself goes 8 days later.
#[utoipa::path(
    delete, path = "/v1/audiences/{name}", tag = "broadcasts", operation_id = "delete_audience",
    params(openapi::AudienceNamePath),
    responses((status = 204, description = "It is deleted"))
)]
pub(crate) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let business = caller.business()?;
    let removed = audiences::remove(&*app.deps.store.audiences, business, &name, app.deps.clock.now()).await;
    let was_there = removed.map_err(|error| problems::store(&error))?;
    if was_there { Ok(StatusCode::NO_CONTENT) } else { Err(problems::audience_not_found()) }
}

/// An audience of a business.
pub(crate) async fn find(app: &App, business: &BusinessId, name: &str) -> Result<Audience, Problem> {
    let found = app.deps.store.audiences.get(business, name).await.map_err(|error| problems::store(&error))?;
    found.ok_or_else(problems::audience_not_found)
}

/// A new list.
fn new_list(now: Timestamp) -> RecipientsId {
    RecipientsId::new(now)
}

/// The list of a broadcast's own recipients: the same when the request is repeated.
pub(crate) fn list_of(broadcast: MessageId) -> RecipientsId {
    RecipientsId::from_bytes(broadcast.as_bytes()).unwrap_or_else(|_| RecipientsId::new(broadcast.made_at()))
}

fn view(audience: Audience) -> AudienceView {
    AudienceView { name: audience.name, recipients: audience.total, uploaded_at: audience.uploaded_at }
}

fn check(name: &str) -> Result<(), Problem> {
    let is_one = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=AUDIENCE_NAME_CHARS).contains(&name.len()) && name.bytes().all(is_one) {
        return Ok(());
    }
    let detail = format!(
        "the name of an audience must have 1 to {AUDIENCE_NAME_CHARS} letters, digits, `.`, `_` or `-`; has {} bytes",
        name.len()
    );
    Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_audience_name", detail))
}
