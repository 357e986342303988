//! What a history store costs us: CPU a message, and how long calls take. The embedded store's threads are counted alone;
//! for a store on CQL it is the whole process, as the driver runs in ours.
//!
//! It does what the stages do for each message: its stream row (route), itself and its steps (archive), the
//! acknowledgement (gateway); several tasks at once, in batches. Then it reads the streams back.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use eshaar_model::{
    BusinessId, Clock, Cursor, Epoch, Lane, MessageId, MessageType, Phone, Status, StreamPosition, Timestamp,
};
use eshaar_store::{MessageRow, SentQuery, Step, Store, StreamRow};
use eshaar_store::{scylla, sqlite};

/// The size of the measurement.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Messages.
    #[arg(long, default_value_t = 200_000)]
    messages: u64,
    /// Messages of a batch.
    #[arg(long, default_value_t = 100)]
    batch: u64,
    /// Phones that they go to, in turn.
    #[arg(long, default_value_t = 2_000)]
    phones: u64,
    /// Batches at once: the partitions that have work.
    #[arg(long, default_value_t = 4)]
    at_once: u64,
    /// Bytes of a message's value.
    #[arg(long, default_value_t = 300)]
    bytes: usize,
    /// Where to put the database; a folder of its own by default.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Measure the store on this node of a cluster (host:port) instead, in a keyspace `eshaar_bench`.
    #[arg(long)]
    cql: Option<String>,
    /// The user for the cluster; the password is that of `password_file`.
    #[arg(long, default_value = "", requires = "cql")]
    username: String,
    /// A file with the password for the cluster.
    #[arg(long, requires = "cql")]
    password_file: Option<PathBuf>,
}

/// Runs the measurement, and describes what came of it.
pub async fn run(options: Options) -> anyhow::Result<String> {
    let mut report = String::new();
    if let Some(node) = &options.cql {
        let store = open_cluster(&options, node).await?;
        write_all(&store, &options, &mut report).await?;
        read_all(&store, &options, &mut report).await?;
        store.engine.close().await?;
        return Ok(report);
    }
    let temporary = tempfile::tempdir()?;
    let folder = options.folder.clone().unwrap_or_else(|| temporary.path().to_owned());
    let path = folder.join("store-bench.db");
    ensure!(!path.exists(), "{} is there already: give another folder", path.display());
    let store = sqlite::open(sqlite::Options::at(&path), Clock::system())?;
    write_all(&store, &options, &mut report).await?;
    read_all(&store, &options, &mut report).await?;
    store.engine.close().await?;
    let megabytes = std::fs::metadata(&path)?.len() / 1_000_000;
    writeln!(report, "{megabytes} MB of database, {} B a message", megabytes * 1_000_000 / options.messages)?;
    Ok(report)
}

/// A store in a keyspace with nothing in it.
async fn open_cluster(options: &Options, node: &str) -> anyhow::Result<Store> {
    let replication = scylla::Replication { strategy: scylla::Strategy::Simple, factor: 1 };
    let cluster = scylla::Options {
        nodes: vec![node.to_owned()],
        keyspace: "eshaar_bench".to_owned(),
        replication,
        username: options.username.clone(),
        password_file: options.password_file.clone(),
        ..scylla::Options::default()
    };
    let made = scylla::apply(&cluster).await?;
    ensure!(made.made_keyspace, "the keyspace eshaar_bench is there already: drop it first");
    Ok(scylla::open(cluster, Clock::system()).await?)
}

async fn write_all(store: &Store, options: &Options, report: &mut String) -> anyhow::Result<()> {
    let before = cpu(options)?;
    let started = Instant::now();
    let options = Arc::new(options.clone());
    let mut tasks = tokio::task::JoinSet::new();
    for partition in 0..options.at_once {
        let (store, options) = (store.clone(), Arc::clone(&options));
        tasks.spawn(async move {
            let mut times = Vec::new();
            for first in (0..options.messages).step_by(options.batch as usize) {
                if first / options.batch % options.at_once == partition {
                    let started = Instant::now();
                    write_batch(&store, &options, partition as u32, first).await?;
                    times.push(started.elapsed());
                }
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(task) = tasks.join_next().await {
        times.extend(task??);
    }
    let elapsed = started.elapsed();
    store.engine.sync().await?;
    let used = cpu(&options)?.saturating_sub(before);
    let rate = options.messages as f64 / elapsed.as_secs_f64();
    writeln!(report, "{rate:.0} messages/s written (stream row, message, delivered, ack)")?;
    writeln!(report, "{:.1} us of our CPU a message", micros(used) / options.messages as f64)?;
    writeln!(report, "a batch of {}: {}", options.batch, percentiles(&mut times))?;
    Ok(())
}

/// A batch as three stages write it: the stream rows, the messages, then what came of them.
async fn write_batch(store: &Store, options: &Options, partition: u32, first: u64) -> anyhow::Result<()> {
    let now = Clock::system().now();
    let numbers = first..(first + options.batch).min(options.messages);
    let rows: Vec<_> = numbers.map(|number| stream_row(options, number, now)).collect();
    let messages = rows.iter().map(message_row).collect();
    let steps = rows.iter().map(|row| Step { id: row.id, status: Status::Delivered, at: now, reason: None }).collect();
    let acks = rows.iter().map(|row| (row.phone, cursor_at(row.position))).collect();
    let (appended, put) = tokio::join!(store.streams.append(partition, rows), store.messages.put(messages));
    appended.and(put)?;
    let (reached, acked) = tokio::join!(store.messages.reach(steps), store.streams.ack(acks));
    Ok(reached.and(acked)?)
}

fn phone(number: u64) -> Phone {
    Phone::from_digits(966_500_000_000 + number).unwrap_or_else(|| unreachable!("the series has 12 digits"))
}

fn stream_row(options: &Options, number: u64, now: Timestamp) -> StreamRow {
    // A step that has no factor in common with the phones: all get their turn, neighbours are far apart.
    let phone = phone(number * 7_919 % options.phones);
    let position = StreamPosition { epoch: Epoch(1), lane: Lane::Normal, offset: number };
    let value = Bytes::from(vec![b'x'; options.bytes]);
    StreamRow { phone, position, id: MessageId::new(now), at: now, expires_at: None, value }
}

fn message_row(row: &StreamRow) -> MessageRow {
    MessageRow {
        id: row.id,
        message_type: MessageType::OneWay,
        conversation: None,
        sender: business().into(),
        recipient: row.phone.into(),
        created_at: row.at,
        expires_at: None,
        accepted: (0, Some(row.position.offset)),
        may_repeat: false,
        value: row.value.clone(),
    }
}

fn business() -> BusinessId {
    "demo".parse().unwrap_or_else(|_| unreachable!("it is well formed"))
}

fn cursor_at(position: StreamPosition) -> Cursor {
    let mut cursor = Cursor::start(position.epoch);
    cursor.advance(position);
    cursor
}

async fn read_all(store: &Store, options: &Options, report: &mut String) -> anyhow::Result<()> {
    let before = cpu(options)?;
    let (mut pages, mut found) = (Vec::new(), 0);
    for number in 0..options.phones {
        let mut cursor = Cursor::start(Epoch(0));
        loop {
            let started = Instant::now();
            let page = store.streams.read(phone(number), cursor, 100).await?;
            pages.push(started.elapsed());
            found += page.rows.len() as u64;
            for row in &page.rows {
                cursor.advance(row.position);
            }
            if !page.more {
                break;
            }
        }
    }
    ensure!(found == options.messages, "read {found} of {} rows", options.messages);
    let used = cpu(options)?.saturating_sub(before);
    writeln!(report, "{:.1} us of our CPU a message read back", micros(used) / found as f64)?;
    writeln!(report, "a page of a stream: {}", percentiles(&mut pages))?;
    let mut lookups = Vec::new();
    let newest = StreamPosition { epoch: Epoch(1), lane: Lane::Normal, offset: options.messages };
    let of: Vec<_> = (0..100).map(|number| (phone(number), newest)).collect();
    let (mut acked, mut lists) = (Vec::new(), Vec::new());
    let mut query = SentQuery { limit: 100, ..SentQuery::default() };
    for number in 0..1_000 {
        let started = Instant::now();
        store.streams.before(&of).await?;
        lookups.push(started.elapsed());
        let started = Instant::now();
        store.streams.acked(phone(number)).await?;
        acked.push(started.elapsed());
        let started = Instant::now();
        query.before = store.messages.sent_by(&business(), query.clone(), Clock::system().now()).await?.next;
        lists.push(started.elapsed());
    }
    writeln!(report, "the offset before, of 100 phones: {}", percentiles(&mut lookups))?;
    writeln!(report, "an acked position: {}", percentiles(&mut acked))?;
    writeln!(report, "a page of 100 sent messages: {}", percentiles(&mut lists))?;
    Ok(())
}

fn percentiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).map_or(0.0, |time| micros(*time));
    format!("p50 {:.0} us, p99 {:.0} us", at(0.5), at(0.99))
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// CPU time so far of the store's threads, or of all where the store has none of its own.
fn cpu(options: &Options) -> anyhow::Result<Duration> {
    let mut used = Duration::ZERO;
    for task in std::fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        if options.cql.is_some() || std::fs::read_to_string(path.join("comm"))?.starts_with("store-") {
            let times = std::fs::read_to_string(path.join("schedstat"))?;
            let nanos = times.split_whitespace().next().context("schedstat is empty")?;
            used += Duration::from_nanos(nanos.parse()?);
        }
    }
    Ok(used)
}
