//! Tells senders live what becomes of their messages, and those who talk what becomes of their conversations.
//!
//! Reads `message.status` and `conversation.events`; writes `deliveries`: a hint to every gateway where the sender, or one of
//! the two sides, has a session. A hint may be lost, late or doubled: the history is the truth. So nothing here waits, and presence that does not answer costs the hint.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use async_trait::async_trait;
use eshaar_model::{Clock, MessageId, Principal};
use eshaar_presence::{Presence, Slots};
use eshaar_schemas::{
    Codecs, ConversationChanged, ConversationHint, Delivery, EncodeError, Hint, StatusChanged, StatusHint,
};
use eshaar_topics::flow::{self, Origin};
use eshaar_topics::{Outcome, Received, Retries, Stage, StageError, Topic, headers};

use crate::{by_topic, decode};

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

    /// Those of the principals that are online.
    async fn online(&self, mut principals: Vec<Principal>) -> AHashMap<Principal, Slots> {
        principals.sort_unstable();
        principals.dedup();
        match self.presence.slots_of_unmarked(&principals).await {
            Ok(slots) => principals.into_iter().zip(slots).filter(|(_, slots)| !slots.is_empty()).collect(),
            Err(error) => {
                tracing::warn!(stage = Self::NAME, %error, "what becomes of messages is not told live");
                AHashMap::new()
            }
        }
    }

    async fn statuses(&self, batch: &[Received]) -> Vec<Outcome> {
        let online = self.online(batch.iter().filter_map(sender).collect()).await;
        let mut outcomes = Vec::with_capacity(batch.len());
        for record in batch {
            outcomes.push(match sender(record) {
                None => Outcome::Dead { code: "headers", reason: format!("header {} is missing", headers::FROM) },
                // Most senders are offline: their statuses are not even decoded.
                Some(sender) if !online.contains_key(&sender) => Outcome::Done,
                Some(sender) => match decode::<StatusChanged>(&self.codecs, &record.value).await {
                    Ok(change) => self.forward(record, &[(&sender, status_hint(&change, &record.key))], &online),
                    Err(error) => error.outcome(&self.clock, PAUSE_MS),
                },
            });
        }
        outcomes
    }

    async fn conversations(&self, batch: &[Received]) -> Vec<Outcome> {
        let mut changes = Vec::with_capacity(batch.len());
        for record in batch {
            changes.push(match decode::<ConversationChanged>(&self.codecs, &record.value).await {
                Ok(change) => sides(&change).map(|sides| (change, sides)),
                Err(error) => Err(error.outcome(&self.clock, PAUSE_MS)),
            });
        }
        let told = changes.iter().filter_map(|change| change.as_ref().ok()).flat_map(|(_, (_, sides))| sides.clone());
        let online = self.online(told.collect()).await;
        let outcomes = batch.iter().zip(changes).map(|(record, change)| match change {
            Ok((change, (id, [business, phone]))) => {
                let hints = [(&business, &phone), (&phone, &business)];
                let hints = hints.map(|(who, with)| (who, conversation_hint(&change, id, with)));
                self.forward(record, &hints, &online)
            }
            Err(outcome) => outcome,
        });
        outcomes.collect()
    }

    /// Each hint to wherever its principal is.
    fn forward(
        &self,
        record: &Received,
        hints: &[(&Principal, StatusHint)],
        online: &AHashMap<Principal, Slots>,
    ) -> Outcome {
        let (origin, now) = (Origin::of(&record.headers), self.clock.now());
        let mut records = Vec::new();
        for (who, hint) in hints {
            let Some(slots) = online.get(who) else { continue };
            let principal = who.to_string();
            let hint = Hint::Status(hint.clone());
            match self.codecs.encode(&Delivery { principal: principal.clone(), hint }) {
                Ok(value) => records
                    .extend(slots.iter().map(|slot| flow::delivery_of(value.clone(), &principal, *slot, now, origin))),
                Err(error) => return unencodable(&error),
            }
        }
        if records.is_empty() { Outcome::Done } else { Outcome::Forward(records) }
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
        vec![(Topic::MessageStatus, 1), (Topic::ConversationEvents, 1)]
    }

    async fn open(&self, _partition: u32, _next: &[(Topic, u64)]) -> Result<(), StageError> {
        Ok(())
    }

    async fn handle(&self, (): &mut (), batch: &[Received]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(batch.len());
        for (topic, part) in by_topic(batch) {
            outcomes.extend(match topic {
                Topic::ConversationEvents => self.conversations(part).await,
                _ => self.statuses(part).await,
            });
        }
        outcomes
    }
}

fn sender(record: &Received) -> Option<Principal> {
    record.headers.text(headers::FROM)?.parse().ok()
}

/// The key is that of the message: a conversation's id, or a phone in E.164.
fn status_hint(change: &StatusChanged, key: &[u8]) -> StatusHint {
    let (status, of_chat) = (change.status.as_str().to_owned(), !key.starts_with(b"+"));
    StatusHint { id: change.id, status, at: change.at, conversation: None, of_chat }
}

/// The id of a conversation as hints have it, and its two sides: business and phone.
fn sides(change: &ConversationChanged) -> Result<(MessageId, [Principal; 2]), Outcome> {
    match (MessageId::from_bytes(change.id.as_bytes()), change.business.parse(), change.phone.parse()) {
        (Ok(id), Ok(business), Ok(phone)) => Ok((id, [Principal::Business(business), Principal::Phone(phone)])),
        _ => Err(Outcome::Dead { code: "invalid", reason: "business and phone must be what they say".to_owned() }),
    }
}

/// What becomes of a conversation, for the side that talks to `with` in it.
fn conversation_hint(change: &ConversationChanged, id: MessageId, with: &Principal) -> StatusHint {
    StatusHint {
        id,
        status: change.change.as_str().to_owned(),
        at: change.at,
        conversation: Some(ConversationHint {
            with: with.to_string(),
            by: change.by.clone(),
            up_to: change.up_to.clone(),
        }),
        of_chat: false,
    }
}

fn unencodable(error: &EncodeError) -> Outcome {
    Outcome::Dead { code: "unencodable", reason: error.to_string() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use eshaar_model::{ConversationId, Status};
    use eshaar_schemas::Change;
    use eshaar_topics::{Headers, NewRecord};

    use super::*;
    use crate::testing::{Engines, START, at, message};

    fn delivered(codecs: &Codecs) -> Received {
        delivered_of(codecs, b"+966500000001")
    }

    /// Of a message with this key.
    fn delivered_of(codecs: &Codecs, key: &'static [u8]) -> Received {
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
        at(flow::status(&change, Bytes::from_static(key), codecs, origin).unwrap(), Topic::MessageStatus, (0, 0))
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
    async fn a_hint_says_whether_its_message_is_one_of_a_conversation() {
        let engines = Engines::open().await;
        engines.connect("acme-bank").await;
        for (key, of_chat) in [(&b"+966500000001"[..], false), (b"019b7600-0000-7000-8000-000000000000", true)] {
            let mut outcomes = notify(&engines).handle(&mut (), &[delivered_of(&engines.codecs, key)]).await;
            let Outcome::Forward(hints) = outcomes.remove(0) else { panic!("not forwarded") };
            let delivery: Delivery = engines.codecs.decode(&hints[0].value).unwrap();
            let Hint::Status(hint) = delivery.hint else { panic!("not a status") };
            assert_eq!(hint.of_chat, of_chat);
        }
    }

    #[tokio::test]
    async fn a_sender_who_is_offline_is_told_nothing() {
        let engines = Engines::open().await;
        let outcomes = notify(&engines).handle(&mut (), &[delivered(&engines.codecs)]).await;
        assert!(matches!(outcomes[0], Outcome::Done));
    }

    const PHONE: &str = "+966500000001";

    fn closed(codecs: &Codecs) -> (ConversationId, Received) {
        let id = ConversationId::new(START);
        let change = ConversationChanged {
            id,
            change: Change::Closed,
            at: START.as_millis(),
            business: "acme-bank".to_owned(),
            phone: PHONE.to_owned(),
            by: "acme-bank".to_owned(),
            up_to: None,
        };
        (id, at(flow::conversation(&change, codecs, Origin::default()).unwrap(), Topic::ConversationEvents, (0, 0)))
    }

    #[tokio::test]
    async fn both_sides_are_told_what_becomes_of_their_conversation_where_they_are_online() {
        let engines = Engines::open().await;
        let (id, record) = closed(&engines.codecs);
        let told = async || {
            let mut outcomes = notify(&engines).handle(&mut (), std::slice::from_ref(&record)).await;
            let hints = match outcomes.remove(0) {
                Outcome::Forward(hints) => hints,
                Outcome::Done => Vec::new(),
                other => panic!("{other:?}"),
            };
            let of = |hint: &NewRecord| {
                let delivery: Delivery = engines.codecs.decode(&hint.value).unwrap();
                let Hint::Status(hint) = delivery.hint else { panic!("not a status") };
                let about = hint.conversation.unwrap();
                assert_eq!((hint.id.to_string(), hint.status.as_str()), (id.to_string(), "closed"));
                assert_eq!((about.by.as_str(), about.up_to), ("acme-bank", None));
                (delivery.principal, about.with)
            };
            hints.iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(told().await, []);
        let (to_business, to_phone) = (("acme-bank".into(), PHONE.into()), (PHONE.into(), "acme-bank".into()));
        engines.connect("acme-bank").await;
        assert_eq!(told().await, std::slice::from_ref(&to_business));
        engines.connect(PHONE).await;
        assert_eq!(told().await, [to_business, to_phone]);
    }

    #[tokio::test]
    async fn a_status_without_a_sender_is_dead() {
        let engines = Engines::open().await;
        let record = Received { headers: Headers::none(), ..delivered(&engines.codecs) };
        let outcomes = notify(&engines).handle(&mut (), &[record]).await;
        assert!(matches!(outcomes[0], Outcome::Dead { code: "headers", .. }));
    }
}
