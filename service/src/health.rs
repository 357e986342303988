//! Health: each dependency says how it is; `/health` answers for load balancers, `/health/details` for people (R6.4).

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use http::StatusCode;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// How long a dependency may take to answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// A dependency that can be asked how it is.
#[async_trait]
pub trait Check: Send + Sync + 'static {
    /// `Err` says what is wrong, in a few words.
    async fn check(&self) -> Result<(), String>;
}

#[async_trait]
impl<F, Fut> Check for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), String>> + Send + 'static,
{
    async fn check(&self) -> Result<(), String> {
        self().await
    }
}

/// All dependencies of a process, and whether it takes new work.
#[derive(Clone)]
pub struct Health {
    checks: Arc<Vec<(&'static str, Box<dyn Check>)>>,
    draining: CancellationToken,
}

/// A dependency, as `/health/details` shows it.
#[derive(Debug, Serialize)]
struct Report {
    name: &'static str,
    status: &'static str,
    latency_ms: f64,
    message: Option<String>,
}

#[derive(Debug, Serialize)]
struct Details {
    status: &'static str,
    version: &'static str,
    dependencies: Vec<Report>,
}

impl Health {
    /// Health of `checks`; not ready once `draining` is cancelled.
    pub fn new(checks: Vec<(&'static str, Box<dyn Check>)>, draining: CancellationToken) -> Self {
        Self { checks: Arc::new(checks), draining }
    }

    /// `/health`, `/health/live`, `/health/ready` and `/health/details`.
    pub fn router(self) -> Router {
        Router::new()
            .route("/health", get(ready))
            .route("/health/live", get(|| async { StatusCode::OK }))
            .route("/health/ready", get(ready))
            .route("/health/details", get(details))
            .with_state(self)
    }

    async fn reports(&self) -> Vec<Report> {
        futures_util::future::join_all(self.checks.iter().map(|(name, check)| async move {
            let begun = Instant::now();
            let message = match tokio::time::timeout(CHECK_TIMEOUT, check.check()).await {
                Ok(Ok(())) => None,
                Ok(Err(message)) => Some(message),
                Err(_) => Some(format!("no answer within {} s", CHECK_TIMEOUT.as_secs())),
            };
            let status = if message.is_none() { "up" } else { "down" };
            Report { name, status, latency_ms: begun.elapsed().as_secs_f64() * 1000.0, message }
        }))
        .await
    }

    async fn assess(&self) -> (StatusCode, Details) {
        let dependencies = self.reports().await;
        let up = dependencies.iter().all(|report| report.status == "up");
        let (code, status) = match (self.draining.is_cancelled(), up) {
            (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
            (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
            (false, true) => (StatusCode::OK, "healthy"),
        };
        (code, Details { status, version: env!("CARGO_PKG_VERSION"), dependencies })
    }
}

async fn ready(State(health): State<Health>) -> Response {
    let (code, details) = health.assess().await;
    (code, Json(serde_json::json!({ "status": details.status }))).into_response()
}

async fn details(State(health): State<Health>) -> Response {
    let (code, details) = health.assess().await;
    (code, Json(details)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_dependency_that_is_down_makes_the_process_unready_and_is_named() {
        let checks: Vec<(&'static str, Box<dyn Check>)> =
            vec![("log", Box::new(|| async { Ok(()) })), ("store", Box::new(|| async { Err("disk full".to_owned()) }))];
        let (code, details) = Health::new(checks, CancellationToken::new()).assess().await;
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(details.dependencies[0].status, "up");
        assert_eq!(details.dependencies[1].message.as_deref(), Some("disk full"));
    }

    #[tokio::test]
    async fn a_draining_process_takes_no_new_work_though_all_is_up() {
        let draining = CancellationToken::new();
        let health = Health::new(vec![], draining.clone());
        assert_eq!(health.assess().await.0, StatusCode::OK);
        draining.cancel();
        assert_eq!(health.assess().await.1.status, "draining");
    }
}
