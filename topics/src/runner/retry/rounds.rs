//! A worker's part in retries: has batches handled of which some records wait, or begin to, and settles both.

use std::time::Instant;

use ahash::AHashSet;
use eshaar_model::Timestamp;

use super::fences::{FenceKey, Standing};
use super::waiting::{Turn, Waiting};
use crate::runner::appender::Fate;
use crate::runner::plan::{Effect, Stop};
use crate::runner::worker::{EXHAUSTED, Ended, Worker, next_with};
use crate::{Outcome, Received, Stage, Topic};

/// Code of the dead letter of a record in a retry topic that is no copy of one.
const FOREIGN: &str = "no_retry";

/// What a batch comes to: an effect for each record that is dealt with, and what stopped it.
struct Decided {
    /// By place in the batch; `None` for one that stands behind another that failed just now.
    effects: Vec<Option<Effect>>,
    /// What holds the record behind them.
    stop: Option<Stop>,
}

/// Decides what becomes of records, up to the first that has to be held. A record that failed is to wait, and of the same
/// key nothing is decided that comes after it: whatever the stage says of it, it was not to be looked at.
fn decide(waiting: &Waiting, batch: &[Received], outcomes: Vec<Outcome>, now: Timestamp) -> Decided {
    let mut failed: AHashSet<FenceKey> = AHashSet::new();
    let mut effects = Vec::with_capacity(batch.len());
    let unanswered = || Outcome::Retry { reason: "the stage gave no answer".to_owned() };
    for (record, outcome) in batch.iter().zip(outcomes.into_iter().chain(std::iter::repeat_with(unanswered))) {
        if !failed.is_empty() && failed.contains(&waiting.key(record)) {
            effects.push(None);
            continue;
        }
        effects.push(Some(match outcome {
            Outcome::Forward(records) => Effect::Forward(records),
            Outcome::Done => Effect::Forward(Vec::new()),
            Outcome::Dead { code, reason } => Effect::Dead { code, reason },
            Outcome::Retry { reason } => match waiting.after_failure(record, reason.clone(), now) {
                Some(wait) => {
                    failed.insert(waiting.key(record));
                    Effect::Wait(wait)
                }
                None => Effect::Dead { code: EXHAUSTED, reason },
            },
            Outcome::Pause { until, reason } => {
                return Decided { effects, stop: Some(Stop::Pause { until, reason }) };
            }
        }));
    }
    Decided { effects, stop: None }
}

impl<S: Stage> Worker<S> {
    /// Sees a batch of the inputs through. What stands behind a record that waits goes to wait behind it.
    pub(in crate::runner) async fn take_in(
        &self,
        state: &mut S::Partition,
        next: &[(Topic, u64)],
        waiting: &mut Waiting,
        batch: &[Received],
    ) -> Result<(), Ended> {
        let begun = Instant::now();
        self.taken(batch);
        let mut settled = 0;
        while settled < batch.len() {
            self.seat.begin("handling");
            let rest = &batch[settled..];
            let standings: Vec<Standing> = rest.iter().map(|record| waiting.standing(record)).collect();
            let free: Vec<Received> = rest
                .iter()
                .zip(&standings)
                .filter(|(_, standing)| **standing == Standing::Free)
                .map(|(record, _)| record.clone())
                .collect();
            let decided = if free.is_empty() {
                Decided { effects: Vec::new(), stop: None }
            } else {
                let outcomes = self.handle(state, &next_with(next, rest), &free).await?;
                decide(waiting, &free, outcomes, self.clock.now())
            };
            let Decided { effects, stop } = decided;
            let items = self.with_those_that_wait(waiting, rest, &standings, effects);
            let count = items.len();
            self.carry_out(waiting, items).await?;
            if count > 0 {
                settled += count;
                self.settled(batch, settled);
            }
            if let (Some(stop), Some(record)) = (stop, batch.get(settled)) {
                self.hold(record, stop).await?;
            }
        }
        self.settle_floors(waiting);
        self.appender.measures.batch(batch.len(), begun.elapsed());
        self.seat.rest();
        Ok(())
    }

    /// The effects of a batch of the inputs, record by record, up to the first that is held: those that were decided, and to
    /// wait for those that stand behind others.
    fn with_those_that_wait<'a>(
        &self,
        waiting: &Waiting,
        batch: &'a [Received],
        standings: &[Standing],
        effects: Vec<Option<Effect>>,
    ) -> Vec<(&'a Received, Effect)> {
        let now = self.clock.now();
        let mut decided = effects.into_iter();
        let mut due_of: Vec<(FenceKey, Timestamp)> = Vec::new();
        let mut items = Vec::with_capacity(batch.len());
        for (record, standing) in batch.iter().zip(standings) {
            let effect = match standing {
                Standing::Waits => Effect::Leave,
                Standing::Behind(until) => Effect::Wait(waiting.behind(record, *until, now)),
                Standing::Free => match decided.next() {
                    Some(Some(effect)) => {
                        if let Effect::Wait(wait) = &effect {
                            due_of.push((waiting.key(record), wait.due));
                        }
                        effect
                    }
                    Some(None) => {
                        let key = waiting.key(record);
                        let until = due_of.iter().find(|(of, _)| *of == key).map_or(now, |(_, due)| *due);
                        Effect::Wait(waiting.behind(record, until, now))
                    }
                    None => break,
                },
            };
            items.push((record, effect));
        }
        items
    }

    /// Does what is to be done of those that wait. Whether there was anything.
    pub(in crate::runner) async fn take_turn(
        &self,
        state: &mut S::Partition,
        next: &[(Topic, u64)],
        waiting: &mut Waiting,
    ) -> Result<bool, Ended> {
        let turn = waiting.next(self.clock.now(), next);
        if turn.is_empty() {
            self.settle_floors(waiting);
            return Ok(false);
        }
        let begun = Instant::now();
        self.seat.begin("handling");
        let Turn { batch, wait_on, foreign } = turn;
        let Decided { effects, stop } = if batch.is_empty() {
            Decided { effects: Vec::new(), stop: None }
        } else {
            let outcomes = self.handle(state, next, &batch).await?;
            decide(waiting, &batch, outcomes, self.clock.now())
        };
        let held = effects.len();
        let decided = batch.iter().zip(effects).filter_map(|(record, effect)| Some((record, effect?)));
        let on = wait_on.iter().map(|(record, wait)| (record, Effect::Wait(wait.clone())));
        let none_of_ours = foreign.iter().map(|(record, header)| {
            (record, Effect::Dead { code: FOREIGN, reason: format!("header {header} is missing or cannot be read") })
        });
        self.carry_out(waiting, decided.chain(on).chain(none_of_ours).collect()).await?;
        self.settle_floors(waiting);
        self.appender.measures.batch(batch.len(), begun.elapsed());
        match (stop, batch.get(held)) {
            (Some(stop), Some(record)) => self.hold(record, stop).await?,
            _ => self.seat.rest(),
        }
        Ok(true)
    }

    /// Appends, and only then lets what waits know.
    async fn carry_out(&self, waiting: &mut Waiting, items: Vec<(&Received, Effect)>) -> Result<(), Ended> {
        if items.is_empty() {
            return Ok(());
        }
        let waits: Vec<_> = items
            .iter()
            .map(|(record, effect)| match effect {
                Effect::Wait(wait) => (*record, Some(wait.clone())),
                Effect::Forward(_) | Effect::Dead { .. } | Effect::Leave => (*record, None),
            })
            .collect();
        let fates = self.appender.carry_out(items).await?;
        let (mut touched, mut died) = (Vec::new(), false);
        for ((record, wait), fate) in waits.into_iter().zip(fates) {
            match (fate, wait) {
                (Fate::Waits(offset), Some(wait)) => {
                    waiting.enter(record, &wait, offset);
                    touched.push(record);
                }
                (Fate::Left, _) => touched.push(record),
                (fate, _) => {
                    waiting.settle_foreign(record);
                    if waiting.settle(record) {
                        died |= fate == Fate::Dead;
                        touched.push(record);
                    }
                }
            }
        }
        if died {
            // Else a crash in the next second would try it again, behind those that went on after it.
            self.settle_floors(waiting);
            self.unless_drained(self.commits.until_done()).await?;
        }
        for record in touched {
            waiting.release(record);
        }
        Ok(())
    }

    fn settle_floors(&self, waiting: &mut Waiting) {
        for (topic, floor) in waiting.floors() {
            self.ledger.settle(self.generation, (topic, self.partition), floor, None);
        }
    }
}
