//! The log on a real Kafka: the suite of all engines, and what is its own. Needs `ENGINE_KAFKA` (host:port), as `./test`
//! sets it. Every check has topics of its own prefix on the shared broker, and deletes them.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test crate has no users, and panics to say what is wrong"
)]

mod cluster;
mod own;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use eshaar_model::{Clock, Timestamp};
use eshaar_topics::conformance::Subject;
use eshaar_topics::kafka::{self, KafkaLog, Options};
use eshaar_topics::{Log, Topic};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::runtime::Handle;

/// How long the cluster may take over anything the tests ask of it themselves.
const PATIENCE: Duration = Duration::from_secs(30);

/// The broker of the tests.
pub fn broker() -> String {
    std::env::var("ENGINE_KAFKA").expect("ENGINE_KAFKA names no broker (host:port): run ./test")
}

/// Options for one broker.
pub fn options() -> Options {
    Options { bootstrap_servers: broker(), replication_factor: 1, min_insync_replicas: 1, ..Options::default() }
}

/// A prefix that no other check has.
pub fn prefix() -> String {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    format!("test-{}-{nanos:x}-", std::process::id())
}

pub fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", broker()).create().unwrap()
}

fn within() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE))
}

/// A log on topics of its own, and a clock that stands.
pub struct Opened {
    pub log: KafkaLog,
    pub clock: Clock,
    pub options: Options,
    pub prefix: String,
}

impl Opened {
    /// A log on new topics. The broker lets their records go by its own clock only, which none of the checks outlives:
    /// records may be made in a future that the test's clock has reached.
    pub async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = options();
        let far = i64::MAX.to_string();
        options.topic_settings = BTreeMap::from([("message.timestamp.after.max.ms".to_owned(), far)]);
        change(&mut options);
        let prefix = prefix();
        kafka::apply(&options, &prefix).await.unwrap();
        let log = KafkaLog::open(options.clone(), &prefix).await.unwrap();
        let clock = Clock::manual(Clock::system().now());
        Self { log, clock, options, prefix }
    }

    fn name(&self, topic: Topic) -> String {
        format!("{}{topic}", self.prefix)
    }
}

#[async_trait]
impl Subject for Opened {
    fn log(&self) -> Arc<dyn Log> {
        Arc::new(self.log.clone())
    }

    async fn restart(&mut self) {
        self.log.close().await;
        self.log = KafkaLog::open(self.options.clone(), &self.prefix).await.unwrap();
    }

    /// Moves the clock, and deletes what is past its time by then as the broker would: from the oldest on, up to the first
    /// record that is not. That the broker does it by itself is held in `own`, on its own clock.
    async fn age(&mut self, millis: i64) {
        self.clock.advance_millis(millis);
        let mut past = TopicPartitionList::new();
        for topic in Topic::ALL {
            let cutoff = self.clock.now().plus_millis(-i64::try_from(topic.spec().kept_ms).unwrap());
            for partition in 0..self.log.partitions(topic) {
                let first = self.log.offset_at(topic, partition, cutoff).await.unwrap();
                if first > 0 {
                    let offset = Offset::Offset(i64::try_from(first).unwrap());
                    past.add_partition_offset(&self.name(topic), partition as i32, offset).unwrap();
                }
            }
        }
        if past.count() > 0 {
            let deleted = admin().delete_records(&past, &within()).await.unwrap();
            deleted.elements().iter().for_each(|partition| partition.error().unwrap());
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let names: Vec<String> = Topic::ALL.into_iter().map(|topic| self.name(topic)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        tokio::task::block_in_place(|| {
            Handle::current().block_on(async {
                self.log.close().await;
                if let Err(error) = admin().delete_topics(&names, &within()).await {
                    eprintln!("the topics {}* are left on the broker: {error}", self.prefix);
                }
            });
        });
    }
}

mod conformance {
    async fn opened() -> super::Opened {
        super::Opened::with(|_| {}).await
    }

    eshaar_topics::conformance_tests!(opened, ignore = "needs the real engines: ./test");
}
