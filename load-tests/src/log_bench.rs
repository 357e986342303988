//! What the embedded log does by itself: records appended and read a second, the CPU they cost, and how long an append
//! takes to be acknowledged when there is little to do.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use eshaar_model::{Clock, Timestamp};
use eshaar_topics::embedded::{self, EmbeddedLog};
use eshaar_topics::{Headers, Log, NewRecord, Topic};
use hdrhistogram::Histogram;

/// The size of the measurement.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Records to append to each topic in large batches, then to read.
    #[arg(long, default_value_t = 1_000_000)]
    records: u64,
    /// Records of a large batch.
    #[arg(long, default_value_t = 500)]
    batch: u64,
    /// Bytes of a record's value.
    #[arg(long, default_value_t = 300)]
    bytes: usize,
    /// Appenders at once, each waiting for its own acknowledgements.
    #[arg(long, default_value_t = 8)]
    appenders: u64,
    /// Appends of one record for the latency under light load.
    #[arg(long, default_value_t = 500)]
    light_appends: u32,
    /// Milliseconds from one of those to the next.
    #[arg(long, default_value_t = 10)]
    light_every_ms: u64,
    /// Where to put the log; a folder of its own by default.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// The topics that are measured, and what their acknowledgement means.
const TOPICS: [(Topic, &str); 3] =
    [(Topic::MessagesAccepted, "synced"), (Topic::LaneNormal, "written"), (Topic::Deliveries, "memory")];

/// Runs the measurement, and describes what came of it.
pub async fn run(options: Options) -> anyhow::Result<String> {
    ensure!(options.batch > 0 && options.appenders > 0, "a batch and an appender at least");
    let temporary = tempfile::tempdir()?;
    let folder = options.folder.clone().unwrap_or_else(|| temporary.path().join("log"));
    ensure!(!folder.join("log.db").exists(), "{} holds a log already: give another folder", folder.display());
    let log = open(&folder).await?;
    let mut report = String::new();
    writeln!(report, "{:<44} {:>12} {:>12} {:>10} {:>10}", "", "records/s", "us CPU each", "p50 ms", "p99 ms")?;
    for (topic, durability) in TOPICS {
        light(&log, &options, topic, durability, &mut report).await?;
    }
    for (topic, durability) in TOPICS {
        for (batch, records) in
            [(1, options.records / 50), (10, options.records / 10), (options.batch, options.records)]
        {
            let what = format!("{durability}: {} appenders, batches of {batch}", options.appenders);
            append(&log, &options, topic, (batch, records), &what, &mut report).await?;
        }
    }
    read(&log, Topic::LaneNormal, "read, just written", &mut report).await?;
    log.close().await;
    drop(log);
    let log = open(&folder).await?;
    read(&log, Topic::LaneNormal, "read from the file", &mut report).await?;
    log.close().await;
    let bytes = std::fs::metadata(folder.join("log.db"))?.len();
    writeln!(report, "{} MB of log", bytes / 1_000_000)?;
    Ok(report)
}

async fn open(folder: &std::path::Path) -> anyhow::Result<EmbeddedLog> {
    let options = embedded::Options::in_dir(folder);
    Ok(tokio::task::spawn_blocking(move || EmbeddedLog::open(options, Clock::system())).await??)
}

fn record(topic: Topic, number: u64, value: &Bytes, at: Timestamp) -> NewRecord {
    let key = Bytes::from(format!("+9665{:08}", number * 7_919 % 2_000));
    NewRecord { topic, partition: None, key, value: value.clone(), headers: Headers::none(), timestamp: at }
}

fn row(
    report: &mut String,
    what: &str,
    rate: f64,
    cpu: Duration,
    records: u64,
    times: &Histogram<u64>,
) -> std::fmt::Result {
    let micros = cpu.as_secs_f64() * 1e6 / records as f64;
    let ms = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
    writeln!(report, "{what:<44} {rate:>12.0} {micros:>12.2} {:>10.2} {:>10.2}", ms(0.5), ms(0.99))
}

/// One record at a time, with pauses: what a sender waits for when nothing else goes on.
async fn light(
    log: &EmbeddedLog,
    options: &Options,
    topic: Topic,
    durability: &str,
    report: &mut String,
) -> anyhow::Result<()> {
    let value = Bytes::from(vec![b'x'; options.bytes]);
    let mut times = Histogram::<u64>::new(3)?;
    let mut ticks = tokio::time::interval(Duration::from_millis(options.light_every_ms.max(1)));
    let (before, started) = (process_cpu()?, Instant::now());
    for number in 0..options.light_appends {
        ticks.tick().await;
        let began = Instant::now();
        log.append(vec![record(topic, u64::from(number), &value, Clock::system().now())]).await?;
        times.record(began.elapsed().as_micros() as u64)?;
    }
    let appends = u64::from(options.light_appends);
    let rate = appends as f64 / started.elapsed().as_secs_f64();
    let what = format!("{durability}: one at a time, light load");
    Ok(row(report, &what, rate, process_cpu()?.saturating_sub(before), appends, &times)?)
}

async fn append(
    log: &EmbeddedLog,
    options: &Options,
    topic: Topic,
    (batch, records): (u64, u64),
    what: &str,
    report: &mut String,
) -> anyhow::Result<()> {
    let (before, started) = (process_cpu()?, Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    let share = records / options.appenders;
    for appender in 0..options.appenders {
        let (log, value) = (log.clone(), Bytes::from(vec![b'x'; options.bytes]));
        tasks.spawn(async move {
            let mut times = Histogram::<u64>::new(3)?;
            for first in (0..share).step_by(batch as usize) {
                let at = Clock::system().now();
                let numbers = (first..(first + batch).min(share)).map(|number| number + appender * share);
                let records = numbers.map(|number| record(topic, number, &value, at)).collect();
                let began = Instant::now();
                log.append(records).await?;
                times.record(began.elapsed().as_micros() as u64)?;
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Histogram::<u64>::new(3)?;
    while let Some(task) = tasks.join_next().await {
        times.add(task??)?;
    }
    let rate = (share * options.appenders) as f64 / started.elapsed().as_secs_f64();
    Ok(row(report, what, rate, process_cpu()?.saturating_sub(before), share * options.appenders, &times)?)
}

/// Reads a topic from its beginning, all partitions at once, as stages do: up to 100 records at a time.
async fn read(log: &EmbeddedLog, topic: Topic, what: &str, report: &mut String) -> anyhow::Result<()> {
    let (before, started) = (process_cpu()?, Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for partition in 0..log.partitions(topic) {
        let log = log.clone();
        tasks.spawn(async move {
            let bounds = log.bounds(topic, partition).await?;
            let mut reader = log.read(topic, partition, bounds.start).await?;
            let mut bytes = 0;
            while reader.next_offset() < bounds.end {
                reader.ready().await?;
                bytes += reader.take(100).iter().map(|record| record.value.len()).sum::<usize>();
            }
            ensure!(bytes > 0, "nothing was read");
            Ok(bounds.end - bounds.start)
        });
    }
    let mut records = 0;
    while let Some(task) = tasks.join_next().await {
        records += task??;
    }
    let rate = records as f64 / started.elapsed().as_secs_f64();
    Ok(row(report, what, rate, process_cpu()?.saturating_sub(before), records, &Histogram::new(1)?)?)
}

/// CPU time of this process so far: what all its threads have run, in nanoseconds, from the kernel's scheduler.
fn process_cpu() -> anyhow::Result<Duration> {
    let mut total = 0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        let path = thread?.path().join("schedstat");
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let run = text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok());
        total += run.with_context(|| format!("{} has another form", path.display()))?;
    }
    Ok(Duration::from_nanos(total))
}
