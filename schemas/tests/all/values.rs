//! Our records as values of an independent implementation of Avro (apache-avro).

use std::collections::HashMap;

use apache_avro::types::Value;
use eshaar_model::{MessageId, MessageType, Priority};
use eshaar_schemas::{
    Broadcast, Cancellation, Contract, ConversationChanged, ConversationHint, DeadLetter, Delivery, Hint, Message,
    StatusChanged,
};

pub(crate) fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn uuid(id: MessageId) -> Value {
    Value::Uuid(id.into())
}

/// `None` is the first member of each of our optional unions.
pub(crate) fn optional(value: Option<Value>) -> Value {
    value.map_or_else(|| Value::Union(0, Box::new(Value::Null)), |value| Value::Union(1, Box::new(value)))
}

fn optional_text(value: Option<&String>) -> Value {
    optional(value.map(|value| text(value)))
}

fn record<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Record(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Written by hand, without serde: what apache-avro must see in place of our record.
pub(crate) trait AsValue: Contract + PartialEq + std::fmt::Debug {
    fn as_value(&self) -> Value;
}

impl AsValue for Message {
    fn as_value(&self) -> Value {
        let kind = [(MessageType::OneWay, "one_way"), (MessageType::Chat, "chat")];
        let kind = kind.iter().position(|(kind, _)| *kind == self.r#type).map(|at| (at as u32, kind[at].1)).unwrap();
        let media = self.media.iter().map(|media| {
            record([
                ("id", text(&media.id)),
                ("content_type", text(&media.content_type)),
                ("size_bytes", Value::Long(media.size_bytes)),
                ("file_name", optional_text(media.file_name.as_ref())),
            ])
        });
        let conversation = self.conversation_id.as_ref().map(|id| Value::Uuid(id.parse().unwrap()));
        record([
            ("id", uuid(self.id)),
            ("type", Value::Enum(kind.0, kind.1.to_owned())),
            ("conversation_id", optional(conversation)),
            ("sender", text(&self.sender)),
            ("recipient", text(&self.recipient)),
            ("content", text(&self.content)),
            ("content_ciphertext", optional(self.content_ciphertext.as_ref().map(|b| Value::Bytes(b.to_vec())))),
            ("content_key_id", optional_text(self.content_key_id.as_ref())),
            ("media", Value::Array(media.collect())),
            ("priority", priority(self.priority)),
            ("created_at", Value::TimestampMillis(self.created_at)),
            ("expires_at", optional(self.expires_at.map(Value::TimestampMillis))),
            ("reference", optional_text(self.reference.as_ref())),
            ("collapse_key", optional_text(self.collapse_key.as_ref())),
            ("correlation_id", text(&self.correlation_id)),
            ("broadcast_id", optional_text(self.broadcast_id.as_ref())),
        ])
    }
}

impl AsValue for Delivery {
    fn as_value(&self) -> Value {
        let hint = match &self.hint {
            Hint::Message(hint) => Value::Union(
                0,
                Box::new(record([
                    ("epoch", Value::Int(hint.epoch)),
                    ("lane", Value::Int(hint.lane)),
                    ("offset", Value::Long(hint.offset)),
                    ("prev", optional(hint.prev.map(Value::Long))),
                    ("message", Value::Bytes(hint.message.to_vec())),
                    ("in_conversation", Value::Boolean(hint.in_conversation)),
                ])),
            ),
            Hint::Status(hint) => Value::Union(
                1,
                Box::new(record([
                    ("id", uuid(hint.id)),
                    ("status", text(&hint.status)),
                    ("at", Value::TimestampMillis(hint.at)),
                    ("conversation", optional(hint.conversation.as_ref().map(conversation_hint))),
                    ("of_chat", Value::Boolean(hint.of_chat)),
                ])),
            ),
        };
        record([("principal", text(&self.principal)), ("hint", hint)])
    }
}

fn conversation_hint(hint: &ConversationHint) -> Value {
    record([("with", text(&hint.with)), ("by", text(&hint.by)), ("up_to", optional_text(hint.up_to.as_ref()))])
}

impl AsValue for ConversationChanged {
    fn as_value(&self) -> Value {
        record([
            ("id", Value::Uuid(self.id.into())),
            ("change", Value::Enum(self.change as u32, self.change.as_str().to_owned())),
            ("at", Value::TimestampMillis(self.at)),
            ("business", text(&self.business)),
            ("phone", text(&self.phone)),
            ("by", text(&self.by)),
            ("up_to", optional_text(self.up_to.as_ref())),
        ])
    }
}

impl AsValue for StatusChanged {
    fn as_value(&self) -> Value {
        record([
            ("id", uuid(self.id)),
            ("status", Value::Enum(self.status as u32, self.status.as_str().to_owned())),
            ("at", Value::TimestampMillis(self.at)),
            ("sender", text(&self.sender)),
            ("recipient", text(&self.recipient)),
            ("reason", optional_text(self.reason.as_ref())),
        ])
    }
}

impl AsValue for Cancellation {
    fn as_value(&self) -> Value {
        record([("id", uuid(self.id)), ("sender", text(&self.sender)), ("at", Value::TimestampMillis(self.at))])
    }
}

fn priority(priority: Priority) -> Value {
    let (place, symbol) = match priority {
        Priority::High => (0, "high"),
        Priority::Normal => (1, "normal"),
        Priority::Low => (2, "low"),
    };
    Value::Enum(place, symbol.to_owned())
}

impl AsValue for Broadcast {
    fn as_value(&self) -> Value {
        record([
            ("id", Value::Uuid(self.id.into())),
            ("sender", text(&self.sender)),
            ("audience", optional_text(self.audience.as_ref())),
            ("recipients", Value::Uuid(self.recipients.into())),
            ("total", Value::Long(self.total)),
            ("content", text(&self.content)),
            ("priority", priority(self.priority)),
            ("created_at", Value::TimestampMillis(self.created_at)),
            ("expires_at", optional(self.expires_at.map(Value::TimestampMillis))),
            ("reference", optional_text(self.reference.as_ref())),
            ("collapse_key", optional_text(self.collapse_key.as_ref())),
            ("rate", optional(self.rate.map(Value::Int))),
            ("correlation_id", text(&self.correlation_id)),
            ("key_id", optional_text(self.key_id.as_ref())),
            ("key_rate", optional_text(self.key_rate.as_ref())),
        ])
    }
}

impl AsValue for DeadLetter {
    fn as_value(&self) -> Value {
        let headers: HashMap<_, _> =
            self.headers.iter().map(|(name, value)| (name.clone(), Value::Bytes(value.to_vec()))).collect();
        record([
            ("stage", text(&self.stage)),
            ("topic", text(&self.topic)),
            ("partition", Value::Int(self.partition)),
            ("offset", Value::Long(self.offset)),
            ("key", Value::Bytes(self.key.to_vec())),
            ("value", Value::Bytes(self.value.to_vec())),
            ("headers", Value::Map(headers)),
            ("code", text(&self.code)),
            ("reason", text(&self.reason)),
            ("attempts", Value::Int(self.attempts)),
            ("at", Value::TimestampMillis(self.at)),
        ])
    }
}
