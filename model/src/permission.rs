//! What an API key allows (R1.11).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A permission. `admin` includes all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it; R1.11 lists them")]
pub enum Permission {
    #[serde(rename = "messages:send")]
    MessagesSend,
    #[serde(rename = "messages:read")]
    MessagesRead,
    #[serde(rename = "broadcasts:send")]
    BroadcastsSend,
    #[serde(rename = "chat")]
    Chat,
    #[serde(rename = "conversations:manage")]
    ConversationsManage,
    #[serde(rename = "media:upload")]
    MediaUpload,
    #[serde(rename = "webhooks:manage")]
    WebhooksManage,
    #[serde(rename = "admin")]
    Admin,
}

impl Permission {
    /// Any of these lets a business see its conversations.
    pub const OF_CONVERSATIONS: [Self; 2] = [Self::Chat, Self::ConversationsManage];

    /// All permissions.
    pub const ALL: [Self; 8] = [
        Self::MessagesSend,
        Self::MessagesRead,
        Self::BroadcastsSend,
        Self::Chat,
        Self::ConversationsManage,
        Self::MediaUpload,
        Self::WebhooksManage,
        Self::Admin,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MessagesSend => "messages:send",
            Self::MessagesRead => "messages:read",
            Self::BroadcastsSend => "broadcasts:send",
            Self::Chat => "chat",
            Self::ConversationsManage => "conversations:manage",
            Self::MediaUpload => "media:upload",
            Self::WebhooksManage => "webhooks:manage",
            Self::Admin => "admin",
        }
    }

    /// Whether a holder of this permission may do what `wanted` allows.
    pub fn covers(self, wanted: Self) -> bool {
        self == Self::Admin || self == wanted
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no permission.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "expected a permission (messages:send, messages:read, broadcasts:send, chat, conversations:manage, media:upload, webhooks:manage or admin), got {length} characters that are not one"
)]
pub struct PermissionError {
    /// Length of the refused text, in characters.
    pub length: usize,
}

impl FromStr for Permission {
    type Err = PermissionError;

    fn from_str(text: &str) -> Result<Self, PermissionError> {
        Self::ALL
            .into_iter()
            .find(|permission| permission.as_str() == text)
            .ok_or_else(|| PermissionError { length: text.chars().count() })
    }
}
