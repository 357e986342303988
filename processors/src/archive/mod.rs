//! Writes what was accepted, and what became of it, to the history, and tells those who talk of what was said.
//!
//! Reads `messages.accepted`, `messages.scheduled` and `message.status`; writes the store's messages, by id, its
//! conversations, tallies of broadcasts, and timers of what expires; `deliveries`; and `message.status` of what has expired
//! ([`expiry`]), or was cancelled before it was here. What has changed is said to the cache behind each write, and
//! nothing is settled before. A message or a step that is written again changes nothing, so a
//! replay has no effect; a step may come before its message, and a message that was scheduled before it is known to have
//! been.
//!
//! A message stands in its conversation once, where its first record does in `messages.accepted`. It is there before anybody
//! is told: businesses have no stream, so agents get hints from here, and phones of what they said on another device.

mod cancelled;
mod expiry;
#[cfg(test)]
mod expiry_tests;
mod said;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashSet;
use async_trait::async_trait;
use eshaar_model::{Clock, ConversationId, Epoch, MessageKind, Side, Timestamp};
use eshaar_presence::Presence;
use eshaar_presence::cache::{Cache, Key};
use eshaar_schemas::{Codecs, Message, StatusChanged};
use eshaar_store::{MessageRow, Step, Store, StoreError};
use eshaar_topics::{Cancelled, Log, LogPosition, Outcome, Received, Stage, StageError, Topic, headers};
use serde::Deserialize;

use self::expiry::{Expiry, Mover};
use self::said::{Partition, Said, chat_row};
use crate::broadcast::tally::Tallies;
use crate::timers::Ours;
use crate::whereabouts::Whereabouts;
use crate::{Undecodable, by_topic, decode, pause};

/// How history is written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How long an id of what was said is kept in memory to find repeats, in milliseconds by this process's clock; older ones
    /// are looked for in the history.
    pub window_ms: u64,
    /// Most ids in the window of a partition: about 60 bytes each.
    pub window_ids: usize,
    /// How long is waited when the store or the registry does not answer, in milliseconds.
    pub pause_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { window_ms: 120_000, window_ids: 50_000, pause_ms: 200 }
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
    /// What was cancelled, perhaps before the history had it.
    pub cancelled: Arc<Cancelled>,
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
    cancelled: Arc<Cancelled>,
    expiries: Mover,
    options: Options,
}

impl Archive {
    /// The stage.
    pub fn new(ports: Ports, codecs: Codecs, clock: Clock, options: Options) -> Self {
        let Ports { log, store, presence, cache, cancelled } = ports;
        let epoch = log.epoch();
        let tallies = Tallies::new(Arc::clone(&store.broadcasts), epoch);
        let whereabouts = Whereabouts::new(presence, clock.clone(), log.partitions(Topic::Deliveries));
        let expiries = Mover {
            log,
            store: store.clone(),
            codecs: codecs.clone(),
            cancelled: Arc::clone(&cancelled),
            clock: clock.clone(),
        };
        Self { store, cache, epoch, codecs, clock, tallies, whereabouts, cancelled, expiries, options }
    }

    async fn messages(&self, of: &mut Partition, batch: &[Received]) -> Vec<Outcome> {
        let (mut rows, mut outcomes) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        let (mut said, mut timers) = (Vec::new(), Vec::new());
        for (place, record) in batch.iter().enumerate() {
            let row = match decode::<Message>(&self.codecs, &record.value).await {
                Ok(message) => {
                    // What waits for its time gets its timer when it is sent.
                    let is_sent = record.position.topic == Topic::MessagesAccepted;
                    timers.extend(expiry::timer(&message, record).filter(|_| is_sent));
                    row(&message, record)
                }
                Err(error) => Err(error.into()),
            };
            let chat = row.as_ref().ok().map(|row| chat_row(row, self.epoch)).transpose();
            match chat {
                Ok(chat) => {
                    let may_repeat = record.headers.get(headers::REPEAT).is_some();
                    said.extend(chat.flatten().map(|row| Said { place, may_repeat, row }));
                }
                Err(error) => {
                    outcomes.push(self.collect(Err(error), &mut rows));
                    continue;
                }
            }
            outcomes.push(self.collect(row, &mut rows));
        }
        let mut kept = self.keep(of, rows, &mut said).await;
        if kept.is_ok() && !timers.is_empty() {
            match of.put_timers(timers).await {
                Ok(Ours::Yes) => {}
                Ok(Ours::No) => {
                    let reason = "another has taken the timers of expiry over";
                    return vec![pause(&self.clock, self.options.pause_ms, &reason)];
                }
                Err(error) => kept = Err(error),
            }
        }
        if kept.is_ok() {
            if !said.is_empty() {
                for (place, hints) in self.hints(of, said, batch).await {
                    outcomes[place] = Outcome::Forward(hints);
                }
            }
            kept = self.add_cancelled(batch, &mut outcomes).await;
        }
        self.unless_failed(&kept, outcomes)
    }

    async fn statuses(&self, of: &Partition, batch: &[Received]) -> Vec<Outcome> {
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
        if written.is_ok() {
            let unread = outcomes.iter().position(|outcome| matches!(outcome, Outcome::Pause { .. }));
            let read = &batch[..unread.unwrap_or(batch.len())];
            of.archived(read.last().map_or(0, |record| record.position.offset + 1));
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
    type Partition = Partition;

    fn inputs(&self) -> Vec<(Topic, u32)> {
        vec![(Topic::MessagesAccepted, 1), (Topic::MessagesScheduled, 1), (Topic::MessageStatus, 1)]
    }

    async fn open(&self, partition: u32, next: &[(Topic, u64)]) -> Result<Self::Partition, StageError> {
        // Whoever had the partition may have died before it said what it changed.
        self.cache.invalidate_all().await;
        self.tallies.open(partition).await.map_err(|error| StageError(error.to_string()))?;
        // Ingest stamps records by its own clock, which may be ahead of this one.
        let known_from = self.clock.now().plus_millis(self.options.window_ms as i64);
        let archived = next.iter().find(|(topic, _)| *topic == Topic::MessageStatus).map_or(0, |(_, offset)| *offset);
        let expiry = Expiry::open(&self.expiries, partition, archived).await;
        let expiry = expiry.map_err(|error| StageError(error.to_string()))?;
        Ok(Partition::new(partition, &self.options, known_from).with(expiry))
    }

    async fn handle(&self, of: &mut Partition, batch: &[Received]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(batch.len());
        for (topic, part) in by_topic(batch) {
            outcomes.extend(match topic {
                Topic::MessageStatus => self.statuses(of, part).await,
                _ => self.messages(of, part).await,
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
        may_repeat: record.headers.get(headers::REPEAT).is_some(),
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
