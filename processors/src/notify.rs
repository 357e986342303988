//! Tells senders live what becomes of their messages.
//!
//! Reads `message.status`; writes `deliveries`: a hint to every gateway where the sender has a session. A hint may be lost,
//! late or doubled: the history is the truth. So nothing here waits, and presence that does not answer costs the hint.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use async_trait::async_trait;
use eshaar_model::{Clock, Principal};
use eshaar_presence::{Presence, Slots};
use eshaar_schemas::{Codecs, Delivery, EncodeError, Hint, StatusChanged, StatusHint};
use eshaar_topics::flow::{self, Origin};
use eshaar_topics::{NewRecord, Outcome, Received, Retries, Stage, StageError, Topic, headers};

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
    /// Statuses are told in any order: a client takes the highest.
    const RETRIES: Retries = Retries::Unordered(Topic::RETRY_NOTIFY);
    /// A receipt is no message.
    const PATIENCE: Duration = Duration::from_millis(50);
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use eshaar_model::Status;
    use eshaar_topics::Headers;

    use super::*;
    use crate::testing::{Engines, START, at, message};

    fn delivered(codecs: &Codecs) -> Received {
        let message = message(1);
        let change = StatusChanged {
            id: message.id,
            status: Status::Delivered,
            at: START.as_millis(),
            sender: message.sender,
            recipient: message.recipient,
            reason: None,
        };
        let origin = Origin { traceparent: None, correlation: Some("c-1") };
        at(flow::status(&change, Bytes::from_static(b"key"), codecs, origin).unwrap(), Topic::MessageStatus, (0, 0))
    }

    fn notify(engines: &Engines) -> Notify {
        Notify::new(Arc::clone(&engines.presence) as _, engines.codecs.clone(), engines.clock.clone())
    }

    #[tokio::test]
    async fn a_sender_who_is_online_is_told_at_their_gateway() {
        let engines = Engines::open().await;
        engines.connect("acme-bank").await;
        let mut outcomes = notify(&engines).handle(&mut (), &[delivered(&engines.codecs)]).await;
        let Outcome::Forward(hints) = outcomes.remove(0) else { panic!("not forwarded") };
        let delivery: Delivery = engines.codecs.decode(&hints[0].value).unwrap();
        let Hint::Status(hint) = delivery.hint else { panic!("not a status") };
        assert_eq!((hints.len(), hints[0].topic, hints[0].partition), (1, Topic::Deliveries, Some(3)));
        assert_eq!((delivery.principal.as_str(), hint.status.as_str()), ("acme-bank", "delivered"));
        assert_eq!(Origin::of(&hints[0].headers).correlation, Some("c-1"));
    }

    #[tokio::test]
    async fn a_sender_who_is_offline_is_told_nothing() {
        let engines = Engines::open().await;
        let outcomes = notify(&engines).handle(&mut (), &[delivered(&engines.codecs)]).await;
        assert!(matches!(outcomes[0], Outcome::Done));
    }

    #[tokio::test]
    async fn a_status_without_a_sender_is_dead() {
        let engines = Engines::open().await;
        let record = Received { headers: Headers::none(), ..delivered(&engines.codecs) };
        let outcomes = notify(&engines).handle(&mut (), &[record]).await;
        assert!(matches!(outcomes[0], Outcome::Dead { code: "headers", .. }));
    }
}
