//! Appends what a batch leads to, until it is known to be there. An outcome that is not known is never given up and never
//! a dead letter; a refusal is, and where even that is refused the partition holds (kafka-rules 6).

use std::sync::Arc;
use std::time::Duration;

use eshaar_model::Clock;
use eshaar_schemas::Codecs;

use super::measures::Measures;
use super::plan::{Effect, dead_letter};
use crate::flow::Origin;
use crate::{AppendError, Log, NewRecord, Received, Topic, headers};

/// The first wait before an append is tried again; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Code of the dead letter of a record whose forwarded records the log refuses.
const REFUSED: &str = "append_refused";

/// The log is being closed: nothing more can be settled.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed;

/// Appends for one worker.
pub(super) struct Appender {
    pub(super) stage: &'static str,
    pub(super) log: Arc<dyn Log>,
    pub(super) codecs: Codecs,
    pub(super) clock: Clock,
    pub(super) measures: Measures,
}

/// The log refused a batch for good.
struct Refused(String);

impl Appender {
    /// Appends the effects of `batch` with one append, in order; returns when all of it is acknowledged. `attempts` is how
    /// often the first record of the batch was tried.
    pub(super) async fn carry_out(
        &self,
        batch: &[Received],
        effects: Vec<Effect>,
        attempts: i32,
    ) -> Result<(), Closed> {
        let mut groups: Vec<Vec<NewRecord>> = Vec::with_capacity(effects.len());
        for (place, (record, effect)) in batch.iter().zip(effects).enumerate() {
            let attempts = if place == 0 { attempts } else { 1 };
            groups.push(self.records_of(record, effect, attempts).await);
        }
        let all: Vec<NewRecord> = groups.iter().flatten().cloned().collect();
        if all.is_empty() {
            return Ok(());
        }
        if self.append(all).await?.is_err() {
            // Which of them it was is not known: one by one, so that only the one at fault becomes a dead letter.
            for (record, group) in batch.iter().zip(groups).filter(|(_, group)| !group.is_empty()) {
                self.append_alone(record, group).await?;
            }
        }
        Ok(())
    }

    async fn records_of(&self, record: &Received, effect: Effect, attempts: i32) -> Vec<NewRecord> {
        match effect {
            Effect::Forward(records) => {
                let meter = if records.is_empty() { &self.measures.done } else { &self.measures.forwarded };
                meter.increment(1);
                records
            }
            Effect::Dead { code, reason } => vec![self.dead_letter(record, code, &reason, attempts).await],
        }
    }

    /// What a record leads to, or its dead letter.
    async fn append_alone(&self, record: &Received, group: Vec<NewRecord>) -> Result<(), Closed> {
        let is_letter = group.iter().all(|new| new.topic == Topic::DeadLetters);
        let letter = match self.append(group.clone()).await? {
            Ok(()) => return Ok(()),
            Err(Refused(_)) if is_letter => group,
            Err(Refused(reason)) => vec![self.dead_letter(record, REFUSED, &reason, 1).await],
        };
        loop {
            match self.append(letter.clone()).await? {
                Ok(()) => return Ok(()),
                Err(Refused(reason)) => {
                    let (topic, position) = (record.position.topic, record.position);
                    let (partition, offset) = (position.partition, position.offset);
                    tracing::error!(stage = self.stage, %topic, partition, offset, %reason,
                        "dead letter refused; the partition holds until it is taken");
                    tokio::time::sleep(LONGEST_WAIT).await;
                }
            }
        }
    }

    async fn append(&self, records: Vec<NewRecord>) -> Result<Result<(), Refused>, Closed> {
        let mut wait = FIRST_WAIT;
        loop {
            match self.log.append(records.clone()).await {
                Ok(_) => return Ok(Ok(())),
                Err(AppendError::Refused { reason }) => {
                    tracing::error!(stage = self.stage, records = records.len(), %reason, "append refused");
                    return Ok(Err(Refused(reason)));
                }
                Err(AppendError::Closed) => return Err(Closed),
                Err(error @ AppendError::Unknown { .. }) => {
                    tracing::warn!(stage = self.stage, records = records.len(), %error, "append unknown; trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    /// The record of a dead letter. It keeps the headers of the record it is about, so that both join the same request.
    async fn dead_letter(&self, record: &Received, code: &'static str, reason: &str, attempts: i32) -> NewRecord {
        self.measures.dead(code);
        log_failure(self.stage, record, attempts, code, reason);
        let at = self.clock.now();
        let letter = dead_letter(self.stage, record, (code, reason), attempts, at);
        let value = loop {
            match self.codecs.encode(&letter) {
                Ok(value) => break value,
                Err(error) => {
                    tracing::error!(stage = self.stage, %error, "dead letter cannot be written; the partition holds");
                    tokio::time::sleep(LONGEST_WAIT).await;
                }
            }
        };
        NewRecord {
            topic: Topic::DeadLetters,
            partition: None,
            key: record.key.clone(),
            value,
            headers: record.headers.clone(),
            timestamp: at,
        }
    }
}

/// Says which record failed, and why (R4.6). Never its content.
pub(super) fn log_failure(stage: &'static str, record: &Received, attempt: i32, code: &str, cause: &str) {
    let position = record.position;
    let Origin { traceparent, correlation } = Origin::of(&record.headers);
    tracing::warn!(
        stage,
        topic = %position.topic,
        partition = position.partition,
        offset = position.offset,
        message_id = record.headers.text(headers::CE_ID),
        correlation_id = correlation,
        traceparent,
        attempt,
        code,
        cause,
        "record failed"
    );
}
