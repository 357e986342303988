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
    Cancellations,
    LaneHigh,
    LaneNormal,
    LaneLow,
    LaneBulk,
    Deliveries,
    MessageStatus,
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
    pub const ALL: [Self; 9] = [
        Self::MessagesAccepted,
        Self::Cancellations,
        Self::LaneHigh,
        Self::LaneNormal,
        Self::LaneLow,
        Self::LaneBulk,
        Self::Deliveries,
        Self::MessageStatus,
        Self::DeadLetters,
    ];

    /// Its name, without the configured prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MessagesAccepted => "messages.accepted",
            Self::Cancellations => "cancellations",
            Self::LaneHigh => "lane.high",
            Self::LaneNormal => "lane.normal",
            Self::LaneLow => "lane.low",
            Self::LaneBulk => "lane.bulk",
            Self::Deliveries => "deliveries",
            Self::MessageStatus => "message.status",
            Self::DeadLetters => "dead-letters",
        }
    }

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
        for topic in lanes.chain([Topic::MessageStatus]) {
            assert_eq!(topic.spec().partitions, Topic::MessagesAccepted.spec().partitions, "{topic}");
        }
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
