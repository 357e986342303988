//! What a message is, how urgent it is, and which lane it takes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ConversationId;

/// The two types of message (R1.1), as they are named in the API and in Avro.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageType {
    /// From a business to a phone; it cannot be replied to.
    OneWay = 0,
    /// Within a conversation, either way.
    Chat = 1,
}

/// A type together with what it requires: a one-way message has no conversation, a chat message always has one. The
/// wrong combination has no value (property 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// No conversation.
    OneWay,
    /// In this conversation.
    Chat(ConversationId),
}

/// Type and conversation do not go together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MessageKindError {
    /// A one-way message was given a conversation.
    #[error("a one_way message has no conversation: leave out `conversation_id`, or send type `chat`")]
    OneWayInConversation,
    /// A chat message was given none.
    #[error("a chat message needs a conversation: give `conversation_id`")]
    ChatWithoutConversation,
}

impl MessageKind {
    /// Joins a type and an optional conversation, as they arrive on a wire.
    pub fn new(kind: MessageType, conversation: Option<ConversationId>) -> Result<Self, MessageKindError> {
        match (kind, conversation) {
            (MessageType::OneWay, None) => Ok(Self::OneWay),
            (MessageType::Chat, Some(id)) => Ok(Self::Chat(id)),
            (MessageType::OneWay, Some(_)) => Err(MessageKindError::OneWayInConversation),
            (MessageType::Chat, None) => Err(MessageKindError::ChatWithoutConversation),
        }
    }

    /// The type alone.
    pub const fn message_type(self) -> MessageType {
        match self {
            Self::OneWay => MessageType::OneWay,
            Self::Chat(_) => MessageType::Chat,
        }
    }

    /// The conversation, for chat.
    pub const fn conversation(self) -> Option<ConversationId> {
        match self {
            Self::OneWay => None,
            Self::Chat(id) => Some(id),
        }
    }
}

/// A one-way message cannot be replied to (R1.5).
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a one_way message cannot be replied to: it is read-only for its recipient")]
pub struct ReplyRefused;

impl MessageKind {
    /// What a reply to this message is: a chat message of the same conversation. A one-way message takes none (R1.5).
    pub const fn reply(self) -> Result<Self, ReplyRefused> {
        match self {
            Self::OneWay => Err(ReplyRefused),
            Self::Chat(conversation) => Ok(Self::Chat(conversation)),
        }
    }
}

/// How urgent a message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Before all others that wait.
    High,
    /// The default.
    #[default]
    Normal,
    /// When nothing more urgent waits, though never starved.
    Low,
}

/// The four ways to a phone. Order holds within one; a weighted choice is made between them.
///
/// A function of the record alone, stamped where it is accepted, so that a replay takes the same lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Lane {
    /// Single submissions of high priority.
    High = 0,
    /// Single submissions of normal priority.
    Normal = 1,
    /// Single submissions of low priority.
    Low = 2,
    /// Bulk submissions and broadcasts, whatever their priority.
    Bulk = 3,
}

impl Lane {
    /// All lanes, most urgent first.
    pub const ALL: [Self; 4] = [Self::High, Self::Normal, Self::Low, Self::Bulk];

    /// The lane of a single submission.
    pub const fn of(priority: Priority) -> Self {
        match priority {
            Priority::High => Self::High,
            Priority::Normal => Self::Normal,
            Priority::Low => Self::Low,
        }
    }

    /// Place in [`Lane::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The lane at a place in [`Lane::ALL`].
    pub fn from_index(index: usize) -> Option<Self> {
        Self::ALL.get(index).copied()
    }

    /// Its name in topics, headers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
            Self::Bulk => "bulk",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no lane.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected a lane (high, normal, low or bulk), got {length} characters that are not one")]
pub struct LaneError {
    /// Length of the refused text, in characters.
    pub length: usize,
}

impl FromStr for Lane {
    type Err = LaneError;

    fn from_str(text: &str) -> Result<Self, LaneError> {
        Self::ALL
            .into_iter()
            .find(|lane| lane.as_str() == text)
            .ok_or_else(|| LaneError { length: text.chars().count() })
    }
}
