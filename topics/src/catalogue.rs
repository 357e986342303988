//! The one list of topics: `catalogue.toml`, as types.

use std::fmt;
use std::sync::LazyLock;

use serde::Deserialize;

/// What an acknowledgement of the embedded log means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// On disk, fsync done.
    Synced,
    /// Survives the process, not a power cut.
    Written,
    /// Does not survive the process.
    Memory,
}

/// Every topic. A test holds it to the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is described in catalogue.toml")]
#[repr(u8)]
pub enum Topic {
    MessagesAccepted,
    MessagesScheduled,
    BroadcastsRequested,
    Cancellations,
    LaneHigh,
    LaneNormal,
    LaneLow,
    LaneBulk,
    RetryRoute1s,
    RetryRoute2s,
    RetryRoute4s,
    RetryRoute8s,
    RetryRoute16s,
    RetryRoute32s,
    Deliveries,
    MessageStatus,
    ConversationEvents,
    RetryNotify1s,
    RetryNotify2s,
    RetryNotify4s,
    RetryNotify8s,
    RetryNotify16s,
    RetryNotify32s,
    DeadLetters,
}

/// A topic as the catalogue describes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "each is described in catalogue.toml")]
pub struct TopicSpec {
    pub name: String,
    pub key: String,
    pub value: String,
    pub partitions: u32,
    #[serde(rename = "kept", deserialize_with = "kept_ms")]
    pub kept_ms: u64,
    pub durability: Durability,
    pub data_team: bool,
    pub flow: String,
}

impl Topic {
    /// All topics, in the order of the flow.
    pub const ALL: [Self; 24] = [
        Self::MessagesAccepted,
        Self::MessagesScheduled,
        Self::BroadcastsRequested,
        Self::Cancellations,
        Self::LaneHigh,
        Self::LaneNormal,
        Self::LaneLow,
        Self::LaneBulk,
        Self::RetryRoute1s,
        Self::RetryRoute2s,
        Self::RetryRoute4s,
        Self::RetryRoute8s,
        Self::RetryRoute16s,
        Self::RetryRoute32s,
        Self::Deliveries,
        Self::MessageStatus,
        Self::ConversationEvents,
        Self::RetryNotify1s,
        Self::RetryNotify2s,
        Self::RetryNotify4s,
        Self::RetryNotify8s,
        Self::RetryNotify16s,
        Self::RetryNotify32s,
        Self::DeadLetters,
    ];

    /// Its name, without the configured prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MessagesAccepted => "messages.accepted",
            Self::MessagesScheduled => "messages.scheduled",
            Self::BroadcastsRequested => "broadcasts.requested",
            Self::Cancellations => "cancellations",
            Self::LaneHigh => "lane.high",
            Self::LaneNormal => "lane.normal",
            Self::LaneLow => "lane.low",
            Self::LaneBulk => "lane.bulk",
            Self::RetryRoute1s => "retry.route.1s",
            Self::RetryRoute2s => "retry.route.2s",
            Self::RetryRoute4s => "retry.route.4s",
            Self::RetryRoute8s => "retry.route.8s",
            Self::RetryRoute16s => "retry.route.16s",
            Self::RetryRoute32s => "retry.route.32s",
            Self::Deliveries => "deliveries",
            Self::MessageStatus => "message.status",
            Self::ConversationEvents => "conversation.events",
            Self::RetryNotify1s => "retry.notify.1s",
            Self::RetryNotify2s => "retry.notify.2s",
            Self::RetryNotify4s => "retry.notify.4s",
            Self::RetryNotify8s => "retry.notify.8s",
            Self::RetryNotify16s => "retry.notify.16s",
            Self::RetryNotify32s => "retry.notify.32s",
            Self::DeadLetters => "dead-letters",
        }
    }

    /// Where `route` waits to try again, one topic a delay of [`eshaar_model::retry::DELAYS`].
    pub const RETRY_ROUTE: [Self; 6] = [
        Self::RetryRoute1s,
        Self::RetryRoute2s,
        Self::RetryRoute4s,
        Self::RetryRoute8s,
        Self::RetryRoute16s,
        Self::RetryRoute32s,
    ];

    /// Where `notify` waits to try again.
    pub const RETRY_NOTIFY: [Self; 6] = [
        Self::RetryNotify1s,
        Self::RetryNotify2s,
        Self::RetryNotify4s,
        Self::RetryNotify8s,
        Self::RetryNotify16s,
        Self::RetryNotify32s,
    ];

    /// The topic of a lane.
    pub const fn of_lane(lane: eshaar_model::Lane) -> Self {
        match lane {
            eshaar_model::Lane::High => Self::LaneHigh,
            eshaar_model::Lane::Normal => Self::LaneNormal,
            eshaar_model::Lane::Low => Self::LaneLow,
            eshaar_model::Lane::Bulk => Self::LaneBulk,
        }
    }

    /// The lane that this topic carries, if it is a lane's.
    pub const fn lane(self) -> Option<eshaar_model::Lane> {
        match self {
            Self::LaneHigh => Some(eshaar_model::Lane::High),
            Self::LaneNormal => Some(eshaar_model::Lane::Normal),
            Self::LaneLow => Some(eshaar_model::Lane::Low),
            Self::LaneBulk => Some(eshaar_model::Lane::Bulk),
            _ => None,
        }
    }

    /// What the catalogue says of it.
    pub fn spec(self) -> &'static TopicSpec {
        &CATALOGUE.topics[self as usize]
    }
}

/// What the catalogue says of a value whose bytes were written to another topic.
const AS_IT_WAS: &str = "as it was";

impl TopicSpec {
    /// The record on it, whose schema is the topic's subject in the registry; `None` where values are bytes of another
    /// topic, which name the schema that they were written with there.
    pub fn contract(&self) -> Option<&str> {
        (self.value != AS_IT_WAS).then_some(self.value.as_str())
    }
}

/// The file, parsed once. It is part of the binary, and a test parses it: what cannot be read cannot be released.
#[allow(clippy::expect_used, reason = "a constant of the binary, held by a test")]
static CATALOGUE: LazyLock<Catalogue> =
    LazyLock::new(|| toml::from_str(include_str!("../catalogue.toml")).expect("catalogue.toml is valid"));

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    #[serde(rename = "topic")]
    topics: Vec<TopicSpec>,
}

/// Reads a time such as `7d`, `12h`, `30m` or `45s` as milliseconds.
fn kept_ms<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    parse_ms(&text).ok_or_else(|| serde::de::Error::custom(format!("expected a time such as 7d or 12h, got {text:?}")))
}

fn parse_ms(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit_ms: u64 = match unit {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms)
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_enum_and_the_catalogue_have_the_same_topics_in_the_same_order() {
        let listed: Vec<&str> = CATALOGUE.topics.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(Topic::ALL.map(Topic::name).to_vec(), listed);
        for (place, topic) in Topic::ALL.into_iter().enumerate() {
            assert_eq!(topic as usize, place, "{topic}");
            assert_eq!(topic.spec().name, topic.name());
        }
    }

    #[test]
    fn every_topic_has_partitions_and_is_kept_for_a_while() {
        for topic in Topic::ALL {
            assert!((1..=1024).contains(&topic.spec().partitions), "{topic}");
            assert!(topic.spec().kept_ms > 0, "{topic}");
        }
    }

    #[test]
    fn topics_that_are_read_together_have_equal_partition_counts() {
        let lanes = Topic::ALL.into_iter().filter(|topic| topic.lane().is_some());
        let retries = Topic::RETRY_ROUTE.into_iter().chain(Topic::RETRY_NOTIFY);
        for topic in lanes.chain([Topic::MessagesScheduled, Topic::MessageStatus]).chain(retries) {
            assert_eq!(topic.spec().partitions, Topic::MessagesAccepted.spec().partitions, "{topic}");
        }
    }

    #[test]
    fn a_retry_topic_names_its_stage_and_delay_and_has_no_schema_of_its_own() {
        for (stage, topics) in [("route", Topic::RETRY_ROUTE), ("notify", Topic::RETRY_NOTIFY)] {
            for (topic, delay) in topics.into_iter().zip(eshaar_model::retry::DELAYS) {
                assert_eq!(topic.name(), format!("retry.{stage}.{}s", delay.as_secs()));
                assert_eq!(topic.spec().contract(), None);
            }
        }
        assert_eq!(Topic::LaneHigh.spec().contract(), Some("Message"));
    }

    #[test]
    fn a_lane_and_its_topic_name_each_other() {
        for topic in Topic::ALL {
            if let Some(lane) = topic.lane() {
                assert_eq!(Topic::of_lane(lane), topic);
            }
        }
    }

    #[test]
    fn times_are_read_with_their_unit_and_nothing_else_is() {
        assert_eq!(parse_ms("7d"), Some(604_800_000));
        assert_eq!(parse_ms("1h"), Some(3_600_000));
        for wrong in ["", "d", "7", "7w", "-1d", "1.5h", "99999999999999999999d", "7д"] {
            assert_eq!(parse_ms(wrong), None, "{wrong}");
        }
    }
}
