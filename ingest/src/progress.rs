//! How far the history is behind the log.
//!
//! A message that the history does not have was never accepted, or the history does not have it yet. It has everything that
//! was accepted before a moment once `archive` has committed everything that stood in the log at that moment. The log is
//! asked only when something is not found, at most ten times a second, whoever looks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use eshaar_model::{Clock, Timestamp};
use eshaar_topics::{Log, LogError, Topic};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// The group that writes the history, and what it writes messages from.
const GROUP: &str = "archive";
const TOPICS: [Topic; 2] = [Topic::MessagesAccepted, Topic::MessagesScheduled];

/// Shortest time between two questions.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long an answer may take.
const ASK_LIMIT: Duration = Duration::from_secs(1);
/// Samples that wait for the history to reach them. Further apart the longer they wait: every second one is dropped.
const MAX_SAMPLES: usize = 32;

/// Where the log ended at a moment.
struct Sample {
    at: Instant,
    wall: Timestamp,
    ends: Vec<u64>,
}

#[derive(Default)]
struct State {
    /// Oldest first.
    samples: VecDeque<Sample>,
    /// The history has everything that was accepted before this.
    complete: Option<(Instant, Timestamp)>,
    asked: Option<Instant>,
}

/// What is known of the progress of the history.
pub(crate) struct Progress {
    log: Arc<dyn Log>,
    clock: Clock,
    state: Mutex<State>,
}

impl Progress {
    pub(crate) fn new(log: Arc<dyn Log>, clock: Clock) -> Self {
        Self { log, clock, state: Mutex::default() }
    }

    /// Returns true if the history has everything that was accepted before `moment`.
    pub(crate) async fn covers(&self, moment: Instant) -> bool {
        let mut state = self.state.lock().await;
        let covers = |state: &State| state.complete.is_some_and(|(at, _)| at >= moment);
        if covers(&state) || state.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
            return covers(&state);
        }
        match timeout(ASK_LIMIT, self.ask(&mut state)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the progress of the history is not known"),
            Err(_) => tracing::warn!("the progress of the history is not known: the log did not answer in time"),
        }
        state.asked = Some(Instant::now());
        covers(&state)
    }

    /// The time up to which the history is known to be complete, without a question.
    pub(crate) async fn complete_until(&self) -> Option<Timestamp> {
        self.state.lock().await.complete.map(|(_, wall)| wall)
    }

    async fn ask(&self, state: &mut State) -> Result<(), LogError> {
        let (at, wall) = (Instant::now(), self.clock.now());
        let (mut ends, mut committed) = (Vec::new(), Vec::new());
        for topic in TOPICS {
            ends.extend(self.log.ends(topic).await?);
        }
        if state.samples.len() == MAX_SAMPLES {
            let mut place = 0;
            state.samples.retain(|_| {
                place += 1;
                place % 2 == 0
            });
        }
        state.samples.push_back(Sample { at, wall, ends });
        for topic in TOPICS {
            committed.extend(self.log.committed_all(GROUP, topic).await?);
        }
        let reached = |sample: &Sample| {
            // Where nothing was ever committed, there must be nothing.
            sample.ends.iter().zip(&committed).all(|(end, committed)| committed.unwrap_or(0) >= *end)
        };
        while let Some(sample) = state.samples.pop_front_if(|sample| reached(sample)) {
            state.complete = Some((sample.at, sample.wall));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use eshaar_topics::embedded::{EmbeddedLog, Options};
    use eshaar_topics::{ConsumerEvent, Headers, NewRecord, StartAt};

    use super::*;

    struct Fixture {
        log: Arc<EmbeddedLog>,
        progress: Progress,
        _dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::manual(Timestamp::from_millis(1_760_000_000_000)));
            let log = Arc::new(EmbeddedLog::open(Options::in_dir(dir.path()), clock.clone()).unwrap());
            Self { progress: Progress::new(Arc::clone(&log) as _, clock), log, _dir: dir }
        }

        async fn append(&self, topic: Topic) {
            let record = NewRecord {
                topic,
                key: Bytes::from_static(b"+966500000001"),
                value: Bytes::from_static(b"value"),
                headers: Headers::default(),
                timestamp: Timestamp::from_millis(1_760_000_000_000),
                partition: None,
            };
            self.log.append(vec![record]).await.unwrap();
        }

        /// Commits what stands in the log, as archive does.
        async fn archive(&self) {
            let mut member = self.log.join(GROUP, &TOPICS, StartAt::Oldest).await.unwrap();
            let ConsumerEvent::Assigned(assignment) = member.event().await.unwrap() else { panic!("nothing assigned") };
            let mut ends = Vec::new();
            for reader in &assignment.partitions {
                let (topic, partition) = reader.source();
                ends.push((topic, partition, self.log.bounds(topic, partition).await.unwrap().end));
            }
            member.committer().commit(assignment.generation, &ends).await.unwrap();
            member.leave().await;
        }

        async fn covers(&self, moment: Instant) -> bool {
            // As if the last question were long ago.
            self.progress.state.lock().await.asked = None;
            self.progress.covers(moment).await
        }
    }

    #[tokio::test]
    async fn an_empty_log_is_a_complete_history() {
        let fixture = Fixture::new();
        assert!(fixture.covers(Instant::now()).await);
    }

    #[tokio::test]
    async fn the_history_is_complete_up_to_a_moment_once_everything_is_committed_that_stood_there_then() {
        for topic in TOPICS {
            let fixture = Fixture::new();
            fixture.append(topic).await;
            let first = Instant::now();
            assert!(!fixture.covers(first).await);
            fixture.archive().await;
            // What came since does not matter to an earlier moment.
            let second = Instant::now();
            fixture.append(topic).await;
            assert!(fixture.covers(first).await);
            assert!(!fixture.covers(second).await);
            fixture.archive().await;
            assert!(fixture.covers(second).await);
        }
    }
}
