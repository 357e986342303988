//! The one list of topics: `catalogue.toml`, as types.

use std::fmt;

/// What an acknowledgement of the embedded log means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
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
    LaneHigh,
    LaneNormal,
    LaneLow,
    LaneBulk,
    Deliveries,
    MessageStatus,
    DeadLetters,
}

/// A topic as the catalogue describes it.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is described in catalogue.toml")]
pub struct TopicSpec {
    pub name: String,
    pub key: String,
    pub value: String,
    pub partitions: u32,
    pub kept_ms: u64,
    pub durability: Durability,
    pub data_team: bool,
    pub flow: String,
}

impl Topic {
    /// All topics, in the order of the flow.
    pub const ALL: [Self; 8] = [
        Self::MessagesAccepted,
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
        unimplemented!("read from catalogue.toml")
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
