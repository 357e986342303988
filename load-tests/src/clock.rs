//! The run's clock: microseconds since the run began, the same for senders and recipients, never set back.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

/// How often [`until`] looks.
const TICK: Duration = Duration::from_millis(10);

/// Started with the run. Copied freely.
#[derive(Clone, Copy, Debug)]
pub struct RunClock {
    start: Instant,
}

impl RunClock {
    /// A clock that stands at 0 now.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Microseconds since the start.
    pub fn now_us(self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// When it will stand at `at_us`.
    pub fn instant(self, at_us: u64) -> tokio::time::Instant {
        (self.start + Duration::from_micros(at_us)).into()
    }
}

/// Seconds since the Unix epoch, for tokens.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Waits until `done`, at most for `patience`.
pub async fn until(patience: Duration, done: impl Fn() -> bool) -> anyhow::Result<()> {
    let waiting = async {
        while !done() {
            tokio::time::sleep(TICK).await;
        }
    };
    tokio::time::timeout(patience, waiting).await.with_context(|| format!("not done after {} s", patience.as_secs()))
}
