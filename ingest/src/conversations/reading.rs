//! `POST /v1/conversations/{id}/read`: a side has read what the other said, up to a position.
//!
//! The messages become *read* in the log, like any other; behind that the position is noted in the store, which unread
//! counts begin at. A request that ends in between is gone on with by its repeat.

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use eshaar_auth::Identity;
use eshaar_model::{ConversationPosition, Permission, Status};
use eshaar_schemas::Change;
use eshaar_service::{Json, Problem};
use eshaar_store::{ReadFrom, ReadMark, StoredMessage};
use http::HeaderMap;
use serde::Deserialize;
use utoipa::ToSchema;

use super::access::{self, Ours};
use super::cached;
use super::events::{self, Doing};
use super::history;
use super::view::{self, ConversationView};
use crate::caller::{Caller, allowed};
use crate::context::Origin;
use crate::json::{self, Field};
use crate::{App, body, openapi, problems, read, submit};

/// Messages that are marked at a time.
const PAGE: usize = 200;

/// Up to where a conversation was read. Fields that are not named here are refused.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it describes what is read below")]
pub(crate) struct ReadUpTo {
    /// The position of the last message that was read; the last one there is when it is left out.
    up_to: Option<String>,
}

/// Mark a conversation as read
///
/// What the other side said up to `up_to` is *read* from then on and not unread any more. A position never moves back: one
/// before what was read already changes nothing.
#[utoipa::path(
    post, path = "/v1/conversations/{id}/read", tag = "conversations", operation_id = "read_conversation",
    params(openapi::ConversationIdPath),
    request_body = ReadUpTo,
    responses((status = 200, description = "The conversation", body = ConversationView))
)]
pub(crate) async fn mark(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ConversationView>, Problem> {
    let body = body::json(&headers, body, &app.options).await?;
    let up_to = parse(&body, app.options.json_depth)?;
    let mut ours = access::seen(&app, caller.principal(), &id).await?;
    read_up_to(&app, &caller.0, &origin, &mut ours, up_to).await?;
    view::view(&app, ours).await.map(Json)
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow, default)]
    up_to: Field<'a>,
    #[serde(flatten, borrow)]
    others: std::collections::BTreeMap<std::borrow::Cow<'a, str>, Field<'a>>,
}

fn parse(bytes: &[u8], depth: usize) -> Result<Option<ConversationPosition>, Problem> {
    let raw = json::parse::<Raw<'_>>(bytes, depth)?;
    if let Some(name) = raw.others.keys().next() {
        return Err(problems::unknown_field(name));
    }
    match raw.up_to {
        Field::Absent | Field::Null => Ok(None),
        Field::Text(text) => {
            let wrong = |error: <ConversationPosition as std::str::FromStr>::Err| {
                Problem::field("up_to", "invalid_position", error.to_string())
            };
            text.parse().map(Some).map_err(wrong)
        }
        other => Err(Problem::field("up_to", "wrong_type", format!("must be a string, is {}", other.kind()))),
    }
}

/// Marks what the caller's other side said, up to a position or all of it. What is not there yet cannot be read: a position
/// behind the last message is that of the last message.
pub(super) async fn read_up_to(
    app: &App,
    identity: &Identity,
    origin: &Origin,
    ours: &mut Ours,
    up_to: Option<ConversationPosition>,
) -> Result<(), Problem> {
    let by = allowed(identity, &[Permission::Chat])?;
    let Some(last) = ours.conversation.last_position() else { return Ok(()) };
    let up_to = up_to.map_or(last, |up_to| up_to.min(last));
    let mut read = ours.conversation.read[ours.side as usize];
    if read >= Some(up_to) {
        // Whoever read it may have died before it said so.
        cached::was_read(app, ours).await;
        return Ok(());
    }
    let at = app.deps.clock.now();
    while read < Some(up_to) {
        let page = app.deps.store.conversations.history(ours.conversation.id, ReadFrom::After(read), PAGE).await;
        let page = page.map_err(|error| problems::store(&error))?;
        let rows: Vec<_> = page.rows.into_iter().take_while(|row| row.position <= up_to).collect();
        let reached = if rows.len() == PAGE { rows.last().map_or(up_to, |row| row.position) } else { up_to };
        let theirs: Vec<_> = rows.into_iter().filter(|row| row.from != ours.side).collect();
        let mut records = Vec::with_capacity(theirs.len() * 2);
        for stored in history::stored(app, &theirs).await? {
            for status in steps(&stored) {
                records.push(read::step(app, &stored, status, at, origin)?);
            }
        }
        if !records.is_empty() {
            submit::append(app, records).await?;
        }
        let mark = ReadMark { conversation: ours.conversation.id, side: ours.side, up_to: reached };
        let marked = app.deps.store.conversations.mark_read(vec![mark]).await;
        cached::was_read(app, ours).await;
        marked.map_err(|error| problems::store(&error))?;
        ours.conversation.mark_read(ours.side, reached);
        read = Some(reached);
    }
    let event = events::event(app, &ours.conversation, Change::Read, Some(up_to), Doing { by, at, origin })?;
    submit::append(app, vec![event]).await.map(|_| ())
}

/// What a message that was just read has reached by that: it was delivered too, whether or not that was said. What was
/// taken back, or failed, was not shown.
fn steps(stored: &StoredMessage) -> impl Iterator<Item = Status> {
    let is_shown = [Status::Cancelled, Status::Failed].into_iter().all(|step| stored.steps.at(step).is_none())
        || stored.steps.at(Status::Delivered).is_some();
    let missing =
        [Status::Delivered, Status::Read].map(|step| (is_shown && stored.steps.at(step).is_none()).then_some(step));
    missing.into_iter().flatten()
}
