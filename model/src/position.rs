//! Where a message stands: log coordinates, and the cursor a client keeps.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Lane;

/// A life of the log. A log restored, replaced or cut below what was once committed is a new epoch: its offsets mean
/// something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u32);

/// The position of a message in its recipient's stream: that of its lane record in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamPosition {
    /// Life of the log.
    pub epoch: Epoch,
    /// Lane.
    pub lane: Lane,
    /// Offset in the recipient's partition of the lane's topic.
    pub offset: u64,
}

/// How far a client has come: the highest offset it has been sent, a lane.
///
/// Opaque to clients: a version byte, the epoch and one offset a lane, as variable-length integers in URL-safe base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// Life of the log.
    pub epoch: Epoch,
    /// A lane's highest offset; `None` where nothing of the lane was sent yet. Indexed by [`Lane::index`].
    pub offsets: [Option<u64>; 4],
}

/// The text is no cursor of this version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected a cursor as it was received from this service, got {length} characters that are not one")]
pub struct CursorError {
    /// Length of the refused text, in characters.
    pub length: usize,
}

const VERSION: u8 = 1;

impl Cursor {
    /// Before the first message of an epoch.
    pub const fn start(epoch: Epoch) -> Self {
        Self { epoch, offsets: [None; 4] }
    }

    /// The highest offset of `lane` that is covered.
    pub const fn offset(&self, lane: Lane) -> Option<u64> {
        self.offsets[lane.index()]
    }

    /// Whether the message at `position` was sent before or at this cursor. One of an older epoch always was.
    pub fn covers(&self, position: StreamPosition) -> bool {
        match position.epoch.cmp(&self.epoch) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Greater => false,
            std::cmp::Ordering::Equal => self.offset(position.lane).is_some_and(|offset| position.offset <= offset),
        }
    }

    /// Moves on to `position`. It never moves back; a newer epoch starts afresh.
    pub fn advance(&mut self, position: StreamPosition) {
        if position.epoch > self.epoch {
            *self = Self::start(position.epoch);
        }
        if position.epoch == self.epoch {
            let offset = &mut self.offsets[position.lane.index()];
            *offset = Some(offset.map_or(position.offset, |known| known.max(position.offset)));
        }
    }

    /// The furthest of both in each lane; the newer epoch where they differ.
    #[must_use]
    pub fn max(mut self, other: Self) -> Self {
        match other.epoch.cmp(&self.epoch) {
            std::cmp::Ordering::Less => self,
            std::cmp::Ordering::Greater => other,
            std::cmp::Ordering::Equal => {
                for (ours, theirs) in self.offsets.iter_mut().zip(other.offsets) {
                    *ours = (*ours).max(theirs);
                }
                self
            }
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(24);
        bytes.push(VERSION);
        write_varint(&mut bytes, u64::from(self.epoch.0));
        for offset in self.offsets {
            write_varint(&mut bytes, offset.map_or(0, |offset| offset.saturating_add(1)));
        }
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let refused = || CursorError { length: text.chars().count() };
        if text.len() > 80 {
            return Err(refused());
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| refused())?;
        let Some((&VERSION, mut rest)) = bytes.split_first() else { return Err(refused()) };
        let epoch = read_varint(&mut rest).and_then(|epoch| u32::try_from(epoch).ok()).ok_or_else(refused)?;
        let mut cursor = Self::start(Epoch(epoch));
        for offset in &mut cursor.offsets {
            *offset = read_varint(&mut rest).ok_or_else(refused)?.checked_sub(1);
        }
        if rest.is_empty() { Ok(cursor) } else { Err(refused()) }
    }
}

pub(crate) fn write_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

pub(crate) fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return None;
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}
