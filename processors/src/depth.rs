//! Tells presence how much waits in the lanes, and before them, so that the API takes in no more than can be carried on
//! (R5.4).
//!
//! A message waits in `messages.accepted` until `prioritize` has settled it, then in its lane until `route` has. In the first
//! it is not known of what waits how much is bulk: it is taken to be mixed as what was taken lately.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use eshaar_model::Lane;
use eshaar_presence::depths::{Depth, Depths};
use eshaar_topics::{Backlogs, Stage as _, Topic};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{Prioritize, Route};

/// Records after which what was taken before counts half.
const REMEMBERED: u64 = 10_000;

/// How what was taken lately is mixed.
#[derive(Debug, Default)]
pub struct Mix {
    taken: AtomicU64,
    bulk: AtomicU64,
}

impl Mix {
    /// Notes records that were taken.
    pub fn note(&self, lanes: impl Iterator<Item = Lane>) {
        let (mut taken, mut bulk) = (0, 0);
        for lane in lanes {
            taken += 1;
            bulk += u64::from(lane == Lane::Bulk);
        }
        self.bulk.fetch_add(bulk, Ordering::Relaxed);
        if self.taken.fetch_add(taken, Ordering::Relaxed) + taken > REMEMBERED {
            // What others note in between is lost: it is an estimate.
            self.taken.store(self.taken.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
            self.bulk.store(self.bulk.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
        }
    }

    /// How many of `records` are bulk, if they are mixed alike. None is, before anything was taken.
    fn bulk_of(&self, records: u64) -> u64 {
        let (taken, bulk) = (self.taken.load(Ordering::Relaxed), self.bulk.load(Ordering::Relaxed));
        if taken == 0 { 0 } else { (u128::from(records) * u128::from(bulk.min(taken)) / u128::from(taken)) as u64 }
    }
}

/// What the stages of this process were told, on its way to presence.
#[derive(Default)]
pub(crate) struct Told {
    mix: Arc<Mix>,
    waiting: Mutex<BTreeMap<(&'static str, u32), Depth>>,
    changed: Notify,
}

impl Told {
    pub(crate) fn new(mix: Arc<Mix>) -> Arc<Self> {
        Arc::new(Self { mix, ..Self::default() })
    }

    /// Publishes, until `shutdown`. What presence does not take is told anew within a second.
    pub(crate) async fn publish(&self, depths: &dyn Depths, shutdown: &CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
            }
            let told: Vec<Depth> = std::mem::take(&mut *self.waiting.lock()).into_values().collect();
            if let Err(error) = depths.publish(&told).await {
                tracing::debug!(%error, "how much waits was not told");
            }
        }
    }
}

impl Backlogs for Told {
    fn told(&self, stage: &'static str, waits: &[(Topic, u32, u64)]) {
        if stage != Prioritize::NAME && stage != Route::NAME {
            return;
        }
        let mut by_partition: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for (topic, partition, records) in waits {
            let (interactive, bulk) = by_partition.entry(*partition).or_default();
            match topic {
                Topic::MessagesAccepted => {
                    let of_bulk = self.mix.bulk_of(*records);
                    *bulk += of_bulk;
                    *interactive += records - of_bulk;
                }
                Topic::LaneBulk => *bulk += records,
                // Lanes, and what is tried again.
                _ => *interactive += records,
            }
        }
        let depth = |(partition, (interactive, bulk))| {
            let depth = Depth { stage: stage.to_owned(), partition, interactive, bulk };
            ((stage, partition), depth)
        };
        self.waiting.lock().extend(by_partition.into_iter().map(depth));
        self.changed.notify_one();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use eshaar_model::{Clock, Timestamp};
    use eshaar_presence::local::LocalPresence;

    use super::*;

    #[tokio::test]
    async fn what_waits_is_told_by_lane_and_before_the_lanes_by_the_mix_of_what_was_taken() {
        let mix = Arc::new(Mix::default());
        let told = Told::new(Arc::clone(&mix));
        let presence = Arc::new(LocalPresence::new(Clock::manual(Timestamp::from_millis(0))));
        let shutdown = CancellationToken::new();
        let publishing = tokio::spawn({
            let (told, presence, shutdown) = (Arc::clone(&told), Arc::clone(&presence), shutdown.clone());
            async move { told.publish(&*presence, &shutdown).await }
        });
        let depth =
            |stage: &str, partition, interactive, bulk| Depth { stage: stage.to_owned(), partition, interactive, bulk };
        let known = async |expected: Depth| {
            while !presence.depths().await.unwrap().contains(&expected) {
                tokio::task::yield_now().await;
            }
        };
        told.told("prioritize", &[(Topic::MessagesAccepted, 0, 100)]);
        known(depth("prioritize", 0, 100, 0)).await;
        mix.note([Lane::Bulk, Lane::Bulk, Lane::High, Lane::Bulk].into_iter());
        told.told("prioritize", &[(Topic::MessagesAccepted, 0, 100), (Topic::MessagesAccepted, 1, 0)]);
        known(depth("prioritize", 0, 25, 75)).await;
        told.told("route", &[(Topic::LaneHigh, 2, 1), (Topic::LaneLow, 2, 2), (Topic::LaneBulk, 2, 40)]);
        known(depth("route", 2, 3, 40)).await;
        told.told("archive", &[(Topic::MessagesAccepted, 5, 100)]);
        shutdown.cancel();
        publishing.await.unwrap();
        assert_eq!(presence.depths().await.unwrap().len(), 3, "what only the history waits for holds nobody up");
    }

    #[test]
    fn what_was_taken_long_ago_counts_less() {
        let mix = Mix::default();
        for _ in 0..1_000 {
            mix.note(std::iter::repeat_n(Lane::Bulk, 100));
        }
        for _ in 0..1_000 {
            mix.note(std::iter::repeat_n(Lane::Normal, 100));
        }
        assert!(mix.bulk_of(1_000) < 10);
    }
}
