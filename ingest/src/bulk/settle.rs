//! A batch of lines is claimed, let in, appended and answered.
//!
//! A line's record is made when the line is let in, not when it was read: all times of a message count from its acceptance,
//! and a line may wait for the sender's rate for as long as the whole upload takes.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use eshaar_model::{Lane, MessageId, Shown, Status};
use eshaar_service::{Problem, metrics as names};
use eshaar_topics::NewRecord;
use futures_util::future::join_all;

use super::Submission;
use super::answers::{Answers, Stop};
use super::gather::Entry;
use crate::idempotency::{Fingerprint, Held, Turn};
use crate::problems;
use crate::submit::{self, Attempt, Draft, Sender};

/// What a line will be answered, once its batch is appended.
pub(super) type Outcome = (u64, Result<Taken, Problem>);

/// The answer to an accepted line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) id: MessageId,
    pub(super) is_scheduled: bool,
}

impl Taken {
    pub(super) fn status(self) -> Shown {
        if self.is_scheduled { Shown::Scheduled } else { Status::Sent.into() }
    }

    /// As it is kept under the line's own key.
    fn encode(self) -> Bytes {
        [self.id.as_bytes().as_slice(), &[u8::from(self.is_scheduled)]].concat().into()
    }

    /// An answer that an earlier version kept is the id alone.
    fn decode(kept: &[u8]) -> Result<Self, Problem> {
        let (id, rest) = kept.split_at_checked(16).ok_or_else(problems::internal)?;
        let id = MessageId::from_bytes(id).map_err(|_| problems::internal())?;
        Ok(Self { id, is_scheduled: rest == [1] })
    }
}

/// Settles batches, one after the other.
pub(super) struct Settle {
    submission: Arc<Submission>,
}

/// A batch whose claims are made.
struct Claimed {
    outcomes: Vec<Outcome>,
    wanting: Vec<Wanting>,
}

/// A line that is to be appended.
struct Wanting {
    /// Its place among the outcomes.
    place: usize,
    id: MessageId,
    draft: Draft,
    /// True if an earlier request may have appended it.
    may_repeat: bool,
    /// Its claim, which waits for its answer.
    held: Option<Held>,
}

impl Settle {
    pub(super) const fn new(submission: Arc<Submission>) -> Self {
        Self { submission }
    }

    /// Claims, appends as the sender's rate and the queue have room, and answers. When the log does not take lines they say
    /// so, and the upload is read no further: what came later would overtake them.
    pub(super) async fn batch(&self, entries: Vec<Entry>, answers: &mut Answers) -> Result<(), Stop> {
        let Claimed { mut outcomes, mut wanting } = self.claim(entries).await;
        let mut broken = self.drop_sent_before(&mut outcomes, &mut wanting).await.err();
        let Submission { app, limits, .. } = &*self.submission;
        while broken.is_none() && !wanting.is_empty() {
            match app.admission.some(limits, wanting.len()).await {
                Ok(granted) => {
                    let rest = wanting.split_off(granted.min(wanting.len()));
                    let let_in = std::mem::replace(&mut wanting, rest);
                    broken = self.append(let_in, &mut outcomes).await.err();
                }
                Err(problem) => refuse(&mut outcomes, wanting.drain(..).map(|line| line.place), &problem),
            }
        }
        if let Some(problem) = &broken {
            refuse(&mut outcomes, wanting.iter().map(|line| line.place), problem);
        }
        answers.send(&outcomes).await?;
        broken.map_or(Ok(()), |problem| Err(Stop::Broken(problem)))
    }

    /// Appends lines that were let in. A line whose record cannot be made is refused by itself.
    async fn append(&self, lines: Vec<Wanting>, outcomes: &mut [Outcome]) -> Result<(), Problem> {
        let app = &self.submission.app;
        let mut records = Vec::with_capacity(lines.len());
        let mut appending = Vec::with_capacity(lines.len());
        for line in lines {
            let (place, held) = (line.place, line.held);
            match self.record(line.id, line.draft, line.may_repeat) {
                Ok((taken, record)) => {
                    outcomes[place].1 = Ok(taken);
                    records.push(record);
                    appending.push((place, taken, held));
                }
                Err(problem) => outcomes[place].1 = Err(problem),
            }
        }
        let count = records.len();
        if let Err(problem) = submit::append(app, records).await {
            refuse(outcomes, appending.iter().map(|(place, ..)| *place), &problem);
            return Err(problem);
        }
        metrics::counter!(names::INGEST_ACCEPTED, "lane" => Lane::Bulk.as_str()).increment(count as u64);
        let held = appending.iter().filter_map(|(_, taken, held)| Some((taken, held.as_ref()?)));
        join_all(held.map(|(taken, held)| app.claims.answered(held, taken.encode()))).await;
        Ok(())
    }

    fn record(&self, id: MessageId, draft: Draft, may_repeat: bool) -> Result<(Taken, NewRecord), Problem> {
        let Submission { app, business, origin, .. } = &*self.submission;
        let attempt = Attempt { id, at: app.deps.clock.now(), may_repeat };
        let taken = Taken { id, is_scheduled: attempt.due(draft.send_at).is_some() };
        let record = Sender { from: business.as_str(), origin }.record(app, draft, attempt, Lane::Bulk)?;
        Ok((taken, record))
    }

    /// Takes out the lines that an earlier request appended, as far as the history has them: they are not sent again, and
    /// their time to live does not start again. What the history cannot say yet is appended once more, under the same id.
    async fn drop_sent_before(&self, outcomes: &mut [Outcome], wanting: &mut Vec<Wanting>) -> Result<(), Problem> {
        let asked: Vec<MessageId> = wanting.iter().filter(|line| line.may_repeat).map(|line| line.id).collect();
        if asked.is_empty() {
            return Ok(());
        }
        let app = &self.submission.app;
        let stored = app.deps.store.messages.get_many(&asked).await.map_err(|error| problems::store(&error))?;
        let stored: HashMap<MessageId, bool> =
            stored.into_iter().flatten().map(|stored| (stored.row.id, stored.row.accepted.1.is_none())).collect();
        for line in wanting.extract_if(.., |line| stored.contains_key(&line.id)) {
            let taken = Taken { id: line.id, is_scheduled: stored.get(&line.id) == Some(&true) };
            outcomes[line.place].1 = Ok(taken);
            if let Some(held) = &line.held {
                app.claims.answered(held, taken.encode()).await;
            }
        }
        Ok(())
    }

    /// Makes the claims of lines that have a key, all at once, and puts everything back into the order of the lines.
    async fn claim(&self, entries: Vec<Entry>) -> Claimed {
        let claims = join_all(entries.iter().filter_map(|entry| match entry {
            Entry::Keyed { id, key, request, .. } => Some(self.turn(key.clone(), request, *id)),
            _ => None,
        }))
        .await;
        let mut claims = claims.into_iter();
        let room = entries.len();
        let mut claimed = Claimed { outcomes: Vec::with_capacity(room), wanting: Vec::with_capacity(room) };
        for (place, entry) in entries.into_iter().enumerate() {
            let outcome = match entry {
                Entry::Refused { line, problem } => (line, Err(problem)),
                Entry::Ready { line, id, draft } => {
                    let may_repeat = self.submission.is_repeat;
                    claimed.wanting.push(Wanting { place, id, draft, may_repeat, held: None });
                    (line, Ok(Taken { id, is_scheduled: false }))
                }
                Entry::Keyed { line, draft, .. } => {
                    let turn = claims.next().unwrap_or_else(|| Err(problems::internal()));
                    (line, turn.and_then(|turn| keyed(turn, draft, place, &mut claimed.wanting)))
                }
            };
            claimed.outcomes.push(outcome);
        }
        claimed
    }

    async fn turn(&self, key: String, request: &Fingerprint, id: MessageId) -> Result<Turn, Problem> {
        let Submission { app, business, .. } = &*self.submission;
        app.claims.claim(business.to_string(), key, request, id, app.deps.clock.now()).await
    }
}

/// The answer to a line with a key of its own; one that has none yet is to be appended.
fn keyed(turn: Turn, draft: Draft, place: usize, wanting: &mut Vec<Wanting>) -> Result<Taken, Problem> {
    match turn {
        Turn::Replay(kept) => Taken::decode(&kept),
        Turn::Produce(held) => {
            let (id, may_repeat) = (held.id, held.repeat);
            wanting.push(Wanting { place, id, draft, may_repeat, held: Some(held) });
            Ok(Taken { id, is_scheduled: false })
        }
    }
}

fn refuse(outcomes: &mut [Outcome], places: impl Iterator<Item = usize>, problem: &Problem) {
    for place in places {
        outcomes[place].1 = Err(problem.clone());
    }
}
