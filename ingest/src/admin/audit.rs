//! `GET /v1/admin/audit`.

use axum::extract::{RawQuery, State};
use eshaar_model::Timestamp;
use eshaar_service::{Json, Problem};
use eshaar_store::{AuditEntry, AuditQuery};
use serde::Serialize;
use utoipa::ToSchema;

use super::Operator;
use super::cursor::AuditCursor;
use crate::query::Parameters;
use crate::{App, openapi, problems};

/// Something that was done.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AuditView {
    #[schema(format = "uuid")]
    id: String,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// Who: `<business>:<key id>`, or `cli:<user>`.
    #[schema(example = "operators:4Zq0aTnB2m1x")]
    actor: String,
    /// What, for programs.
    #[schema(example = "dead_letters.redrive")]
    action: String,
    /// On what: an id, or empty.
    subject: String,
    /// Everything else that matters.
    #[schema(value_type = Object)]
    detail: serde_json::Value,
    correlation_id: Option<String>,
}

impl From<AuditEntry> for AuditView {
    fn from(entry: AuditEntry) -> Self {
        Self {
            id: entry.id.to_string(),
            at: entry.id.made_at(),
            actor: entry.actor,
            action: entry.action,
            subject: entry.subject,
            detail: serde_json::from_str(&entry.detail).unwrap_or_default(),
            correlation_id: entry.correlation,
        }
    }
}

/// A page of the audit log.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AuditAnswer {
    entries: Vec<AuditView>,
    /// Give it back as `cursor` for the next page; null at the end.
    next_cursor: Option<String>,
}

/// Read the audit log
///
/// Newest first.
#[utoipa::path(
    get, path = "/v1/admin/audit", tag = "operators", operation_id = "read_audit",
    params(openapi::AuditListQuery),
    responses((status = 200, description = "A page of the audit log", body = AuditAnswer))
)]
pub(crate) async fn list(
    State(app): State<App>,
    _: Operator,
    RawQuery(query): RawQuery,
) -> Result<Json<AuditAnswer>, Problem> {
    let parameters = Parameters::parse(query.as_deref(), &["actor", "from", "until", "cursor", "limit"])?;
    let query = AuditQuery {
        actor: parameters.get("actor")?,
        from: parameters.get("from")?,
        until: parameters.get("until")?,
        before: parameters.get::<AuditCursor>("cursor")?.map(|cursor| cursor.0),
        limit: parameters.limit()?,
    };
    let page = app.deps.store.audit.list(query).await.map_err(|error| problems::store(&error))?;
    let entries = page.entries.into_iter().map(AuditView::from).collect();
    Ok(Json(AuditAnswer { entries, next_cursor: page.next.map(|id| AuditCursor(id).to_string()) }))
}
