//! A batch of lines is claimed, appended and answered.

use std::sync::Arc;

use bytes::Bytes;
use eshaar_model::{Lane, MessageId};
use eshaar_service::{Problem, metrics as names};
use eshaar_topics::NewRecord;
use futures_util::future::join_all;

use super::Submission;
use super::answers::{Answers, Stop};
use super::gather::Entry;
use crate::idempotency::{Held, Turn};
use crate::problems;
use crate::submit::{self, Draft, Sender};

/// What a line will be answered, once its batch is appended.
type Outcome = (u64, Result<MessageId, Problem>);

/// Settles batches, one after the other.
pub(super) struct Settle {
    submission: Arc<Submission>,
}

/// A batch whose claims are made.
struct Claimed {
    outcomes: Vec<Outcome>,
    records: Vec<NewRecord>,
    /// Claims that wait for their answer.
    held: Vec<Held>,
}

impl Settle {
    pub(super) const fn new(submission: Arc<Submission>) -> Self {
        Self { submission }
    }

    /// Claims, appends and answers. When the log does not take the batch its lines say so, and the upload is read no
    /// further: what came later would overtake them.
    pub(super) async fn batch(&self, entries: Vec<Entry>, answers: &mut Answers) -> Result<(), Stop> {
        let Claimed { mut outcomes, records, held } = self.claim(entries).await;
        let app = &self.submission.app;
        let count = records.len();
        let appended = if count == 0 { Ok(Vec::new()) } else { submit::append(app, records).await };
        match appended {
            Ok(_) => {
                metrics::counter!(names::INGEST_ACCEPTED, "lane" => Lane::Bulk.as_str()).increment(count as u64);
                let kept =
                    held.iter().map(|held| app.claims.answered(held, Bytes::copy_from_slice(held.id.as_bytes())));
                join_all(kept).await;
                answers.send(&outcomes).await
            }
            Err(problem) => {
                for (_, outcome) in outcomes.iter_mut().filter(|(_, outcome)| outcome.is_ok()) {
                    *outcome = Err(problem.clone());
                }
                answers.send(&outcomes).await?;
                Err(Stop::Broken(problem))
            }
        }
    }

    /// Makes the claims of lines that have a key, all at once, and puts everything back into the order of the lines.
    async fn claim(&self, entries: Vec<Entry>) -> Claimed {
        let claims = join_all(entries.iter().filter_map(|entry| match entry {
            Entry::Keyed { id, key, hash, .. } => Some(self.turn(key.clone(), *hash, *id)),
            _ => None,
        }))
        .await;
        let mut claims = claims.into_iter();
        let mut claimed = Claimed {
            outcomes: Vec::with_capacity(entries.len()),
            records: Vec::with_capacity(entries.len()),
            held: Vec::new(),
        };
        for entry in entries {
            let outcome = match entry {
                Entry::Refused { line, problem } => (line, Err(problem)),
                Entry::Ready { line, id, record } => {
                    claimed.records.push(record);
                    (line, Ok(id))
                }
                Entry::Keyed { line, draft, .. } => {
                    let turn = claims.next().unwrap_or_else(|| Err(problems::internal()));
                    (line, turn.and_then(|turn| self.keyed(turn, draft, &mut claimed)))
                }
            };
            claimed.outcomes.push(outcome);
        }
        claimed
    }

    async fn turn(&self, key: String, hash: [u8; 32], id: MessageId) -> Result<Turn, Problem> {
        let Submission { app, business, .. } = &*self.submission;
        app.claims.claim(business, key, hash, id, app.deps.clock.now()).await
    }

    fn keyed(&self, turn: Turn, draft: Draft, claimed: &mut Claimed) -> Result<MessageId, Problem> {
        let Submission { app, business, origin, .. } = &*self.submission;
        let held = match turn {
            Turn::Replay(answer) => return MessageId::from_bytes(&answer).map_err(|_| problems::internal()),
            Turn::Produce(held) => held,
        };
        let id = held.id;
        let sender = Sender { business: business.as_str(), origin };
        claimed.records.push(sender.record(app, draft, id, Lane::Bulk, app.deps.clock.now())?);
        claimed.held.push(held);
        Ok(id)
    }
}
