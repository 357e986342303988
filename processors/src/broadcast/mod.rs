//! One message to many: sends a broadcast to each of its recipients.
//!
//! Reads `broadcasts.requested`, keyed by the broadcast; writes a task for each, and has it among the open ones of the store.
//! [`expand`] sees the tasks through, beside the stage: a broadcast that takes hours holds no partition up. [`tally`] counts
//! what becomes of the messages. Invariants:
//! - a broadcast is open from before its record is settled until its last message was accepted, or it was taken back;
//! - a record that is read again opens nothing anew.

mod choice;
pub mod expand;
mod held;
pub(crate) mod room;
pub(crate) mod tally;
#[cfg(test)]
mod tests;
mod turns;

use async_trait::async_trait;
use eshaar_model::{BusinessId, Clock, Timestamp};
use eshaar_schemas::{Broadcast, Codecs};
use eshaar_store::broadcasts::{Progress, TASKS};
use eshaar_store::{BroadcastRow, Store, StoreError, Task};
use eshaar_topics::{Outcome, Received, Stage, StageError, Topic};
use serde::Deserialize;

use crate::{decode, pause};

/// How broadcasts are sent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Most chunks of broadcasts that this process sends at once; about 2 MiB each.
    pub at_once: usize,
    /// Most broadcasts that this process holds at once; most of them wait, for their rate, for room or for their turn.
    pub held: usize,
    /// Of those, most of one business; its others wait.
    pub held_per_business: usize,
    /// How many messages may wait in all lanes, and before them, for broadcasts to send more. What is sent singly waits
    /// behind at most so many where it is given to its lane.
    pub waiting: u64,
    /// How long is waited when the store or the registry does not answer, in milliseconds.
    pub pause_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { at_once: 32, held: 256, held_per_business: 8, waiting: 20_000, pause_ms: 1_000 }
    }
}

/// The stage.
pub struct OpenBroadcasts {
    store: Store,
    codecs: Codecs,
    clock: Clock,
    options: Options,
}

impl OpenBroadcasts {
    /// The stage.
    pub const fn new(store: Store, codecs: Codecs, clock: Clock, options: Options) -> Self {
        Self { store, codecs, clock, options }
    }

    async fn open(&self, broadcast: &Broadcast, business: BusinessId, record: &Received) -> Result<(), StoreError> {
        let created_at = Timestamp::from_millis(broadcast.created_at);
        let task = Task {
            kind: TASKS.to_owned(),
            id: broadcast.id.to_string(),
            made_at: created_at,
            progress: Progress::default().encode(),
            finished: false,
        };
        // First: what is open has a task.
        self.store.tasks.make(task).await?;
        let row = BroadcastRow { id: broadcast.id, business, created_at, value: record.value.clone() };
        self.store.broadcasts.open(row, broadcast.recipients).await
    }
}

#[async_trait]
impl Stage for OpenBroadcasts {
    const NAME: &'static str = "broadcast";
    type Partition = ();

    fn inputs(&self) -> Vec<(Topic, u32)> {
        vec![(Topic::BroadcastsRequested, 1)]
    }

    async fn open(&self, _partition: u32, _next: &[(Topic, u64)]) -> Result<(), StageError> {
        Ok(())
    }

    async fn handle(&self, (): &mut (), batch: &[Received]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(batch.len());
        for record in batch {
            let outcome = match decode::<Broadcast>(&self.codecs, &record.value).await {
                Ok(broadcast) => match broadcast.sender.parse() {
                    Ok(business) => match OpenBroadcasts::open(self, &broadcast, business, record).await {
                        Ok(()) => Outcome::Done,
                        Err(error) => pause(&self.clock, self.options.pause_ms, &error),
                    },
                    Err(_) => Outcome::Dead { code: "invalid", reason: "its sender is no business".to_owned() },
                },
                Err(error) => error.outcome(&self.clock, self.options.pause_ms),
            };
            outcomes.push(outcome);
        }
        outcomes
    }

    async fn sync(&self) -> Result<(), StageError> {
        self.store.engine.sync().await.map_err(|error| StageError(error.to_string()))
    }
}
