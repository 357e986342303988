//! `eshaar serve`: every role in one process, on embedded engines. Reads from top to bottom as the life of the process.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::routing::get;
use eshaar_auth::Authenticator;
use eshaar_auth::jwt::Issuer;
use eshaar_gateway::Gateway;
use eshaar_model::{Clock, Epoch, Lane};
use eshaar_presence::Presence as _;
use eshaar_presence::local::LocalPresence;
use eshaar_schemas::registry::embedded::EmbeddedRegistry;
use eshaar_schemas::registry::http::Access;
use eshaar_schemas::{Codecs, Registry};
use eshaar_service::health::Check;
use eshaar_service::{Health, listener, metrics, shutdown, telemetry};
use eshaar_store::Store;
use eshaar_topics::embedded::EmbeddedLog;
use eshaar_topics::{Log, Topic};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::{ServeArguments, Settings};
use crate::commands::console;
use crate::config::{self, Config};
use crate::first_start;

/// A stop takes at most this long in all (R6.6): sessions, then requests, then stages.
const GRACE: Duration = Duration::from_secs(8);

/// How long histograms gather samples before they are folded.
const METRICS_UPKEEP: Duration = Duration::from_secs(2);

/// The engines of a process, behind their ports.
struct Engines {
    log: Arc<EmbeddedLog>,
    store: Store,
    registry: EmbeddedRegistry,
    codecs: Codecs,
    presence: Arc<LocalPresence>,
    auth: Authenticator,
    clock: Clock,
}

/// Runs until the process is told to stop.
pub async fn run(settings: &Settings, arguments: &ServeArguments) -> anyhow::Result<()> {
    let config = config::load_with(settings, arguments.listen.as_deref())?;
    telemetry::install(&config.logging)?;
    let rendered = metrics::install().context("cannot set up metrics")?;
    tokio::spawn(keep_metrics_small(rendered.clone()));
    let told_to_stop = shutdown::on_signal()?;

    first_start::prepare(&config.data_dir)?;
    let listener =
        TcpListener::bind(&config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    let engines = open(&config).await?;
    let is_new = first_start::demo_business(&config.data_dir, &*engines.store.keys, engines.clock.now()).await?;

    let (stages, stop_stages) = start_stages(&engines, &config);
    let closed = CancellationToken::new();
    let gateway = start_gateway(&engines, &config, closed.clone()).await?;
    let router = router(&engines, &config, &gateway, rendered, told_to_stop.clone()).await?;
    let http = tokio::spawn({
        let (options, closed) = (config.http.clone(), closed.clone());
        async move { listener::serve(listener, router, &options, closed, GRACE).await }
    });
    let console_link = console::link(&config, engines.clock.now())?;
    welcome(&config, address, is_new, &console_link);
    info!(%address, data_dir = %config.data_dir.display(), "serving");

    told_to_stop.cancelled().await;
    gateway.drain(GRACE).await;
    closed.cancel();
    http.await.context("the listener failed")?;
    stop_stages.cancel();
    if tokio::time::timeout(GRACE, stages).await.is_err() {
        warn!("stages were still at work at the end of the grace period; they go on from there at the next start");
    }
    close(engines).await;
    info!("stopped");
    Ok(())
}

/// Folds what histograms have gathered into their buckets, which otherwise only a scrape does.
async fn keep_metrics_small(rendered: PrometheusHandle) {
    let mut rounds = tokio::time::interval(METRICS_UPKEEP);
    loop {
        rounds.tick().await;
        rendered.run_upkeep();
    }
}

/// Opens every engine and sees that they belong together.
async fn open(config: &Config) -> anyhow::Result<Engines> {
    let clock = Clock::system();
    let store =
        eshaar_store::sqlite::open(config.store.clone(), clock.clone()).context("cannot open the history store")?;
    let log = EmbeddedLog::open(config.log.clone(), clock.clone()).context("cannot open the log")?;
    begin_epoch_if_log_is_behind(&log, &store).await?;
    let registry =
        EmbeddedRegistry::open(&config::registry_file(&config.data_dir)).context("cannot open the schema registry")?;
    let codecs = Codecs::register(Arc::new(registry.clone()) as Arc<dyn Registry>, &subjects(&config.topic_prefix))
        .await
        .context("cannot register the schemas")?;
    let auth = Authenticator::new(config.auth.clone(), Arc::clone(&store.keys), clock.clone()).await?;
    let presence = Arc::new(LocalPresence::new(clock.clone()));
    Ok(Engines { log: Arc::new(log), store, registry, codecs, presence, auth, clock })
}

/// A log that ends below what the store has seen of it was restored, replaced or cut: its offsets mean something else
/// from here on (design §5).
async fn begin_epoch_if_log_is_behind(log: &EmbeddedLog, store: &Store) -> anyhow::Result<()> {
    let seen = store.streams.newest_epoch().await?.unwrap_or(log.epoch());
    let mut behind = seen > log.epoch();
    for lane in Lane::ALL {
        let topic = Topic::of_lane(lane);
        for partition in 0..log.partitions(topic) {
            let head = store.streams.head(log.epoch(), lane, partition).await?;
            let end = log.bounds(topic, partition).await?.end;
            behind |= head.is_some_and(|head| head >= end);
        }
    }
    if behind {
        let epoch = Epoch(seen.max(log.epoch()).0 + 1);
        warn!(epoch = epoch.0, "the log ends below what the store has seen of it: a new epoch begins");
        log.begin_epoch(epoch).await?;
    }
    Ok(())
}

/// The registry's subject of each topic, with the record that is on it (TopicNameStrategy).
fn subjects(prefix: &str) -> Vec<(String, &'static str)> {
    Topic::ALL.into_iter().map(|topic| (format!("{prefix}{topic}-value"), topic.spec().value.as_str())).collect()
}

/// Starts the stages; the token drains them.
fn start_stages(engines: &Engines, config: &Config) -> (JoinHandle<()>, CancellationToken) {
    let deps = eshaar_processors::Deps {
        log: engines.log.clone(),
        codecs: engines.codecs.clone(),
        store: engines.store.clone(),
        presence: engines.presence.clone(),
        clock: engines.clock.clone(),
    };
    let stop = CancellationToken::new();
    (tokio::spawn(eshaar_processors::run(deps, config.stages.clone(), stop.clone())), stop)
}

async fn start_gateway(engines: &Engines, config: &Config, closed: CancellationToken) -> anyhow::Result<Gateway> {
    let deps = eshaar_gateway::Deps {
        log: engines.log.clone(),
        codecs: engines.codecs.clone(),
        store: engines.store.clone(),
        presence: engines.presence.clone(),
        auth: engines.auth.clone(),
        clock: engines.clock.clone(),
    };
    Gateway::start(deps, config.gateway.clone(), closed).await.context("cannot start the gateway")
}

async fn router(
    engines: &Engines,
    config: &Config,
    gateway: &Gateway,
    rendered: PrometheusHandle,
    draining: CancellationToken,
) -> anyhow::Result<Router> {
    let deps = eshaar_ingest::Deps {
        log: engines.log.clone(),
        codecs: engines.codecs.clone(),
        store: engines.store.clone(),
        auth: engines.auth.clone(),
        clock: engines.clock.clone(),
    };
    let api = eshaar_ingest::router(deps, config.ingest.clone());
    let registry = eshaar_schemas::registry::http::router(engines.registry.clone(), Access::ReadOnly);
    let console = eshaar_ingest::console::router(eshaar_ingest::console::Deps {
        api: api.clone(),
        api_key: first_start::demo_key(&config.data_dir)?,
        issuer: Arc::new(Issuer::new(&config.auth).await?),
        secret: console::secret(config)?,
        clock: engines.clock.clone(),
    });
    Ok(api
        .merge(console)
        .merge(gateway.router())
        .nest("/registry", registry)
        .merge(health(engines, draining).router())
        .route("/metrics", get(move || async move { rendered.render() })))
}

fn health(engines: &Engines, draining: CancellationToken) -> Health {
    let log = Arc::clone(&engines.log);
    let store = Arc::clone(&engines.store.engine);
    let presence = Arc::clone(&engines.presence);
    let registry = engines.registry.clone();
    let checks: Vec<(&'static str, Box<dyn Check>)> = vec![
        (
            "log",
            check(move || {
                let log = Arc::clone(&log);
                async move { log.ping().await }
            }),
        ),
        (
            "store",
            check(move || {
                let store = Arc::clone(&store);
                async move { store.ping().await }
            }),
        ),
        (
            "presence",
            check(move || {
                let presence = Arc::clone(&presence);
                async move { presence.ping().await }
            }),
        ),
        (
            "registry",
            check(move || {
                let registry = registry.clone();
                async move { registry.subjects().await.map(drop) }
            }),
        ),
    ];
    Health::new(checks, draining)
}

/// A check by a port's own ping.
fn check<F, Fut, E>(ping: F) -> Box<dyn Check>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send + 'static,
    E: std::fmt::Display + 'static,
{
    Box::new(move || {
        let answer = ping();
        async move { answer.await.map_err(|error| error.to_string()) }
    })
}

/// Closes the engines, the log last: what it holds is what the others are made again from.
async fn close(engines: Engines) {
    if let Err(error) = engines.store.engine.close().await {
        warn!(%error, "the history store was not closed; it is made up for from the log at the next start");
    }
    engines.log.close().await;
}

/// Says where to go.
#[expect(clippy::print_stdout, reason = "the one thing a new user looks at")]
fn welcome(config: &Config, address: std::net::SocketAddr, is_new: bool, console_link: &str) {
    let data_dir = config.data_dir.display();
    println!("eshaar is serving on http://{address}");
    if is_new {
        println!("  made for you in {data_dir}: secrets, and a demo business with the API key in {data_dir}/demo-key");
    }
    println!(
        "
  in a page   http://{address}{console_link}
  a phone     eshaar listen --phone +966500000001
  a message   eshaar send --to +966500000001 'Hello'
  the API     http://{address}/docs
  the topics  eshaar topics tail messages.accepted
  schemas     http://{address}/registry/subjects
  health      http://{address}/health/details

Ctrl-C stops it; nothing accepted is lost."
    );
}
