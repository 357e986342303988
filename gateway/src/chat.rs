//! What a session does in conversations: sends and reads, one after the other in the order of its frames, while it goes on
//! receiving; which conversations it has joined, and what it was sent of them.
//!
//! A session that does none of this holds none of it. What it had not finished when it ends is not undone: a client that
//! got no answer sends the same again, under the same `ref`.

use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use eshaar_auth::Identity;
use eshaar_model::{ConversationId, ConversationPosition, MessageId, Pair, Timestamp};
use eshaar_service::Problem;

use crate::hub::{TICKS, Ticks};
use crate::message::Subject;
use crate::shared::Shared;
use crate::typing::{self, Typing};

/// Most frames of one session that have to wait for somebody, and for their turn.
pub(crate) const WAITING: usize = 64;

/// Most conversations that one session has joined.
pub(crate) const JOINED: usize = 32;

/// Messages that a business's session remembers it was sent, to be acknowledged without being looked up.
const REMEMBERED: usize = 256;

/// Who types is told of again after this, not earlier: well within what it lapses after at the other side.
const TYPING_AGAIN: Ticks = 2 * TICKS;

/// A message that a session's client sends: to the other side, or in a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMessage {
    /// Made by the client for this message: sent again under it, it is the same message.
    pub r#ref: String,
    /// A phone, or a business id.
    pub to: Option<String>,
    /// A conversation of theirs.
    pub conversation_id: Option<String>,
    /// What is said.
    pub content: String,
    /// The sender's own reference, shown with the message.
    pub reference: Option<String>,
    /// Whether files are attached.
    pub has_media: bool,
}

/// A message that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The message.
    pub id: MessageId,
    /// Where it was sent.
    pub conversation: ConversationId,
    /// When it was accepted, first.
    pub sent_at: Timestamp,
    /// Whether it had been accepted before.
    pub replayed: bool,
}

/// What a gateway asks of conversations. Each refuses what the principal may not do; what others have is not there.
#[async_trait]
pub trait Conversations: Send + Sync + 'static {
    /// Accepts a message; however often it comes under its `ref`, it is one.
    async fn send(&self, by: &Identity, message: NewMessage) -> Result<Sent, Problem>;

    /// What the other side said is read, up to a position.
    async fn read(
        &self,
        by: &Identity,
        conversation: ConversationId,
        up_to: ConversationPosition,
    ) -> Result<(), Problem>;

    /// The two of a conversation that `by` is one of.
    async fn pair(&self, by: &Identity, conversation: ConversationId) -> Result<Pair, Problem>;
}

/// Something that has to be waited for.
#[derive(Debug)]
pub(crate) enum Errand {
    Send(NewMessage),
    Read {
        conversation: ConversationId,
        up_to: ConversationPosition,
    },
    Join {
        conversation: ConversationId,
        reference: Option<String>,
    },
    /// Tells the others of a conversation that this session's principal types, or stopped.
    Tell(Typing),
}

/// What came of an errand.
#[derive(Debug)]
pub(crate) enum Done {
    Sent { reference: String, sent: Result<Sent, Problem> },
    Read(Result<(), Problem>),
    Joined { conversation: ConversationId, reference: Option<String>, pair: Result<Pair, Problem> },
    Told,
}

type UnderWay = Pin<Box<dyn Future<Output = Done> + Send>>;

/// A conversation that a session has joined.
struct Joined {
    conversation: ConversationId,
    pair: Pair,
    /// When the others were last told that this session's principal types; `None`: it does not.
    typing: Option<Ticks>,
}

/// What a session does in conversations.
#[derive(Default)]
pub(crate) struct Chat {
    under_way: Option<UnderWay>,
    line: VecDeque<Errand>,
    joined: Vec<Joined>,
    /// What a business's session was sent last, oldest first.
    subjects: VecDeque<Arc<Subject>>,
}

/// The next errand that is done; never, where none is under way. May be dropped and asked again.
pub(crate) async fn done(chat: &mut Option<Box<Chat>>) -> Done {
    match chat.as_mut().and_then(|chat| chat.under_way.as_mut()) {
        Some(under_way) => under_way.as_mut().await,
        None => pending().await,
    }
}

/// What is to be done about somebody who types.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// The session has not joined the conversation.
    NotJoined,
    /// Nothing: the others were told a moment ago.
    Known,
    /// The two of the conversation are to be told.
    News(Pair),
}

/// There are as many as there may be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

impl Chat {
    /// Has an errand done behind those before it.
    pub(crate) fn run(&mut self, shared: &Arc<Shared>, by: &Arc<Identity>, errand: Errand) -> Result<(), TooMany> {
        if self.under_way.is_none() {
            self.under_way = Some(begin(shared, by, errand));
        } else if self.line.len() >= WAITING {
            return Err(TooMany);
        } else {
            self.line.push_back(errand);
        }
        Ok(())
    }

    /// Lets go of the errand that is done, and begins the next.
    pub(crate) fn go_on(&mut self, shared: &Arc<Shared>, by: &Arc<Identity>) {
        self.under_way = self.line.pop_front().map(|errand| begin(shared, by, errand));
    }

    /// Whether there is nothing to be held for it.
    pub(crate) fn is_idle(&self) -> bool {
        self.under_way.is_none() && self.joined.is_empty() && self.subjects.is_empty()
    }

    /// From now on this session is told who types there.
    pub(crate) fn join(&mut self, conversation: ConversationId, pair: Pair) -> Result<(), TooMany> {
        if self.has_joined(conversation) {
            return Ok(());
        }
        if self.joined.len() >= JOINED {
            return Err(TooMany);
        }
        self.joined.push(Joined { conversation, pair, typing: None });
        Ok(())
    }

    pub(crate) fn leave(&mut self, conversation: ConversationId) {
        self.joined.retain(|joined| joined.conversation != conversation);
    }

    pub(crate) fn has_joined(&self, conversation: ConversationId) -> bool {
        self.joined.iter().any(|joined| joined.conversation == conversation)
    }

    /// Notes whether the principal types in a conversation, at `now`.
    pub(crate) fn type_in(&mut self, conversation: ConversationId, on: bool, now: Ticks) -> Typed {
        let joined = self.joined.iter_mut().find(|joined| joined.conversation == conversation);
        let Some(joined) = joined else { return Typed::NotJoined };
        let is_news = match (on, joined.typing) {
            (true, Some(told)) => now.saturating_sub(told) >= TYPING_AGAIN,
            (true, None) => true,
            (false, typing) => typing.is_some(),
        };
        if !is_news {
            return Typed::Known;
        }
        joined.typing = on.then_some(now);
        Typed::News(joined.pair.clone())
    }

    /// A message of this session stands in a conversation: whoever sees it sees by that that it types no more.
    pub(crate) fn has_said(&mut self, conversation: ConversationId) {
        for joined in self.joined.iter_mut().filter(|joined| joined.conversation == conversation) {
            joined.typing = None;
        }
    }

    /// The session was sent a message that it may acknowledge.
    pub(crate) fn remember(&mut self, subject: Arc<Subject>) {
        if self.subjects.len() >= REMEMBERED {
            self.subjects.pop_front();
        }
        self.subjects.push_back(subject);
    }

    /// The message of this id, if the session was sent it lately.
    pub(crate) fn subject(&self, id: MessageId) -> Option<&Arc<Subject>> {
        self.subjects.iter().rev().find(|subject| subject.id == id)
    }
}

fn begin(shared: &Arc<Shared>, by: &Arc<Identity>, errand: Errand) -> UnderWay {
    let (shared, by) = (Arc::clone(shared), Arc::clone(by));
    Box::pin(async move {
        match errand {
            Errand::Send(message) => {
                let reference = message.r#ref.clone();
                Done::Sent { reference, sent: shared.conversations.send(&by, message).await }
            }
            Errand::Read { conversation, up_to } => {
                Done::Read(shared.conversations.read(&by, conversation, up_to).await)
            }
            Errand::Join { conversation, reference } => {
                let pair = shared.conversations.pair(&by, conversation).await;
                Done::Joined { conversation, reference, pair }
            }
            Errand::Tell(typing) => {
                typing::tell(&shared, &typing).await;
                Done::Told
            }
        }
    })
}
