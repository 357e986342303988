//! A message on its way to sockets: decoded and rendered once, however many sessions want it.

use std::sync::Arc;

use bytes::Bytes;
use eshaar_model::{BroadcastId, Cursor, MessageId, StreamPosition, Timestamp};
use eshaar_schemas::{Codecs, Contract, DecodeError, Media, Message};
use eshaar_topics::flow;
use serde::Serialize;

/// The message that stands before another in its lane of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    Unknown,
    Nothing,
    Offset(u64),
}

/// What is needed of a message to say that it was delivered.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) id: MessageId,
    pub(crate) sender: String,
    pub(crate) conversation: Option<String>,
    pub(crate) correlation: String,
    pub(crate) broadcast: Option<BroadcastId>,
}

/// A message that is ready to be sent.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) position: StreamPosition,
    pub(crate) before: Before,
    pub(crate) accepted_at: Timestamp,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) subject: Arc<Subject>,
    /// The frame's JSON behind the cursor, which differs from session to session.
    body: Box<[u8]>,
}

/// The fields of a message frame behind `op` and `cursor`.
#[derive(Serialize)]
struct Body<'a> {
    id: MessageId,
    r#type: eshaar_model::MessageType,
    from: &'a str,
    conversation_id: Option<&'a str>,
    content: &'a str,
    media: &'a [Media],
    priority: eshaar_model::Priority,
    sent_at: Timestamp,
    reference: Option<&'a str>,
    collapse_key: Option<&'a str>,
}

impl Ready {
    pub(crate) fn new(message: Message, position: StreamPosition, before: Before) -> Self {
        let accepted_at = Timestamp::from_millis(message.created_at);
        let body = Body {
            id: message.id,
            r#type: message.r#type,
            from: &message.sender,
            conversation_id: message.conversation_id.as_deref(),
            content: &message.content,
            media: &message.media,
            priority: message.priority,
            sent_at: accepted_at,
            reference: message.reference.as_deref(),
            collapse_key: message.collapse_key.as_deref(),
        };
        let mut bytes = Vec::with_capacity(message.content.len() + 320);
        // Writing plain types to memory cannot fail.
        let _ = serde_json::to_writer(&mut bytes, &body);
        Self {
            position,
            before,
            accepted_at,
            expires_at: message.expires_at.map(Timestamp::from_millis),
            subject: Arc::new(Subject {
                broadcast: flow::broadcast_of(&message),
                id: message.id,
                sender: message.sender,
                conversation: message.conversation_id,
                correlation: message.correlation_id,
            }),
            body: bytes.into_boxed_slice(),
        }
    }

    pub(crate) fn expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Appends the frame's JSON.
    pub(crate) fn render(&self, cursor: Cursor, bytes: &mut Vec<u8>) {
        use std::io::Write as _;
        // Writing to memory cannot fail. The body is an object: its brace gives way to what stands before it.
        let _ = write!(bytes, r#"{{"op":"message","cursor":"{cursor}","#);
        bytes.extend_from_slice(self.body.get(1..).unwrap_or_default());
    }
}

/// A record in `value`; a schema that is not known yet is asked for.
pub(crate) async fn decode<T: Contract>(codecs: &Codecs, value: &Bytes) -> Result<T, DecodeError> {
    match codecs.decode(value) {
        Err(DecodeError::UnknownSchema(id)) => match codecs.learn(id).await {
            Ok(()) => codecs.decode(value),
            Err(error) => {
                tracing::warn!(schema = id, %error, "a schema could not be learned");
                Err(DecodeError::UnknownSchema(id))
            }
        },
        decoded => decoded,
    }
}
