//! What the runner measures of a stage, so that a stage need not know that it is measured.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use eshaar_model::Clock;
use eshaar_service::metrics::{
    DEAD_LETTERS, STAGE_BATCH_RECORDS, STAGE_BATCH_SECONDS, STAGE_LAG, STAGE_OLDEST_SECONDS, STAGE_RECORDS, STAGE_STUCK,
};
use metrics::{Counter, Histogram, counter, gauge, histogram};

use super::Deps;
use super::ledger::Ledger;
use super::progress::Watchdog;
use crate::Topic;

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
    /// Partition numbers that were measured, so that those given up are not left standing.
    measured: BTreeSet<u32>,
    /// What was said to be stuck.
    stuck: BTreeSet<Option<u32>>,
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
            measured: BTreeSet::new(),
            stuck: BTreeSet::new(),
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

    /// How far the stage is behind; and whether it takes what waits in its inputs.
    pub(super) async fn backlog(&self, inputs: &[Topic], topics: &[Topic], ledger: &Ledger, deps: &Deps) {
        let mut lag: BTreeMap<Topic, u64> = topics.iter().map(|topic| (*topic, 0)).collect();
        let mut at: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        let mut known = Vec::new();
        for (topic, partition, next) in ledger.unsettled() {
            match deps.log.bounds(topic, partition).await {
                Ok(bounds) => {
                    ledger.starts((topic, partition), bounds.start);
                    let waits = bounds.end.saturating_sub(next);
                    *lag.entry(topic).or_default() += waits;
                    known.push((topic, partition, waits));
                    if inputs.contains(&topic) {
                        let (wait, settled) = at.entry(partition).or_default();
                        *wait += waits;
                        *settled += next;
                    }
                }
                Err(error) => tracing::debug!(stage = self.stage, %topic, partition, %error, "lag unknown"),
            }
        }
        deps.backlogs.told(self.stage, &known);
        for (topic, records) in lag {
            gauge!(STAGE_LAG, "stage" => self.stage, "topic" => topic.name()).set(records as f64);
        }
        for (partition, (wait, settled)) in at {
            deps.watchdog.waiting(self.stage, partition, wait > 0, settled);
        }
    }

    /// How long the oldest record of each partition number has been waiting that was taken, and whether the stage is stuck.
    pub(super) fn progress(&mut self, watchdog: &Watchdog, ledger: &Ledger, clock: &Clock) {
        let oldest = ledger.oldest();
        for partition in self.measured.iter().chain(oldest.keys()) {
            let age_ms =
                oldest.get(partition).copied().flatten().map_or(0, |oldest| clock.now().millis_since(oldest).max(0));
            let partition = partition.to_string();
            let gauge = gauge!(STAGE_OLDEST_SECONDS, "stage" => self.stage, "partition" => partition);
            gauge.set(age_ms as f64 / 1000.0);
        }
        self.measured = oldest.into_keys().collect();
        let stuck: Vec<_> = watchdog.stuck().into_iter().filter(|stuck| stuck.stage == self.stage).collect();
        gauge!(STAGE_STUCK, "stage" => self.stage).set(stuck.len() as f64);
        for place in stuck.iter().filter(|place| !self.stuck.contains(&place.partition)) {
            let (partition, since_s) = (place.partition, place.since.as_secs());
            tracing::error!(stage = self.stage, ?partition, doing = place.doing, since_s, "stuck");
        }
        let stuck: BTreeSet<_> = stuck.into_iter().map(|place| place.partition).collect();
        for partition in self.stuck.difference(&stuck) {
            tracing::info!(stage = self.stage, ?partition, "goes on");
        }
        self.stuck = stuck;
    }
}
