//! `/v1/broadcasts`: one message to many.
//!
//! A broadcast is accepted when its record is in `broadcasts.requested`; before that its recipients and its row are in the
//! store, where they do no harm should it not come so far. The stage `broadcast` sends it, `archive` counts what becomes of
//! its messages; here both are put together. Cancelling writes to the log, never to the store.

use std::collections::HashMap;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use eshaar_auth::Identity;
use eshaar_model::limits::BROADCAST_JSON_BYTES;
use eshaar_model::{BroadcastId, BusinessId, MessageId, Phone, Priority, RecipientsId, Timestamp};
use eshaar_schemas::{Broadcast, DecodeError};
use eshaar_service::{Json, Problem};
use eshaar_store::audiences::{self as lists, PAGE_PHONES};
use eshaar_store::broadcasts::{Ended, Progress, TASKS};
use eshaar_store::{Audience, BroadcastRow, Counts};
use eshaar_topics::flow;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::audiences;
use crate::caller::Caller;
use crate::context::Origin;
use crate::idempotency::{self, Fingerprint, REPLAYED, Turn};
use crate::query::{PageCursor, Parameters};
use crate::submit::{self, BroadcastDraft, Rules, meaning};
use crate::{App, body, cancel, openapi, problems};

/// What requests with an Idempotency-Key are distinguished by from those to other paths.
const KIND: &str = "POST /v1/broadcasts";

/// How far a broadcast is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BroadcastStatus {
    /// It was accepted; nothing of it is sent yet.
    Queued,
    /// Its messages are being sent.
    Sending,
    /// All of its messages were accepted.
    Sent,
    /// It was taken back: what was not delivered is not delivered.
    Cancelled,
    /// Its time passed before all of its messages were accepted.
    Expired,
    /// It could not be sent to its end.
    Failed,
}

/// A broadcast that was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BroadcastAccepted {
    #[schema(value_type = String, format = "uuid")]
    id: BroadcastId,
    status: BroadcastStatus,
    /// How many recipients it has.
    total: u64,
    /// Null where the request listed its recipients.
    audience: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

/// A broadcast and its progress.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BroadcastView {
    #[schema(value_type = String, format = "uuid")]
    id: BroadcastId,
    status: BroadcastStatus,
    /// Null where the request listed its recipients.
    audience: Option<String>,
    content: String,
    #[schema(value_type = openapi::Priority)]
    priority: Priority,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    reference: Option<String>,
    collapse_key: Option<String>,
    /// Most messages in a second.
    rate: Option<i32>,
    progress: BroadcastProgress,
}

/// What became of a broadcast's messages; some seconds old.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BroadcastProgress {
    /// How many recipients it has.
    total: u64,
    /// Messages that were accepted, and have ids.
    accepted: u64,
    /// That reached their recipient, those that were read included.
    delivered: u64,
    /// That were read.
    read: u64,
    /// That failed.
    failed: u64,
    /// Whose time passed, where that was noted.
    expired: u64,
    /// Of one that was taken back: what is none of these, and will not be delivered.
    cancelled: u64,
}

/// A page of broadcasts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Broadcasts {
    broadcasts: Vec<BroadcastView>,
    /// Give it back as `cursor` for the next page; null at the end.
    next_cursor: Option<String>,
}

/// The answer to a cancellation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BroadcastCancelled {
    #[schema(value_type = String, format = "uuid")]
    id: BroadcastId,
    status: BroadcastStatus,
}

/// Send a broadcast
///
/// One message to an audience, or to up to 10,000 phones that are listed, each of which gets it once. It is answered once it
/// is on disk; its messages are sent from then on, in the bulk lane, so that what is sent singly goes first. Its
/// messages count against the limit of the key; a broadcast whose limit would let it take longer than 30 days is refused.
#[utoipa::path(
    post, path = "/v1/broadcasts", tag = "broadcasts", operation_id = "send_broadcast",
    params(openapi::IdempotencyKey),
    request_body = openapi::NewBroadcast,
    responses((status = 202, description = "Accepted", body = BroadcastAccepted, headers(
        ("Idempotency-Replayed" = Option<bool>, description = "`true` when this is the answer of an earlier request")
    )))
)]
pub(crate) async fn send(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let business = caller.business()?;
    let key = idempotency::of(&headers)?;
    let body = body::json_within(BROADCAST_JSON_BYTES, &headers, body, &app.options).await?;
    let rules = Rules::of(&app.options);
    let draft = submit::parse_broadcast(&body, rules)?;
    let listed = if draft.audience.is_some() { Vec::new() } else { submit::recipients(&body, rules)? };
    let request = Request { app: &app, caller: &caller.0, business, origin: &origin, listed: &listed };
    let now = app.deps.clock.now();
    let Some(key) = key else {
        let answer = request.accept(draft, app.ids.mint(now), false).await?;
        return Ok(accepted(answer, false));
    };
    let same = Fingerprint::new(meaning::of_broadcast(KIND, &draft, &listed), KIND, body);
    let held = match app.claims.claim(business.to_string(), key, &same, app.ids.mint(now), now).await? {
        Turn::Replay(answer) => return Ok(accepted(answer, true)),
        Turn::Produce(held) => held,
    };
    let answer = request.accept(draft, held.id, held.repeat).await?;
    app.claims.answered(&held, answer.clone()).await;
    Ok(accepted(answer, held.repeat))
}

/// A request for a broadcast.
struct Request<'a> {
    app: &'a App,
    caller: &'a Identity,
    business: &'a BusinessId,
    origin: &'a Origin,
    /// Recipients, each once, where they are listed.
    listed: &'a [Phone],
}

impl Request<'_> {
    /// Accepts a broadcast under that id; one that was begun before goes to those it was begun for.
    async fn accept(&self, draft: BroadcastDraft, id: MessageId, is_repeat: bool) -> Result<Bytes, Problem> {
        let Self { app, business, origin, .. } = self;
        let id = BroadcastId::from_bytes(id.as_bytes()).map_err(|_| problems::internal())?;
        let begun = if is_repeat { self.begun(id).await? } else { None };
        let broadcast = match begun {
            Some(begun) if self.is_requested(id).await? => begun,
            // Its row was written, and the log did not take it, or it is not known to have: it is accepted now.
            Some(begun) => self.timed(begun, draft.ttl_s),
            None => self.begin(draft, id).await?,
        };
        let record = flow::broadcast(&broadcast, &app.deps.codecs, &origin.trace);
        let record = record.map_err(|error| problems::encode(&error))?;
        let created_at = Timestamp::from_millis(broadcast.created_at);
        let row = BroadcastRow { id, business: (*business).clone(), created_at, value: record.value.clone() };
        app.deps.store.broadcasts.put(row).await.map_err(|error| problems::store(&error))?;
        submit::append(app, vec![record]).await?;
        let answer = BroadcastAccepted {
            id,
            status: BroadcastStatus::Queued,
            total: broadcast.total as u64,
            audience: broadcast.audience,
            created_at,
        };
        eshaar_service::json::to_vec(&answer).map(Bytes::from).map_err(|_| problems::internal())
    }

    async fn begun(&self, id: BroadcastId) -> Result<Option<Broadcast>, Problem> {
        let found = self.app.deps.store.broadcasts.get(&[id]).await.map_err(|error| problems::store(&error))?;
        match found.first() {
            Some(row) => decode(self.app, &row.value).await.map(Some),
            None => Ok(None),
        }
    }

    /// Returns true if the stage has read the record of a broadcast: an earlier attempt appended it.
    async fn is_requested(&self, id: BroadcastId) -> Result<bool, Problem> {
        let task = self.app.deps.store.tasks.get(TASKS, &id.to_string()).await;
        task.map(|task| task.is_some()).map_err(|error| problems::store(&error))
    }

    /// The broadcast as one that is accepted now.
    fn timed(&self, broadcast: Broadcast, ttl_s: Option<u64>) -> Broadcast {
        let now = self.app.deps.clock.now();
        let expires_at = ttl_s.map(|seconds| now.plus_millis(seconds as i64 * 1000).as_millis());
        Broadcast { created_at: now.as_millis(), expires_at, ..broadcast }
    }

    async fn begin(&self, draft: BroadcastDraft, id: BroadcastId) -> Result<Broadcast, Problem> {
        let recipients = self.recipients(draft.audience.as_deref()).await?;
        self.app.admission.broadcast(self.caller, recipients.total(), draft.rate.map(u64::from)).await?;
        let total = recipients.total();
        let list = self.list(recipients, id).await?;
        let broadcast = Broadcast {
            id,
            sender: self.business.to_string(),
            audience: draft.audience,
            recipients: list,
            total: total as i64,
            content: draft.content.into_string(),
            priority: draft.priority,
            created_at: 0,
            expires_at: None,
            reference: draft.reference,
            collapse_key: draft.collapse_key,
            rate: draft.rate.map(|rate| rate as i32),
            correlation_id: self.origin.correlation.clone(),
            key_id: self.caller.key_id.clone(),
            key_rate: self.caller.rate.map(|rate| rate.to_string()),
        };
        Ok(self.timed(broadcast, draft.ttl_s))
    }

    async fn recipients(&self, audience: Option<&str>) -> Result<Recipients<'_>, Problem> {
        match audience {
            Some(name) => audiences::find(self.app, self.business, name).await.map(Recipients::Audience),
            None => Ok(Recipients::Listed(self.listed)),
        }
    }

    /// The list of the recipients; of those that the request lists, it is written.
    async fn list(&self, recipients: Recipients<'_>, id: BroadcastId) -> Result<RecipientsId, Problem> {
        let phones = match recipients {
            Recipients::Audience(audience) => return Ok(audience.recipients),
            Recipients::Listed(phones) => phones,
        };
        let (store, list) = (&*self.app.deps.store.audiences, audiences::list_of(id.into()));
        let failed = |error| problems::store(&error);
        lists::begin(store, list, None, self.app.deps.clock.now()).await.map_err(failed)?;
        for (page, phones) in phones.chunks(PAGE_PHONES).enumerate() {
            store.put_page(list, page as u32, phones.to_vec()).await.map_err(failed)?;
        }
        Ok(list)
    }
}

/// The recipients of a broadcast.
enum Recipients<'a> {
    /// Those of an audience.
    Audience(Audience),
    /// Those that the request lists, each once.
    Listed(&'a [Phone]),
}

impl Recipients<'_> {
    fn total(&self) -> u64 {
        match self {
            Self::Audience(audience) => audience.total,
            Self::Listed(phones) => phones.len() as u64,
        }
    }
}

fn accepted(answer: Bytes, replayed: bool) -> Response {
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    let mut response = (StatusCode::ACCEPTED, json, answer).into_response();
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// Show a broadcast
///
/// With its progress.
#[utoipa::path(
    get, path = "/v1/broadcasts/{id}", tag = "broadcasts", operation_id = "get_broadcast",
    params(openapi::BroadcastIdPath),
    responses((status = 200, description = "The broadcast", body = BroadcastView))
)]
pub(crate) async fn get(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<BroadcastView>, Problem> {
    let business = caller.business()?;
    let row = find(&app, business, &id).await?;
    view(&app, &row).await.map(Json)
}

/// List your broadcasts
///
/// Newest first, with their progress.
#[utoipa::path(
    get, path = "/v1/broadcasts", tag = "broadcasts", operation_id = "list_broadcasts",
    params(openapi::PageQuery),
    responses((status = 200, description = "A page of broadcasts", body = Broadcasts))
)]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<Broadcasts>, Problem> {
    let business = caller.business()?;
    let parameters = Parameters::parse(query.as_deref(), &["cursor", "limit"])?;
    let before = parameters.get::<PageCursor>("cursor")?.map(|cursor| cursor.0);
    let before = before.and_then(|id| BroadcastId::from_bytes(id.as_bytes()).ok());
    let (limit, store) = (parameters.limit()?, &app.deps.store.broadcasts);
    let failed = |error| problems::store(&error);
    // One more says whether there is a next page.
    let mut ids = store.list(business, before, limit + 1).await.map_err(failed)?;
    let more = ids.len() > limit;
    ids.truncate(limit);
    let rows: HashMap<BroadcastId, BroadcastRow> =
        store.get(&ids).await.map_err(failed)?.into_iter().map(|row| (row.id, row)).collect();
    let mut broadcasts = Vec::with_capacity(ids.len());
    for row in ids.iter().filter_map(|id| rows.get(id)) {
        broadcasts.push(view(&app, row).await?);
    }
    let next = ids.last().filter(|_| more).map(|id| PageCursor((*id).into()).to_string());
    Ok(Json(Broadcasts { broadcasts, next_cursor: next }))
}

/// Cancel a broadcast
///
/// What was not delivered yet is not delivered: neither what was not sent so far, nor what waits for a phone that is away. A
/// message that was under way to a phone at that moment may still arrive, and then counts as delivered. A repeat changes
/// nothing.
#[utoipa::path(
    post, path = "/v1/broadcasts/{id}/cancel", tag = "broadcasts", operation_id = "cancel_broadcast",
    params(openapi::BroadcastIdPath),
    responses(
        (status = 200, description = "It is cancelled", body = BroadcastCancelled),
        (status = 202, description = "The cancellation is kept; the broadcast cannot be looked up at the moment",
            body = BroadcastCancelled),
    )
)]
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<BroadcastCancelled>), Problem> {
    let business = caller.business()?;
    let id: BroadcastId = id.parse().map_err(|_| problems::broadcast_not_found())?;
    let now = app.deps.clock.now();
    let code = match app.deps.store.broadcasts.get(&[id]).await {
        Ok(found) if found.iter().any(|row| row.business == *business) => StatusCode::OK,
        // It stands in the store before it is accepted.
        Ok(_) => return Err(problems::broadcast_not_found()),
        Err(error) if now.millis_since(MessageId::from(id).made_at()).abs() > cancel::MAX_AGE_MS => {
            return Err(problems::store(&error));
        }
        // The cancellation holds for broadcasts of its business alone.
        Err(error) => {
            tracing::warn!(%error, broadcast = %id, "a broadcast is cancelled that cannot be looked up");
            StatusCode::ACCEPTED
        }
    };
    if !app.deps.cancelled.covers(business.as_str(), id.into()) {
        let record = cancel::record(&app, business, id.into(), now, &origin)?;
        submit::append(&app, vec![record]).await?;
    }
    Ok((code, Json(BroadcastCancelled { id, status: BroadcastStatus::Cancelled })))
}

/// A broadcast of a business; another's is not there.
async fn find(app: &App, business: &BusinessId, id: &str) -> Result<BroadcastRow, Problem> {
    let id: BroadcastId = id.parse().map_err(|_| problems::broadcast_not_found())?;
    let found = app.deps.store.broadcasts.get(&[id]).await.map_err(|error| problems::store(&error))?;
    found.into_iter().find(|row| row.business == *business).ok_or_else(problems::broadcast_not_found)
}

async fn view(app: &App, row: &BroadcastRow) -> Result<BroadcastView, Problem> {
    let store = &app.deps.store;
    let broadcast = decode(app, &row.value).await?;
    let name = row.id.to_string();
    let (task, counts) = tokio::try_join!(store.tasks.get(TASKS, &name), store.broadcasts.counts(row.id))
        .map_err(|error| problems::store(&error))?;
    let total = broadcast.total as u64;
    let sent = task.and_then(|task| Progress::decode(&task.progress));
    let is_cancelled = app.deps.cancelled.covers(row.business.as_str(), row.id.into());
    let status = status_of(sent, is_cancelled);
    Ok(BroadcastView {
        id: row.id,
        status,
        audience: broadcast.audience,
        content: broadcast.content,
        priority: broadcast.priority,
        created_at: row.created_at,
        expires_at: broadcast.expires_at.map(Timestamp::from_millis),
        reference: broadcast.reference,
        collapse_key: broadcast.collapse_key,
        rate: broadcast.rate,
        progress: progress_of(total, sent.unwrap_or_default(), counts, status),
    })
}

fn status_of(sent: Option<Progress>, is_cancelled: bool) -> BroadcastStatus {
    match sent.map(|progress| (progress.ended, progress)) {
        _ if is_cancelled => BroadcastStatus::Cancelled,
        Some((Some(Ended::Sent), _)) => BroadcastStatus::Sent,
        Some((Some(Ended::Cancelled), _)) => BroadcastStatus::Cancelled,
        Some((Some(Ended::Expired), _)) => BroadcastStatus::Expired,
        Some((Some(Ended::Failed), _)) => BroadcastStatus::Failed,
        Some((None, progress)) if progress.done > 0 || progress.chunk.is_some() => BroadcastStatus::Sending,
        Some((None, _)) | None => BroadcastStatus::Queued,
    }
}

fn progress_of(total: u64, sent: Progress, counts: Counts, status: BroadcastStatus) -> BroadcastProgress {
    let Counts { delivered, read, failed, expired } = counts;
    let left = total.saturating_sub(delivered + failed + expired);
    BroadcastProgress {
        total,
        // A message may have been delivered while the chunk that it is of is not said to be sent yet.
        accepted: sent.done.max(delivered + failed + expired),
        delivered,
        read,
        failed,
        expired,
        cancelled: if status == BroadcastStatus::Cancelled { left } else { 0 },
    }
}

/// The broadcast in a record's value; a schema that is not known yet is asked for.
async fn decode(app: &App, value: &Bytes) -> Result<Broadcast, Problem> {
    let codecs = &app.deps.codecs;
    match codecs.decode(value) {
        Err(DecodeError::UnknownSchema(id)) => {
            codecs.learn(id).await.map_err(|error| problems::registry(&error))?;
            codecs.decode(value).map_err(|error| problems::decode(&error))
        }
        decoded => decoded.map_err(|error| problems::decode(&error)),
    }
}
