//! Compares this host's clock with the engines': ids, records, times to live and `send_at` go by it. The embedded engines run
//! on the same clock, and have nothing to compare it with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use eshaar_model::{Clock, Timestamp};
use eshaar_presence::Presence;
use eshaar_service::metrics::CLOCK_OFFSET;
use eshaar_store::StoreEngine;
use metrics::gauge;
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// Furthest that this clock may be from an engine's, in milliseconds, besides what the question took.
const MAX_OFFSET_MS: i64 = 1_000;

/// Longest wait for an engine's answer.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(30);

/// Compares clocks.
pub struct ClockWatch {
    clock: Clock,
    presence: Arc<dyn Presence>,
    store: Arc<dyn StoreEngine>,
    /// The engines whose clock was another one when it was last looked, so that each change is logged once.
    off: Mutex<BTreeMap<&'static str, bool>>,
}

/// How far this clock is ahead of another, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offset {
    ahead_ms: i64,
    /// The part of it that may be due to the time that the question took.
    error_ms: i64,
}

impl Offset {
    /// From the times here before and after the other clock was asked, and its answer.
    fn of(before: Timestamp, other: Timestamp, after: Timestamp) -> Self {
        let took_ms = after.millis_since(before).max(0);
        Self { ahead_ms: before.plus_millis(took_ms / 2).millis_since(other), error_ms: took_ms - took_ms / 2 }
    }

    const fn is_off(self) -> bool {
        self.ahead_ms.abs() > MAX_OFFSET_MS + self.error_ms
    }

    fn text(self, engine: &str) -> String {
        let (ms, direction) = (self.ahead_ms.abs(), if self.ahead_ms < 0 { "behind" } else { "ahead of" });
        format!("the clock of this host is {ms} ms {direction} that of {engine}")
    }
}

impl ClockWatch {
    /// Of a process on these engines.
    pub fn new(clock: Clock, presence: Arc<dyn Presence>, store: Arc<dyn StoreEngine>) -> Arc<Self> {
        Arc::new(Self { clock, presence, store, off: Mutex::default() })
    }

    /// Compares this clock with those of the engines, as far as they answer. The error says what is off, and by how much.
    ///
    /// # Errors
    /// When it is further from one of theirs than it may be.
    pub async fn check(&self) -> Result<(), String> {
        let (presence, store) =
            tokio::join!(self.compare("presence", self.presence.time()), self.compare("store", self.store.time()),);
        let wrong: Vec<String> = presence.into_iter().chain(store).collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }

    /// Looks regularly, until `shutdown`: for metrics and the log, whether or not anybody asks for health.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut rounds = interval(EVERY);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = rounds.tick() => {}
            }
            // Logged and measured by the check itself.
            let _ = self.check().await;
        }
    }

    /// Asks an engine for its time, and returns the difference of this clock if it is too large.
    async fn compare<E>(
        &self,
        engine: &'static str,
        asked: impl Future<Output = Result<Option<Timestamp>, E>>,
    ) -> Option<String> {
        let before = self.clock.now();
        // An engine that does not answer is shown by its own check.
        let other = timeout(MAX_WAIT, asked).await.ok()?.ok()??;
        let offset = Offset::of(before, other, self.clock.now());
        gauge!(CLOCK_OFFSET, "engine" => engine).set(offset.ahead_ms as f64 / 1000.0);
        let was_off = self.off.lock().insert(engine, offset.is_off()).unwrap_or(false);
        if offset.is_off() {
            let text = offset.text(engine);
            if !was_off {
                tracing::error!(engine, ahead_ms = offset.ahead_ms, "{text}");
            }
            return Some(text);
        }
        if was_off {
            tracing::info!(engine, ahead_ms = offset.ahead_ms, "the clocks of this host and of an engine agree again");
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use eshaar_presence::local::LocalPresence;
    use eshaar_store::StoreError;

    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_760_000_000_000);

    /// A store whose server has a clock of its own.
    struct Server(Mutex<Result<Option<Timestamp>, ()>>);

    #[async_trait::async_trait]
    impl StoreEngine for Server {
        async fn sync(&self) -> Result<(), StoreError> {
            Ok(())
        }

        async fn ping(&self) -> Result<(), StoreError> {
            Ok(())
        }

        async fn close(&self) -> Result<(), StoreError> {
            Ok(())
        }

        async fn time(&self) -> Result<Option<Timestamp>, StoreError> {
            self.0.lock().map_err(|()| StoreError::Engine { action: "tell the time", reason: "down".to_owned() })
        }
    }

    fn watch(clock: &Clock) -> (Arc<ClockWatch>, Arc<Server>) {
        let server = Arc::new(Server(Mutex::new(Ok(Some(START)))));
        let presence = Arc::new(LocalPresence::new(clock.clone()));
        (ClockWatch::new(clock.clone(), presence, Arc::clone(&server) as _), server)
    }

    #[tokio::test]
    async fn a_clock_that_is_off_is_told_with_its_offset_until_it_was_corrected() {
        let clock = Clock::manual(START);
        let (watch, server) = watch(&clock);
        assert_eq!(watch.check().await, Ok(()));
        clock.advance_millis(86_400_000);
        let ahead = "the clock of this host is 86400000 ms ahead of that of store";
        assert_eq!(watch.check().await, Err(ahead.to_owned()));
        clock.advance_millis(-86_400_000 - 5_000);
        assert_eq!(watch.check().await, Err("the clock of this host is 5000 ms behind that of store".to_owned()));
        clock.advance_millis(5_000 + MAX_OFFSET_MS);
        assert_eq!(watch.check().await, Ok(()));
        // Whoever does not answer, or has no clock of its own, says nothing about ours.
        for nothing in [Err(()), Ok(None)] {
            *server.0.lock() = nothing;
            clock.advance_millis(86_400_000);
            assert_eq!(watch.check().await, Ok(()));
        }
    }

    #[test]
    fn the_time_that_a_question_took_is_no_offset() {
        let offset = Offset::of(START, START.plus_millis(3_900), START.plus_millis(4_000));
        assert_eq!((offset.ahead_ms, offset.is_off()), (-1_900, false));
        assert!(Offset::of(START, START.plus_millis(4_000), START.plus_millis(1_000)).is_off());
    }
}
