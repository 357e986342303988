//! What an idle connection costs: the growth of the server's resident memory from a fresh start to everybody connected, and
//! what it grows further when each of them receives messages.
//!
//! Messages fill caches too, which are bounded and no price of a connection: before each recipient gets its own, as many
//! messages go to a few others, and only what comes on top of that counts. The report has all four readings.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};

use crate::clock::{RunClock, until};
use crate::drive::Target;
use crate::procfs::{Machine, ensure_descriptors, resident_bytes};
use crate::recipient::Recipient;
use crate::run::{Access, Attendance, Run, plans};
use crate::scenario::Scenario;
use crate::sender::Sender;
use crate::watch::Process;

/// Longest wait for everybody to connect, or for all messages to arrive.
const PATIENCE: Duration = Duration::from_mins(2);

/// Connections of those whose messages fill the caches.
const OTHERS: u32 = 100;

/// What is opened.
#[derive(Args, Debug)]
pub struct Options {
    /// Connections.
    #[arg(long, default_value_t = 15_000)]
    connections: u32,
    /// New connections a second.
    #[arg(long, default_value_t = 1_500)]
    per_second: u32,
    /// Messages to each.
    #[arg(long, default_value_t = 2)]
    messages: u32,
    /// Seconds of quiet before each measurement.
    #[arg(long, default_value_t = 5)]
    settle_s: u64,
    /// Bytes a connection that must not be exceeded, fresh and after traffic; 0: none.
    #[arg(long, default_value_t = 5_120)]
    max_bytes: u64,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Machine,
    command: String,
    connections: u64,
    connecting_s: f64,
    resident_before: u64,
    resident_connected: u64,
    resident_caches_filled: u64,
    resident_after_traffic: u64,
    bytes_fresh: u64,
    bytes_after_traffic: u64,
    max_bytes: u64,
}

impl Report {
    /// Whether a connection costs no more than is allowed.
    pub fn passed(&self) -> bool {
        self.max_bytes == 0 || self.bytes_fresh.max(self.bytes_after_traffic) <= self.max_bytes
    }
}

/// Opens, sends, and measures.
pub async fn run(options: &Options, target: &Target, seed: u64) -> anyhow::Result<Report> {
    let [Process { pid, .. }] = target.processes()[..] else {
        bail!("the memory of a connection is measured in one server, started with --spawn");
    };
    let connections = u64::from(options.connections);
    ensure_descriptors(connections + u64::from(OTHERS))?;
    let resident = || resident_bytes(pid).context("the server has ended");
    let scenario = scenario(options)?;
    let run = Arc::new(Run::new(scenario, target.access.clone(), RunClock::start(), seed)?);
    sleep(Duration::from_secs(options.settle_s)).await;
    let resident_before = resident()?;

    let connecting_s = connect(&run, options).await?;
    sleep(Duration::from_secs(options.settle_s)).await;
    let resident_connected = resident()?;

    fill_caches(&run, options).await.context("filling the caches")?;
    sleep(Duration::from_secs(options.settle_s)).await;
    let resident_caches_filled = resident()?;

    send(&run).await?;
    sleep(Duration::from_secs(options.settle_s)).await;
    let resident_after_traffic = resident()?;
    run.stop.cancel();

    let each = |from: u64, to: u64| to.saturating_sub(from) / connections.max(1);
    let bytes_fresh = each(resident_before, resident_connected);
    Ok(Report {
        machine: Machine::here(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        connections,
        connecting_s,
        resident_before,
        resident_connected,
        resident_caches_filled,
        resident_after_traffic,
        bytes_fresh,
        bytes_after_traffic: bytes_fresh + each(resident_caches_filled, resident_after_traffic),
        max_bytes: options.max_bytes,
    })
}

/// Connects everybody, at an even pace. How long it took, in seconds.
async fn connect(run: &Arc<Run>, options: &Options) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let progress = ProgressBar::new(u64::from(options.connections));
    for index in 0..options.connections {
        sleep_until(begin + Duration::from_secs(1) / options.per_second.max(1) * index).await;
        tokio::spawn(Recipient::new(Arc::clone(run), index, Attendance::Steady).attend());
        progress.set_position(run.totals.ready.get());
    }
    until(PATIENCE, || run.totals.ready.get() >= u64::from(options.connections))
        .await
        .context("not everybody could connect")?;
    progress.finish_and_clear();
    Ok(begin.elapsed().as_secs_f64())
}

/// Sends all messages of the run's scenario, and waits until they have arrived.
async fn send(run: &Arc<Run>) -> anyhow::Result<()> {
    for plan in plans(&run.scenario, run.clock.now_us()) {
        tokio::spawn(Sender::new(plan, Arc::clone(run))?.work());
    }
    until(PATIENCE, || run.totals.received.get() >= run.scenario.messages).await.context("not everything arrived")
}

/// Sends as many messages as will be measured to a few others, who then leave.
async fn fill_caches(run: &Arc<Run>, options: &Options) -> anyhow::Result<()> {
    let messages = (options.messages * options.connections).div_ceil(OTHERS).max(1);
    let few = Options { connections: OTHERS, messages, ..*options };
    let access = Access {
        ingest: run.ingest.clone(),
        gateways: run.gateways.clone(),
        api_key: run.api_key.clone(),
        minter: run.minter.clone(),
    };
    let others = Arc::new(Run::new(scenario(&few)?, access, RunClock::start(), rand::random())?);
    connect(&others, &few).await?;
    send(&others).await?;
    others.stop.cancel();
    Ok(())
}

/// So many messages to each of so many recipients, in small bulks.
fn scenario(options: &Options) -> anyhow::Result<Scenario> {
    Scenario::parse(&format!(
        "messages = {}\nrate = 5_000\n[[senders]]\nmode = \"bulk\"\nconnections = 4\nbatch = 50\n\
         [recipients]\ncount = {}\nsteady = 1.0\n",
        u64::from(options.connections) * u64::from(options.messages),
        options.connections
    ))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(f, "\nidle connections\n{}\n{}\n", self.machine, self.command)?;
        writeln!(f, "{} connections in {:.1} s", self.connections, self.connecting_s)?;
        writeln!(f, "server memory        {:>9} {:>14}", "MiB", "B a connection")?;
        writeln!(f, "before               {:>9.1}", mib(self.resident_before))?;
        writeln!(f, "connected            {:>9.1} {:>14}", mib(self.resident_connected), self.bytes_fresh)?;
        writeln!(f, "caches filled        {:>9.1}", mib(self.resident_caches_filled))?;
        writeln!(f, "after traffic        {:>9.1} {:>14}", mib(self.resident_after_traffic), self.bytes_after_traffic)?;
        if !self.passed() {
            writeln!(f, "FAILED: at most {} bytes a connection are allowed", self.max_bytes)?;
        }
        writeln!(f, "{}", if self.passed() { "passed" } else { "failed" })
    }
}
