//! `GET /v1/conversations/{id}/messages`: what was said, in pages, to either side of any of them.

use std::str::FromStr;

use axum::extract::{Path, RawQuery, State};
use eshaar_model::{ConversationPosition, Side, Status};
use eshaar_service::{Json, Problem};
use eshaar_store::{ChatRow, MessageRow, ReadFrom, StoredMessage};
use serde::Serialize;
use utoipa::ToSchema;

use super::cached::{self, Placed};
use crate::caller::Caller;
use crate::query::Parameters;
use crate::view::MessageView;
use crate::{App, openapi, problems};

/// What is given as `after` to begin with the oldest.
const START: &str = "start";

/// A page of a conversation, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct History {
    messages: Vec<ChatMessage>,
    /// Give it back as `before` for what stands before these; null where there was nothing on the page.
    #[schema(value_type = Option<String>)]
    oldest: Option<ConversationPosition>,
    /// Give it back as `after` for what comes behind these; null where there was nothing on the page.
    #[schema(value_type = Option<String>)]
    newest: Option<ConversationPosition>,
    /// Whether there is more in the direction of reading: older messages, unless `after` was given.
    more: bool,
}

/// A message in a conversation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatMessage {
    #[serde(flatten)]
    message: MessageView,
    /// Its place in the conversation.
    #[schema(value_type = String)]
    position: ConversationPosition,
}

/// Read a conversation
///
/// Its newest messages, or those next to a position; in a page always oldest first. What its sender took back, and what
/// expired before it was delivered, is not shown to the other side, so a page may be short and have more.
#[utoipa::path(
    get, path = "/v1/conversations/{id}/messages", tag = "conversations", operation_id = "list_conversation_messages",
    params(openapi::ConversationIdPath, openapi::HistoryQuery),
    responses((status = 200, description = "A page of the conversation", body = History))
)]
pub(crate) async fn read(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<History>, Problem> {
    let who = caller.principal();
    let parameters = Parameters::parse(query.as_deref(), &["before", "after", "limit"])?;
    let (from, limit) = (read_from(&parameters)?, parameters.limit()?);
    let id = id.parse().map_err(|_| problems::conversation_not_found())?;
    let (side, page) = cached::history(&app, who, id, (from, limit)).await?;
    let place = |placed: Option<&Placed>| placed.map(|placed| placed.position);
    let (oldest, newest) = (place(page.messages.first()), place(page.messages.last()));
    // Only a business cancels.
    if side == Side::Phone {
        app.fresh().await?;
    }
    let now = app.deps.clock.now();
    let mut messages = Vec::with_capacity(page.messages.len());
    for Placed { position, from, stored } in page.messages {
        let message = MessageView::of(&stored, (&app.deps.codecs, &app.deps.cancelled), now).await?;
        if from == side || !message.is_at(&[Status::Cancelled, Status::Expired]) {
            messages.push(ChatMessage { message, position });
        }
    }
    Ok(Json(History { messages, oldest, newest, more: page.more }))
}

fn read_from(parameters: &Parameters) -> Result<ReadFrom, Problem> {
    match (parameters.get::<ConversationPosition>("before")?, parameters.get::<After>("after")?) {
        (None, None) => Ok(ReadFrom::Newest),
        (Some(before), None) => Ok(ReadFrom::Before(before)),
        (None, Some(After(after))) => Ok(ReadFrom::After(after)),
        (Some(_), Some(_)) => Err(problems::invalid_parameter("after", "give `before` or `after`, not both")),
    }
}

/// A position, or the start.
struct After(Option<ConversationPosition>);

impl FromStr for After {
    type Err = <ConversationPosition as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == START { Ok(Self(None)) } else { text.parse().map(|position| Self(Some(position))) }
    }
}

/// The messages of rows, with what became of them. One that history has by its place alone was sent, and no more is known.
pub(super) async fn stored(app: &App, rows: &[ChatRow]) -> Result<Vec<StoredMessage>, Problem> {
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    let found = app.deps.store.messages.get_many(&ids).await.map_err(|error| problems::store(&error))?;
    Ok(rows.iter().zip(found).map(|(row, found)| found.unwrap_or_else(|| by_place(row))).collect())
}

fn by_place(row: &ChatRow) -> StoredMessage {
    let row = MessageRow {
        id: row.id,
        message_type: eshaar_model::MessageType::Chat,
        conversation: Some(row.conversation),
        sender: row.pair.principal(row.from),
        recipient: row.pair.principal(row.from.other()),
        created_at: row.at,
        expires_at: row.expires_at,
        accepted: (0, Some(row.position.offset)),
        may_repeat: false,
        value: row.value.clone(),
    };
    let mut steps = eshaar_model::StatusSteps::default();
    steps.reach(Status::Sent, row.created_at);
    StoredMessage { row, steps, failure_reason: None }
}
