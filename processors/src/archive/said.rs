//! What was said in conversations: written where it stands first, and told to those who have no stream for it.

use ahash::{AHashMap, AHashSet};
use eshaar_model::{ConversationId, ConversationPosition, Epoch, MessageId, Pair, Principal, Side, Timestamp};
use eshaar_presence::Slots;
use eshaar_presence::cache::Key;
use eshaar_schemas::{Delivery, EncodeError, Hint, MessageHint};
use eshaar_service::metrics::ARCHIVE_REPEATS;
use eshaar_store::{ChatRow, MessageRow, ReadFrom, StoreError, StoredMessage, Timer};
use eshaar_topics::flow::{self, Origin};
use eshaar_topics::{NewRecord, Received, Stage as _};
use metrics::counter;

use super::expiry::Expiry;
use super::{Archive, Error, Options};
use crate::previous::Previous;
use crate::timers::Ours;
use crate::window::{Repeat, Window};

/// Conversations of a partition whose last position is kept at hand: about 60 bytes each.
const PREVIOUS_CONVERSATIONS: usize = 50_000;

/// A message that was said.
pub(super) struct Said {
    /// Its place in the batch.
    pub(super) place: usize,
    /// Whether its record says that there may be an earlier one, which may be of another partition.
    pub(super) may_repeat: bool,
    pub(super) row: ChatRow,
}

/// What is remembered of a partition while it is ours.
pub struct Partition {
    number: u32,
    /// The ids of what was said.
    window: Window,
    previous: Previous<ConversationId>,
    /// The timers of what expires; none in tests of other things.
    expiry: Option<Expiry>,
}

impl Partition {
    /// Of the partition of that number; what was said in its records that are stamped before `known_from` is not known.
    pub(super) fn new(number: u32, options: &Options, known_from: Timestamp) -> Self {
        let window = Window::new(options.window_ms as i64, options.window_ids.max(1), known_from);
        Self { number, window, previous: Previous::new(PREVIOUS_CONVERSATIONS), expiry: None }
    }

    /// With timers.
    pub(super) fn with(self, expiry: Expiry) -> Self {
        Self { expiry: Some(expiry), ..self }
    }

    /// Writes timers of messages that expire.
    pub(super) async fn put_timers(&self, timers: Vec<Timer>) -> Result<Ours, StoreError> {
        match &self.expiry {
            Some(expiry) => expiry.put(timers).await,
            None => Ok(Ours::Yes),
        }
    }

    /// The history has the statuses of the partition up to this offset.
    pub(super) fn archived(&self, offset: u64) {
        if let Some(expiry) = &self.expiry {
            expiry.archived(offset);
        }
    }

    /// Drops what is known to repeat an earlier record; whether the ids that are given back do, the history must say.
    fn drop_repeats(&self, said: &mut Vec<Said>, now: Timestamp) -> Vec<MessageId> {
        let (mut in_batch, mut asked) = (AHashSet::with_capacity(said.len()), Vec::new());
        said.retain(|Said { row, may_repeat, .. }| {
            let repeat = match self.window.repeats(row.id, row.position.offset, row.id.made_at(), now) {
                _ if !in_batch.insert(row.id) => Repeat::Yes,
                Repeat::No if *may_repeat => Repeat::AskStore,
                known => known,
            };
            if repeat == Repeat::AskStore {
                asked.push(row.id);
            }
            repeat != Repeat::Yes
        });
        asked
    }
}

impl Archive {
    /// Writes messages of a partition, and of those that were said the ones that stand here first; the others are repeats,
    /// and are let go.
    pub(super) async fn keep(
        &self,
        of: &mut Partition,
        rows: Vec<MessageRow>,
        said: &mut Vec<Said>,
    ) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let spoken = said.len();
        let now = self.clock.now();
        let asked = of.drop_repeats(said, now);
        let put = self.store.messages.put(rows);
        let written = if asked.is_empty() {
            let (put, appended) = tokio::join!(put, self.append(said));
            put.and(appended)
        } else {
            put.await?;
            self.drop_what_stands_elsewhere(of, asked, said).await?;
            self.append(said).await
        };
        self.changed(said.iter().flat_map(changed)).await;
        written?;
        // Not before: a batch that is taken again must find the window as it was.
        for Said { row, .. } in &*said {
            of.window.enter(row.id, row.position.offset, row.id.made_at(), now);
        }
        counter!(ARCHIVE_REPEATS).increment((spoken - said.len()) as u64);
        Ok(())
    }

    /// Drops those of which the history, which is `asked`, says that they stand elsewhere.
    async fn drop_what_stands_elsewhere(
        &self,
        of: &Partition,
        asked: Vec<MessageId>,
        said: &mut Vec<Said>,
    ) -> Result<(), StoreError> {
        let stored = self.store.messages.get_many(&asked).await?;
        let first: AHashMap<_, _> = asked.into_iter().zip(stored).collect();
        said.retain(|Said { row, .. }| {
            let stands = |stored: &Option<StoredMessage>| {
                stored.as_ref().map(|stored| stored.row.accepted) == Some((of.number, Some(row.position.offset)))
            };
            first.get(&row.id).is_none_or(stands)
        });
        Ok(())
    }

    async fn append(&self, said: &[Said]) -> Result<(), StoreError> {
        if said.is_empty() {
            return Ok(());
        }
        self.store.conversations.append(said.iter().map(|said| said.row.clone()).collect()).await
    }

    /// The hints that follow from what was said, by place in the batch.
    pub(super) async fn hints(
        &self,
        of: &mut Partition,
        said: Vec<Said>,
        batch: &[Received],
    ) -> Vec<(usize, Vec<NewRecord>)> {
        let everybody = said.iter().flat_map(|said| listeners(&said.row)).collect();
        let online: AHashMap<Principal, Slots> = self.whereabouts.of(everybody, Self::NAME).await.into_iter().collect();
        let mut all = Vec::with_capacity(said.len());
        for Said { place, row, .. } in said {
            let told: Vec<_> = listeners(&row).filter_map(|who| online.get(&who).map(|slots| (who, slots))).collect();
            let prev = if told.is_empty() { None } else { self.before(&of.previous, &row).await };
            of.previous.appended(row.conversation, row.position.offset, !told.is_empty());
            let mut hints = Vec::new();
            for (who, slots) in told {
                match self.records(&row, prev, (&who, slots), &batch[place]) {
                    Ok(records) => hints.extend(records),
                    // It is in the history; the hint alone is lost.
                    Err(error) => tracing::error!(stage = Self::NAME, %error, "hint cannot be written"),
                }
            }
            all.push((place, hints));
        }
        all
    }

    /// The offset before a message in its conversation, -1 where there is none; `None` where it is not known, or is of an
    /// earlier epoch.
    async fn before(&self, previous: &Previous<ConversationId>, row: &ChatRow) -> Option<i64> {
        if let Some(offset) = previous.before(row.conversation, row.position.offset) {
            return Some(offset as i64);
        }
        match self.store.conversations.history(row.conversation, ReadFrom::Before(row.position), 1).await {
            Ok(page) => match page.rows.first() {
                None => Some(-1),
                Some(before) if before.position.epoch == row.position.epoch => Some(before.position.offset as i64),
                Some(_) => None,
            },
            Err(error) => {
                tracing::warn!(stage = Self::NAME, %error, "a hint goes out without what stands before it");
                None
            }
        }
    }

    /// The hint of one row for one principal, to each gateway.
    fn records(
        &self,
        row: &ChatRow,
        prev: Option<i64>,
        (who, slots): (&Principal, &Slots),
        record: &Received,
    ) -> Result<Vec<NewRecord>, EncodeError> {
        let hint = Hint::Message(MessageHint {
            epoch: row.position.epoch.0 as i32,
            lane: 0,
            offset: row.position.offset as i64,
            prev,
            message: row.value.clone(),
            in_conversation: true,
        });
        let principal = who.to_string();
        let value = self.codecs.encode(&Delivery { principal: principal.clone(), hint })?;
        let (origin, now) = (Origin::of(&record.headers), self.clock.now());
        Ok(slots.iter().map(|slot| flow::delivery_of(value.clone(), &principal, *slot, now, origin)).collect())
    }
}

/// What is cached and has changed by what was said.
fn changed(Said { row, .. }: &Said) -> impl Iterator<Item = Key> {
    Key::of_message(row.conversation, &row.pair, row.from.other())
}

/// A message as its conversation keeps it; `None` for one that has none, or stands nowhere yet.
pub(super) fn chat_row(row: &MessageRow, epoch: Epoch) -> Result<Option<ChatRow>, Error> {
    let (Some(conversation), Some(offset)) = (row.conversation, row.accepted.1) else { return Ok(None) };
    let pair = Pair::of(&row.sender, &row.recipient).map_err(|error| Error::invalid("recipient", &error))?;
    Ok(Some(ChatRow {
        conversation,
        from: if row.sender.business().is_some() { Side::Business } else { Side::Phone },
        pair,
        position: ConversationPosition { epoch, offset },
        id: row.id,
        at: row.created_at,
        expires_at: row.expires_at,
        value: row.value.clone(),
    }))
}

/// Who is told of a message from here: the business, whichever side said it; the phone of what it said itself. What is
/// said to a phone comes to it by its stream.
fn listeners(row: &ChatRow) -> impl Iterator<Item = Principal> + use<> {
    let phone = (row.from == Side::Phone).then_some(Principal::Phone(row.pair.phone));
    std::iter::once(Principal::Business(row.pair.business.clone())).chain(phone)
}
