//! `POST /v1/conversations/{id}/archive` and `/close`: a business puts a conversation away, or ends it.

use axum::Extension;
use axum::extract::{Path, State};
use eshaar_model::Conversation;
use eshaar_schemas::Change;
use eshaar_service::{Json, Problem};
use eshaar_store::Archived;

use super::access::{self, Ours};
use super::cached;
use super::events::{self, Doing};
use super::view::{self, ConversationView};
use crate::caller::Caller;
use crate::context::Origin;
use crate::{App, openapi, problems, submit};

/// Archive a conversation
///
/// It leaves the list of active ones; the next message in it, of either side, makes it active again. Again: nothing.
#[utoipa::path(
    post, path = "/v1/conversations/{id}/archive", tag = "conversations", operation_id = "archive_conversation",
    params(openapi::ConversationIdPath),
    responses((status = 200, description = "The conversation", body = ConversationView))
)]
pub(crate) async fn archive(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    Path(id): Path<String>,
) -> Result<Json<ConversationView>, Problem> {
    let ours = managed(&app, &caller, &id).await?;
    let archived = app.deps.store.conversations.archive(ours.conversation.id).await;
    cached::stands(&app, &ours.conversation.pair).await;
    let conversation = match archived.map_err(|error| problems::store(&error))? {
        Archived::Done(conversation) => conversation,
        Archived::Closed => return Err(problems::conversation_closed()),
        Archived::Unknown => return Err(problems::conversation_not_found()),
    };
    told(&app, &caller, &origin, Ours { conversation, ..ours }, Change::Archived).await
}

/// Close a conversation
///
/// For good: nothing is sent in it any more, and either side may start another. Again: nothing.
#[utoipa::path(
    post, path = "/v1/conversations/{id}/close", tag = "conversations", operation_id = "close_conversation",
    params(openapi::ConversationIdPath),
    responses((status = 200, description = "The conversation", body = ConversationView))
)]
pub(crate) async fn close(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    Path(id): Path<String>,
) -> Result<Json<ConversationView>, Problem> {
    let ours = managed(&app, &caller, &id).await?;
    let closed = app.deps.store.conversations.close(ours.conversation.id).await;
    cached::stands(&app, &ours.conversation.pair).await;
    let conversation: Option<Conversation> = closed.map_err(|error| problems::store(&error))?;
    let conversation = conversation.ok_or_else(problems::conversation_not_found)?;
    told(&app, &caller, &origin, Ours { conversation, ..ours }, Change::Closed).await
}

async fn managed(app: &App, caller: &Caller, id: &str) -> Result<Ours, Problem> {
    access::seen(app, caller.principal(), id).await
}

async fn told(
    app: &App,
    caller: &Caller,
    origin: &Origin,
    ours: Ours,
    change: Change,
) -> Result<Json<ConversationView>, Problem> {
    let doing = Doing { by: &caller.0.principal, at: app.deps.clock.now(), origin };
    submit::append(app, vec![events::event(app, &ours.conversation, change, None, doing)?]).await?;
    view::view(app, ours).await.map(Json)
}
