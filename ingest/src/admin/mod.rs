//! `/v1/admin/…`: what operators do. Each needs a key with the permission `admin`, and what was done is in the audit log
//! before it is done; where it cannot be written, it is not done (R12.4).

pub(crate) mod audit;
pub(crate) mod cursor;
pub(crate) mod letters;
pub(crate) mod redriver;
pub(crate) mod work;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::routing::{get, post};
use eshaar_model::AuditId;
use eshaar_service::Problem;
use eshaar_store::AuditEntry;
use http::request::Parts;

use crate::caller::Caller;
use crate::context::Origin;
use crate::{App, problems};

/// The paths of operators.
pub(crate) fn router() -> Router<App> {
    Router::new()
        .route("/v1/admin/dead-letters", get(letters::list))
        .route("/v1/admin/dead-letters/redrive", post(work::redrive))
        .route("/v1/admin/dead-letters/discard", post(work::discard))
        .route("/v1/admin/dead-letters/tasks", get(work::list))
        .route("/v1/admin/dead-letters/tasks/{id}", get(work::get))
        .route("/v1/admin/dead-letters/{id}", get(letters::show))
        .route("/v1/admin/audit", get(audit::list))
}

/// A caller with the permission `admin`.
pub(crate) struct Operator {
    /// As the audit log names them: `<business>:<key id>`.
    pub(crate) name: String,
    correlation: String,
}

impl FromRequestParts<App> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, app).await?;
        let business = caller.business()?;
        let name = format!("{business}:{}", caller.0.key_id.as_deref().unwrap_or("?"));
        let origin = parts.extensions.get::<Origin>().ok_or_else(problems::internal)?;
        Ok(Self { name, correlation: origin.correlation.clone() })
    }
}

impl Operator {
    /// Writes down what is about to be done.
    pub(crate) async fn record(
        &self,
        app: &App,
        action: &str,
        subject: impl Into<String>,
        detail: serde_json::Value,
    ) -> Result<(), Problem> {
        let entry = AuditEntry {
            id: AuditId::new(app.deps.clock.now()),
            actor: self.name.clone(),
            action: action.to_owned(),
            subject: subject.into(),
            detail: detail.to_string(),
            correlation: Some(self.correlation.clone()),
        };
        app.deps.store.audit.append(entry).await.map_err(|error| problems::store(&error))
    }

    pub(crate) fn correlation(&self) -> &str {
        &self.correlation
    }
}
