//! Conversations: one open for a pair, unread counts, both ways.

use std::collections::BTreeMap;

use eshaar_model::{
    ActivityCursor, Conversation, ConversationId, ConversationPosition, ConversationStatus, Epoch, LastMessage,
    MessageId, Pair, Phone, Principal, SendRefused, Side, Status, Timestamp,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::any::{cases, conversation, status, timestamp};

fn pair() -> Pair {
    Pair { business: "bank".parse().unwrap(), phone: Phone::from_digits(966_500_000_001).unwrap() }
}

fn side() -> impl Strategy<Value = Side> {
    select(Side::BOTH.to_vec())
}

/// Few, so that they meet; and the largest.
fn position() -> impl Strategy<Value = ConversationPosition> {
    let offset = prop_oneof![9 => 0..12_u64, 1 => Just(u64::MAX), 1 => any::<u64>()];
    (0..3_u32, offset).prop_map(|(epoch, offset)| ConversationPosition { epoch: Epoch(epoch), offset })
}

fn message() -> impl Strategy<Value = LastMessage> {
    (position(), side(), timestamp()).prop_map(|(position, from, at)| {
        // The same position is the same message.
        let id = MessageId::new(Timestamp::from_millis(position.offset as i64 & 0xffff));
        LastMessage { id, from, at, position }
    })
}

#[derive(Clone, Debug)]
enum Event {
    Start,
    Archive,
    Close,
    Send(Side),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![Just(Event::Start), Just(Event::Archive), Just(Event::Close), side().prop_map(Event::Send)]
}

fn principals() -> [Principal; 4] {
    let other = Phone::from_digits(966_500_000_002).unwrap();
    [pair().business.into(), pair().phone.into(), "shop".parse().unwrap(), other.into()]
}

proptest! {
    #![proptest_config(cases())]

    /// R1.7: whatever a pair does, at most one of its conversations is active; a closed one stays closed; a message makes
    /// an archived one active again, and whoever starts gets an active one.
    #[test]
    fn property_02_conversation_participant_uniqueness(events in vec(event(), 0..40)) {
        let mut all: Vec<Conversation> = Vec::new();
        for (number, event) in events.iter().enumerate() {
            let before: Vec<_> = all.iter().map(Conversation::status).collect();
            let open = all.iter_mut().find(|known| known.status() != ConversationStatus::Closed);
            match (event, open) {
                (Event::Start, Some(open)) => prop_assert_eq!(open.take_up(), Ok(())),
                (Event::Start, None) => {
                    let id = ConversationId::new(Timestamp::from_millis(number as i64));
                    all.push(Conversation::new(id, pair()));
                }
                (Event::Archive, Some(open)) => {
                    prop_assert_eq!(open.archive(), Ok(()));
                    prop_assert_eq!(open.status(), ConversationStatus::Archived);
                }
                (Event::Close, Some(open)) => open.close(),
                (Event::Send(from), Some(open)) => {
                    let position = ConversationPosition { epoch: Epoch(1), offset: number as u64 };
                    prop_assert_eq!(open.standing.may_send(&open.pair, &pair().principal(*from)), Ok(*from));
                    let at = Timestamp::from_millis(number as i64);
                    open.receive(LastMessage { id: MessageId::new(at), from: *from, at, position });
                    prop_assert_eq!(open.status(), ConversationStatus::Active);
                }
                (Event::Archive | Event::Close | Event::Send(_), None) => {}
            }
            let active = all.iter().filter(|known| known.status() == ConversationStatus::Active).count();
            prop_assert!(active <= 1);
            prop_assert!(!matches!(event, Event::Start) || active == 1);
            for (before, mut now) in before.into_iter().zip(all.clone()) {
                if before == ConversationStatus::Closed {
                    prop_assert_eq!(now.status(), ConversationStatus::Closed);
                    prop_assert!(now.archive().is_err() && now.take_up().is_err());
                }
            }
        }
    }

    /// R1.8: told of messages and reads in any order, late and twice, the last message is that at the highest position, a
    /// read position never moves back, and what counts as unread is the other side's messages behind it, those that were
    /// taken back or read by themselves aside.
    #[test]
    fn property_06_unread_count_accuracy(
        messages in vec((message(), status()), 0..20),
        reads in vec((side(), position()), 0..8),
        order in any::<u64>(),
    ) {
        let rows: BTreeMap<_, _> =
            messages.iter().map(|(message, shown)| (message.position, (message.from, *shown))).collect();
        let mut conversation = Conversation::new(ConversationId::new(Timestamp::from_millis(0)), pair());
        let mut told: Vec<_> = messages.iter().map(|(message, _)| *message).collect();
        if !told.is_empty() {
            let by = order as usize % told.len();
            told.rotate_left(by);
        }
        let repeats = told.clone();
        told.into_iter().chain(repeats).for_each(|message| conversation.receive(message));
        prop_assert_eq!(conversation.last_position(), rows.keys().next_back().copied());
        for (side, position) in &reads {
            let before = conversation.read;
            conversation.mark_read(*side, *position);
            prop_assert!(conversation.read[*side as usize] >= before[*side as usize]);
            prop_assert_eq!(conversation.read[side.other() as usize], before[side.other() as usize]);
        }
        for side in Side::BOTH {
            let read = reads.iter().filter(|(of, _)| *of == side).map(|(_, position)| *position).max();
            let expected = rows.iter().filter(|(position, (from, shown))| {
                *from == side.other() && Some(**position) > read && [Status::Sent, Status::Delivered].contains(shown)
            });
            let counted = rows.iter().filter(|(position, (from, shown))| {
                conversation.counts_as_unread(side, *from, **position, *shown)
            });
            prop_assert_eq!(counted.count(), expected.count());
        }
        // Whoever reads up to the end has nothing left.
        if let Some(end) = conversation.last_position() {
            conversation.mark_read(Side::Phone, end);
            let left = rows.iter().filter(|(position, (from, shown))| {
                conversation.counts_as_unread(Side::Phone, *from, **position, *shown)
            });
            prop_assert_eq!(left.count(), 0);
        }
    }

    /// R1.6: either side may start and both may send, until it is closed; nobody else ever may, or learns of it.
    #[test]
    fn property_13_chat_bidirectionality(by_phone in any::<bool>(), closed in any::<bool>(), sends in vec(0..4_usize, 0..12)) {
        let (business, phone) = (pair().business.into(), pair().phone.into());
        let started = if by_phone { Pair::of(&phone, &business) } else { Pair::of(&business, &phone) };
        prop_assert_eq!(&started, &Ok(pair()));
        prop_assert!(Pair::of(&phone, &phone).is_err() && Pair::of(&business, &business).is_err());
        let mut conversation = Conversation::new(ConversationId::new(Timestamp::from_millis(0)), started.unwrap());
        if closed {
            conversation.close();
        }
        for sender in sends {
            let principal = &principals()[sender];
            let allowed = conversation.standing.may_send(&conversation.pair, principal);
            match sender {
                2.. => prop_assert_eq!(allowed, Err(SendRefused::NotOurs)),
                _ if closed => prop_assert!(matches!(allowed, Err(SendRefused::Closed(_)))),
                _ => {
                    let side = allowed.unwrap();
                    prop_assert_eq!(&conversation.pair.principal(side), principal);
                    prop_assert_eq!(&conversation.pair.principal(side.other()), &principals()[1 - sender]);
                }
            }
        }
    }

    #[test]
    fn positions_and_cursors_survive_their_text(position in position(), at in timestamp(), conversation in conversation()) {
        let text = position.to_string();
        prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
        prop_assert_eq!(text.parse(), Ok(position));
        let cursor = ActivityCursor { at, conversation };
        prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }

    #[test]
    fn damaged_positions_and_cursors_are_refused_and_never_panic(text in ".{0,90}", position in position(), cut in 0..20_usize) {
        for text in [text, position.to_string().chars().take(cut).collect()] {
            if let Ok(position) = text.parse::<ConversationPosition>() {
                prop_assert_eq!(position.to_string().parse(), Ok(position));
            }
            if let Ok(cursor) = text.parse::<ActivityCursor>() {
                prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
            }
        }
    }
}
