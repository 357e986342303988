//! What librdkafka calls: its log lines and errors go to tracing, rebalances to the member they are for.

use std::sync::Arc;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Statistics, TopicPartitionList};

use super::membership::Membership;

/// A consumer of ours.
pub(super) type Client = BaseConsumer<Hooks>;
/// The fetched records of one partition.
pub(super) type Queue = PartitionQueue<Hooks>;

/// Hooks of a consumer: of a member of a group, or of one that reads what it is told to.
pub(super) struct Hooks(pub Option<Arc<Membership>>);

impl ClientContext for Hooks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }

    fn stats(&self, _: Statistics) {}
}

impl ConsumerContext for Hooks {
    fn rebalance(&self, consumer: &Client, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        if let Some(membership) = &self.0 {
            match event {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => membership.assigned(consumer, partitions),
                _ => membership.revoked(consumer, partitions),
            }
        }
    }
}

/// A line of librdkafka's log.
pub(super) fn log_line(level: RDKafkaLogLevel, facility: &str, line: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::error!(target: "librdkafka", facility, "{line}");
        }
        // A broker that has just come up loads its coordinator; librdkafka asks again by itself.
        RDKafkaLogLevel::Warning if facility == "GETPID" && line.ends_with("retrying") => {
            tracing::debug!(target: "librdkafka", facility, "{line}");
        }
        RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, "{line}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(target: "librdkafka", facility, "{line}"),
        RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{line}"),
    }
}

/// An error that librdkafka goes on after by itself: a broker that is away, a leader that moved.
pub(super) fn log_error(error: &KafkaError, reason: &str) {
    tracing::warn!(target: "librdkafka", %error, "{reason}");
}
