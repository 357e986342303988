//! `POST /v1/messages/bulk`: a stream of lines in, a stream of results out, a batch at a time.
//!
//! `source` (the upload, decompressed, bounded) → `lines` → `gather` (a batch: each line parsed and made a record, or
//! refused) → `settle` (claimed, appended, answered). The next batch is gathered while one is settled; appends follow one
//! another, so a recipient's lines keep their order. Whoever sends faster than the log takes is read no further; whoever does
//! not read the answers, once the memory for them is used up (`answers`).

mod answers;
mod gather;
pub(crate) mod lines;
mod settle;
pub(crate) mod source;
mod utf8;

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use eshaar_model::BusinessId;
use eshaar_presence::limits::Limits;
use eshaar_service::Problem;
use http::{HeaderMap, HeaderValue, header};
use sha2::{Digest as _, Sha256};

use crate::caller::Caller;
use crate::context::Origin;
use crate::idempotency::{self, Fingerprint, Held, REPLAYED, Turn};
use crate::query::Parameters;
use crate::shares::Share;
use crate::submit::LineIds;
use crate::{App, body, openapi, problems};
use answers::{Answers, Mode, Stop, Terms};
use gather::{Gather, Gathered};
use lines::Lines;
use settle::Settle;
use source::{Encoding, Source};

/// What an upload may be declared as, the first of them being the one we name.
pub(crate) const NDJSON: [&str; 4] =
    ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-lines"];

const PREFER: &str = "prefer";
const PREFERENCE_APPLIED: &str = "preference-applied";
const MINIMAL: &str = "return=minimal";

/// Highest `after_line`. Ids of lines keep their order up to line 2^24, for which this leaves room for a million lines more.
const MAX_AFTER_LINE: u64 = 15_000_000;

/// What requests with an Idempotency-Key are distinguished by from those to other paths.
const KIND: &str = "POST /v1/messages/bulk";

/// A bulk request that was let in. Shared by its two halves.
struct Submission {
    app: App,
    business: BusinessId,
    limits: Limits,
    origin: Origin,
    /// Where the whole request has an Idempotency-Key: the ids of its lines.
    ids: Option<LineIds>,
    /// True if that key was used before: its lines may have been appended.
    is_repeat: bool,
    /// Lines of the client's file before the first of the upload.
    after_line: u64,
}

/// Send many messages
///
/// One message a line, answered by one line each, in order, while the upload goes on; the last line is the total. A line
/// that is refused does not fail the rest. `Content-Encoding: gzip` and `zstd` are understood. A client that reads nothing before
/// it has sent everything may ask for a summary. With an Idempotency-Key a repeat of the request sends only what was not sent
/// before, and with `after_line` it need not upload the lines again that were answered.
#[utoipa::path(
    post, path = "/v1/messages/bulk", tag = "messages", operation_id = "send_messages",
    params(openapi::IdempotencyKey, openapi::BulkQuery, openapi::PreferHeader),
    request_body(content = String, content_type = "application/x-ndjson",
        description = "One message a line, as in `POST /v1/messages`; each may have an `idempotency_key`",
        example = json!(openapi::BULK_EXAMPLE)),
    responses((status = 200, description = "A result a line, then the total", body = String,
        content_type = "application/x-ndjson",
        headers(("Idempotency-Replayed" = Option<bool>, description = "`true` when the request was sent before")),
        example = json!(openapi::BULK_ANSWER_EXAMPLE)))
)]
pub(crate) async fn send(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let business = caller.business()?.clone();
    let parameters = Parameters::parse(query.as_deref(), &["answers", "after_line"])?;
    let (mode, after_line) = (mode(&parameters, &headers)?, after_line(&parameters)?);
    if !body::is_of_type(&headers, &NDJSON) {
        return Err(problems::content_type(NDJSON[0]));
    }
    let encoding = Encoding::of(&headers)?;
    let place = source::place(&app, &business)?;
    let held = claim(&app, &business, &headers).await?;
    let replayed = held.as_ref().is_some_and(|held| held.repeat);
    let ids = held.as_ref().map(|held| LineIds::new(held.id, held.by_bytes));
    let (memory, stall_timeout) = (Arc::clone(&app.answers), app.options.bulk.stall_timeout());
    let (answers, stream) = Answers::new(Terms { mode, after_line, business: business.clone(), memory, stall_timeout });
    let source = Source::new(body, encoding, &app.options.bulk);
    let limits = app.admission.bulk_limits(&caller.0);
    let of_limits = app.admission.bulk_headers(&caller.0).await;
    let submission = Arc::new(Submission { app, business, limits, origin, ids, is_repeat: replayed, after_line });
    tokio::spawn(run(submission, source, answers, (place, held)));
    let ndjson = [(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON[0]))];
    let mut response = (ndjson, Body::from_stream(stream)).into_response();
    response.headers_mut().extend(of_limits);
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    if mode == Mode::Summary {
        response.headers_mut().insert(PREFERENCE_APPLIED, HeaderValue::from_static(MINIMAL));
    }
    Ok(response)
}

/// Lines before the upload: `?after_line`. Numbers and ids of its lines are those that they would have in the whole file.
fn after_line(parameters: &Parameters) -> Result<u64, Problem> {
    let Some(text) = parameters.get::<String>("after_line")? else { return Ok(0) };
    let line =
        text.parse().ok().filter(|line| *line <= MAX_AFTER_LINE && text.bytes().all(|byte| byte.is_ascii_digit()));
    line.ok_or_else(|| {
        problems::invalid_parameter("after_line", format!("must be an integer from 0 to {MAX_AFTER_LINE}"))
    })
}

/// Which lines are to be answered: `?answers=summary`, or `Prefer: return=minimal` (RFC 7240), for those that are refused.
fn mode(parameters: &Parameters, headers: &HeaderMap) -> Result<Mode, Problem> {
    match parameters.get::<String>("answers")?.as_deref() {
        Some("all") => Ok(Mode::All),
        Some("summary") => Ok(Mode::Summary),
        Some(_) => Err(problems::invalid_parameter("answers", "must be `all` or `summary`")),
        None => {
            let preferences = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
            let mut preferences = preferences.flat_map(|value| value.split(',')).map(str::trim);
            let is_minimal = preferences.any(|preference| preference.eq_ignore_ascii_case(MINIMAL));
            Ok(if is_minimal { Mode::Summary } else { Mode::All })
        }
    }
}

/// A claim for the whole request. Its lines get ids that derive from the claim's, their number and their meaning, so a repeat
/// is simply produced again: what stood already is dropped by the log's readers, and a line that was changed is a message of
/// its own. So the claim needs no answer, and nothing of the upload to be compared by: its length depends on how it is spelled.
async fn claim(app: &App, business: &BusinessId, headers: &HeaderMap) -> Result<Option<Held>, Problem> {
    let Some(key) = idempotency::of(headers)? else { return Ok(None) };
    let length = headers.get(header::CONTENT_LENGTH).map(HeaderValue::as_bytes).unwrap_or_default();
    let request = Fingerprint::new(Sha256::digest(KIND).into(), KIND, Bytes::copy_from_slice(length));
    let now = app.deps.clock.now();
    match app.claims.claim(business.to_string(), key, &request, app.ids.mint(now), now).await? {
        Turn::Produce(held) => Ok(Some(held)),
        Turn::Replay(_) => Err(problems::internal()),
    }
}

/// The whole of a request, once it was let in. Its place is given back once its last line is settled.
///
/// Where it ends before the upload does, the rest of the upload is taken in and thrown away: a client that reads nothing
/// before it has sent everything would never come to read why.
async fn run(submission: Arc<Submission>, source: Source, mut answers: Answers, held: (Share, Option<Held>)) {
    let lines = Lines::new(source, &submission.app.options.bulk).numbered_after(submission.after_line);
    let mut gather = Gather::new(Arc::clone(&submission), lines);
    let settle = Settle::new(submission);
    let mut gathered = gather.batch().await;
    let stop = loop {
        let Gathered { entries, end } = gathered;
        let settled = settle.batch(entries, &mut answers);
        let next = match end {
            None => tokio::try_join!(settled, async { Ok(gather.batch().await) }).map(|((), next)| next),
            Some(Ok(())) => break settled.await,
            Some(Err(problem)) => break settled.await.and(Err(Stop::Broken(problem))),
        };
        match next {
            Ok(next) => gathered = next,
            Err(stop) => break Err(stop),
        }
    };
    drop(held);
    match &stop {
        Ok(()) => answers.total(None),
        Err(Stop::Broken(problem)) => answers.total(Some(problem)),
        Err(Stop::Gone) => tracing::debug!("a bulk sender went away before it had all answers"),
    }
    if let Err(Stop::Broken(_)) = stop {
        gather.discard().await;
    }
    answers.drained().await;
}
