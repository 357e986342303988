//! Identities: UUIDv7, so that they carry the time they were made at and sort by it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::{NoContext, Uuid};

use crate::Timestamp;

/// The text is not a UUID of version 7.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected a UUID of version 7, got {length} characters that are not one")]
pub struct IdError {
    /// Length of the refused text, in characters.
    pub length: usize,
}

macro_rules! uuid_v7 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "Uuid", into = "Uuid")]
        pub struct $name(Uuid);

        impl $name {
            /// A new identity that carries `now` and 74 random bits.
            pub fn new(now: Timestamp) -> Self {
                let millis = now.as_millis().max(0) as u64;
                let (seconds, nanos) = (millis / 1000, (millis % 1000) as u32 * 1_000_000);
                Self(Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, seconds, nanos)))
            }

            /// When it was made, in milliseconds since the Unix epoch.
            pub fn made_at(self) -> Timestamp {
                let bytes = self.0.as_bytes();
                let millis = bytes[..6].iter().fold(0_i64, |sum, byte| (sum << 8) | i64::from(*byte));
                Timestamp::from_millis(millis)
            }

            /// The 16 bytes, in network order.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// From 16 bytes in network order.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdError> {
                let refused = IdError { length: bytes.len() };
                Uuid::from_slice(bytes).map_err(|_| refused).and_then(Self::try_from)
            }
        }

        impl TryFrom<Uuid> for $name {
            type Error = IdError;

            fn try_from(uuid: Uuid) -> Result<Self, IdError> {
                if uuid.get_version_num() == 7 { Ok(Self(uuid)) } else { Err(IdError { length: 36 }) }
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Uuid {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let refused = IdError { length: text.chars().count() };
                match Uuid::try_parse(text) {
                    Ok(uuid) if text.len() == 36 && uuid.get_version_num() == 7 => Ok(Self(uuid)),
                    _ => Err(refused),
                }
            }
        }
    };
}

uuid_v7! {
    /// Identity of a message; the key of its idempotency (R4.3).
    MessageId
}

uuid_v7! {
    /// Identity of a broadcast: one message to many.
    BroadcastId
}

uuid_v7! {
    /// Identity of a list of recipients: of an audience as it was uploaded once, or of a broadcast's own.
    RecipientsId
}

uuid_v7! {
    /// Identity of a conversation between a business and a phone.
    ConversationId
}

uuid_v7! {
    /// Identity of an entry of the audit log.
    AuditId
}

uuid_v7! {
    /// Identity of a webhook: an endpoint that a business is told at.
    WebhookId
}

/// Bits of an id that say which recipient of its broadcast a message is for.
const RECIPIENT_BITS: u32 = 24;

/// Most recipients of a broadcast: each has a number of 24 bits.
pub const MOST_RECIPIENTS: u64 = 1 << RECIPIENT_BITS;

impl MessageId {
    /// The id of the message of a broadcast to its recipient of that number, sent at `at`: the same whoever makes it. It
    /// carries the number ([`Self::recipient`]), and 50 random bits of the broadcast.
    pub fn of_recipient(broadcast: BroadcastId, number: u32, at: Timestamp) -> Self {
        let (_, random) = broadcast.0.as_u64_pair();
        let number = u64::from(number) & (MOST_RECIPIENTS - 1);
        let (high, low) = (random >> 38 & 0xfff, random & ((1 << 38) - 1));
        let high = (at.as_millis().max(0) as u64) << 16 | 0x7000 | high;
        Self(Uuid::from_u64_pair(high, 1 << 63 | low << RECIPIENT_BITS | number))
    }

    /// Of the message of a broadcast: which of its recipients it is for.
    pub const fn recipient(self) -> u32 {
        (self.0.as_u128() as u32) & (MOST_RECIPIENTS - 1) as u32
    }
}

impl From<BroadcastId> for MessageId {
    /// As an id of whatever may be taken back: messages and broadcasts share one space of ids.
    fn from(broadcast: BroadcastId) -> Self {
        Self(broadcast.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_recipients_message_is_made_from_its_broadcast_its_number_and_its_time() {
        let at = Timestamp::from_millis(1_760_000_000_123);
        let (one, other) = (BroadcastId::new(at), BroadcastId::new(at));
        let ids: std::collections::HashSet<_> = [0, 1, 9_999_999, (MOST_RECIPIENTS - 1) as u32]
            .into_iter()
            .flat_map(|number| {
                [one, other].map(|broadcast| {
                    let id = MessageId::of_recipient(broadcast, number, at);
                    assert_eq!((id.recipient(), id.made_at()), (number, at));
                    assert_eq!(id, MessageId::of_recipient(broadcast, number, at));
                    assert_eq!(id.to_string().parse(), Ok(id));
                    id
                })
            })
            .collect();
        assert_eq!(ids.len(), 8);
        assert_ne!(MessageId::of_recipient(one, 1, at), MessageId::of_recipient(one, 1, at.plus_millis(1)));
    }

    #[test]
    fn an_id_carries_the_millisecond_it_was_made_at() {
        let at = Timestamp::from_millis(1_760_000_000_123);
        assert_eq!(MessageId::new(at).made_at(), at);
    }

    #[test]
    fn ids_of_later_milliseconds_sort_later() {
        let early = MessageId::new(Timestamp::from_millis(1_760_000_000_000));
        let late = MessageId::new(Timestamp::from_millis(1_760_000_000_001));
        assert!(early < late && early.to_string() < late.to_string());
    }

    #[test]
    fn another_version_of_uuid_is_refused() {
        let version_4 = "6f1b9a52-4b7e-4d0a-9a54-0f5e6f3b1c2d";
        assert_eq!(version_4.parse::<MessageId>(), Err(IdError { length: 36 }));
    }
}
