//! `POST /v1/messages/{id}/cancel`: the sender takes back a message that was not delivered yet.
//!
//! It writes to the log, never to the store: the cancellation, which every process that may show the message reads, and
//! the status, which history follows. A repeat writes both again, to no effect.
//!
//! A message can be cancelled from the moment it was accepted. Where the history does not have it yet, or does not answer,
//! the cancellation is written all the same: it holds for messages of its business alone. Its status is written by
//! `archive` with the message; and from here, where the message was written just before the cancellation was read there.

use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use eshaar_model::{BusinessId, MessageId, Status, Timestamp};
use eshaar_schemas::Cancellation;
use eshaar_service::{Json, Problem};
use eshaar_store::StoredMessage;
use eshaar_topics::cancelled::Counts;
use eshaar_topics::{NewRecord, flow};
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::caller::Caller;
use crate::context::Origin;
use crate::view::Found;
use crate::{App, Options, openapi, problems, read, submit, view};

/// When it is looked again for a message that was not known when it was cancelled: later than every process has read the
/// cancellation.
const FOLLOW_UP: Duration = Duration::from_secs(4);

/// Nothing that was made earlier can be delivered any more: 30 days until it is due, and 30 in a stream.
pub(crate) const MAX_AGE_MS: i64 = 61 * 24 * 3600 * 1000;

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
    responses(
        (status = 200, description = "It is cancelled", body = CancelAnswer),
        (status = 202, description = "The cancellation is kept, and the history does not have the message yet: it is not \
            delivered any more; its timeline tells whether it had been before", body = CancelAnswer),
    )
)]
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let business = caller.business()?;
    let id: MessageId = id.parse().map_err(|_| problems::message_not_found())?;
    let request = Request { app: &app, business, origin: &origin };
    match view::look_up(&app, id).await {
        Found::Message(stored) if stored.row.sender == caller.0.principal => request.known(&stored).await,
        Found::Message(_) | Found::Absent => Err(problems::message_not_found()),
        Found::Unknown(problem) => request.unknown(id, problem).await,
    }
}

/// A request to cancel a message.
struct Request<'a> {
    app: &'a App,
    business: &'a BusinessId,
    origin: &'a Origin,
}

impl Request<'_> {
    /// Of a message that the history has.
    async fn known(&self, stored: &StoredMessage) -> Result<Response, Problem> {
        let (app, id, now) = (self.app, stored.row.id, self.app.deps.clock.now());
        match view::steps_by(stored, now).current() {
            Some(Status::Cancelled) => {
                let cancelled_at = stored.steps.at(Status::Cancelled).unwrap_or(now);
                return Ok(answer(StatusCode::OK, id, cancelled_at));
            }
            Some(status @ (Status::Delivered | Status::Read | Status::Failed | Status::Expired)) => {
                return Err(problems::too_late_to_cancel(status));
            }
            Some(Status::Sent) | None => {}
        }
        let cancellation = record(app, self.business, id, now, self.origin)?;
        let status = read::step(app, stored, Status::Cancelled, now, self.origin)?;
        submit::append(app, vec![cancellation, status]).await?;
        Ok(answer(StatusCode::OK, id, now))
    }

    /// Of a message that may have been accepted; `problem` says why that is not known.
    async fn unknown(&self, id: MessageId, problem: Problem) -> Result<Response, Problem> {
        let (app, now) = (self.app, self.app.deps.clock.now());
        if now.millis_since(id.made_at()) > MAX_AGE_MS {
            return Err(problem);
        }
        if app.deps.cancelled.covers(self.business.as_str(), id) {
            return Ok(answer(StatusCode::ACCEPTED, id, now));
        }
        let cancellation = record(app, self.business, id, now, self.origin)?;
        submit::append(app, vec![cancellation]).await?;
        let (app, business, origin) = (app.clone(), self.business.clone(), self.origin.clone());
        tokio::spawn(async move {
            tokio::time::sleep(FOLLOW_UP).await;
            let request = Request { app: &app, business: &business, origin: &origin };
            if let Err(problem) = request.follow_up(id, now).await {
                tracing::warn!(message = %id, code = problem.code, "the status of a cancellation was not written");
            }
        });
        Ok(answer(StatusCode::ACCEPTED, id, now))
    }

    /// Writes the status of a message that the history has by now, and whose status `archive` did not write.
    async fn follow_up(&self, id: MessageId, at: Timestamp) -> Result<(), Problem> {
        let found = self.app.deps.store.messages.get(id).await.map_err(|error| problems::store(&error))?;
        let Some(stored) = found.filter(|stored| stored.row.sender.business() == Some(self.business)) else {
            return Ok(());
        };
        if stored.steps.at(Status::Cancelled).is_none() {
            let status = read::step(self.app, &stored, Status::Cancelled, at, self.origin)?;
            submit::append(self.app, vec![status]).await?;
        }
        Ok(())
    }
}

fn answer(code: StatusCode, id: MessageId, cancelled_at: Timestamp) -> Response {
    (code, Json(CancelAnswer { id, status: Status::Cancelled, cancelled_at })).into_response()
}

/// The record that cancels a message, or a broadcast, of a business.
pub(crate) fn record(
    app: &App,
    business: &BusinessId,
    id: MessageId,
    at: Timestamp,
    origin: &Origin,
) -> Result<NewRecord, Problem> {
    room(app.deps.cancelled.counts(business.as_str()), &app.options)?;
    let trace = origin.trace.to_string();
    let cancellation = Cancellation { id, sender: business.to_string(), at: at.as_millis() };
    flow::cancellation(&cancellation, &app.deps.codecs, origin.joined(&trace)).map_err(|error| problems::encode(&error))
}

/// Refuses one more cancellation of a business that has its limit, or, where all cancellations are at theirs, an equal share.
/// So a business that has few always has room, and there are never twice as many as the limit of all.
fn room(counts: Counts, options: &Options) -> Result<(), Problem> {
    let (all, own) = (options.cancellations.get(), options.cancellations_per_business.get());
    if counts.of_business >= own {
        return Err(problems::own_cancellations_full(counts.of_business, own));
    }
    if counts.all >= all && counts.of_business >= all / counts.businesses.max(1) {
        return Err(problems::cancellations_full(all));
    }
    Ok(())
}
