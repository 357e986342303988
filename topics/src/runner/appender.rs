//! Appends what a batch leads to, until it is known to be there. An outcome that is not known is never given up and never
//! a dead letter; a refusal is, and where even that is refused the partition holds (kafka-rules 6).

use std::sync::Arc;
use std::time::Duration;

use eshaar_model::{Clock, Timestamp};
use eshaar_schemas::Codecs;

use super::measures::Measures;
use super::plan::{Effect, dead_letter, tries};
use super::retry::copy;
use crate::flow::Origin;
use crate::{AppendError, Log, LogPosition, NewRecord, Received, Topic, headers, kept_time};

/// The first wait before an append is tried again; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Times of records that are further ahead are set back when they are refused, in milliseconds.
const MAX_AHEAD_MS: i64 = 60_000;

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

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// What follows from it is there.
    Done,
    /// Its dead letter is.
    Dead,
    /// A copy of it is at that offset of its retry topic.
    Waits(u64),
    /// Nothing was to be done.
    Left,
}

impl Fate {
    /// Now that it is known where its records are.
    fn at(self, positions: &[LogPosition]) -> Self {
        match (self, positions.first()) {
            (Self::Waits(_), Some(copy)) => Self::Waits(copy.offset),
            _ => self,
        }
    }
}

/// What is appended for a record.
struct Group<'a> {
    record: &'a Received,
    records: Vec<NewRecord>,
    fate: Fate,
}

/// The log refused a batch for good.
struct Refused(String);

impl Appender {
    /// Appends the effects of records with one append, in order; returns what became of each, when all of it is
    /// acknowledged.
    pub(super) async fn carry_out(&self, items: Vec<(&Received, Effect)>) -> Result<Vec<Fate>, Closed> {
        let mut groups: Vec<Group<'_>> = Vec::with_capacity(items.len());
        for (record, effect) in items {
            groups.push(self.group(record, effect).await);
        }
        let all: Vec<NewRecord> = groups.iter().flat_map(|group| &group.records).cloned().collect();
        if all.is_empty() {
            return Ok(groups.into_iter().map(|group| group.fate).collect());
        }
        let mut fates = Vec::with_capacity(groups.len());
        if let Ok(positions) = self.append(all).await? {
            let mut positions = positions.into_iter();
            for group in groups {
                let appended: Vec<LogPosition> = positions.by_ref().take(group.records.len()).collect();
                fates.push(group.fate.at(&appended));
            }
        } else {
            // Which of them it was is not known: one by one, so that only the one at fault becomes a dead letter.
            for group in groups {
                fates.push(self.append_alone(group).await?);
            }
        }
        Ok(fates)
    }

    /// What is to be appended for a record, and what that makes of it.
    async fn group<'a>(&self, record: &'a Received, effect: Effect) -> Group<'a> {
        let (records, fate) = match effect {
            Effect::Forward(records) => {
                let meter = if records.is_empty() { &self.measures.done } else { &self.measures.forwarded };
                meter.increment(1);
                (records, Fate::Done)
            }
            Effect::Dead { code, reason } => (vec![self.dead_letter(record, code, &reason).await], Fate::Dead),
            Effect::Wait(wait) => {
                if let Some(cause) = &wait.error {
                    log_failure(self.stage, record, "retry", cause);
                    self.measures.retried.increment(1);
                }
                // The offset is known when it is acknowledged.
                (vec![copy::write(record, &wait, self.clock.now())], Fate::Waits(u64::MAX))
            }
            Effect::Leave => (Vec::new(), Fate::Left),
        };
        Group { record, records, fate }
    }

    /// What a record leads to, or its dead letter.
    async fn append_alone(&self, Group { record, records, fate }: Group<'_>) -> Result<Fate, Closed> {
        if records.is_empty() {
            return Ok(fate);
        }
        let letter = match self.append(records.clone()).await? {
            Ok(positions) => return Ok(fate.at(&positions)),
            Err(Refused(_)) if fate == Fate::Dead => records,
            Err(Refused(reason)) => vec![self.dead_letter(record, REFUSED, &reason).await],
        };
        loop {
            match self.append(letter.clone()).await? {
                Ok(_) => return Ok(Fate::Dead),
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

    async fn append(&self, mut records: Vec<NewRecord>) -> Result<Result<Vec<LogPosition>, Refused>, Closed> {
        let now = self.clock.now();
        for record in &mut records {
            record.timestamp = kept_time(record.topic, record.timestamp, now);
        }
        let mut wait = FIRST_WAIT;
        loop {
            match self.log.append(records.clone()).await {
                Ok(positions) => return Ok(Ok(positions)),
                Err(AppendError::Refused { .. }) if records.iter().any(|record| is_ahead(record, self.clock.now())) => {
                    let now = self.clock.now();
                    for record in &mut records {
                        record.timestamp = record.timestamp.min(now);
                    }
                }
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
    async fn dead_letter(&self, record: &Received, code: &'static str, reason: &str) -> NewRecord {
        self.measures.dead(code);
        log_failure(self.stage, record, code, reason);
        let at = self.clock.now();
        let letter = dead_letter(self.stage, record, (code, reason), at);
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

/// Whether a record's time may be why it was refused: brokers refuse what is an hour ahead. It is of a clock that was corrected
/// since.
fn is_ahead(record: &NewRecord, now: Timestamp) -> bool {
    record.timestamp.millis_since(now) > MAX_AHEAD_MS
}

/// Says which record failed, and why (R4.6). Never its content.
pub(super) fn log_failure(stage: &'static str, record: &Received, code: &str, cause: &str) {
    let attempt = tries(record);
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
