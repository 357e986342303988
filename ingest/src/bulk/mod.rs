//! `POST /v1/messages/bulk`: a stream of lines in, a stream of results out, a batch at a time.
//!
//! `source` (the upload, decompressed, bounded) → `lines` → `gather` (a batch: each line parsed and made a record, or
//! refused) → `settle` (claimed, appended, answered). The next batch is gathered while one is settled; appends follow one
//! another, so a recipient's lines keep their order. Whoever sends faster than the log takes, or does not read the
//! answers, is read no further.

mod answers;
mod gather;
pub(crate) mod lines;
mod settle;
pub(crate) mod source;

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use eshaar_model::BusinessId;
use eshaar_presence::limits::Limits;
use eshaar_service::Problem;
use http::{HeaderMap, HeaderValue, header};
use tokio_stream::wrappers::ReceiverStream;

use crate::caller::Caller;
use crate::context::Origin;
use crate::idempotency::{self, Held, REPLAYED, Turn};
use crate::submit::LineIds;
use crate::{App, body, openapi, problems};
use answers::{Answers, Stop};
use gather::{Gather, Gathered};
use lines::Lines;
use settle::Settle;
use source::{Encoding, Source};

/// What an upload may be declared as, the first of them being the one we name.
pub(crate) const NDJSON: [&str; 4] =
    ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-lines"];

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
}

/// Send many messages
///
/// One message a line, answered by one line each, in order, while the upload goes on; the last line is the total. A line
/// that is refused does not fail the rest. `Content-Encoding: gzip` and `zstd` are understood. With an Idempotency-Key a
/// repeat of the request sends only what was not sent before.
#[utoipa::path(
    post, path = "/v1/messages/bulk", tag = "messages", operation_id = "send_messages",
    params(openapi::IdempotencyKey),
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
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let business = caller.business()?.clone();
    if !body::is_of_type(&headers, &NDJSON) {
        return Err(problems::content_type(NDJSON[0]));
    }
    let encoding = Encoding::of(&headers)?;
    let slot = Arc::clone(&app.bulk_slots);
    let slot = slot.try_acquire_owned().map_err(|_| problems::bulk_busy(app.options.bulk.concurrent.get()))?;
    let held = claim(&app, &business, &headers).await?;
    let replayed = held.as_ref().is_some_and(|held| held.repeat);
    let ids = held.as_ref().map(|held| LineIds::new(held.id));
    let (answers, stream) = Answers::new(&app.options.bulk);
    let source = Source::new(body, encoding, &app.options.bulk);
    let limits = app.admission.bulk_limits(&caller.0);
    let of_limits = app.admission.bulk_headers(&caller.0).await;
    let submission = Arc::new(Submission { app, business, limits, origin, ids, is_repeat: replayed });
    tokio::spawn(async move {
        run(submission, source, answers).await;
        drop((slot, held));
    });
    let ndjson = [(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON[0]))];
    let mut response = (ndjson, Body::from_stream(ReceiverStream::new(stream))).into_response();
    response.headers_mut().extend(of_limits);
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// A claim for the whole request. Its lines get ids that derive from the claim's and from their text, so a repeat is
/// simply produced again: what stood already is dropped by the log's readers, and a line that was changed is a message of
/// its own. So the claim needs no answer; it refuses a repeat whose declared length differs.
async fn claim(app: &App, business: &BusinessId, headers: &HeaderMap) -> Result<Option<Held>, Problem> {
    let Some(key) = idempotency::of(headers)? else { return Ok(None) };
    let length = headers.get(header::CONTENT_LENGTH).map(HeaderValue::as_bytes).unwrap_or_default();
    let hash = idempotency::hash_of("POST /v1/messages/bulk", length);
    let now = app.deps.clock.now();
    match app.claims.claim(business.to_string(), key, hash, app.ids.mint(now), now).await? {
        Turn::Produce(held) => Ok(Some(held)),
        Turn::Replay(_) => Err(problems::internal()),
    }
}

/// The whole of a request, once it was let in.
async fn run(submission: Arc<Submission>, source: Source, mut answers: Answers) {
    let mut gather = Gather::new(Arc::clone(&submission), Lines::new(source, &submission.app.options.bulk));
    let settle = Settle::new(submission);
    let mut gathered = gather.batch().await;
    let problem = loop {
        let Gathered { entries, end } = gathered;
        let settled = settle.batch(entries, &mut answers);
        let next = match end {
            None => tokio::try_join!(settled, async { Ok(gather.batch().await) }).map(|((), next)| next),
            Some(Ok(())) => break settled.await.err(),
            Some(Err(problem)) => break Some(settled.await.err().unwrap_or(Stop::Broken(problem))),
        };
        match next {
            Ok(next) => gathered = next,
            Err(stop) => break Some(stop),
        }
    };
    match problem {
        None => answers.total(None).await,
        Some(Stop::Broken(problem)) => answers.total(Some(&problem)).await,
        Some(Stop::Gone) => tracing::debug!("a bulk sender went away before it had all answers"),
    }
}
