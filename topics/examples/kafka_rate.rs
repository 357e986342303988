//! What a hop costs on Kafka, an append and the read behind it: records a second and CPU a record, through the log port and
//! by a bare producer and consumer of rdkafka on the same bytes, in one run. First as fast as it goes, then at the pace of a
//! loaded pipeline, where most of the price is by the request.
//!
//! `cargo run -p eshaar-topics --example kafka_rate -- 127.0.0.1:9092 [records] [pace a second]`. Makes topics of its own
//! prefix and leaves them to whoever owns the broker.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement: it prints, and panics where it cannot")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use eshaar_model::Clock;
use eshaar_topics::kafka::{self, KafkaLog, Options};
use eshaar_topics::{ConsumerEvent, Headers, Log, NewRecord, PartitionStream, StartAt, Topic};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Message as _};

/// Read and written through the port.
const OURS: Topic = Topic::LaneNormal;
/// Read and written by bare clients.
const BARE: Topic = Topic::LaneLow;
/// Records of an append at full speed; that many are on their way sixteen times.
const BATCH: usize = 500;
const TASKS: usize = 16;
/// Records of an append at a pace: a bulk request.
const BURST: usize = 30;

/// CPU of this process so far, in user and kernel mode; the kernel counts in hundredths of a second.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// Keys, value and headers of a message, about.
const HEADERS: [(&str, &[u8]); 4] = [
    ("ce_id", b"019a3f00-0000-7000-8000-000000000000"),
    ("ce_type", b"eshaar.message.accepted.v1"),
    ("es-lane", b"normal"),
    ("es-to", b"+966500000001"),
];

fn key(number: usize) -> String {
    format!("+9665{number:08}")
}

fn value() -> Vec<u8> {
    vec![b'x'; 300]
}

fn record(number: usize) -> NewRecord {
    NewRecord {
        topic: OURS,
        partition: None,
        key: Bytes::from(key(number)),
        value: Bytes::from(value()),
        headers: Headers::new(HEADERS),
        timestamp: Clock::system().now(),
    }
}

/// Microseconds of CPU a record.
struct Cost(f64);

/// Measures `work`, which returns how many records it was about.
async fn measured(what: &str, work: impl Future<Output = usize>) -> Cost {
    let (begun, before) = (Instant::now(), cpu());
    let records = work.await;
    let (took, spent) = (begun.elapsed(), cpu().saturating_sub(before));
    let cost = Cost(spent.as_secs_f64() * 1e6 / records as f64);
    println!("{what}: {:.0} records/s, {:.2} us of CPU a record", records as f64 / took.as_secs_f64(), cost.0);
    cost
}

fn compare(what: &str, ours: &Cost, bare: &Cost) {
    println!("  {what}: {:.2} times the bare client's CPU", ours.0 / bare.0);
}

/// Counts delivery reports.
#[derive(Clone, Default)]
struct Delivered(Arc<AtomicUsize>);

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok(), "a bare append failed");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A bare producer and consumer, set as the port sets its own.
struct Bare {
    topic: String,
    producer: ThreadedProducer<Delivered>,
    delivered: Delivered,
    config: ClientConfig,
}

impl Bare {
    fn new(options: &Options, prefix: &str) -> Self {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &options.bootstrap_servers)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("compression.type", &options.compression)
            .set("linger.ms", options.linger_ms.to_string())
            .set("queue.buffering.max.messages", options.queue_records.to_string())
            .set("group.id", format!("{prefix}bare"))
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", options.fetch_wait_ms.to_string())
            .set("fetch.queue.backoff.ms", options.fetch_pause_ms.to_string())
            .set("queued.min.messages", options.prefetch_records.to_string());
        let delivered = Delivered::default();
        let producer = config.create_with_context(delivered.clone()).unwrap();
        Self { topic: format!("{prefix}{BARE}"), producer, delivered, config }
    }

    fn send(&self, number: usize) {
        let (key, value) = (key(number), value());
        let mut headers = OwnedHeaders::new_with_capacity(HEADERS.len());
        for (key, value) in HEADERS {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let mut outgoing = BaseRecord::to(&self.topic).key(&key[..]).payload(&value[..]).headers(headers);
        while let Err((_, kept)) = self.producer.send(outgoing) {
            outgoing = kept;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn flush(&self) -> usize {
        self.producer.flush(Duration::from_mins(1)).unwrap();
        self.delivered.0.swap(0, Ordering::Relaxed)
    }

    fn consumer(&self) -> BaseConsumer {
        let consumer: BaseConsumer = self.config.create().unwrap();
        consumer.subscribe(&[&self.topic]).unwrap();
        consumer
    }
}

/// Reads `records` with a bare consumer.
fn read_bare(consumer: &BaseConsumer, records: usize) -> usize {
    let mut read = 0;
    while read < records {
        if let Some(message) = consumer.poll(Duration::from_secs(1)) {
            assert!(message.unwrap().payload().is_some());
            read += 1;
        }
    }
    read
}

/// Reads `records` through the port, a task a partition as a stage does.
async fn read_ours(partitions: Vec<PartitionStream>, records: usize) -> usize {
    let read = Arc::new(AtomicUsize::new(0));
    let all = tokio_util::sync::CancellationToken::new();
    let reads = partitions.into_iter().map(|mut stream| {
        let (read, all) = (Arc::clone(&read), all.clone());
        tokio::spawn(async move {
            while all.run_until_cancelled(stream.ready()).await.is_some() {
                let taken = stream.take(100).len();
                if read.fetch_add(taken, Ordering::Relaxed) + taken >= records {
                    all.cancel();
                }
            }
        })
    });
    for read in reads.collect::<Vec<_>>() {
        read.await.unwrap();
    }
    read.load(Ordering::Relaxed)
}

/// Calls `burst` with the first number of each burst, so that `pace` records a second are made, for `records` of them.
async fn at_pace(pace: usize, records: usize, mut burst: impl AsyncFnMut(usize)) {
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(BURST as f64 / pace as f64));
    for base in (0..records).step_by(BURST) {
        ticks.tick().await;
        burst(base).await;
    }
}

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let bootstrap_servers = args.next().unwrap_or_else(|| "127.0.0.1:9092".to_owned());
    let mut number = |default: usize| args.next().map_or(default, |text| text.parse().unwrap());
    let (records, pace) = (number(1_000_000).next_multiple_of(TASKS * BATCH), number(3_000));
    let paced = (pace * 10).next_multiple_of(BURST);
    let options = Options { bootstrap_servers, replication_factor: 1, min_insync_replicas: 1, ..Options::default() };
    let prefix = format!("rate-{}-", std::process::id());
    kafka::apply(&options, &prefix).await.unwrap();
    let bare = Arc::new(Bare::new(&options, &prefix));
    let log = Arc::new(KafkaLog::open(options, &prefix).await.unwrap());

    let ours_append = measured("append, port", async {
        let appends = (0..TASKS).map(|task| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                for base in (task * BATCH..records).step_by(TASKS * BATCH) {
                    log.append((base..base + BATCH).map(record).collect()).await.unwrap();
                }
            })
        });
        for append in appends.collect::<Vec<_>>() {
            append.await.unwrap();
        }
        records
    });
    let ours_append = ours_append.await;
    let sender = Arc::clone(&bare);
    let bare_append = measured("append, bare", async move {
        tokio::task::spawn_blocking(move || {
            (0..records).for_each(|n| sender.send(n));
            sender.flush()
        })
        .await
        .unwrap()
    });
    compare("append", &ours_append, &bare_append.await);

    let mut consumer = log.join("rate", &[OURS], StartAt::Oldest).await.unwrap();
    let ConsumerEvent::Assigned(assignment) = consumer.event().await.unwrap() else { panic!("nothing was assigned") };
    let ours_read = measured("read by a group, port", read_ours(assignment.partitions, records)).await;
    consumer.leave().await;
    let reader = Arc::new(bare.consumer());
    let read = {
        let reader = Arc::clone(&reader);
        move || read_bare(&reader, records)
    };
    let bare_read = measured("read by a group, bare", async { tokio::task::spawn_blocking(read).await.unwrap() }).await;
    compare("read", &ours_read, &bare_read);

    let mut consumer = log.join("paced", &[OURS], StartAt::End).await.unwrap();
    let ConsumerEvent::Assigned(assignment) = consumer.event().await.unwrap() else { panic!("nothing was assigned") };
    let ours_hop = measured("a hop at the pace, port", async {
        let read = tokio::spawn(read_ours(assignment.partitions, paced));
        at_pace(pace, paced, async |base| {
            let log = Arc::clone(&log);
            tokio::spawn(async move { log.append((base..base + BURST).map(record).collect()).await.unwrap() });
        })
        .await;
        read.await.unwrap()
    });
    let ours_hop = ours_hop.await;
    consumer.leave().await;
    let bare_hop = measured("a hop at the pace, bare", async {
        let read = tokio::task::spawn_blocking(move || read_bare(&reader, paced));
        at_pace(pace, paced, async |base| (base..base + BURST).for_each(|n| bare.send(n))).await;
        bare.flush();
        read.await.unwrap()
    });
    compare("a hop at the pace", &ours_hop, &bare_hop.await);
    log.close().await;
}
