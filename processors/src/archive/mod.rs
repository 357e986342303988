//! Writes what was accepted, and what became of it, to the history, and tells those who talk of what was said.
//!
//! Reads `messages.accepted`, `messages.scheduled` and `message.status`; writes the store's messages, by id, its
//! conversations, and tallies of broadcasts; and `deliveries`. What has changed is said to the cache behind each write, and
//! nothing is settled before. A message or a step that is written again changes nothing, so a
//! replay has no effect; a step may come before its message, and a message that was scheduled before it is known to have
//! been.
//!
//! A message stands in its conversation once, where its first record does in `messages.accepted`. It is there before anybody
//! is told: businesses have no stream, so agents get hints from here, and phones of what they said on another device.

mod said;

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashSet;
use async_trait::async_trait;
use eshaar_model::{Clock, ConversationId, Epoch, MessageKind, Side, Timestamp};
use eshaar_presence::Presence;
use eshaar_presence::cache::{Cache, Key};
use eshaar_schemas::{Codecs, Message, StatusChanged};
use eshaar_store::{MessageRow, Step, Store, StoreError};
use eshaar_topics::{Log, LogPosition, Outcome, Received, Stage, StageError, Topic};
use serde::Deserialize;

use self::said::{PREVIOUS_CONVERSATIONS, Said, chat_row};
use crate::broadcast::tally::Tallies;
use crate::previous::Previous;
use crate::whereabouts::Whereabouts;
use crate::{Undecodable, decode, pause};

/// How history is written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How long is waited when the store or the registry does not answer, in milliseconds.
    pub pause_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { pause_ms: 200 }
    }
}

/// What the stage reads and writes besides its records.
#[derive(Clone)]
pub struct Ports {
    /// Its epoch is part of positions.
    pub log: Arc<dyn Log>,
    /// The history.
    pub store: Store,
    /// Who is connected where.
    pub presence: Arc<dyn Presence>,
    /// What is read of conversations without the store.
    pub cache: Arc<dyn Cache>,
}

/// The stage.
pub struct Archive {
    store: Store,
    cache: Arc<dyn Cache>,
    epoch: Epoch,
    codecs: Codecs,
    clock: Clock,
    tallies: Tallies,
    whereabouts: Whereabouts,
    options: Options,
}

impl Archive {
    /// The stage.
    pub fn new(ports: Ports, codecs: Codecs, clock: Clock, options: Options) -> Self {
        let Ports { log, store, presence, cache } = ports;
        let epoch = log.epoch();
        let tallies = Tallies::new(Arc::clone(&store.broadcasts), epoch);
        let whereabouts = Whereabouts::new(presence, clock.clone(), log.partitions(Topic::Deliveries));
        Self { store, cache, epoch, codecs, clock, tallies, whereabouts, options }
    }

    async fn messages(&self, previous: &mut Previous<ConversationId>, batch: &[Received]) -> Vec<Outcome> {
        let (mut rows, mut outcomes) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        let mut said = Vec::new();
        for (place, record) in batch.iter().enumerate() {
            let row = match decode::<Message>(&self.codecs, &record.value).await {
                Ok(message) => row(&message, record),
                Err(error) => Err(error.into()),
            };
            let chat = row.as_ref().ok().map(|row| chat_row(row, self.epoch)).transpose();
            match chat {
                Ok(chat) => said.extend(chat.flatten().map(|row| Said { place, row })),
                Err(error) => {
                    outcomes.push(self.collect(Err(error), &mut rows));
                    continue;
                }
            }
            outcomes.push(self.collect(row, &mut rows));
        }
        let partition = batch.first().map_or(0, |record| record.position.partition);
        match self.keep(partition, rows, &mut said).await {
            Ok(()) if said.is_empty() => outcomes,
            Ok(()) => {
                for (place, hints) in self.hints(previous, said, batch).await {
                    outcomes[place] = Outcome::Forward(hints);
                }
                outcomes
            }
            failed @ Err(_) => self.unless_failed(&failed, outcomes),
        }
    }

    async fn statuses(&self, batch: &[Received]) -> Vec<Outcome> {
        let (mut steps, mut outcomes) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        let mut changed = Vec::new();
        for record in batch {
            let decoded = decode::<StatusChanged>(&self.codecs, &record.value).await;
            if let (Ok(change), Some(conversation)) = (&decoded, conversation_of(record)) {
                changed.extend(Key::of_step(conversation, recipient(change), change.status));
            }
            outcomes.push(self.collect(decoded.map(step).map_err(Error::from), &mut steps));
        }
        let mut written = if steps.is_empty() { Ok(()) } else { self.store.messages.reach(steps).await };
        self.changed(changed.into_iter()).await;
        if written.is_ok() {
            written = self.tallies.note(batch).await;
        }
        self.unless_failed(&written, outcomes)
    }

    /// Says to the cache what has changed, whether or not it is known to have.
    async fn changed(&self, keys: impl Iterator<Item = Key>) {
        let keys: AHashSet<Key> = keys.collect();
        if !keys.is_empty() {
            self.cache.invalidate(keys.into_iter().collect()).await;
        }
    }

    fn collect<T>(&self, item: Result<T, Error>, items: &mut Vec<T>) -> Outcome {
        match item {
            Ok(item) => {
                items.push(item);
                Outcome::Done
            }
            Err(Error::Undecodable(error)) => error.outcome(&self.clock, self.options.pause_ms),
            Err(error @ Error::Invalid { .. }) => Outcome::Dead { code: "invalid", reason: error.to_string() },
        }
    }

    /// Whether the store has the batch is unknown when it failed: all of it again.
    fn unless_failed(&self, written: &Result<(), StoreError>, outcomes: Vec<Outcome>) -> Vec<Outcome> {
        match written {
            Ok(()) => outcomes,
            Err(error) => vec![pause(&self.clock, self.options.pause_ms, error)],
        }
    }
}

#[async_trait]
impl Stage for Archive {
    const NAME: &'static str = "archive";
    /// History is looked up by people, who come later; what is said in it is told from here.
    const PATIENCE: Duration = Duration::from_millis(25);
    type Partition = Previous<ConversationId>;

    fn inputs(&self) -> Vec<(Topic, u32)> {
        vec![(Topic::MessagesAccepted, 1), (Topic::MessagesScheduled, 1), (Topic::MessageStatus, 1)]
    }

    async fn open(&self, partition: u32, _next: &[(Topic, u64)]) -> Result<Self::Partition, StageError> {
        // Whoever had the partition may have died before it said what it changed.
        self.cache.invalidate_all().await;
        self.tallies.open(partition).await.map_err(|error| StageError(error.to_string()))?;
        Ok(Previous::new(PREVIOUS_CONVERSATIONS))
    }

    async fn handle(&self, previous: &mut Self::Partition, batch: &[Received]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(batch.len());
        for of_topic in batch.chunk_by(|one, other| one.position.topic == other.position.topic) {
            outcomes.extend(match of_topic[0].position.topic {
                Topic::MessageStatus => self.statuses(of_topic).await,
                _ => self.messages(previous, of_topic).await,
            });
            if let Some(Outcome::Pause { .. }) = outcomes.last() {
                break;
            }
        }
        outcomes
    }

    async fn sync(&self) -> Result<(), StageError> {
        self.tallies.flush().await.map_err(|error| StageError(error.to_string()))?;
        self.store.engine.sync().await.map_err(|error| StageError(error.to_string()))
    }
}

/// A message as history keeps it.
fn row(message: &Message, record: &Received) -> Result<MessageRow, Error> {
    let LogPosition { topic, partition, offset } = record.position;
    let conversation = message.conversation_id.as_deref().map(str::parse).transpose();
    let conversation = conversation.map_err(|error| Error::invalid("conversation_id", &error))?;
    let kind = MessageKind::new(message.r#type, conversation).map_err(|error| Error::invalid("type", &error))?;
    Ok(MessageRow {
        id: message.id,
        message_type: kind.message_type(),
        conversation: kind.conversation(),
        sender: message.sender.parse().map_err(|error| Error::invalid("sender", &error))?,
        recipient: message.recipient.parse().map_err(|error| Error::invalid("recipient", &error))?,
        created_at: Timestamp::from_millis(message.created_at),
        expires_at: message.expires_at.map(Timestamp::from_millis),
        // What waits for its time stands nowhere yet.
        accepted: (partition, (topic == Topic::MessagesAccepted).then_some(offset)),
        value: record.value.clone(),
    })
}

/// The conversation of a record of `message.status`, whose key it is; that of a one-way message has another.
fn conversation_of(record: &Received) -> Option<ConversationId> {
    std::str::from_utf8(&record.key).ok()?.parse().ok()
}

/// The side that a message of a conversation is for.
fn recipient(change: &StatusChanged) -> Side {
    if change.recipient.starts_with('+') { Side::Phone } else { Side::Business }
}

fn step(change: StatusChanged) -> Step {
    Step { id: change.id, status: change.status, at: Timestamp::from_millis(change.at), reason: change.reason }
}

/// A record that history cannot keep.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    #[error("field {field}: {reason}")]
    Invalid { field: &'static str, reason: String },
}

impl Error {
    fn invalid(field: &'static str, error: &dyn std::error::Error) -> Self {
        Self::Invalid { field, reason: error.to_string() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use eshaar_model::{Lane, MessageType, Pair, Status};
    use eshaar_presence::cache::{Fill, Lookup};
    use eshaar_schemas::{Delivery, Hint, MessageHint};
    use eshaar_service::TraceContext;
    use eshaar_store::ReadFrom;
    use eshaar_topics::NewRecord;
    use eshaar_topics::flow::{self, Origin};

    use super::*;
    use crate::testing::{Engines, START, at, message, received};

    fn archive(engines: &Engines) -> Archive {
        let ports = Ports {
            log: Arc::new(engines.log.clone()),
            store: engines.store.clone(),
            presence: Arc::clone(&engines.presence) as _,
            cache: Arc::clone(&engines.cache) as _,
        };
        Archive::new(ports, engines.codecs.clone(), engines.clock.clone(), Options::default())
    }

    fn nothing_known() -> Previous<ConversationId> {
        Previous::new(PREVIOUS_CONVERSATIONS)
    }

    const PHONE: &str = "+966500000001";

    /// What one side says to the other in a conversation.
    fn said(conversation: ConversationId, from: Side) -> Message {
        let (sender, recipient) = match from {
            Side::Business => ("acme-bank", PHONE),
            Side::Phone => (PHONE, "acme-bank"),
        };
        Message {
            r#type: MessageType::Chat,
            conversation_id: Some(conversation.to_string()),
            sender: sender.to_owned(),
            recipient: recipient.to_owned(),
            ..message(1)
        }
    }

    fn pair() -> Pair {
        Pair { business: "acme-bank".parse().unwrap(), phone: PHONE.parse().unwrap() }
    }

    /// Whom each record is told to, and what.
    fn told(outcomes: Vec<Outcome>, codecs: &Codecs) -> Vec<Vec<(String, MessageHint)>> {
        let of = |record: NewRecord| {
            let delivery: Delivery = codecs.decode(&record.value).unwrap();
            let Hint::Message(hint) = delivery.hint else { panic!("not a message") };
            assert_eq!((record.topic, record.partition), (Topic::Deliveries, Some(3)));
            (delivery.principal, hint)
        };
        let each = outcomes.into_iter().map(|outcome| match outcome {
            Outcome::Forward(records) => records.into_iter().map(of).collect(),
            Outcome::Done => Vec::new(),
            other => panic!("{other:?}"),
        });
        each.collect()
    }

    #[tokio::test]
    async fn what_is_said_stands_in_its_conversation_where_it_stands_first_in_the_log() {
        let engines = Engines::open().await;
        let (archive, mut previous) = (archive(&engines), nothing_known());
        let conversation = engines.store.conversations.start(&pair()).await.unwrap().conversation.id;
        let (asked, answered) = (said(conversation, Side::Phone), said(conversation, Side::Business));
        let record = |message: &Message, offset| received(message, Lane::Normal, &engines.codecs, (4, offset));
        let first = [record(&asked, 7), record(&answered, 8), record(&asked, 9)];
        // A replay, a repeat of its own, and a replay of all.
        for batch in [&first[..2], &first[..], &first[2..], &[record(&answered, 12)][..], &first[..]] {
            let outcomes = archive.handle(&mut previous, batch).await;
            assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done | Outcome::Forward(_))));
        }
        let page = engines.store.conversations.history(conversation, ReadFrom::Newest, 10).await.unwrap();
        let rows: Vec<_> = page.rows.iter().map(|row| (row.id, row.from, row.position.offset)).collect();
        assert_eq!(rows, [(asked.id, Side::Phone, 7), (answered.id, Side::Business, 8)]);
        let known = engines.store.conversations.get(conversation).await.unwrap().unwrap();
        assert_eq!(known.last.unwrap().id, answered.id);
    }

    #[tokio::test]
    async fn agents_are_told_of_everything_and_a_phone_of_what_it_said_each_with_what_stands_before() {
        let engines = Engines::open().await;
        engines.connect("acme-bank").await;
        engines.connect(PHONE).await;
        let (archive, mut previous) = (archive(&engines), nothing_known());
        let conversation = engines.store.conversations.start(&pair()).await.unwrap().conversation.id;
        let record = |from, offset| received(&said(conversation, from), Lane::Normal, &engines.codecs, (4, offset));
        let batch = [record(Side::Phone, 7), record(Side::Business, 9)];
        let hints = told(archive.handle(&mut previous, &batch).await, &engines.codecs);
        let whom = |hints: &[(String, MessageHint)]| hints.iter().map(|(who, _)| who.clone()).collect::<Vec<_>>();
        assert_eq!(
            (whom(&hints[0]), whom(&hints[1])),
            (vec!["acme-bank".into(), PHONE.into()], vec!["acme-bank".into()])
        );
        let place = |hint: &MessageHint| (hint.in_conversation, hint.epoch, hint.offset, hint.prev);
        assert_eq!((place(&hints[0][0].1), place(&hints[1][0].1)), ((true, 1, 7, Some(-1)), (true, 1, 9, Some(7))));
        assert_eq!(hints[1][0].1.message, batch[1].value);

        // Another owner of the partition looks it up.
        let mut anew = nothing_known();
        let hints = told(archive.handle(&mut anew, &[record(Side::Phone, 12)]).await, &engines.codecs);
        assert_eq!(place(&hints[0][0].1), (true, 1, 12, Some(9)));
    }

    /// Has a value in every place; which of them held one already.
    async fn fill(engines: &Engines, keys: &[Key]) -> Vec<bool> {
        let mut held = Vec::new();
        for (key, lookup) in keys.iter().zip(engines.cache.look_up(keys).await.unwrap()) {
            held.push(matches!(lookup, Lookup::Hit(_)));
            if let Lookup::Miss(lease) = lookup {
                engines.cache.fill(vec![Fill { key: key.clone(), lease, value: Bytes::new() }]).await.unwrap();
            }
        }
        held
    }

    #[tokio::test]
    async fn what_changes_is_said_to_the_cache_and_whoever_takes_over_says_that_anything_may_have() {
        let engines = Engines::open().await;
        let (archive, mut previous) = (archive(&engines), nothing_known());
        let conversation = engines.store.conversations.start(&pair()).await.unwrap().conversation.id;
        let mut keys: Vec<Key> = Key::of_message(conversation, &pair(), Side::Business).collect();
        keys.push(Key::Unread(conversation, Side::Phone));
        let but = |changed: &[Key]| keys.iter().map(|key| !changed.contains(key)).collect::<Vec<_>>();
        let (newest, unread) = (Key::Newest(conversation), Key::Unread(conversation, Side::Business));
        assert_eq!(fill(&engines, &keys).await, [false; 7]);
        let asked = said(conversation, Side::Phone);
        archive.handle(&mut previous, &[received(&asked, Lane::Normal, &engines.codecs, (4, 7))]).await;
        assert_eq!(fill(&engines, &keys).await, but(&keys[..6]), "what a phone said it has not unread itself");

        for (step, changed) in [(Status::Delivered, vec![newest.clone()]), (Status::Read, vec![newest, unread])] {
            let reached = status(&asked, step, &engines.codecs);
            let reached = Received { key: conversation.to_string().into(), ..reached };
            archive.handle(&mut previous, &[reached]).await;
            assert_eq!(fill(&engines, &keys).await, but(&changed), "{step}");
        }
        archive.handle(&mut previous, &[received(&message(1), Lane::High, &engines.codecs, (4, 8))]).await;
        assert_eq!(fill(&engines, &keys).await, [true; 7], "a one-way message is of no conversation");
        archive.open(4, &[]).await.unwrap();
        assert_eq!(fill(&engines, &keys).await, [false; 7], "the partition was another's");
    }

    #[tokio::test]
    async fn what_two_businesses_say_to_each_other_is_no_conversation() {
        let engines = Engines::open().await;
        let odd = Message { sender: "acme-bank".into(), ..said(ConversationId::new(START), Side::Phone) };
        let record = received(&odd, Lane::Normal, &engines.codecs, (0, 0));
        let outcomes = archive(&engines).handle(&mut nothing_known(), &[record]).await;
        assert!(matches!(outcomes[0], Outcome::Dead { code: "invalid", .. }));
        assert_eq!(engines.store.messages.get(odd.id).await.unwrap(), None);
    }

    fn status(message: &Message, status: Status, codecs: &Codecs) -> Received {
        let change = StatusChanged {
            id: message.id,
            status,
            at: START.as_millis() + 5,
            sender: message.sender.clone(),
            recipient: message.recipient.clone(),
            reason: None,
        };
        let new = flow::status(&change, Bytes::from_static(b"key"), codecs, Origin::default()).unwrap();
        at(new, Topic::MessageStatus, (1, 0))
    }

    #[tokio::test]
    async fn a_message_and_its_steps_are_in_the_history_however_often_they_are_read() {
        let engines = Engines::open().await;
        let (archive, message) = (archive(&engines), message(1));
        let accepted = received(&message, Lane::High, &engines.codecs, (4, 7));
        let again = received(&message, Lane::High, &engines.codecs, (4, 9));
        let delivered = status(&message, Status::Delivered, &engines.codecs);
        // A step may come first.
        for batch in [vec![delivered.clone()], vec![accepted.clone(), again], vec![accepted.clone()], vec![delivered]] {
            let outcomes = archive.handle(&mut nothing_known(), &batch).await;
            assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done)));
        }
        let stored = engines.store.messages.get(message.id).await.unwrap().unwrap();
        assert_eq!((stored.row.accepted, &stored.row.value), ((4, Some(7)), &accepted.value));
        assert_eq!(stored.steps.at(Status::Sent), Some(START));
        assert_eq!(stored.steps.at(Status::Delivered), Some(START.plus_millis(5)));
    }

    #[tokio::test]
    async fn what_waits_for_its_time_is_scheduled_until_it_is_accepted_whichever_is_read_first() {
        let engines = Engines::open().await;
        let archive = archive(&engines);
        for accepted_first in [false, true] {
            let due = Message { created_at: START.as_millis() + 60_000, ..message(1) };
            let scheduled = flow::accepted(&due, Lane::High, &engines.codecs, &TraceContext::new()).unwrap();
            let scheduled = at(flow::scheduled(scheduled, START), Topic::MessagesScheduled, (4, 7));
            let sent = Message { created_at: START.as_millis() + 60_003, ..due.clone() };
            let sent = received(&sent, Lane::High, &engines.codecs, (4, 9));
            let again = received(&due, Lane::High, &engines.codecs, (4, 10));
            if !accepted_first {
                assert!(matches!(
                    archive.handle(&mut nothing_known(), std::slice::from_ref(&scheduled)).await[..],
                    [Outcome::Done]
                ));
                let stored = engines.store.messages.get(due.id).await.unwrap().unwrap();
                assert_eq!((stored.row.accepted, stored.steps.current()), ((4, None), None));
                assert_eq!(stored.row.created_at, START.plus_millis(60_000));
            }
            for record in [sent, again, scheduled] {
                assert!(matches!(archive.handle(&mut nothing_known(), &[record]).await[..], [Outcome::Done]));
            }
            let stored = engines.store.messages.get(due.id).await.unwrap().unwrap();
            assert_eq!((stored.row.accepted, stored.steps.current()), ((4, Some(9)), Some(Status::Sent)));
            assert_eq!(stored.steps.at(Status::Sent), Some(START.plus_millis(60_003)));
        }
    }

    #[tokio::test]
    async fn what_cannot_be_decoded_is_dead_and_the_rest_of_its_batch_is_kept() {
        let engines = Engines::open().await;
        let (archive, message) = (archive(&engines), message(1));
        let good = received(&message, Lane::High, &engines.codecs, (0, 1));
        let frame = Received { value: Bytes::from_static(b"nonsense"), ..good.clone() };
        let torn = Received { value: good.value.slice(..9), ..good.clone() };
        let outcomes = archive.handle(&mut nothing_known(), &[frame, torn, good]).await;
        assert!(matches!(outcomes[0], Outcome::Dead { code: "undecodable", .. }));
        assert!(matches!(outcomes[1], Outcome::Dead { code: "undecodable", .. }));
        assert!(matches!(outcomes[2], Outcome::Done));
        assert!(engines.store.messages.get(message.id).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_message_whose_fields_contradict_each_other_is_dead() {
        let engines = Engines::open().await;
        let conversation_id = Some(message(1).id.to_string());
        let odd = Message { conversation_id, ..message(1) };
        let record = received(&odd, Lane::High, &engines.codecs, (0, 0));
        let outcomes = archive(&engines).handle(&mut nothing_known(), &[record]).await;
        assert!(matches!(outcomes[0], Outcome::Dead { code: "invalid", .. }));
    }

    #[tokio::test]
    async fn an_unknown_schema_waits_for_the_registry() {
        let engines = Engines::open().await;
        let record = received(&message(1), Lane::High, &engines.codecs, (0, 0));
        let value = Bytes::from_static(&[0, 0, 0, 9, 9, 1, 2, 3]);
        let outcomes = archive(&engines).handle(&mut nothing_known(), &[Received { value, ..record }]).await;
        assert!(matches!(outcomes[0], Outcome::Pause { until, .. } if until == START.plus_millis(200)));
    }

    #[tokio::test]
    async fn a_store_that_does_not_answer_holds_the_batch_and_kills_nothing() {
        let engines = Engines::open().await;
        engines.store.engine.close().await.unwrap();
        let record = received(&message(1), Lane::High, &engines.codecs, (0, 0));
        let outcomes = archive(&engines).handle(&mut nothing_known(), &[record.clone(), record]).await;
        assert!(matches!(outcomes[0], Outcome::Pause { .. }));
    }
}
