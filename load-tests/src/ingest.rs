//! How fast bulk requests are taken in: lines rendered beforehand, a few connections, nobody who receives.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::drive::Target;
use crate::http_client::{Client, Post};
use crate::measure::{Counter, Latencies, Percentiles};
use crate::phones::Phones;
use crate::procfs::Machine;
use crate::reference::Reference;
use crate::report::write_percentiles;
use crate::run::Access;
use crate::sender::{BulkEnd, render};
use crate::watch::{Usage, Watch};

/// Longest wait for the answer to a request.
const PATIENCE: Duration = Duration::from_mins(1);

/// What is sent.
#[derive(Args, Debug)]
pub struct Options {
    /// Messages in all.
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// Messages a request.
    #[arg(long, default_value_t = 2_000)]
    lines: u32,
    /// Connections, with one request under way each.
    #[arg(long, default_value_t = 4)]
    connections: u32,
    /// Different recipients.
    #[arg(long, default_value_t = 2_000)]
    recipients: u32,
    /// Size of a message's text, in bytes.
    #[arg(long, default_value_t = 100)]
    content_bytes: usize,
    /// Messages a second that must be reached; 0: none.
    #[arg(long, default_value_t = 50_000)]
    min_rate: u64,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Machine,
    command: String,
    accepted: u64,
    seconds: f64,
    rate: f64,
    min_rate: u64,
    request_ms: Percentiles,
    usage: Usage,
}

impl Report {
    /// Whether the rate was reached.
    pub fn passed(&self) -> bool {
        self.rate >= self.min_rate as f64
    }
}

/// What the connections share.
struct Shared {
    /// Bodies that are sent in turn, rendered beforehand.
    bodies: Vec<Bytes>,
    requests: u64,
    taken: Counter,
    accepted: Counter,
    latency: Latencies,
}

/// Sends, and measures.
pub async fn run(options: &Options, target: &Target, seed: u64) -> anyhow::Result<Report> {
    ensure!(options.lines > 0 && options.connections > 0 && options.recipients > 0, "all counts must be at least 1");
    let shared = Arc::new(Shared {
        bodies: bodies(options, Phones::new(seed)),
        requests: options.messages.div_ceil(u64::from(options.lines)),
        taken: Counter::default(),
        accepted: Counter::default(),
        latency: Latencies::new()?,
    });
    let mut watch = Watch::begin(&target.processes());
    let begin = Instant::now();
    let mut connections = JoinSet::new();
    for number in 0..options.connections {
        connections.spawn(connection(target.access.clone(), number, Arc::clone(&shared)));
    }
    loop {
        tokio::select! {
            done = connections.join_next() => match done {
                Some(done) => done.context("a connection failed")??,
                None => break,
            },
            () = sleep(Duration::from_secs(1)) => watch.sample(&target.processes()),
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    watch.sample(&target.processes());
    let accepted = shared.accepted.get();
    Ok(Report {
        machine: Machine::here(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        accepted,
        seconds,
        rate: accepted as f64 / seconds,
        min_rate: options.min_rate,
        request_ms: shared.latency.percentiles(),
        usage: watch.usage(accepted),
    })
}

async fn connection(access: Access, number: u32, shared: Arc<Shared>) -> anyhow::Result<()> {
    let mut client = Client::new(access.ingest, number as usize, &access.api_key)?;
    loop {
        let number = shared.taken.next();
        if number >= shared.requests {
            return Ok(());
        }
        let body = shared.bodies[number as usize % shared.bodies.len()].clone();
        let post = Post { path: "/v1/messages/bulk".into(), content_type: "application/x-ndjson", key: None, body };
        let begin = Instant::now();
        let answer = loop {
            let answer = client.post(post.clone(), PATIENCE).await.context("a bulk request")?;
            match answer.retry_after {
                // Backpressure: the rate is what the server takes.
                Some(pause) if !answer.status.is_success() => sleep(pause).await,
                _ => break answer,
            }
        };
        let Some(end) = BulkEnd::read(&answer.body).filter(|_| answer.status.is_success()) else {
            bail!("a bulk request was answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        };
        ensure!(end.rejected == 0, "{} lines of a bulk request were refused", end.rejected);
        shared.accepted.add(end.accepted);
        shared.latency.record(&[begin.elapsed().as_micros() as u64]);
    }
}

/// Enough different bodies that each recipient is in one.
fn bodies(options: &Options, phones: Phones) -> Vec<Bytes> {
    let content = "x".repeat(options.content_bytes);
    let count = options.recipients.div_ceil(options.lines);
    let body = |number| {
        let mut body = String::new();
        for line in 0..options.lines {
            let recipient = (number * options.lines + line) % options.recipients;
            let reference = Reference { recipient, seq: 0, intended_us: 0 };
            render(&mut body, phones.number(recipient), &content, "normal", reference);
        }
        Bytes::from(body)
    };
    (0..count).map(body).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nbulk ingest\n{}\n{}\n", self.machine, self.command)?;
        writeln!(f, "{} messages in {:.1} s: {:.0} a second", self.accepted, self.seconds, self.rate)?;
        writeln!(
            f,
            "request, ms           {:>9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
            "count", "mean", "p50", "p95", "p99", "p99.9", "max"
        )?;
        write_percentiles(f, "", &self.request_ms)?;
        self.usage.fmt(f)?;
        if !self.passed() {
            writeln!(f, "FAILED: at least {} messages a second are wanted", self.min_rate)?;
        }
        writeln!(f, "{}", if self.passed() { "passed" } else { "failed" })
    }
}
