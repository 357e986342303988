//! A draft becomes a record, and records are appended until the log has said yes.

use std::time::Duration;

use eshaar_model::{ConversationId, Lane, MessageId, MessageType, Principal, Priority, Timestamp};
use eshaar_schemas::Message;
use eshaar_service::Problem;
use eshaar_topics::{AppendError, LogPosition, NewRecord, flow};
use tokio::time::Instant;

use super::ids::MAX_AHEAD_MS;
use super::{ChatDraft, Draft};
use crate::context::Origin;
use crate::{App, problems};

/// The first pause before an append is tried again; doubled each time, to at most [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Who sends, in which request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender<'a> {
    /// Text of the principal.
    pub(crate) from: &'a str,
    pub(crate) origin: &'a Origin,
}

impl Sender<'_> {
    /// The record for `draft`: of `messages.accepted`, or of `messages.scheduled` where it is to be sent [later](due).
    /// The id says [when](taken_in) the message was taken in; the record's own time is `now`, by the clock. What is scheduled
    /// counts as made when it is due.
    pub(crate) fn record(
        &self,
        app: &App,
        draft: Draft,
        id: MessageId,
        lane: Lane,
        now: Timestamp,
    ) -> Result<NewRecord, Problem> {
        let due = due(id, draft.send_at, now);
        let created_at = due.unwrap_or(taken_in(id, now));
        let message = Message {
            content: draft.content.into_string(),
            priority: draft.priority,
            expires_at: expires_at(created_at, draft.ttl_s),
            reference: draft.reference,
            collapse_key: draft.collapse_key,
            ..self.message(id, created_at, draft.to.to_string())
        };
        let record = self.accepted(app, &message, lane)?;
        Ok(match due {
            Some(_) => flow::scheduled(record, now),
            None => NewRecord { timestamp: now, ..record },
        })
    }

    /// The record for a chat message to `to`, in a conversation; of when, as for [`Sender::record`].
    pub(crate) fn chat_record(
        &self,
        app: &App,
        draft: ChatDraft,
        id: MessageId,
        (conversation, to): (ConversationId, &Principal),
        now: Timestamp,
    ) -> Result<NewRecord, Problem> {
        let created_at = taken_in(id, now);
        let message = Message {
            r#type: MessageType::Chat,
            conversation_id: Some(conversation.to_string()),
            content: draft.content.into_string(),
            expires_at: expires_at(created_at, draft.ttl_s),
            reference: draft.reference,
            collapse_key: draft.collapse_key,
            ..self.message(id, created_at, to.to_string())
        };
        let record = self.accepted(app, &message, Lane::of(Priority::Normal))?;
        Ok(NewRecord { timestamp: now, ..record })
    }

    /// What every message of this sender has; a one-way message that says nothing.
    fn message(&self, id: MessageId, created_at: Timestamp, recipient: String) -> Message {
        Message {
            id,
            r#type: MessageType::OneWay,
            conversation_id: None,
            sender: self.from.to_owned(),
            recipient,
            content: String::new(),
            content_ciphertext: None,
            content_key_id: None,
            media: Vec::new(),
            priority: Priority::Normal,
            created_at: created_at.as_millis(),
            expires_at: None,
            reference: None,
            collapse_key: None,
            correlation_id: self.origin.correlation.clone(),
            broadcast_id: None,
        }
    }

    fn accepted(&self, app: &App, message: &Message, lane: Lane) -> Result<NewRecord, Problem> {
        flow::accepted(message, lane, &app.deps.codecs, &self.origin.trace).map_err(|error| problems::encode(&error))
    }
}

/// When a message of `ttl_s` seconds ends, in milliseconds since the Unix epoch.
fn expires_at(created_at: Timestamp, ttl_s: Option<u64>) -> Option<i64> {
    ttl_s.map(|seconds| created_at.plus_millis(seconds as i64 * 1000).as_millis())
}

/// When the message of this id was taken in: its own time, the same whenever its request is repeated. The time of an id
/// that was minted by a clock that was ahead is not believed: such a message is taken in `now`.
pub(crate) fn taken_in(id: MessageId, now: Timestamp) -> Timestamp {
    let made_at = id.made_at();
    if made_at.millis_since(now) > MAX_AHEAD_MS { now } else { made_at }
}

/// When the message of this id is sent, where that is later than it was taken in, or is still to come by the clock. So a
/// request that is repeated gets the same answer, and no error of a clock that was corrected since releases it early.
pub(crate) fn due(id: MessageId, send_at: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    send_at.filter(|at| *at > id.made_at().min(now))
}

/// Appends until the log has acknowledged every record. While the outcome is unknown the same records are appended again:
/// readers drop what stands twice, by id. After the configured time the sender is told that it is not known.
pub(crate) async fn append(app: &App, records: Vec<NewRecord>) -> Result<Vec<LogPosition>, Problem> {
    let deadline = Instant::now() + app.options.append_timeout();
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match tokio::time::timeout_at(deadline, app.deps.log.append(records.clone())).await {
            Ok(Ok(positions)) => return Ok(positions),
            Ok(Err(error @ (AppendError::Refused { .. } | AppendError::Closed))) => {
                return Err(problems::append(&error));
            }
            Ok(Err(error @ AppendError::Unknown { .. })) => error,
            Err(_) => return Err(problems::outcome_unknown()),
        };
        if Instant::now() + pause >= deadline {
            return Err(problems::append(&error));
        }
        tracing::warn!(%error, records = records.len(), "the log is asked again for the outcome of an append");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
