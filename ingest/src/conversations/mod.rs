//! `/v1/conversations`: what a business and a phone say to each other.
//!
//! Both sides ask alike, and see only what they are one of the two of (`access`). A conversation is started, archived and
//! closed in the store, where of each pair one is open at most; `conversation.events` is told behind it (`events`). What is
//! said goes to the log (`sending`), and comes to the `history` by the stage archive. What is read is `cached`. `live` is the
//! same for gateways.

mod access;
mod cached;
mod events;
pub(crate) mod history;
pub(crate) mod live;
pub(crate) mod reading;
pub(crate) mod sending;
pub(crate) mod standing;
mod view;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse as _, Response};
use eshaar_model::{ActivityCursor, ConversationStatus, Pair, Principal};
use eshaar_service::{Json, Problem};
use eshaar_store::{How, ListQuery};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::access::Ours;
use self::events::Doing;
use self::view::ConversationView;
use crate::caller::Caller;
use crate::context::Origin;
use crate::json::{self, Field};
use crate::query::Parameters;
use crate::{App, body, openapi, problems, submit};

/// With whom a conversation is wanted. Fields that are not named here are refused.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it describes what is read below")]
pub(crate) struct NewConversation {
    /// A phone, where a business asks; a business id, where a phone does.
    #[schema(example = "+966501234567")]
    with: String,
}

/// Start a conversation
///
/// Or get the one that there is: of you and the other side one is open at most, however many ask at once. One that was
/// archived is taken up again.
#[utoipa::path(
    post, path = "/v1/conversations", tag = "conversations", operation_id = "start_conversation",
    request_body = NewConversation,
    responses(
        (status = 200, description = "There was one already", body = ConversationView),
        (status = 201, description = "It was started", body = ConversationView)
    )
)]
pub(crate) async fn start(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let who = caller.principal();
    let body = body::json(&headers, body, &app.options).await?;
    let pair = pair(who, &body, app.options.json_depth)?;
    app.admission.start(&caller.0).await?;
    let started = sending::start(&app, who, &pair, "with").await?;
    let doing = Doing { by: who, at: app.deps.clock.now(), origin: &origin };
    if let Some(event) = events::started(&app, &started, doing)? {
        submit::append(&app, vec![event]).await?;
    }
    let status = if started.how == How::Created { StatusCode::CREATED } else { StatusCode::OK };
    let view = view::view(&app, Ours::new(started.conversation, who)?).await?;
    Ok((status, Json(view)).into_response())
}

#[derive(Deserialize)]
struct RawConversation<'a> {
    #[serde(borrow, default)]
    with: Field<'a>,
    #[serde(flatten, borrow)]
    others: std::collections::BTreeMap<std::borrow::Cow<'a, str>, Field<'a>>,
}

fn pair(who: &Principal, body: &[u8], depth: usize) -> Result<Pair, Problem> {
    let raw = json::parse::<RawConversation<'_>>(body, depth)?;
    if let Some(name) = raw.others.keys().next() {
        return Err(problems::unknown_field(name));
    }
    let with: Principal = match raw.with {
        Field::Absent => return Err(Problem::field("with", "missing_field", "is required")),
        Field::Text(text) => Principal::parse_valid(&text)
            .map_err(|error| Problem::field("with", "invalid_recipient", error.to_string()))?,
        other => return Err(Problem::field("with", "wrong_type", format!("must be a string, is {}", other.kind()))),
    };
    Pair::of(who, &with).map_err(|error| problems::invalid_pair("with", &error))
}

/// A page of conversations.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Conversations {
    conversations: Vec<ConversationView>,
    /// Give it back as `cursor` for the next page; null at the end. A page may be short and have a next.
    #[schema(value_type = Option<String>)]
    next_cursor: Option<ActivityCursor>,
}

/// List your conversations
///
/// Newest activity first. From page to page each comes at most once; one that something happens in meanwhile moves to the
/// front, which is behind you.
#[utoipa::path(
    get, path = "/v1/conversations", tag = "conversations", operation_id = "list_conversations",
    params(openapi::ConversationListQuery),
    responses((status = 200, description = "A page of conversations", body = Conversations))
)]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<Conversations>, Problem> {
    let who = caller.principal();
    let parameters = Parameters::parse(query.as_deref(), &["status", "cursor", "limit"])?;
    let query =
        ListQuery { status: parameters.get("status")?, after: parameters.get("cursor")?, limit: parameters.limit()? };
    let (ours, next_cursor) = cached::page(&app, who, query).await?;
    Ok(Json(Conversations { conversations: view::views(&app, &ours).await?, next_cursor }))
}

/// What a side has not read.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UnreadCount {
    /// Messages that you have not read, in your 200 newest active conversations, of each at most 1,000.
    unread: usize,
    /// How many of these conversations have some.
    conversations: usize,
    /// Whether there may be more: of one there is more, or you have more active conversations.
    more: bool,
}

/// Count what you have not read
#[utoipa::path(
    get, path = "/v1/conversations/unread-count", tag = "conversations", operation_id = "count_unread",
    responses((status = 200, description = "The count", body = UnreadCount))
)]
pub(crate) async fn unread_count(
    State(app): State<App>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<UnreadCount>, Problem> {
    let who = caller.principal();
    Parameters::parse(query.as_deref(), &[])?;
    let query = ListQuery { status: Some(ConversationStatus::Active), after: None, limit: cached::ACTIVE };
    let (ours, next) = cached::page(&app, who, query).await?;
    let counts = cached::unread(&app, &ours).await?;
    Ok(Json(UnreadCount {
        unread: counts.iter().map(|count| count.count).sum(),
        conversations: counts.iter().filter(|count| count.count > 0).count(),
        more: next.is_some() || counts.iter().any(|count| count.more),
    }))
}

/// Show a conversation
///
/// To its two sides.
#[utoipa::path(
    get, path = "/v1/conversations/{id}", tag = "conversations", operation_id = "get_conversation",
    params(openapi::ConversationIdPath),
    responses((status = 200, description = "The conversation", body = ConversationView))
)]
pub(crate) async fn get(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<ConversationView>, Problem> {
    Parameters::parse(query.as_deref(), &[])?;
    let ours = access::seen(&app, caller.principal(), &id).await?;
    view::view(&app, ours).await.map(Json)
}
