//! What becomes of a batch: how far it can be settled, what has to be appended first, and what stops it. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use eshaar_model::Timestamp;
use eshaar_schemas::DeadLetter;

use super::retry::copy::Wait;
use crate::{NewRecord, Outcome, Received};

/// What a record leads to, once it is decided.
#[derive(Debug)]
pub(super) enum Effect {
    /// These records; none, when it was done.
    Forward(Vec<NewRecord>),
    /// A dead letter.
    Dead {
        /// A stable code.
        code: &'static str,
        /// What was wrong.
        reason: String,
    },
    /// A copy in a retry topic.
    Wait(Wait),
    /// Nothing: a copy of it is in a retry topic.
    Leave,
}

/// Why the record behind the settled ones is not settled.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It failed and is tried again.
    Retry { reason: String },
    /// Something it depends on is down.
    Pause { until: Timestamp, reason: String },
}

/// The outcomes of a batch up to the first that does not settle its record.
#[derive(Debug)]
pub(super) struct Plan {
    /// One for each record from the first on.
    pub(super) effects: Vec<Effect>,
    /// What is wrong with the record behind them.
    pub(super) stop: Option<Stop>,
}

impl Plan {
    /// Of a batch of `records`. What a stage leaves unanswered is tried again.
    pub(super) fn of(outcomes: Vec<Outcome>, records: usize) -> Self {
        let answered = outcomes.len();
        let mut effects = Vec::with_capacity(records);
        for outcome in outcomes.into_iter().take(records) {
            let stop = match outcome {
                Outcome::Forward(forwarded) => {
                    effects.push(Effect::Forward(forwarded));
                    continue;
                }
                Outcome::Done => {
                    effects.push(Effect::Forward(Vec::new()));
                    continue;
                }
                Outcome::Dead { code, reason } => {
                    effects.push(Effect::Dead { code, reason });
                    continue;
                }
                Outcome::Retry { reason } => Stop::Retry { reason },
                Outcome::Pause { until, reason } => Stop::Pause { until, reason },
            };
            return Self { effects, stop: Some(stop) };
        }
        let stop = (answered < records)
            .then(|| Stop::Retry { reason: format!("the stage answered for {answered} of {records} records") });
        Self { effects, stop }
    }
}

/// How often a record that failed now was tried.
pub(super) fn tries(record: &Received) -> i32 {
    i32::from(record.attempt.count()) + 1
}

/// The dead letter of a record.
pub fn dead_letter(stage: &str, record: &Received, (code, reason): (&str, &str), at: Timestamp) -> DeadLetter {
    let headers: BTreeMap<String, Bytes> = record
        .headers
        .iter()
        .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), Bytes::copy_from_slice(value)))
        .collect();
    DeadLetter {
        stage: stage.to_owned(),
        topic: record.position.topic.name().to_owned(),
        partition: record.position.partition as i32,
        offset: record.position.offset as i64,
        key: record.key.clone(),
        value: record.value.clone(),
        headers,
        code: code.to_owned(),
        reason: reason.to_owned(),
        attempts: tries(record),
        at: at.as_millis(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry() -> Outcome {
        Outcome::Retry { reason: "slow".to_owned() }
    }

    #[test]
    fn a_batch_is_settled_up_to_the_first_record_that_has_to_wait() {
        let plan = Plan::of(vec![Outcome::Done, Outcome::Done, retry(), Outcome::Done], 4);
        assert_eq!(plan.effects.len(), 2);
        assert_eq!(plan.stop, Some(Stop::Retry { reason: "slow".to_owned() }));
    }

    #[test]
    fn a_record_without_an_answer_is_not_settled() {
        let plan = Plan::of(vec![Outcome::Done], 2);
        assert_eq!(plan.effects.len(), 1);
        assert!(matches!(plan.stop, Some(Stop::Retry { .. })));
    }

    #[test]
    fn answers_for_records_that_were_not_asked_about_are_ignored() {
        let plan = Plan::of(vec![Outcome::Done, retry()], 1);
        assert_eq!((plan.effects.len(), plan.stop), (1, None));
    }
}
