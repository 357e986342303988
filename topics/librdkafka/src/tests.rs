//! A fetch that is answered with partitions that have no leader (confluentinc/librdkafka#5280, docs/adr/0017).

use std::ffi::CString;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::bindings::{rd_kafka_handle_mock_cluster, rd_kafka_mock_partition_push_leader_response};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

const TOPIC: &str = "leaders";
const PARTITIONS: i32 = 48;
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// Keeps what librdkafka logs of new leaders.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl ClientContext for Lines {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, line: &str) {
        if facility == "METADATAUPDATE" {
            self.0.lock().unwrap().push(line.to_owned());
        }
    }
}

impl ConsumerContext for Lines {}

/// A consumer of every partition, with a cluster of two brokers of its own.
fn consumer(lines: &Lines) -> BaseConsumer<Lines> {
    let consumer: BaseConsumer<Lines> = ClientConfig::new()
        .set("test.mock.num.brokers", "2")
        .set("group.id", "leaders")
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "50")
        .create_with_context(lines.clone())
        .unwrap();
    let mock = consumer.client().mock_cluster().unwrap();
    mock.create_topic(TOPIC, PARTITIONS, 2).unwrap();
    for partition in 0..PARTITIONS {
        mock.partition_leader(TOPIC, partition, Some(1)).unwrap();
    }
    drop(mock);
    consumer
}

fn assign(consumer: &BaseConsumer<Lines>) {
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(TOPIC, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
}

/// Writes one record to each partition, and reads all of them.
fn exchange(producer: &BaseProducer, consumer: &BaseConsumer<Lines>) {
    for partition in 0..PARTITIONS {
        producer.send(BaseRecord::<(), str>::to(TOPIC).partition(partition).payload("record")).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let all = (0..PARTITIONS).collect::<Vec<_>>();
    let mut read: Vec<i32> = Vec::new();
    while read.len() < all.len() {
        assert!(Instant::now() < deadline, "read {} of {PARTITIONS} partitions", read.len());
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            read.push(message.partition());
        }
    }
    read.sort_unstable();
    assert_eq!(read, all);
}

/// The next answer that names a leader of a partition says that there is none.
fn name_no_leader(consumer: &BaseConsumer<Lines>, partition: i32) {
    let topic = CString::new(TOPIC).unwrap();
    #[expect(unsafe_code, reason = "rdkafka does not wrap these calls")]
    // SAFETY: the cluster belongs to the consumer, which is borrowed for both calls; the name ends with a zero byte and is
    // copied. The mock takes commands from any thread.
    let error = unsafe {
        let mock = rd_kafka_handle_mock_cluster(consumer.client().native_ptr());
        rd_kafka_mock_partition_push_leader_response(mock, topic.as_ptr(), partition, -1, 1)
    };
    assert_eq!(error, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
}

#[test]
fn partitions_without_a_leader_are_not_taken_for_news_of_one() {
    let lines = Lines::default();
    let consumer = consumer(&lines);
    assign(&consumer);
    let mock = consumer.client().mock_cluster().unwrap();
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", mock.bootstrap_servers()).create().unwrap();
    exchange(&producer, &consumer);
    for turn in 0..20 {
        for partition in 0..PARTITIONS {
            name_no_leader(&consumer, partition);
            mock.partition_leader(TOPIC, partition, Some(2 - turn % 2)).unwrap();
        }
        exchange(&producer, &consumer);
    }
    let lines = lines.0.lock().unwrap();
    assert!(lines.is_empty(), "took what was in memory for leaders: {lines:?}");
}
