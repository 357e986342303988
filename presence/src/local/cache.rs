//! A cache within one process, bounded by the bytes it holds.

use std::sync::atomic::{AtomicU64, Ordering};

use ahash::RandomState;
use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{Clock, Timestamp};
use moka::ops::compute::Op;

use crate::PresenceError;
use crate::cache::{Cache, Fill, Key, LEASE_TTL, Lease, Lookup, MAX_VALUE, VALUE_TTL};

/// Bytes that it holds at most.
const CAPACITY: u64 = 64 * 1024 * 1024;

/// What an entry takes besides its value, about.
const ENTRY: usize = 160;

/// A cache within one process.
pub struct LocalCache {
    clock: Clock,
    entries: moka::sync::Cache<Key, Entry, RandomState>,
    generation: AtomicU64,
    tokens: AtomicU64,
}

#[derive(Clone)]
struct Entry {
    generation: u64,
    until: Timestamp,
    holds: Holds,
}

#[derive(Clone)]
enum Holds {
    Value(Bytes),
    Lease(u64),
}

impl LocalCache {
    /// An empty one. Values lapse by `clock`.
    pub fn new(clock: Clock) -> Self {
        let entries = moka::sync::Cache::builder()
            .max_capacity(CAPACITY)
            .time_to_live(VALUE_TTL)
            .weigher(|_: &Key, entry: &Entry| match &entry.holds {
                Holds::Value(value) => (ENTRY + value.len()) as u32,
                Holds::Lease(_) => ENTRY as u32,
            })
            .build_with_hasher(RandomState::new());
        Self { clock, entries, generation: AtomicU64::new(0), tokens: AtomicU64::new(0) }
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn look(&self, key: &Key) -> Lookup {
        let (now, generation) = (self.clock.now(), self.generation());
        let holds = |entry: &Entry| entry.generation == generation && entry.until > now;
        if let Some(entry) = self.entries.get(key).filter(holds) {
            return shown(entry.holds);
        }
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        let mut lookup = Lookup::Miss(Lease { token, generation });
        // Of those who missed it at once one gets the lease: nobody else is at the key meanwhile.
        self.entries.entry(key.clone()).and_compute_with(|known| match known.map(moka::Entry::into_value) {
            Some(entry) if holds(&entry) => {
                lookup = shown(entry.holds);
                Op::Nop
            }
            _ => Op::Put(Entry { generation, until: after(now, LEASE_TTL), holds: Holds::Lease(token) }),
        });
        lookup
    }
}

fn shown(holds: Holds) -> Lookup {
    match holds {
        Holds::Value(value) => Lookup::Hit(value),
        Holds::Lease(_) => Lookup::Awaited,
    }
}

fn after(now: Timestamp, time: std::time::Duration) -> Timestamp {
    now.plus_millis(time.as_millis() as i64)
}

#[async_trait]
impl Cache for LocalCache {
    async fn look_up(&self, keys: &[Key]) -> Result<Vec<Lookup>, PresenceError> {
        Ok(keys.iter().map(|key| self.look(key)).collect())
    }

    async fn fill(&self, values: Vec<Fill>) -> Result<(), PresenceError> {
        let now = self.clock.now();
        for Fill { key, lease, value } in values.into_iter().filter(|fill| fill.value.len() <= MAX_VALUE) {
            self.entries.entry(key).and_compute_with(|known| match known.map(moka::Entry::into_value) {
                Some(Entry { holds: Holds::Lease(token), until, .. }) if token == lease.token && until > now => {
                    let Lease { generation, .. } = lease;
                    Op::Put(Entry { generation, until: after(now, VALUE_TTL), holds: Holds::Value(value) })
                }
                _ => Op::Nop,
            });
        }
        Ok(())
    }

    async fn invalidate(&self, keys: Vec<Key>) {
        for key in keys {
            // In turn with those who put in: a plain removal would not be.
            self.entries.entry(key).and_compute_with(|_| Op::Remove);
        }
    }

    async fn invalidate_all(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::conformance::cache::{self as conformance, Subject};

    #[async_trait]
    impl conformance::Time for Clock {
        async fn pass(&self, time: Duration) {
            self.advance_millis(time.as_millis() as i64);
        }
    }

    fn clock() -> Clock {
        Clock::manual(Timestamp::from_millis(1_760_000_000_000))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_local_cache_keeps_every_rule_of_the_port() {
        conformance::all(async || {
            let clock = clock();
            Subject { cache: Arc::new(LocalCache::new(clock.clone())), time: Box::new(clock) }
        })
        .await;
    }

    #[test]
    fn property_10_cache_database_consistency() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let cache: Arc<dyn Cache> = Arc::new(LocalCache::new(clock()));
        conformance::property_10(&runtime, 2_000, &cache);
    }
}
