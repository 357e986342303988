//! Who is connected to this gateway: the half of each session that others reach it by, found by principal.
//!
//! A hint goes into its session's inbox, a small bounded one; a session whose inbox overflows reads its stream instead, or,
//! of what is in no stream, tells its client that something is missing.
//! Nothing here waits for a session.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use ahash::{AHashMap, RandomState};
use bytes::Bytes;
use eshaar_model::{Principal, Timestamp};
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::close::Close;
use crate::message::{Ready, Said};
use crate::typing::Typing;

/// A power of two. The timer goes through them one after the other.
pub(crate) const SHARDS: usize = 64;

/// Hints of what is in no stream that wait for one session at most: past it something is missing, so it is more.
const FRAMES: usize = 1_024;

/// Tenths of a second since the gateway started.
pub(crate) type Ticks = u32;

/// Ticks in a second.
pub(crate) const TICKS: u32 = 10;

const PING: u32 = 1;
const BEHIND: u32 = 1 << 1;
const LIVE: u32 = 1 << 2;
/// The timer has given up on a write.
const CUT: u32 = 1 << 3;
/// It may have been without an entry in presence: once it has one it reads its stream.
const ABSENT: u32 = 1 << 4;
const CLOSE_SHIFT: u32 = 16;

/// What a session is told by others.
#[derive(Clone, Debug)]
pub(crate) enum Hint {
    /// A message in the principal's stream.
    Message(Arc<Ready>),
    /// A message in a conversation of the principal, that is in no stream of theirs.
    Said(Arc<Said>),
    /// The whole JSON of a frame.
    Frame(About, Bytes),
    /// Somebody types.
    Typing(Arc<Typing>),
}

/// What a frame that is handed on whole is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    /// A one-way message that the principal sent.
    OneWay,
    /// A chat message that the principal sent.
    Chat,
    /// A conversation of the principal.
    Conversation,
}

/// What waits for a session.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    pub(crate) hints: Vec<Hint>,
    /// A message of the stream found no room.
    pub(crate) overflowed: bool,
    /// Something else, that is in no stream, found no room.
    pub(crate) missed: bool,
}

/// What others want a session to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Signals {
    pub(crate) ping: bool,
    pub(crate) behind: bool,
    pub(crate) close: Option<Close>,
}

/// The times of a session, kept for the shared timer; 0 where there is none.
#[derive(Debug, Default)]
pub(crate) struct Times {
    pub(crate) opened: AtomicU32,
    pub(crate) heard: AtomicU32,
    pub(crate) pinged: AtomicU32,
    /// When its entry in presence is to be refreshed.
    pub(crate) refresh_due: AtomicU32,
    /// When presence last said that the entry was there, or made it.
    pub(crate) confirmed: AtomicU32,
    /// Since when a write has been going on.
    pub(crate) writing: AtomicU32,
    /// Since when it has waited for room in the window.
    pub(crate) waiting: AtomicU32,
    /// Since when it has not read from its socket, because it has no room for look-ups.
    pub(crate) paused: AtomicU32,
    /// Since when messages are held for it, because the newest cancellations are not known.
    pub(crate) held: AtomicU32,
    /// The last rescue ([`Hub::rescue`]) that it took part in.
    pub(crate) rescued: AtomicU32,
    /// When its token runs out, in milliseconds since the Unix epoch.
    pub(crate) expires_ms: AtomicI64,
}

/// The half of a session that others reach it by.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) id: u64,
    pub(crate) principal: Principal,
    pub(crate) times: Times,
    /// Its look-ups of messages that are not settled ([`crate::look_ups`]).
    pub(crate) look_ups: AtomicUsize,
    inbox: Mutex<Inbox>,
    signals: AtomicU32,
    wake: Notify,
}

impl Handle {
    /// Waits until there is something in the inbox or a signal.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// From now on hints are kept for it.
    pub(crate) fn go_live(&self) {
        self.signals.fetch_or(LIVE, Ordering::AcqRel);
    }

    pub(crate) fn is_live(&self) -> bool {
        self.signals.load(Ordering::Acquire) & LIVE != 0
    }

    pub(crate) fn ping(&self) {
        self.signal(PING);
    }

    pub(crate) fn mark_absent(&self) {
        self.signals.fetch_or(ABSENT, Ordering::AcqRel);
    }

    pub(crate) fn take_absent(&self) -> bool {
        self.signals.fetch_and(!ABSENT, Ordering::AcqRel) & ABSENT != 0
    }

    /// It may have missed a hint: it is to read its stream.
    pub(crate) fn fall_behind(&self) {
        self.signal(BEHIND);
    }

    /// Something that is in no stream may have been lost on the way to it.
    pub(crate) fn miss(&self) {
        if self.is_live() {
            self.inbox.lock().missed = true;
            self.wake();
        }
    }

    /// It is to close; the first reason given stands.
    pub(crate) fn close(&self, close: Close) {
        let with_code =
            |signals: u32| (signals >> CLOSE_SHIFT == 0).then(|| signals | u32::from(close.code()) << CLOSE_SHIFT);
        // Fails where another reason came first.
        let _ = self.signals.fetch_update(Ordering::AcqRel, Ordering::Acquire, with_code);
        self.wake();
    }

    /// It is to drop its connection in the middle of a write, whatever it was closing for.
    pub(crate) fn cut(&self) {
        self.signal(CUT);
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.signals.load(Ordering::Acquire) & CUT != 0
    }

    /// Why it is to close, if it is.
    pub(crate) fn closing(&self) -> Option<Close> {
        Close::of_code((self.signals.load(Ordering::Acquire) >> CLOSE_SHIFT) as u16)
    }

    fn signal(&self, bit: u32) {
        self.signals.fetch_or(bit, Ordering::AcqRel);
        self.wake();
    }

    /// The signals, each taken once; a close stays.
    pub(crate) fn take_signals(&self) -> Signals {
        let signals = match self.signals.load(Ordering::Acquire) {
            none if none & (PING | BEHIND) == 0 => none,
            _ => self.signals.fetch_and(!(PING | BEHIND), Ordering::AcqRel),
        };
        Signals {
            ping: signals & PING != 0,
            behind: signals & BEHIND != 0,
            close: Close::of_code((signals >> CLOSE_SHIFT) as u16),
        }
    }

    pub(crate) fn take_inbox(&self) -> Inbox {
        std::mem::take(&mut *self.inbox.lock())
    }

    /// Puts a hint into the inbox, which holds at most `capacity` of messages of a stream.
    pub(crate) fn deliver(&self, hint: Hint, capacity: usize) {
        if !self.is_live() {
            return;
        }
        let is_of_stream = matches!(hint, Hint::Message(_));
        let capacity = if is_of_stream { capacity } else { FRAMES };
        let mut inbox = self.inbox.lock();
        if inbox.hints.len() < capacity {
            inbox.hints.push(hint);
        } else if is_of_stream {
            inbox.overflowed = true;
        } else {
            // That somebody types is worth no more than this.
            inbox.missed |= !matches!(hint, Hint::Typing(_));
        }
        drop(inbox);
        self.wake();
    }
}

/// The principal has as many sessions as it may, or the gateway has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

type Handles = SmallVec<[Arc<Handle>; 1]>;

/// Every session of this gateway.
pub(crate) struct Hub {
    hasher: RandomState,
    shards: Vec<Mutex<AHashMap<Principal, Handles>>>,
    count: AtomicUsize,
    next_id: AtomicU64,
    /// Number of the newest rescue in the high half, the tick it began at in the low.
    rescue: AtomicU64,
    emptied: Notify,
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            count: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            rescue: AtomicU64::new(0),
            emptied: Notify::new(),
        }
    }

    fn shard(&self, principal: &Principal) -> &Mutex<AHashMap<Principal, Handles>> {
        &self.shards[self.hasher.hash_one(principal) as usize % SHARDS]
    }

    /// Enters a session that begins at `now`, unless its principal has `limit` already.
    pub(crate) fn enter(
        &self,
        principal: Principal,
        expires_at: Option<Timestamp>,
        now: Ticks,
        limit: usize,
    ) -> Result<Arc<Handle>, TooMany> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let times = Times {
            opened: now.into(),
            heard: now.into(),
            // Their ids spread the pings of sessions that came in one wave, over 10 s.
            pinged: (now + (id % u64::from(10 * TICKS)) as Ticks).into(),
            rescued: self.rescue().0.into(),
            expires_ms: expires_at.map_or(0, Timestamp::as_millis).into(),
            ..Times::default()
        };
        let handle = Arc::new(Handle {
            id,
            principal: principal.clone(),
            times,
            look_ups: AtomicUsize::new(0),
            inbox: Mutex::default(),
            signals: AtomicU32::new(0),
            wake: Notify::new(),
        });
        match self.shard(&principal).lock().entry(principal) {
            Entry::Occupied(known) if known.get().len() >= limit => return Err(TooMany),
            Entry::Occupied(mut known) => known.get_mut().push(Arc::clone(&handle)),
            Entry::Vacant(free) => {
                free.insert(SmallVec::from_buf([Arc::clone(&handle)]));
            }
        }
        self.count.fetch_add(1, Ordering::AcqRel);
        Ok(handle)
    }

    /// A session is over.
    pub(crate) fn leave(&self, handle: &Handle) {
        let mut shard = self.shard(&handle.principal).lock();
        let Some(handles) = shard.get_mut(&handle.principal) else { return };
        let before = handles.len();
        handles.retain(|known| known.id != handle.id);
        let left = before - handles.len();
        if handles.is_empty() {
            shard.remove(&handle.principal);
        }
        drop(shard);
        if left > 0 && self.count.fetch_sub(left, Ordering::AcqRel) == left {
            self.emptied.notify_waiters();
        }
    }

    /// How many sessions there are.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Waits until there is none.
    pub(crate) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.count() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// The sessions of a principal.
    pub(crate) fn of(&self, principal: &Principal) -> Handles {
        self.shard(principal).lock().get(principal).cloned().unwrap_or_default()
    }

    /// Calls `visit` for each session of one shard, under its lock.
    pub(crate) fn each_of_shard(&self, shard: usize, mut visit: impl FnMut(&Arc<Handle>)) {
        for handle in self.shards[shard % SHARDS].lock().values().flatten() {
            visit(handle);
        }
    }

    /// Calls `visit` for each session, shard by shard.
    pub(crate) fn each(&self, mut visit: impl FnMut(&Arc<Handle>)) {
        for shard in 0..SHARDS {
            self.each_of_shard(shard, &mut visit);
        }
    }

    pub(crate) fn close_all(&self, close: Close) {
        self.each(|handle| handle.close(close));
    }

    /// Hints may have been lost: from `now` on every session reads its stream once, spread out by the timer.
    pub(crate) fn begin_rescue(&self, now: Ticks) {
        let (number, _) = self.rescue();
        self.rescue.store(u64::from(number.wrapping_add(1)) << 32 | u64::from(now), Ordering::Release);
    }

    /// Number of the newest rescue, and when it began.
    pub(crate) fn rescue(&self) -> (u32, Ticks) {
        let rescue = self.rescue.load(Ordering::Acquire);
        ((rescue >> 32) as u32, rescue as u32)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn acme() -> Principal {
        "acme".parse().unwrap()
    }

    #[test]
    fn a_principal_may_have_so_many_sessions_and_no_more() {
        let hub = Hub::new();
        let handles: Vec<_> = (0..3).map(|_| hub.enter(acme(), None, 0, 3).unwrap()).collect();
        assert_eq!(hub.enter(acme(), None, 0, 3).unwrap_err(), TooMany);
        hub.leave(&handles[1]);
        hub.leave(&handles[1]);
        assert_eq!((hub.count(), hub.of(&acme()).len()), (2, 2));
        assert!(hub.enter(acme(), None, 0, 3).is_ok());
    }

    #[test]
    fn an_inbox_is_bounded_and_says_when_it_overflowed() {
        let hub = Hub::new();
        let handle = hub.enter(acme(), None, 0, 3).unwrap();
        let hint = || Hint::Frame(About::OneWay, Bytes::from_static(b"{}"));
        handle.deliver(hint(), 2);
        assert!(handle.take_inbox().hints.is_empty(), "it has not said hello");
        handle.go_live();
        for _ in 0..FRAMES + 5 {
            handle.deliver(hint(), 2);
        }
        let inbox = handle.take_inbox();
        assert_eq!((inbox.hints.len(), inbox.overflowed, inbox.missed), (FRAMES, false, true));
        assert!(!handle.take_inbox().overflowed);
    }

    #[test]
    fn of_two_reasons_to_close_the_first_stands() {
        let hub = Hub::new();
        let handle = hub.enter(acme(), None, 0, 3).unwrap();
        handle.close(Close::TooSlow);
        handle.ping();
        handle.close(Close::ShuttingDown);
        let signals = handle.take_signals();
        assert_eq!((signals.ping, signals.close), (true, Some(Close::TooSlow)));
        assert!(!handle.take_signals().ping);
        assert_eq!(handle.closing(), Some(Close::TooSlow));
    }
}
