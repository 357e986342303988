//! What can be set about Kafka, and what librdkafka is told because of it (kafka-rules 2, 5, 7).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use serde::Deserialize;

use super::names::Names;
use crate::log::{MAX_HEADERS_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::{LogError, Topic};

/// Largest record in bytes, with room for what Kafka writes around it.
const MAX_RECORD_BYTES: usize = MAX_VALUE_BYTES + MAX_HEADERS_BYTES + MAX_KEY_BYTES + (128 << 10);

/// Most partitions of a topic.
const MAX_PARTITIONS: u32 = 1_024;

/// What a patient fetch waits for, in bytes: some hundred records.
const PATIENT_FETCH_BYTES: usize = 64 << 10;

/// Options of the log on Kafka. Every bound is per process.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Brokers to begin with, `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// The life of the log, 1 or more, the same for every role. Raise it when the log was restored or made anew: what
    /// was known of offsets holds no more.
    pub epoch: u32,
    /// Name of this process, for static membership: its member of a group is `<instance>-<stage>`, and keeps its
    /// partitions through a restart in order. Empty: every start is a new member.
    pub instance: String,
    /// Whether connections are encrypted (TLS 1.2 or newer).
    pub tls: bool,
    /// File of the certificate authorities that brokers are checked with (PEM). Empty: the system's.
    pub ca_file: PathBuf,
    /// File of the certificate to show to brokers (PEM). Empty: none.
    pub certificate_file: PathBuf,
    /// File of the certificate's key (PEM).
    pub key_file: PathBuf,
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`. Empty: no SASL.
    pub sasl_mechanism: String,
    /// Name to log in with.
    pub username: String,
    /// File of the password to log in with.
    pub password_file: PathBuf,
    /// How long a record waits for others to share a request with, in milliseconds.
    pub linger_ms: u32,
    /// `none`, `lz4`, `zstd`, `gzip` or `snappy`.
    pub compression: String,
    /// How long a record may take to be acknowledged, in milliseconds; then its outcome is not known. 0: as long as it
    /// takes, so that order holds through an outage.
    pub delivery_timeout_ms: u32,
    /// Most records that wait to be acknowledged. An append that finds no room waits for it.
    pub queue_records: u32,
    /// Most KiB of records that wait to be acknowledged, 4,096 or more.
    pub queue_kib: u32,
    /// KiB of records of a partition that are fetched ahead, besides one fetch of at most 1 MiB.
    pub prefetch_kib: u32,
    /// Records of a partition that are fetched ahead: while as many wait to be taken, it is not fetched again for
    /// `fetch_pause_ms`.
    pub prefetch_records: u32,
    /// Pause of a partition's fetching while enough of it waits, in milliseconds. A fetch costs the same whether it brings
    /// one record or a hundred, so on a busy partition this is what sets the price of a record, and how late it may come.
    pub fetch_pause_ms: u32,
    /// How long a broker holds a fetch that finds nothing, in milliseconds.
    pub fetch_wait_ms: u32,
    /// How long a member of a group may take to give a partition up, in milliseconds (kafka-rules 9).
    pub revoke_timeout_ms: u64,
    /// How long a question to the brokers may take, in milliseconds: a commit, a look-up, the check at boot.
    pub request_timeout_ms: u32,
    /// How long closing waits for what is not acknowledged yet, in milliseconds.
    pub close_timeout_ms: u64,
    /// Partitions of each topic but `deliveries`, 1 to 1,024, the same for every role; for the life of the log. So many
    /// processes of a stage have work.
    pub partitions: u32,
    /// Partitions of `deliveries`, likewise. So many gateways can live at a time.
    pub slots: u32,
    /// Copies of each partition, where `eshaar topics apply` makes a topic.
    pub replication_factor: u16,
    /// Copies that must have a record before it is acknowledged (`min.insync.replicas`).
    pub min_insync_replicas: u16,
    /// Further settings of every topic, by Kafka's names, e.g. `"segment.bytes" = "268435456"`.
    pub topic_settings: BTreeMap<String, String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bootstrap_servers: "127.0.0.1:9092".to_owned(),
            epoch: 1,
            instance: String::new(),
            tls: false,
            ca_file: PathBuf::new(),
            certificate_file: PathBuf::new(),
            key_file: PathBuf::new(),
            sasl_mechanism: String::new(),
            username: String::new(),
            password_file: PathBuf::new(),
            linger_ms: 5,
            compression: "lz4".to_owned(),
            delivery_timeout_ms: 0,
            queue_records: 200_000,
            queue_kib: 64 << 10,
            prefetch_kib: 1 << 10,
            prefetch_records: 1,
            fetch_pause_ms: 50,
            fetch_wait_ms: 50,
            revoke_timeout_ms: 20_000,
            request_timeout_ms: 10_000,
            close_timeout_ms: 10_000,
            partitions: Topic::MessagesAccepted.spec().partitions,
            slots: Topic::Deliveries.spec().partitions,
            replication_factor: 3,
            min_insync_replicas: 2,
            topic_settings: BTreeMap::new(),
        }
    }
}

impl Options {
    /// How many partitions a topic has.
    pub fn partitions_of(&self, topic: Topic) -> u32 {
        if topic == Topic::Deliveries { self.slots } else { self.partitions }
    }

    /// `max.message.bytes` of every topic: the largest record must fit.
    pub(super) const fn max_message_bytes() -> usize {
        2 * MAX_VALUE_BYTES
    }

    pub(super) fn request_timeout(&self) -> Duration {
        Duration::from_millis(u64::from(self.request_timeout_ms))
    }

    pub(super) const fn revoke_timeout(&self) -> Duration {
        Duration::from_millis(self.revoke_timeout_ms)
    }

    pub(super) const fn close_timeout(&self) -> Duration {
        Duration::from_millis(self.close_timeout_ms)
    }

    /// What all clients have in common. Reads the password: not to be logged.
    pub(super) fn client(&self) -> Result<ClientConfig, LogError> {
        self.check()?;
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("client.id", if self.instance.is_empty() { "eshaar" } else { &self.instance })
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.max.ms", "2000")
            // The other strategy makes clients lose their brokers more often than it gives them back (docs/adr/0017).
            .set("metadata.recovery.strategy", "none")
            .set("log.connection.close", "false")
            .set("enable.metrics.push", "false")
            .set("allow.auto.create.topics", "false");
        let protocol = match (self.tls, self.sasl_mechanism.is_empty()) {
            (false, true) => "plaintext",
            (true, true) => "ssl",
            (false, false) => "sasl_plaintext",
            (true, false) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if self.tls {
            let files = [
                ("ssl.ca.location", &self.ca_file),
                ("ssl.certificate.location", &self.certificate_file),
                ("ssl.key.location", &self.key_file),
            ];
            for (key, file) in files.into_iter().filter(|(_, file)| !file.as_os_str().is_empty()) {
                config.set(key, file.to_string_lossy());
            }
        }
        if !self.sasl_mechanism.is_empty() {
            let password = std::fs::read_to_string(&self.password_file).map_err(|error| {
                LogError::Option(format!("kafka.password_file: {}: {error}", self.password_file.display()))
            })?;
            config
                .set("sasl.mechanism", &self.sasl_mechanism)
                .set("sasl.username", &self.username)
                .set("sasl.password", password.trim_end_matches(['\r', '\n']));
        }
        config.set_log_level(RDKafkaLogLevel::Info);
        Ok(config)
    }

    pub(super) fn producer(&self) -> Result<ClientConfig, LogError> {
        let mut config = self.client()?;
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", self.linger_ms.to_string())
            .set("compression.type", &self.compression)
            .set("message.timeout.ms", self.delivery_timeout_ms.to_string())
            .set("message.max.bytes", MAX_RECORD_BYTES.to_string())
            .set("queue.buffering.max.messages", self.queue_records.to_string())
            .set("queue.buffering.max.kbytes", self.queue_kib.to_string());
        Ok(config)
    }

    /// A consumer that is told which partitions to read and at which offset.
    pub(super) fn reader(&self, names: &Names) -> Result<ClientConfig, LogError> {
        let mut config = self.client()?;
        config
            // Never joined and never committed to: librdkafka assigns nothing without a name.
            .set("group.id", names.group("readers"))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // Every offset is looked at before it is read from: what is out of range later has been let go meanwhile.
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_uncommitted")
            .set("fetch.wait.max.ms", self.fetch_wait_ms.to_string())
            .set("fetch.queue.backoff.ms", self.fetch_pause_ms.to_string())
            .set("fetch.max.bytes", (16 << 20).to_string())
            .set("fetch.message.max.bytes", (1 << 20).to_string())
            .set("queued.min.messages", self.prefetch_records.to_string())
            .set("queued.max.messages.kbytes", self.prefetch_kib.to_string());
        Ok(config)
    }

    /// A member of a group. `nth` is 1 for the first member of this process. With patience a fetch comes back when it has
    /// something to carry, or when that is over: most of what a fetch costs is by the fetch, here and at the broker.
    pub(super) fn member(
        &self,
        names: &Names,
        stage: &str,
        nth: usize,
        patience: Duration,
    ) -> Result<ClientConfig, LogError> {
        let mut config = self.reader(names)?;
        if !patience.is_zero() {
            config
                .set("fetch.min.bytes", PATIENT_FETCH_BYTES.to_string())
                .set("fetch.wait.max.ms", patience.as_millis().to_string());
        }
        config
            .set("group.id", names.group(stage))
            .set("group.protocol", "consumer")
            .set("group.remote.assignor", "range");
        if !self.instance.is_empty() {
            let suffix = if nth == 1 { String::new() } else { format!("-{nth}") };
            config.set("group.instance.id", format!("{}-{stage}{suffix}", self.instance));
        }
        Ok(config)
    }

    fn check(&self) -> Result<(), LogError> {
        let wrong = if self.bootstrap_servers.is_empty() {
            "bootstrap_servers is empty".to_owned()
        } else if self.epoch == 0 {
            "epoch is 0; it begins at 1".to_owned()
        } else if self.queue_kib < 4_096 {
            format!("queue_kib is {}; at least 4096 are needed for the largest records", self.queue_kib)
        } else if let Some((name, count)) = [("partitions", self.partitions), ("slots", self.slots)]
            .into_iter()
            .find(|(_, count)| !(1..=MAX_PARTITIONS).contains(count))
        {
            format!("{name} is {count}; it is 1 to {MAX_PARTITIONS}")
        } else if self.replication_factor == 0 || self.min_insync_replicas == 0 {
            format!(
                "replication_factor is {} and kafka.min_insync_replicas is {}; each is at least 1",
                self.replication_factor, self.min_insync_replicas
            )
        } else if self.min_insync_replicas > self.replication_factor {
            format!(
                "min_insync_replicas is {}, of {} copies (kafka.replication_factor)",
                self.min_insync_replicas, self.replication_factor
            )
        } else {
            return Ok(());
        };
        Err(LogError::Option(format!("kafka.{wrong}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_has_its_default_and_a_wrong_key_is_named() {
        let options: Options = toml::from_str("epoch = 4\nlinger_ms = 7").unwrap();
        assert_eq!((options.epoch, options.linger_ms), (4, 7));
        assert_eq!(options.compression, Options::default().compression);
        let error = toml::from_str::<Options>("linger = 5").unwrap_err();
        assert!(error.to_string().contains("linger"));
    }

    #[test]
    fn the_defaults_are_those_of_the_rules_and_librdkafka_takes_them() {
        let (options, names) = (Options::default(), Names::new("eshaar."));
        let producer = options.producer().unwrap();
        for (key, value) in [("enable.idempotence", "true"), ("acks", "all"), ("partitioner", "murmur2_random")] {
            assert_eq!(producer.get(key), Some(value));
        }
        assert_eq!(producer.get("message.timeout.ms"), Some("0"));
        let member = options.member(&names, "route", 1, Duration::ZERO).unwrap();
        for (key, value) in [
            ("group.id", "eshaar.route"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("fetch.queue.backoff.ms", "50"),
            ("queued.min.messages", "1"),
            ("queued.max.messages.kbytes", "1024"),
        ] {
            assert_eq!(member.get(key), Some(value), "{key}");
        }
        assert_eq!(member.get("group.instance.id"), None);
        for config in [producer, member, options.reader(&names).unwrap()] {
            config.create_native_config().unwrap();
        }
    }

    #[test]
    fn members_of_a_named_process_have_names_of_their_own() {
        let options = Options { instance: "a1".to_owned(), ..Options::default() };
        let name = |nth| {
            let config = options.member(&Names::new("x."), "route", nth, Duration::ZERO).unwrap();
            config.get("group.instance.id").map(str::to_owned)
        };
        assert_eq!((name(1), name(2)), (Some("a1-route".to_owned()), Some("a1-route-2".to_owned())));
    }

    #[test]
    fn a_password_is_read_from_its_file_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let password_file = dir.path().join("password");
        std::fs::write(&password_file, "s3cret\n").unwrap();
        let options = Options {
            tls: true,
            sasl_mechanism: "SCRAM-SHA-512".to_owned(),
            username: "eshaar".to_owned(),
            password_file,
            ..Options::default()
        };
        let config = options.client().unwrap();
        assert_eq!(config.get("sasl.password"), Some("s3cret"));
        assert_eq!(config.get("security.protocol"), Some("sasl_ssl"));
        assert!(!format!("{options:?}").contains("s3cret"));
        let missing = Options { password_file: dir.path().join("none"), ..options };
        assert!(missing.client().unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn options_that_cannot_work_are_refused_with_what_is_allowed() {
        for (change, word) in [
            (Options { epoch: 0, ..Options::default() }, "epoch"),
            (Options { queue_kib: 1, ..Options::default() }, "4096"),
            (Options { partitions: 0, ..Options::default() }, "partitions is 0"),
            (Options { slots: 1_025, ..Options::default() }, "slots is 1025; it is 1 to 1024"),
            (Options { replication_factor: 1, ..Options::default() }, "min_insync_replicas"),
            (Options { bootstrap_servers: String::new(), ..Options::default() }, "bootstrap_servers"),
        ] {
            let error = change.client().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
