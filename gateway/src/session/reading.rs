//! Receipts of messages that the session does not know: they are looked up in the history, within the session's share.
//!
//! A session without room for another frame does not read from its socket, so only its own client waits. After
//! [`MAX_PAUSE`] it reads on and refuses such receipts, so that acks and pings arrive while the history does not answer.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use eshaar_model::{MessageId, Status};

use super::{End, Session};
use crate::hub::{TICKS, Ticks};
use crate::protocol::IDS;
use crate::socket::Io;

/// Longest time that a session does not read from its socket.
const MAX_PAUSE: Ticks = 5 * TICKS;

impl<S: Io> Session<S> {
    /// Returns true while the session is not to read from its socket.
    pub(super) fn is_paused(&mut self) -> bool {
        let (options, paused, now) = (&self.shared.options, &self.handle.times.paused, self.shared.ticks());
        self.look_ups.earn(options.look_ups_per_s, burst(options.look_ups_per_s), now);
        let pending = self.handle.look_ups.load(Acquire);
        if self.look_ups.has(IDS as u32) && pending + IDS <= options.look_ups_per_session {
            paused.store(0, Relaxed);
            return false;
        }
        if paused.load(Relaxed) == 0 {
            paused.store(now, Relaxed);
        }
        now.saturating_sub(paused.load(Relaxed)) < MAX_PAUSE
    }

    /// Records that the phone has read messages.
    pub(super) async fn read(&mut self, ids: Vec<MessageId>) -> Result<(), End> {
        let Some(phone) = self.handle.principal.phone() else { return Ok(()) };
        let known = self.recipient.as_ref().map_or_else(Vec::new, |recipient| recipient.window.sent(&ids));
        let (ids, unknown): (Vec<_>, Vec<_>) =
            ids.into_iter().partition(|id| known.iter().any(|subject| subject.id == *id));
        self.acknowledge(|window| window.ack_ids(&ids));
        self.shared.receipts.add(self.statuses(&known, phone, Status::Read), None);
        self.shared.receipts.room().await;
        self.look_up(&unknown, Status::Read).await
    }

    /// Has messages looked up that reached `status`: all of them, or none.
    pub(super) async fn look_up(&mut self, ids: &[MessageId], status: Status) -> Result<(), End> {
        let (count, at) = (ids.len() as u32, self.shared.clock.now());
        if self.look_ups.has(count) && self.shared.look_ups.add(&self.handle, ids, status, at).is_ok() {
            let _ = self.look_ups.spend(count);
            return Ok(());
        }
        let detail = format!("{count} of these messages must be looked up, and too many wait already; send it again");
        self.error(None, "too_many_reads", &detail, true).await
    }
}

/// Look-ups that a session may begin at once.
pub(super) fn burst(per_s: u32) -> u32 {
    per_s.max(IDS as u32)
}
