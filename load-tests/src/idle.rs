//! What an idle connection costs: the server's resident memory before anybody is connected, with everybody connected, and
//! after each of them received messages.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::clock::RunClock;
use crate::drive::Target;
use crate::procfs::{Machine, descriptor_limit, resident_bytes};
use crate::recipient::Recipient;
use crate::run::{Access, Attendance, Run, plans};
use crate::scenario::Scenario;
use crate::sender::Sender;

/// How often totals are looked at.
const TICK: Duration = Duration::from_millis(50);

/// Longest wait for everybody to connect, or for all messages to arrive.
const PATIENCE: Duration = Duration::from_mins(2);

/// Connections of the warm-up.
const WARM_UP_CONNECTIONS: u32 = 100;

/// What is opened.
#[derive(Args, Debug)]
pub struct Options {
    /// Connections.
    #[arg(long, default_value_t = 15_000)]
    connections: u32,
    /// New connections a second.
    #[arg(long, default_value_t = 1_500)]
    per_second: u32,
    /// Messages to each, between the two measurements.
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
    resident_fresh: u64,
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
    let pid = target.pid()?.context("the memory of a server is measured where it was started with --spawn")?;
    let connections = u64::from(options.connections);
    if let Some(limit) = descriptor_limit() {
        ensure!(connections + 200 <= limit, "{connections} connections need more than the {limit} open files allowed");
    }
    let resident = || resident_bytes(pid).context("the server has ended");
    let scenario = scenario(options)?;
    let run = Arc::new(Run::new(scenario, target.access.clone(), RunClock::start(), seed)?);
    warm_up(&run, options).await?;
    let resident_before = resident()?;

    let begin = Instant::now();
    let progress = ProgressBar::new(connections);
    for index in 0..options.connections {
        tokio::time::sleep_until(begin + Duration::from_secs(1) / options.per_second.max(1) * index).await;
        tokio::spawn(Recipient::new(Arc::clone(&run), index, Attendance::Steady).attend());
        progress.set_position(run.totals.ready.get());
    }
    until(|| run.totals.ready.get() >= connections).await.context("not everybody could connect")?;
    let connecting_s = begin.elapsed().as_secs_f64();
    progress.finish_and_clear();
    sleep(Duration::from_secs(options.settle_s)).await;
    let resident_fresh = resident()?;

    for plan in plans(&run.scenario, run.clock.now_us()) {
        tokio::spawn(Sender::new(plan, Arc::clone(&run))?.work());
    }
    until(|| run.totals.received.get() >= run.scenario.messages).await.context("not everything arrived")?;
    sleep(Duration::from_secs(options.settle_s)).await;
    let resident_after_traffic = resident()?;
    run.stop.cancel();

    let each = |resident: u64| resident.saturating_sub(resident_before) / connections.max(1);
    Ok(Report {
        machine: Machine::here(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        connections,
        connecting_s,
        resident_before,
        resident_fresh,
        resident_after_traffic,
        bytes_fresh: each(resident_fresh),
        bytes_after_traffic: each(resident_after_traffic),
        max_bytes: options.max_bytes,
    })
}

/// Sends as much as will be measured, to a few others: caches and buffers that fill once are no price of a connection.
async fn warm_up(run: &Arc<Run>, options: &Options) -> anyhow::Result<()> {
    let scenario =
        scenario(&Options { connections: WARM_UP_CONNECTIONS, messages: warm_up_messages(options), ..*options })?;
    let access = Access { endpoint: run.endpoint.clone(), api_key: run.api_key.clone(), minter: run.minter.clone() };
    let others = Arc::new(Run::new(scenario, access, RunClock::start(), rand::random())?);
    for index in 0..WARM_UP_CONNECTIONS {
        tokio::spawn(Recipient::new(Arc::clone(&others), index, Attendance::Steady).attend());
    }
    until(|| others.totals.ready.get() >= u64::from(WARM_UP_CONNECTIONS)).await.context("warming up")?;
    for plan in plans(&others.scenario, others.clock.now_us()) {
        tokio::spawn(Sender::new(plan, Arc::clone(&others))?.work());
    }
    until(|| others.totals.received.get() >= others.scenario.messages).await.context("warming up")?;
    others.stop.cancel();
    sleep(Duration::from_secs(options.settle_s)).await;
    Ok(())
}

fn warm_up_messages(options: &Options) -> u32 {
    (options.messages * options.connections).div_ceil(WARM_UP_CONNECTIONS).max(1)
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

/// Waits until `done`, at most [`PATIENCE`].
async fn until(done: impl Fn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        ensure!(Instant::now() < deadline, "not done after {} s", PATIENCE.as_secs());
        sleep(TICK).await;
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(f, "\nidle connections\n{}\n{}\n", self.machine, self.command)?;
        writeln!(f, "{} connections in {:.1} s", self.connections, self.connecting_s)?;
        writeln!(f, "server memory        {:>9} {:>14}", "MiB", "B a connection")?;
        writeln!(f, "before               {:>9.1}", mib(self.resident_before))?;
        writeln!(f, "connected            {:>9.1} {:>14}", mib(self.resident_fresh), self.bytes_fresh)?;
        writeln!(f, "after traffic        {:>9.1} {:>14}", mib(self.resident_after_traffic), self.bytes_after_traffic)?;
        if !self.passed() {
            writeln!(f, "FAILED: at most {} bytes a connection are allowed", self.max_bytes)?;
        }
        writeln!(f, "{}", if self.passed() { "passed" } else { "failed" })
    }
}
