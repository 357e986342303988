//! The records of the flow, made and read in one place: whoever writes to a topic builds its record here, and a stage that
//! works on headers alone reads them with [`Envelope`]. Pure: it touches no log.

mod envelope;

use bytes::Bytes;
use eshaar_model::{BroadcastId, Lane, Timestamp};
use eshaar_schemas::{
    Broadcast, Cancellation, Codecs, ConversationChanged, Delivery, EncodeError, Message, StatusChanged,
};
use eshaar_service::TraceContext;

pub use self::envelope::{Envelope, HeaderError};
use crate::headers::{
    BROADCAST, CE_ID, CE_SOURCE, CE_SPECVERSION, CE_TIME, CE_TYPE, CORRELATION, EXPIRES_MS, FIRST_MS, FROM, LANE,
    REPEAT, TO, TRACEPARENT,
};
use crate::{Headers, NewRecord, Topic};

/// CloudEvents type of an accepted message, in `messages.accepted` and in the lanes.
pub const TYPE_ACCEPTED: &str = "eshaar.message.accepted.v1";
/// CloudEvents type of a status.
pub const TYPE_STATUS: &str = "eshaar.message.status.v1";
/// CloudEvents type of a broadcast that was accepted.
pub const TYPE_BROADCAST: &str = "eshaar.broadcast.requested.v1";
/// CloudEvents type of what became of a conversation.
pub const TYPE_CONVERSATION: &str = "eshaar.conversation.changed.v1";
/// CloudEvents type of a cancellation.
pub const TYPE_CANCELLATION: &str = "eshaar.cancellation.v1";

const SPECVERSION: &[u8] = b"1.0";
const SOURCE: &[u8] = b"/eshaar";

/// The request that a record comes from: carried from header to header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin<'a> {
    /// W3C trace context.
    pub traceparent: Option<&'a str>,
    /// Correlation id.
    pub correlation: Option<&'a str>,
}

impl<'a> Origin<'a> {
    /// What the headers of a record say of it.
    pub fn of(headers: &'a Headers) -> Self {
        Self { traceparent: headers.text(TRACEPARENT), correlation: headers.text(CORRELATION) }
    }
}

/// What keeps the records of a message in order: its conversation (chat), or its recipient.
pub fn key(message: &Message) -> &str {
    message.conversation_id.as_deref().unwrap_or(&message.recipient)
}

/// The record of `messages.accepted` for a message that is bound for `lane`.
///
/// # Errors
/// When the message cannot be written by its schema.
pub fn accepted(
    message: &Message,
    lane: Lane,
    codecs: &Codecs,
    trace: &TraceContext,
) -> Result<NewRecord, EncodeError> {
    let value = codecs.encode(message)?;
    let timestamp = Timestamp::from_millis(message.created_at);
    let (id, time, trace) = (message.id.to_string(), timestamp.to_string(), trace.to_string());
    let expires = message.expires_at.map(|at| at.to_string());
    let to_phone = message.recipient.starts_with('+').then_some(message.recipient.as_bytes());
    let always = [
        (CE_SPECVERSION, SPECVERSION),
        (CE_ID, id.as_bytes()),
        (CE_TYPE, TYPE_ACCEPTED.as_bytes()),
        (CE_SOURCE, SOURCE),
        (CE_TIME, time.as_bytes()),
        (TRACEPARENT, trace.as_bytes()),
        (CORRELATION, message.correlation_id.as_bytes()),
        (LANE, lane.as_str().as_bytes()),
        (FROM, message.sender.as_bytes()),
    ];
    let sometimes = [
        to_phone.map(|to| (TO, to)),
        expires.as_ref().map(|at| (EXPIRES_MS, at.as_bytes())),
        message.broadcast_id.as_ref().map(|broadcast| (BROADCAST, broadcast.as_bytes())),
    ];
    Ok(NewRecord {
        topic: Topic::MessagesAccepted,
        partition: None,
        key: Bytes::copy_from_slice(key(message).as_bytes()),
        value,
        headers: Headers::new(always.into_iter().chain(sometimes.into_iter().flatten())),
        timestamp,
    })
}

/// The record of `messages.scheduled` for a message that [`accepted`] was given with the time that it is due as its
/// `created_at`; `now` is when it was taken in.
#[must_use]
pub fn scheduled(accepted: NewRecord, now: Timestamp) -> NewRecord {
    NewRecord { topic: Topic::MessagesScheduled, timestamp: now, ..accepted }
}

/// A message's record, marked as one that an earlier attempt of its request may have appended.
#[must_use]
pub fn may_repeat(record: NewRecord) -> NewRecord {
    NewRecord { headers: record.headers.with(REPEAT, b"1"), ..record }
}

/// A message's record, marked so that readers look for repeats of it among records from `at` on, not from the time in its
/// id on.
#[must_use]
pub fn first_at(record: NewRecord, at: Timestamp) -> NewRecord {
    NewRecord { headers: record.headers.with(FIRST_MS, at.as_millis().to_string().as_bytes()), ..record }
}

/// The record of `messages.accepted` for a message whose time has come, made anew as one that is accepted `now`: `headers`
/// are those of its record in `messages.scheduled`, whose key is `key`. Repeats of it are stamped with the time that it is
/// due, or later.
///
/// # Errors
/// When the message cannot be written by its schema.
pub fn come_due(
    message: Message,
    (key, headers): (Bytes, &Headers),
    now: Timestamp,
    codecs: &Codecs,
) -> Result<NewRecord, EncodeError> {
    let due = message.created_at;
    let value = codecs.encode(&Message { created_at: now.as_millis(), ..message })?;
    let (time, due) = (now.to_string(), due.to_string());
    let kept = headers.iter().filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, value)));
    let kept = kept.filter(|(name, _)| *name != FIRST_MS);
    let kept = kept.map(|(name, value)| if name == CE_TIME { (name, time.as_bytes()) } else { (name, value) });
    let headers = Headers::new(kept.chain([(FIRST_MS, due.as_bytes())]));
    Ok(NewRecord { topic: Topic::MessagesAccepted, partition: None, key, value, headers, timestamp: now })
}

/// The record of `message.status` for a step that a message reached; `key` is the message's own ([`key`]).
///
/// # Errors
/// When the change cannot be written by its schema.
pub fn status(
    change: &StatusChanged,
    key: Bytes,
    codecs: &Codecs,
    origin: Origin<'_>,
) -> Result<NewRecord, EncodeError> {
    let value = codecs.encode(change)?;
    let timestamp = Timestamp::from_millis(change.at);
    let (id, time) = (format!("{}.{}", change.id, change.status), timestamp.to_string());
    let to_phone = change.recipient.starts_with('+').then_some(change.recipient.as_bytes());
    let always = [
        (CE_SPECVERSION, SPECVERSION),
        (CE_ID, id.as_bytes()),
        (CE_TYPE, TYPE_STATUS.as_bytes()),
        (CE_SOURCE, SOURCE),
        (CE_TIME, time.as_bytes()),
        (FROM, change.sender.as_bytes()),
    ];
    let sometimes = [
        to_phone.map(|to| (TO, to)),
        origin.traceparent.map(|trace| (TRACEPARENT, trace.as_bytes())),
        origin.correlation.map(|correlation| (CORRELATION, correlation.as_bytes())),
    ];
    let headers = Headers::new(always.into_iter().chain(sometimes.into_iter().flatten()));
    Ok(NewRecord { topic: Topic::MessageStatus, partition: None, key, value, headers, timestamp })
}

/// The record of `broadcasts.requested` for a broadcast that was accepted.
///
/// # Errors
/// When it cannot be written by its schema.
pub fn broadcast(what: &Broadcast, codecs: &Codecs, trace: &TraceContext) -> Result<NewRecord, EncodeError> {
    let value = codecs.encode(what)?;
    let timestamp = Timestamp::from_millis(what.created_at);
    let (id, time, trace) = (what.id.to_string(), timestamp.to_string(), trace.to_string());
    let headers = Headers::new([
        (CE_SPECVERSION, SPECVERSION),
        (CE_ID, id.as_bytes()),
        (CE_TYPE, TYPE_BROADCAST.as_bytes()),
        (CE_SOURCE, SOURCE),
        (CE_TIME, time.as_bytes()),
        (TRACEPARENT, trace.as_bytes()),
        (CORRELATION, what.correlation_id.as_bytes()),
        (FROM, what.sender.as_bytes()),
    ]);
    let key = Bytes::from(id);
    Ok(NewRecord { topic: Topic::BroadcastsRequested, partition: None, key, value, headers, timestamp })
}

/// A status of a message that is part of a broadcast, if it is, says so: it counts in the broadcast's progress.
#[must_use]
pub fn part_of(status: NewRecord, broadcast: Option<BroadcastId>) -> NewRecord {
    match broadcast {
        Some(id) => NewRecord { headers: status.headers.with(BROADCAST, id.to_string().as_bytes()), ..status },
        None => status,
    }
}

/// The broadcast that a message is part of.
pub fn broadcast_of(message: &Message) -> Option<BroadcastId> {
    message.broadcast_id.as_deref().and_then(|id| id.parse().ok())
}

/// The record of `cancellations` that takes a message, or a broadcast, back. Its key alone says which.
///
/// # Errors
/// When it cannot be written by its schema.
pub fn cancellation(what: &Cancellation, codecs: &Codecs, origin: Origin<'_>) -> Result<NewRecord, EncodeError> {
    let value = codecs.encode(what)?;
    let timestamp = Timestamp::from_millis(what.at);
    let (id, time) = (what.id.to_string(), timestamp.to_string());
    let always = [
        (CE_SPECVERSION, SPECVERSION),
        (CE_ID, id.as_bytes()),
        (CE_TYPE, TYPE_CANCELLATION.as_bytes()),
        (CE_SOURCE, SOURCE),
        (CE_TIME, time.as_bytes()),
        (FROM, what.sender.as_bytes()),
    ];
    let sometimes = [
        origin.traceparent.map(|trace| (TRACEPARENT, trace.as_bytes())),
        origin.correlation.map(|correlation| (CORRELATION, correlation.as_bytes())),
    ];
    let headers = Headers::new(always.into_iter().chain(sometimes.into_iter().flatten()));
    let key = Bytes::from(id);
    Ok(NewRecord { topic: Topic::Cancellations, partition: None, key, value, headers, timestamp })
}

/// The record of `conversation.events` for what became of a conversation.
///
/// # Errors
/// When it cannot be written by its schema.
pub fn conversation(
    change: &ConversationChanged,
    codecs: &Codecs,
    origin: Origin<'_>,
) -> Result<NewRecord, EncodeError> {
    let value = codecs.encode(change)?;
    let timestamp = Timestamp::from_millis(change.at);
    let key = change.id.to_string();
    let (id, time) = (format!("{key}.{}.{}", change.change.as_str(), change.at), timestamp.to_string());
    let always = [
        (CE_SPECVERSION, SPECVERSION),
        (CE_ID, id.as_bytes()),
        (CE_TYPE, TYPE_CONVERSATION.as_bytes()),
        (CE_SOURCE, SOURCE),
        (CE_TIME, time.as_bytes()),
        (FROM, change.by.as_bytes()),
    ];
    let sometimes = [
        origin.traceparent.map(|trace| (TRACEPARENT, trace.as_bytes())),
        origin.correlation.map(|correlation| (CORRELATION, correlation.as_bytes())),
    ];
    let headers = Headers::new(always.into_iter().chain(sometimes.into_iter().flatten()));
    Ok(NewRecord { topic: Topic::ConversationEvents, partition: None, key: key.into(), value, headers, timestamp })
}

/// The record of `deliveries` that tells the gateway of `slot` something. Not an event for others to read: its headers
/// only join it to its request.
///
/// # Errors
/// When the hint cannot be written by its schema.
pub fn delivery(
    delivery: &Delivery,
    slot: u32,
    at: Timestamp,
    codecs: &Codecs,
    origin: Origin<'_>,
) -> Result<NewRecord, EncodeError> {
    Ok(delivery_of(codecs.encode(delivery)?, &delivery.principal, slot, at, origin))
}

/// As [`delivery`], of a hint that is encoded already: one that several gateways get is encoded once.
pub fn delivery_of(value: Bytes, principal: &str, slot: u32, at: Timestamp, origin: Origin<'_>) -> NewRecord {
    let joined = [
        origin.traceparent.map(|trace| (TRACEPARENT, trace.as_bytes())),
        origin.correlation.map(|correlation| (CORRELATION, correlation.as_bytes())),
    ];
    NewRecord {
        topic: Topic::Deliveries,
        partition: Some(slot),
        key: Bytes::copy_from_slice(principal.as_bytes()),
        value,
        headers: Headers::new(joined.into_iter().flatten()),
        timestamp: at,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use eshaar_model::{ConversationId, MessageId, MessageType, Priority, Status};
    use eshaar_schemas::registry::embedded::EmbeddedRegistry;
    use eshaar_schemas::{Change, Hint, StatusHint};

    use super::*;

    const AT: Timestamp = Timestamp::from_millis(1_760_000_000_000);

    async fn codecs() -> Codecs {
        let dir = tempfile::tempdir().unwrap();
        let registry = Arc::new(EmbeddedRegistry::open(&dir.path().join("registry.db")).unwrap());
        let names = ["Message", "StatusChanged", "Delivery", "ConversationChanged"];
        Codecs::register(registry, &names.map(|name| (format!("{name}-value"), name))).await.unwrap()
    }

    fn message(recipient: &str) -> Message {
        Message {
            id: MessageId::new(AT),
            r#type: MessageType::OneWay,
            conversation_id: None,
            sender: "acme-bank".to_owned(),
            recipient: recipient.to_owned(),
            content: "hello".to_owned(),
            content_ciphertext: None,
            content_key_id: None,
            media: Vec::new(),
            priority: Priority::High,
            created_at: AT.as_millis(),
            expires_at: Some(AT.as_millis() + 5),
            reference: None,
            collapse_key: None,
            correlation_id: "c-1".to_owned(),
            broadcast_id: None,
        }
    }

    #[tokio::test]
    async fn what_a_stage_needs_of_a_message_is_in_its_headers() {
        let (codecs, trace, message) = (codecs().await, TraceContext::new(), message("+966501234567"));
        let record = accepted(&message, Lane::Bulk, &codecs, &trace).unwrap();
        let (trace, envelope) = (trace.to_string(), Envelope::read(&record.headers).unwrap());
        let expected = Envelope {
            id: message.id,
            lane: Lane::Bulk,
            from: "acme-bank",
            to: Some("+966501234567".parse().unwrap()),
            expires_at: Some(AT.plus_millis(5)),
            first_at: message.id.made_at(),
            may_repeat: false,
            broadcast: None,
            origin: Origin { traceparent: Some(&trace), correlation: Some("c-1") },
        };
        assert_eq!(envelope, expected);
        assert_eq!((&record.key[..], record.timestamp), (message.recipient.as_bytes(), AT));
        assert_eq!(codecs.decode::<Message>(&record.value).unwrap(), message);
    }

    #[tokio::test]
    async fn a_message_is_a_cloud_event() {
        let record = accepted(&message("acme"), Lane::High, &codecs().await, &TraceContext::new()).unwrap();
        let text = |name| record.headers.text(name);
        assert_eq!((text(CE_SPECVERSION), text(CE_TYPE)), (Some("1.0"), Some("eshaar.message.accepted.v1")));
        assert_eq!((text(CE_SOURCE), text(CE_TIME)), (Some("/eshaar"), Some("2025-10-09T08:53:20.000Z")));
        assert_eq!(Envelope::read(&record.headers).unwrap().to, None);
    }

    #[tokio::test]
    async fn one_that_was_scheduled_is_accepted_when_it_is_due_as_if_it_were_sent_then() {
        let (codecs, trace, due) = (codecs().await, TraceContext::new(), message("+966501234567"));
        let made = accepted(&due, Lane::Low, &codecs, &trace).unwrap();
        let waiting = scheduled(made.clone(), AT.plus_millis(-70));
        assert_eq!((waiting.topic, waiting.timestamp), (Topic::MessagesScheduled, AT.plus_millis(-70)));
        assert_eq!((&waiting.key, &waiting.value, &waiting.headers), (&made.key, &made.value, &made.headers));

        let now = AT.plus_millis(3);
        let sent = come_due(due.clone(), (waiting.key, &waiting.headers), now, &codecs).unwrap();
        let expected = accepted(&Message { created_at: now.as_millis(), ..due }, Lane::Low, &codecs, &trace).unwrap();
        assert_eq!((sent.topic, sent.timestamp, &sent.key), (expected.topic, now, &expected.key));
        let expected = first_at(expected, AT);
        assert_eq!((sent.value, sent.headers), (expected.value, expected.headers));
    }

    #[tokio::test]
    async fn a_chat_message_is_keyed_by_its_conversation() {
        let conversation = MessageId::new(AT).to_string();
        let message = Message { conversation_id: Some(conversation.clone()), ..message("+966501234567") };
        let record = accepted(&message, Lane::High, &codecs().await, &TraceContext::new()).unwrap();
        assert_eq!(&record.key[..], conversation.as_bytes());
    }

    #[tokio::test]
    async fn a_status_names_its_step_and_keeps_the_request_it_comes_from() {
        let (codecs, message) = (codecs().await, message("+966501234567"));
        let change = StatusChanged {
            id: message.id,
            status: Status::Read,
            at: AT.as_millis(),
            sender: message.sender,
            recipient: message.recipient,
            reason: None,
        };
        let origin = Origin { traceparent: None, correlation: Some("c-1") };
        let record = status(&change, Bytes::from_static(b"key"), &codecs, origin).unwrap();
        assert_eq!((record.topic, &record.key[..], record.timestamp), (Topic::MessageStatus, &b"key"[..], AT));
        assert_eq!(record.headers.text(CE_ID), Some(format!("{}.read", change.id).as_str()));
        assert_eq!((record.headers.text(FROM), Origin::of(&record.headers)), (Some("acme-bank"), origin));
    }

    #[tokio::test]
    async fn what_became_of_a_conversation_is_keyed_by_it_and_names_who_did_it() {
        let codecs = codecs().await;
        let change = ConversationChanged {
            id: ConversationId::new(AT),
            change: Change::TakenUp,
            at: AT.as_millis(),
            business: "acme-bank".to_owned(),
            phone: "+966501234567".to_owned(),
            by: "+966501234567".to_owned(),
            up_to: None,
        };
        let origin = Origin { traceparent: None, correlation: Some("c-1") };
        let record = conversation(&change, &codecs, origin).unwrap();
        assert_eq!((record.topic, record.timestamp), (Topic::ConversationEvents, AT));
        assert_eq!(record.key[..], *change.id.to_string().as_bytes());
        let id = format!("{}.taken_up.{}", change.id, change.at);
        assert_eq!(record.headers.text(CE_ID), Some(id.as_str()));
        assert_eq!((record.headers.text(FROM), Origin::of(&record.headers)), (Some("+966501234567"), origin));
        assert_eq!(codecs.decode::<ConversationChanged>(&record.value).unwrap(), change);
    }

    #[tokio::test]
    async fn a_hint_goes_to_the_slot_of_its_gateway() {
        let status = "read".to_owned();
        let (id, at) = (MessageId::new(AT), AT.as_millis());
        let hint = Hint::Status(StatusHint { id, status, at, conversation: None, of_chat: false });
        let told = Delivery { principal: "acme-bank".to_owned(), hint };
        let codecs = codecs().await;
        let record = delivery(&told, 7, AT, &codecs, Origin::default()).unwrap();
        assert_eq!((record.topic, record.partition, &record.key[..]), (Topic::Deliveries, Some(7), &b"acme-bank"[..]));
        assert_eq!(codecs.decode::<Delivery>(&record.value).unwrap(), told);
    }

    #[test]
    fn a_header_that_is_missing_or_cannot_be_read_is_named() {
        let id = MessageId::new(AT).to_string();
        let read = |headers: &[(&str, &str)]| {
            let headers = Headers::new(headers.iter().map(|(name, value)| (*name, value.as_bytes())));
            Envelope::read(&headers).map(|_| ()).map_err(|error| error.name)
        };
        let whole = [(CE_ID, id.as_str()), (LANE, "high"), (FROM, "acme-bank")];
        assert_eq!(read(&whole), Ok(()));
        for (place, (name, _)) in whole.into_iter().enumerate() {
            let mut wrong = whole;
            wrong[place].0 = "other";
            assert_eq!(read(&wrong), Err(name));
        }
        let wrong = [(CE_ID, "7"), (LANE, "fast"), (TO, "0501234567"), (EXPIRES_MS, "soon"), (FIRST_MS, "soon")];
        for (name, value) in wrong {
            assert_eq!(read(&[(name, value), whole[1], whole[2]]), Err(name));
        }
    }
}
