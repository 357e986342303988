//! Admission of what sessions read from the store: where delivery begins after a hello, and pages of streams.
//!
//! Each read needs a turn. How many turns there are at once follows the store ([`pace`]); the rest wait in order, without a
//! read and without a timer. While hellos wait too long, new ones are refused before anything is done for them
//! ([`Admission::refusal`]); a session that is being served is never refused, it only waits. Acknowledgements and hints need no turn, and the limit
//! stays below the store's own bound, so they never wait behind catch-ups.

mod pace;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use eshaar_service::metrics as names;
use eshaar_store::StoreError;
use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::pace::{Pace, Verdict};
use crate::Options;

/// The class of a read, which decides whose turn is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A message is known to wait for the session: a hint did not follow the one before it.
    Gap,
    /// A session begins.
    Hello,
    /// A further page of a backlog, or a check after presence was impaired.
    Later,
}

const CLASSES: usize = 3;

/// Whose turn is first, one row after the other; a class that nobody waits in gives its turn to the next of the row.
const ORDER: [[Class; CLASSES]; 4] = [
    [Class::Gap, Class::Hello, Class::Later],
    [Class::Hello, Class::Gap, Class::Later],
    [Class::Gap, Class::Hello, Class::Later],
    [Class::Later, Class::Gap, Class::Hello],
];

/// Places in a queue of those who left that are not looked for.
const LEFT_KEPT: usize = 1_024;

/// Time of a hello while none was served.
const GUESS: Duration = Duration::from_millis(10);

/// Waits that a client that is refused is told are at most this.
const LONGEST_REFUSAL: Duration = Duration::from_mins(5);

/// A read that may begin. Its place is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    admission: Arc<Admission>,
    begun: Instant,
    is_live: bool,
}

/// Admits reads. One for each gateway.
pub(crate) struct Admission {
    state: Mutex<State>,
    /// By [`Class`].
    waiting: [AtomicUsize; CLASSES],
    /// Bytes of stream rows that sessions hold ahead of what their clients have room for.
    ahead: AtomicUsize,
    limits: Limits,
    meters: Meters,
}

struct Limits {
    hellos: usize,
    wait: Duration,
    ahead: usize,
}

struct Meters {
    at_once: Gauge,
    waiting: Gauge,
    refused: Counter,
    failed: Counter,
}

struct State {
    pace: Pace,
    under_way: usize,
    queues: [VecDeque<Waiter>; CLASSES],
    /// Hellos that got their turns.
    hellos: u64,
    /// Which row of [`ORDER`] is next.
    row: usize,
    /// When the client that was refused last is to come back: the next one comes behind it.
    refused_until: Instant,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admission")
    }
}

/// A read that waits for its turn.
struct Waiter {
    turn: oneshot::Sender<Turn>,
    asked: Instant,
    /// Hellos that had got their turns before it asked.
    hellos: u64,
}

/// Counts one that waits, however its wait ends.
struct Waits<'a>(&'a Admission, Class);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting[self.1 as usize].fetch_sub(1, Relaxed);
    }
}

/// Bytes of rows that a session holds ahead; given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Ahead {
    admission: Arc<Admission>,
    bytes: usize,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.admission.ahead.fetch_sub(self.bytes, Relaxed);
    }
}

impl Admission {
    pub(crate) fn new(options: &Options) -> Arc<Self> {
        let state = State {
            pace: Pace::new(options.reads_at_once, Instant::now()),
            under_way: 0,
            queues: Default::default(),
            hellos: 0,
            row: 0,
            refused_until: Instant::now(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
            waiting: Default::default(),
            ahead: AtomicUsize::new(0),
            limits: Limits {
                hellos: options.hellos_waiting,
                wait: Duration::from_secs(options.hello_wait_s),
                ahead: options.read_ahead_bytes,
            },
            meters: Meters {
                at_once: metrics::gauge!(names::GATEWAY_READS_AT_ONCE),
                waiting: metrics::gauge!(names::GATEWAY_READS_WAITING),
                refused: metrics::counter!(names::GATEWAY_HELLOS_REFUSED),
                failed: metrics::counter!(names::GATEWAY_READS_FAILED),
            },
        })
    }

    /// Waits for a turn, in the order of asking within a class.
    pub(crate) async fn turn(self: &Arc<Self>, class: Class) -> Turn {
        self.waiting[class as usize].fetch_add(1, Relaxed);
        let _waits = Waits(self, class);
        loop {
            let (sender, receiver) = oneshot::channel();
            self.enqueue(class, sender);
            self.grant();
            // The sender is dropped only with the queue.
            if let Ok(turn) = receiver.await {
                return turn;
            }
        }
    }

    fn enqueue(&self, class: Class, turn: oneshot::Sender<Turn>) {
        let mut state = self.state.lock();
        let waiter = Waiter { turn, asked: Instant::now(), hellos: state.hellos };
        let queue = &mut state.queues[class as usize];
        // Those who left are let go of when there are more of them than of those who wait.
        if queue.len() > LEFT_KEPT + 2 * self.waiting[class as usize].load(Relaxed) {
            queue.retain(|waiter| !waiter.turn.is_closed());
        }
        queue.push_back(waiter);
    }

    /// Gives turns while there are some. Called whenever one may have become free; by the timer after a pause.
    pub(crate) fn grant(self: &Arc<Self>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        while state.under_way < state.pace.limit(now)
            && let Some((class, waiter)) = state.next()
        {
            let turn = Turn { admission: Arc::clone(self), begun: now, is_live: true };
            match waiter.turn.send(turn) {
                Ok(()) => {
                    state.under_way += 1;
                    state.hellos += u64::from(class == Class::Hello);
                }
                // Whoever asked is gone.
                Err(mut turn) => turn.is_live = false,
            }
        }
        self.meters.at_once.set(state.under_way as f64);
        drop(state);
        self.meters.waiting.set(self.waiting.iter().map(|waiting| waiting.load(Relaxed)).sum::<usize>() as f64);
    }

    /// How long a new client is to stay away, where the hello that has waited longest waits too long, or too many wait; `None`:
    /// the client is welcome. Those who are refused one after the other are told times one after the other.
    ///
    /// The wait is measured and not foretold: when a gateway has died the first reads on the others are slow, and a time by
    /// their rate would keep clients away long after the store has recovered.
    pub(crate) fn refusal(&self) -> Option<Duration> {
        let waiting = self.waiting[Class::Hello as usize].load(Relaxed);
        let now = Instant::now();
        let mut state = self.state.lock();
        let (age, served) = state.longest_wait(now);
        if waiting < self.limits.hellos && age <= self.limits.wait {
            return None;
        }
        self.meters.refused.increment(1);
        let each = age.max(GUESS) / u32::try_from(served.max(1)).unwrap_or(u32::MAX);
        let wait = each.saturating_mul(waiting.try_into().unwrap_or(u32::MAX));
        let from = state.refused_until.max(now + wait / 2);
        state.refused_until = (from + each).min(now + LONGEST_REFUSAL);
        drop(state);
        let away = from.saturating_duration_since(now).clamp(Duration::from_secs(1), LONGEST_REFUSAL);
        Some(away.mul_f64(rand::random_range(0.9..1.2)))
    }

    /// How many reads succeeded so far. Told apart from before a failure, it tells whether others succeeded meanwhile.
    pub(crate) fn successes(&self) -> u64 {
        self.state.lock().pace.successes()
    }

    /// Whether there is room for so many more bytes of rows that are read before their clients have room for them.
    pub(crate) fn has_room_ahead(&self, bytes: usize) -> bool {
        self.ahead.load(Relaxed).saturating_add(bytes) <= self.limits.ahead
    }

    #[cfg(test)]
    pub(crate) fn ahead(&self) -> usize {
        self.ahead.load(Relaxed)
    }

    /// Counts rows that a session holds.
    pub(crate) fn hold_ahead(self: &Arc<Self>, bytes: usize) -> Ahead {
        self.ahead.fetch_add(bytes, Relaxed);
        Ahead { admission: Arc::clone(self), bytes }
    }

    fn finish(self: &Arc<Self>, begun: Instant, verdict: Option<Verdict>) {
        let now = Instant::now();
        {
            let mut state = self.state.lock();
            state.under_way -= 1;
            if let Some(verdict) = verdict {
                state.pace.learn(verdict, begun, now);
            }
        }
        self.grant();
    }
}

impl State {
    fn next(&mut self) -> Option<(Class, Waiter)> {
        let row = ORDER[self.row % ORDER.len()];
        self.row = self.row.wrapping_add(1);
        row.into_iter().find_map(|class| self.queues[class as usize].pop_front().map(|waiter| (class, waiter)))
    }

    /// How long the first hello of the queue has waited, and how many got their turns meanwhile.
    fn longest_wait(&mut self, now: Instant) -> (Duration, u64) {
        let queue = &mut self.queues[Class::Hello as usize];
        while queue.pop_front_if(|waiter| waiter.turn.is_closed()).is_some() {}
        queue.front().map_or_else(Default::default, |waiter| (now - waiter.asked, self.hellos - waiter.hellos))
    }
}

impl Turn {
    /// Ends the turn with what came of the read. `rows` is how many rows it brought.
    pub(crate) fn end<T>(mut self, outcome: &Result<T, StoreError>, rows: usize) {
        self.is_live = false;
        let verdict = match outcome {
            Ok(_) => Some(Verdict::Read { rows }),
            Err(StoreError::Overloaded { .. }) => Some(Verdict::Overloaded),
            Err(StoreError::Engine { .. } | StoreError::Resting(_)) => Some(Verdict::Failed),
            Err(StoreError::Refused { .. } | StoreError::Closed) => None,
        };
        if outcome.is_err() {
            self.admission.meters.failed.increment(1);
        }
        self.admission.finish(self.begun, verdict);
    }

    /// Gives its place to whoever waits, and waits for another: between the reads of one errand that takes many.
    pub(crate) async fn again(self, class: Class) -> Self {
        let admission = Arc::clone(&self.admission);
        self.end(&Ok(()), 0);
        admission.turn(class).await
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.is_live {
            self.admission.finish(self.begun, None);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn admission(options: &Options) -> Arc<Admission> {
        Admission::new(options)
    }

    fn overloaded() -> Result<(), StoreError> {
        Err(StoreError::Overloaded { waiting: 1 })
    }

    fn down() -> Result<(), StoreError> {
        Err(StoreError::Engine { action: "read", reason: "down".to_owned() })
    }

    /// Takes what is granted now.
    async fn granted(admission: &Arc<Admission>, class: Class, at_most: usize) -> Vec<Turn> {
        let mut turns = vec![];
        while turns.len() < at_most {
            let turn = tokio::time::timeout(Duration::ZERO, admission.turn(class)).await;
            match turn {
                Ok(turn) => turns.push(turn),
                Err(_) => break,
            }
        }
        turns
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_bounded_and_one_that_is_dropped_is_given_to_the_next() {
        let admission = admission(&Options { reads_at_once: 3, ..Options::default() });
        let mut turns = granted(&admission, Class::Hello, 10).await;
        assert_eq!(turns.len(), 3);
        let waits = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.turn(Class::Hello).await }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(turns.pop());
        drop(waits.await.unwrap());
        assert_eq!(granted(&admission, Class::Hello, 10).await.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_known_gap_goes_before_a_hello_and_a_backlog_is_never_left_for_good() {
        let admission = admission(&Options { reads_at_once: 1, ..Options::default() });
        let held = admission.turn(Class::Hello).await;
        let order = Arc::new(Mutex::new(vec![]));
        for class in [Class::Later, Class::Hello, Class::Gap] {
            for _ in 0..4 {
                let (admission, order) = (Arc::clone(&admission), Arc::clone(&order));
                tokio::spawn(async move {
                    let turn = admission.turn(class).await;
                    order.lock().push(class);
                    tokio::task::yield_now().await;
                    turn.end(&Ok(()), 1);
                });
            }
        }
        tokio::task::yield_now().await;
        drop(held);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let order = order.lock().clone();
        assert_eq!(order.len(), 12);
        assert!(order[..4].contains(&Class::Later), "{order:?}");
        assert_eq!(order[..6].iter().filter(|class| **class == Class::Gap).count(), 3, "{order:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_overloaded_is_asked_less_and_one_that_is_well_more() {
        let admission = admission(&Options { reads_at_once: 8, ..Options::default() });
        for _ in 0..200 {
            tokio::time::advance(Duration::from_millis(1)).await;
            admission.turn(Class::Hello).await.end(&Ok(()), 1);
        }
        assert_eq!(granted(&admission, Class::Hello, 20).await.len(), 8);
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(1)).await;
            admission.turn(Class::Hello).await.end(&overloaded(), 0);
        }
        assert_eq!(granted(&admission, Class::Hello, 20).await.len(), 1);
        for _ in 0..100 {
            tokio::time::advance(Duration::from_millis(1)).await;
            admission.turn(Class::Hello).await.end(&Ok(()), 1);
        }
        assert_eq!(granted(&admission, Class::Hello, 20).await.len(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_down_is_asked_by_one_at_a_time_and_ever_less_often() {
        let admission = admission(&Options::default());
        let (mut asked, begun) = (0, Instant::now());
        while begun.elapsed() < Duration::from_mins(1) {
            admission.grant();
            if let Ok(turn) = tokio::time::timeout(Duration::from_millis(250), admission.turn(Class::Hello)).await {
                turn.end(&down(), 0);
                asked += 1;
            }
        }
        assert!((10..30).contains(&asked), "asked {asked} times in a minute");
        tokio::time::advance(Duration::from_secs(10)).await;
        admission.turn(Class::Hello).await.end(&Ok(()), 1);
        assert!(!granted(&admission, Class::Hello, 1).await.is_empty(), "it is asked again at once when it answers");
    }

    /// So many hellos that wait.
    async fn hellos(admission: &Arc<Admission>, count: usize) -> Vec<tokio::task::JoinHandle<()>> {
        let waits = |_| {
            let admission = Arc::clone(admission);
            tokio::spawn(async move { admission.turn(Class::Hello).await.end(&Ok(()), 1) })
        };
        let waiting = (0..count).map(waits).collect();
        tokio::task::yield_now().await;
        waiting
    }

    #[tokio::test(start_paused = true)]
    async fn clients_are_told_when_to_come_back_one_after_the_other_when_too_many_wait() {
        let options = Options { reads_at_once: 1, hellos_waiting: 10, ..Options::default() };
        let admission = admission(&options);
        assert_eq!(admission.refusal(), None);
        let _held = admission.turn(Class::Hello).await;
        let waiting = hellos(&admission, 10).await;
        let away: Vec<_> = (0..2_000).map(|_| admission.refusal().unwrap()).collect();
        assert!(away[0] >= Duration::from_millis(900), "{:?}", away[0]);
        assert!(away[1_999] > away[0] * 3, "those who come later are told later times: {:?}", away[1_999]);
        for task in waiting {
            task.abort();
        }
        tokio::task::yield_now().await;
        assert_eq!(admission.refusal(), None, "who has left does not wait");
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_waits_in_line_after_slow_reads_and_is_refused_only_when_one_has_waited_too_long() {
        let admission = admission(&Options { reads_at_once: 1, hello_wait_s: 30, ..Options::default() });
        let slow = admission.turn(Class::Hello).await;
        let _waiting = hellos(&admission, 5_000).await;
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(admission.refusal(), None, "5,000 wait, and the only read so far takes 5 s");
        tokio::time::advance(Duration::from_secs(26)).await;
        let away = admission.refusal().expect("the first has waited for 31 s");
        assert!(away > Duration::from_secs(30), "{away:?}");
        slow.end(&Ok(()), 1);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(admission.refusal(), None, "all were served");
    }
}
