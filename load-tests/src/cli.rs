//! The command line.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, value_parser};

use crate::cluster::{self, Cluster};
use crate::drive::{Target, drive};
use crate::http_client::Endpoint;
use crate::report::publish;
use crate::run::Access;
use crate::scenario::{Chaos, Scenario};
use crate::server::{self, Server};
use crate::spawned::Spawned;
use crate::token::Minter;
use crate::{backlog, idle, ingest, log_bench, store_bench, talk};

/// Load tests for eshaar: sends, receives as mobile apps do, and accounts for every message.
///
/// The exit status is 1 where a message was lost, doubled, out of order or unexpected, or a limit of the scenario was not
/// kept.
#[derive(Parser)]
#[command(name = "eshaar-load", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Threads of the load generator. One costs the least CPU; a big machine may want more.
    #[arg(long, default_value_t = 1, global = true)]
    threads: usize,
}

#[derive(Subcommand)]
enum Command {
    /// Run a scenario: rates, latencies, accounts.
    Run(RunArgs),
    /// Run a scenario and do what it says to the server, or to the cluster and its engines, in its midst (needs --spawn).
    Chaos {
        #[command(flatten)]
        run: RunArgs,
        /// How often, instead of what the scenario says.
        #[arg(long)]
        kills: Option<u32>,
    },
    /// Let businesses and phones talk, and do what the scenario says in its midst (needs --spawn).
    Talk(RunArgs),
    /// Measure the latency of an idle system: few messages, one at a time.
    Latency(LatencyArgs),
    /// Measure how fast bulk requests are taken in.
    Ingest {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        options: ingest::Options,
    },
    /// Measure the server's memory for each idle connection, fresh and after traffic.
    Idle {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        options: idle::Options,
    },
    /// Measure how fast a phone gets a long backlog, while others are served.
    Backlog {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        options: backlog::Options,
    },
    /// Measure the embedded log by itself: appends, reads, acknowledgements. Wants --threads 2.
    Log(log_bench::Options),
    /// Measure the history store by itself: the embedded one, or one on CQL.
    Store(store_bench::Options),
}

#[derive(Args)]
struct RunArgs {
    /// The scenario: a TOML file of load-tests/scenarios.
    scenario: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args)]
struct LatencyArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Messages.
    #[arg(long, default_value_t = 400)]
    messages: u64,
    /// Messages a second.
    #[arg(long, default_value_t = 20)]
    rate: u64,
}

/// Which server is tested.
#[derive(Args)]
struct TargetArgs {
    /// Start this `eshaar` binary on a free port with a data directory of its own, and kill it at the end.
    #[arg(long, value_name = "PROGRAM", conflicts_with = "url", required_unless_present = "url")]
    spawn: Option<PathBuf>,
    /// Start processes of each role instead of one server, on the real engines that `scripts/engines start DIR` has
    /// started.
    #[arg(long, value_name = "DIR", requires = "spawn", conflicts_with = "data_dir")]
    engines: Option<PathBuf>,
    /// Processes of each role.
    #[arg(long, value_name = "N", requires = "engines", default_value_t = 2, value_parser = value_parser!(u8).range(1..=8))]
    of_each: u8,
    /// Data directory of the spawned server, kept at the end. Without it: a temporary one.
    #[arg(long, value_name = "DIR", requires = "spawn")]
    data_dir: Option<PathBuf>,
    /// A setting of the spawned server; may be repeated.
    #[arg(long = "server-set", value_name = "KEY=VALUE", requires = "spawn")]
    settings: Vec<String>,
    /// Test the server at this URL (http://host:port).
    #[arg(long, requires = "api_key", requires = "jwt_secret_file")]
    url: Option<String>,
    /// API key of a business that may send.
    #[arg(long, env = "ESHAAR_LOAD_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// File with the server's HS256 secret, to mint the recipients' tokens.
    #[arg(long, value_name = "FILE")]
    jwt_secret_file: Option<PathBuf>,
    /// Write the report to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Decides the recipients' phones and who is connected when. Without it: a random one.
    #[arg(long)]
    seed: Option<u64>,
}

impl Cli {
    /// The runtime that everything runs in.
    pub fn runtime(&self) -> std::io::Result<tokio::runtime::Runtime> {
        match self.threads {
            0 | 1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
            threads => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
        }
    }

    /// Does what the command line says. `false` where something was not as it must be.
    pub async fn execute(self) -> anyhow::Result<bool> {
        match self.command {
            Command::Run(RunArgs { scenario, target }) => {
                let mut read = Scenario::read(&scenario)?;
                // A scenario with deaths runs without them here.
                read.chaos = Chaos::default();
                run(name_of(&scenario), read, target).await
            }
            Command::Chaos { run: RunArgs { scenario, target }, kills } => {
                let mut read = Scenario::read(&scenario)?;
                if read.chaos.events.is_empty() {
                    read.chaos.kills = kills.unwrap_or(read.chaos.kills.max(1));
                }
                run(name_of(&scenario), read, target).await
            }
            Command::Talk(RunArgs { scenario, target }) => {
                let read = talk::Scenario::read(&scenario)?;
                let mut server = target.open(&read.server_settings).await?;
                let report = talk::run(name_of(&scenario), read, &mut server, target.seed()).await?;
                publish(&report, target.json.as_deref())?;
                server.end(report.failures.is_empty()).await
            }
            Command::Latency(LatencyArgs { target, messages, rate }) => {
                let mut scenario = Scenario::parse(include_str!("../scenarios/latency.toml"))?;
                (scenario.messages, scenario.rate) = (messages, rate);
                run("latency".to_owned(), scenario, target).await
            }
            Command::Ingest { target, options } => {
                let server = target.open(&[]).await?;
                let report = ingest::run(&options, &server, target.seed()).await?;
                publish(&report, target.json.as_deref())?;
                server.end(report.passed()).await
            }
            Command::Idle { target, options } => {
                let server = target.open(&[]).await?;
                let report = idle::run(&options, &server, target.seed()).await?;
                publish(&report, target.json.as_deref())?;
                server.end(report.passed()).await
            }
            Command::Backlog { target, options } => {
                let server = target.open(&[]).await?;
                let report = backlog::run(&options, &server, target.seed()).await?;
                publish(&report, target.json.as_deref())?;
                server.end(report.passed()).await
            }
            Command::Log(options) => {
                std::io::stdout().write_all(log_bench::run(options).await?.as_bytes())?;
                Ok(true)
            }
            Command::Store(options) => {
                std::io::stdout().write_all(store_bench::run(options).await?.as_bytes())?;
                Ok(true)
            }
        }
    }
}

async fn run(name: String, scenario: Scenario, args: TargetArgs) -> anyhow::Result<bool> {
    let mut target = args.open(&scenario.server_settings).await?;
    let report = drive(name, scenario, &mut target, args.seed()).await?;
    publish(&report, args.json.as_deref())?;
    target.end(report.failures.is_empty()).await
}

fn name_of(scenario: &Path) -> String {
    scenario.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

impl TargetArgs {
    fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(rand::random)
    }

    async fn open(&self, scenario_settings: &[String]) -> anyhow::Result<Target> {
        if let Some(program) = &self.spawn {
            let (program, settings) =
                (program.clone(), scenario_settings.iter().chain(&self.settings).cloned().collect());
            if let Some(engines) = self.engines.clone() {
                let of_each = usize::from(self.of_each);
                let cluster = Cluster::start(cluster::Options { program, engines, of_each, settings }).await?;
                return Ok(Target { access: cluster.access()?, spawned: Some(Spawned::Cluster(Arc::new(cluster))) });
            }
            let options = server::Options { program, data_dir: self.data_dir.clone(), settings };
            let server = Server::start(options).await?;
            return Ok(Target { access: server.access()?, spawned: Some(Spawned::Server(Box::new(server))) });
        }
        let (Some(url), Some(api_key), Some(secret_file)) = (&self.url, &self.api_key, &self.jwt_secret_file) else {
            bail!("give --spawn, or --url with --api-key and --jwt-secret-file");
        };
        let secret = std::fs::read(secret_file).with_context(|| format!("reading {}", secret_file.display()))?;
        let minter = Minter::new(secret.strip_suffix(b"\n").unwrap_or(&secret))?;
        let endpoint: Endpoint = url.parse()?;
        let access =
            Access { ingest: endpoint.clone().into(), gateways: endpoint.into(), api_key: api_key.clone(), minter };
        Ok(Target { access, spawned: None })
    }
}
