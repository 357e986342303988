//! `POST /v1/messages/{id}/read`: the recipient has opened a message.
//!
//! It writes to the log, never to the store: the status follows from `message.status`, like any other.

use axum::Extension;
use axum::extract::{Path, State};
use bytes::Bytes;
use eshaar_model::{MessageId, Status, Timestamp};
use eshaar_schemas::StatusChanged;
use eshaar_service::{Json, Problem};
use eshaar_store::StoredMessage;
use eshaar_topics::{NewRecord, flow};
use serde::Serialize;
use utoipa::ToSchema;

use crate::caller::Caller;
use crate::context::Origin;
use crate::{App, openapi, problems, submit, view};

/// The answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReadAnswer {
    #[schema(value_type = String, format = "uuid")]
    id: MessageId,
    #[schema(value_type = openapi::Step)]
    status: Status,
    #[schema(value_type = String, format = DateTime)]
    read_at: Timestamp,
}

/// Mark a message as read
///
/// By whom it was sent to: a phone, or, where it is a chat message, a business with the permission `chat`. Once read it
/// stays so: a repeat answers the first time and changes nothing.
#[utoipa::path(
    post, path = "/v1/messages/{id}/read", tag = "messages", operation_id = "mark_read",
    params(openapi::MessageIdPath),
    responses((status = 200, description = "It is read", body = ReadAnswer))
)]
pub(crate) async fn mark(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    Path(id): Path<String>,
) -> Result<Json<ReadAnswer>, Problem> {
    let who = caller.principal();
    let stored = view::find(&app, &id, who).await?;
    if stored.row.recipient != *who {
        return Err(problems::message_not_found());
    }
    let id = stored.row.id;
    if let Some(read_at) = stored.steps.at(Status::Read) {
        return Ok(Json(ReadAnswer { id, status: Status::Read, read_at }));
    }
    let read_at = app.deps.clock.now();
    // What was read was delivered: the ack may have been lost, or is still on its way.
    let steps = [Status::Delivered, Status::Read].into_iter().filter(|step| stored.steps.at(*step).is_none());
    let records: Result<Vec<_>, _> = steps.map(|step| self::step(&app, &stored, step, read_at, &origin)).collect();
    submit::append(&app, records?).await?;
    Ok(Json(ReadAnswer { id, status: Status::Read, read_at }))
}

/// The record that says that a message reached a step.
pub(crate) fn step(
    app: &App,
    stored: &StoredMessage,
    status: Status,
    at: Timestamp,
    origin: &Origin,
) -> Result<NewRecord, Problem> {
    let recipient = stored.row.recipient.to_string();
    let key = stored.row.conversation.map_or_else(|| recipient.clone(), |conversation| conversation.to_string());
    let change = StatusChanged {
        id: stored.row.id,
        status,
        at: at.as_millis(),
        sender: stored.row.sender.to_string(),
        recipient,
        reason: None,
    };
    let trace = origin.trace.to_string();
    let record = flow::status(&change, Bytes::from(key), &app.deps.codecs, origin.joined(&trace));
    let broadcast = app.deps.codecs.decode(&stored.row.value).ok().as_ref().and_then(flow::broadcast_of);
    record.map(|record| flow::part_of(record, broadcast)).map_err(|error| problems::encode(&error))
}
