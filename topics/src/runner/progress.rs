//! The progress watchdog (R11.2): what each partition number of each stage is at, and since when. A stage that is alive but
//! stuck has begun something that does not end, or has records waiting that it does not take.
//!
//! What waits on purpose is not stuck: a stage that paused because something it rests on is down, and a record that waits
//! for its retry.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{Gap, Topic};

/// A place of a stage: a partition number, or, without one, what a member does for all of them.
type Place = (&'static str, Option<u32>);

/// Watches over the stages of a process; shared by all of them and by whoever asks how they are.
#[derive(Clone, Debug)]
pub struct Watchdog {
    stuck_after: Duration,
    seats: Arc<Mutex<BTreeMap<Place, State>>>,
    unread: Arc<Mutex<BTreeMap<(&'static str, Topic), Unread>>>,
}

/// Records of a topic that were deleted before a stage had read them.
#[derive(Clone, Copy, Debug)]
struct Unread {
    records: u64,
    last: Instant,
}

/// How long health shows that records were deleted unread.
const UNREAD_SHOWN_FOR: Duration = Duration::from_hours(1);

/// What is done at a place.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// What has begun and not ended.
    doing: Option<(&'static str, Instant)>,
    /// It waits on purpose.
    paused: bool,
    /// Records wait, and none has been taken since.
    untouched: Option<(u64, Instant)>,
    /// Tells apart who sits there: a member that is gone does not take the place of its successor with it.
    sitter: u64,
}

/// A place of a stage that makes no progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The stage.
    pub stage: &'static str,
    /// The partition number; `None` for what concerns all of them.
    pub partition: Option<u32>,
    /// What does not end.
    pub doing: &'static str,
    /// For how long, by now.
    pub since: Duration,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.stage)?;
        if let Some(partition) = self.partition {
            write!(f, ", partition {partition}")?;
        }
        write!(f, ": {} for {} s", self.doing, self.since.as_secs())
    }
}

impl Watchdog {
    /// A place counts as stuck when it has made no progress for so long.
    pub fn new(stuck_after: Duration) -> Self {
        Self { stuck_after, seats: Arc::default(), unread: Arc::default() }
    }

    /// Every place that is stuck.
    pub fn stuck(&self) -> Vec<Stuck> {
        let now = Instant::now();
        let seats = self.seats.lock();
        let all = seats.iter().filter_map(|(&(stage, partition), state)| {
            let (doing, began) = match (state.doing, state.untouched) {
                (Some(doing), _) => doing,
                (None, Some((_, since))) if !state.paused => ("not taking what waits", since),
                _ => return None,
            };
            Some(Stuck { stage, partition, doing, since: now.saturating_duration_since(began) })
        });
        all.filter(|stuck| stuck.since >= self.stuck_after).collect()
    }

    /// Whether every stage makes progress; what is stuck, in a few words.
    ///
    /// # Errors
    /// When a place of a stage is stuck.
    pub fn check(&self) -> Result<(), String> {
        let stuck: Vec<String> = self.stuck().iter().map(ToString::to_string).collect();
        if stuck.is_empty() { Ok(()) } else { Err(stuck.join("; ")) }
    }

    /// Whether every stage has read its records before the log deleted them, in the last hour; which have not.
    ///
    /// # Errors
    /// When records were deleted unread.
    pub fn check_unread(&self) -> Result<(), String> {
        let shown: Vec<String> = self
            .unread
            .lock()
            .iter()
            .filter(|(_, unread)| unread.last.elapsed() < UNREAD_SHOWN_FOR)
            .map(|((stage, topic), Unread { records, last })| {
                let ago = last.elapsed().as_secs();
                format!("{records} records of {topic} were deleted before {stage} read them, the last {ago} s ago")
            })
            .collect();
        if shown.is_empty() { Ok(()) } else { Err(shown.join("; ")) }
    }

    /// Records were deleted before a stage had read them.
    pub(super) fn deleted_unread(&self, stage: &'static str, gap: Gap) {
        let mut unread = self.unread.lock();
        let known = unread.entry((stage, gap.topic)).or_insert(Unread { records: 0, last: Instant::now() });
        *known = Unread { records: known.records + gap.records(), last: Instant::now() };
    }

    /// Sits down at a place, until it is dropped.
    pub(super) fn sit(&self, stage: &'static str, partition: Option<u32>) -> Seat {
        let place = (stage, partition);
        let mut seats = self.seats.lock();
        let sitter = seats.get(&place).map_or(0, |state| state.sitter + 1);
        seats.insert(place, State { sitter, ..State::default() });
        Seat { watchdog: self.clone(), place, sitter }
    }

    /// Notes whether records wait at a partition number of which `settled` have been settled by now.
    pub(super) fn waiting(&self, stage: &'static str, partition: u32, any: bool, settled: u64) {
        if let Some(state) = self.seats.lock().get_mut(&(stage, Some(partition))) {
            state.untouched = match state.untouched {
                _ if !any => None,
                Some((known, since)) if known == settled => Some((known, since)),
                _ => Some((settled, Instant::now())),
            };
        }
    }
}

/// A place of a stage, as whoever works there tells of it.
#[derive(Debug)]
pub(super) struct Seat {
    watchdog: Watchdog,
    place: Place,
    sitter: u64,
}

impl Seat {
    /// Something has begun, and is to end.
    pub(super) fn begin(&self, doing: &'static str) {
        self.with(|state| state.doing = Some((doing, Instant::now())));
    }

    /// Something is being tried, since it was first begun.
    pub(super) fn keep_at(&self, doing: &'static str) {
        self.with(|state| {
            state.doing.get_or_insert_with(|| (doing, Instant::now()));
        });
    }

    /// It has ended.
    pub(super) fn rest(&self) {
        self.with(|state| {
            state.doing = None;
            state.paused = false;
        });
    }

    /// It waits on purpose; returns whether it did already.
    pub(super) fn pause(&self) -> bool {
        self.with(|state| {
            state.doing = None;
            std::mem::replace(&mut state.paused, true)
        })
    }

    fn with<T: Default>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut seats = self.watchdog.seats.lock();
        seats.get_mut(&self.place).filter(|state| state.sitter == self.sitter).map(change).unwrap_or_default()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.watchdog.seats.lock();
        if seats.get(&self.place).is_some_and(|state| state.sitter == self.sitter) {
            seats.remove(&self.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_mins(1);

    fn watched() -> (Watchdog, Seat) {
        let watchdog = Watchdog::new(BOUND);
        let seat = watchdog.sit("route", Some(3));
        (watchdog, seat)
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_is_stuck_once_the_bound_has_passed() {
        let (watchdog, seat) = watched();
        seat.begin("handling");
        tokio::time::advance(BOUND.saturating_sub(Duration::from_millis(1))).await;
        assert_eq!(watchdog.check(), Ok(()));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(watchdog.check(), Err("route, partition 3: handling for 64 s".to_owned()));
        seat.rest();
        assert_eq!(watchdog.check(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_on_purpose_is_not_stuck() {
        let (watchdog, seat) = watched();
        watchdog.waiting("route", 3, true, 7);
        seat.begin("handling");
        assert!(!seat.pause());
        tokio::time::advance(BOUND * 2).await;
        assert_eq!(watchdog.check(), Ok(()));
        assert!(seat.pause(), "already");
    }

    #[tokio::test(start_paused = true)]
    async fn records_that_wait_and_are_not_taken_make_a_stage_stuck_and_any_progress_ends_it() {
        let (watchdog, _seat) = watched();
        watchdog.waiting("route", 3, true, 7);
        tokio::time::advance(BOUND).await;
        watchdog.waiting("route", 3, true, 7);
        assert_eq!(watchdog.stuck()[0].doing, "not taking what waits");
        watchdog.waiting("route", 3, true, 8);
        assert_eq!(watchdog.check(), Ok(()));
        watchdog.waiting("route", 3, false, 9);
        tokio::time::advance(BOUND).await;
        assert_eq!(watchdog.check(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_tried_again_and_again_counts_from_the_first_time() {
        let (watchdog, seat) = watched();
        seat.keep_at("committing");
        tokio::time::advance(BOUND / 2).await;
        seat.keep_at("committing");
        tokio::time::advance(BOUND / 2).await;
        assert_eq!(watchdog.stuck().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_was_left_is_watched_no_more_and_its_successor_is() {
        let (watchdog, old) = watched();
        old.begin("handling");
        let new = watchdog.sit("route", Some(3));
        new.begin("opening");
        drop(old);
        tokio::time::advance(BOUND).await;
        assert_eq!(watchdog.stuck()[0].doing, "opening");
        drop(new);
        assert_eq!(watchdog.check(), Ok(()));
    }
}
