//! How a phone's session reads its stream beside everything else that it does: the errand that waits for its turn and reads is a
//! task of its own, so that neither a slow store nor a slow client holds up the other, and what was read waits here until the
//! client has room for it. Only while a session is behind or in doubt does it have any of this.
//!
//! While a read is under way hints may come that it does not see. Those are kept, and taken when it has ended; past a bound
//! the stream is read once more.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use eshaar_model::{Cursor, Phone, Timestamp};
use eshaar_service::metrics as names;
use eshaar_store::{StoreError, StreamPage, StreamRow};
use tokio::task::JoinHandle;

use super::hello::{self, Beginning};
use super::recipient::{Recipient, Taken, Window};
use super::{End, Session};
use crate::admission::{Ahead, Class};
use crate::hub::{TICKS, Ticks};
use crate::message::Ready;
use crate::protocol::{Hello, Reply};
use crate::shared::Shared;
use crate::socket::Io;
use crate::wire::Frames;

/// Most rows of a page of a backlog.
const PAGE_ROWS: usize = 512;

/// Most bytes of a page of a backlog, as far as the rows before it tell.
const PAGE_BYTES: usize = 512 * 1024;

/// A further page is read when fewer rows than this wait for the client.
const LOW: usize = 256;

/// What a row takes besides its message, in bytes.
const ROW_BYTES: usize = 128;

/// Rows that a client has no room for are let go of after so many ticks, and read again when it has.
const KEPT: Ticks = 5 * TICKS;

/// Frames that are written together, in bytes.
const WRITE: usize = 64 * 1024;

/// Failures of a session's own reads, while those of others succeed, after which it is closed.
const FAILURES: u8 = 10;

/// What a read brought.
#[derive(Debug)]
pub(super) enum Read {
    Begun(Result<(Beginning, StreamPage), StoreError>),
    Page(Result<StreamPage, StoreError>),
    /// The task that read is gone.
    Lost,
}

/// A read under way. It ends with the session.
#[derive(Debug)]
struct Reading(JoinHandle<Read>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The state of a session that is not at the head of its stream, or may not be.
#[derive(Debug)]
pub(super) struct Catching {
    reading: Option<Reading>,
    /// Until the session has begun.
    hello: Option<Hello>,
    /// Everything up to it was read.
    read_to: Cursor,
    /// What was read and not sent.
    rows: VecDeque<StreamRow>,
    held: Option<Ahead>,
    /// Everything that the client had acknowledged when the last read began.
    settled: Option<Cursor>,
    row_bytes: usize,
    /// Whether the last page had more behind it.
    more: bool,
    /// The last page had nothing behind it, and nothing says that it was read too early.
    ended: bool,
    /// The read under way may have begun too early.
    again: bool,
    /// Hints that came since the read under way began.
    late: Vec<Arc<Ready>>,
    failures: u8,
    /// Reads of all sessions that had succeeded when one of this session failed.
    successes: u64,
}

impl Catching {
    fn new(read_to: Cursor, hello: Option<Hello>) -> Self {
        Self {
            reading: None,
            hello,
            read_to,
            rows: VecDeque::new(),
            held: None,
            settled: None,
            row_bytes: 4 * ROW_BYTES,
            more: false,
            ended: false,
            again: false,
            late: Vec::new(),
            failures: 0,
            successes: 0,
        }
    }

    /// What a session that said hello is to begin with.
    pub(super) fn beginning(hello: Hello) -> Box<Self> {
        Box::new(Self::new(hello::OLDEST, Some(hello)))
    }

    /// Hints may have been missed: a read that began before now does not do.
    pub(super) const fn doubt(&mut self) {
        self.again = true;
        self.ended = false;
    }

    /// Keeps a hint that the read under way, or the last, may not have seen; at most `limit`.
    pub(super) fn keep(&mut self, hint: &Arc<Ready>, limit: usize) {
        // The next read sees it.
        if self.reading.is_none() && !self.ended {
            return;
        }
        if self.late.len() < limit {
            self.late.push(Arc::clone(hint));
        } else {
            self.doubt();
        }
    }

    fn read(&mut self, task: impl Future<Output = Read> + Send + 'static) {
        (self.again, self.ended) = (false, false);
        self.late.clear();
        self.reading = Some(Reading(tokio::spawn(task)));
    }

    fn take(&mut self, shared: &Shared, page: StreamPage) {
        let bytes: usize = page.rows.iter().map(|row| row.value.len() + ROW_BYTES).sum();
        if !page.rows.is_empty() {
            self.row_bytes = bytes / page.rows.len();
        }
        for row in &page.rows {
            self.read_to.advance(row.position);
        }
        let before: usize = self.rows.iter().map(|row| row.value.len() + ROW_BYTES).sum();
        self.rows.extend(page.rows);
        self.held = (!self.rows.is_empty()).then(|| shared.admission.hold_ahead(before + bytes));
        self.more = page.more;
        self.ended = !page.more && !self.again;
        self.failures = 0;
    }

    /// Lets go of rows that the client has no room for.
    fn forget_rows(&mut self, sent: Cursor) {
        (self.rows, self.held) = (VecDeque::new(), None);
        (self.read_to, self.more, self.ended) = (sent, true, false);
    }
}

/// The end of the read under way; never while there is none. Cancel-safe.
pub(super) async fn read(catching: &mut Option<Box<Catching>>) -> Read {
    std::future::poll_fn(|context| poll_read(catching.as_deref_mut(), context)).await
}

fn poll_read(catching: Option<&mut Catching>, context: &mut Context<'_>) -> Poll<Read> {
    let Some(catching) = catching else { return Poll::Pending };
    let Some(Reading(task)) = &mut catching.reading else { return Poll::Pending };
    let read = std::task::ready!(Pin::new(task).poll(context));
    catching.reading = None;
    Poll::Ready(read.unwrap_or(Read::Lost))
}

/// Reads a page when its turn has come.
async fn page(shared: Arc<Shared>, of: (Phone, Cursor, usize), class: Class) -> Read {
    let (phone, after, limit) = of;
    let turn = shared.admission.turn(class).await;
    let page = shared.streams.read(phone, after, limit).await;
    turn.end(&page, page.as_ref().map_or(0, |page| page.rows.len()));
    Read::Page(page)
}

impl<S: Io> Session<S> {
    /// Takes what a read brought. A store that is overloaded or does not answer is asked again, when the next turn comes.
    pub(super) async fn take_read(&mut self, read: Read) -> Result<(), End> {
        let shared = Arc::clone(&self.shared);
        let Some(catching) = &mut self.catching else { return Ok(()) };
        match read {
            Read::Begun(Ok((beginning, page))) => {
                let Some(phone) = self.handle.principal.phone() else { return Ok(()) };
                let mut frames = Frames::new();
                if let Some(reason) = beginning.gap {
                    frames.text(|bytes| Reply::Gap { reason, oldest: beginning.cursor }.render(bytes));
                }
                self.recipient = Some(Recipient {
                    phone,
                    sent: beginning.cursor,
                    window: Window::new(beginning.cursor, shared.options.window),
                    behind: true,
                    doubt: false,
                    greeted: false,
                    keeps_place: beginning.keeps_place,
                    epoch: shared.epoch(),
                });
                (catching.hello, catching.read_to) = (None, beginning.cursor);
                catching.settled = Some(beginning.cursor);
                catching.take(&shared, page);
                self.write(frames).await
            }
            Read::Page(Ok(page)) => {
                catching.take(&shared, page);
                Ok(())
            }
            Read::Begun(Err(error)) | Read::Page(Err(error)) => self.read_failed(&error),
            Read::Lost => Err(End::Close(crate::close::Close::InternalError, None)),
        }
    }

    /// Closes the session only where its own reads fail while those of others succeed, or the store is closed.
    fn read_failed(&mut self, error: &StoreError) -> Result<(), End> {
        let successes = self.shared.admission.successes();
        let Some(catching) = &mut self.catching else { return Ok(()) };
        match error {
            StoreError::Overloaded { .. } | StoreError::Resting(_) => {}
            StoreError::Engine { .. } => {
                catching.failures += u8::from(catching.successes != successes);
                catching.successes = successes;
                if catching.failures >= FAILURES {
                    return Err(self.failed("read the stream", error));
                }
            }
            StoreError::Refused { .. } | StoreError::Closed => return Err(self.failed("read the stream", error)),
        }
        tracing::debug!(session = self.handle.id, %error, "a read of a stream failed; it waits for another turn");
        Ok(())
    }

    /// Sends what was read, as far as the client has room, and begins the next read where one is needed.
    pub(super) async fn catch_up(&mut self) -> Result<(), End> {
        let (shared, handle) = (Arc::clone(&self.shared), Arc::clone(&self.handle));
        loop {
            if !shared.cancelled.is_fresh() {
                self.hold();
                return Ok(());
            }
            let Some(recipient) = &mut self.recipient else {
                self.begin_stream();
                return Ok(());
            };
            let sent = recipient.sent;
            let catching = self.catching.get_or_insert_with(|| Box::new(Catching::new(sent, None)));
            let mut frames = Frames::new();
            send_rows(&shared, recipient, catching, &mut frames).await;
            let has_more = !catching.rows.is_empty() && recipient.window.room() > 0;
            let late = catching.settle(recipient, &mut frames);
            let is_over = late.is_some();
            if let Some(late) = late {
                self.catching = None;
                self.send_late(late, &mut frames);
            }
            self.write(frames).await?;
            if handle.closing().is_some() {
                return Ok(());
            }
            let is_behind = self.recipient.as_ref().is_some_and(|recipient| recipient.behind || recipient.doubt);
            if is_over && !is_behind {
                return Ok(());
            }
            if !has_more && !is_over {
                self.read_on();
                return Ok(());
            }
        }
    }

    fn begin_stream(&mut self) {
        let (Some(catching), Some(phone)) = (&mut self.catching, self.handle.principal.phone()) else { return };
        if catching.reading.is_some() {
            return;
        }
        let Some(hello) = catching.hello.clone() else { return };
        let shared = Arc::clone(&self.shared);
        metrics::counter!(names::GATEWAY_STREAM_READS, "cause" => "hello").increment(1);
        catching.read(async move {
            // A cursor is a receipt for what was sent, not for what was left out because it was cancelled.
            shared.cancelled.fresh().await;
            Read::Begun(hello::begin(&shared, phone, &hello).await)
        });
    }

    /// Begins the next read, unless there is enough to send, or the client has too little room.
    fn read_on(&mut self) {
        let (shared, times) = (&self.shared, &self.handle.times);
        let (Some(recipient), Some(catching)) = (&mut self.recipient, &mut self.catching) else { return };
        let (now, since) = (shared.ticks(), times.waiting.load(Relaxed));
        let is_full = recipient.window.room() == 0;
        if !catching.rows.is_empty() && is_full && since != 0 && now.saturating_sub(since) >= KEPT {
            catching.forget_rows(recipient.sent);
        }
        if catching.reading.is_some() || (catching.ended && !catching.rows.is_empty()) || catching.rows.len() >= LOW {
            wait_for_room(times, is_full, now);
            return;
        }
        // Rows are read ahead only for a client that acknowledged something since the last read: a client that never reads its
        // socket costs no memory beyond its window.
        let settled = recipient.window.settled();
        let acknowledges = catching.settled != Some(settled);
        let is_stuck = !catching.rows.is_empty() && !acknowledges;
        if is_stuck || (catching.rows.is_empty() && !recipient.window.may_resume(since, now)) {
            wait_for_room(times, true, now);
            return;
        }
        times.waiting.store(0, Relaxed);
        let wanted = if catching.more && acknowledges {
            PAGE_ROWS.min(PAGE_BYTES / catching.row_bytes.max(1)).max(16)
        } else {
            shared.options.page.min(recipient.window.room()).max(1)
        };
        let limit = if shared.admission.has_room_ahead(wanted * catching.row_bytes) {
            wanted
        } else if catching.rows.is_empty() {
            recipient.window.room().min(shared.options.page).max(1)
        } else {
            return;
        };
        let (class, cause) = match (catching.more, recipient.behind) {
            (true, _) => (Class::Later, if recipient.greeted { "gap" } else { "hello" }),
            (false, true) => (Class::Gap, if recipient.greeted { "gap" } else { "hello" }),
            (false, false) => (Class::Later, "check"),
        };
        metrics::counter!(names::GATEWAY_STREAM_READS, "cause" => cause).increment(1);
        if catching.rows.is_empty() {
            // What a hint brought meanwhile need not be read.
            catching.read_to = recipient.sent.max(catching.read_to);
        }
        catching.settled = Some(settled);
        catching.read(page(Arc::clone(shared), (recipient.phone, catching.read_to, limit), class));
    }

    /// Sends a message of the stream, if it is the next; a session that is reading its stream keeps it for the end of that.
    pub(super) fn send_hint(&mut self, ready: &Arc<Ready>, now: Timestamp, frames: &mut Frames) {
        let (shared, meters) = (&self.shared, &self.shared.meters);
        let taken = match &mut self.recipient {
            Some(recipient) => recipient.take_hint(shared, ready, now, frames),
            None => Taken::Behind,
        };
        match taken {
            Taken::Sent => {
                meters.sent_by_hint.increment(1);
                meters.delivery_seconds.record(now.millis_since(ready.accepted_at).max(0) as f64 / 1_000.0);
            }
            Taken::Expired => meters.expired.increment(1),
            Taken::Cancelled => meters.cancelled.increment(1),
            Taken::Behind => {
                if let Some(catching) = &mut self.catching {
                    catching.keep(ready, shared.options.hints);
                }
            }
            Taken::Dropped => {}
        }
    }

    /// Takes the hints that came during the last read.
    fn send_late(&mut self, late: Vec<Arc<Ready>>, frames: &mut Frames) {
        let now = self.shared.clock.now();
        for ready in late {
            self.send_hint(&ready, now, frames);
        }
    }
}

impl Catching {
    /// At the head: says so, and gives back the hints that came meanwhile.
    fn settle(&mut self, recipient: &mut Recipient, frames: &mut Frames) -> Option<Vec<Arc<Ready>>> {
        if !self.rows.is_empty() {
            // Hints wait until what was read before them is sent.
            recipient.behind = true;
            return None;
        }
        self.held = None;
        if !self.ended {
            return None;
        }
        recipient.reach_head(frames);
        Some(std::mem::take(&mut self.late))
    }
}

/// The timer wakes a session that waits for room.
fn wait_for_room(times: &crate::hub::Times, is_full: bool, now: Ticks) {
    if !is_full {
        times.waiting.store(0, Relaxed);
    } else if times.waiting.load(Relaxed) == 0 {
        times.waiting.store(now, Relaxed);
    }
}

/// Sends what was read, until the window is full or the frames are as many as are written together.
async fn send_rows(shared: &Shared, recipient: &mut Recipient, catching: &mut Catching, frames: &mut Frames) {
    let now = shared.clock.now();
    while frames.as_bytes().len() < WRITE
        && recipient.window.room() > 0
        && shared.cancelled.is_fresh()
        && let Some(row) = catching.rows.pop_front()
    {
        // A hint may have brought it while it was read.
        if !recipient.sent.covers(row.position) {
            let taken = recipient.take_row(shared, &row, now, frames).await;
            match taken {
                Taken::Sent => shared.meters.sent_by_replay.increment(1),
                Taken::Cancelled => shared.meters.cancelled.increment(1),
                Taken::Expired => shared.meters.expired.increment(1),
                Taken::Behind | Taken::Dropped => {}
            }
        }
    }
}
