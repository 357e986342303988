//! Health: each dependency says how it is; `/health` answers for load balancers, `/health/details` for people (R6.4).
//!
//! A process without something vital to its role takes no new work (503). Without anything else it is degraded: slower, or
//! unable to do some of what it does, and better than nothing (R6.3).

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::breaker::{self, Breaker};
use crate::json::Json;
use crate::workers;

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

/// Something that a process rests on.
pub struct Dependency {
    /// Its name.
    pub name: &'static str,
    /// Whether the process is of no use without it.
    pub vital: bool,
    /// How it is.
    pub check: Box<dyn Check>,
}

/// All dependencies of a process, and whether it takes new work.
#[derive(Clone)]
pub struct Health {
    dependencies: Arc<Vec<Dependency>>,
    breakers: Arc<Vec<Arc<Breaker>>>,
    draining: CancellationToken,
}

/// A dependency, as `/health/details` shows it.
#[derive(Debug, Serialize)]
struct Report {
    name: &'static str,
    status: &'static str,
    vital: bool,
    latency_ms: f64,
    message: Option<String>,
}

#[derive(Debug, Serialize)]
struct Details {
    status: &'static str,
    version: &'static str,
    dependencies: Vec<Report>,
    breakers: Vec<breaker::Report>,
}

impl Health {
    /// Health of what rests on `dependencies`; not ready once `draining` is cancelled.
    pub fn new(dependencies: Vec<Dependency>, draining: CancellationToken) -> Self {
        Self { dependencies: Arc::new(dependencies), breakers: Arc::default(), draining }
    }

    /// Shows the breakers of this process, too.
    #[must_use]
    pub fn with_breakers(self, breakers: Vec<Arc<Breaker>>) -> Self {
        Self { breakers: Arc::new(breakers), ..self }
    }

    /// `/health`, `/health/live`, `/health/ready` and `/health/details`.
    pub fn router(self) -> Router {
        Router::new()
            .route("/health", get(ready))
            .route("/health/live", get(|| async { live(workers::panicked()) }))
            .route("/health/ready", get(ready))
            .route("/health/details", get(details))
            .with_state(self)
    }

    async fn reports(&self) -> Vec<Report> {
        futures_util::future::join_all(self.dependencies.iter().map(|dependency| async move {
            let begun = Instant::now();
            let message = match tokio::time::timeout(CHECK_TIMEOUT, dependency.check.check()).await {
                Ok(Ok(())) => None,
                Ok(Err(message)) => Some(message),
                Err(_) => Some(format!("no answer within {} s", CHECK_TIMEOUT.as_secs())),
            };
            let status = if message.is_none() { "up" } else { "down" };
            let latency_ms = begun.elapsed().as_secs_f64() * 1000.0;
            Report { name: dependency.name, status, vital: dependency.vital, latency_ms, message }
        }))
        .await
    }

    async fn assess(&self) -> (StatusCode, Details) {
        let dependencies = self.reports().await;
        let down = |vital: bool| dependencies.iter().any(|report| report.status == "down" && report.vital == vital);
        let (code, status) = match (self.draining.is_cancelled(), down(true), down(false)) {
            (true, ..) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
            (_, true, _) => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
            (.., true) => (StatusCode::OK, "degraded"),
            _ => (StatusCode::OK, "healthy"),
        };
        let breakers = self.breakers.iter().map(|breaker| breaker.report()).collect();
        (code, Details { status, version: env!("CARGO_PKG_VERSION"), dependencies, breakers })
    }
}

/// A process with a dead worker does not recover by itself: its supervisor must start it again.
fn live(panicked: Option<&'static str>) -> Response {
    match panicked {
        None => StatusCode::OK.into_response(),
        Some(worker) => {
            let body = serde_json::json!({ "status": "dead", "worker": worker });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

async fn ready(State(health): State<Health>) -> Response {
    let (code, details) = health.assess().await;
    (code, Json(serde_json::json!({ "service": "eshaar", "status": details.status }))).into_response()
}

async fn details(State(health): State<Health>) -> Response {
    let (code, details) = health.assess().await;
    (code, Json(details)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dependency(name: &'static str, vital: bool, state: Result<(), String>) -> Dependency {
        Dependency {
            name,
            vital,
            check: Box::new(move || {
                let state = state.clone();
                async move { state }
            }),
        }
    }

    #[tokio::test]
    async fn a_vital_dependency_that_is_down_makes_the_process_unready_and_is_named() {
        let dependencies =
            vec![dependency("log", true, Ok(())), dependency("store", true, Err("disk full".to_owned()))];
        let (code, details) = Health::new(dependencies, CancellationToken::new()).assess().await;
        assert_eq!((code, details.status), (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"));
        assert_eq!(details.dependencies[0].status, "up");
        assert_eq!(details.dependencies[1].message.as_deref(), Some("disk full"));
    }

    #[tokio::test]
    async fn without_a_dependency_that_is_not_vital_the_process_is_degraded_and_takes_work() {
        let dependencies =
            vec![dependency("log", true, Ok(())), dependency("presence", false, Err("refused".to_owned()))];
        let (code, details) = Health::new(dependencies, CancellationToken::new()).assess().await;
        assert_eq!((code, details.status), (StatusCode::OK, "degraded"));
        assert!(!details.dependencies[1].vital);
    }

    #[tokio::test]
    async fn breakers_are_shown_and_do_not_make_a_process_unready() {
        let breaker = Breaker::new(breaker::policies::DATABASE);
        breaker.trip("told to");
        let health = Health::new(vec![], CancellationToken::new()).with_breakers(vec![breaker]);
        let (code, details) = health.assess().await;
        assert_eq!((code, details.status), (StatusCode::OK, "healthy"));
        let shown = serde_json::to_value(&details.breakers).unwrap_or_default();
        assert_eq!((&shown[0]["dependency"], &shown[0]["state"]), (&"database".into(), &"open".into()));
    }

    #[tokio::test]
    async fn a_draining_process_takes_no_new_work_though_all_is_up() {
        let draining = CancellationToken::new();
        let health = Health::new(vec![], draining.clone());
        assert_eq!(health.assess().await.0, StatusCode::OK);
        draining.cancel();
        assert_eq!(health.assess().await.1.status, "draining");
    }

    #[tokio::test]
    async fn a_process_with_a_worker_that_panicked_is_not_live() {
        assert_eq!(live(workers::panicked()).status(), StatusCode::OK);
        drop(workers::guard("ends in order"));
        assert_eq!(workers::panicked(), None);
        let died = tokio::spawn(async {
            let _guard = workers::guard("a-worker");
            panic!("on purpose");
        });
        assert!(died.await.is_err());
        assert_eq!(workers::panicked(), Some("a-worker"));
        assert_eq!(live(workers::panicked()).status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
