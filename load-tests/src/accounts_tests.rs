//! Seeds each thing that can go wrong, and checks that the accountant finds it and nothing else.

use super::*;

fn accepted(count: u32) -> Sent {
    let mut sent = Sent::default();
    for _ in 0..count {
        let seq = sent.attempt();
        sent.settle(seq, Attempt::Accepted);
    }
    sent
}

fn inbox(seqs: &[u32]) -> Inbox {
    let mut inbox = Inbox::default();
    for seq in seqs {
        inbox.receive(*seq, 0);
    }
    inbox
}

fn verdict(sent: &Sent, inbox: &Inbox) -> Verdict {
    Verdict::of([(7, sent, inbox)])
}

fn clean(verdict: &Verdict) -> bool {
    verdict.lost + verdict.duplicated + verdict.out_of_order + verdict.unexpected == 0
}

#[test]
fn everything_received_once_and_in_order_is_clean() {
    let seqs: Vec<u32> = (0..1_000).collect();
    let verdict = verdict(&accepted(1_000), &inbox(&seqs));
    assert!(clean(&verdict));
    assert_eq!((verdict.accepted, verdict.received), (1_000, 1_000));
}

#[test]
fn a_seeded_loss_is_found() {
    let verdict = verdict(&accepted(5), &inbox(&[0, 1, 3, 4]));
    assert_eq!(verdict.examples, [Example { violation: Violation::Lost, recipient: 7, seq: Some(2) }]);
    assert_eq!((verdict.lost, clean(&verdict)), (1, false));
}

#[test]
fn a_loss_at_the_very_end_is_found() {
    assert_eq!(verdict(&accepted(130), &inbox(&(0..128).collect::<Vec<_>>())).lost, 2);
    assert_eq!(verdict(&accepted(3), &Inbox::default()).lost, 3);
}

#[test]
fn a_seeded_duplicate_is_found_and_is_not_taken_for_disorder() {
    let verdict = verdict(&accepted(4), &inbox(&[0, 1, 2, 1, 3]));
    assert_eq!((verdict.duplicated, verdict.out_of_order, verdict.lost), (1, 0, 0));
    assert_eq!(verdict.received, 4);
}

#[test]
fn a_seeded_swap_is_found_and_is_no_loss() {
    let verdict = verdict(&accepted(4), &inbox(&[0, 2, 1, 3]));
    assert_eq!((verdict.out_of_order, verdict.duplicated, verdict.lost), (1, 0, 0));
    assert_eq!(verdict.examples[0].seq, Some(1));
}

#[test]
fn order_holds_within_a_lane_only() {
    let mut inbox = Inbox::default();
    for (seq, lane) in [(1, 1), (3, 1), (0, 0), (2, 0)] {
        inbox.receive(seq, lane);
    }
    assert!(clean(&verdict(&accepted(4), &inbox)));
}

#[test]
fn what_was_never_sent_is_unexpected() {
    let mut inbox = inbox(&[0, 1, 2]);
    inbox.receive_stranger();
    let verdict = verdict(&accepted(2), &inbox);
    assert_eq!(verdict.unexpected, 2);
    assert_eq!(verdict.examples.iter().map(|example| example.seq).collect::<Vec<_>>(), [None, Some(2)]);
}

#[test]
fn a_refused_message_must_not_arrive_and_an_unknown_one_may() {
    let mut sent = Sent::default();
    for attempt in [Attempt::Accepted, Attempt::Refused, Attempt::Unknown, Attempt::Unknown, Attempt::Accepted] {
        let seq = sent.attempt();
        sent.settle(seq, attempt);
    }
    assert!(clean(&verdict(&sent, &inbox(&[0, 2, 4]))));
    assert_eq!(verdict(&sent, &inbox(&[0, 1, 4])).unexpected, 1);
    let books = verdict(&sent, &inbox(&[0, 4]));
    assert_eq!((books.accepted, books.refused, books.unknown), (2, 1, 2));
}

#[test]
fn examples_are_bounded() {
    let verdict = verdict(&accepted(1_000), &Inbox::default());
    assert_eq!((verdict.lost, verdict.examples.len()), (1_000, EXAMPLES));
}
