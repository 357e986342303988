//! A conversation between a business and a phone: who may do what in it, and what becomes of it (R1.6–R1.8).
//!
//! Of the conversations of a pair at most one is *open*: active or archived. Which one is decided where conversations are
//! kept; what is here holds for each of them. Positions, not clocks, say what came after what.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::position::{CursorError, read_varint, write_varint};
use crate::{BusinessId, ConversationId, Epoch, MessageId, Phone, Principal, Status, Timestamp};

/// How a conversation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum ConversationStatus {
    /// In use.
    Active = 0,
    /// Put away; a message makes it active again.
    Archived = 1,
    /// Over: nothing is sent in it any more, and the pair may start another.
    Closed = 2,
}

impl ConversationStatus {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Active, Self::Archived, Self::Closed];

    /// Its name in the API, in Avro and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Archived => "archived",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for ConversationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no status of a conversation.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected a status of a conversation (active, archived or closed), got {length} characters that are not one")]
pub struct ConversationStatusError {
    /// Length of the refused text, in characters.
    pub length: usize,
}

impl FromStr for ConversationStatus {
    type Err = ConversationStatusError;

    fn from_str(text: &str) -> Result<Self, ConversationStatusError> {
        let refused = || ConversationStatusError { length: text.chars().count() };
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(refused)
    }
}

/// One of the two who talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Side {
    /// The business, any of its agents.
    Business = 0,
    /// The phone, any of its devices.
    Phone = 1,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Business, Self::Phone];

    /// Whom it talks to.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Business => Self::Phone,
            Self::Phone => Self::Business,
        }
    }

    /// From its number; `None` where there is no such side.
    pub const fn from_index(index: u8) -> Option<Self> {
        match index {
            0 => Some(Self::Business),
            1 => Some(Self::Phone),
            _ => None,
        }
    }
}

/// The two who talk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pair {
    /// The business.
    pub business: BusinessId,
    /// The phone.
    pub phone: Phone,
}

impl Pair {
    /// Of two principals, in whatever order: a business and a phone.
    pub fn of(one: &Principal, other: &Principal) -> Result<Self, PairError> {
        match (one, other) {
            (Principal::Business(business), Principal::Phone(phone))
            | (Principal::Phone(phone), Principal::Business(business)) => {
                Ok(Self { business: business.clone(), phone: *phone })
            }
            _ => Err(PairError),
        }
    }

    /// Which side a principal is on; `None` where it is neither.
    pub fn side_of(&self, principal: &Principal) -> Option<Side> {
        match principal {
            Principal::Business(business) => (*business == self.business).then_some(Side::Business),
            Principal::Phone(phone) => (*phone == self.phone).then_some(Side::Phone),
        }
    }

    /// Who is on a side.
    pub fn principal(&self, side: Side) -> Principal {
        match side {
            Side::Business => self.business.clone().into(),
            Side::Phone => self.phone.into(),
        }
    }
}

/// Two businesses, or two phones, do not make a conversation.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a conversation is between a business and a phone, not between two of a kind")]
pub struct PairError;

/// The place of a message in its conversation: that of its record in `messages.accepted`. Its text is opaque to clients: a
/// version byte, the epoch and the offset as variable-length integers, in URL-safe base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConversationPosition {
    /// Life of the log.
    pub epoch: Epoch,
    /// Offset in the conversation's partition of the topic.
    pub offset: u64,
}

const POSITION_VERSION: u8 = 1;

impl fmt::Display for ConversationPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![POSITION_VERSION];
        write_varint(&mut bytes, u64::from(self.epoch.0));
        write_varint(&mut bytes, self.offset);
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for ConversationPosition {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let position = opaque(text, POSITION_VERSION, |bytes| {
            let epoch = read_varint(bytes).and_then(|epoch| u32::try_from(epoch).ok())?;
            Some(Self { epoch: Epoch(epoch), offset: read_varint(bytes)? })
        });
        position.ok_or_else(|| CursorError { length: text.chars().count() })
    }
}

/// Where a page of a conversation list ends: behind the conversation whose last activity was then. Opaque to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActivityCursor {
    /// When its last activity was.
    pub at: Timestamp,
    /// Which one, of several in the same millisecond.
    pub conversation: ConversationId,
}

const ACTIVITY_VERSION: u8 = 2;

impl fmt::Display for ActivityCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![ACTIVITY_VERSION];
        write_varint(&mut bytes, self.at.as_millis().max(0) as u64);
        bytes.extend(self.conversation.as_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for ActivityCursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let cursor = opaque(text, ACTIVITY_VERSION, |bytes| {
            let at = read_varint(bytes).and_then(|millis| i64::try_from(millis).ok())?;
            let conversation = ConversationId::from_bytes(std::mem::take(bytes)).ok()?;
            Some(Self { at: Timestamp::from_millis(at), conversation })
        });
        cursor.ok_or_else(|| CursorError { length: text.chars().count() })
    }
}

/// Reads what is behind the version byte; `None` unless all of the text is what it should be.
fn opaque<T>(text: &str, version: u8, read: impl FnOnce(&mut &[u8]) -> Option<T>) -> Option<T> {
    // Longer than any of ours.
    if text.len() > 80 {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (found, mut rest) = bytes.split_first()?;
    let value = read(&mut rest).filter(|_| *found == version && rest.is_empty())?;
    Some(value)
}

macro_rules! serde_as_text {
    ($($name:ident),+) => {
        $(impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        })+
    };
}

serde_as_text!(ConversationPosition, ActivityCursor);

/// The message at the highest position of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastMessage {
    /// The message.
    pub id: MessageId,
    /// Who sent it.
    pub from: Side,
    /// When it was accepted.
    pub at: Timestamp,
    /// Where it stands.
    pub position: ConversationPosition,
}

/// Whether a conversation goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It is the open one of its pair.
    Open {
        /// Put away, with the last message there was; a message behind it makes it active again.
        archived: Option<ArchivedBehind>,
    },
    /// It is over.
    Closed,
}

impl Standing {
    /// The side on which `sender` may send into a conversation of `pair` that stands so: either may, nobody else, and in a
    /// closed one none (R1.6, R1.7).
    pub fn may_send(self, pair: &Pair, sender: &Principal) -> Result<Side, SendRefused> {
        let side = pair.side_of(sender).ok_or(SendRefused::NotOurs)?;
        match self {
            Self::Open { .. } => Ok(side),
            Self::Closed => Err(ConversationClosed.into()),
        }
    }
}

/// The last message that a conversation had when it was archived; `None` when it had none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivedBehind(pub Option<ConversationPosition>);

/// The conversation is closed: nothing is sent in it, and it is not archived.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the conversation is closed: start a new one")]
pub struct ConversationClosed;

/// Why a principal may not send into a conversation.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SendRefused {
    /// It is neither of the two. Nobody else is to learn that the conversation exists.
    #[error("there is no such conversation")]
    NotOurs,
    /// It is over.
    #[error(transparent)]
    Closed(#[from] ConversationClosed),
}

/// A conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// Its id, which says when it was made.
    pub id: ConversationId,
    /// Whose it is.
    pub pair: Pair,
    /// Whether it goes on.
    pub standing: Standing,
    /// Its last message.
    pub last: Option<LastMessage>,
    /// How far each side has read, by [`Side`].
    pub read: [Option<ConversationPosition>; 2],
}

impl Conversation {
    /// One that has just been started.
    pub const fn new(id: ConversationId, pair: Pair) -> Self {
        Self { id, pair, standing: Standing::Open { archived: None }, last: None, read: [None; 2] }
    }

    /// When it was started.
    pub fn created_at(&self) -> Timestamp {
        self.id.made_at()
    }

    /// When something last happened in it: its last message, or that it was started.
    pub fn activity_at(&self) -> Timestamp {
        self.last.map_or_else(|| self.created_at(), |last| last.at)
    }

    /// Where it stands in a list, newest activity first.
    pub fn cursor(&self) -> ActivityCursor {
        ActivityCursor { at: self.activity_at(), conversation: self.id }
    }

    /// How it stands: an archived one is active again once there is a message behind those it was archived with.
    pub fn status(&self) -> ConversationStatus {
        match self.standing {
            Standing::Closed => ConversationStatus::Closed,
            Standing::Open { archived: Some(ArchivedBehind(mark)) } if self.last_position() <= mark => {
                ConversationStatus::Archived
            }
            Standing::Open { .. } => ConversationStatus::Active,
        }
    }

    /// Where its last message stands.
    pub fn last_position(&self) -> Option<ConversationPosition> {
        self.last.map(|last| last.position)
    }

    /// Puts it away, until there is another message. Again: nothing.
    pub fn archive(&mut self) -> Result<(), ConversationClosed> {
        let mark = ArchivedBehind(self.last_position());
        match &mut self.standing {
            Standing::Closed => Err(ConversationClosed),
            Standing::Open { archived } => {
                *archived = Some(mark);
                Ok(())
            }
        }
    }

    /// Takes it up again, as whoever starts a conversation with an archived one does. An active one stays as it is.
    pub fn take_up(&mut self) -> Result<(), ConversationClosed> {
        match &mut self.standing {
            Standing::Closed => Err(ConversationClosed),
            Standing::Open { archived } => {
                *archived = None;
                Ok(())
            }
        }
    }

    /// Ends it, for good.
    pub const fn close(&mut self) {
        self.standing = Standing::Closed;
    }

    /// A message stands in the log: the one at the highest position is the last, in whatever order they are told. What was
    /// accepted before it was closed is still its own.
    pub fn receive(&mut self, message: LastMessage) {
        if self.last_position().is_none_or(|known| message.position > known) {
            self.last = Some(message);
        }
    }

    /// `side` has read up to `position`. Never moves back.
    pub fn mark_read(&mut self, side: Side, position: ConversationPosition) {
        let read = &mut self.read[side as usize];
        *read = (*read).max(Some(position));
    }

    /// Whether a message counts as unread on `side`: the other side's, behind what was read, and on its way or delivered
    /// (one that was cancelled, expired, failed, or read by itself does not).
    pub fn counts_as_unread(&self, side: Side, from: Side, position: ConversationPosition, shown: Status) -> bool {
        from != side && Some(position) > self.read[side as usize] && matches!(shown, Status::Sent | Status::Delivered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_sorts_by_epoch_then_offset() {
        let at = |epoch, offset| ConversationPosition { epoch: Epoch(epoch), offset };
        assert!(at(1, u64::MAX) < at(2, 0) && at(2, 0) < at(2, 1));
    }

    #[test]
    fn the_cursor_of_a_list_is_not_taken_for_a_position() {
        let conversation = ConversationId::new(Timestamp::from_millis(5));
        let cursor = ActivityCursor { at: Timestamp::from_millis(7), conversation };
        let text = cursor.to_string();
        assert_eq!(text.parse(), Ok(cursor));
        assert!(text.parse::<ConversationPosition>().is_err());
        let position = ConversationPosition { epoch: Epoch(3), offset: 9 };
        assert!(position.to_string().parse::<ActivityCursor>().is_err());
    }
}
