//! Drives a run: recipients first, then senders, the server's deaths meanwhile, then the accounts.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::accounts::{Inbox, Sent, Verdict};
use crate::cancels::Stalls;
use crate::clock::RunClock;
use crate::events::Events;
use crate::failed::Failed;
use crate::history;
use crate::procfs::{Machine, ensure_descriptors};
use crate::recipient::Recipient;
use crate::report::{Report, Traffic};
use crate::run::{Access, Attendance, Run, attendances, plans};
use crate::scenario::Scenario;
use crate::sender::Sender;
use crate::spawned::Spawned;
use crate::watch::{Process, Watch};
use crate::webhooks::Endpoints;

/// Longest time for the recipients to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_mins(3);

/// How often totals are looked at.
const TICK: Duration = Duration::from_millis(10);

/// Ticks between two samples of CPU and memory.
const TICKS_A_SAMPLE: u32 = 100;

/// From everybody being connected to the first message, in microseconds.
const LEAD_US: u64 = 200_000;

/// A server to test.
pub struct Target {
    /// Where it is, and what opens it.
    pub access: Access,
    /// The processes, where we started them.
    pub spawned: Option<Spawned>,
}

impl Target {
    /// The processes that run now, where we started them.
    pub fn processes(&self) -> Vec<Process> {
        self.spawned.as_ref().map_or_else(Vec::new, Spawned::processes)
    }

    /// Whether the run `passed`, once what we started has ended; then its tables and topics are dropped.
    pub async fn end(self, passed: bool) -> anyhow::Result<bool> {
        if let Some(Spawned::Cluster(cluster)) = self.spawned.filter(|_| passed) {
            cluster.clear().await.context("the run passed, and its tables and topics cannot be dropped")?;
        }
        Ok(passed)
    }

    /// What each process shows at `/metrics`, where we started them.
    async fn metrics(&mut self) -> anyhow::Result<Vec<String>> {
        match &mut self.spawned {
            Some(spawned) => spawned.metrics().await,
            None => Ok(Vec::new()),
        }
    }

    /// What the stages failed on, where we started them.
    async fn failed(&mut self) -> anyhow::Result<Option<Failed>> {
        match &mut self.spawned {
            Some(spawned) => Ok(Some(spawned.failed().await?)),
            None => Ok(None),
        }
    }
}

/// A run that goes on.
struct Drive<'a> {
    run: Arc<Run>,
    target: &'a mut Target,
    watch: Watch,
    progress: ProgressBar,
    ticks: u32,
    kills: u32,
    events: Events,
}

/// Runs `scenario` against `target`.
pub async fn drive(name: String, scenario: Scenario, target: &mut Target, seed: u64) -> anyhow::Result<Report> {
    let sockets = u64::from(scenario.recipients.count)
        + scenario.senders.iter().map(|senders| u64::from(senders.connections)).sum::<u64>();
    ensure_descriptors(sockets)?;
    let is_server = matches!(target.spawned, Some(Spawned::Server(_)));
    ensure!(scenario.chaos.kills == 0 || is_server, "`chaos.kills` are those of one server, started with --spawn");
    let is_cluster = matches!(target.spawned, Some(Spawned::Cluster(_)));
    ensure!(scenario.chaos.events.is_empty() || is_cluster, "`chaos.events` are those of a cluster: --spawn --engines");
    let run = Arc::new(Run::new(scenario, target.access.clone(), RunClock::start(), seed)?);
    let endpoints = match &run.scenario.webhooks {
        Some(options) => Some((Endpoints::start(options, &run, target).await?, options)),
        None => None,
    };
    let recipients = gather(&run, seed).await?;
    // Ends when it is dropped.
    let mut stalls = JoinSet::new();
    if run.has_cancels {
        stalls.spawn(Stalls::watch(Arc::clone(&run)));
    }
    let mut drive = Drive {
        watch: Watch::begin(&target.processes()),
        events: Events::new(&run.scenario.chaos.events),
        progress: progress(run.scenario.messages)?,
        run: Arc::clone(&run),
        target,
        ticks: 0,
        kills: 0,
    };
    let first_us = run.clock.now_us() + LEAD_US;
    run.begin(first_us);
    let since_first = || run.clock.now_us().saturating_sub(first_us) as f64 / 1e6;

    let mut sent = drive.send(first_us).await?;
    for (recipient, seq, cancelled) in run.cancels.take_cancelled() {
        sent[recipient as usize].cancel(seq, cancelled);
    }
    let sending_s = since_first();
    run.all_sent.cancel();
    drive.drain().await?;
    let total_s = since_first();
    let mut webhook = None;
    if let Some((endpoints, options)) = &endpoints {
        webhook = Some(endpoints.told(run.totals.accepted.get(), options).await);
    }
    drive.watch.sample(&drive.target.processes());
    let usage = drive.watch.usage(run.totals.accepted.get());
    let failed = drive.target.failed().await?;
    let metrics = drive.target.metrics().await?;
    sleep(Duration::from_millis(run.scenario.checks.settle_ms)).await;
    run.stop.cancel();

    let received = collect(recipients, run.scenario.recipients.count).await?;
    let grace_us = run.scenario.checks.cancel_grace_ms * 1_000 + run.cancels.stalls.frame_us();
    let history = audit(&run, &sent, grace_us, &drive.progress).await?;
    drive.progress.finish_and_clear();
    let mut report = Report {
        scenario: name,
        command: std::env::args().collect::<Vec<_>>().join(" "),
        machine: Machine::here(),
        sending_s,
        total_s,
        accepted_rate: run.totals.accepted.get() as f64 / sending_s,
        received_rate: run.totals.received.get() as f64 / total_s,
        accounts: Verdict::of(accounts(&sent, &received), grace_us),
        history,
        accept_ms: run.accept_latency.percentiles(),
        steady_ms: run.steady_latency.percentiles(),
        other_ms: run.other_latency.percentiles(),
        traffic: Traffic::from(&run.totals),
        starts_ms: milliseconds(drive.target.spawned.iter().flat_map(Spawned::starts)),
        stops_ms: milliseconds(drive.target.spawned.iter().flat_map(Spawned::stops)),
        reconnects: run.reconnects.report(&metrics),
        cancels: run.scenario.asks_of_messages().then(|| run.cancels.report()),
        failed,
        webhook,
        gave_up: run.given_up.is_cancelled(),
        usage,
        failures: Vec::new(),
    };
    report.judge(&run.scenario.checks, run.scenario.recipients.count);
    Ok(report)
}

/// Starts all recipients and waits until those who are to be connected are.
async fn gather(run: &Arc<Run>, seed: u64) -> anyhow::Result<JoinSet<(u32, Inbox)>> {
    let mut recipients = JoinSet::new();
    let mut early = 0;
    for (index, attendance) in (0..).zip(attendances(&run.scenario, seed)) {
        early += u64::from(attendance != Attendance::AtTheEnd);
        recipients.spawn(Recipient::new(Arc::clone(run), index, attendance).attend());
    }
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    while run.totals.ready.get() < early {
        ensure!(
            Instant::now() < deadline,
            "only {} of {early} recipients have a session after {} s; {} attempts failed",
            run.totals.ready.get(),
            CONNECT_TIMEOUT.as_secs(),
            run.totals.sessions_failed.get()
        );
        sleep(TICK).await;
    }
    Ok(recipients)
}

impl Drive<'_> {
    /// Lets the senders work, kills the server meanwhile, and gives back what was sent, by recipient.
    async fn send(&mut self, first_us: u64) -> anyhow::Result<Vec<Sent>> {
        let mut senders = JoinSet::new();
        for plan in plans(&self.run.scenario, first_us) {
            senders.spawn(Sender::new(plan, Arc::clone(&self.run))?.work());
        }
        let mut sent = vec![Sent::default(); self.run.scenario.recipients.count as usize];
        loop {
            tokio::select! {
                books = senders.join_next() => match books {
                    Some(books) => books.context("a sender failed")?.into_iter()
                        .for_each(|(recipient, book)| sent[recipient as usize] = book),
                    None => break,
                },
                () = sleep(TICK) => self.tick().await?,
            }
        }
        // The last death comes right after the last message was accepted: it must not matter.
        while self.kills < self.run.scenario.chaos.kills {
            self.kill().await?;
        }
        while !self.events.over() || !self.run.cancels.are_over()? {
            sleep(TICK).await;
            self.tick().await?;
        }
        Ok(sent)
    }

    /// Waits until everything has arrived, or nothing arrives any more. What was never answered may arrive too: it must not
    /// make up for something accepted that is still on its way.
    async fn drain(&mut self) -> anyhow::Result<()> {
        let patience = Duration::from_millis(self.run.scenario.checks.drain_timeout_ms);
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let received = self.run.totals.received.get();
            let all = self.run.totals.accepted.get() + self.run.totals.abandoned.get() - self.run.cancels.withheld();
            // Where it is checked when everybody is back, that is waited for too.
            let waits = self.run.scenario.checks.caught_up_ms > 0 && self.run.reconnects.away() > 0;
            if received >= all && !waits {
                return Ok(());
            }
            if received > last {
                (last, since) = (received, Instant::now());
            }
            if since.elapsed() > patience {
                return Ok(());
            }
            sleep(TICK).await;
            self.tick().await?;
        }
    }

    async fn tick(&mut self) -> anyhow::Result<()> {
        let totals = &self.run.totals;
        let (accepted, received) = (totals.accepted.get(), totals.received.get());
        self.progress.set_position(received);
        if self.ticks.is_multiple_of(TICKS_A_SAMPLE) {
            self.watch.sample(&self.target.processes());
            self.progress.set_message(format!("{accepted} accepted, {} deaths", self.kills));
        }
        self.ticks = self.ticks.wrapping_add(1);
        if let Some(Spawned::Cluster(cluster)) = &self.target.spawned {
            self.events.begin_due(accepted as f64 / self.run.scenario.messages as f64, cluster)?;
        }
        // Spread over the run; the last one comes when all are sent.
        let kills = self.run.scenario.chaos.kills;
        let due = self.run.scenario.messages * u64::from(self.kills + 1) / u64::from(kills.max(1));
        if self.kills + 1 < kills && accepted >= due {
            self.kill().await?;
        }
        Ok(())
    }

    async fn kill(&mut self) -> anyhow::Result<()> {
        self.watch.sample(&self.target.processes());
        let Some(Spawned::Server(server)) = &mut self.target.spawned else { bail!("there is no server to be killed") };
        server.kill_and_restart(Duration::from_millis(self.run.scenario.chaos.down_ms)).await?;
        self.kills += 1;
        Ok(())
    }
}

/// Waits for all recipients; what they received, in their order.
async fn collect(mut recipients: JoinSet<(u32, Inbox)>, count: u32) -> anyhow::Result<Vec<Inbox>> {
    let mut received = vec![Inbox::default(); count as usize];
    while let Some(recipient) = recipients.join_next().await {
        let (index, inbox) = recipient.context("a recipient failed")?;
        received[index as usize] = inbox;
    }
    Ok(received)
}

/// Reads the history of a sample of the recipients, spread evenly, and compares it with what was sent.
async fn audit(
    run: &Arc<Run>,
    sent: &[Sent],
    grace_us: u64,
    progress: &ProgressBar,
) -> anyhow::Result<Option<(u32, Verdict)>> {
    let count = sent.len();
    let wanted = (count as f64 * run.scenario.checks.history_sample).ceil() as usize;
    if wanted == 0 {
        return Ok(None);
    }
    let mut replays = JoinSet::new();
    for place in 0..wanted {
        let recipient = place * count / wanted;
        let run = Arc::clone(run);
        replays.spawn(async move { (recipient, history::replay(run, recipient as u32).await) });
    }
    let mut verdict = Verdict::default();
    while let Some(replay) = replays.join_next().await {
        let (recipient, inbox) = replay.context("an audit failed")?;
        verdict.add(recipient as u32, &sent[recipient], &inbox?, grace_us);
        progress.set_message(format!("auditing history, {} to go", replays.len()));
    }
    Ok(Some((wanted as u32, verdict)))
}

fn accounts<'a>(sent: &'a [Sent], received: &'a [Inbox]) -> impl Iterator<Item = (u32, &'a Sent, &'a Inbox)> {
    (0..).zip(sent).zip(received).map(|((recipient, sent), inbox)| (recipient, sent, inbox))
}

fn milliseconds(times: impl IntoIterator<Item = Duration>) -> Vec<f64> {
    times.into_iter().map(|time| time.as_secs_f64() * 1e3).collect()
}

fn progress(messages: u64) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{elapsed:>4} {bar:30} {pos}/{len} received, {per_sec} · {msg}")?;
    Ok(ProgressBar::new(messages).with_style(style))
}
