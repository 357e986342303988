//! The server's WebSocket frames (docs/protocol.md), read as far as a load test needs them and no further: nothing is
//! copied, what is not needed is skipped.

use serde::Deserialize;
use serde_json::value::RawValue;

/// A frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A message for this recipient.
    Message {
        /// The sender's reference, which says which message it is.
        reference: &'a str,
        /// Stands for this message and all before it.
        cursor: &'a str,
    },
    /// The session has reached the head.
    CaughtUp {
        /// `None` for a business's session.
        cursor: Option<&'a str>,
    },
    /// The cursor given in `hello` does not fit what the server holds.
    Gap {
        /// Why: `too_old`, `other_epoch`, `past_head`.
        reason: &'a str,
    },
    /// The server is about to close the session.
    Bye {
        /// The close code that follows.
        code: u16,
        /// How long to stay away, where that is said.
        reconnect_after_ms: Option<u64>,
    },
    /// An answer to a frame of ours that was refused.
    Error {
        /// What was wrong.
        code: &'a str,
    },
    /// `welcome`, `pong`, `status` and the like: nothing to account for.
    Other,
}

/// The text is no frame of the protocol.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Not a JSON object with an `op`.
    #[error("not a frame: {0}")]
    Json(#[from] serde_json::Error),
    /// A field that its `op` needs is not there.
    #[error("a frame `{op}` without `{field}`")]
    Missing {
        /// The frame's `op`.
        op: &'static str,
        /// The field.
        field: &'static str,
    },
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    op: &'a str,
    #[serde(borrow, default)]
    reference: Option<&'a RawValue>,
    #[serde(borrow, default)]
    cursor: Option<&'a str>,
    #[serde(borrow, default)]
    reason: Option<&'a str>,
    #[serde(default)]
    code: Option<Code<'a>>,
    #[serde(default)]
    reconnect_after_ms: Option<u64>,
}

/// `bye` has a number, `error` a name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Code<'a> {
    Number(u16),
    Name(&'a str),
}

impl<'a> Frame<'a> {
    /// Reads a text frame. A message without a reference has an empty one.
    pub fn parse(text: &'a str) -> Result<Self, FrameError> {
        let raw: Raw<'a> = serde_json::from_str(text)?;
        let missing = |op, field| FrameError::Missing { op, field };
        match raw.op {
            "message" => {
                // As it is written: a reference with escapes in it is none of ours.
                let quoted = raw.reference.map_or("", RawValue::get);
                let reference = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or("");
                let cursor = raw.cursor.ok_or_else(|| missing("message", "cursor"))?;
                Ok(Self::Message { reference, cursor })
            }
            "caught_up" => Ok(Self::CaughtUp { cursor: raw.cursor }),
            "gap" => Ok(Self::Gap { reason: raw.reason.unwrap_or("unknown") }),
            "bye" => match raw.code {
                Some(Code::Number(code)) => Ok(Self::Bye { code, reconnect_after_ms: raw.reconnect_after_ms }),
                _ => Err(missing("bye", "code")),
            },
            "error" => match raw.code {
                Some(Code::Name(code)) => Ok(Self::Error { code }),
                _ => Err(missing("error", "code")),
            },
            _ => Ok(Self::Other),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_whatever_stands_in_its_other_fields() {
        let text = r#"{"op": "message", "id": "019a", "cursor": "AQEGAAAA", "type": "one_way", "from": "acme-bank",
            "conversation_id": null, "content": "a \"quoted\" \u0041 text", "media": [{"id": 1}], "priority": "normal",
            "sent_at": "2026-01-31T12:00:00.000Z", "reference": "r-1-2-3", "collapse_key": null}"#;
        assert_eq!(Frame::parse(text).unwrap(), Frame::Message { reference: "r-1-2-3", cursor: "AQEGAAAA" });
    }

    #[test]
    fn a_message_may_have_no_reference_or_one_that_is_not_ours() {
        for (reference, read) in [("null", ""), ("\"tx-\\u0062\"", "tx-\\u0062")] {
            let text = format!(r#"{{"op":"message","cursor":"A","reference":{reference}}}"#);
            assert_eq!(Frame::parse(&text).unwrap(), Frame::Message { reference: read, cursor: "A" });
        }
    }

    #[test]
    fn each_other_frame_is_known_by_its_op() {
        for (text, frame) in [
            (r#"{"op":"caught_up","cursor":"AQEFAAAA"}"#, Frame::CaughtUp { cursor: Some("AQEFAAAA") }),
            (r#"{"op":"caught_up"}"#, Frame::CaughtUp { cursor: None }),
            (r#"{"op":"gap","reason":"too_old","oldest":"A"}"#, Frame::Gap { reason: "too_old" }),
            (
                r#"{"op":"bye","code":4001,"reason":"shutting_down","reconnect_after_ms":7}"#,
                Frame::Bye { code: 4001, reconnect_after_ms: Some(7) },
            ),
            (r#"{"op":"error","ref":null,"code":"unsupported"}"#, Frame::Error { code: "unsupported" }),
            (r#"{"op":"welcome","session":"17"}"#, Frame::Other),
        ] {
            assert_eq!(Frame::parse(text).unwrap(), frame);
        }
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for text in ["", "[]", r#"{"id":1}"#, r#"{"op":"message","reference":"r-1-2-3"}"#, r#"{"op":"bye"}"#] {
            assert!(Frame::parse(text).is_err(), "{text}");
        }
    }
}
