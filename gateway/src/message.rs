//! A message on its way to sockets: decoded and rendered once, however many sessions want it.

use std::sync::Arc;

use bytes::Bytes;
use eshaar_model::{BroadcastId, ConversationPosition, Cursor, MessageId, Principal, StreamPosition, Timestamp};
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

/// A message in a conversation that is ready to be sent to those who have no stream that it is in: agents of a business,
/// and other devices of the phone that sent it.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) accepted_at: Timestamp,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) subject: Arc<Subject>,
    /// Whom it is for; `None` where that is nobody that there can be.
    pub(crate) to: Option<Principal>,
    /// The whole frame.
    json: Box<[u8]>,
}

/// What is known of the message before another in its conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follows {
    Unknown,
    Nothing,
    At(ConversationPosition),
}

/// The fields of a message frame behind `op` and its place.
#[derive(Serialize)]
struct Body<'a> {
    id: MessageId,
    r#type: eshaar_model::MessageType,
    from: &'a str,
    to: &'a str,
    conversation_id: Option<&'a str>,
    content: &'a str,
    media: &'a [Media],
    priority: eshaar_model::Priority,
    sent_at: Timestamp,
    reference: Option<&'a str>,
    collapse_key: Option<&'a str>,
}

impl<'a> Body<'a> {
    fn of(message: &'a Message) -> Self {
        Self {
            id: message.id,
            r#type: message.r#type,
            from: &message.sender,
            to: &message.recipient,
            conversation_id: message.conversation_id.as_deref(),
            content: &message.content,
            media: &message.media,
            priority: message.priority,
            sent_at: Timestamp::from_millis(message.created_at),
            reference: message.reference.as_deref(),
            collapse_key: message.collapse_key.as_deref(),
        }
    }

    /// Appends the JSON of its fields: all but the opening brace.
    fn render(&self, bytes: &mut Vec<u8>) {
        let at = bytes.len();
        // Writing plain types to memory cannot fail. What comes first of an object is its brace.
        let _ = eshaar_service::json::to_writer(&mut *bytes, self);
        bytes.remove(at);
    }
}

impl Subject {
    fn of(message: Message) -> Self {
        Self {
            broadcast: flow::broadcast_of(&message),
            id: message.id,
            sender: message.sender,
            conversation: message.conversation_id,
            correlation: message.correlation_id,
        }
    }
}

fn has_expired(expires_at: Option<Timestamp>, now: Timestamp) -> bool {
    expires_at.is_some_and(|at| at <= now)
}

impl Ready {
    pub(crate) fn new(message: Message, position: StreamPosition, before: Before) -> Self {
        let mut body = Vec::with_capacity(message.content.len() + 320);
        Body::of(&message).render(&mut body);
        Self {
            position,
            before,
            accepted_at: Timestamp::from_millis(message.created_at),
            expires_at: message.expires_at.map(Timestamp::from_millis),
            subject: Arc::new(Subject::of(message)),
            body: body.into_boxed_slice(),
        }
    }

    pub(crate) fn expired(&self, now: Timestamp) -> bool {
        has_expired(self.expires_at, now)
    }

    /// Appends the frame's JSON.
    pub(crate) fn render(&self, cursor: Cursor, bytes: &mut Vec<u8>) {
        use std::io::Write as _;
        // Writing to memory cannot fail.
        let _ = write!(bytes, r#"{{"op":"message","cursor":"{cursor}","#);
        bytes.extend_from_slice(&self.body);
    }
}

impl Said {
    pub(crate) fn new(message: Message, position: ConversationPosition, follows: Follows) -> Self {
        use std::io::Write as _;
        let mut json = Vec::with_capacity(message.content.len() + 400);
        // Writing to memory cannot fail.
        let _ = write!(json, r#"{{"op":"message","position":"{position}","#);
        let _ = match follows {
            Follows::Unknown => Ok(()),
            Follows::Nothing => write!(json, r#""previous":null,"#),
            Follows::At(previous) => write!(json, r#""previous":"{previous}","#),
        };
        Body::of(&message).render(&mut json);
        Self {
            accepted_at: Timestamp::from_millis(message.created_at),
            expires_at: message.expires_at.map(Timestamp::from_millis),
            to: message.recipient.parse().ok(),
            subject: Arc::new(Subject::of(message)),
            json: json.into_boxed_slice(),
        }
    }

    pub(crate) fn expired(&self, now: Timestamp) -> bool {
        has_expired(self.expires_at, now)
    }

    /// Appends the frame's JSON.
    pub(crate) fn render(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.json);
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
