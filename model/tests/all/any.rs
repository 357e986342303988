//! Values of every kind.

use eshaar_model::{ConversationId, Cursor, Epoch, Lane, MessageType, Status, StreamPosition, Timestamp};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// Each property is tried on this many cases.
pub fn cases() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) }
}

pub fn timestamp() -> impl Strategy<Value = Timestamp> {
    (0..4_102_444_800_000_i64).prop_map(Timestamp::from_millis)
}

pub fn conversation() -> impl Strategy<Value = ConversationId> {
    timestamp().prop_map(ConversationId::new)
}

pub fn message_type() -> impl Strategy<Value = MessageType> {
    select(vec![MessageType::OneWay, MessageType::Chat])
}

pub fn status() -> impl Strategy<Value = Status> {
    select(Status::ALL.to_vec())
}

pub fn lane() -> impl Strategy<Value = Lane> {
    select(Lane::ALL.to_vec())
}

/// Small numbers, so that positions and cursors meet; and the largest.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![9 => 0..8_u64, 1 => Just(u64::MAX - 1), 1 => 0..u64::MAX]
}

fn epoch() -> impl Strategy<Value = Epoch> {
    prop_oneof![9 => 0..3_u32, 1 => any::<u32>()].prop_map(Epoch)
}

pub fn position() -> impl Strategy<Value = StreamPosition> {
    (epoch(), lane(), offset()).prop_map(|(epoch, lane, offset)| StreamPosition { epoch, lane, offset })
}

pub fn cursor() -> impl Strategy<Value = Cursor> {
    let lane = || option::of(offset());
    (epoch(), [lane(), lane(), lane(), lane()]).prop_map(|(epoch, offsets)| Cursor { epoch, offsets })
}
