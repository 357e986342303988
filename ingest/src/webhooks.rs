//! `/v1/webhooks`: where a business is told what becomes of its messages. The stage `webhooks` tells; here endpoints are made,
//! shown, enabled again, given a new secret, and deleted. Secrets are shown once and kept nowhere (`eshaar_auth::signing`).

use std::fmt;
use std::net::IpAddr;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use eshaar_auth::signing::OVERLAP_MS;
use eshaar_model::{AuditId, BusinessId, Status, Timestamp, WebhookId};
use eshaar_service::{Json, Problem, egress};
use eshaar_store::{AuditEntry, Webhook};
use http::{HeaderMap, StatusCode};
use reqwest::Url;
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::caller::Caller;
use crate::context::Origin;
use crate::{App, body, json, openapi, problems};

/// Most webhooks of a business. Of two that are made at once both may be let in.
const MOST: usize = 10;
/// Longest URL, in bytes.
const URL_BYTES: usize = 2_000;
/// Rounds of changing a webhook that others change at the same time.
const ROUNDS: usize = 4;

/// A webhook to be made.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what is read as JSON")]
pub(crate) struct NewWebhook {
    /// https, with no user, password or fragment; its host must not be an address of a private network.
    #[schema(max_length = 2_000, format = "uri", example = "https://example.com/eshaar")]
    url: String,
    /// The statuses to be told of; all when it is left out.
    #[schema(min_items = 1)]
    events: Option<Vec<openapi::Step>>,
}

/// A webhook.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WebhookView {
    #[schema(value_type = String, format = "uuid")]
    id: WebhookId,
    #[schema(example = "https://example.com/eshaar")]
    url: String,
    /// The statuses that it is told of.
    #[schema(value_type = Vec<openapi::Step>)]
    events: Vec<Status>,
    state: WebhookState,
    #[schema(value_type = Option<String>, format = DateTime)]
    disabled_at: Option<Timestamp>,
    /// Why: that it answered 410, or what the last failure of 5 days was.
    disabled_reason: Option<String>,
    /// Requests that failed since one went well.
    failures: u32,
    #[schema(value_type = Option<String>, format = DateTime)]
    failing_since: Option<Timestamp>,
    /// Why the last of them failed.
    last_failure: Option<String>,
    /// Events that it was never told of, since the log had removed them (after 7 days) before it took them.
    missed: u64,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    secret_rotated_at: Option<Timestamp>,
}

/// Whether it is told.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WebhookState {
    Enabled,
    Disabled,
}

/// A webhook with its secret.
#[derive(Serialize, ToSchema)]
pub(crate) struct WebhookWithSecret {
    #[serde(flatten)]
    webhook: WebhookView,
    /// What signs requests to it, by Standard Webhooks. It is not shown again.
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=")]
    secret: String,
    /// Until when requests are signed with the secret before, too; of a new secret.
    #[schema(value_type = Option<String>, format = DateTime)]
    previous_secret_until: Option<Timestamp>,
}

/// The webhooks of a business.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Webhooks {
    webhooks: Vec<WebhookView>,
}

/// Make a webhook
///
/// From a few seconds later on it is told by a signed POST (Standard Webhooks 1.0) of every step that a message of yours
/// reaches. A business has at most 10.
#[utoipa::path(
    post, path = "/v1/webhooks", tag = "webhooks", operation_id = "make_webhook",
    request_body = NewWebhook,
    responses((status = 201, description = "It is made. The secret is shown this once", body = WebhookWithSecret))
)]
pub(crate) async fn make(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let business = caller.business()?;
    let Some(key) = app.deps.signing.newest() else { return Err(problems::webhooks_unavailable()) };
    let body = body::json(&headers, body, &app.options).await?;
    let (url, events) = read(&body, app.options.json_depth, app.deps.private_webhooks)?;
    let known = app.deps.store.webhooks.list(business).await.map_err(|error| problems::store(&error))?;
    if known.len() >= MOST {
        return Err(problems::too_many_webhooks(MOST));
    }
    let now = app.deps.clock.now();
    let webhook = Webhook {
        id: WebhookId::new(now),
        business: business.clone(),
        url,
        events,
        key: key.to_owned(),
        generation: 0,
        rotated_at: None,
        created_at: now,
        disabled: None,
        failures: 0,
        failing_since: None,
        last_failure: None,
        missed: 0,
        revision: Uuid::nil(),
    };
    audit(&app, &caller, &origin, "webhook.made", webhook.id).await?;
    let made = app.deps.store.webhooks.create(webhook).await.map_err(|error| problems::store(&error))?;
    Ok((StatusCode::CREATED, Json(with_secret(&app, made)?)).into_response())
}

/// List your webhooks
///
/// How each is, without its secret.
#[utoipa::path(
    get, path = "/v1/webhooks", tag = "webhooks", operation_id = "list_webhooks",
    responses((status = 200, description = "All of them, oldest first", body = Webhooks))
)]
pub(crate) async fn list(State(app): State<App>, caller: Caller) -> Result<Json<Webhooks>, Problem> {
    let found = app.deps.store.webhooks.list(caller.business()?).await.map_err(|error| problems::store(&error))?;
    Ok(Json(Webhooks { webhooks: found.into_iter().map(view).collect() }))
}

/// Delete a webhook
///
/// It may be told of what is under way for a few seconds more.
#[utoipa::path(
    delete, path = "/v1/webhooks/{id}", tag = "webhooks", operation_id = "delete_webhook",
    params(openapi::WebhookIdPath),
    responses((status = 204, description = "It is deleted"))
)]
pub(crate) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let business = caller.business()?;
    let found = find(&app, business, &id).await?;
    audit(&app, &caller, &origin, "webhook.deleted", found.id).await?;
    let deleted = app.deps.store.webhooks.delete(business, found.id).await.map_err(|error| problems::store(&error))?;
    if deleted { Ok(StatusCode::NO_CONTENT) } else { Err(problems::webhook_not_found()) }
}

/// Enable a webhook again
///
/// It is told of what came while it was disabled, too, as far as the log still holds it (7 days); `missed` counts the rest.
/// Nothing changes where it is enabled.
#[utoipa::path(
    post, path = "/v1/webhooks/{id}/enable", tag = "webhooks", operation_id = "enable_webhook",
    params(openapi::WebhookIdPath),
    responses((status = 200, description = "It is enabled", body = WebhookView))
)]
pub(crate) async fn enable(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    Path(id): Path<String>,
) -> Result<Json<WebhookView>, Problem> {
    let business = caller.business()?;
    let found = find(&app, business, &id).await?;
    if found.disabled.is_none() {
        return Ok(Json(view(found)));
    }
    audit(&app, &caller, &origin, "webhook.enabled", found.id).await?;
    let enabled = change(&app, found, |webhook| {
        webhook.disabled = None;
        webhook.failures = 0;
        webhook.failing_since = None;
        webhook.last_failure = None;
    });
    enabled.await.map(|webhook| Json(view(webhook)))
}

/// Give a webhook a new secret
///
/// For 24 hours requests carry two signatures, by the new secret and by the one before.
#[utoipa::path(
    post, path = "/v1/webhooks/{id}/rotate-secret", tag = "webhooks", operation_id = "rotate_webhook_secret",
    params(openapi::WebhookIdPath),
    responses((status = 200, description = "The new secret, shown this once", body = WebhookWithSecret))
)]
pub(crate) async fn rotate(
    State(app): State<App>,
    caller: Caller,
    Extension(origin): Extension<Origin>,
    Path(id): Path<String>,
) -> Result<Json<WebhookWithSecret>, Problem> {
    let business = caller.business()?;
    let found = find(&app, business, &id).await?;
    audit(&app, &caller, &origin, "webhook.secret_rotated", found.id).await?;
    let now = app.deps.clock.now();
    let rotated = change(&app, found, |webhook| {
        webhook.generation += 1;
        webhook.rotated_at = Some(now);
    });
    with_secret(&app, rotated.await?).map(Json)
}

/// Where there is none of this id, or it is another's, the answer is the same.
async fn find(app: &App, business: &BusinessId, id: &str) -> Result<Webhook, Problem> {
    let id = id.parse().map_err(|_| problems::webhook_not_found())?;
    let found = app.deps.store.webhooks.get(business, id).await.map_err(|error| problems::store(&error))?;
    found.ok_or_else(problems::webhook_not_found)
}

/// Changes a webhook, on what others have made of it meanwhile.
async fn change(app: &App, mut webhook: Webhook, change: impl Fn(&mut Webhook)) -> Result<Webhook, Problem> {
    for _ in 0..ROUNDS {
        change(&mut webhook);
        let (business, id) = (webhook.business.clone(), webhook.id);
        match app.deps.store.webhooks.replace(webhook).await.map_err(|error| problems::store(&error))? {
            Some(changed) => return Ok(changed),
            None => webhook = find(app, &business, &id.to_string()).await?,
        }
    }
    Err(problems::webhook_busy())
}

async fn audit(app: &App, caller: &Caller, origin: &Origin, action: &str, id: WebhookId) -> Result<(), Problem> {
    let entry = AuditEntry {
        id: AuditId::new(app.deps.clock.now()),
        actor: format!("{}:{}", caller.0.principal, caller.0.key_id.as_deref().unwrap_or("?")),
        action: action.to_owned(),
        subject: id.to_string(),
        detail: "{}".to_owned(),
        correlation: Some(origin.correlation.clone()),
    };
    app.deps.store.audit.append(entry).await.map_err(|error| problems::store(&error))
}

fn view(webhook: Webhook) -> WebhookView {
    let (disabled_at, disabled_reason) = webhook.disabled.unzip();
    WebhookView {
        id: webhook.id,
        url: webhook.url,
        events: if webhook.events.is_empty() { Status::ALL.to_vec() } else { webhook.events },
        state: if disabled_at.is_some() { WebhookState::Disabled } else { WebhookState::Enabled },
        disabled_at,
        disabled_reason,
        failures: webhook.failures,
        failing_since: webhook.failing_since,
        last_failure: webhook.last_failure,
        missed: webhook.missed,
        created_at: webhook.created_at,
        secret_rotated_at: webhook.rotated_at,
    }
}

fn with_secret(app: &App, webhook: Webhook) -> Result<WebhookWithSecret, Problem> {
    let secret = app.deps.signing.secret(&webhook.key, webhook.id, webhook.generation);
    let secret = secret.ok_or_else(problems::webhooks_unavailable)?.expose();
    let previous_secret_until = webhook.rotated_at.map(|at| at.plus_millis(OVERLAP_MS));
    Ok(WebhookWithSecret { webhook: view(webhook), secret, previous_secret_until })
}

/// An object as it was sent: its fields in order, repeats included.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Fields, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = entries.next_entry()? {
            fields.push(field);
        }
        Ok(Fields(fields))
    }
}

fn read(body: &[u8], depth: usize, private: bool) -> Result<(String, Vec<Status>), Problem> {
    let Fields(fields) = json::parse(body, depth)?;
    let (mut url, mut events) = (None, None);
    for (name, value) in fields {
        let place = match name.as_str() {
            "url" => &mut url,
            "events" => &mut events,
            _ => return Err(problems::unknown_field(&name)),
        };
        if place.replace(value).is_some() {
            return Err(problems::repeated_field(&name));
        }
    }
    let url = match url {
        Some(Value::String(url)) => checked(url, private)?,
        _ => return Err(Problem::field("url", "missing_url", "is required: an https URL, as a string")),
    };
    Ok((url, events.map_or(Ok(Vec::new()), |events| statuses(&events))?))
}

/// A host that is a name is looked at when it is looked up, at each request.
fn checked(text: String, private: bool) -> Result<String, Problem> {
    let refused = |detail: &str| Problem::field("url", "invalid_url", detail.to_owned());
    if text.len() > URL_BYTES {
        return Err(refused(&format!("must have at most {URL_BYTES} bytes, has {}", text.len())));
    }
    let url: Url = text.parse().map_err(|_| refused("is not a URL"))?;
    if !(url.scheme() == "https" || (private && url.scheme() == "http")) {
        return Err(refused("must begin with https://"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(refused("must have no user, password or fragment"));
    }
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_private = host.parse::<IpAddr>().is_ok_and(|address| !egress::is_public(address));
    let is_local = host == "localhost" || host.ends_with(".localhost");
    if !private && (is_private || is_local) {
        return Err(refused("must not lead to a private network or to this machine"));
    }
    Ok(text)
}

fn statuses(events: &Value) -> Result<Vec<Status>, Problem> {
    let names: Vec<&str> = Status::ALL.iter().map(|status| status.as_str()).collect();
    let refused = || {
        let detail = format!("must be an array of some of {}, each once", names.join(", "));
        Problem::field("events", "invalid_events", detail)
    };
    let listed = events.as_array().filter(|listed| !listed.is_empty()).ok_or_else(refused)?;
    let mut wanted = Vec::new();
    for name in listed {
        let status: Status = name.as_str().and_then(|name| name.parse().ok()).ok_or_else(refused)?;
        if wanted.contains(&status) {
            return Err(refused());
        }
        wanted.push(status);
    }
    Ok(wanted)
}
