//! The cluster's topics against the catalogue: what differs, and making them so.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::Statistics;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigResource, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::hooks::{log_error, log_line};
use super::names::Names;
use super::{Options, engine};
use crate::{LogError, Topic};

/// A day in milliseconds.
const DAY_MS: u64 = 86_400_000;
/// Into how many segments the time that a topic is kept is cut: whole segments go, so records stay that much longer.
const SEGMENTS: u64 = 8;
/// How long a broker may take to hear from the controller what was made or changed.
const HEARD: Duration = Duration::from_secs(10);
/// How often it is asked.
const HEARD_STEP: Duration = Duration::from_millis(50);

/// How a topic of the cluster is not as the catalogue and the options say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It is not there.
    Missing {
        /// Its name on the cluster.
        topic: String,
    },
    /// Another number of partitions. Nothing changes that within an epoch of the log.
    Partitions {
        /// Its name on the cluster.
        topic: String,
        /// What it has.
        found: usize,
        /// What the options say.
        wanted: u32,
    },
    /// Fewer copies of a partition than the options say. Brokers' own tools change that.
    Replicas {
        /// Its name on the cluster.
        topic: String,
        /// What the partition with the fewest has.
        found: usize,
        /// `replication_factor`.
        wanted: u16,
    },
    /// A setting has another value.
    Setting {
        /// Its name on the cluster.
        topic: String,
        /// Kafka's name of the setting.
        key: String,
        /// What it is, if it is known to the broker.
        found: Option<String>,
        /// What it should be.
        wanted: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { topic } => write!(f, "{topic} is missing"),
            Self::Partitions { topic, found, wanted } => {
                write!(
                    f,
                    "{topic} has {found} partitions, not {wanted} (kafka.partitions, and kafka.slots for deliveries): \
                     that takes new topics and a new epoch of the log"
                )
            }
            Self::Replicas { topic, found, wanted } => {
                write!(f, "{topic} has {found} copies of a partition, not {wanted}")
            }
            Self::Setting { topic, key, found, wanted } => {
                write!(f, "{topic} has {key}={}, not {wanted}", found.as_deref().unwrap_or("(unknown)"))
            }
        }
    }
}

/// What was done about a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was made.
    Created,
    /// These settings were changed.
    Altered(Vec<Difference>),
    /// It was as it should be.
    Unchanged,
    /// Not to be changed from here: another number of partitions, or of copies. Nothing was done about the topic.
    Refused(Vec<Difference>),
}

/// What [`apply`] did, topic by topic, in the order of the flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report(pub Vec<(String, Applied)>);

impl Report {
    /// Whether every topic is as it should be now.
    pub fn is_complete(&self) -> bool {
        self.0.iter().all(|(_, applied)| !matches!(applied, Applied::Refused(_)))
    }
}

impl fmt::Display for Report {
    /// A line a topic.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |differences: &[Difference]| -> String {
            differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        for (topic, applied) in &self.0 {
            match applied {
                Applied::Created => writeln!(f, "{topic}: created")?,
                Applied::Altered(changed) => {
                    writeln!(f, "{topic}: altered, it was not as it should be: {}", list(changed))?;
                }
                Applied::Unchanged => writeln!(f, "{topic}: unchanged")?,
                Applied::Refused(left) => writeln!(f, "{topic}: refused: {}", list(left))?,
            }
        }
        Ok(())
    }
}

/// How the cluster's topics differ from the catalogue; nothing where all is well.
///
/// # Errors
/// An option cannot work, or the cluster does not answer.
pub async fn check(options: &Options, topic_prefix: &str) -> Result<Vec<Difference>, LogError> {
    let cluster = Cluster::connect(options, topic_prefix).await?;
    let found = cluster.topics().await;
    cluster.disconnect().await;
    Ok(found?.into_iter().flat_map(|(_, found)| found.differences).collect())
}

/// Makes what is missing and changes settings that differ; settings that are not ours are left as they are. Run again, it
/// changes nothing. It never changes a number of partitions or copies.
///
/// # Errors
/// An option cannot work, the cluster does not answer, or it refuses; what was done before stays.
pub async fn apply(options: &Options, topic_prefix: &str) -> Result<Report, LogError> {
    let cluster = Cluster::connect(options, topic_prefix).await?;
    let report = cluster.apply().await;
    cluster.disconnect().await;
    report
}

/// A connection for administration.
struct Cluster {
    admin: Arc<AdminClient<Quiet>>,
    names: Names,
    options: Options,
}

/// A topic as it was found.
struct Found {
    differences: Vec<Difference>,
    /// What was set for it, and not taken from the broker's defaults.
    own: BTreeMap<String, String>,
}

/// Hooks of the connection.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }

    fn stats(&self, _: Statistics) {}
}

impl Cluster {
    async fn connect(options: &Options, topic_prefix: &str) -> Result<Self, LogError> {
        let config: ClientConfig = options.client()?;
        let admin = tokio::task::spawn_blocking(move || config.create_with_context(Quiet)).await;
        let admin = admin.map_err(|_| LogError::Closed)?.map_err(engine("connect to the cluster"))?;
        Ok(Self { admin: Arc::new(admin), names: Names::new(topic_prefix), options: options.clone() })
    }

    /// Drops the client where it may block.
    async fn disconnect(self) {
        let admin = self.admin;
        if tokio::task::spawn_blocking(move || drop(admin)).await.is_err() {
            tracing::warn!("disconnecting from the cluster ended with a panic");
        }
    }

    async fn topics(&self) -> Result<Vec<(Topic, Found)>, LogError> {
        let shapes = self.shapes().await?;
        let settings = self.settings(&shapes).await?;
        let found = Topic::ALL.into_iter().zip(shapes).map(|(topic, shape)| {
            let name = self.names.of(topic).to_owned();
            let Some(shape) = shape else {
                return (topic, Found { differences: vec![Difference::Missing { topic: name }], own: BTreeMap::new() });
            };
            let mut differences = shape.differences(&name, topic, &self.options);
            let config = settings.get(&name);
            let own = config.map(own_settings).unwrap_or_default();
            for (key, wanted) in wanted(topic, &self.options) {
                let found = config.and_then(|config| config.get(&key)).and_then(|entry| entry.value.clone());
                if found.as_ref() != Some(&wanted) {
                    differences.push(Difference::Setting { topic: name.clone(), key, found, wanted });
                }
            }
            (topic, Found { differences, own })
        });
        Ok(found.collect())
    }

    /// Partitions and copies of each topic that is there, in the order of the catalogue.
    async fn shapes(&self) -> Result<Vec<Option<Shape>>, LogError> {
        let (admin, names, timeout) = (Arc::clone(&self.admin), self.names.clone(), self.options.request_timeout());
        let asked = tokio::task::spawn_blocking(move || {
            let shapes = Topic::ALL.into_iter().map(|topic| {
                let metadata = admin.inner().fetch_metadata(Some(names.of(topic)), timeout);
                let metadata = metadata.map_err(engine("look at the topics of the cluster"))?;
                let found = metadata.topics().iter().find(|found| found.name() == names.of(topic));
                Ok(found.filter(|found| found.error().is_none() && !found.partitions().is_empty()).map(|found| Shape {
                    partitions: found.partitions().len(),
                    replicas: found.partitions().iter().map(|part| part.replicas().len()).min().unwrap_or_default(),
                }))
            });
            shapes.collect()
        });
        asked.await.unwrap_or(Err(LogError::Closed))
    }

    async fn settings(&self, shapes: &[Option<Shape>]) -> Result<BTreeMap<String, ConfigResource>, LogError> {
        const ACTION: &str = "look at the settings of the topics";
        let present = Topic::ALL.into_iter().zip(shapes).filter(|(_, shape)| shape.is_some());
        let names: Vec<&str> = present.map(|(topic, _)| self.names.of(topic)).collect();
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let resources: Vec<ResourceSpecifier<'_>> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let described = self.admin.describe_configs(&resources, &self.within()).await.map_err(engine(ACTION))?;
        let mut settings = BTreeMap::new();
        for (name, described) in names.into_iter().zip(described) {
            let config = described.map_err(|code| engine(ACTION)(KafkaError::AdminOp(code)))?;
            settings.insert(name.to_owned(), config);
        }
        Ok(settings)
    }

    async fn apply(&self) -> Result<Report, LogError> {
        let mut report = Vec::new();
        let mut changed = false;
        for (topic, found) in self.topics().await? {
            let name = self.names.of(topic).to_owned();
            let fixed = |difference: &Difference| !matches!(difference, Difference::Setting { .. });
            let applied = match &found.differences[..] {
                [] => Applied::Unchanged,
                [Difference::Missing { .. }] => {
                    self.create(topic).await?;
                    changed = true;
                    Applied::Created
                }
                differences if differences.iter().any(fixed) => {
                    Applied::Refused(differences.iter().filter(|difference| fixed(difference)).cloned().collect())
                }
                differences => {
                    self.alter(topic, found.own).await?;
                    changed = true;
                    Applied::Altered(differences.to_vec())
                }
            };
            report.push((name, applied));
        }
        if changed {
            self.await_heard().await?;
        }
        Ok(Report(report))
    }

    async fn create(&self, topic: Topic) -> Result<(), LogError> {
        let partitions = self.options.partitions_of(topic) as i32;
        let replication = TopicReplication::Fixed(i32::from(self.options.replication_factor));
        let settings = wanted(topic, &self.options);
        let mut new = NewTopic::new(self.names.of(topic), partitions, replication);
        for (key, value) in &settings {
            new = new.set(key, value);
        }
        let within = self.within().operation_timeout(Some(self.options.request_timeout()));
        let results = self.admin.create_topics([&new], &within).await.map_err(engine("create a topic"))?;
        for result in results {
            match result {
                // Two may apply at the same time.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    return Err(LogError::Engine { action: "create a topic", reason: format!("{name}: {code}") });
                }
            }
        }
        Ok(())
    }

    /// Sets all settings of a topic anew: what is not named would fall back to the broker's default.
    async fn alter(&self, topic: Topic, mut settings: BTreeMap<String, String>) -> Result<(), LogError> {
        settings.extend(wanted(topic, &self.options));
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(self.names.of(topic)));
        for (key, value) in &settings {
            change = change.set(key, value);
        }
        let altered = self.admin.alter_configs([&change], &self.within()).await.map_err(engine("alter a topic"))?;
        for result in altered {
            result.map_err(|(topic, code)| LogError::Engine {
                action: "alter a topic",
                reason: format!("{topic:?}: {code}"),
            })?;
        }
        Ok(())
    }

    /// A broker hears of a change a moment after the controller has made it; whoever looks next is to find it.
    async fn await_heard(&self) -> Result<(), LogError> {
        let deadline = Instant::now() + HEARD;
        let open = |found: &Found| {
            found.differences.iter().all(|left| matches!(left, Difference::Missing { .. } | Difference::Setting { .. }))
                && !found.differences.is_empty()
        };
        while self.topics().await?.iter().any(|(_, found)| open(found)) && Instant::now() < deadline {
            tokio::time::sleep(HEARD_STEP).await;
        }
        Ok(())
    }

    fn within(&self) -> AdminOptions {
        AdminOptions::new().request_timeout(Some(self.options.request_timeout()))
    }
}

/// What metadata says of a topic.
struct Shape {
    partitions: usize,
    replicas: usize,
}

impl Shape {
    fn differences(&self, name: &str, topic: Topic, options: &Options) -> Vec<Difference> {
        let mut differences = Vec::new();
        let (wanted, copies) = (options.partitions_of(topic), options.replication_factor);
        if self.partitions != wanted as usize {
            differences.push(Difference::Partitions { topic: name.to_owned(), found: self.partitions, wanted });
        }
        if self.replicas < usize::from(copies) {
            differences.push(Difference::Replicas { topic: name.to_owned(), found: self.replicas, wanted: copies });
        }
        differences
    }
}

/// The settings of a topic: what the catalogue and the rules say, and what the options add.
fn wanted(topic: Topic, options: &Options) -> BTreeMap<String, String> {
    let kept_ms = topic.spec().kept_ms;
    let mut settings = BTreeMap::from(
        [
            ("cleanup.policy", "delete".to_owned()),
            ("retention.ms", kept_ms.to_string()),
            ("retention.bytes", "-1".to_owned()),
            ("segment.ms", (kept_ms / SEGMENTS).min(DAY_MS).to_string()),
            ("message.timestamp.type", "CreateTime".to_owned()),
            ("max.message.bytes", Options::max_message_bytes().to_string()),
            ("min.insync.replicas", options.min_insync_replicas.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    settings.extend(options.topic_settings.clone());
    settings
}

fn own_settings(config: &ConfigResource) -> BTreeMap<String, String> {
    let own = config.entries.iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
    own.filter_map(|entry| Some((entry.name.clone(), entry.value.clone()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_set_as_the_catalogue_says_and_the_options_add() {
        let topic_settings = BTreeMap::from([("segment.bytes".to_owned(), "1048576".to_owned())]);
        let options = Options { topic_settings, ..Options::default() };
        let settings = wanted(Topic::Deliveries, &options);
        for (key, value) in [
            ("retention.ms", "3600000"),
            ("segment.ms", "450000"),
            ("cleanup.policy", "delete"),
            ("min.insync.replicas", "2"),
            ("segment.bytes", "1048576"),
        ] {
            assert_eq!(settings.get(key).map(String::as_str), Some(value), "{key}");
        }
        assert_eq!(wanted(Topic::MessagesAccepted, &options)["segment.ms"], "75600000");
    }

    #[test]
    fn a_difference_says_what_is_and_what_should_be() {
        let shape = Shape { partitions: 3, replicas: 1 };
        let options = Options { partitions: 12, ..Options::default() };
        let said: Vec<_> = shape.differences("eshaar.lane.high", Topic::LaneHigh, &options);
        let said: Vec<String> = said.iter().map(ToString::to_string).collect();
        assert!(said[0].contains("eshaar.lane.high has 3 partitions, not 12 (kafka.partitions"), "{}", said[0]);
        assert!(said[1].contains("1 copies of a partition, not 3"), "{}", said[1]);
    }
}
