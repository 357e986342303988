//! The Rust types of the Avro records. A test holds each to its `.avsc`.

use std::collections::BTreeMap;

use bytes::Bytes;
use eshaar_model::{BroadcastId, ConversationId, MessageId, MessageType, Priority, RecipientsId, Status};
use serde::{Deserialize, Serialize};

use crate::codec::Contract;

macro_rules! contracts {
    ($($record:ident: $name:literal = $file:literal),+ $(,)?) => {
        $(impl Contract for $record {
            const NAME: &'static str = $name;
            const SCHEMA: &'static str = include_str!(concat!("../avro/", $file));
        })+

        /// Every contract: its name, and its schema in Avro JSON.
        pub const CONTRACTS: &[(&str, &str)] = &[$(($record::NAME, $record::SCHEMA)),+];
    };
}

contracts! {
    Message: "eshaar.Message" = "message.avsc",
    Delivery: "eshaar.Delivery" = "delivery.avsc",
    StatusChanged: "eshaar.StatusChanged" = "status_changed.avsc",
    DeadLetter: "eshaar.DeadLetter" = "dead_letter.avsc",
    Cancellation: "eshaar.Cancellation" = "cancellation.avsc",
    Broadcast: "eshaar.Broadcast" = "broadcast.avsc",
    ConversationChanged: "eshaar.ConversationChanged" = "conversation_changed.avsc",
}

/// `avro/message.avsc`. Times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are documented in the schema, their source of truth")]
pub struct Message {
    pub id: MessageId,
    pub r#type: MessageType,
    #[serde(default)]
    pub conversation_id: Option<String>,
    pub sender: String,
    pub recipient: String,
    pub content: String,
    #[serde(default)]
    pub content_ciphertext: Option<Bytes>,
    #[serde(default)]
    pub content_key_id: Option<String>,
    #[serde(default)]
    pub media: Vec<Media>,
    pub priority: Priority,
    pub created_at: i64,
    #[serde(default)]
    pub expires_at: Option<i64>,
    #[serde(default)]
    pub reference: Option<String>,
    #[serde(default)]
    pub collapse_key: Option<String>,
    pub correlation_id: String,
    #[serde(default)]
    pub broadcast_id: Option<String>,
}

/// What is known of an attached file; the bytes are in blob storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are documented in the schema, their source of truth")]
pub struct Media {
    pub id: String,
    pub content_type: String,
    pub size_bytes: i64,
    #[serde(default)]
    pub file_name: Option<String>,
}

/// `avro/delivery.avsc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are documented in the schema, their source of truth")]
pub struct Delivery {
    pub principal: String,
    pub hint: Hint,
}

/// What a gateway is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hint {
    /// A message was appended to the principal's stream, or to one of its conversations.
    #[serde(rename = "eshaar.MessageHint")]
    Message(MessageHint),
    /// A message that the principal sent, or a conversation of the principal, has moved on.
    #[serde(rename = "eshaar.StatusHint")]
    Status(StatusHint),
}

/// A message was appended to the principal's stream, or to one of its conversations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are documented in the schema, their source of truth")]
pub struct MessageHint {
    pub epoch: i32,
    pub lane: i32,
    pub offset: i64,
    /// `None`: unknown; -1: there is none before it.
    #[serde(default)]
    pub prev: Option<i64>,
    pub message: Bytes,
    #[serde(default)]
    pub in_conversation: bool,
}

/// A message that the principal sent, or a conversation of the principal, has moved on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are documented in the schema, their source of truth")]
pub struct StatusHint {
    /// The message, or the conversation.
    pub id: MessageId,
    pub status: String,
    pub at: i64,
    #[serde(default)]
    pub conversation: Option<ConversationHint>,
    #[serde(default)]
    pub of_chat: bool,
}

/// What is said is about a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are documented in the schema, their source of truth")]
pub struct ConversationHint {
    pub with: String,
    pub by: String,
    #[serde(default)]
    pub up_to: Option<String>,
}

/// `avro/status_changed.avsc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are documented in the schema, their source of truth")]
pub struct StatusChanged {
    pub id: MessageId,
    pub status: Status,
    pub at: i64,
    pub sender: String,
    pub recipient: String,
    #[serde(default)]
    pub reason: Option<String>,
}

/// `avro/cancellation.avsc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are documented in the schema, their source of truth")]
pub struct Cancellation {
    pub id: MessageId,
    pub sender: String,
    pub at: i64,
}

/// `avro/broadcast.avsc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are documented in the schema, their source of truth")]
pub struct Broadcast {
    pub id: BroadcastId,
    pub sender: String,
    #[serde(default)]
    pub audience: Option<String>,
    pub recipients: RecipientsId,
    pub total: i64,
    pub content: String,
    pub priority: Priority,
    pub created_at: i64,
    #[serde(default)]
    pub expires_at: Option<i64>,
    #[serde(default)]
    pub reference: Option<String>,
    #[serde(default)]
    pub collapse_key: Option<String>,
    #[serde(default)]
    pub rate: Option<i32>,
    pub correlation_id: String,
    /// Public id of the API key that it was sent with, from whose limit its messages take.
    #[serde(default)]
    pub key_id: Option<String>,
    /// The rate that the key has of its own.
    #[serde(default)]
    pub key_rate: Option<String>,
}

/// What became of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "documented in the schema")]
pub enum Change {
    Created,
    TakenUp,
    Archived,
    Closed,
    Read,
}

impl Change {
    /// Its symbol in the schema.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::TakenUp => "taken_up",
            Self::Archived => "archived",
            Self::Closed => "closed",
            Self::Read => "read",
        }
    }
}

/// `avro/conversation_changed.avsc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are documented in the schema, their source of truth")]
pub struct ConversationChanged {
    pub id: ConversationId,
    pub change: Change,
    pub at: i64,
    pub business: String,
    pub phone: String,
    pub by: String,
    #[serde(default)]
    pub up_to: Option<String>,
}

/// `avro/dead_letter.avsc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are documented in the schema, their source of truth")]
pub struct DeadLetter {
    pub stage: String,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Bytes,
    pub value: Bytes,
    pub headers: BTreeMap<String, Bytes>,
    pub code: String,
    pub reason: String,
    pub attempts: i32,
    pub at: i64,
}
