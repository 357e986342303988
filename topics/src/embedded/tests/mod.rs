//! The embedded log as a whole: the suite of all engines, what is its own, and what a crash leaves.

#![allow(clippy::unwrap_used)]

mod crash;
mod own;

use std::sync::Arc;

use async_trait::async_trait;
use eshaar_model::{Clock, Timestamp};

use super::{EmbeddedLog, Options};
use crate::Log;
use crate::conformance::Subject;

/// A log in a directory of its own, on a clock that stands.
pub(super) struct Opened {
    pub log: EmbeddedLog,
    pub clock: Clock,
    pub options: Options,
    _dir: tempfile::TempDir,
}

impl Opened {
    pub async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::in_dir(dir.path());
        change(&mut options);
        let clock = Clock::manual(Timestamp::from_millis(1_700_000_000_000));
        let log = open(&options, &clock).await;
        Self { log, clock, options, _dir: dir }
    }
}

/// Opens it as a server would: off the async threads.
pub(super) async fn open(options: &Options, clock: &Clock) -> EmbeddedLog {
    let (options, clock) = (options.clone(), clock.clone());
    tokio::task::spawn_blocking(move || EmbeddedLog::open(options, clock)).await.unwrap().unwrap()
}

#[async_trait]
impl Subject for Opened {
    fn log(&self) -> Arc<dyn Log> {
        Arc::new(self.log.clone())
    }

    async fn restart(&mut self) {
        self.log.close().await;
        self.log = open(&self.options, &self.clock).await;
    }

    async fn age(&mut self, millis: i64) {
        self.clock.advance_millis(millis);
        self.log.sweep().await.unwrap();
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

mod conformance {
    async fn opened() -> super::Opened {
        super::Opened::with(|_| {}).await
    }

    crate::conformance_tests!(opened);
}

/// The same with next to no memory: nearly everything is read from the file, and appends wait for room.
mod conformance_from_the_file {
    async fn opened() -> super::Opened {
        super::Opened::with(|options| {
            options.tail_bytes = 1;
            options.read_ahead_bytes = 1;
            options.queue_bytes = 1;
            options.readers = 1;
            options.checkpoint_bytes = 1;
        })
        .await
    }

    crate::conformance_tests!(opened);
}
