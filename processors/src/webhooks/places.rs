//! A fixed number of places, shared fairly by businesses: no business can hold up another by taking all of them.
//!
//! A business that holds *k* places gets another one only while more than 4 *k* places are free: the first gets a fifth of all,
//! each one after it less, and a dozen that take as much as they can leave a place for one that holds none. Requests to
//! endpoints that are slow, or have not answered in time yet, get at most half of all places: the other half is for those
//! that do. Whoever waits is served in the order of what its business holds; within a business, in the order of arrival.

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::AHashMap;
use eshaar_model::BusinessId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// A business gets one more place only while so many times as many are free as it holds.
const FREE_FOR_EACH: usize = 4;

/// Places.
pub(super) struct Places {
    slow: usize,
    inner: Mutex<Inner>,
}

struct Inner {
    free: usize,
    /// How many places slow endpoints hold.
    slow: usize,
    held: AHashMap<BusinessId, usize>,
    waiting: AHashMap<BusinessId, Waiting>,
    arrivals: u64,
}

/// The requests of a business that wait.
#[derive(Default)]
struct Waiting {
    quick: VecDeque<Waiter>,
    slow: VecDeque<Waiter>,
}

struct Waiter {
    arrival: u64,
    given: oneshot::Sender<Place>,
}

/// A place; it is free again when this is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    business: BusinessId,
    slow: bool,
}

impl Places {
    /// So many places.
    pub(super) fn new(total: usize) -> Arc<Self> {
        let inner =
            Inner { free: total, slow: 0, held: AHashMap::default(), waiting: AHashMap::default(), arrivals: 0 };
        Arc::new(Self { slow: (total / 2).max(1), inner: Mutex::new(inner) })
    }

    /// Waits for a place. Cancel-safe: a place that nobody takes is free again.
    pub(super) async fn take(self: &Arc<Self>, business: &BusinessId, slow: bool) -> Place {
        let (given, place) = oneshot::channel();
        {
            let mut inner = self.inner.lock();
            inner.arrivals += 1;
            let waiter = Waiter { arrival: inner.arrivals, given };
            let waiting = inner.waiting.entry(business.clone()).or_default();
            if slow { waiting.slow.push_back(waiter) } else { waiting.quick.push_back(waiter) }
        }
        self.hand_out();
        place.await.unwrap_or_else(|_| unreachable!("a waiter is dropped only after it was given a place"))
    }

    /// Whether somebody waits for a place.
    pub(super) fn is_wanted(&self) -> bool {
        !self.inner.lock().waiting.is_empty()
    }

    fn hand_out(self: &Arc<Self>) {
        let mut given = Vec::new();
        {
            let mut inner = self.inner.lock();
            while let Some((business, slow, waiter)) = inner.next(self.slow) {
                given.push((waiter, Place { places: Arc::clone(self), business, slow }));
            }
        }
        // Not under the lock: a place whose waiter is gone is freed here.
        for (waiter, place) in given {
            drop(waiter.given.send(place));
        }
    }
}

impl Inner {
    /// Takes the next waiter that may have a place out of the queues, and gives it one.
    fn next(&mut self, most_slow: usize) -> Option<(BusinessId, bool, Waiter)> {
        let slow_may = self.slow < most_slow;
        let admitted = self.waiting.iter().filter_map(|(business, waiting)| {
            let held = self.held.get(business).copied().unwrap_or(0);
            let quick = waiting.quick.front().map(|waiter| (waiter.arrival, false));
            let slow = waiting.slow.front().filter(|_| slow_may).map(|waiter| (waiter.arrival, true));
            // What answers in time first.
            let (arrival, slow) = quick.or(slow)?;
            (held * FREE_FOR_EACH < self.free).then(|| (held, arrival, slow, business.clone()))
        });
        let (_, _, slow, business) = admitted.min_by_key(|(held, arrival, ..)| (*held, *arrival))?;
        let waiting = self.waiting.get_mut(&business)?;
        let waiter = if slow { waiting.slow.pop_front() } else { waiting.quick.pop_front() }?;
        if waiting.quick.is_empty() && waiting.slow.is_empty() {
            self.waiting.remove(&business);
        }
        self.free -= 1;
        self.slow += usize::from(slow);
        *self.held.entry(business.clone()).or_default() += 1;
        Some((business, slow, waiter))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut inner = self.places.inner.lock();
            inner.free += 1;
            inner.slow -= usize::from(self.slow);
            if let Some(held) = inner.held.get_mut(&self.business) {
                *held -= 1;
                if *held == 0 {
                    inner.held.remove(&self.business);
                }
            }
        }
        self.places.hand_out();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn business(number: usize) -> BusinessId {
        format!("business-{number}").parse().unwrap()
    }

    /// A place for the business, if there is one now.
    fn now(places: &Arc<Places>, number: usize, slow: bool) -> Option<Place> {
        places.take(&business(number), slow).now_or_never()
    }

    fn as_many_as_it_gets(places: &Arc<Places>, number: usize, slow: bool) -> Vec<Place> {
        std::iter::from_fn(|| now(places, number, slow)).collect()
    }

    #[test]
    fn one_business_gets_a_fifth_and_a_dozen_leave_room_for_one_that_has_none() {
        let places = Places::new(64);
        let held: Vec<_> = (0..12).map(|number| as_many_as_it_gets(&places, number, false)).collect();
        assert_eq!((held[0].len(), held[1].len()), (13, 11));
        assert!(held.iter().all(|held| !held.is_empty()));
        assert!(now(&places, 99, false).is_some());
        drop(held);
        assert_eq!(as_many_as_it_gets(&places, 0, false).len(), 13);
    }

    #[test]
    fn slow_endpoints_of_any_number_of_businesses_leave_half_of_the_places() {
        let places = Places::new(64);
        let slow: Vec<Place> = (0..100).flat_map(|number| as_many_as_it_gets(&places, number, true)).collect();
        assert_eq!(slow.len(), 32);
        let quick: Vec<Place> = (100..132).filter_map(|number| now(&places, number, false)).collect();
        assert_eq!(quick.len(), 32);
    }

    #[tokio::test]
    async fn a_place_that_is_freed_goes_to_whose_business_holds_least() {
        let places = Places::new(4);
        let mut held: Vec<Place> = (0..4).map(|number| now(&places, number, false).unwrap()).collect();
        let waits = |number| {
            let places = Arc::clone(&places);
            tokio::spawn(async move { places.take(&business(number), false).await })
        };
        let greedy = waits(0);
        tokio::task::yield_now().await;
        let modest = waits(9);
        tokio::task::yield_now().await;
        held.pop();
        let place = modest.await.unwrap();
        assert!(!greedy.is_finished());
        held.clear();
        drop(place);
        drop(greedy.await.unwrap());
        assert!(!places.is_wanted());
        assert_eq!(places.inner.lock().free, 4);
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_takes_no_place_with_it() {
        let places = Places::new(1);
        let held = now(&places, 0, false).unwrap();
        assert!(now(&places, 1, false).is_none());
        drop(held);
        assert!(now(&places, 2, false).is_some());
    }
}
