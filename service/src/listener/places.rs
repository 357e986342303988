//! Places for connections: so many with a valid credential, and, apart from them, so many without.
//!
//! A new connection gets a place among those without a credential: where all are taken, the oldest of them is closed for which
//! no handler works. So a client that opens many connections and holds them never keeps a health check out. One whose
//! credential is being checked is never closed: when thousands of phones come at once, each is served in its turn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::address::AddressPlace;
use crate::{Problem, metrics as names};

/// How often room is looked for while handlers work for all connections.
const FULL: Duration = Duration::from_millis(5);
/// When a client may come back that found no place, in seconds.
const RETRY_AFTER_S: u64 = 5;

/// The places of a listener.
pub(super) struct Places {
    max_authenticated: usize,
    max_unauthenticated: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    last: u64,
    /// By the order in which they came.
    unauthenticated: BTreeMap<u64, Arc<State>>,
    authenticated: BTreeMap<u64, Arc<State>>,
}

/// What is known of a connection, by its socket, its task and its requests.
pub(super) struct State {
    place: AtomicU64,
    /// Cancelled where it has to make room.
    pub(super) closed: CancellationToken,
    authenticated: AtomicBool,
    upgraded: AtomicBool,
    /// Requests that a handler works on. How long it does is up to the handler, not to the client.
    handled: AtomicU32,
    /// Requests whose answers are not written yet.
    answering: AtomicU32,
    answered: AtomicU32,
    idle_since: Mutex<Instant>,
    /// Places of addresses that it keeps until its socket is closed.
    held: Mutex<Vec<AddressPlace>>,
}

/// A connection, as handlers of its requests see it (an extension of the request).
#[derive(Clone)]
pub struct Connection {
    pub(super) state: Arc<State>,
    pub(super) places: Arc<Places>,
}

/// A request that a handler works on.
pub(super) struct Handling<'a>(&'a State);

/// A request that is being answered.
pub(super) struct Answering(Arc<State>);

impl State {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            place: AtomicU64::new(0),
            closed: CancellationToken::new(),
            authenticated: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            handled: AtomicU32::new(0),
            answering: AtomicU32::new(0),
            answered: AtomicU32::new(0),
            idle_since: Mutex::new(Instant::now()),
            held: Mutex::default(),
        })
    }

    pub(super) fn handle(&self) -> Handling<'_> {
        self.handled.fetch_add(1, Ordering::AcqRel);
        Handling(self)
    }

    fn is_handled(&self) -> bool {
        self.handled.load(Ordering::Acquire) > 0
    }

    pub(super) fn begin(self: &Arc<Self>) -> Answering {
        self.answering.fetch_add(1, Ordering::AcqRel);
        Answering(Arc::clone(self))
    }

    pub(super) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Acquire) > 0
    }

    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire) > 0
    }

    pub(super) fn idle_since(&self) -> Instant {
        *self.idle_since.lock()
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Ordering::Acquire)
    }

    pub(super) fn upgraded(&self) {
        self.upgraded.store(true, Ordering::Release);
    }

    pub(super) fn hold(&self, place: AddressPlace) {
        if place.is_counted() {
            self.held.lock().push(place);
        }
    }
}

impl Drop for Handling<'_> {
    fn drop(&mut self) {
        self.0.handled.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        *self.0.idle_since.lock() = Instant::now();
        self.0.answered.store(1, Ordering::Release);
        self.0.answering.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Connection {
    /// To be called when a request showed a valid credential: from then on the connection has a place apart from those
    /// of strangers.
    ///
    /// # Errors
    /// A problem to be answered, where all of those places are taken by connections that are in use.
    pub fn authenticated(&self) -> Result<(), Problem> {
        if self.state.authenticated.load(Ordering::Acquire) {
            return Ok(());
        }
        self.places.promote(&self.state)
    }
}

impl Places {
    pub(super) fn new(max_authenticated: usize, max_unauthenticated: usize) -> Arc<Self> {
        Arc::new(Self { max_authenticated, max_unauthenticated: max_unauthenticated.max(1), taken: Mutex::default() })
    }

    /// A place for a new connection. It waits only while handlers work for all connections that could make room.
    pub(super) async fn enter(&self) -> Arc<State> {
        loop {
            if let Some(state) = self.try_enter() {
                return state;
            }
            tokio::time::sleep(FULL).await;
        }
    }

    fn try_enter(&self) -> Option<Arc<State>> {
        let mut taken = self.taken.lock();
        if taken.unauthenticated.len() >= self.max_unauthenticated {
            let oldest =
                taken.unauthenticated.iter().find(|(_, state)| !state.is_handled()).map(|(place, _)| *place)?;
            if let Some(oldest) = taken.unauthenticated.remove(&oldest) {
                oldest.closed.cancel();
                metrics::counter!(names::HTTP_CONNECTIONS_CLOSED, "reason" => "room").increment(1);
            }
        }
        let state = State::new();
        taken.last += 1;
        let place = taken.last;
        state.place.store(place, Ordering::Release);
        taken.unauthenticated.insert(place, Arc::clone(&state));
        Some(state)
    }

    /// Closes the oldest connection without a credential: file descriptors have run out.
    pub(super) fn make_room(&self) {
        if let Some((_, oldest)) = self.taken.lock().unauthenticated.pop_first() {
            oldest.closed.cancel();
        }
    }

    pub(super) fn promote(&self, state: &Arc<State>) -> Result<(), Problem> {
        let mut taken = self.taken.lock();
        let place = state.place.load(Ordering::Acquire);
        if taken.authenticated.len() >= self.max_authenticated {
            let idle = taken.authenticated.iter().find(|(_, other)| !other.is_answering()).map(|(place, _)| *place);
            let Some(other) = idle.and_then(|place| taken.authenticated.remove(&place)) else {
                let detail = format!("{} connections are in use, which are the most", self.max_authenticated);
                let status = StatusCode::SERVICE_UNAVAILABLE;
                return Err(Problem::new(status, "too_many_connections", detail).retry_after(RETRY_AFTER_S));
            };
            other.closed.cancel();
            metrics::counter!(names::HTTP_CONNECTIONS_CLOSED, "reason" => "room").increment(1);
        }
        if taken.unauthenticated.remove(&place).is_some() {
            taken.authenticated.insert(place, Arc::clone(state));
        }
        state.authenticated.store(true, Ordering::Release);
        Ok(())
    }

    /// Gives a place back: the connection is closed, or has become a WebSocket.
    pub(super) fn leave(&self, state: &State) {
        let place = state.place.load(Ordering::Acquire);
        let mut taken = self.taken.lock();
        if taken.unauthenticated.remove(&place).is_none() {
            taken.authenticated.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(authenticated: usize, unauthenticated: usize) -> Arc<Places> {
        Places::new(authenticated, unauthenticated)
    }

    #[test]
    fn the_oldest_without_a_credential_makes_room_and_none_with_one_or_with_a_handler_at_work() {
        let places = places(1, 2);
        let enter = || places.try_enter().unwrap();
        let (known, oldest) = (enter(), enter());
        places.promote(&known).unwrap();
        let (newer, newest) = (enter(), enter());
        assert!(oldest.closed.is_cancelled());
        assert!(![&known, &newer, &newest].iter().any(|state| state.closed.is_cancelled()));
        let at_work = newer.handle();
        enter();
        assert!(newest.closed.is_cancelled() && !newer.closed.is_cancelled(), "a handler works for the older one");
        let last = enter();
        let both = last.handle();
        assert!(places.try_enter().is_none(), "handlers work for all");
        drop(at_work);
        enter();
        assert!(newer.closed.is_cancelled());
        drop(both);
        places.leave(&last);
        assert!(places.try_enter().is_some());
    }

    #[test]
    fn an_idle_connection_makes_room_for_another_with_a_credential_and_a_busy_one_does_not() {
        let places = places(1, 5);
        let [first, second, third] = [0; 3].map(|_| places.try_enter().unwrap());
        places.promote(&first).unwrap();
        places.promote(&second).unwrap();
        assert!(first.closed.is_cancelled());
        let busy = second.begin();
        assert_eq!(places.promote(&third).unwrap_err().code, "too_many_connections");
        drop(busy);
        places.promote(&third).unwrap();
        assert!(second.closed.is_cancelled());
    }
}
