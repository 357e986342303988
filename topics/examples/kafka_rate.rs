//! What an append and a read cost on Kafka: records a second, and our CPU a record.
//!
//! `cargo run -p eshaar-topics --example kafka_rate -- 127.0.0.1:9092 [records] [tasks] [batch]`. Makes topics of its own
//! prefix and leaves them to whoever owns the broker.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement: it prints, and panics where it cannot")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use eshaar_model::Clock;
use eshaar_topics::kafka::{self, KafkaLog, Options};
use eshaar_topics::{ConsumerEvent, Headers, Log, NewRecord, StartAt, Topic};

const TOPIC: Topic = Topic::LaneNormal;

/// CPU of this process so far, in user and kernel mode; the kernel counts in hundredths of a second.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn record(number: usize) -> NewRecord {
    NewRecord {
        topic: TOPIC,
        partition: None,
        key: Bytes::from(format!("+9665{number:08}")),
        value: Bytes::from(vec![b'x'; 300]),
        headers: Headers::new([
            ("ce_id", &b"019a3f00-0000-7000-8000-000000000000"[..]),
            ("ce_type", b"eshaar.message.accepted.v1"),
            ("es-lane", b"normal"),
            ("es-to", b"+966500000001"),
        ]),
        timestamp: Clock::system().now(),
    }
}

fn report(what: &str, records: usize, took: Duration, cpu: Duration) {
    let rate = records as f64 / took.as_secs_f64();
    println!("{what}: {rate:.0} records/s, {:.2} us of CPU a record", cpu.as_secs_f64() * 1e6 / records as f64);
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let bootstrap_servers = args.next().unwrap_or_else(|| "127.0.0.1:9092".to_owned());
    let mut number = |default: usize| args.next().map_or(default, |text| text.parse().unwrap());
    let (records, tasks, batch) = (number(1_000_000), number(16), number(500));
    let options = Options { bootstrap_servers, replication_factor: 1, min_insync_replicas: 1, ..Options::default() };
    let prefix = format!("rate-{}-", std::process::id());
    kafka::apply(&options, &prefix).await.unwrap();
    let log = Arc::new(KafkaLog::open(options, &prefix).await.unwrap());
    log.append(vec![record(0)]).await.unwrap();

    let (begun, before) = (Instant::now(), cpu());
    let appends: Vec<_> = (0..tasks)
        .map(|task| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                for n in 0..records / tasks / batch {
                    let base = (n * tasks + task) * batch;
                    log.append((base..base + batch).map(record).collect()).await.unwrap();
                }
            })
        })
        .collect();
    for append in appends {
        append.await.unwrap();
    }
    let appended = records / tasks / batch * tasks * batch;
    report("append, with making the records", appended, begun.elapsed(), cpu().saturating_sub(before));

    let (begun, before) = (Instant::now(), cpu());
    let made: usize = (0..appended).map(|n| record(n).key.len().min(1)).sum();
    report("of which making them", made, begun.elapsed(), cpu().saturating_sub(before));

    let (begun, before) = (Instant::now(), cpu());
    let mut consumer = log.join("rate", &[TOPIC], StartAt::Oldest).await.unwrap();
    let ConsumerEvent::Assigned(assignment) = consumer.event().await.unwrap() else { panic!("nothing was assigned") };
    let reads: Vec<_> = assignment
        .partitions
        .into_iter()
        .map(|mut stream| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let end = log.bounds(TOPIC, stream.source().1).await.unwrap().end;
                while stream.next_offset() < end {
                    stream.ready().await.unwrap();
                    stream.take(100);
                }
            })
        })
        .collect();
    for read in reads {
        read.await.unwrap();
    }
    report("read by a group", appended + 1, begun.elapsed(), cpu().saturating_sub(before));
    consumer.leave().await;
    log.close().await;
}
