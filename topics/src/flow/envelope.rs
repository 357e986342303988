//! The headers of a message's record, for stages that work on them alone.

use eshaar_model::{BroadcastId, Lane, MessageId, Phone, Timestamp};

use super::Origin;
use crate::Headers;
use crate::headers::{BROADCAST, CE_ID, CORRELATION, EXPIRES_MS, FIRST_MS, FROM, LANE, REPEAT, TO, TRACEPARENT};

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
    /// No record of the message is stamped earlier.
    pub first_at: Timestamp,
    /// True if an earlier attempt may have appended the message.
    pub may_repeat: bool,
    /// The broadcast that it is part of.
    pub broadcast: Option<BroadcastId>,
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
        let (mut first_at, mut may_repeat) = (None, false);
        let (mut broadcast, mut origin) = (None, Origin::default());
        for (name, value) in headers.iter() {
            let text = std::str::from_utf8(value).ok();
            match std::str::from_utf8(name) {
                Ok(CE_ID) => id = Some(parse(CE_ID, text, |text| text.parse().ok())?),
                Ok(LANE) => lane = Some(parse(LANE, text, |text| text.parse().ok())?),
                Ok(FROM) => from = Some(parse(FROM, text, Some)?),
                Ok(TO) => to = Some(parse(TO, text, phone)?),
                Ok(EXPIRES_MS) => expires_at = Some(parse(EXPIRES_MS, text, |text| text.parse().ok())?),
                Ok(REPEAT) => may_repeat = true,
                Ok(FIRST_MS) => first_at = Some(parse(FIRST_MS, text, |text| text.parse().ok())?),
                Ok(BROADCAST) => broadcast = Some(parse(BROADCAST, text, |text| text.parse().ok())?),
                Ok(TRACEPARENT) => origin.traceparent = text,
                Ok(CORRELATION) => origin.correlation = text,
                _ => {}
            }
        }
        let missing = |name| HeaderError { name };
        let id: MessageId = id.ok_or(missing(CE_ID))?;
        Ok(Self {
            id,
            lane: lane.ok_or(missing(LANE))?,
            from: from.ok_or(missing(FROM))?,
            to,
            expires_at: expires_at.map(Timestamp::from_millis),
            first_at: first_at.map_or_else(|| id.made_at(), Timestamp::from_millis),
            may_repeat,
            broadcast,
            origin,
        })
    }

    /// The latest time that another record of the message can have for its first: this one was stamped at `stamped`, and is
    /// read `now`. It is the time in the id, unless attempts at other times were made.
    pub fn latest(&self, stamped: Timestamp, now: Timestamp) -> Timestamp {
        let made_at = self.id.made_at();
        let has_attempts = self.may_repeat || self.first_at != made_at;
        if has_attempts { made_at.max(stamped.min(now)) } else { made_at }
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
