//! How fast a phone gets a long backlog, while others are served.
//!
//! All messages to one phone are accepted before it connects. It acknowledges each burst, as an app does, until it has
//! everything. Meanwhile other phones are connected and get messages by a timetable.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::accounts::Verdict;
use crate::clock::{RunClock, until};
use crate::drive::Target;
use crate::measure::Percentiles;
use crate::procfs::Machine;
use crate::reads;
use crate::recipient::Recipient;
use crate::report::{write_percentiles, write_percentiles_head};
use crate::run::{Attendance, Run, plans};
use crate::scenario::Scenario;
use crate::sender::Sender;
use crate::watch::{Usage, Watch};

/// Longest wait for everything to be accepted, or to arrive.
const PATIENCE: Duration = Duration::from_mins(3);

/// Time of the others alone, before the phone comes and after it has everything.
const ALONE: Duration = Duration::from_secs(5);

/// Least time for which unknown messages are reported.
const LEAST_HOSTILE: Duration = Duration::from_secs(15);

/// A backlog, and the load beside it.
#[derive(Args, Debug)]
pub struct Options {
    /// Messages that wait for the phone.
    #[arg(long, default_value_t = 50_000)]
    messages: u64,
    /// Other phones, connected all the time.
    #[arg(long, default_value_t = 200)]
    others: u32,
    /// Messages a second to all others together.
    #[arg(long, default_value_t = 100)]
    others_rate: u64,
    /// Seconds between the last message accepted and the phone's connection: its stream is written meanwhile.
    #[arg(long, default_value_t = 20)]
    settle_s: u64,
    /// After it has everything, the phone reads its stream from the start and reports each message as read.
    #[arg(long)]
    read: bool,
    /// Frames a second of one more phone, each of which reports 256 unknown messages as read; 0: none. Sent for 15 s at least.
    #[arg(long, default_value_t = 0)]
    unknown_reads: u64,
    /// Messages a second that the phone must get; 0: none.
    #[arg(long, default_value_t = 10_000)]
    min_rate: u64,
    /// End-to-end latency of the others that 99 % must not exceed, in milliseconds; 0: none.
    #[arg(long, default_value_t = 500)]
    others_p99_ms: u64,
}

/// The figures, and the books of the phone.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Machine,
    command: String,
    messages: u64,
    /// From the phone's connection attempt to its last message.
    seconds: f64,
    rate: f64,
    /// Seconds that it took to report everything as read, where that was asked for.
    reading_s: Option<f64>,
    /// Frames with unknown messages that were sent.
    unknown_reads: u64,
    accounts: Verdict,
    others_ms: Percentiles,
    usage: Usage,
    /// Reasons why the run failed; empty where it did not.
    failures: Vec<String>,
}

impl Report {
    /// True where every limit was kept.
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Sends, waits, connects the phone, and measures.
pub async fn run(options: &Options, target: &Target, seed: u64) -> anyhow::Result<Report> {
    ensure!(options.messages > 0 && options.others > 0, "`--messages` and `--others` must be at least 1");
    let waiting = Arc::new(Run::new(backlog(options)?, target.access.clone(), RunClock::start(), seed)?);
    let others = Arc::new(Run::new(beside(options)?, target.access.clone(), RunClock::start(), !seed)?);

    let mut senders = tokio::task::JoinSet::new();
    for plan in plans(&waiting.scenario, waiting.clock.now_us()) {
        senders.spawn(Sender::new(plan, Arc::clone(&waiting))?.work());
    }
    let mut sent = Vec::new();
    while let Some(books) = senders.join_next().await {
        sent.extend(books.context("a sender failed")?);
    }
    let [(_, sent)] = &sent[..] else { anyhow::bail!("the backlog has more than one recipient") };
    for index in 0..options.others {
        tokio::spawn(Recipient::new(Arc::clone(&others), index, Attendance::Steady).attend());
    }
    until(PATIENCE, || others.totals.ready.get() >= u64::from(options.others))
        .await
        .context("the others did not connect")?;
    sleep(Duration::from_secs(options.settle_s)).await;

    let first_us = others.clock.now_us();
    others.begin(first_us);
    for plan in plans(&others.scenario, first_us) {
        tokio::spawn(Sender::new(plan, Arc::clone(&others))?.work());
    }
    sleep(ALONE).await;
    let mut watch = Watch::begin(&target.processes());
    let begin = Instant::now();
    let hostile = (options.unknown_reads > 0).then(|| {
        let others = Arc::clone(&others);
        tokio::spawn(reads::unknown(others, options.others.max(8), options.unknown_reads))
    });
    let phone = tokio::spawn(Recipient::new(Arc::clone(&waiting), 0, Attendance::Steady).attend());
    until(PATIENCE, || waiting.totals.received.get() >= options.messages).await.context("not everything arrived")?;
    let seconds = begin.elapsed().as_secs_f64();
    watch.sample(&target.processes());
    let mut reading_s = None;
    if options.read {
        let begin = Instant::now();
        let reading = reads::everything(&waiting, 0, options.messages);
        timeout(PATIENCE, reading).await.context("the phone did not get its stream again")??;
        reading_s = Some(begin.elapsed().as_secs_f64());
    }
    if hostile.is_some() {
        sleep_until(begin + LEAST_HOSTILE).await;
    }
    sleep(ALONE).await;
    waiting.stop.cancel();
    others.stop.cancel();
    let (_, received) = phone.await.context("the phone failed")?;
    let unknown_reads = match hostile {
        Some(hostile) => hostile.await.context("the phone that reports unknown messages failed")??,
        None => 0,
    };

    let mut report = Report {
        machine: Machine::here(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        messages: options.messages,
        seconds,
        rate: options.messages as f64 / seconds,
        reading_s,
        unknown_reads,
        accounts: Verdict::of([(0, sent, &received)], 0),
        others_ms: others.steady_latency.percentiles(),
        usage: watch.usage(options.messages),
        failures: Vec::new(),
    };
    report.judge(options);
    Ok(report)
}

impl Report {
    fn judge(&mut self, options: &Options) {
        let accounts = &self.accounts;
        let faults = accounts.lost + accounts.duplicated + accounts.out_of_order;
        let mut forbid = |found: bool, why: String| {
            if found {
                self.failures.push(why);
            }
        };
        forbid(faults > 0, format!("{faults} messages were lost, doubled or out of order"));
        forbid(self.rate < options.min_rate as f64, format!("at least {} messages/s are wanted", options.min_rate));
        let limit = options.others_p99_ms;
        forbid(limit > 0 && self.others_ms.p99 > limit as f64, format!("p99 of the others must be at most {limit} ms"));
    }
}

/// All to one phone, in bulk, as fast as they are accepted.
fn backlog(options: &Options) -> anyhow::Result<Scenario> {
    Scenario::parse(&format!(
        "messages = {}\nrate = 0\n[[senders]]\nmode = \"bulk\"\nconnections = 1\nbatch = 500\n\
         [recipients]\ncount = 1\nsteady = 1.0\n",
        options.messages
    ))
}

/// Single messages to the others, for longer than the phone may take.
fn beside(options: &Options) -> anyhow::Result<Scenario> {
    let seconds = (PATIENCE + 2 * ALONE).as_secs();
    Scenario::parse(&format!(
        "messages = {}\nrate = {}\n[[senders]]\nmode = \"single\"\nconnections = 8\n\
         [recipients]\ncount = {}\nsteady = 1.0\n",
        (options.others_rate * seconds).max(1),
        options.others_rate.max(1),
        options.others.max(8)
    ))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\na backlog of one phone\n{}\n{}\n", self.machine, self.command)?;
        writeln!(f, "{} messages in {:.2} s: {:.0} a second", self.messages, self.seconds, self.rate)?;
        if let Some(reading_s) = self.reading_s {
            writeln!(f, "all of them reported as read in {reading_s:.2} s")?;
        }
        if self.unknown_reads > 0 {
            writeln!(f, "{} frames with 256 unknown messages each", self.unknown_reads)?;
        }
        let Verdict { lost, duplicated, out_of_order, .. } = &self.accounts;
        writeln!(f, "lost {lost}, duplicated {duplicated}, out of order {out_of_order}")?;
        write_percentiles_head(f, "ms")?;
        write_percentiles(f, "the others", &self.others_ms)?;
        self.usage.fmt(f)?;
        for failure in &self.failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        writeln!(f, "{}", if self.passed() { "passed" } else { "failed" })
    }
}
