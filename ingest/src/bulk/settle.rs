//! A batch of lines is claimed, let in, appended and answered.

use std::sync::Arc;

use bytes::Bytes;
use eshaar_model::{Lane, MessageId};
use eshaar_service::{Problem, metrics as names};
use eshaar_topics::NewRecord;
use futures_util::future::join_all;

use super::Submission;
use super::answers::{Answers, Stop};
use super::gather::{Entry, Taken};
use crate::idempotency::{Held, Turn};
use crate::problems;
use crate::submit::{self, Draft, Sender};

/// What a line will be answered, once its batch is appended.
type Outcome = (u64, Result<Taken, Problem>);

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
    record: NewRecord,
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
        let Submission { app, limits, .. } = &*self.submission;
        let mut broken = None;
        while !wanting.is_empty() {
            let refused = match app.admission.some(limits, wanting.len()).await {
                Ok(granted) => {
                    let rest = wanting.split_off(granted.min(wanting.len()));
                    let let_in = std::mem::replace(&mut wanting, rest);
                    let places: Vec<usize> = let_in.iter().map(|line| line.place).collect();
                    let Err(problem) = self.append(let_in).await else { continue };
                    broken = Some(problem.clone());
                    (places, problem)
                }
                Err(problem) => (Vec::new(), problem),
            };
            let (places, problem) = refused;
            for place in places.into_iter().chain(wanting.drain(..).map(|line| line.place)) {
                outcomes[place].1 = Err(problem.clone());
            }
        }
        answers.send(&outcomes).await?;
        broken.map_or(Ok(()), |problem| Err(Stop::Broken(problem)))
    }

    async fn append(&self, lines: Vec<Wanting>) -> Result<(), Problem> {
        let app = &self.submission.app;
        let (records, held): (Vec<_>, Vec<_>) = lines.into_iter().map(|line| (line.record, line.held)).unzip();
        let count = records.len();
        submit::append(app, records).await?;
        metrics::counter!(names::INGEST_ACCEPTED, "lane" => Lane::Bulk.as_str()).increment(count as u64);
        let held: Vec<Held> = held.into_iter().flatten().collect();
        join_all(held.iter().map(|held| app.claims.answered(held, Bytes::copy_from_slice(held.id.as_bytes())))).await;
        Ok(())
    }

    /// Makes the claims of lines that have a key, all at once, and puts everything back into the order of the lines.
    async fn claim(&self, entries: Vec<Entry>) -> Claimed {
        let claims = join_all(entries.iter().filter_map(|entry| match entry {
            Entry::Keyed { id, key, hash, .. } => Some(self.turn(key.clone(), *hash, *id)),
            _ => None,
        }))
        .await;
        let mut claims = claims.into_iter();
        let room = entries.len();
        let mut claimed = Claimed { outcomes: Vec::with_capacity(room), wanting: Vec::with_capacity(room) };
        for (place, entry) in entries.into_iter().enumerate() {
            let outcome = match entry {
                Entry::Refused { line, problem } => (line, Err(problem)),
                Entry::Ready { line, taken, record } => {
                    claimed.wanting.push(Wanting { place, record, held: None });
                    (line, Ok(taken))
                }
                Entry::Keyed { line, draft, .. } => {
                    let turn = claims.next().unwrap_or_else(|| Err(problems::internal()));
                    (line, turn.and_then(|turn| self.keyed(turn, draft, place, &mut claimed.wanting)))
                }
            };
            claimed.outcomes.push(outcome);
        }
        claimed
    }

    async fn turn(&self, key: String, hash: [u8; 32], id: MessageId) -> Result<Turn, Problem> {
        let Submission { app, business, .. } = &*self.submission;
        app.claims.claim(business.to_string(), key, hash, id, app.deps.clock.now()).await
    }

    fn keyed(&self, turn: Turn, draft: Draft, place: usize, wanting: &mut Vec<Wanting>) -> Result<Taken, Problem> {
        let Submission { app, business, origin, .. } = &*self.submission;
        let now = app.deps.clock.now();
        let held = match turn {
            Turn::Replay(answer) => {
                let id = MessageId::from_bytes(&answer).map_err(|_| problems::internal())?;
                return Ok(Taken::of(id, &draft, now));
            }
            Turn::Produce(held) => held,
        };
        let (id, taken) = (held.id, Taken::of(held.id, &draft, now));
        let sender = Sender { from: business.as_str(), origin };
        let record = sender.record(app, draft, id, Lane::Bulk, now)?;
        wanting.push(Wanting { place, record, held: Some(held) });
        Ok(taken)
    }
}
