//! The engines that `scripts/engines` has started: where they are, how eshaar is configured for them, and how its tables and
//! topics are dropped.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use eshaar_topics::Topic;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use scylla::client::session_builder::SessionBuilder;

/// How long brokers may take to delete topics.
const DELETED_WITHIN: Duration = Duration::from_secs(30);

/// Where the engines are, as `scripts/engines` wrote it down.
pub(crate) struct Engines(BTreeMap<String, String>);

impl Engines {
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("engines.env");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Ok(Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
    }

    /// The configuration of every process: everything in it is called `name`.
    pub(crate) fn configuration(&self, name: &str) -> String {
        let of = |variable| self.of(variable);
        format!(
            "engines = \"distributed\"\ntopic_prefix = \"{name}.\"\n\
             [kafka]\nbootstrap_servers = \"{}\"\nreplication_factor = 1\nmin_insync_replicas = 1\n\
             [scylla]\nnodes = [\"{}\"]\nkeyspace = \"{name}\"\nusername = \"{}\"\npassword = \"{}\"\n\
             replication = {{ strategy = \"simple\", factor = 1 }}\n\
             [redis]\naddresses = [\"{}\"]\npassword = \"{}\"\nprefix = \"{name}:\"\n\
             [registry]\nurl = \"{}\"\n",
            of("ENGINE_KAFKA"),
            of("ENGINE_CQL"),
            of("ENGINE_CQL_USER"),
            of("ENGINE_CQL_PASSWORD"),
            of("ENGINE_REDIS"),
            of("ENGINE_REDIS_PASSWORD"),
            of("ENGINE_REGISTRY"),
        )
    }

    /// Drops the tables and the topics of what was configured as `name`.
    pub(crate) async fn forget(&self, name: &str) -> anyhow::Result<()> {
        let session = SessionBuilder::new()
            .known_node(self.of("ENGINE_CQL"))
            .user(self.of("ENGINE_CQL_USER"), self.of("ENGINE_CQL_PASSWORD"))
            .build()
            .await
            .context("connecting to Cassandra")?;
        session.query_unpaged(format!("DROP KEYSPACE IF EXISTS {name}"), ()).await.context("dropping the keyspace")?;
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.of("ENGINE_KAFKA"));
        let admin: AdminClient<_> = config.create().context("connecting to Kafka")?;
        let topics: Vec<String> = Topic::ALL.into_iter().map(|topic| format!("{name}.{topic}")).collect();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let within = AdminOptions::new().operation_timeout(Some(DELETED_WITHIN));
        let deleted = admin.delete_topics(&topics, &within).await.context("deleting the topics")?;
        for one in deleted {
            one.map_err(|(topic, error)| anyhow::anyhow!("topic {topic} is not deleted: {error}"))?;
        }
        Ok(())
    }

    /// Deletes everything that the lanes of what was configured as `name` hold.
    pub(crate) async fn delete_lanes(&self, name: &str) -> anyhow::Result<()> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.of("ENGINE_KAFKA"));
        let admin: AdminClient<_> = config.create().context("connecting to Kafka")?;
        let mut all = TopicPartitionList::new();
        for lane in Topic::ALL.into_iter().filter(|topic| topic.lane().is_some()) {
            for partition in 0..lane.spec().partitions {
                all.add_partition_offset(&format!("{name}.{lane}"), i32::try_from(partition)?, Offset::End)?;
            }
        }
        let within = AdminOptions::new().request_timeout(Some(DELETED_WITHIN));
        let deleted = admin.delete_records(&all, &within).await.context("deleting records")?;
        for partition in deleted.elements() {
            partition.error().with_context(|| format!("deleting records of {}", partition.topic()))?;
        }
        Ok(())
    }

    fn of(&self, variable: &str) -> &str {
        self.0.get(variable).map_or("", String::as_str)
    }
}
