//! What a crash leaves: kill -9 in mid-append, and a write-ahead log that was torn.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use eshaar_model::{Clock, Timestamp};

use super::{Opened, open};
use crate::embedded::{EmbeddedLog, Options};
use crate::{Headers, Log, NewRecord, Record, Topic};

/// Where the child appends; without it the child's test does nothing.
const CHILD_DIR: &str = "ESHAAR_TEST_CRASH_DIR";
const TOPICS: [Topic; 3] = [Topic::MessagesAccepted, Topic::LaneHigh, Topic::MessageStatus];
const BATCH: u64 = 7;

/// A batch whose records can be told from all others, and completely known from its first number.
fn batch(topic: Topic, partition: u32, first: u64) -> Vec<NewRecord> {
    let record = |number: u64| NewRecord {
        topic,
        partition: Some(partition),
        key: "key".into(),
        value: number.to_le_bytes().repeat(1 + number as usize % 60).into(),
        headers: Headers::none(),
        timestamp: Timestamp::from_millis(1_700_000_000_000),
    };
    (first..first + BATCH).map(record).collect()
}

fn number_of(record: &Record) -> u64 {
    u64::from_le_bytes(record.value[..8].try_into().unwrap())
}

/// Everything in a partition.
async fn read_all(log: &EmbeddedLog, topic: Topic, partition: u32) -> Vec<Record> {
    let bounds = log.bounds(topic, partition).await.unwrap();
    let mut reader = log.read(topic, partition, 0).await.unwrap();
    let mut records = Vec::new();
    while reader.next_offset() < bounds.end {
        reader.ready().await.unwrap();
        records.extend(reader.take(1000));
    }
    assert_eq!(records.len() as u64, bounds.end);
    records
}

/// Not a test by itself: the process that is killed. Appends for ever, and says what was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_appends_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let options = Options { checkpoint_bytes: 200 << 10, ..Options::in_dir(dir) };
    let log = open(&options, &Clock::system()).await;
    let partitions = TOPICS.into_iter().flat_map(|topic| (0..3).map(move |partition| (topic, partition)));
    let appenders = partitions.map(|(topic, partition)| {
        let log = log.clone();
        async move {
            let mut next = log.bounds(topic, partition).await.unwrap().end;
            loop {
                let positions = log.append(batch(topic, partition, next)).await.unwrap();
                assert_eq!(positions[0].offset, next);
                next += BATCH;
                // One write: a line is whole or not there.
                let line = format!("\nacknowledged {} {partition} {next}\n", topic as usize);
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        }
    });
    futures_util::future::join_all(appenders).await;
}

/// Runs the child until it has acknowledged `lines` batches, kills it, and returns how far each partition was.
fn run_and_kill(dir: &Path, lines: usize) -> BTreeMap<(usize, u32), u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "embedded::tests::crash::child_that_appends_until_it_is_killed", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut seen = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some(rest) = line.strip_prefix("acknowledged ") else { continue };
        let fields: Vec<u64> = rest.split(' ').map(|field| field.parse().unwrap()).collect();
        acknowledged.insert((fields[0] as usize, fields[1] as u32), fields[2]);
        seen += 1;
        if seen == lines {
            // SIGKILL. What it wrote before it died is still read from the pipe.
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(seen >= lines, "the child ended by itself after {seen} lines");
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_by_kill_9_and_no_batch_is_partial() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..6 {
        let path = dir.path().to_owned();
        let lines = 40 + 97 * round;
        let acknowledged = tokio::task::spawn_blocking(move || run_and_kill(&path, lines)).await.unwrap();
        let log = open(&Options::in_dir(dir.path()), &Clock::system()).await;
        for topic in TOPICS {
            for partition in 0..3 {
                let records = read_all(&log, topic, partition).await;
                let known = acknowledged.get(&(topic as usize, partition)).copied().unwrap_or(0);
                assert!(records.len() as u64 >= known, "{topic} {partition}: {} of {known}", records.len());
                assert_eq!(records.len() as u64 % BATCH, 0, "a part of a batch");
                for (offset, record) in records.iter().enumerate() {
                    assert_eq!((record.position.offset, number_of(record)), (offset as u64, offset as u64));
                    assert_eq!(record.value, batch(topic, partition, number_of(record))[0].value);
                }
            }
        }
        log.close().await;
    }
}

/// The file and its write-ahead log as they are now, without the log knowing.
fn copy(from: &Path, to: &Path) {
    for name in ["log.db", "log.db-wal"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_write_ahead_log_opens_with_a_prefix_of_whole_batches() {
    let opened = Opened::with(|_| {}).await;
    for round in 0..12 {
        opened.log.append(batch(Topic::LaneHigh, 0, round * BATCH)).await.unwrap();
    }
    let whole = tempfile::tempdir().unwrap();
    copy(&opened.options.dir, whole.path());
    let wal = fs::read(whole.path().join("log.db-wal")).unwrap();
    let mut lengths = Vec::new();
    let tail = wal.len() - 30_000;
    for (turn, at) in (tail..wal.len()).step_by(611).enumerate() {
        let torn = tempfile::tempdir().unwrap();
        copy(whole.path(), torn.path());
        let mut bytes = wal.clone();
        // Cut short, or with bytes that were never written.
        if turn % 2 == 0 {
            bytes.truncate(at);
        } else {
            bytes[at..].fill(0xa5);
        }
        fs::write(torn.path().join("log.db-wal"), bytes).unwrap();
        let log = open(&Options::in_dir(torn.path()), &opened.clock).await;
        let records = read_all(&log, Topic::LaneHigh, 0).await;
        assert!(records.iter().map(number_of).eq(0..records.len() as u64));
        assert_eq!(records.len() as u64 % BATCH, 0, "a part of a batch");
        lengths.push(records.len());
        // It goes on from there.
        let next = records.len() as u64;
        let positions = log.append(batch(Topic::LaneHigh, 0, next)).await.unwrap();
        assert_eq!(positions[0].offset, next);
        log.close().await;
    }
    assert!(lengths.is_sorted() && lengths[0] < *lengths.last().unwrap(), "{lengths:?}");
}
