//! What gateways ask of conversations for their sessions: the same as over HTTP, without HTTP.

use eshaar_auth::Identity;
use eshaar_model::limits::IDEMPOTENCY_KEY_CHARS;
use eshaar_model::{ConversationId, ConversationPosition, MessageId, Pair, Permission, Timestamp};
use eshaar_service::Problem;

use super::sending::{self, Outgoing, Placed};
use super::{access, reading};
use crate::caller::allowed;
use crate::context::Origin;
use crate::costs::Cost;
use crate::idempotency::{self, Fingerprint, Turn};
use crate::submit::{self, Rules, Typed, meaning};
use crate::{App, Deps, Options, problems};

/// Stands before a client's reference among the keys of idempotency: those of HTTP have no space.
const KEYS: &str = "ws ";

/// What these messages are distinguished by from others with the same key.
const KIND: &str = "send over a WebSocket";

/// A chat message as a session's client sends it. Exactly one of `to` and `conversation_id` is to be given.
#[derive(Clone, Copy, Debug)]
pub struct LiveMessage<'a> {
    /// Made by the client for this message: sent again, it is the same message.
    pub reference: &'a str,
    /// The other side: a phone, or a business id.
    pub to: Option<&'a str>,
    /// A conversation of theirs.
    pub conversation_id: Option<&'a str>,
    /// What is said.
    pub content: &'a str,
    /// The sender's own reference, shown with the message.
    pub own_reference: Option<&'a str>,
    /// Whether files are attached.
    pub has_media: bool,
}

/// A message that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveSent {
    /// The message.
    pub id: MessageId,
    /// Where it was sent.
    pub conversation: ConversationId,
    /// When it was accepted.
    pub sent_at: Timestamp,
    /// Whether it had been accepted before.
    pub replayed: bool,
}

/// Conversations, for sessions.
#[derive(Clone)]
pub struct Live(App);

impl Live {
    /// On what the API rests on, with its options.
    pub fn new(deps: Deps, options: Options) -> Self {
        Self(App::new(deps, options))
    }

    /// Accepts a message: it is in the log when this returns. However often it is sent under its reference, it is one.
    pub async fn send(&self, by: &Identity, message: LiveMessage<'_>) -> Result<LiveSent, Problem> {
        let app = &self.0;
        let who = allowed(by, &[Permission::Chat])?;
        if !idempotency::is_key(message.reference) {
            return Err(problems::invalid_reference(IDEMPOTENCY_KEY_CHARS));
        }
        let LiveMessage { to, conversation_id, content, has_media, .. } = message;
        let typed = Typed { to, conversation_id, content, reference: message.own_reference, has_media };
        let now = app.deps.clock.now();
        let draft = submit::chat(typed, Rules::of(&app.options), now)?;
        let is_told_by_history = draft.names_conversation();
        let body = serde_json::to_vec(&(to, conversation_id, content, message.own_reference));
        let bytes = body.map_err(|_| problems::internal())?.into();
        let request = Fingerprint::new(meaning::of_chat(KIND, &draft), KIND, bytes);
        let key = format!("{KEYS}{}", message.reference);
        let held = match app.claims.claim(who.to_string(), key, &request, app.ids.mint(now), now).await? {
            Turn::Replay(answer) => return replayed(&answer),
            Turn::Produce(held) => held,
        };
        let placed = if let Some(placed) = sending::sent_before(app, &held).await? {
            placed
        } else {
            if let Some(refusal) = app.admission.one(by).await.refusal {
                return Err(refusal);
            }
            let attempt = held.attempt(app.deps.clock.now());
            sending::send(app, who, &Origin::new(), Outgoing { draft, attempt }).await?
        };
        let Placed { conversation, at: sent_at, .. } = placed;
        let sent = LiveSent { id: held.id, conversation, sent_at, replayed: held.repeat };
        let answer = answer(&sent).into();
        if is_told_by_history {
            held.answered(answer);
        } else {
            app.claims.answered(&held, answer).await;
        }
        Ok(sent)
    }

    /// Marks what the other side said as read, up to a position.
    pub async fn read(
        &self,
        by: &Identity,
        conversation: ConversationId,
        up_to: ConversationPosition,
    ) -> Result<(), Problem> {
        let who = allowed(by, &[Permission::Chat])?;
        self.0.admission.operation(by, Cost::Request).await?;
        let mut ours = access::find(&self.0, who, conversation).await?;
        reading::read_up_to(&self.0, by, &Origin::new(), &mut ours, Some(up_to)).await
    }

    /// The two of a conversation that `by` is one of.
    pub async fn pair(&self, by: &Identity, conversation: ConversationId) -> Result<Pair, Problem> {
        let who = allowed(by, &Permission::OF_CONVERSATIONS)?;
        self.0.admission.operation(by, Cost::Read).await?;
        access::pair(&self.0, who, conversation).await
    }
}

/// What repeats are told of a message: its id, its conversation's, and when it was accepted, in milliseconds.
fn answer(sent: &LiveSent) -> Vec<u8> {
    let sent_at = sent.sent_at.as_millis().to_be_bytes();
    [sent.id.as_bytes().as_slice(), sent.conversation.as_bytes(), &sent_at].concat()
}

fn replayed(answer: &[u8]) -> Result<LiveSent, Problem> {
    let read = || {
        let (id, rest) = answer.split_at_checked(16)?;
        let (conversation, sent_at) = rest.split_at_checked(16)?;
        let id = MessageId::from_bytes(id).ok()?;
        // An answer that an earlier version kept has no time.
        let sent_at = sent_at.try_into().map_or(id.made_at(), |ms| Timestamp::from_millis(i64::from_be_bytes(ms)));
        Some(LiveSent { id, conversation: ConversationId::from_bytes(conversation).ok()?, sent_at, replayed: true })
    };
    read().ok_or_else(problems::internal)
}
