//! The frames of docs/protocol.md: one variant a message, each way.

use std::borrow::Cow;

use eshaar_model::{ConversationId, ConversationPosition, Cursor, MessageId, Principal, Timestamp};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

/// Longest name of a device, in characters.
pub(crate) const DEVICE_CHARS: usize = 64;

/// Most ids in one frame.
pub(crate) const IDS: usize = 256;

/// Longest `detail` of a bye, in bytes.
const DETAIL_BYTES: usize = 200;

/// From a client. Fields that are not known are passed over, so that newer clients work.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    Hello(Hello),
    Ack { cursor: Option<Cursor>, ids: Option<Vec<MessageId>> },
    Read { ids: Option<Vec<MessageId>>, conversation_id: Option<ConversationId>, up_to: Option<ConversationPosition> },
    Renew { access_token: String },
    Ping {},
    Send(Send),
    Join { conversation_id: ConversationId, r#ref: Option<String> },
    Leave { conversation_id: ConversationId, r#ref: Option<String> },
    Typing { conversation_id: ConversationId, on: bool, r#ref: Option<String> },
}

impl Request {
    /// Its name on the wire, and in the table of operations.
    pub(crate) const fn op(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Ack { .. } => "ack",
            Self::Read { .. } => "read",
            Self::Renew { .. } => "renew",
            Self::Ping {} => "ping",
            Self::Send(_) => "send",
            Self::Join { .. } => "join",
            Self::Leave { .. } => "leave",
            Self::Typing { .. } => "typing",
        }
    }

    /// What the client calls it.
    pub(crate) fn reference(&self) -> Option<&str> {
        match self {
            Self::Send(send) => Some(&send.r#ref),
            Self::Join { r#ref, .. } | Self::Leave { r#ref, .. } | Self::Typing { r#ref, .. } => r#ref.as_deref(),
            _ => None,
        }
    }
}

/// A message in a conversation, or to the other side. What is wrong with its fields is said under its `ref`.
#[derive(Debug, Deserialize)]
pub(crate) struct Send {
    pub(crate) r#ref: String,
    pub(crate) to: Option<String>,
    pub(crate) conversation_id: Option<String>,
    pub(crate) content: String,
    pub(crate) reference: Option<String>,
    #[serde(default)]
    pub(crate) media: Vec<IgnoredAny>,
}

/// The first frame of a client.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Hello {
    pub(crate) after: Option<Cursor>,
    pub(crate) from: Option<From>,
    pub(crate) device: Option<String>,
}

/// Where delivery begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum From {
    Head,
    Start,
}

/// Why a cursor does not fit what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Gap {
    TooOld,
    OtherEpoch,
    PastHead,
}

/// To a client. `message` is not among them: it is rendered once for all sessions ([`crate::message`]).
#[derive(Debug, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Reply<'a> {
    Welcome {
        session: String,
        principal: &'a Principal,
    },
    CaughtUp {
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<Cursor>,
    },
    Gap {
        reason: Gap,
        oldest: Cursor,
    },
    Status {
        id: MessageId,
        status: &'a str,
        at: Timestamp,
    },
    Sent {
        r#ref: &'a str,
        id: MessageId,
        conversation_id: ConversationId,
        sent_at: Timestamp,
        replayed: bool,
    },
    Conversation {
        conversation_id: MessageId,
        change: &'a str,
        with: &'a str,
        by: &'a str,
        at: Timestamp,
        #[serde(skip_serializing_if = "Option::is_none")]
        up_to: Option<&'a str>,
    },
    Joined {
        r#ref: Option<&'a str>,
        conversation_id: ConversationId,
    },
    Left {
        r#ref: Option<&'a str>,
        conversation_id: ConversationId,
    },
    Typing {
        conversation_id: ConversationId,
        from: &'a Principal,
        on: bool,
    },
    Missed,
    Error {
        r#ref: Option<&'a str>,
        code: &'a str,
        detail: &'a str,
        temporary: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        field: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
    Pong,
    Renewed {
        expires_at: Option<Timestamp>,
    },
    Bye {
        code: u16,
        reason: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reconnect_after_ms: Option<u64>,
    },
}

/// A frame that cannot be understood; for the client to read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadFrame(pub(crate) Cow<'static, str>);

impl Request {
    /// Reads a frame and checks what one field alone does not tell.
    pub(crate) fn parse(text: &str) -> Result<Self, BadFrame> {
        let request: Self =
            serde_json::from_str(text).map_err(|error| BadFrame(shortened(error.to_string()).into()))?;
        let wrong = match &request {
            Self::Hello(Hello { after: Some(_), from: Some(_), .. }) => Some("hello takes `after` or `from`, not both"),
            Self::Hello(Hello { device: Some(device), .. }) if device.chars().count() > DEVICE_CHARS => {
                Some("`device` has at most 64 characters")
            }
            Self::Ack { ids: Some(ids), .. } | Self::Read { ids: Some(ids), .. } if ids.len() > IDS => {
                Some("a frame has at most 256 ids")
            }
            Self::Ack { cursor: Some(_), ids: Some(_) } | Self::Ack { cursor: None, ids: None } => {
                Some("ack takes either `cursor` or `ids`")
            }
            Self::Read { ids: Some(_), conversation_id: None, up_to: None }
            | Self::Read { ids: None, conversation_id: Some(_), up_to: Some(_) } => None,
            Self::Read { .. } => Some("read takes either `ids`, or `conversation_id` and `up_to`"),
            _ => None,
        };
        wrong.map_or(Ok(request), |detail| Err(BadFrame(detail.into())))
    }
}

/// An answer that quotes what was wrong must not grow with it.
pub(crate) fn shortened(mut text: String) -> String {
    if text.len() > DETAIL_BYTES {
        let end = (0..=DETAIL_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

impl Reply<'_> {
    /// Appends the JSON.
    pub(crate) fn render(&self, bytes: &mut Vec<u8>) {
        // Writing plain types to memory cannot fail.
        let _ = eshaar_service::json::to_writer(bytes, self);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_frame_is_said() {
        let too_many =
            format!(r#"{{"op":"ack","ids":[{}]}}"#, vec!["\"019a3f00-0000-7000-8000-000000000000\""; 257].join(","));
        for (text, part) in [
            ("", "EOF"),
            ("[]", "missing field `op`"),
            (r#"{"op":"fly"}"#, "unknown variant"),
            (r#"{"after":"x"}"#, "missing field `op`"),
            (r#"{"op":"hello","after":"x"}"#, "cursor"),
            (r#"{"op":"hello","after":"AQAAAAAA","from":"head"}"#, "not both"),
            (r#"{"op":"ack"}"#, "either"),
            (r#"{"op":"ack","ids":["6f1b9a52-4b7e-4d0a-9a54-0f5e6f3b1c2d"]}"#, "version 7"),
            (r#"{"op":"read"}"#, "either `ids`"),
            (r#"{"op":"read","conversation_id":"019a3f00-0000-7000-8000-000000000000"}"#, "and `up_to`"),
            (r#"{"op":"read","conversation_id":"019a3f00-0000-7000-8000-000000000000","up_to":"x"}"#, "cursor"),
            (r#"{"op":"send","content":"a","to":"acme"}"#, "missing field `ref`"),
            (r#"{"op":"send","ref":"r","to":"acme"}"#, "missing field `content`"),
            (r#"{"op":"join"}"#, "missing field `conversation_id`"),
            (r#"{"op":"leave","conversation_id":"x"}"#, "UUID"),
            (r#"{"op":"typing","conversation_id":"019a3f00-0000-7000-8000-000000000000"}"#, "missing field `on`"),
            (r#"{"op":"renew"}"#, "access_token"),
            (&too_many, "at most 256"),
        ] {
            let BadFrame(detail) = Request::parse(text).unwrap_err();
            assert!(detail.contains(part), "{text}: {detail}");
        }
    }

    #[test]
    fn a_detail_does_not_grow_with_the_frame_it_quotes() {
        let BadFrame(detail) = Request::parse(&format!(r#"{{"op":"{}"}}"#, "é".repeat(10_000))).unwrap_err();
        assert!(detail.len() <= DETAIL_BYTES);
    }

    #[test]
    fn fields_that_are_not_known_are_passed_over() {
        assert!(matches!(Request::parse(r#"{"op":"ping","later":{"a":1}}"#), Ok(Request::Ping {})));
        assert!(matches!(Request::parse(r#"{"op":"hello","colour":1}"#), Ok(Request::Hello(_))));
    }
}
