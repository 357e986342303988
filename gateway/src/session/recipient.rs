//! What a phone's session knows of its stream: how far it was sent, what of it is not acknowledged, and whether it stands
//! at the head. The rules of design section 5, without IO but for decoding.

use std::collections::VecDeque;
use std::sync::Arc;

use eshaar_model::{Cursor, Epoch, Lane, MessageId, Phone, StreamPosition, Timestamp};
use eshaar_schemas::Message;
use eshaar_store::StreamRow;

use crate::hub::{TICKS, Ticks};
use crate::message::{self, Before, Ready, Subject};
use crate::protocol::Reply;
use crate::shared::Shared;
use crate::wire::Frames;

/// What became of a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Sent,
    /// Its time has passed; the cursor moved on.
    Expired,
    /// Its sender took it back; the cursor moved on.
    Cancelled,
    /// To be found in the stream.
    Behind,
    /// Sent before.
    Dropped,
}

/// A message under way.
#[derive(Debug)]
struct Sent {
    position: StreamPosition,
    subject: Arc<Subject>,
    acked: bool,
}

/// What was sent and is not acknowledged, or stands behind something that is not; bounded.
#[derive(Debug)]
pub(crate) struct Window {
    sent: VecDeque<Sent>,
    limit: usize,
    /// Everything up to it was acknowledged.
    settled: Cursor,
}

/// A phone's session and its stream.
#[allow(clippy::struct_excessive_bools, reason = "each says something else of the session")]
pub(super) struct Recipient {
    pub(super) phone: Phone,
    /// Everything up to it was sent, or skipped because its time had passed or its sender had taken it back.
    pub(super) sent: Cursor,
    pub(super) window: Window,
    /// There may be something in the stream that was not sent; hints are dropped until the head is reached.
    pub(super) behind: bool,
    /// The last hints may have been missed: the stream is to be read. Hints are sent as long as each follows the one before.
    pub(super) doubt: bool,
    /// `caught_up` was sent.
    pub(super) greeted: bool,
    /// Whether acknowledgements move the phone's place: not in a session that began beyond what waits for it.
    pub(super) keeps_place: bool,
    /// The log's.
    pub(super) epoch: Epoch,
}

impl Window {
    pub(super) fn new(settled: Cursor, limit: usize) -> Self {
        Self { sent: VecDeque::new(), limit, settled }
    }

    /// How many more messages may be sent.
    pub(super) fn room(&self) -> usize {
        self.limit.saturating_sub(self.sent.len())
    }

    /// Everything up to it was acknowledged.
    pub(super) const fn settled(&self) -> Cursor {
        self.settled
    }

    /// Whether the stream may be read on. A window that was full first gets a good part of it free, so that a client that
    /// acknowledges one by one does not cost a read for each; after a second any room will do.
    pub(super) fn may_resume(&self, waiting_since: Ticks, now: Ticks) -> bool {
        let enough = if waiting_since == 0 || now.saturating_sub(waiting_since) >= TICKS { 1 } else { self.limit / 4 };
        self.sent.is_empty() || self.room() >= enough.max(1)
    }

    fn add(&mut self, position: StreamPosition, subject: Arc<Subject>) {
        self.sent.push_back(Sent { position, subject, acked: false });
    }

    /// Acknowledges everything sent up to `cursor`; returns what was not before.
    pub(super) fn ack_to(&mut self, cursor: Cursor) -> Vec<Arc<Subject>> {
        self.ack(|sent| cursor.covers(sent.position))
    }

    /// Acknowledges those of `ids` that were sent; returns what was not before.
    pub(super) fn ack_ids(&mut self, ids: &[MessageId]) -> Vec<Arc<Subject>> {
        self.ack(|sent| ids.contains(&sent.subject.id))
    }

    /// Those of `ids` that are under way.
    pub(super) fn sent(&self, ids: &[MessageId]) -> Vec<Arc<Subject>> {
        self.sent.iter().filter(|sent| ids.contains(&sent.subject.id)).map(|sent| Arc::clone(&sent.subject)).collect()
    }

    fn ack(&mut self, is_meant: impl Fn(&Sent) -> bool) -> Vec<Arc<Subject>> {
        let mut acked = Vec::new();
        for sent in self.sent.iter_mut().filter(|sent| !sent.acked) {
            if is_meant(sent) {
                sent.acked = true;
                acked.push(Arc::clone(&sent.subject));
            }
        }
        if !acked.is_empty() {
            self.settle();
        }
        acked
    }

    /// Lets go of what is acknowledged without one unacknowledged before it in its lane, or in an earlier epoch.
    fn settle(&mut self) {
        let mut blocked: [bool; 4] = [false; 4];
        let mut oldest: Option<Epoch> = None;
        let settled = &mut self.settled;
        self.sent.retain(|sent| {
            let lane = sent.position.lane.index();
            let is_free = !blocked[lane] && oldest.is_none_or(|epoch| sent.position.epoch <= epoch);
            if sent.acked && is_free {
                settled.advance(sent.position);
                return false;
            }
            if !sent.acked {
                blocked[lane] = true;
                oldest.get_or_insert(sent.position.epoch);
            }
            true
        });
        if self.sent.is_empty() {
            // An idle session holds no memory for what it was sent.
            self.sent = VecDeque::new();
        }
    }
}

impl Recipient {
    /// How far the phone has acknowledged, to be remembered.
    pub(super) fn place(&mut self) -> Option<Cursor> {
        if self.window.sent.is_empty() {
            // What was skipped behind the last message is settled with it.
            self.window.settled = self.window.settled.max(self.sent);
        }
        self.keeps_place.then_some(self.window.settled)
    }

    /// Sends a hint if it is the next of its lane; drops one that was sent; anything else makes the session read its
    /// stream.
    pub(super) fn take_hint(&mut self, shared: &Shared, ready: &Ready, now: Timestamp, frames: &mut Frames) -> Taken {
        if self.sent.covers(ready.position) {
            return Taken::Dropped;
        }
        self.behind |= self.window.room() == 0 || !self.is_next(ready);
        if self.behind {
            return Taken::Behind;
        }
        self.send(shared, ready, now, frames)
    }

    /// Whether everything before a message in its lane was sent. `sent` may stand further than the message before, where
    /// the session began at the head of the log's partition.
    fn is_next(&self, ready: &Ready) -> bool {
        let covered = self.sent.offset(ready.position.lane);
        ready.position.epoch == self.sent.epoch
            && match ready.before {
                Before::Unknown => false,
                Before::Nothing => true,
                Before::Offset(before) => covered.is_some_and(|covered| before <= covered),
            }
    }

    fn send(&mut self, shared: &Shared, ready: &Ready, now: Timestamp, frames: &mut Frames) -> Taken {
        self.sent.advance(ready.position);
        if shared.cancelled.takes(&ready.subject.sender, ready.subject.id, ready.subject.broadcast) {
            return Taken::Cancelled;
        }
        if ready.expired(now) {
            return Taken::Expired;
        }
        self.window.add(ready.position, Arc::clone(&ready.subject));
        frames.text(|bytes| ready.render(self.sent, bytes));
        Taken::Sent
    }

    /// Sends a row of the stream, unless its time has passed or its sender has taken it back.
    pub(super) async fn take_row(
        &mut self,
        shared: &Shared,
        row: &StreamRow,
        now: Timestamp,
        frames: &mut Frames,
    ) -> Taken {
        if row.expires_at.is_some_and(|at| at <= now) {
            self.sent.advance(row.position);
            return Taken::Expired;
        }
        match message::decode::<Message>(&shared.codecs, &row.value).await {
            Ok(message) => self.send(shared, &Ready::new(message, row.position, Before::Unknown), now, frames),
            Err(error) => {
                tracing::error!(message = %row.id, %error, "a message of a stream cannot be decoded");
                self.sent.advance(row.position);
                Taken::Dropped
            }
        }
    }

    /// Nothing is left in the stream that was not sent.
    pub(super) fn reach_head(&mut self, frames: &mut Frames) {
        (self.behind, self.doubt) = (false, false);
        if self.sent.epoch < self.epoch {
            // Nothing is left of earlier epochs: from here on hints are of this one.
            self.sent = Cursor::start(self.epoch);
        }
        if !self.greeted {
            self.greeted = true;
            let caught_up = Reply::CaughtUp { cursor: Some(self.sent) };
            frames.text(|bytes| caught_up.render(bytes));
        }
    }
}

/// The partition heads as a cursor: what a session that wants only what is new begins behind.
pub(super) fn at_heads(epoch: Epoch, heads: [Option<u64>; 4]) -> Cursor {
    let mut cursor = Cursor::start(epoch);
    for (lane, head) in Lane::ALL.into_iter().zip(heads) {
        cursor.offsets[lane.index()] = head;
    }
    cursor
}
