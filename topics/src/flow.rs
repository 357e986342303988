//! The records of the flow, made and read in one place: whoever writes to a topic builds its record here, and a stage that
//! works on headers alone reads them with [`Envelope`]. Pure: it touches no log.

use bytes::Bytes;
use eshaar_model::{Lane, MessageId, Phone, Timestamp};
use eshaar_schemas::{Codecs, Delivery, EncodeError, Message, StatusChanged};
use eshaar_service::TraceContext;

use crate::headers::{
    CE_ID, CE_SOURCE, CE_SPECVERSION, CE_TIME, CE_TYPE, CORRELATION, EXPIRES_MS, FROM, LANE, TO, TRACEPARENT,
};
use crate::{Headers, NewRecord, Topic};

/// CloudEvents type of an accepted message, in `messages.accepted` and in the lanes.
pub const TYPE_ACCEPTED: &str = "eshaar.message.accepted.v1";
/// CloudEvents type of a status.
pub const TYPE_STATUS: &str = "eshaar.message.status.v1";

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
    let sometimes = [to_phone.map(|to| (TO, to)), expires.as_ref().map(|at| (EXPIRES_MS, at.as_bytes()))];
    Ok(NewRecord {
        topic: Topic::MessagesAccepted,
        partition: None,
        key: Bytes::copy_from_slice(key(message).as_bytes()),
        value,
        headers: Headers::new(always.into_iter().chain(sometimes.into_iter().flatten())),
        timestamp,
    })
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

/// What the headers of a message's record say of it, read in one pass and without decoding the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The message.
    pub id: MessageId,
    /// The lane that it was given.
    pub lane: Lane,
    /// Who sent it: text of a principal.
    pub from: &'a str,
    /// The phone that it is bound for; `None` when it goes to a business.
    pub to: Option<Phone>,
    /// Not delivered after this.
    pub expires_at: Option<Timestamp>,
    /// The request it comes from.
    pub origin: Origin<'a>,
}

/// A record of a message without a header that every one has, or with one that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("header {name} is missing or cannot be read")]
pub struct HeaderError {
    /// The header.
    pub name: &'static str,
}

impl<'a> Envelope<'a> {
    /// Reads the headers of a record of `messages.accepted` or of a lane.
    ///
    /// # Errors
    /// When one that every message has is missing, or one that is there cannot be read.
    pub fn read(headers: &'a Headers) -> Result<Self, HeaderError> {
        let (mut id, mut lane, mut from, mut to, mut expires_at) = (None, None, None, None, None);
        let mut origin = Origin::default();
        for (name, value) in headers.iter() {
            let text = std::str::from_utf8(value).ok();
            match std::str::from_utf8(name) {
                Ok(CE_ID) => id = Some(parse(CE_ID, text, |text| text.parse().ok())?),
                Ok(LANE) => lane = Some(parse(LANE, text, |text| text.parse().ok())?),
                Ok(FROM) => from = Some(parse(FROM, text, Some)?),
                Ok(TO) => to = Some(parse(TO, text, phone)?),
                Ok(EXPIRES_MS) => expires_at = Some(parse(EXPIRES_MS, text, |text| text.parse().ok())?),
                Ok(TRACEPARENT) => origin.traceparent = text,
                Ok(CORRELATION) => origin.correlation = text,
                _ => {}
            }
        }
        let missing = |name| HeaderError { name };
        Ok(Self {
            id: id.ok_or(missing(CE_ID))?,
            lane: lane.ok_or(missing(LANE))?,
            from: from.ok_or(missing(FROM))?,
            to,
            expires_at: expires_at.map(Timestamp::from_millis),
            origin,
        })
    }

    /// Whether its time has passed at `now`.
    pub fn expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

fn parse<'a, T>(
    name: &'static str,
    text: Option<&'a str>,
    read: impl FnOnce(&'a str) -> Option<T>,
) -> Result<T, HeaderError> {
    text.and_then(read).ok_or(HeaderError { name })
}

/// The header was written from a `Phone`: its numbering plan is not looked at again.
fn phone(text: &str) -> Option<Phone> {
    text.strip_prefix('+')?.parse().ok().and_then(Phone::from_digits)
}
