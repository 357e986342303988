//! What a session's client does in conversations: sends, reads, joins and leaves, types; and, where it is a business,
//! acknowledges what it was sent.

use std::sync::Arc;

use eshaar_model::{ConversationId, MessageId, Status};
use eshaar_service::Problem;
use smallvec::SmallVec;

use super::{End, Session};
use crate::chat::{Chat, Done, Errand, JOINED, NewMessage, Typed, WAITING};
use crate::protocol::{Reply, Request};
use crate::receipts;
use crate::socket::Io;
use crate::typing::Typing;

impl<S: Io> Session<S> {
    /// Does what a frame asks for, or begins to; any other frame was taken before.
    pub(super) async fn talk(&mut self, request: Request) -> Result<(), End> {
        match request {
            Request::Send(send) => {
                let reference = send.r#ref.clone();
                let message = NewMessage {
                    r#ref: send.r#ref,
                    to: send.to,
                    conversation_id: send.conversation_id,
                    content: send.content,
                    reference: send.reference,
                    has_media: !send.media.is_empty(),
                };
                self.begin(Errand::Send(message), Some(&reference)).await
            }
            Request::Read { conversation_id: Some(conversation), up_to: Some(up_to), .. } => {
                self.begin(Errand::Read { conversation, up_to }, None).await
            }
            Request::Join { conversation_id: conversation, r#ref } => {
                let reference = r#ref.clone();
                self.begin(Errand::Join { conversation, reference }, r#ref.as_deref()).await
            }
            Request::Leave { conversation_id, r#ref } => {
                if let Some(chat) = &mut self.chat {
                    chat.leave(conversation_id);
                }
                self.let_go();
                self.reply(&Reply::Left { r#ref: r#ref.as_deref(), conversation_id }).await
            }
            Request::Typing { conversation_id, on, r#ref } => self.typing(conversation_id, on, r#ref.as_deref()).await,
            _ => Ok(()),
        }
    }

    async fn begin(&mut self, errand: Errand, reference: Option<&str>) -> Result<(), End> {
        if self.chat.get_or_insert_default().run(&self.shared, &self.identity, errand).is_ok() {
            return Ok(());
        }
        let detail = format!("{WAITING} frames of this session wait already, which are the most; send it again");
        self.error(reference, "too_many_waiting", &detail, true).await
    }

    /// Tells the client what came of an errand, and begins the next.
    pub(super) async fn finish(&mut self, done: Done) -> Result<(), End> {
        if let Some(chat) = &mut self.chat {
            chat.go_on(&self.shared, &self.identity);
        }
        let answered = match done {
            Done::Sent { reference, sent: Ok(sent) } => {
                if let Some(chat) = &mut self.chat {
                    chat.has_said(sent.conversation);
                }
                let (id, conversation_id, sent_at) = (sent.id, sent.conversation, sent.sent_at);
                let replayed = sent.replayed;
                self.reply(&Reply::Sent { r#ref: &reference, id, conversation_id, sent_at, replayed }).await
            }
            Done::Sent { reference, sent: Err(problem) } => self.refuse(Some(&reference), &problem).await,
            Done::Read(Ok(())) | Done::Told => Ok(()),
            Done::Read(Err(problem)) => self.refuse(None, &problem).await,
            Done::Joined { conversation, reference, pair: Ok(pair) } => {
                let reference = reference.as_deref();
                if self.chat.get_or_insert_default().join(conversation, pair).is_ok() {
                    self.reply(&Reply::Joined { r#ref: reference, conversation_id: conversation }).await
                } else {
                    let detail = format!("this session has joined {JOINED} conversations, which are the most");
                    self.error(reference, "too_many_joined", &detail, false).await
                }
            }
            Done::Joined { reference, pair: Err(problem), .. } => self.refuse(reference.as_deref(), &problem).await,
        };
        self.let_go();
        answered
    }

    /// Holds nothing for what it does not do any more.
    fn let_go(&mut self) {
        if self.chat.as_ref().is_some_and(|chat| chat.is_idle()) {
            self.chat = None;
        }
    }

    async fn typing(&mut self, conversation: ConversationId, on: bool, reference: Option<&str>) -> Result<(), End> {
        let now = self.shared.ticks();
        let typed = self.chat.as_mut().map_or(Typed::NotJoined, |chat| chat.type_in(conversation, on, now));
        let pair = match typed {
            Typed::NotJoined => {
                return self.error(reference, "not_joined", "join the conversation first", false).await;
            }
            Typed::Known => return Ok(()),
            Typed::News(pair) => pair,
        };
        let Some(node) = self.shared.node() else { return Ok(()) };
        let Some(side) = pair.side_of(&self.handle.principal) else { return Ok(()) };
        let typing = Typing::new(conversation, &pair, (side, on), (node.slot, self.handle.id));
        self.begin(Errand::Tell(typing), reference).await
    }

    /// Records that a business has got, or read, messages that were sent to it.
    pub(super) async fn reached(&mut self, ids: Vec<MessageId>, status: Status) -> Result<(), End> {
        let (now, by) = (self.shared.clock.now(), &self.handle.principal);
        let steps = [Status::Delivered, Status::Read].into_iter().take_while(|step| *step <= status);
        let (mut records, mut unknown) = (SmallVec::new(), Vec::new());
        for id in ids {
            match self.chat.as_deref().and_then(|chat: &Chat| chat.subject(id)) {
                Some(subject) => {
                    records.extend(
                        steps.clone().filter_map(|step| receipts::status(&self.shared, subject, by, step, now)),
                    );
                }
                None => unknown.push(id),
            }
        }
        self.shared.meters.acked.increment(records.len() as u64);
        self.shared.receipts.add(records, None);
        let shared = Arc::clone(&self.shared);
        shared.receipts.room().await;
        self.look_up(&unknown, status).await
    }

    async fn refuse(&mut self, reference: Option<&str>, problem: &Problem) -> Result<(), End> {
        let temporary = problem.status.is_server_error() || problem.retry_after_s.is_some();
        self.reply(&Reply::Error {
            r#ref: reference,
            code: problem.code,
            detail: &problem.detail,
            temporary,
            field: problem.field.as_deref(),
            retry_after_ms: problem.retry_after_s.map(|seconds| seconds * 1_000),
        })
        .await
    }
}
