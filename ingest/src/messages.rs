//! `POST /v1/messages`, `GET /v1/messages/{id}`, `GET /v1/messages`.

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Json, Response};
use bytes::Bytes;
use eshaar_model::{Lane, MessageId, MessageType, Permission, Phone, Shown, Status, Timestamp};
use eshaar_service::{Problem, metrics as names};
use eshaar_store::SentQuery;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::caller::Caller;
use crate::context::Origin;
use crate::idempotency::{self, REPLAYED, Turn};
use crate::query::{PageCursor, Parameters};
use crate::submit::{self, Draft, Form, Sender};
use crate::view::{self, MessageDetails, MessageView};
use crate::{App, body, openapi, problems};

/// The answer to a submission.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Accepted {
    #[schema(value_type = String, format = "uuid")]
    id: MessageId,
    #[schema(value_type = openapi::MessageType)]
    r#type: MessageType,
    #[schema(value_type = openapi::Status)]
    status: Shown,
    #[schema(value_type = String, example = "+966501234567")]
    to: Phone,
    /// Of a chat message.
    #[schema(format = "uuid")]
    conversation_id: Option<String>,
    /// Null where it is scheduled.
    #[schema(value_type = Option<String>, format = DateTime)]
    sent_at: Option<Timestamp>,
    /// Where it is scheduled: when it is sent.
    #[schema(value_type = Option<String>, format = DateTime)]
    send_at: Option<Timestamp>,
}

/// Send a message
///
/// At once, or at `send_at`. It is answered once the message is on disk, and will be delivered. Needs the permission `messages:send`.
#[utoipa::path(
    post, path = "/v1/messages", tag = "messages", operation_id = "send_message",
    params(openapi::IdempotencyKey),
    request_body = openapi::Submission,
    responses((status = 202, description = "Accepted", body = Accepted, headers(
        ("Idempotency-Replayed" = Option<bool>, description = "`true` when this is the answer of an earlier request")
    )))
)]
pub(crate) async fn send(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut limits = HeaderMap::new();
    let answered = submit(&app, &caller, &origin, &headers, body, &mut limits).await;
    if let Err(problem) = &answered {
        metrics::counter!(names::INGEST_REJECTED, "code" => problem.code).increment(1);
    }
    let mut response = answered.into_response();
    response.headers_mut().extend(limits);
    response
}

async fn submit(
    app: &App,
    caller: &Caller,
    origin: &Origin,
    headers: &HeaderMap,
    body: Body,
    limits: &mut HeaderMap,
) -> Result<Response, Problem> {
    let business = caller.business_with(Permission::MessagesSend)?;
    let key = idempotency::of(headers)?;
    let body = body::json(headers, body, &app.options).await?;
    let draft = submit::parse(&body, Form::Single, app.options.json_depth, app.deps.clock.now())?;
    let sender = Sender { business: business.as_str(), origin };
    let Some(key) = key else {
        admit(app, caller, limits).await?;
        let id = app.ids.mint(app.deps.clock.now());
        return produce(app, sender, draft, id).await.map(|answer| accepted(answer, false));
    };
    let hash = idempotency::hash_of("POST /v1/messages", &body);
    let now = app.deps.clock.now();
    let held = match app.claims.claim(business, key, hash, app.ids.mint(now), now).await? {
        // What was accepted before is not counted again.
        Turn::Replay(answer) => return Ok(accepted(answer, true)),
        Turn::Produce(held) => held,
    };
    admit(app, caller, limits).await?;
    let answer = produce(app, sender, draft, held.id).await?;
    app.claims.answered(&held, answer.clone()).await;
    Ok(accepted(answer, held.repeat))
}

/// Lets one message in; what its sender may send is told in `limits`.
async fn admit(app: &App, caller: &Caller, limits: &mut HeaderMap) -> Result<(), Problem> {
    let admitted = app.admission.one(&caller.0).await;
    *limits = admitted.headers;
    admitted.refusal.map_or(Ok(()), Err)
}

async fn produce(app: &App, sender: Sender<'_>, draft: Draft, id: MessageId) -> Result<Bytes, Problem> {
    let (to, lane) = (draft.to, Lane::of(draft.priority));
    let send_at = submit::due(id, draft.send_at);
    let record = sender.record(app, draft, id, lane, app.deps.clock.now())?;
    submit::append(app, vec![record]).await?;
    metrics::counter!(names::INGEST_ACCEPTED, "lane" => lane.as_str()).increment(1);
    let answer = Accepted {
        id,
        r#type: MessageType::OneWay,
        status: if send_at.is_some() { Shown::Scheduled } else { Status::Sent.into() },
        to,
        conversation_id: None,
        sent_at: send_at.is_none().then(|| id.made_at()),
        send_at,
    };
    serde_json::to_vec(&answer).map(Bytes::from).map_err(|_| problems::internal())
}

fn accepted(answer: Bytes, replayed: bool) -> Response {
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    let mut response = (StatusCode::ACCEPTED, json, answer).into_response();
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// Show a message
///
/// With its status and timeline, to the business that sent it or the phone that it was sent to.
#[utoipa::path(
    get, path = "/v1/messages/{id}", tag = "messages", operation_id = "get_message",
    params(openapi::MessageIdPath),
    responses((status = 200, description = "The message", body = MessageDetails))
)]
pub(crate) async fn get(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<MessageDetails>, Problem> {
    Parameters::parse(query.as_deref(), &[])?;
    let stored = view::find(&app, &id, &caller.0.principal).await?;
    let now = app.deps.clock.now();
    let details = MessageDetails::of(&stored, (&app.deps.codecs, &app.deps.cancelled), now).await?;
    // What was taken back in time is not shown to those that it was for.
    if stored.row.sender != caller.0.principal && details.is_cancelled() {
        return Err(problems::message_not_found());
    }
    Ok(Json(details))
}

/// A page of what a business has sent.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Page {
    messages: Vec<MessageView>,
    /// Give it back as `cursor` for the next page; null at the end. A filtered page may be short and have a next.
    next_cursor: Option<String>,
}

/// List what you have sent
///
/// Newest first; for businesses.
#[utoipa::path(
    get, path = "/v1/messages", tag = "messages", operation_id = "list_messages",
    params(openapi::ListQuery),
    responses((status = 200, description = "A page of messages", body = Page))
)]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<Page>, Problem> {
    let business = caller.business()?;
    let query = sent_query(query.as_deref())?;
    let now = app.deps.clock.now();
    let page = app.deps.store.messages.sent_by(business, query, now).await.map_err(|error| problems::store(&error))?;
    let mut messages = Vec::with_capacity(page.messages.len());
    for stored in &page.messages {
        messages.push(MessageView::of(stored, (&app.deps.codecs, &app.deps.cancelled), now).await?);
    }
    Ok(Json(Page { messages, next_cursor: page.next.map(|id| PageCursor(id).to_string()) }))
}

fn sent_query(query: Option<&str>) -> Result<SentQuery, Problem> {
    let parameters = Parameters::parse(query, &["type", "status", "to", "cursor", "limit"])?;
    let message_type = match parameters.get::<String>("type")?.as_deref() {
        None => None,
        Some("one_way") => Some(MessageType::OneWay),
        Some("chat") => Some(MessageType::Chat),
        Some(_) => return Err(problems::invalid_parameter("type", "must be `one_way` or `chat`")),
    };
    Ok(SentQuery {
        message_type,
        status: parameters.get("status")?,
        to: parameters.get("to")?,
        before: parameters.get::<PageCursor>("cursor")?.map(|cursor| cursor.0),
        limit: parameters.limit()?,
    })
}
