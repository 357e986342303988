//! What waits in the retry topics of one partition number, and what is to be done with it next. No IO but for reading.

use std::collections::VecDeque;
use std::time::Duration;

use ahash::AHashSet;
use eshaar_model::retry::DELAYS;
use eshaar_model::{Attempt, Timestamp};
use tokio::time::timeout;

use super::Retries;
use super::copy::{self, Wait};
use super::fences::{FenceKey, Fences, Place, Standing, Unsettled};
use super::tiers::{Held, Slot, Tier, Tiers};
use crate::{Log, LogError, PartitionStream, Received, Record, Topic};

/// Records that are read at once when the retry topics are read back.
const READ_BACK: usize = 1_000;

/// How long the log may take to give the next of them.
const READ_BACK_LIMIT: Duration = Duration::from_secs(10);

/// What bounds the records that wait.
#[derive(Clone, Copy, Debug)]
pub(in crate::runner) struct Bounds {
    /// Most records of a turn.
    pub(in crate::runner) batch: usize,
    /// Most records that are held in memory, of all retry topics together.
    pub(in crate::runner) read_ahead: usize,
    /// Most records that may wait; at that many no input is taken.
    pub(in crate::runner) most: usize,
}

/// What is to be done next.
#[derive(Debug, Default)]
pub(in crate::runner) struct Turn {
    /// To be handled, in order; of one input.
    pub(in crate::runner) batch: Vec<Received>,
    /// Due, but behind others of their key: to wait on.
    pub(in crate::runner) wait_on: Vec<(Received, Wait)>,
    /// No records of the stage, with the header at fault: to be given up on.
    pub(in crate::runner) foreign: Vec<(Received, &'static str)>,
}

impl Turn {
    pub(in crate::runner) const fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.wait_on.is_empty() && self.foreign.is_empty()
    }
}

/// The records of one partition number that wait.
pub(in crate::runner) struct Waiting {
    topics: [Topic; 6],
    inputs: Vec<(Topic, u32)>,
    fences: Fences,
    tiers: Tiers,
    /// Keys of which something may be handled by now.
    released: VecDeque<FenceKey>,
    bounds: Bounds,
}

impl Waiting {
    /// Reads what an earlier owner left in the retry topics, each `from` its place to the end that it has now; `None` where
    /// the stage has none.
    pub(in crate::runner) async fn read_back(
        retries: Retries,
        from: &[((Topic, u32), u64)],
        inputs: &[(Topic, u32)],
        log: &dyn Log,
    ) -> Result<Option<Fences>, LogError> {
        let ordered = match retries {
            Retries::InPlace => return Ok(None),
            Retries::Ordered(_) => true,
            Retries::Unordered(_) => false,
        };
        let mut fences = Fences::new(ordered);
        for &((topic, partition), next) in from {
            let end = log.bounds(topic, partition).await?.end;
            if next >= end {
                continue;
            }
            let mut reader = log.read(topic, partition, next).await?;
            while reader.next_offset() < end {
                let ready = timeout(READ_BACK_LIMIT, reader.ready()).await;
                ready.unwrap_or_else(|_| {
                    let reason = format!("{topic} gave no record for {} s", READ_BACK_LIMIT.as_secs());
                    Err(LogError::Engine { action: "read retries back", reason })
                })?;
                for record in reader.take(READ_BACK) {
                    // What is no copy is met again when its turn comes.
                    if let Ok(copy) = copy::read(&record, inputs) {
                        let at = (topic, record.position.offset);
                        let found = Unsettled { attempt: copy.record.attempt, due: copy.due, at };
                        fences.find(fences.key(&copy.record), copy.record.position.offset, found);
                    }
                }
            }
        }
        Ok(Some(fences))
    }

    pub(in crate::runner) fn new(
        topics: [Topic; 6],
        fences: Fences,
        streams: Vec<PartitionStream>,
        inputs: Vec<(Topic, u32)>,
        bounds: Bounds,
    ) -> Self {
        let of_each = bounds.read_ahead / topics.len();
        let delay = |topic| topics.iter().zip(DELAYS).find(|(of, _)| **of == topic).map(|(_, delay)| delay);
        let tiers = streams.into_iter().filter_map(|stream| {
            let delay = delay(stream.source().0)?;
            Some(Tier::new(stream, delay, of_each))
        });
        let tiers = Tiers::new(tiers.collect());
        Self { topics, inputs, fences, tiers, released: VecDeque::new(), bounds }
    }

    /// How a record of an input stands to those that wait.
    pub(in crate::runner) fn standing(&self, record: &Received) -> Standing {
        self.fences.standing(record)
    }

    /// What keeps a record in order.
    pub(in crate::runner) fn key(&self, record: &Received) -> FenceKey {
        self.fences.key(record)
    }

    /// Whether so many wait that no more may come.
    pub(in crate::runner) const fn is_full(&self) -> bool {
        self.fences.len() >= self.bounds.most
    }

    /// How a record that has failed waits; `None` when it was its last attempt.
    pub(in crate::runner) fn after_failure(&self, record: &Received, error: String, now: Timestamp) -> Option<Wait> {
        let (attempt, delay) = record.attempt.next()?;
        let topic = self.topics[usize::from(record.attempt.count())];
        Some(Wait { topic, attempt, due: after(now, delay), error: Some(error) })
    }

    /// How a record waits that stands behind one that waits until then, at least: as long as that does, or almost, so that
    /// it is not moved more often than it must be.
    pub(in crate::runner) fn behind(&self, record: &Received, until: Timestamp, now: Timestamp) -> Wait {
        let (topic, delay) = self.tiers.before(until, now).unwrap_or((self.topics[0], DELAYS[0]));
        Wait { topic, attempt: record.attempt, due: after(now, delay), error: None }
    }

    /// A copy of the record was written at that offset of its retry topic: it counts, and no other does.
    pub(in crate::runner) fn enter(&mut self, record: &Received, wait: &Wait, offset: u64) {
        let (key, at) = (self.fences.key(record), (wait.topic, offset));
        self.let_go_of_copy(&key, record);
        self.fences.enter(key, record.position.offset, Unsettled { attempt: wait.attempt, due: wait.due, at });
    }

    /// The record is settled. Whether others of its key wait for it.
    pub(in crate::runner) fn settle(&mut self, record: &Received) -> bool {
        let key = self.fences.key(record);
        self.let_go_of_copy(&key, record);
        self.fences.settle(&key, record.position.offset)
    }

    fn let_go_of_copy(&mut self, key: &FenceKey, record: &Received) {
        let known = self.fences.of(key).find(|(offset, _)| *offset == record.position.offset);
        if let Some((_, unsettled)) = known {
            self.tiers.let_go(unsettled.at);
        }
    }

    /// A record of a retry topic that is none of the stage's is settled.
    pub(in crate::runner) fn settle_foreign(&mut self, record: &Received) {
        self.tiers.let_go((record.position.topic, record.position.offset));
    }

    /// What stands behind the record, or took its place as the first of its key, may be handled if nothing else holds it.
    pub(in crate::runner) fn release(&mut self, record: &Received) {
        let key = self.fences.key(record);
        if self.fences.first(&key).is_some_and(|(_, unsettled)| unsettled.attempt == Attempt::FIRST) {
            self.released.push_back(key);
        }
    }

    /// Reads on in the retry topics.
    pub(in crate::runner) fn fill(&mut self) -> Result<(), LogError> {
        let (fences, inputs) = (&self.fences, &self.inputs);
        self.tiers.fill(|record| slot(record, fences, inputs))
    }

    /// Waits until there is more to read. Cancel-safe.
    pub(in crate::runner) async fn ready(&mut self) -> Result<(), LogError> {
        self.tiers.ready().await
    }

    /// When something is due next, of what was read.
    pub(in crate::runner) fn next_due(&self) -> Option<Timestamp> {
        self.tiers.next_due()
    }

    /// Where each retry topic can be committed.
    pub(in crate::runner) fn floors(&mut self) -> Vec<Place> {
        self.tiers.floors()
    }

    /// What is to be done now. `next` is the offset to be taken next of each input: what stands there or further has been
    /// taken by nobody whose commits count, and waits for those before it to be taken first.
    pub(in crate::runner) fn next(&mut self, now: Timestamp, next: &[(Topic, u64)]) -> Turn {
        let mut turn = Turn::default();
        let taken = |topic: Topic| next.iter().find(|(of, _)| *of == topic).map_or(0, |(_, offset)| *offset);
        let used = self.due(now, &taken, &mut turn);
        self.released(now, &taken, used, &mut turn);
        turn
    }

    /// What is due leaves its place, whatever becomes of it: so no copy outlives its delay.
    fn due(&mut self, now: Timestamp, taken: &impl Fn(Topic) -> u64, turn: &mut Turn) -> AHashSet<FenceKey> {
        let mut used = AHashSet::new();
        for tier in self.tiers.iter() {
            for slot in tier.unsettled().take_while(|slot| slot.due <= now).take(self.bounds.batch) {
                let record = match &slot.held {
                    Held::Waits(record) => record,
                    Held::Foreign(record, header) => {
                        turn.foreign.push((record.clone().into(), *header));
                        continue;
                    }
                    Held::Gone => continue,
                };
                let (key, origin) = (self.fences.key(record), record.position);
                if used.contains(&key) {
                    continue;
                }
                match self.fences.first(&key) {
                    Some((first, _)) if first == origin.offset && first < taken(origin.topic) => {
                        let fits = turn.batch.first().is_none_or(|other| other.position.topic == origin.topic);
                        if fits && turn.batch.len() < self.bounds.batch {
                            turn.batch.push(record.clone());
                            used.insert(key);
                        }
                    }
                    Some((first, unsettled)) => {
                        let until = if first < origin.offset { unsettled.due } else { now };
                        turn.wait_on.push((record.clone(), self.behind(record, until, now)));
                    }
                    None => {}
                }
            }
        }
        used
    }

    /// What waited for a record that is settled, as far as it was read; the rest comes to its turn when it is due.
    fn released(
        &mut self,
        now: Timestamp,
        taken: &impl Fn(Topic) -> u64,
        mut used: AHashSet<FenceKey>,
        turn: &mut Turn,
    ) {
        let mut later = Vec::new();
        while turn.batch.len() < self.bounds.batch
            && let Some(key) = self.released.pop_front()
        {
            let fits = turn.batch.first().is_none_or(|other| other.position.topic == key.topic);
            if !fits || used.contains(&key) {
                later.push(key);
                continue;
            }
            for (offset, unsettled) in self.fences.of(&key) {
                let may_go = offset < taken(key.topic) && unsettled.is_ready(now);
                match self.tiers.get(unsettled.at).filter(|_| may_go && turn.batch.len() < self.bounds.batch) {
                    Some(record) => turn.batch.push(record.clone()),
                    None => break,
                }
            }
            used.insert(key);
        }
        self.released.extend(later);
        if turn.batch.iter().any(|record| turn.wait_on.iter().any(|(other, _)| other.position == record.position)) {
            turn.wait_on.retain(|(other, _)| turn.batch.iter().all(|record| record.position != other.position));
        }
    }
}

fn after(now: Timestamp, delay: Duration) -> Timestamp {
    now.plus_millis(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX))
}

/// What is at a place of a retry topic.
fn slot(record: Record, fences: &Fences, inputs: &[(Topic, u32)]) -> Slot {
    let (at, offset) = ((record.position.topic, record.position.offset), record.position.offset);
    match copy::read(&record, inputs) {
        Ok(copy) => {
            let counts = fences.counts(&fences.key(&copy.record), copy.record.position.offset, at);
            let held = if counts { Held::Waits(copy.record) } else { Held::Gone };
            Slot { offset, due: copy.due, held }
        }
        Err(error) => Slot { offset, due: Timestamp::from_millis(0), held: Held::Foreign(record, error.0) },
    }
}
