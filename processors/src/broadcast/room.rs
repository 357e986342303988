//! How many messages of broadcasts, or of those that are due, may be accepted now: so many that what waits stays bounded, and with it how long what
//! others send waits behind them (R5.8). And how many a broadcast's own rate allows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use eshaar_presence::depths::Depths;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How often it is asked what waits.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What was accepted in this time may not be in what is told to wait.
const UNTOLD: Duration = Duration::from_millis(1_200);

/// Room for the broadcasts of a process, or for its messages that are due.
pub(crate) struct Room {
    depths: Arc<dyn Depths>,
    most: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    looked: Option<Instant>,
    /// What waited then.
    waiting: u64,
    /// What was let in lately.
    lately: VecDeque<(Instant, u64)>,
}

impl Room {
    /// Lets messages in while at most `most` wait.
    pub(crate) fn new(depths: Arc<dyn Depths>, most: u64) -> Self {
        Self { depths, most, state: Mutex::default() }
    }

    /// Whether there is room for `count` messages; if there is, it is taken. Where nobody tells what waits, at most as many
    /// as may wait are let in within [`UNTOLD`].
    pub(crate) async fn take(&self, count: u64) -> bool {
        let mut state = self.state.lock().await;
        let now = Instant::now();
        if state.looked.is_none_or(|at| now.duration_since(at) >= LOOK_EVERY) {
            match self.depths.depths().await {
                Ok(depths) => state.waiting = depths.iter().map(|depth| depth.interactive + depth.bulk).sum(),
                Err(error) => tracing::debug!(%error, "how much waits is not known; broadcasts go on slowly"),
            }
            state.looked = Some(now);
        }
        while state.lately.front().is_some_and(|(at, _)| now.duration_since(*at) >= UNTOLD) {
            state.lately.pop_front();
        }
        let lately: u64 = state.lately.iter().map(|(_, count)| count).sum();
        // One that is larger than all the room goes when there is nothing else.
        let fits = state.waiting + lately + count <= self.most || state.waiting + lately == 0;
        if fits {
            state.lately.push_back((now, count));
        }
        fits
    }

    /// Of what was let in last, so many do not come.
    pub(crate) async fn give_back(&self, count: u64) {
        if let Some((_, last)) = self.state.lock().await.lately.back_mut() {
            *last = last.saturating_sub(count);
        }
    }
}

/// The rate of one broadcast.
pub(super) struct Pace {
    per_s: Option<u64>,
    /// When the next may go.
    next: Instant,
}

impl Pace {
    /// At most so many messages in a second; `None`: as many as can be.
    pub(super) fn new(per_s: Option<u64>) -> Self {
        Self { per_s: per_s.map(|rate| rate.max(1)), next: Instant::now() }
    }

    /// Most messages that go together: a quarter of a second's.
    pub(super) fn most(&self) -> u64 {
        self.per_s.map_or(u64::MAX, |rate| (rate / 4).max(1))
    }

    /// How long it is until the next may go.
    pub(super) fn wait(&self) -> Duration {
        self.per_s.map_or(Duration::ZERO, |_| self.next.saturating_duration_since(Instant::now()))
    }

    /// Notes that `count` messages go now.
    pub(super) fn went(&mut self, count: u64) {
        if let Some(rate) = self.per_s {
            self.next = self.next.max(Instant::now()) + Duration::from_secs_f64(count as f64 / rate as f64);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use eshaar_model::{Clock, Timestamp};
    use eshaar_presence::depths::Depth;
    use eshaar_presence::local::LocalPresence;

    use super::*;

    fn depth(bulk: u64) -> [Depth; 1] {
        [Depth { stage: "route".to_owned(), partition: 0, interactive: 10, bulk }]
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_let_in_than_may_wait_and_what_is_not_told_yet_counts() {
        let depths = Arc::new(LocalPresence::new(Clock::manual(Timestamp::from_millis(0))));
        let room = Room::new(Arc::clone(&depths) as _, 1_000);
        depths.publish(&depth(490)).await.unwrap();
        assert!(room.take(300).await && room.take(200).await);
        assert!(!room.take(1).await);
        // Told by now, and carried on in part.
        depths.publish(&depth(590)).await.unwrap();
        tokio::time::advance(LOOK_EVERY).await;
        assert!(!room.take(1).await, "what was let in lately may be told already, or not");
        tokio::time::advance(UNTOLD).await;
        assert!(room.take(400).await);
        assert!(!room.take(1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_larger_than_all_the_room_goes_alone() {
        let room = Room::new(Arc::new(LocalPresence::new(Clock::manual(Timestamp::from_millis(0)))), 100);
        assert!(room.take(1_000).await);
        assert!(!room.take(1).await);
        tokio::time::advance(UNTOLD).await;
        assert!(room.take(1_000).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broadcast_keeps_to_its_rate() {
        let mut pace = Pace::new(Some(100));
        assert_eq!(pace.most(), 25);
        let begun = Instant::now();
        for _ in 0..41 {
            tokio::time::sleep(pace.wait()).await;
            pace.went(25);
        }
        assert_eq!(begun.elapsed().as_secs(), 10);
        assert_eq!((Pace::new(None).most(), Pace::new(Some(1)).most()), (u64::MAX, 1));
    }
}
