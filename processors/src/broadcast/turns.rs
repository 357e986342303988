//! Turns of broadcasts: whose chunk is sent next. Businesses take turns, however many broadcasts each has, and a turn is given
//! when there is [`Room`] for the chunk. Who waits holds none of the places in which chunks are sent.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use eshaar_model::BusinessId;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::sleep;

use super::room::Room;

/// Wait before it is looked again whether there is room.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A place in which a chunk is sent, until it is dropped.
pub(super) struct Turn {
    _place: OwnedSemaphorePermit,
}

/// Waits for a turn.
struct Waiter {
    count: u64,
    turn: oneshot::Sender<Turn>,
}

/// Those that wait, by business; businesses in the order of their turns.
#[derive(Default)]
struct Line {
    order: VecDeque<BusinessId>,
    of: HashMap<BusinessId, VecDeque<Waiter>>,
}

impl Line {
    fn push(&mut self, business: &BusinessId, waiter: Waiter) {
        let waiters = self.of.entry(business.clone()).or_default();
        if waiters.is_empty() {
            self.order.push_back(business.clone());
        }
        waiters.push_back(waiter);
    }

    /// The next of the business whose turn it is, which goes to the end of the line.
    fn pop(&mut self) -> Option<Waiter> {
        let business = self.order.pop_front()?;
        let waiters = self.of.get_mut(&business)?;
        let next = waiters.pop_front();
        if waiters.is_empty() {
            self.of.remove(&business);
        } else {
            self.order.push_back(business);
        }
        next
    }
}

/// Gives turns.
pub(super) struct Turns {
    room: Room,
    places: Arc<Semaphore>,
    line: Mutex<Line>,
    arrived: Notify,
}

impl Turns {
    /// At most `at_once` chunks are sent at a time.
    pub(super) fn new(room: Room, at_once: usize) -> Self {
        let places = Arc::new(Semaphore::new(at_once.max(1)));
        Self { room, places, line: Mutex::default(), arrived: Notify::new() }
    }

    /// Asks for a turn for a chunk of `count` messages. It is given by [`Turns::give`]; who waits no longer drops the
    /// receiver.
    pub(super) fn ask(&self, business: &BusinessId, count: u64) -> oneshot::Receiver<Turn> {
        let (turn, given) = oneshot::channel();
        self.line.lock().push(business, Waiter { count, turn });
        self.arrived.notify_one();
        given
    }

    /// Of a chunk that was given a turn, so many messages are not sent.
    pub(super) async fn give_back(&self, count: u64) {
        self.room.give_back(count).await;
    }

    /// Gives turns for ever.
    pub(super) async fn give(&self) {
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return };
            let waiter = self.next().await;
            if self.wait_for_room(&waiter).await && waiter.turn.send(Turn { _place: place }).is_err() {
                self.room.give_back(waiter.count).await;
            }
        }
    }

    async fn next(&self) -> Waiter {
        loop {
            let next = self.line.lock().pop();
            match next {
                Some(waiter) if !waiter.turn.is_closed() => return waiter,
                Some(_) => {}
                None => self.arrived.notified().await,
            }
        }
    }

    /// Returns false if the waiter is gone.
    async fn wait_for_room(&self, waiter: &Waiter) -> bool {
        while !self.room.take(waiter.count).await {
            sleep(LOOK_AGAIN).await;
            if waiter.turn.is_closed() {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn businesses_take_turns_however_many_each_waits_with() {
        let mut line = Line::default();
        let mut receivers = Vec::new();
        for (business, count) in [("a", 1), ("a", 2), ("a", 3), ("b", 11), ("c", 21), ("c", 22)] {
            let (turn, given) = oneshot::channel();
            line.push(&business.parse().unwrap(), Waiter { count, turn });
            receivers.push(given);
        }
        let order: Vec<_> = std::iter::from_fn(|| line.pop()).map(|waiter| waiter.count).collect();
        assert_eq!(order, [1, 11, 21, 2, 22, 3]);
        assert!(line.of.is_empty() && line.order.is_empty());
    }
}
