//! Records that the log deleted before the stage had read them: they are counted, shown in health, and recovered where the
//! stage knows how ([`Stage::recover`]). Until that is done nothing is committed of their partition, so that another owner, or
//! this one after a crash, finds the same gap again.

use std::sync::Arc;
use std::time::Duration;

use eshaar_service::metrics::LOG_DELETED_UNREAD;
use metrics::counter;
use tokio_util::task::AbortOnDropHandle;

use super::Stage;
use super::ledger::Ledger;
use super::progress::Watchdog;
use crate::{Gap, Log};

/// Waits before a recovery that failed is tried again: doubled each time, up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Gaps of one partition number. Dropped, it ends what it has begun.
pub(super) struct Gaps<S: Stage> {
    stage: Arc<S>,
    ledger: Arc<Ledger>,
    generation: u64,
    watchdog: Watchdog,
    log: Arc<dyn Log>,
    recoveries: Vec<AbortOnDropHandle<()>>,
}

impl<S: Stage> Gaps<S> {
    pub(super) fn new(
        stage: Arc<S>,
        ledger: Arc<Ledger>,
        generation: u64,
        watchdog: Watchdog,
        log: Arc<dyn Log>,
    ) -> Self {
        Self { stage, ledger, generation, watchdog, log, recoveries: Vec::new() }
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

    /// Where the log keeps the partition's inputs from, to be asked while they have nothing. Empty while it does not say.
    pub(super) async fn starts(&self, partition: u32) -> Vec<(crate::Topic, u64)> {
        let mut starts = Vec::new();
        for (topic, _) in self.stage.inputs() {
            if let Ok(bounds) = self.log.bounds(topic, partition).await {
                starts.push((topic, bounds.start));
            }
        }
        starts
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
