//! `POST /v1/messages`, `GET /v1/messages/{id}`, `GET /v1/messages`.

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use eshaar_model::{
    ConversationId, Lane, MessageId, MessageType, Permission, Phone, Principal, Shown, Status, Timestamp,
};
use eshaar_service::{Json, Problem, metrics as names};
use eshaar_store::{SentQuery, StoredMessage};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::caller::Caller;
use crate::context::Origin;
use crate::conversations::sending::{self, Outgoing, Placed};
use crate::idempotency::{self, Fingerprint, REPLAYED, Turn};
use crate::query::{PageCursor, Parameters};
use crate::submit::{self, Attempt, Draft, Rules, Sender, Submission, meaning};
use crate::view::{self, MessageDetails, MessageView};
use crate::{App, body, openapi, problems};

/// What requests with an Idempotency-Key are distinguished by from those to other paths.
const KIND: &str = "POST /v1/messages";

/// The answer to a submission.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Accepted {
    #[schema(value_type = String, format = "uuid")]
    id: MessageId,
    #[schema(value_type = openapi::MessageType)]
    r#type: MessageType,
    #[schema(value_type = openapi::Status)]
    status: Shown,
    /// A phone, or a business id.
    #[schema(value_type = String, example = "+966501234567")]
    to: Principal,
    /// Of a chat message.
    #[schema(value_type = Option<String>, format = "uuid")]
    conversation_id: Option<ConversationId>,
    /// Null where it is scheduled.
    #[schema(value_type = Option<String>, format = DateTime)]
    sent_at: Option<Timestamp>,
    /// Where it is scheduled: when it is sent.
    #[schema(value_type = Option<String>, format = DateTime)]
    send_at: Option<Timestamp>,
}

/// Send a message
///
/// At once, or at `send_at`. It is answered once the message is on disk, and will be delivered. API keys need
/// `messages:send` for `one_way`, and `chat` for `chat`; a mobile user sends `chat`.
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
    may_send(caller)?;
    let key = idempotency::of(headers)?;
    let body = body::json(headers, body, &app.options).await?;
    let submission = submit::parse(&body, Rules::of(&app.options), app.deps.clock.now())?;
    match &submission {
        Submission::OneWay(_) => caller.business_with(Permission::MessagesSend).map(|_| ())?,
        Submission::Chat(_) => caller.chatter().map(|_| ())?,
    }
    let from = Sending { app, who: &caller.0.principal, origin };
    let Some(key) = key else {
        admit(app, caller, limits).await?;
        let now = app.deps.clock.now();
        let attempt = Attempt { id: app.ids.mint(now), at: now, may_repeat: false };
        return from.produce(submission, attempt).await.map(|answer| accepted(answer, false));
    };
    let meaning = meaning::of_submission(KIND, &submission);
    let request = Fingerprint::new(meaning, KIND, body);
    let now = app.deps.clock.now();
    let held = match app.claims.claim(from.who.to_string(), key, &request, app.ids.mint(now), now).await? {
        // What was accepted before is not counted again.
        Turn::Replay(answer) => return Ok(accepted(answer, true)),
        Turn::Produce(held) => held,
    };
    let is_told_by_history = matches!(&submission, Submission::Chat(draft) if draft.names_conversation());
    if let Submission::Chat(_) = submission
        && let Some(placed) = sending::sent_before(app, &held).await?
    {
        let answer = json(&said(held.id, placed))?;
        held.answered(answer.clone());
        return Ok(accepted(answer, true));
    }
    admit(app, caller, limits).await?;
    if let Submission::OneWay(draft) = &submission
        && held.repeat
        && let Some(found) = sent_before(app, draft, held.id).await?
    {
        let answer = json(&found)?;
        app.claims.answered(&held, answer.clone()).await;
        return Ok(accepted(answer, true));
    }
    let answer = from.produce(submission, held.attempt(app.deps.clock.now())).await?;
    if is_told_by_history {
        held.answered(answer.clone());
    } else {
        app.claims.answered(&held, answer.clone()).await;
    }
    Ok(accepted(answer, held.repeat))
}

/// Whether a caller may send anything at all, which is asked before its body is read.
fn may_send(caller: &Caller) -> Result<(), Problem> {
    caller.chatter().or_else(|_| caller.business_with(Permission::MessagesSend).map(|_| &caller.0.principal))?;
    Ok(())
}

/// Lets one message in; what its sender may send is told in `limits`.
async fn admit(app: &App, caller: &Caller, limits: &mut HeaderMap) -> Result<(), Problem> {
    let admitted = app.admission.one(&caller.0).await;
    *limits = admitted.headers;
    admitted.refusal.map_or(Ok(()), Err)
}

/// Who sends, in which request.
struct Sending<'a> {
    app: &'a App,
    who: &'a Principal,
    origin: &'a Origin,
}

impl Sending<'_> {
    /// Appends the message; returns the answer.
    async fn produce(&self, submission: Submission, attempt: Attempt) -> Result<Bytes, Problem> {
        json(&match submission {
            Submission::OneWay(draft) => self.one_way(draft, attempt).await?,
            Submission::Chat(draft) => {
                let outgoing = Outgoing { draft, attempt };
                said(attempt.id, sending::send(self.app, self.who, self.origin, outgoing).await?)
            }
        })
    }

    async fn one_way(&self, draft: Draft, attempt: Attempt) -> Result<Accepted, Problem> {
        let (app, from) = (self.app, self.who.to_string());
        let (to, lane, send_at) = (draft.to, Lane::of(draft.priority), attempt.due(draft.send_at));
        let sender = Sender { from: &from, origin: self.origin };
        let record = sender.record(app, draft, attempt, lane)?;
        submit::append(app, vec![record]).await?;
        metrics::counter!(names::INGEST_ACCEPTED, "lane" => lane.as_str()).increment(1);
        Ok(one_way(attempt.id, to, attempt.at, send_at))
    }
}

/// The answer to a one-way message that was accepted at `at`, and is to be sent at `send_at` where that is later.
fn one_way(id: MessageId, to: Phone, at: Timestamp, send_at: Option<Timestamp>) -> Accepted {
    Accepted {
        id,
        r#type: MessageType::OneWay,
        status: if send_at.is_some() { Shown::Scheduled } else { Status::Sent.into() },
        to: to.into(),
        conversation_id: None,
        sent_at: send_at.is_none().then_some(at),
        send_at,
    }
}

/// The answer to a one-way message that an earlier attempt appended, if the history has it. Its times are those of that
/// attempt: nothing is appended again, so its time to live does not start again either.
async fn sent_before(app: &App, draft: &Draft, id: MessageId) -> Result<Option<Accepted>, Problem> {
    let stored = app.deps.store.messages.get(id).await.map_err(|error| problems::store(&error))?;
    Ok(stored.map(|StoredMessage { row, .. }| {
        let send_at = draft.send_at.filter(|_| row.accepted.1.is_none());
        one_way(id, draft.to, row.created_at, send_at)
    }))
}

/// The answer to what was said.
fn said(id: MessageId, placed: Placed) -> Accepted {
    Accepted {
        id,
        r#type: MessageType::Chat,
        status: Status::Sent.into(),
        to: placed.to,
        conversation_id: Some(placed.conversation),
        sent_at: Some(placed.at),
        send_at: None,
    }
}

fn json(answer: &Accepted) -> Result<Bytes, Problem> {
    eshaar_service::json::to_vec(answer).map(Bytes::from).map_err(|_| problems::internal())
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
/// With its status and timeline, to the business that sent it or the phone that it was sent to. API keys need `messages:read`
/// for one-way messages.
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
    if stored.row.message_type == MessageType::OneWay && caller.0.principal.business().is_some() {
        caller.business_with(Permission::MessagesRead)?;
    }
    // Only a business cancels, and it may see what it has cancelled.
    if stored.row.sender != caller.0.principal && stored.row.sender.business().is_some() {
        app.fresh().await?;
    }
    let now = app.deps.clock.now();
    let retries = app.deps.store.messages.retries(stored.row.id).await.map_err(|error| problems::store(&error))?;
    let details = MessageDetails::of(&stored, retries, (&app.deps.codecs, &app.deps.cancelled), now).await?;
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
        to: parameters.phone("to")?,
        before: parameters.get::<PageCursor>("cursor")?.map(|cursor| cursor.0),
        limit: parameters.limit()?,
    })
}
