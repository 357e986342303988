//! A session's frames that others cause: messages, statuses, events of conversations and pings.
//!
//! While the newest cancellations are not known, messages stay in the inbox and in the stream.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use eshaar_auth::operations::{Access, CHAT_STATUS, CONVERSATION_EVENT, ONE_WAY_STATUS};
use eshaar_model::Principal;

use super::{End, Session};
use crate::chat::Chat;
use crate::hub::{About, Hint, Inbox};
use crate::message::Said;
use crate::protocol::Reply;
use crate::shared::Shared;
use crate::socket::Io;
use crate::wire::Frames;

impl<S: Io> Session<S> {
    /// Does what others signalled, and sends what is in the inbox and what the stream still holds.
    pub(super) async fn send_what_waits(&mut self) -> Result<(), End> {
        let signals = self.handle.take_signals();
        if let Some(close) = signals.close {
            return Err(End::Close(close, None));
        }
        // While the newest cancellations are not known, messages stay where they are.
        let is_fresh = self.shared.cancelled.is_fresh();
        let inbox = if is_fresh { self.handle.take_inbox() } else { Inbox::default() };
        let mut frames = Frames::new();
        if signals.ping {
            frames.ping();
            if self.identity.key_id.is_some() {
                Box::pin(self.look_at_key()).await?;
            }
        }
        if let Some(recipient) = &mut self.recipient {
            recipient.behind |= inbox.overflowed;
            recipient.doubt |= signals.behind;
        }
        if let Some(catching) = self.catching.as_mut().filter(|_| signals.behind || inbox.overflowed) {
            catching.doubt();
        }
        if !inbox.hints.is_empty() {
            self.send_hints(inbox.hints, &mut frames);
        }
        if (inbox.missed || signals.behind) && self.handle.is_live() {
            frames.text(|bytes| Reply::Missed.render(bytes));
        }
        self.write(frames).await?;
        if !is_fresh {
            self.hold();
            return Ok(());
        }
        let is_behind = self.recipient.as_ref().is_some_and(|recipient| recipient.behind || recipient.doubt);
        if is_behind || self.catching.is_some() {
            Box::pin(self.catch_up()).await?;
        }
        Ok(())
    }

    /// Waits with messages until the newest cancellations are known: the timer wakes the session then.
    pub(super) fn hold(&self) {
        self.handle.times.held.store(self.shared.ticks().max(1), Relaxed);
        self.shared.meters.held.increment(1);
    }

    fn send_hints(&mut self, hints: Vec<Hint>, frames: &mut Frames) {
        let now = self.shared.clock.now();
        let identity = Arc::clone(&self.identity);
        let may = |access: Access| access.check(&identity).is_ok();
        for hint in hints {
            match hint {
                Hint::Message(ready) => self.send_hint(&ready, now, frames),
                Hint::Said(said) if may(CONVERSATION_EVENT) => {
                    Self::say(&self.shared, &self.handle.principal, &mut self.chat, &said, frames);
                }
                Hint::Frame(about, json) if may(access_of(about)) => {
                    frames.text(|bytes| bytes.extend_from_slice(&json));
                }
                Hint::Typing(typing) => {
                    if self.chat.as_ref().is_some_and(|chat| chat.has_joined(typing.conversation)) {
                        let (conversation_id, from, on) = (typing.conversation, typing.from(), typing.on);
                        frames.text(|bytes| Reply::Typing { conversation_id, from, on }.render(bytes));
                    }
                }
                Hint::Said(_) | Hint::Frame(..) => {}
            }
        }
    }

    /// Sends what was said to `us`, or by us, unless it was taken back or has expired.
    fn say(shared: &Shared, us: &Principal, chat: &mut Option<Box<Chat>>, said: &Arc<Said>, frames: &mut Frames) {
        let (now, meters, subject) = (shared.clock.now(), &shared.meters, &said.subject);
        if shared.cancelled.takes(&subject.sender, subject.id, subject.broadcast) {
            meters.cancelled.increment(1);
        } else if said.expired(now) {
            meters.expired.increment(1);
        } else {
            frames.text(|bytes| said.render(bytes));
            meters.sent_by_hint.increment(1);
            if said.to.as_ref() == Some(us) {
                meters.delivery_seconds.record(now.millis_since(said.accepted_at).max(0) as f64 / 1_000.0);
                chat.get_or_insert_default().remember(Arc::clone(subject));
            }
        }
    }
}

/// Who receives frames of this kind.
const fn access_of(about: About) -> Access {
    match about {
        About::OneWay => ONE_WAY_STATUS,
        About::Chat => CHAT_STATUS,
        About::Conversation => CONVERSATION_EVENT,
    }
}
