//! What the runner measures of a stage, so that a stage need not know that it is measured.

use std::collections::BTreeMap;
use std::time::Duration;

use eshaar_model::Clock;
use eshaar_service::metrics::{
    DEAD_LETTERS, STAGE_BATCH_RECORDS, STAGE_BATCH_SECONDS, STAGE_LAG, STAGE_OLDEST_SECONDS, STAGE_RECORDS,
};
use metrics::{Counter, Histogram, counter, gauge, histogram};

use super::ledger::Ledger;
use crate::{Log, Topic};

/// The meters of one stage, looked up once.
#[derive(Clone)]
pub(super) struct Measures {
    stage: &'static str,
    pub(super) forwarded: Counter,
    pub(super) done: Counter,
    pub(super) retried: Counter,
    pub(super) paused: Counter,
    dead: Counter,
    batch_seconds: Histogram,
    batch_records: Histogram,
}

impl Measures {
    pub(super) fn new(stage: &'static str) -> Self {
        let records = |outcome: &'static str| counter!(STAGE_RECORDS, "stage" => stage, "outcome" => outcome);
        Self {
            stage,
            forwarded: records("forwarded"),
            done: records("done"),
            retried: records("retried"),
            paused: records("paused"),
            dead: records("dead"),
            batch_seconds: histogram!(STAGE_BATCH_SECONDS, "stage" => stage),
            batch_records: histogram!(STAGE_BATCH_RECORDS, "stage" => stage),
        }
    }

    pub(super) fn batch(&self, records: usize, took: Duration) {
        self.batch_records.record(records as f64);
        self.batch_seconds.record(took.as_secs_f64());
    }

    pub(super) fn dead(&self, code: &'static str) {
        self.dead.increment(1);
        counter!(DEAD_LETTERS, "stage" => self.stage, "code" => code).increment(1);
    }

    /// How far the stage is behind, and how long the oldest record it holds has been waiting.
    pub(super) async fn backlog(&self, inputs: &[Topic], ledger: &Ledger, log: &dyn Log, clock: &Clock) {
        let mut lag: BTreeMap<Topic, u64> = inputs.iter().map(|topic| (*topic, 0)).collect();
        for (topic, partition, next) in ledger.unsettled() {
            match log.bounds(topic, partition).await {
                Ok(bounds) => *lag.entry(topic).or_default() += bounds.end.saturating_sub(next),
                Err(error) => tracing::debug!(stage = self.stage, %topic, partition, %error, "lag unknown"),
            }
        }
        for (topic, records) in lag {
            gauge!(STAGE_LAG, "stage" => self.stage, "topic" => topic.name()).set(records as f64);
        }
        let age_ms = ledger.oldest().map_or(0, |oldest| clock.now().millis_since(oldest).max(0));
        gauge!(STAGE_OLDEST_SECONDS, "stage" => self.stage).set(age_ms as f64 / 1000.0);
    }
}
