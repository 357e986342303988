//! Seeds each thing that can go wrong, and checks that the accountant finds it and nothing else.

use super::*;

/// How long after the answer to its cancellation a message may arrive.
const GRACE_US: u64 = 3_000_000;

/// When cancellations are answered here.
const ANSWERED_US: u64 = 10_000_000;

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
        inbox.receive(*seq, 0, 0);
    }
    inbox
}

fn verdict(sent: &Sent, inbox: &Inbox) -> Verdict {
    Verdict::of([(7, sent, inbox)], GRACE_US)
}

fn clean(verdict: &Verdict) -> bool {
    verdict.lost + verdict.duplicated + verdict.out_of_order + verdict.unexpected + verdict.cancelled.after == 0
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
    assert_eq!(verdict.examples, [Example { violation: Violation::Lost, recipient: 7, seq: Some(2), detail: None }]);
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
        inbox.receive(seq, lane, 0);
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

/// Five accepted messages, of which message 2 is cancelled.
fn one_cancelled(answered_us: Option<u64>) -> Sent {
    let mut sent = accepted(5);
    sent.cancel(2, Cancelled { id: "019a".to_owned(), answered_us });
    sent
}

/// The inbox of a recipient that gets message 2 at this time, and the others early.
fn received_at(at_us: u64) -> Inbox {
    let mut inbox = Inbox::new(true);
    for seq in 0..5 {
        inbox.receive(seq, 0, if seq == 2 { at_us } else { 1 });
    }
    inbox
}

#[test]
fn a_cancelled_message_that_never_arrives_is_not_lost() {
    let books = verdict(&one_cancelled(Some(ANSWERED_US)), &inbox(&[0, 1, 3, 4]));
    assert!(clean(&books));
    assert_eq!(books.cancelled, CancelledTotals { answered: 1, withheld: 1, ..CancelledTotals::default() });
    assert_eq!((books.accepted, books.received), (5, 4));
    assert_eq!(verdict(&one_cancelled(Some(ANSWERED_US)), &inbox(&[0, 1, 4])).lost, 1, "another one is");
}

#[test]
fn a_message_may_arrive_before_its_cancellation_is_answered_and_shortly_after() {
    let sent = one_cancelled(Some(ANSWERED_US));
    for at_us in [1, ANSWERED_US] {
        let books = verdict(&sent, &received_at(at_us));
        assert!(clean(&books));
        assert_eq!(books.cancelled, CancelledTotals { answered: 1, before: 1, ..CancelledTotals::default() });
    }
    let books = verdict(&sent, &received_at(ANSWERED_US + GRACE_US));
    assert!(clean(&books));
    let within = CancelledTotals { answered: 1, within: 1, longest_us: GRACE_US, ..CancelledTotals::default() };
    assert_eq!(books.cancelled, within);
}

#[test]
fn a_message_that_arrives_long_after_its_cancellation_was_answered_is_found() {
    let books = verdict(&one_cancelled(Some(ANSWERED_US)), &received_at(ANSWERED_US + 17_250_000));
    let detail = Some("019a: cancelled 10.000 s after the start, received 17.250 s later".to_owned());
    assert_eq!(books.examples, [Example { violation: Violation::AfterCancel, recipient: 7, seq: Some(2), detail }]);
    assert_eq!((books.cancelled.after, books.cancelled.longest_us, books.lost), (1, 17_250_000, 0));
}

#[test]
fn without_grace_nothing_may_arrive_after_the_answer() {
    let (sent, inbox) = (one_cancelled(Some(ANSWERED_US)), received_at(ANSWERED_US + 1));
    assert_eq!(Verdict::of([(7, &sent, &inbox)], 0).cancelled.after, 1);
}

#[test]
fn a_message_may_arrive_or_not_whose_cancellation_was_never_answered() {
    let sent = one_cancelled(None);
    for inbox in [received_at(u64::MAX), inbox(&[0, 1, 3, 4])] {
        let books = verdict(&sent, &inbox);
        assert!(clean(&books));
        assert_eq!(books.cancelled, CancelledTotals::default());
    }
}

#[test]
fn a_cancelled_message_that_arrives_twice_is_a_duplicate_and_its_first_time_counts() {
    let mut inbox = received_at(1);
    inbox.receive(2, 0, ANSWERED_US + 2 * GRACE_US);
    let books = verdict(&one_cancelled(Some(ANSWERED_US)), &inbox);
    assert_eq!((books.duplicated, books.cancelled.before, books.cancelled.after), (1, 1, 0));
}
