//! Lets go of what is no longer kept: rows of streams, idempotency claims, dead letters, tasks, broadcasts, lists of
//! recipients. A slice at a time, so that nobody waits for
//! it; what a round does not get to is left to the next.

use std::time::Duration;

use eshaar_model::Clock;
use eshaar_store::audiences::collect;
use eshaar_store::{Store, StoreError};
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// What is let go of, and when.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Time between rounds, in seconds; at least 1.
    pub every_s: u64,
    /// Most slices of each kind that a round lets go of.
    pub slices: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { every_s: 60, slices: 100 }
    }
}

/// Goes round until `shutdown`.
pub async fn run(store: Store, clock: Clock, options: Options, shutdown: CancellationToken) {
    let mut rounds = interval(Duration::from_secs(options.every_s.max(1)));
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = rounds.tick() => {}
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            trimmed = round(&store, &clock, options.slices) => match trimmed {
                Ok(gone) if gone == Gone::default() => {}
                Ok(Gone { rows, claims, letters, tasks, broadcasts, lists }) => {
                    tracing::info!(rows, claims, letters, tasks, broadcasts, lists, "deleted expired rows");
                }
                Err(error) => tracing::warn!(%error, "housekeeping failed; the next round goes on"),
            },
        }
    }
}

/// How many of each went in a round.
#[derive(Debug, Default, PartialEq, Eq)]
struct Gone {
    rows: usize,
    claims: usize,
    letters: usize,
    tasks: usize,
    broadcasts: usize,
    /// Of recipients.
    lists: usize,
}

/// One round.
async fn round(store: &Store, clock: &Clock, slices: usize) -> Result<Gone, StoreError> {
    Ok(Gone {
        rows: all(slices, || store.streams.trim(clock.now())).await?,
        claims: all(slices, || store.claims.trim(clock.now())).await?,
        letters: all(slices, || store.dead_letters.trim(clock.now())).await?,
        tasks: all(slices, || store.tasks.trim(clock.now())).await?,
        broadcasts: all(slices, || store.broadcasts.trim(clock.now())).await?,
        lists: all(slices, || collect(store, clock.now())).await?,
    })
}

/// Slice after slice, until there is none, or there were too many.
async fn all<F, S>(slices: usize, slice: F) -> Result<usize, StoreError>
where
    F: Fn() -> S,
    S: Future<Output = Result<usize, StoreError>>,
{
    let mut gone = 0;
    for _ in 0..slices {
        match slice().await? {
            0 => break,
            more => gone += more,
        }
        tokio::task::yield_now().await;
    }
    Ok(gone)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use eshaar_store::{Claim, ClaimKey};

    use super::*;
    use crate::testing::{Engines, START};

    #[tokio::test]
    async fn a_round_lets_go_of_what_is_past_its_time_and_of_nothing_else() {
        let engines = Engines::open().await;
        for (key, age_ms) in [("old", 25 * 3_600_000), ("new", 0)] {
            let key = ClaimKey { principal: "acme-bank".to_owned(), key: key.to_owned() };
            let claimed_at = START.plus_millis(-age_ms);
            let claim = Claim { body_hash: [0; 32], minted: Bytes::new(), answer: None, claimed_at };
            engines.store.claims.claim(&key, claim).await.unwrap();
        }
        let gone = round(&engines.store, &engines.clock, 10).await.unwrap();
        assert_eq!(gone, Gone { claims: 1, ..Gone::default() });
        assert_eq!(round(&engines.store, &engines.clock, 10).await.unwrap(), Gone::default());
    }

    #[tokio::test]
    async fn it_ends_with_its_process() {
        let engines = Engines::open().await;
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        run(engines.store.clone(), engines.clock.clone(), Options::default(), shutdown).await;
    }
}
