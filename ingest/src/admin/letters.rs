//! `GET /v1/admin/dead-letters`, `GET /v1/admin/dead-letters/{id}`.

use std::collections::BTreeMap;

use axum::extract::{Path, RawQuery, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use eshaar_model::{BusinessId, Timestamp};
use eshaar_schemas::{Codecs, DecodeError};
use eshaar_service::{Json, Problem};
use eshaar_store::{DeadLetterId, Letter, LetterBody, LetterQuery, LetterState};
use eshaar_topics::Headers;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::Operator;
use super::cursor::LetterCursor;
use crate::query::Parameters;
use crate::{App, openapi, problems};

/// A record that a stage gave up on, without its content.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterView {
    #[schema(format = "uuid")]
    id: String,
    #[schema(value_type = openapi::DeadLetterState)]
    state: &'static str,
    /// The stage that gave up.
    stage: String,
    /// Why, for programs.
    code: String,
    /// Why, for people.
    reason: String,
    /// Where the record was read.
    topic: String,
    partition: u32,
    offset: u64,
    /// How often it was tried.
    attempts: u32,
    /// How often it had been redriven before.
    redrives: u32,
    /// The business that sent the message, where that is known.
    business: Option<String>,
    /// The CloudEvents id: of a message, its own.
    event_id: Option<String>,
    correlation_id: Option<String>,
    /// Size of the record's value.
    size_bytes: u64,
    /// When it was given up on.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// When it was redriven or discarded.
    #[schema(value_type = Option<String>, format = DateTime)]
    settled_at: Option<Timestamp>,
    /// By whom, as the audit log names them.
    settled_by: Option<String>,
}

impl From<Letter> for DeadLetterView {
    fn from(letter: Letter) -> Self {
        let state = letter.state().as_str();
        let Letter { head, settled } = letter;
        let (settled_at, settled_by) = settled.map(|settled| (settled.at, settled.by)).unzip();
        Self {
            id: head.id.to_string(),
            state,
            stage: head.stage,
            code: head.code,
            reason: head.reason,
            topic: head.topic,
            partition: head.partition,
            offset: head.offset,
            attempts: head.attempts,
            redrives: head.redrives,
            business: head.business.map(|business| business.to_string()),
            event_id: head.event,
            correlation_id: head.correlation,
            size_bytes: head.bytes,
            at: head.at,
            settled_at,
            settled_by,
        }
    }
}

/// A dead letter with its content.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterDetails {
    #[serde(flatten)]
    letter: DeadLetterView,
    /// The record's key.
    key: String,
    /// The record's headers.
    headers: BTreeMap<String, String>,
    /// The record's value, decoded; null where it cannot be.
    #[schema(value_type = Option<Object>)]
    payload: Option<serde_json::Value>,
    /// The record's value in base64, where it cannot be decoded.
    payload_base64: Option<String>,
    /// Why it cannot be decoded.
    payload_error: Option<String>,
}

/// A page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterPage {
    dead_letters: Vec<DeadLetterView>,
    /// Give it back as `cursor` for the next page; null at the end. A filtered page may be short and have a next.
    next_cursor: Option<String>,
}

/// List dead letters
///
/// What stages gave up on in the last 7 days, newest first.
#[utoipa::path(
    get, path = "/v1/admin/dead-letters", tag = "operators", operation_id = "list_dead_letters",
    params(openapi::DeadLetterListQuery),
    responses((status = 200, description = "A page of dead letters", body = DeadLetterPage))
)]
pub(crate) async fn list(
    State(app): State<App>,
    _: Operator,
    RawQuery(query): RawQuery,
) -> Result<Json<DeadLetterPage>, Problem> {
    let query = letter_query(query.as_deref())?;
    let page = app.deps.store.dead_letters.list(query, app.deps.clock.now()).await;
    let page = page.map_err(|error| problems::store(&error))?;
    let dead_letters = page.letters.into_iter().map(DeadLetterView::from).collect();
    Ok(Json(DeadLetterPage { dead_letters, next_cursor: page.next.map(|place| LetterCursor(place).to_string()) }))
}

fn letter_query(query: Option<&str>) -> Result<LetterQuery, Problem> {
    let known = ["stage", "code", "business", "state", "from", "until", "cursor", "limit"];
    let parameters = Parameters::parse(query, &known)?;
    Ok(LetterQuery {
        stage: parameters.get("stage")?,
        code: parameters.get("code")?,
        business: parameters.get::<BusinessId>("business")?,
        state: parameters.get::<LetterState>("state")?,
        from: parameters.get("from")?,
        until: parameters.get("until")?,
        before: parameters.get::<LetterCursor>("cursor")?.map(|cursor| cursor.0),
        limit: parameters.limit()?,
    })
}

/// Look into a dead letter
///
/// With its content, decoded; so it is written to the audit log.
#[utoipa::path(
    get, path = "/v1/admin/dead-letters/{id}", tag = "operators", operation_id = "show_dead_letter",
    params(openapi::DeadLetterIdPath),
    responses((status = 200, description = "The dead letter", body = DeadLetterDetails))
)]
pub(crate) async fn show(
    State(app): State<App>,
    operator: Operator,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<DeadLetterDetails>, Problem> {
    Parameters::parse(query.as_deref(), &[])?;
    let id: DeadLetterId = id.parse().map_err(|_| problems::dead_letter_not_found())?;
    let found = app.deps.store.dead_letters.get(id).await.map_err(|error| problems::store(&error))?;
    let (letter, body) = found.ok_or_else(problems::dead_letter_not_found)?;
    operator.record(&app, "dead_letters.show", id.to_string(), json!({})).await?;
    Ok(Json(details(&app.deps.codecs, letter, body).await))
}

async fn details(codecs: &Codecs, letter: Letter, body: LetterBody) -> DeadLetterDetails {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = Headers::from_bytes(body.headers);
    let headers = headers.iter().map(|(name, value)| (text(name), text(value))).collect();
    let (payload, payload_base64, payload_error) = match decoded(codecs, &body.value).await {
        Ok(payload) => (Some(payload), None, None),
        Err(error) => (None, Some(STANDARD.encode(&body.value)), Some(error)),
    };
    DeadLetterDetails { letter: letter.into(), key: text(&body.key), headers, payload, payload_base64, payload_error }
}

/// The value as JSON; a schema that is not known yet is asked for.
async fn decoded(codecs: &Codecs, value: &Bytes) -> Result<serde_json::Value, String> {
    let decoded = match codecs.decode_json(value) {
        Err(DecodeError::UnknownSchema(id)) => match codecs.learn(id).await {
            Ok(()) => codecs.decode_json(value),
            Err(error) => return Err(error.to_string()),
        },
        decoded => decoded,
    };
    decoded.map_err(|error| error.to_string())
}
