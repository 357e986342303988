//! `POST /v1/messages/{id}/cancel`: the sender takes back a message that was not delivered yet.
//!
//! It writes to the log, never to the store: the cancellation, which every process that may show the message reads, and
//! the status, which history follows. A repeat writes both again, to no effect.

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::Json;
use eshaar_model::{MessageId, Status, Timestamp};
use eshaar_schemas::Cancellation;
use eshaar_service::Problem;
use eshaar_topics::flow;
use serde::Serialize;
use utoipa::ToSchema;

use crate::caller::Caller;
use crate::context::Origin;
use crate::{App, openapi, problems, read, submit, view};

/// The answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CancelAnswer {
    #[schema(value_type = String, format = "uuid")]
    id: MessageId,
    #[schema(value_type = openapi::Step)]
    status: Status,
    #[schema(value_type = String, format = DateTime)]
    cancelled_at: Timestamp,
}

/// Cancel a message
///
/// What was not delivered yet is not delivered: not to a phone that is away and comes back, and not at its time where it
/// was scheduled. A repeat answers the first time. A message that was under way to a phone at that moment may still
/// arrive, and is then shown as delivered.
#[utoipa::path(
    post, path = "/v1/messages/{id}/cancel", tag = "messages", operation_id = "cancel_message",
    params(openapi::MessageIdPath),
    responses((status = 200, description = "It is cancelled", body = CancelAnswer))
)]
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    Path(id): Path<String>,
) -> Result<Json<CancelAnswer>, Problem> {
    let business = caller.business()?;
    let stored = view::find(&app, &id, &caller.0.principal).await?;
    if stored.row.sender != caller.0.principal {
        return Err(problems::message_not_found());
    }
    let (id, now) = (stored.row.id, app.deps.clock.now());
    match view::steps_by(&stored, now).current() {
        Some(Status::Cancelled) => {
            let cancelled_at = stored.steps.at(Status::Cancelled).unwrap_or(now);
            return Ok(Json(CancelAnswer { id, status: Status::Cancelled, cancelled_at }));
        }
        Some(status @ (Status::Delivered | Status::Read | Status::Failed | Status::Expired)) => {
            return Err(problems::too_late_to_cancel(status));
        }
        Some(Status::Sent) | None => {}
    }
    if app.deps.cancelled.len() >= app.options.cancellations.get() {
        return Err(problems::cancellations_full(app.options.cancellations.get()));
    }
    let trace = origin.trace.to_string();
    let joined = origin.joined(&trace);
    let cancellation = Cancellation { id, sender: business.to_string(), at: now.as_millis() };
    let cancellation =
        flow::cancellation(&cancellation, &app.deps.codecs, joined).map_err(|error| problems::encode(&error))?;
    let status = read::step(&app, &stored, Status::Cancelled, now, &origin)?;
    submit::append(&app, vec![cancellation, status]).await?;
    Ok(Json(CancelAnswer { id, status: Status::Cancelled, cancelled_at: now }))
}
