//! A bulkhead: so many operations on a dependency at once, a bounded number that wait for their turn for a bounded time,
//! and the rest refused at once (R6.7). So a dependency that is slow holds up what needs it, and nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, counter, gauge};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::metrics::{BULKHEAD_SHED, BULKHEAD_UNDER_WAY, BULKHEAD_WAITING};

/// The bounds of a bulkhead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The dependency, as metrics and errors name it.
    pub dependency: &'static str,
    /// Operations at once; at least 1.
    pub at_once: usize,
    /// Operations that wait for their turn.
    pub waiting: usize,
    /// Longest wait.
    pub patience: Duration,
}

/// An operation was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shed {
    /// As many wait as may.
    #[error("{dependency}: {at_once} operations are under way and {waiting} wait, which are the most")]
    Full {
        /// The dependency.
        dependency: &'static str,
        /// Operations at once.
        at_once: usize,
        /// Operations that wait.
        waiting: usize,
    },
    /// Its turn did not come in time.
    #[error("{dependency}: an operation's turn did not come within {} ms; {waiting} wait", patience.as_millis())]
    TooLong {
        /// The dependency.
        dependency: &'static str,
        /// Longest wait.
        patience: Duration,
        /// Operations that wait.
        waiting: usize,
    },
    /// It is closed.
    #[error("{dependency} is being closed")]
    Closed {
        /// The dependency.
        dependency: &'static str,
    },
}

impl Shed {
    /// How many waited.
    pub const fn waiting(&self) -> usize {
        match self {
            Self::Full { waiting, .. } | Self::TooLong { waiting, .. } => *waiting,
            Self::Closed { .. } => 0,
        }
    }
}

/// Bounds operations on one dependency, in this process.
#[derive(Debug)]
pub struct Bulkhead {
    bounds: Bounds,
    turns: Semaphore,
    waiting: AtomicUsize,
    meters: Meters,
}

struct Meters {
    under_way: Gauge,
    waiting: Gauge,
    shed: Counter,
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meters")
    }
}

/// An operation that is under way; its turn ends when this is dropped.
#[must_use]
#[derive(Debug)]
pub struct Turn<'a> {
    _permit: SemaphorePermit<'a>,
    under_way: &'a Gauge,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.under_way.decrement(1.0);
    }
}

/// Counts one that waits, however its wait ends.
struct Waits<'a>(&'a Bulkhead);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.meters.waiting.decrement(1.0);
    }
}

impl Bulkhead {
    /// Nobody is in it yet.
    pub fn new(bounds: Bounds) -> Self {
        let dependency = bounds.dependency;
        let meters = Meters {
            under_way: gauge!(BULKHEAD_UNDER_WAY, "dependency" => dependency),
            waiting: gauge!(BULKHEAD_WAITING, "dependency" => dependency),
            shed: counter!(BULKHEAD_SHED, "dependency" => dependency),
        };
        let turns = Semaphore::new(bounds.at_once.clamp(1, Semaphore::MAX_PERMITS));
        Self { bounds, turns, waiting: AtomicUsize::new(0), meters }
    }

    /// Its turn for one operation, in the order of asking.
    ///
    /// # Errors
    /// When as many wait as may, its turn does not come in time, or it is closed.
    pub async fn enter(&self) -> Result<Turn<'_>, Shed> {
        let permit = match self.turns.try_acquire() {
            Ok(permit) => permit,
            Err(_) => self.wait().await.inspect_err(|shed| {
                if !matches!(shed, Shed::Closed { .. }) {
                    self.meters.shed.increment(1);
                }
            })?,
        };
        self.meters.under_way.increment(1.0);
        Ok(Turn { _permit: permit, under_way: &self.meters.under_way })
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        self.turns.close();
    }

    async fn wait(&self) -> Result<SemaphorePermit<'_>, Shed> {
        let Bounds { dependency, at_once, waiting: most, patience } = self.bounds;
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        self.meters.waiting.increment(1.0);
        let _waits = Waits(self);
        if waiting >= most {
            return Err(Shed::Full { dependency, at_once, waiting });
        }
        match timeout(patience, self.turns.acquire()).await {
            Ok(permit) => permit.map_err(|_| Shed::Closed { dependency }),
            Err(_) => Err(Shed::TooLong { dependency, patience, waiting: self.waiting.load(Ordering::Relaxed) - 1 }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn bulkhead() -> Arc<Bulkhead> {
        let patience = Duration::from_secs(2);
        Arc::new(Bulkhead::new(Bounds { dependency: "test", at_once: 2, waiting: 1, patience }))
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_let_in_so_many_wait_and_the_rest_is_refused_at_once() {
        let bulkhead = bulkhead();
        let first = bulkhead.enter().await.unwrap();
        let _second = bulkhead.enter().await.unwrap();
        let third = tokio::spawn({
            let bulkhead = Arc::clone(&bulkhead);
            async move { bulkhead.enter().await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!(bulkhead.enter().await.unwrap_err(), Shed::Full { dependency: "test", at_once: 2, waiting: 1 });
        drop(first);
        third.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_may_be_and_who_gives_up_waits_no_more() {
        let bulkhead = bulkhead();
        let _turns = (bulkhead.enter().await.unwrap(), bulkhead.enter().await.unwrap());
        assert!(timeout(Duration::from_secs(1), bulkhead.enter()).await.is_err());
        let shed = bulkhead.enter().await.unwrap_err();
        assert_eq!(shed, Shed::TooLong { dependency: "test", patience: Duration::from_secs(2), waiting: 0 });
        bulkhead.close();
        assert_eq!(bulkhead.enter().await.unwrap_err(), Shed::Closed { dependency: "test" });
    }
}
