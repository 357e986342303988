//! Types, statuses, retries.

use eshaar_model::retry::DELAYS;
use eshaar_model::{Attempt, MessageKind, MessageType, ReplyRefused, Status, StatusSteps};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::any::{cases, conversation, message_type, status, timestamp};

const fn rank(status: Status) -> u8 {
    match status {
        Status::Sent => 0,
        Status::Failed | Status::Expired | Status::Cancelled => 1,
        Status::Delivered => 2,
        Status::Read => 3,
    }
}

proptest! {
    #![proptest_config(cases())]

    /// R1.1: a one-way message has no conversation, a chat message always has one; nothing else is a message.
    #[test]
    fn property_01_message_type_consistency(message_type in message_type(), conversation in option::of(conversation())) {
        let consistent = (message_type == MessageType::Chat) == conversation.is_some();
        match MessageKind::new(message_type, conversation) {
            Ok(kind) => {
                prop_assert!(consistent);
                prop_assert_eq!((kind.message_type(), kind.conversation()), (message_type, conversation));
            }
            Err(_) => prop_assert!(!consistent),
        }
    }

    /// R9.1: whatever steps are reached, in whatever order and however often, the status shown only moves forward, and
    /// the first time of each step stays.
    #[test]
    fn property_03_status_progression(events in vec((status(), timestamp()), 0..20)) {
        let mut steps = StatusSteps::default();
        for (number, (step, at)) in events.iter().enumerate() {
            let before = steps.current();
            let changed = steps.reach(*step, *at);
            let first = events[..=number].iter().find(|(earlier, _)| earlier == step).unwrap().1;
            prop_assert_eq!(steps.at(*step), Some(first));
            let shown = steps.current().unwrap();
            prop_assert_eq!(changed, before != Some(shown));
            if let Some(before) = before {
                prop_assert!(rank(shown) >= rank(before), "{before} became {shown}");
            }
            prop_assert_eq!(rank(shown), events[..=number].iter().map(|(step, _)| rank(*step)).max().unwrap());
        }
    }

    /// R9.1: a transition is legal only to a higher rank, and what is legal for one step is what reaching it does.
    #[test]
    fn property_03_a_transition_is_legal_only_forward(from in status(), to in status(), at in timestamp()) {
        prop_assert_eq!(from.can_become(to), rank(to) > rank(from));
        let mut steps = StatusSteps::default();
        steps.reach(from, at);
        // Later than the first, so that among steps of one rank the first stays.
        steps.reach(to, at.plus_millis(1));
        prop_assert_eq!(steps.current() == Some(to), from == to || from.can_become(to));
    }

    /// R4.1: a retry count only grows, by one, to at most six retries; delays double from 1 s to 32 s.
    #[test]
    fn property_04_retry_count_monotonicity(count in any::<u8>(), failures in 0..20_usize) {
        prop_assert_eq!(Attempt::from_count(count).map(Attempt::count), (count <= 6).then_some(count));
        let (mut attempt, mut retries) = (Attempt::FIRST, 0);
        for _ in 0..failures {
            let Some((next, delay)) = attempt.next() else { break };
            prop_assert_eq!(next.count(), attempt.count() + 1);
            prop_assert_eq!(delay.as_secs(), 1 << attempt.count());
            (attempt, retries) = (next, retries + 1);
        }
        prop_assert_eq!(retries, failures.min(DELAYS.len()));
    }

    /// R1.5: a reply to a one-way message is refused; a reply in chat stays in its conversation.
    #[test]
    fn property_12_one_way_read_only(conversation in option::of(conversation())) {
        let message_type = if conversation.is_some() { MessageType::Chat } else { MessageType::OneWay };
        let kind = MessageKind::new(message_type, conversation).unwrap();
        match conversation {
            None => prop_assert_eq!(kind.reply(), Err(ReplyRefused)),
            Some(conversation) => prop_assert_eq!(kind.reply(), Ok(MessageKind::Chat(conversation))),
        }
    }
}
