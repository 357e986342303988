//! HTTP of a process: the routes of its roles, its health and its metrics.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse as _;
use axum::routing::get;
use eshaar_auth::jwt::Issuer;
use eshaar_auth::operations;
use eshaar_gateway::Gateway;
use eshaar_schemas::registry::http::Access;
use eshaar_service::health::{Check, Dependency};
use eshaar_service::{Health, Problem};
use eshaar_topics::Cancelled;
use eshaar_topics::runner::Watchdog;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use super::Role;
use super::clock::ClockWatch;
use crate::commands::console;
use crate::config::Config;
use crate::engines::{Engines, check};
use crate::first_start;

/// The state that a process shows of itself.
pub struct Signs {
    /// Its metrics.
    pub rendered: PrometheusHandle,
    /// Progress of its stages.
    pub watchdog: Watchdog,
    /// The difference of its clock.
    pub clocks: Arc<ClockWatch>,
    /// Cancelled when it takes no new work.
    pub draining: CancellationToken,
}

/// Routes of the public listener where operators have one of their own: all but those that they alone need.
pub fn public(router: Router) -> Router {
    router.layer(from_fn(async |request: Request, next: Next| {
        if operations::is_internal(request.uri().path()) {
            let detail = "there is nothing here; /openapi.json lists what there is";
            return Problem::new(StatusCode::NOT_FOUND, "no_such_path", detail).into_response();
        }
        next.run(request).await
    }))
}

/// Everything that `role` answers.
pub async fn router(
    engines: &Engines,
    cancelled: &Arc<Cancelled>,
    config: &Config,
    role: Role,
    gateway: Option<&Gateway>,
    signs: Signs,
) -> anyhow::Result<Router> {
    let Signs { rendered, watchdog, clocks, draining } = signs;
    let mut router = Router::new()
        .merge(health((engines, cancelled), role, watchdog, clocks, draining).router())
        .route("/metrics", get(move || async move { rendered.render() }));
    if role.ingests() {
        router = router.merge(api(engines, cancelled, config).await?);
    }
    if let Some(gateway) = gateway {
        router = router.merge(gateway.router());
    }
    if let Some(registry) = &engines.own_registry {
        let registry = eshaar_schemas::registry::http::router(registry.clone(), Access::ReadOnly);
        router = router.nest_service("/registry", registry);
    }
    Ok(router)
}

/// The API; and the console, where the data directory holds the demo business's key and the secret of its links.
async fn api(engines: &Engines, cancelled: &Arc<Cancelled>, config: &Config) -> anyhow::Result<Router> {
    let mut api = eshaar_ingest::router(of_ingest(engines, cancelled, config), config.ingest.clone());
    if let Some(cors) = eshaar_service::cors::layer(&config.http.cors_origins)? {
        api = api.layer(cors);
    }
    if !first_start::has_demo(&config.data_dir) {
        return Ok(api);
    }
    let console = eshaar_ingest::console::router(eshaar_ingest::console::Deps {
        api: api.clone(),
        api_key: first_start::demo_key(&config.data_dir)?,
        operator_key: first_start::operator_key(&config.data_dir)?,
        issuer: Arc::new(Issuer::new(&config.auth).await?),
        secret: console::secret(config)?,
        clock: engines.clock.clone(),
    });
    Ok(api.merge(console))
}

/// Dependencies of the API.
pub fn of_ingest(engines: &Engines, cancelled: &Arc<Cancelled>, config: &Config) -> eshaar_ingest::Deps {
    eshaar_ingest::Deps {
        log: engines.log.clone(),
        codecs: engines.codecs.clone(),
        store: engines.store.clone(),
        auth: engines.auth.clone(),
        signing: engines.signing.clone(),
        private_webhooks: config.webhooks.allow_private,
        cancelled: Arc::clone(cancelled),
        limits: Arc::clone(&engines.limiter),
        depths: Arc::clone(&engines.depths),
        cache: Arc::clone(&engines.cache),
        clock: engines.clock.clone(),
    }
}

/// Without the log nobody can work. Without the store the API still accepts; but nobody can be let in to a stream, and no
/// stage can settle. Presence and the registry are missed, and no more. A stage that is stuck makes a process of stages
/// alone one to be begun anew; one that does other work too is degraded, and does that.
fn health(
    (engines, cancelled): (&Engines, &Arc<Cancelled>),
    role: Role,
    watchdog: Watchdog,
    clocks: Arc<ClockWatch>,
    draining: CancellationToken,
) -> Health {
    let log = Arc::clone(&engines.log);
    let store = Arc::clone(&engines.store.engine);
    let presence = Arc::clone(&engines.presence);
    let registry = Arc::clone(&engines.registry_check);
    let dependency = |name, vital, check: Box<dyn Check>| Dependency { name, vital, check };
    let mut dependencies = vec![
        dependency(
            "log",
            true,
            check(move || {
                let log = Arc::clone(&log);
                async move { log.ping().await }
            }),
        ),
        dependency(
            "store",
            role != Role::Ingest,
            check(move || {
                let store = Arc::clone(&store);
                async move { store.ping().await }
            }),
        ),
        dependency(
            "presence",
            false,
            check(move || {
                let presence = Arc::clone(&presence);
                async move { presence.ping().await }
            }),
        ),
        dependency(
            "registry",
            false,
            check(move || {
                let registry = Arc::clone(&registry);
                async move { registry.check().await }
            }),
        ),
    ];
    let clock = check(move || {
        let clocks = Arc::clone(&clocks);
        async move { clocks.check().await }
    });
    dependencies.push(dependency("clock", false, clock));
    let cancelled = Arc::clone(cancelled);
    dependencies.push(dependency("cancellations", false, check(move || std::future::ready(known(&cancelled)))));
    if role.processes() {
        let unread = watchdog.clone();
        let unread = check(move || std::future::ready(unread.check_unread()));
        dependencies.push(dependency("unread", false, unread));
        let progress = check(move || std::future::ready(watchdog.check()));
        dependencies.push(dependency("stages", role == Role::Processors, progress));
    }
    Health::new(dependencies, draining).with_breakers(engines.breakers.clone())
}

/// Fails while this process may not know the newest cancellations, and so sends no messages.
fn known(cancelled: &Cancelled) -> Result<(), String> {
    if cancelled.is_fresh() {
        return Ok(());
    }
    Err(format!("the newest cancellations are not known: {} ms old; no messages are sent", cancelled.age_ms()))
}
