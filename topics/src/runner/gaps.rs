//! Records that the log deleted before the stage had read them: they are counted, shown in health, and recovered where the
//! stage knows how ([`Stage::recover`]). Until that is done nothing is committed of their partition, so that another owner, or
//! this one after a crash, finds the same gap again.

use std::sync::Arc;
use std::time::Duration;

use eshaar_service::metrics::LOG_DELETED_UNREAD;
use metrics::counter;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::Stage;
use super::lanes::Lanes;
use super::ledger::Ledger;
use super::progress::Watchdog;
use crate::Gap;

/// How often it is looked whether an input that has nothing has been emptied.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Waits before a recovery that failed is tried again: doubled each time, up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Gaps of one partition number. Dropped, it ends what it has begun.
pub(super) struct Gaps<S: Stage> {
    stage: Arc<S>,
    ledger: Arc<Ledger>,
    generation: u64,
    watchdog: Watchdog,
    looked: Instant,
    recoveries: Vec<AbortOnDropHandle<()>>,
}

impl<S: Stage> Gaps<S> {
    pub(super) fn new(stage: Arc<S>, ledger: Arc<Ledger>, generation: u64, watchdog: Watchdog) -> Self {
        Self { stage, ledger, generation, watchdog, looked: Instant::now(), recoveries: Vec::new() }
    }

    /// Notes what `lanes` found; and from time to time looks whether inputs that have nothing have been emptied.
    pub(super) fn look(&mut self, partition: u32, lanes: &mut Lanes) {
        if self.looked.elapsed() >= LOOK_EVERY {
            self.looked = Instant::now();
            for (topic, start) in self.ledger.known_starts(partition) {
                lanes.starts(topic, start);
            }
        }
        self.note(lanes.gaps());
    }

    /// Counts gaps, and begins to recover what was lost. Returns before that is done.
    pub(super) fn note(&mut self, gaps: Vec<Gap>) {
        self.recoveries.retain(|recovery| !recovery.is_finished());
        for gap in gaps {
            deleted_unread(S::NAME, gap);
            self.watchdog.deleted_unread(S::NAME, gap);
            self.ledger.hold(self.generation, gap);
            let (stage, ledger, generation) = (Arc::clone(&self.stage), Arc::clone(&self.ledger), self.generation);
            self.recoveries.push(AbortOnDropHandle::new(tokio::spawn(async move {
                recovered(&*stage, gap).await;
                ledger.release(generation, gap);
            })));
        }
    }
}

async fn recovered<S: Stage>(stage: &S, gap: Gap) {
    let Gap { topic, partition, .. } = gap;
    let mut wait = FIRST_WAIT;
    loop {
        match stage.recover(gap).await {
            Ok(0) => return,
            Ok(records) => {
                tracing::warn!(stage = S::NAME, %topic, partition, records, "recovered records that were deleted unread");
                return;
            }
            Err(error) => {
                tracing::warn!(stage = S::NAME, %topic, partition, %error, "recovery failed; trying again");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }
}

/// Counts and logs records that were deleted before `stage` had read them.
pub fn deleted_unread(stage: &'static str, gap: Gap) {
    let Gap { topic, partition, from, to } = gap;
    counter!(LOG_DELETED_UNREAD, "stage" => stage, "topic" => topic.name()).increment(gap.records());
    tracing::error!(stage, %topic, partition, from, to, records = gap.records(), "records were deleted before they were read");
}
