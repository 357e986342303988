//! What each answer means, and what need not arrive any more.

use super::*;

fn judged(call: Call, status: u16, body: &'static str) -> Option<Outcome> {
    let status = StatusCode::from_u16(status).unwrap();
    judge(call, &Answer { status, retry_after: None, body: body.into() })
}

fn message(seq: u32) -> Accepted {
    Accepted { recipient: 7, seq, id: format!("019a-{seq}") }
}

#[test]
fn an_answer_to_a_cancellation_says_what_became_of_it() {
    assert_eq!(judged(Call::Cancel, 200, "{}"), Some(Outcome::Done));
    assert_eq!(judged(Call::Cancel, 202, "{}"), Some(Outcome::DoneUnseen));
    assert_eq!(judged(Call::Cancel, 404, r#"{"code":"message_not_found"}"#), Some(Outcome::NotFound));
    for code in [r#"{"code":"already_delivered"}"#, r#"{"code":"already_read"}"#] {
        assert_eq!(judged(Call::Cancel, 409, code), Some(Outcome::TooLate));
    }
    let failed = Some(Outcome::Refused("409 already_failed".to_owned()));
    assert_eq!(judged(Call::Cancel, 409, r#"{"code":"already_failed"}"#), failed);
}

#[test]
fn what_cannot_be_answered_yet_is_asked_again_and_404_is_an_answer() {
    for call in [Call::Cancel, Call::LookUp] {
        for status in [408, 429, 500, 503] {
            assert_eq!(judged(call, status, ""), None, "{status}");
        }
    }
    assert_eq!(judged(Call::LookUp, 200, "{}"), Some(Outcome::Done));
    assert_eq!(judged(Call::LookUp, 404, ""), Some(Outcome::NotFound));
    assert_eq!(judged(Call::LookUp, 202, "{}"), Some(Outcome::Refused("202 ".to_owned())));
}

#[test]
fn a_cancelled_message_need_not_arrive_unless_it_has_arrived_before() {
    let cancels = Cancels::new().unwrap();
    cancels.received(7, 0);
    for (seq, outcome) in
        [(0, Some(Outcome::Done)), (1, Some(Outcome::DoneUnseen)), (2, Some(Outcome::TooLate)), (3, None)]
    {
        cancels.settle(Call::Cancel, &message(seq), outcome.as_ref(), 1_000);
    }
    assert_eq!(cancels.withheld(), 1);
    cancels.received(7, 1);
    assert_eq!(cancels.withheld(), 0);
    cancels.received(7, 1);
    assert_eq!(cancels.withheld(), 0);

    let cancelled: Vec<_> = cancels.take_cancelled().into_iter().map(|(_, seq, of)| (seq, of.answered_us)).collect();
    assert_eq!(cancelled, [(0, Some(1_000)), (1, Some(1_000)), (3, None)]);
    let Totals { cancelled, cancelled_unseen, too_late, unanswered, .. } = cancels.report().totals;
    assert_eq!((cancelled, cancelled_unseen, too_late, unanswered), (1, 1, 1, 1));
}

#[test]
fn a_404_fails_the_run_and_is_named_with_its_message() {
    let cancels = Cancels::new().unwrap();
    cancels.settle(Call::Cancel, &message(4), Some(&Outcome::NotFound), 1_500_000);
    cancels.settle(Call::LookUp, &message(5), Some(&Outcome::NotFound), 2_000_000);
    let report = cancels.report();
    assert_eq!(
        report.failures(&Verdict::default(), &Checks::default()),
        ["1 cancellations of accepted messages were answered 404", "1 look-ups of accepted messages were answered 404"]
    );
    assert_eq!(
        report.totals.examples[0],
        "cancellation of 019a-4 (recipient 7, message 4) answered 404 1.500 s after the start"
    );
    assert!(cancels.take_cancelled().is_empty());
}

#[test]
fn a_run_that_shows_nothing_fails() {
    let checks = Checks { min_withheld: 1, min_repeats: 2, min_cancelled_unseen: 3, ..Checks::default() };
    let failures = Cancels::new().unwrap().report().failures(&Verdict::default(), &checks);
    assert_eq!(failures.len(), 3, "{failures:?}");
    assert!(failures.iter().all(|failure| failure.starts_with("only 0 ")), "{failures:?}");
}
