//! A message as the API shows it: what was accepted, and what became of it by now.

use std::time::Duration;

use bytes::Bytes;
use eshaar_model::{MessageId, MessageType, Principal, Priority, Shown, Status, StatusSteps, Timestamp};
use eshaar_schemas::{Codecs, DecodeError, Media, Message};
use eshaar_service::Problem;
use eshaar_store::StoredMessage;
use eshaar_topics::{Cancelled, flow};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::{App, openapi, problems};

/// How often a message is looked for that the history does not have, and how many times. Together longer than the time
/// between commits of `archive`.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const LOOKS: usize = 30;

/// How far ahead the clock of the process may be that made an id.
const MAX_AHEAD_MS: i64 = 60_000;

/// Longest time from when an id is made until its message is accepted: a day, for which an Idempotency-Key keeps it, and
/// some.
const MAX_ID_AGE_MS: i64 = 25 * 3600 * 1000;

/// A message, without its timeline.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MessageView {
    #[schema(value_type = String, format = "uuid")]
    id: MessageId,
    #[schema(value_type = openapi::MessageType)]
    r#type: MessageType,
    /// The highest step reached, `scheduled` before any; `expired` by the clock, `cancelled` also with the broadcast that it
    /// is part of.
    #[schema(value_type = openapi::Status)]
    status: Shown,
    /// A business id, or a phone.
    from: String,
    /// A phone, or a business id.
    to: String,
    /// Of a chat message.
    #[schema(format = "uuid")]
    conversation_id: Option<String>,
    content: String,
    #[schema(value_type = Vec<openapi::Attachment>)]
    media: Vec<Media>,
    #[schema(value_type = openapi::Priority)]
    priority: Priority,
    /// Null where it was not sent yet.
    #[schema(value_type = Option<String>, format = DateTime)]
    sent_at: Option<Timestamp>,
    /// Where it was not sent yet: when it is, or was to be.
    #[schema(value_type = Option<String>, format = DateTime)]
    send_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    reference: Option<String>,
    collapse_key: Option<String>,
    correlation_id: String,
    /// Of one that is part of a broadcast.
    #[schema(format = "uuid")]
    broadcast_id: Option<String>,
    /// Why it failed: a stable code.
    failure_reason: Option<String>,
}

/// A message with its timeline.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MessageDetails {
    #[serde(flatten)]
    message: MessageView,
    /// How often its delivery to its recipient's stream was tried again.
    retry_count: u32,
    timeline: Vec<TimelineStep>,
}

/// A step that a message reached.
#[derive(Debug, Serialize, ToSchema)]
struct TimelineStep {
    #[schema(value_type = openapi::Step)]
    step: Status,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// Of `sent`: partition of `messages.accepted`.
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<u32>,
    /// Of `sent`: offset in that partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// Of `failed`: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl MessageView {
    /// `now` decides whether it has expired; it may have been taken back with its broadcast.
    pub(crate) async fn of(
        stored: &StoredMessage,
        (codecs, cancelled): (&Codecs, &Cancelled),
        now: Timestamp,
    ) -> Result<Self, Problem> {
        let message = decode(codecs, &stored.row.value).await?;
        let status = match steps_by(stored, now).current() {
            None | Some(Status::Sent) if cancelled.takes(&message.sender, message.id, flow::broadcast_of(&message)) => {
                Status::Cancelled.into()
            }
            reached => reached.into(),
        };
        let is_sent = stored.row.accepted.1.is_some();
        Ok(Self {
            id: message.id,
            r#type: message.r#type,
            status,
            from: message.sender,
            to: message.recipient,
            conversation_id: message.conversation_id,
            content: message.content,
            media: message.media,
            priority: message.priority,
            sent_at: is_sent.then_some(stored.row.created_at),
            send_at: (!is_sent).then_some(stored.row.created_at),
            expires_at: stored.row.expires_at,
            reference: message.reference,
            collapse_key: message.collapse_key,
            correlation_id: message.correlation_id,
            broadcast_id: message.broadcast_id,
            failure_reason: stored.failure_reason.clone(),
        })
    }

    /// Whether its status is one of these.
    pub(crate) fn is_at(&self, statuses: &[Status]) -> bool {
        statuses.iter().any(|status| self.status == Shown::from(*status))
    }
}

impl MessageDetails {
    pub(crate) async fn of(
        stored: &StoredMessage,
        retry_count: u32,
        known: (&Codecs, &Cancelled),
        now: Timestamp,
    ) -> Result<Self, Problem> {
        let message = MessageView::of(stored, known, now).await?;
        Ok(Self { message, retry_count, timeline: timeline(stored, now) })
    }

    /// Whether it was taken back in time.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.message.is_at(&[Status::Cancelled])
    }
}

/// The steps reached, and `expired` where the clock has passed a message that went no further: its event comes a little later.
pub(crate) fn steps_by(stored: &StoredMessage, now: Timestamp) -> StatusSteps {
    let mut steps = stored.steps;
    if let Some(at) = stored.row.expires_at
        && at <= now
        && steps.current().is_none_or(|status| status.can_become(Status::Expired))
    {
        steps.reach(Status::Expired, at);
    }
    steps
}

fn timeline(stored: &StoredMessage, now: Timestamp) -> Vec<TimelineStep> {
    let (partition, offset) = stored.row.accepted;
    let mut timeline: Vec<_> = steps_by(stored, now)
        .reached()
        .map(|(step, at)| TimelineStep {
            step,
            at,
            partition: (step == Status::Sent).then_some(partition),
            offset: offset.filter(|_| step == Status::Sent),
            reason: stored.failure_reason.clone().filter(|_| step == Status::Failed),
        })
        .collect();
    timeline.sort_by_key(|step| step.at);
    timeline
}

/// What there is to know of a message id.
pub(crate) enum Found {
    /// The history has it.
    Message(Box<StoredMessage>),
    /// No message of this id was accepted.
    Absent,
    /// It may have been accepted: the history is behind, or does not answer.
    Unknown(Problem),
}

/// Looks a message up. One that the history does not have is looked for again for a short time: until the history has
/// everything that was accepted before this call.
pub(crate) async fn look_up(app: &App, id: MessageId) -> Found {
    let (begun, mut is_complete) = (Instant::now(), false);
    if id.made_at().millis_since(app.deps.clock.now()) > MAX_AHEAD_MS {
        return Found::Absent;
    }
    for _ in 0..LOOKS {
        match app.deps.store.messages.get(id).await {
            Ok(Some(stored)) => return Found::Message(Box::new(stored)),
            Ok(None) if is_complete => return Found::Absent,
            Ok(None) => {}
            Err(error) => return Found::Unknown(problems::store(&error)),
        }
        let oldest_unsettled = app.progress.complete_until().await.map(|until| until.plus_millis(-MAX_ID_AGE_MS));
        if oldest_unsettled.is_some_and(|oldest| id.made_at() < oldest) {
            return Found::Absent;
        }
        is_complete = app.progress.covers(begun).await;
        if !is_complete {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    Found::Unknown(problems::not_yet_known("the history does not have everything yet that was accepted; ask again"))
}

/// A message that `who` has sent, or that was sent to them: another's is not there, and nor is, for its recipient, one that
/// waits for its time.
pub(crate) async fn find(app: &App, id: &str, who: &Principal) -> Result<StoredMessage, Problem> {
    let id: MessageId = id.parse().map_err(|_| problems::message_not_found())?;
    match look_up(app, id).await {
        Found::Message(stored) if is_shown(&stored, who) => Ok(*stored),
        Found::Message(_) | Found::Absent => Err(problems::message_not_found()),
        Found::Unknown(problem) => Err(problem),
    }
}

fn is_shown(stored: &StoredMessage, who: &Principal) -> bool {
    stored.row.sender == *who || stored.row.recipient == *who && stored.row.accepted.1.is_some()
}

/// The message in a record's value; a schema that is not known yet is asked for.
pub(crate) async fn decode(codecs: &Codecs, value: &Bytes) -> Result<Message, Problem> {
    let failed = |error: DecodeError| problems::decode(&error);
    match codecs.decode(value) {
        Err(DecodeError::UnknownSchema(id)) => {
            codecs.learn(id).await.map_err(|error| problems::registry(&error))?;
            codecs.decode(value).map_err(failed)
        }
        decoded => decoded.map_err(failed),
    }
}
