//! The one timer of all sessions: hello, pings, silence, slow writes, tokens, typing that lapses. It goes through the sessions once
//! a second, a quarter of them each time, so that no session keeps a timer of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use eshaar_model::Timestamp;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::close::Close;
use crate::hub::{Handle, SHARDS, TICKS, Ticks};
use crate::shared::Shared;
use crate::typing;

/// How often it looks.
const EVERY: Duration = Duration::from_millis(250);

/// Shards looked through each time.
const AT_ONCE: usize = SHARDS / 4;

/// Runs until `shutdown`.
pub(crate) async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    let begun = Instant::now();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shard = 0;
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = shutdown.cancelled() => return,
        }
        // Never 0, which stands for "no time".
        let now = (begun.elapsed().as_millis() / u128::from(1_000 / TICKS)) as Ticks + 1;
        shared.set_ticks(now);
        typing::lapse(&shared, now);
        // A store that was left alone for a while is asked again.
        shared.admission.grant();
        for _ in 0..AT_ONCE {
            let wall = shared.clock.now();
            shared.hub.each_of_shard(shard, |handle| look(&shared, handle, now, wall));
            shard = (shard + 1) % SHARDS;
        }
        shared.meters.sessions.set(shared.hub.count() as f64);
    }
}

fn since(time: &AtomicU32, now: Ticks) -> Ticks {
    now.saturating_sub(time.load(Relaxed))
}

/// Does what is due for a session.
fn look(shared: &Shared, handle: &Handle, now: Ticks, wall: Timestamp) {
    let (options, times) = (&shared.options, &handle.times);
    let is_set_for = |time: &AtomicU32, seconds: u32| time.load(Relaxed) != 0 && since(time, now) >= seconds * TICKS;
    if is_set_for(&times.writing, options.write_timeout_s) {
        handle.cut();
    } else if !handle.is_live() && since(&times.opened, now) >= options.hello_timeout_s * TICKS {
        handle.close(Close::HelloTimeout);
    } else if since(&times.heard, now) >= options.idle_timeout_s * TICKS {
        handle.close(Close::TimedOut);
    } else if (1..=wall.as_millis()).contains(&times.expires_ms.load(Relaxed)) {
        handle.close(Close::TokenExpired);
    }
    if since(&times.pinged, now) >= options.ping_every_s * TICKS {
        times.pinged.store(now, Relaxed);
        handle.ping();
    }
    if is_set_for(&times.waiting, 1) || is_set_for(&times.paused, 1) {
        handle.wake();
    }
    if times.held.load(Relaxed) != 0 && shared.cancelled.is_fresh() {
        times.held.store(0, Relaxed);
        handle.wake();
    }
    rescue(shared, handle, now);
}

/// When its turn in a rescue has come a session reads its stream.
fn rescue(shared: &Shared, handle: &Handle, now: Ticks) {
    let (number, begun) = shared.hub.rescue();
    let spread = u64::from((shared.options.rescue_spread_s * TICKS).max(1));
    let turn = begun + (handle.id % spread) as Ticks;
    if handle.times.rescued.load(Relaxed) != number && now >= turn {
        handle.times.rescued.store(number, Relaxed);
        handle.fall_behind();
    }
}
