//! The life of a process: opens its engines, starts its roles, serves, and stops in order. Reads from top to bottom.

pub mod clock;
mod conversations;
mod http;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use eshaar_gateway::Gateway;
use eshaar_service::{listener, metrics, shutdown, telemetry, workers};
use eshaar_topics::Cancelled;
use eshaar_topics::runner::Watchdog;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::Settings;
use crate::commands::console;
use crate::config::{self, Config};
use crate::engines::{Engines, Kind};
use crate::first_start;
use crate::invocation::{Invocation, url_flag};
use crate::output::outln;

/// A stop takes at most three of these (R6.6): sessions, then requests, then stages.
const GRACE: Duration = Duration::from_secs(8);

/// How long histograms gather samples before they are folded.
const METRICS_UPKEEP: Duration = Duration::from_secs(2);

/// The work of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// All of it.
    All,
    /// The HTTP API.
    Ingest,
    /// The stages.
    Processors,
    /// The WebSockets.
    Gateway,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::All => "serve",
            Self::Ingest => "ingest",
            Self::Processors => "processors",
            Self::Gateway => "gateway",
        }
    }

    const fn ingests(self) -> bool {
        matches!(self, Self::All | Self::Ingest)
    }

    const fn processes(self) -> bool {
        matches!(self, Self::All | Self::Processors)
    }

    const fn holds_sockets(self) -> bool {
        matches!(self, Self::All | Self::Gateway)
    }
}

/// Runs a role until the process is told to stop.
pub async fn run(settings: &Settings, flags: &[(&str, toml::Value)], role: Role) -> anyhow::Result<()> {
    let config = config::load_with(settings, flags)?;
    ensure!(
        role == Role::All || config.engines == Kind::Distributed,
        "{} alone needs engines that others can reach too: set engines = \"distributed\" (and kafka, scylla, redis, \
         registry), or run everything in one process with `eshaar serve`",
        role.name()
    );
    telemetry::install(&config.logging)?;
    let rendered = metrics::install().context("cannot set up metrics")?;
    tokio::spawn(keep_metrics_small(rendered.clone()));
    let told_to_stop = shutdown::on_signal()?;

    if config.engines == Kind::Embedded {
        first_start::prepare(&config.data_dir)?;
    }
    let listener =
        TcpListener::bind(&config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    let internal = bind_internal(&config).await?;
    let operators_at = internal.as_ref().map_or(Ok(address), TcpListener::local_addr)?;
    let engines = tokio::select! {
        opened = Engines::open(&config) => opened?,
        () = told_to_stop.cancelled() => return Ok(()),
    };
    let is_new = config.engines == Kind::Embedded
        && first_start::keys(&config.data_dir, &*engines.store.keys, engines.clock.now()).await?;

    let closed = CancellationToken::new();
    // To its end, before anything may be shown to anybody.
    let cancelled = tokio::select! {
        known = Cancelled::follow(
            Arc::clone(&engines.log),
            engines.clock.clone(),
            &config.cancellations,
            closed.clone(),
        ) => known.context("cannot read the cancellations")?,
        () = told_to_stop.cancelled() => return Ok(()),
    };
    let watchdog = Watchdog::new(Duration::from_millis(config.stages.runner.stuck_after_ms));
    let stages =
        if role.processes() { Some(start_stages(&engines, &cancelled, watchdog.clone(), &config)?) } else { None };
    let gateway = if role.holds_sockets() {
        Some(start_gateway(&engines, &cancelled, &config, address, closed.clone()).await?)
    } else {
        None
    };
    let redriver = role.ingests().then(|| {
        let (deps, options, closed) =
            (http::of_ingest(&engines, &cancelled, &config), config.ingest.clone(), closed.clone());
        tokio::spawn(workers::guarded("redriver", async move { eshaar_ingest::redriver(deps, &options, closed).await }))
    });
    let clocks =
        clock::ClockWatch::new(engines.clock.clone(), Arc::clone(&engines.presence), Arc::clone(&engines.store.engine));
    tokio::spawn(workers::guarded("clocks", Arc::clone(&clocks).run(closed.clone())));
    let signs = http::Signs { rendered, watchdog, clocks, draining: told_to_stop.clone() };
    let router = http::router(&engines, &cancelled, &config, role, gateway.as_ref(), signs).await?;
    let listeners = match internal {
        Some(internal) => vec![(listener, http::public(router.clone())), (internal, router)],
        None => vec![(listener, router)],
    };
    let http = listeners.into_iter().map(|(listener, router)| {
        let (options, closed) = (config.http.clone(), closed.clone());
        tokio::spawn(async move { listener::serve(listener, router, &options, closed, GRACE).await })
    });
    let http: Vec<_> = http.collect();
    if config.engines == Kind::Embedded {
        let link = console::link(&config, engines.clock.now())?;
        welcome(settings, &config, (address, operators_at), is_new, &link);
    }
    let version = env!("CARGO_PKG_VERSION");
    info!(role = role.name(), %address, %operators_at, data_dir = %config.data_dir.display(), version, "serving");

    told_to_stop.cancelled().await;
    if let Some(gateway) = gateway {
        gateway.drain(GRACE).await;
    }
    closed.cancel();
    for listener in http {
        listener.await.context("a listener failed")?;
    }
    if let Some(redriver) = redriver
        && tokio::time::timeout(GRACE, redriver).await.is_err()
    {
        warn!("a redrive was still at work at the end of the grace period; it is gone on with");
    }
    if let Some((stages, stop)) = stages {
        stop.cancel();
        if tokio::time::timeout(GRACE, stages).await.is_err() {
            warn!("stages were still at work at the end of the grace period; they go on from there at the next start");
        }
    }
    engines.close().await;
    info!("stopped");
    Ok(())
}

/// The listener of operators, where there is one.
async fn bind_internal(config: &Config) -> anyhow::Result<Option<TcpListener>> {
    let address = &config.internal_listen;
    if address.is_empty() {
        return Ok(None);
    }
    let listener = TcpListener::bind(address).await;
    listener.map(Some).with_context(|| format!("cannot listen on {address} (internal_listen)"))
}

/// Folds what histograms have gathered into their buckets, which otherwise only a scrape does.
async fn keep_metrics_small(rendered: PrometheusHandle) {
    let mut rounds = tokio::time::interval(METRICS_UPKEEP);
    loop {
        rounds.tick().await;
        rendered.run_upkeep();
    }
}

/// Starts the stages; the token drains them.
fn start_stages(
    engines: &Engines,
    cancelled: &Arc<Cancelled>,
    watchdog: Watchdog,
    config: &Config,
) -> anyhow::Result<(JoinHandle<()>, CancellationToken)> {
    let sender = eshaar_processors::webhooks::Sender::new(engines.signing.clone(), &config.stages.webhooks)?;
    let deps = eshaar_processors::Deps {
        log: engines.log.clone(),
        codecs: engines.codecs.clone(),
        store: engines.store.clone(),
        presence: engines.presence.clone(),
        cancelled: Arc::clone(cancelled),
        sender: Arc::new(sender),
        clock: engines.clock.clone(),
        watchdog,
        depths: Arc::clone(&engines.depths),
        cache: Arc::clone(&engines.cache),
        limits: Arc::clone(&engines.limiter),
    };
    let stop = CancellationToken::new();
    Ok((tokio::spawn(eshaar_processors::run(deps, config.stages.clone(), stop.clone())), stop))
}

async fn start_gateway(
    engines: &Engines,
    cancelled: &Arc<Cancelled>,
    config: &Config,
    address: SocketAddr,
    closed: CancellationToken,
) -> anyhow::Result<Gateway> {
    let deps = eshaar_gateway::Deps {
        log: engines.log.clone(),
        codecs: engines.codecs.clone(),
        store: engines.store.clone(),
        presence: engines.presence.clone(),
        conversations: Arc::new(conversations::Live::new(engines, cancelled, config)),
        cancelled: Arc::clone(cancelled),
        auth: engines.auth.clone(),
        clock: engines.clock.clone(),
    };
    let mut options = config.gateway.clone();
    if options.address.is_empty() {
        options.address = address.to_string();
    }
    Gateway::start(deps, options, closed).await.context("cannot start the gateway")
}

/// Prints the places to go to next: links, and commands that run as they are printed.
fn welcome(
    settings: &Settings,
    config: &Config,
    (address, operators_at): (SocketAddr, SocketAddr),
    is_new: bool,
    console_link: &str,
) {
    let data_dir = config.data_dir.display();
    let url = console::url_of(&address.to_string());
    let invocation = Invocation::current(settings);
    let of_server = |command: &'static str, words: &[&'static str]| {
        invocation.command(std::iter::once(command).chain(url_flag(&url)).chain(words.iter().copied()))
    };
    let mut text = format!("eshaar is serving on {url}\n");
    if is_new {
        let _ = writeln!(
            text,
            "  made in {data_dir}: secrets, a demo business with the API key in {data_dir}/demo-key, and\n  an operator's key \
             in {data_dir}/operator-key"
        );
    }
    let operators_url = console::url_of(&operators_at.to_string());
    let rows = [
        ("in a page", format!("{operators_url}{console_link}")),
        ("a phone", of_server("listen", &["--phone", "+966500000001"])),
        ("a message", of_server("send", &["--to", "+966500000001", "Hello"])),
        ("the API", format!("{url}/docs")),
        ("the topics", invocation.command(["topics", "tail", "messages.accepted"])),
        ("schemas", format!("{operators_url}/registry/subjects")),
        ("health", format!("{operators_url}/health/details")),
    ];
    for (name, place) in rows {
        let _ = write!(text, "\n  {name:<11} {place}");
    }
    // A server whose output nobody reads serves all the same.
    let _ = outln!("{text}\n\nCtrl-C stops it; nothing accepted is lost.");
}
