//! A draft becomes a record, and records are appended until the log has said yes.

use std::time::Duration;

use eshaar_model::{ConversationId, Lane, MessageId, MessageType, Principal, Priority, Timestamp};
use eshaar_schemas::Message;
use eshaar_service::Problem;
use eshaar_topics::{AppendError, LogPosition, NewRecord, flow};
use tokio::time::Instant;

use super::{ChatDraft, Draft};
use crate::context::Origin;
use crate::{App, problems};

/// The first pause before an append is tried again; doubled each time, to at most [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Age of an id from which its record says how old the message is: see [`flow::first_at`].
const OLD_ID_MS: i64 = 5_000;

/// One attempt to accept a message.
///
/// The id is the same in every attempt of a request (its Idempotency-Key holds it). All times of the message come from
/// `at`: an attempt that was refused, or that appended nothing, leaves no trace in them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) id: MessageId,
    /// Time of acceptance, if this attempt succeeds.
    pub(crate) at: Timestamp,
    /// True if an earlier attempt may have appended the message.
    pub(crate) may_repeat: bool,
}

impl Attempt {
    /// The time at which the message is to be sent, if that is later than its acceptance.
    pub(crate) fn due(&self, send_at: Option<Timestamp>) -> Option<Timestamp> {
        send_at.filter(|at| *at > self.at)
    }

    /// Adds the headers by which readers of the log recognise repeats of this message.
    fn mark(&self, record: NewRecord) -> NewRecord {
        if self.may_repeat {
            return flow::may_repeat(record);
        }
        let age_ms = self.at.millis_since(self.id.made_at());
        if age_ms.abs() > OLD_ID_MS { flow::first_at(record, self.at) } else { record }
    }
}

/// Who sends, in which request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender<'a> {
    /// Text of the principal.
    pub(crate) from: &'a str,
    pub(crate) origin: &'a Origin,
}

impl Sender<'_> {
    /// The record for `draft`: of `messages.accepted`, or of `messages.scheduled` where it is to be sent
    /// [later](Attempt::due). A scheduled message is created when it is due, and its time to live starts then.
    pub(crate) fn record(&self, app: &App, draft: Draft, attempt: Attempt, lane: Lane) -> Result<NewRecord, Problem> {
        let due = attempt.due(draft.send_at);
        let created_at = due.unwrap_or(attempt.at);
        let message = Message {
            content: draft.content.into_string(),
            priority: draft.priority,
            expires_at: expires_at(created_at, draft.ttl_s),
            reference: draft.reference,
            collapse_key: draft.collapse_key,
            ..self.message(attempt.id, created_at, draft.to.to_string())
        };
        let record = attempt.mark(self.accepted(app, &message, lane)?);
        Ok(if due.is_some() { flow::scheduled(record, attempt.at) } else { record })
    }

    /// The record for a chat message to `to`, in a conversation.
    pub(crate) fn chat_record(
        &self,
        app: &App,
        draft: ChatDraft,
        attempt: Attempt,
        (conversation, to): (ConversationId, &Principal),
    ) -> Result<NewRecord, Problem> {
        let created_at = attempt.at;
        let message = Message {
            r#type: MessageType::Chat,
            conversation_id: Some(conversation.to_string()),
            content: draft.content.into_string(),
            expires_at: expires_at(created_at, draft.ttl_s),
            reference: draft.reference,
            collapse_key: draft.collapse_key,
            ..self.message(attempt.id, created_at, to.to_string())
        };
        Ok(attempt.mark(self.accepted(app, &message, Lane::of(Priority::Normal))?))
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
