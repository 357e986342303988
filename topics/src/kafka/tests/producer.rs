//! The producer against librdkafka's own mock of a cluster: outages and refusals that no real broker gives on demand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use eshaar_model::Timestamp;
use rdkafka::message::Message;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, Producer as _};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio::time::timeout;

use super::super::names::Names;
use super::super::producer::Producer;
use super::super::watch::Watch;
use super::super::{Client, Hooks, Options};
use crate::partitioner::partition_of;
use crate::{AppendError, Headers, NewRecord, Topic};

const TOPIC: Topic = Topic::LaneNormal;
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

type Mock = MockCluster<'static, DefaultProducerContext>;

/// A cluster of one broker with the topic of the tests.
fn mock() -> Mock {
    let mock = MockCluster::new(1).unwrap();
    mock.create_topic("x.lane.normal", 6, 1).unwrap();
    mock
}

fn producer(mock: &Mock, change: impl FnOnce(&mut Options)) -> Producer {
    let mut options = Options { bootstrap_servers: mock.bootstrap_servers(), ..Options::default() };
    change(&mut options);
    let names = Arc::new(Names::new("x."));
    let watch = Watch::new(options.reader(&names).unwrap(), names.of(TOPIC)).unwrap();
    Producer::open(options.producer().unwrap(), names, watch).unwrap()
}

fn record(partition: u32, number: u64) -> NewRecord {
    NewRecord {
        topic: TOPIC,
        partition: Some(partition),
        key: Bytes::from_static(b"key"),
        value: Bytes::copy_from_slice(&number.to_le_bytes()),
        headers: Headers::none(),
        timestamp: Timestamp::from_millis(1_700_000_000_000),
    }
}

/// The numbers of a partition, as they stand in the log.
async fn read(mock: &Mock, partition: i32, count: usize) -> Vec<u64> {
    let servers = mock.bootstrap_servers();
    tokio::task::spawn_blocking(move || read_from(servers, partition, count)).await.unwrap()
}

fn read_from(bootstrap_servers: String, partition: i32, count: usize) -> Vec<u64> {
    let options = Options { bootstrap_servers, ..Options::default() };
    let client: Client = options.reader(&Names::new("x.")).unwrap().create_with_context(Hooks(None)).unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_offset("x.lane.normal", partition, rdkafka::Offset::Beginning).unwrap();
    rdkafka::consumer::Consumer::assign(&client, &list).unwrap();
    let mut numbers = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while numbers.len() < count && Instant::now() < deadline {
        if let Some(Ok(message)) = client.poll(Duration::from_millis(100)) {
            numbers.push(u64::from_le_bytes(message.payload().unwrap().try_into().unwrap()));
        }
    }
    numbers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_stays_unknown_is_told_within_the_delivery_timeout() {
    let mock = mock();
    let producer = producer(&mock, |options| options.delivery_timeout_ms = 3_000);
    producer.append(vec![record(0, 1)]).await.unwrap();
    mock.broker_down(1).unwrap();
    let begun = Instant::now();
    let outcome = timeout(PATIENCE, producer.append(vec![record(0, 2), record(1, 3)])).await.unwrap();
    assert!(matches!(outcome, Err(AppendError::Unknown { .. })), "{outcome:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_wait_through_an_outage_and_keep_their_order() {
    let mock = mock();
    let producer = Arc::new(producer(&mock, |_| {}));
    producer.append(vec![record(0, 0)]).await.unwrap();
    mock.broker_down(1).unwrap();
    let appends: Vec<_> = (0..20_u64)
        .map(|batch| {
            let producer = Arc::clone(&producer);
            let records: Vec<_> = (0..10).map(|n| record(0, 1 + batch * 10 + n)).collect();
            tokio::spawn(async move { producer.append(records).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(appends.iter().all(|append| !append.is_finished()), "nothing is acknowledged by a broker that is away");
    mock.broker_up(1).unwrap();
    for append in appends {
        assert_eq!(timeout(PATIENCE, append).await.unwrap().unwrap().unwrap().len(), 10);
    }
    let numbers = read(&mock, 0, 201).await;
    assert_eq!(numbers.len(), 201, "nothing twice, nothing lost");
    for batch in 0..20_u64 {
        let of_batch: Vec<_> = numbers.iter().filter(|number| **number > 0 && (**number - 1) / 10 == batch).collect();
        assert!(of_batch.len() == 10 && of_batch.is_sorted(), "{of_batch:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_waits_for_room_loses_nothing_and_keeps_its_order() {
    let mock = mock();
    // Room for three records: every append of ten finds the queue full, and so do all at once.
    let producer = Arc::new(producer(&mock, |options| options.queue_records = 3));
    let appends: Vec<_> = (0..8_u64)
        .map(|appender| {
            let producer = Arc::clone(&producer);
            tokio::spawn(async move {
                for batch in 0..3 {
                    let records = (0..10).map(|n| record(0, appender << 32 | (batch * 10 + n))).collect();
                    producer.append(records).await.unwrap();
                }
            })
        })
        .collect();
    for append in appends {
        timeout(PATIENCE, append).await.unwrap().unwrap();
    }
    let numbers = read(&mock, 0, 240).await;
    for appender in 0..8 {
        let own: Vec<_> = numbers.iter().filter(|number| **number >> 32 == appender).map(|n| n & 0xffff_ffff).collect();
        assert!(own.into_iter().eq(0..30), "of appender {appender}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_broker_refuses_for_good_is_refused_and_the_next_append_goes_on() {
    let mock = mock();
    let producer = producer(&mock, |_| {});
    mock.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_POLICY_VIOLATION]);
    let outcome = timeout(PATIENCE, producer.append(vec![record(0, 1)])).await.unwrap();
    assert!(matches!(outcome, Err(AppendError::Refused { .. })), "{outcome:?}");
    let outcome = timeout(PATIENCE, producer.append(vec![record(0, 2)])).await.unwrap();
    assert_eq!(outcome.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_waits_for_what_is_queued_and_then_takes_nothing_in() {
    let mock = mock();
    let producer = Arc::new(producer(&mock, |options| options.linger_ms = 200));
    let append = tokio::spawn({
        let producer = Arc::clone(&producer);
        async move { producer.append(vec![record(0, 1)]).await }
    });
    while !append.is_finished() && producer.in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    let closing = Arc::clone(&producer);
    tokio::task::spawn_blocking(move || closing.close(PATIENCE)).await.unwrap();
    assert_eq!(append.await.unwrap().unwrap().len(), 1);
    assert!(matches!(producer.append(vec![record(0, 2)]).await, Err(AppendError::Closed)));
}

/// `append` chooses partitions by `partition_of`; librdkafka's `murmur2_random`, and with it Java clients, must agree.
#[test]
fn the_partition_of_a_key_is_the_one_that_kafka_clients_choose() {
    let mock = mock();
    let config = Options { bootstrap_servers: mock.bootstrap_servers(), ..Options::default() }.producer().unwrap();
    let producer: rdkafka::producer::ThreadedProducer<Chosen> = config.create_with_context(Chosen).unwrap();
    for n in 0..200_u32 {
        let key = format!("+9665{:0width$}", n * 7919, width = (n % 13) as usize);
        let expected = Box::new(partition_of(key.as_bytes(), 6));
        let record = rdkafka::producer::BaseRecord::with_opaque_to("x.lane.normal", expected).key(&key).payload("");
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

/// Compares where a record went with where it should.
struct Chosen;

impl rdkafka::ClientContext for Chosen {}

impl rdkafka::producer::ProducerContext for Chosen {
    type DeliveryOpaque = Box<u32>;

    fn delivery(&self, result: &rdkafka::message::DeliveryResult<'_>, expected: Box<u32>) {
        let message = result.as_ref().map_err(|(error, _)| error).unwrap();
        assert_eq!(message.partition() as u32, *expected);
    }
}
