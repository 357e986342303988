//! Does what operators asked for with dead letters: sends them again at a bounded rate, or discards them.
//!
//! Every process with the API runs one. A task is held by one of them at a time, and saved about every second with what is
//! left of it; when its holder dies, another goes on. A letter is claimed before it is sent, and is redriven only once the
//! log has acknowledged it; a claim lapses before the task's lease does, so that who goes on finds none of the dead one's.
//! If that one died between the log and the store, the letter is sent twice: as a record of the same message, which
//! `route` knows for a repeat by its stream, and `archive` by its id.

use std::time::Duration;

use eshaar_model::{AuditId, Clock, Timestamp};
use eshaar_service::metrics::REDRIVES;
use eshaar_store::{
    AuditEntry, DeadLetterId, Hold, Holder, Lease, Letter, LetterBody, LetterClaim, LetterPlace, LetterState,
    Settlement, Store, StoreError, Task,
};
use eshaar_topics::redrive::{MOST_REDRIVES, Redriven};
use eshaar_topics::{AppendError, Headers, Log, Topic};
use metrics::counter;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::work::{Action, Left, TASKS, Work};
use crate::Deps;

/// Time between two looks for tasks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Tasks that a look considers: the newest. What is finished is small.
const LOOKED_AT: usize = 200;
/// How long a task is held without being saved, and a letter without being settled, in milliseconds.
const LEASE_MS: i64 = 30_000;
const CLAIM_MS: i64 = 20_000;
/// A task is saved after this long.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Letters of a filter that are looked up at once.
const PAGE: usize = 50;
/// Wait before an append whose outcome is unknown is tried again.
const APPEND_AGAIN: Duration = Duration::from_millis(200);

/// Works until `shutdown`; `per_second` is the most letters that are redriven in a second.
pub(crate) async fn run(deps: Deps, per_second: u32, shutdown: CancellationToken) {
    let Deps { log, store, clock, .. } = deps;
    let pause = Duration::from_secs(1) / per_second.max(1);
    let redriver = Redriver { log, store, clock, holder: Holder::new(), pause, shutdown: shutdown.clone() };
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = looks.tick() => {}
        }
        if let Err(error) = redriver.look().await {
            tracing::warn!(%error, "dead letters are not seen to at the moment; trying again");
        }
    }
}

struct Redriver {
    log: std::sync::Arc<dyn Log>,
    store: Store,
    clock: Clock,
    holder: Holder,
    /// Between two redrives.
    pause: Duration,
    shutdown: CancellationToken,
}

/// What became of a letter of a task.
enum Seen {
    Done,
    Refused,
    Skipped,
}

/// A task cannot be gone on with.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the log is closed")]
    Log,
    #[error("this process is shutting down")]
    Shutdown,
    #[error("another process has taken the task over")]
    TakenOver,
}

impl Redriver {
    /// Sees every task through that nobody else holds.
    async fn look(&self) -> Result<(), StoreError> {
        for task in self.store.tasks.list(TASKS, LOOKED_AT).await?.into_iter().rev() {
            if task.finished || self.shutdown.is_cancelled() {
                continue;
            }
            let now = self.clock.now();
            let lease = Lease { holder: self.holder, now, until: now.plus_millis(LEASE_MS) };
            let Some(task) = self.store.tasks.take(TASKS, &task.id, lease).await? else { continue };
            let id = task.id.clone();
            match self.work(task).await {
                Ok(()) | Err(Stopped::Shutdown) => {}
                Err(error) => tracing::warn!(task = id, %error, "a task of dead letters stopped; it is gone on with"),
            }
        }
        Ok(())
    }

    async fn work(&self, task: Task) -> Result<(), Stopped> {
        let Ok(mut work) = serde_json::from_slice::<Work>(&task.progress) else {
            // Of a newer version of this program, which may be running beside this one.
            return self.save(&task, None).await;
        };
        let mut paced = interval(self.pause);
        paced.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut saved = Instant::now();
        let stopped = loop {
            let batch = match self.next(&mut work).await {
                Ok(batch) if batch.is_empty() => break None,
                Ok(batch) => batch,
                Err(error) => break Some(error),
            };
            let mut stopped = None;
            for (place, id) in batch {
                if work.action == Action::Redrive {
                    paced.tick().await;
                }
                match self.see_to(id, &work).await {
                    Ok(seen) => count(&mut work, &seen),
                    Err(error) => {
                        stopped = Some(error);
                        break;
                    }
                }
                passed(&mut work, place, id);
                if saved.elapsed() >= SAVE_EVERY {
                    self.save(&with(&task, &work, false), Some(LEASE_MS)).await?;
                    saved = Instant::now();
                }
            }
            if stopped.is_some() {
                break stopped;
            }
        };
        if let Some(error) = stopped {
            // What is left is for whoever takes it next: at once, or when the claim of the letter in hand has lapsed.
            let hold_ms = (!matches!(error, Stopped::Shutdown)).then_some(LEASE_MS);
            self.save(&with(&task, &work, false), hold_ms).await?;
            return Err(error);
        }
        work.left = Left::Ids(Vec::new());
        self.report(&task, &work).await?;
        self.save(&with(&task, &work, true), None).await
    }

    /// The next letters of a task, with their places where a filter names them; none at its end.
    async fn next(&self, work: &mut Work) -> Result<Vec<(Option<LetterPlace>, DeadLetterId)>, Stopped> {
        if self.shutdown.is_cancelled() {
            return Err(Stopped::Shutdown);
        }
        loop {
            let (filter, behind) = match &mut work.left {
                Left::Ids(ids) => {
                    return Ok(ids.iter().take(PAGE).filter_map(|id| Some((None, id.parse().ok()?))).collect());
                }
                Left::Filter { filter, behind } => (filter, behind),
            };
            let place = behind.as_ref().and_then(|(at, id)| Some(LetterPlace { at: *at, id: id.parse().ok()? }));
            let page = self.store.dead_letters.list(filter.query(place, PAGE), self.clock.now()).await?;
            if !page.letters.is_empty() {
                let place = |letter: &Letter| LetterPlace { at: letter.head.at, id: letter.head.id };
                return Ok(page.letters.iter().map(|letter| (Some(place(letter)), letter.head.id)).collect());
            }
            // A page may be empty and have a next.
            let Some(next) = page.next else { return Ok(Vec::new()) };
            *behind = Some((next.at, next.id.to_string()));
        }
    }

    async fn see_to(&self, id: DeadLetterId, work: &Work) -> Result<Seen, Stopped> {
        if self.shutdown.is_cancelled() {
            return Err(Stopped::Shutdown);
        }
        let letter = match self.store.dead_letters.claim(id, self.hold()).await? {
            LetterClaim::Yours(letter) => letter,
            LetterClaim::Held | LetterClaim::Settled(_) | LetterClaim::Gone => return Ok(Seen::Skipped),
        };
        if work.action == Action::Redrive
            && let Some(refused) = self.send(id, *letter).await?
        {
            return Ok(refused);
        }
        let settlement = Settlement { state: work.action.state(), at: self.clock.now(), by: work.by.clone() };
        let ended = self.store.dead_letters.settle(id, self.holder, Some(settlement)).await?;
        Ok(if ended { Seen::Done } else { Seen::Skipped })
    }

    /// Sends the record again, until the log has acknowledged it; `Some` where that is not to be, and the letter is let go
    /// of.
    async fn send(&self, id: DeadLetterId, (letter, body): (Letter, LetterBody)) -> Result<Option<Seen>, Stopped> {
        let head = &letter.head;
        let topic = Topic::ALL.into_iter().find(|topic| topic.name() == head.topic);
        let Some(topic) = topic.filter(|_| head.redrives < MOST_REDRIVES) else {
            tracing::warn!(letter = %id, stage = head.stage, topic = head.topic, redrives = head.redrives,
                "a dead letter is not redriven: too often already, or its topic is not known");
            self.store.dead_letters.settle(id, self.holder, None).await?;
            return Ok(Some(Seen::Refused));
        };
        let (partition, redrives) = (head.partition, head.redrives);
        let LetterBody { key, value, headers } = body;
        let headers = Headers::from_bytes(headers);
        let record = Redriven { topic, partition, key, value, headers, redrives }.record(self.clock.now());
        loop {
            match self.log.append(vec![record.clone()]).await {
                Ok(_) => break,
                Err(AppendError::Closed) => return Err(Stopped::Log),
                Err(error @ AppendError::Refused { .. }) => {
                    tracing::error!(letter = %id, %error, "a dead letter is not redriven: the log refuses it");
                    self.store.dead_letters.settle(id, self.holder, None).await?;
                    return Ok(Some(Seen::Refused));
                }
                Err(error @ AppendError::Unknown { .. }) => {
                    tracing::warn!(letter = %id, %error, "a redrive is not acknowledged; trying again");
                }
            }
            sleep(APPEND_AGAIN).await;
            // Another may have it by now; then it is theirs to send.
            if !matches!(self.store.dead_letters.claim(id, self.hold()).await?, LetterClaim::Yours(_)) {
                return Ok(Some(Seen::Skipped));
            }
        }
        tracing::info!(letter = %id, stage = head.stage, topic = %topic, message_id = head.event,
            correlation_id = head.correlation, redrives = redrives + 1, "redriven");
        Ok(None)
    }

    fn hold(&self) -> Hold {
        let now = self.clock.now();
        Hold { holder: self.holder, now, until: now.plus_millis(CLAIM_MS) }
    }

    async fn save(&self, task: &Task, hold_ms: Option<i64>) -> Result<(), Stopped> {
        let until = hold_ms.map(|millis| self.clock.now().plus_millis(millis));
        let is_saved = self.store.tasks.save(task.clone(), self.holder, until).await?;
        if is_saved { Ok(()) } else { Err(Stopped::TakenOver) }
    }

    /// Writes down what was done.
    async fn report(&self, task: &Task, work: &Work) -> Result<(), StoreError> {
        let detail = json!({"done": work.done, "refused": work.refused, "skipped": work.skipped});
        let entry = AuditEntry {
            id: AuditId::new(self.clock.now()),
            actor: work.by.clone(),
            action: work.action.done().to_owned(),
            subject: task.id.clone(),
            detail: detail.to_string(),
            correlation: Some(work.correlation.clone()),
        };
        self.store.audit.append(entry).await
    }
}

fn count(work: &mut Work, seen: &Seen) {
    let (counted, outcome) = match seen {
        Seen::Done if work.action.state() == LetterState::Redriven => (&mut work.done, "redriven"),
        Seen::Done => (&mut work.done, "discarded"),
        Seen::Refused => (&mut work.refused, "refused"),
        Seen::Skipped => (&mut work.skipped, "skipped"),
    };
    *counted += 1;
    counter!(REDRIVES, "outcome" => outcome).increment(1);
}

/// A letter was seen to: what is left is behind it.
fn passed(work: &mut Work, place: Option<LetterPlace>, id: DeadLetterId) {
    match &mut work.left {
        Left::Ids(ids) => ids.retain(|left| *left != id.to_string()),
        Left::Filter { behind, .. } => {
            *behind = place.map(|place: LetterPlace| -> (Timestamp, String) { (place.at, place.id.to_string()) });
        }
    }
}

fn with(task: &Task, work: &Work, finished: bool) -> Task {
    let progress = serde_json::to_vec(work).map_or_else(|_| task.progress.clone(), Into::into);
    Task { progress, finished, ..task.clone() }
}
