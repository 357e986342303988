//! Keeps the entries of sessions in presence: all of them are refreshed every few seconds, many in one round trip, so that one
//! that was lost is entered again within seconds.
//!
//! A session whose entry was lost may have missed hints, and reads its stream. One whose entry could merely not be refreshed
//! has missed none: the entry is there, or the next refresh tells that it was not.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use eshaar_model::Principal;
use eshaar_presence::Connection;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::hub::{Handle, SHARDS, TICKS, Ticks};
use crate::shared::Shared;

/// How often it looks.
const EVERY: Duration = Duration::from_millis(250);

/// Shards looked through each time.
const AT_ONCE: usize = SHARDS / 4;

/// Most entries in one call.
const BATCH: usize = 500;

/// Wait before entries that could not be refreshed are tried again.
const RETRY: Ticks = 2 * TICKS;

/// An entry that was not confirmed for so long may have lapsed (after 300 s) and been made again by a call that seemed to fail.
const DOUBTED: Ticks = 200 * TICKS;

/// Runs until `shutdown`.
pub(crate) async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut shard, mut impaired) = (0, false);
    loop {
        let shards = tokio::select! {
            _ = every.tick() => AT_ONCE,
            () = shared.all_absent.notified() => SHARDS,
            () = shutdown.cancelled() => return,
        };
        let now = shared.ticks();
        let mut due = Vec::new();
        for _ in 0..shards {
            shared.hub.each_of_shard(shard, |handle| {
                if handle.is_live() && now >= handle.times.refresh_due.load(Relaxed) {
                    due.push(Arc::clone(handle));
                }
            });
            shard = (shard + 1) % SHARDS;
        }
        for batch in due.chunks(BATCH) {
            let refreshed = refresh(&shared, batch, now).await;
            if let Err(error) = &refreshed
                && !std::mem::replace(&mut impaired, true)
            {
                tracing::warn!(%error, sessions = due.len(), "presence could not be refreshed; trying again");
            }
            if refreshed.is_err() {
                break;
            }
            impaired = false;
        }
    }
}

/// Refreshes entries.
async fn refresh(shared: &Shared, handles: &[Arc<Handle>], now: Ticks) -> Result<(), eshaar_presence::PresenceError> {
    let sessions: Option<Vec<(Principal, Connection)>> = handles
        .iter()
        .map(|handle| shared.connection(handle).map(|connection| (handle.principal.clone(), connection)))
        .collect();
    let Some(sessions) = sessions else { return Ok(()) };
    match shared.presence.refresh(&sessions).await {
        Ok(there) => {
            for (handle, was_there) in handles.iter().zip(there) {
                handle.times.confirmed.store(now, Relaxed);
                handle.times.refresh_due.store(shared.refresh_due(handle, now), Relaxed);
                if handle.take_absent() || !was_there {
                    handle.fall_behind();
                }
                forget_if_left(shared, handle).await;
            }
            Ok(())
        }
        Err(error) => {
            for handle in handles {
                handle.times.refresh_due.store(now + RETRY, Relaxed);
                if now.saturating_sub(handle.times.confirmed.load(Relaxed)) > DOUBTED {
                    handle.mark_absent();
                }
            }
            Err(error)
        }
    }
}

/// A session that left while it was being refreshed must not stay in presence.
async fn forget_if_left(shared: &Shared, handle: &Arc<Handle>) {
    let stays = shared.hub.of(&handle.principal).iter().any(|known| known.id == handle.id);
    if let (false, Some(connection)) = (stays, shared.connection(handle)) {
        // What is left behind lapses by itself.
        let _ = shared.presence.disconnect(&handle.principal, connection).await;
    }
}
