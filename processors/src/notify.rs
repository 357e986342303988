//! Tells senders live what becomes of their messages.
//!
//! Reads `message.status`; writes `deliveries`: a hint to every gateway where the sender has a session. A hint may be lost,
//! late or doubled: the history is the truth. So nothing here waits, and presence that does not answer costs the hint.

use std::sync::Arc;

use ahash::AHashMap;
use async_trait::async_trait;
use eshaar_model::{Clock, Principal};
use eshaar_presence::{Presence, Slots};
use eshaar_schemas::{Codecs, Delivery, EncodeError, Hint, StatusChanged, StatusHint};
use eshaar_topics::flow::{self, Origin};
use eshaar_topics::{NewRecord, Outcome, Received, Stage, StageError, Topic, headers};

use crate::{Undecodable, decode};

/// How long is waited for a registry that does not answer, in milliseconds.
const PAUSE_MS: u64 = 200;

/// The stage.
pub struct Notify {
    presence: Arc<dyn Presence>,
    codecs: Codecs,
    clock: Clock,
}

impl Notify {
    /// The stage, asking `presence` where senders are.
    pub fn new(presence: Arc<dyn Presence>, codecs: Codecs, clock: Clock) -> Self {
        Self { presence, codecs, clock }
    }

    /// The senders of a batch that are online.
    async fn online(&self, batch: &[Received]) -> AHashMap<Principal, Slots> {
        let mut senders: Vec<Principal> = batch.iter().filter_map(sender).collect();
        senders.sort_unstable();
        senders.dedup();
        match self.presence.slots_of(&senders).await {
            Ok(slots) => senders.into_iter().zip(slots).filter(|(_, slots)| !slots.is_empty()).collect(),
            Err(error) => {
                tracing::warn!(stage = Self::NAME, %error, "senders are not told live");
                AHashMap::new()
            }
        }
    }

    async fn outcome(&self, record: &Received, online: &AHashMap<Principal, Slots>) -> Outcome {
        let Some(sender) = sender(record) else {
            return Outcome::Dead { code: "headers", reason: format!("header {} is missing", headers::FROM) };
        };
        // Most senders are offline: their statuses are not even decoded.
        let Some(slots) = online.get(&sender) else { return Outcome::Done };
        match self.hints(record, &sender, slots).await {
            Ok(hints) => Outcome::Forward(hints),
            Err(Error::Undecodable(error)) => error.outcome(&self.clock, PAUSE_MS),
            Err(Error::Encode(error)) => Outcome::Dead { code: "unencodable", reason: error.to_string() },
        }
    }

    async fn hints(&self, record: &Received, sender: &Principal, slots: &Slots) -> Result<Vec<NewRecord>, Error> {
        let change: StatusChanged = decode(&self.codecs, &record.value).await?;
        let status = change.status.as_str().to_owned();
        let hint = Hint::Status(StatusHint { id: change.id, status, at: change.at });
        let principal = sender.to_string();
        let value = self.codecs.encode(&Delivery { principal: principal.clone(), hint })?;
        let (origin, now) = (Origin::of(&record.headers), self.clock.now());
        Ok(slots.iter().map(|slot| flow::delivery_of(value.clone(), &principal, *slot, now, origin)).collect())
    }
}

#[async_trait]
impl Stage for Notify {
    const NAME: &'static str = "notify";
    type Partition = ();

    fn inputs(&self) -> Vec<(Topic, u32)> {
        vec![(Topic::MessageStatus, 1)]
    }

    async fn open(&self, _partition: u32, _next: &[(Topic, u64)]) -> Result<(), StageError> {
        Ok(())
    }

    async fn handle(&self, (): &mut (), batch: &[Received]) -> Vec<Outcome> {
        let online = self.online(batch).await;
        let mut outcomes = Vec::with_capacity(batch.len());
        for record in batch {
            outcomes.push(self.outcome(record, &online).await);
        }
        outcomes
    }
}

fn sender(record: &Received) -> Option<Principal> {
    record.headers.text(headers::FROM)?.parse().ok()
}

/// A status that cannot be told.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}
