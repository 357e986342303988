//! Conversations: which one a pair has open, and how each stands.
//!
//! `open_conversation` is written conditionally alone, and decides: a pair has one row, which names its newest conversation,
//! whether that is closed, and with which message it was archived. Of a conversation that it does not name, or names as
//! closed, nothing else need be known. The row is never removed: a write whose outcome was unknown and that is tried again
//! finds its own conversation there, closed or not, and cannot bring it back. All else of a conversation is one partition of
//! `conversation`, written plainly.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use async_trait::async_trait;
use eshaar_model::{
    ArchivedBehind, BusinessId, Conversation, ConversationId, ConversationPosition, ConversationStatus, Epoch,
    LastMessage, MessageId, Pair, Phone, Principal, Side, Standing, Timestamp,
};
use moka::sync::Cache;
use scylla::DeserializeRow;
use scylla::value::CqlTimestamp;
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

use super::call::Call;
use super::columns::{self, epoch, integer, phone};
use super::gather::Write;
use super::{Cql, activity, chat};
use crate::conversations::{Archived, How, Started};
use crate::{
    ChatPage, ChatRow, ConversationPage, ConversationStore, ListQuery, ReadFrom, ReadMark, StoreError, Unread,
};

/// Rounds of finding how a pair stands and changing it, until nobody else has changed it in between.
const ROUNDS: usize = 8;
/// Conversations that one request brings.
const TOGETHER: usize = 50;
/// How many pairs may make conversations at once in this process, for the most part: pairs that share a number take turns.
const TURNS: usize = 256;
/// Conversations of which a process remembers whose they are: some 200 bytes each.
const PAIRS: u64 = 50_000;

/// What a process remembers of conversations, all of which it can do without.
pub(super) struct Remembered {
    /// Within a process the pairs' makers take turns: all but the first find what it made. At one row in the cluster many at
    /// once only hold each other up.
    turns: Box<[Mutex<()>]>,
    hasher: RandomState,
    /// Whose conversations are, which never changes.
    pairs: Cache<ConversationId, Pair>,
    pub(super) activity: activity::Buckets,
    pub(super) chat: chat::Buckets,
}

impl Default for Remembered {
    fn default() -> Self {
        let turns = (0..TURNS).map(|_| Mutex::default()).collect();
        Self {
            turns,
            hasher: RandomState::default(),
            pairs: Cache::new(PAIRS),
            activity: activity::Buckets::default(),
            chat: chat::Buckets::default(),
        }
    }
}

#[async_trait]
impl ConversationStore for Cql {
    async fn start(&self, pair: &Pair) -> Result<Started, StoreError> {
        let call = self.call("start_conversation")?;
        if let Some(row) = open_row(&call, pair).await?.filter(|row| !row.closed)
            && let Some(started) = self.go_on(&call, pair, &row).await?
        {
            return Ok(started);
        }
        let _turn = self.turn_of(pair).await?;
        for _ in 0..ROUNDS {
            let started = match open_row(&call, pair).await? {
                Some(row) if !row.closed => self.go_on(&call, pair, &row).await?,
                before => self.make(&call, pair, before.map(|row| row.conversation)).await?,
            };
            if let Some(started) = started {
                return Ok(started);
            }
        }
        Err(call.failed(
            "others start and close conversations of the pair at the same time, and it is not decided which stands",
        ))
    }

    async fn get(&self, id: ConversationId) -> Result<Option<Conversation>, StoreError> {
        self.find(&self.call("get_conversation")?, id).await
    }

    async fn pair(&self, id: ConversationId) -> Result<Option<Pair>, StoreError> {
        self.pair_of(&self.call("pair_of_conversation")?, id).await
    }

    async fn standing(&self, id: ConversationId) -> Result<Option<(Pair, Standing)>, StoreError> {
        let call = self.call("standing_of_conversation")?;
        let Some(pair) = self.pair_of(&call, id).await? else { return Ok(None) };
        let standing = standing(open_row(&call, &pair).await?, id);
        Ok(Some((pair, standing)))
    }

    async fn archive(&self, id: ConversationId) -> Result<Archived, StoreError> {
        let call = self.call("archive_conversation")?;
        let Some(mut conversation) = self.find(&call, id).await? else { return Ok(Archived::Unknown) };
        if conversation.archive().is_err() {
            return Ok(Archived::Closed);
        }
        let mark = conversation.last_position();
        let (at_epoch, offset) = (mark.map(|at| epoch(at.epoch)), mark.map(|at| integer(at.offset)));
        let (business, phone) = key(&conversation.pair);
        let values = (at_epoch, offset, business, phone, Uuid::from(id));
        let decision = call.decide(&call.statements().archive_conversation, &values).await?;
        Ok(if decision.applied { Archived::Done(conversation) } else { Archived::Closed })
    }

    async fn close(&self, id: ConversationId) -> Result<Option<Conversation>, StoreError> {
        let call = self.call("close_conversation")?;
        let Some(mut conversation) = self.find(&call, id).await? else { return Ok(None) };
        if conversation.standing != Standing::Closed {
            let (business, phone) = key(&conversation.pair);
            // Refused: the pair has a newer one, so this is closed.
            call.decide(&call.statements().close_conversation, &(business, phone, Uuid::from(id))).await?;
            conversation.close();
        }
        Ok(Some(conversation))
    }

    async fn list(&self, of: &Principal, query: ListQuery) -> Result<ConversationPage, StoreError> {
        activity::page(&self.call("list_conversations")?, of, &query).await
    }

    async fn append(&self, rows: Vec<ChatRow>) -> Result<(), StoreError> {
        self.append_chat(rows).await
    }

    async fn history(&self, id: ConversationId, from: ReadFrom, limit: usize) -> Result<ChatPage, StoreError> {
        let call = self.call("read_chat")?;
        let Some(pair) = self.pair_of(&call, id).await? else { return Ok(ChatPage::default()) };
        chat::history(&call, (id, &pair), from, limit).await
    }

    async fn mark_read(&self, marks: Vec<ReadMark>) -> Result<(), StoreError> {
        let call = self.call("mark_read")?;
        call.write(marks.iter().map(|mark| chat::read_mark(&call, mark)).collect()).await
    }

    async fn unread(&self, of: &[(ConversationId, Side)], now: Timestamp) -> Result<Vec<Unread>, StoreError> {
        let call = self.call("count_unread")?;
        chat::unread(&call, of, now).await
    }
}

impl Cql {
    async fn find(&self, call: &Call<'_>, id: ConversationId) -> Result<Option<Conversation>, StoreError> {
        let state = async || Ok(states(call, &[id.into()]).await?.remove(&id.into()));
        if let Some(pair) = self.conversations.pairs.get(&id) {
            let (known, open) = tokio::try_join!(state(), open_row(call, &pair))?;
            return Ok(known.map(|known| Conversation { standing: standing(open, id), ..known }));
        }
        let Some(known) = state().await? else { return Ok(None) };
        self.conversations.pairs.insert(id, known.pair.clone());
        let open = open_row(call, &known.pair).await?;
        Ok(Some(Conversation { standing: standing(open, id), ..known }))
    }

    /// Whose a conversation is; asked once, for the most part.
    async fn pair_of(&self, call: &Call<'_>, id: ConversationId) -> Result<Option<Pair>, StoreError> {
        if let Some(pair) = self.conversations.pairs.get(&id) {
            return Ok(Some(pair));
        }
        let Some(conversation) = states(call, &[id.into()]).await?.remove(&id.into()) else { return Ok(None) };
        self.conversations.pairs.insert(id, conversation.pair.clone());
        Ok(Some(conversation.pair))
    }

    async fn turn_of(&self, pair: &Pair) -> Result<MutexGuard<'_, ()>, StoreError> {
        let Remembered { turns, hasher, .. } = &self.conversations;
        let turn = &turns[hasher.hash_one(pair) as usize % TURNS];
        let patience = self.options.queue_wait() + self.options.request_timeout();
        let waited = tokio::time::timeout(patience, turn.lock()).await;
        waited.map_err(|_| StoreError::Overloaded { waiting: self.calls_under_way() })
    }

    /// The open conversation of a pair, taken up again where it was archived; `None` where it was closed meanwhile.
    async fn go_on(&self, call: &Call<'_>, pair: &Pair, row: &OpenRow) -> Result<Option<Started>, StoreError> {
        let id = ConversationId::try_from(row.conversation).map_err(|error| call.failed(&error))?;
        let known = states(call, &[row.conversation]).await?.remove(&row.conversation);
        let mut conversation = known.unwrap_or_else(|| Conversation::new(id, pair.clone()));
        conversation.standing = row.standing(row.conversation);
        if conversation.last.is_none() {
            // Whoever made it may have died before it was listed.
            self.list_new(call, &conversation).await?;
        }
        if conversation.status() != ConversationStatus::Archived {
            return Ok(Some(Started { conversation, how: How::Found }));
        }
        let (business, phone) = key(pair);
        let decision =
            call.decide(&call.statements().take_up_conversation, &(business, phone, row.conversation)).await?;
        if !decision.applied || conversation.take_up().is_err() {
            return Ok(None);
        }
        Ok(Some(Started { conversation, how: How::TakenUp }))
    }

    /// Makes a conversation, unless another came in `before`; then `None`. What its id says is there before anybody can
    /// learn the id.
    async fn make(&self, call: &Call<'_>, pair: &Pair, before: Option<Uuid>) -> Result<Option<Started>, StoreError> {
        let conversation = Conversation::new(ConversationId::new(self.clock.now()), pair.clone());
        let (id, (business, phone)) = (Uuid::from(conversation.id), key(pair));
        call.write(vec![whose(call, &conversation)]).await?;
        let statements = call.statements();
        let decision = match before {
            None => call.decide(&statements.make_conversation, &(business, phone, id)).await?,
            Some(before) => call.decide(&statements.follow_conversation, &(id, business, phone, before)).await?,
        };
        // It is ours, too, when it was refused because of an attempt of ours before it, whose outcome had not been known.
        if decision.applied || decision.uuid("conversation") == Some(id) {
            self.list_new(call, &conversation).await?;
            return Ok(Some(Started { conversation, how: How::Created }));
        }
        call.write(vec![Write::new(&statements.forget_conversation, (id,), 0)]).await?;
        Ok(None)
    }

    /// Lists a conversation that has no messages yet, by the time it was made at.
    async fn list_new(&self, call: &Call<'_>, of: &Conversation) -> Result<(), StoreError> {
        let (mut writes, new) = self.activity(call, std::iter::once((&of.pair, of.cursor())));
        writes.push(whose(call, of));
        call.write(writes).await?;
        self.conversations.activity.know(new);
        Ok(())
    }
}

fn key(pair: &Pair) -> (&str, i64) {
    (pair.business.as_str(), phone(pair.phone))
}

/// Whose a conversation is.
fn whose(call: &Call<'_>, of: &Conversation) -> Write {
    let values = (Uuid::from(of.id), of.pair.business.to_string(), phone(of.pair.phone));
    Write::new(&call.statements().put_conversation, values, 0)
}

/// What decides of a pair.
#[derive(Clone, Copy, DeserializeRow)]
struct OpenRow {
    conversation: Uuid,
    closed: bool,
    archived: Option<bool>,
    archived_epoch: Option<i32>,
    archived_offset: Option<i64>,
}

impl OpenRow {
    /// How a conversation of the pair stands.
    fn standing(&self, of: Uuid) -> Standing {
        if self.closed || self.conversation != of {
            return Standing::Closed;
        }
        let mark = ArchivedBehind(position(self.archived_epoch, self.archived_offset));
        Standing::Open { archived: (self.archived == Some(true)).then_some(mark) }
    }
}

fn standing(open: Option<OpenRow>, of: ConversationId) -> Standing {
    open.map_or(Standing::Closed, |row| row.standing(of.into()))
}

pub(super) fn position(epoch: Option<i32>, offset: Option<i64>) -> Option<ConversationPosition> {
    Some(ConversationPosition { epoch: Epoch(epoch? as u32), offset: offset? as u64 })
}

async fn open_row(call: &Call<'_>, pair: &Pair) -> Result<Option<OpenRow>, StoreError> {
    call.first(&call.statements().open_conversation, key(pair)).await
}

/// A conversation's row of one epoch; `epoch` is null where only what is static was written.
#[derive(DeserializeRow)]
struct EpochRow {
    id: Uuid,
    epoch: Option<i32>,
    business: Option<String>,
    phone: Option<i64>,
    last_offset: Option<i64>,
    last_id: Option<Uuid>,
    last_from: Option<i8>,
    last_at: Option<CqlTimestamp>,
    business_read: Option<i64>,
    phone_read: Option<i64>,
}

impl EpochRow {
    /// `None` where nobody has said whose it is: only read marks have come.
    fn pair(&self) -> Result<Option<Pair>, String> {
        let (Some(business), Some(digits)) = (self.business.as_deref(), self.phone) else { return Ok(None) };
        let business: BusinessId = business.parse().map_err(|error| format!("conversation {}: {error}", self.id))?;
        let phone = Phone::from_digits(digits as u64);
        let phone = phone.ok_or_else(|| format!("conversation {}: its phone is none", self.id))?;
        Ok(Some(Pair { business, phone }))
    }

    fn last(&self) -> Result<Option<LastMessage>, String> {
        let (Some(position), Some(id), Some(from), Some(at)) =
            (position(self.epoch, self.last_offset), self.last_id, self.last_from, self.last_at)
        else {
            return Ok(None);
        };
        let id = MessageId::try_from(id).map_err(|error| error.to_string())?;
        Ok(Some(LastMessage { id, from: side(from)?, at: columns::timestamp(at), position }))
    }
}

pub(super) fn side(value: i8) -> Result<Side, String> {
    u8::try_from(value).ok().and_then(Side::from_index).ok_or_else(|| format!("there is no side {value}"))
}

/// Conversations by their ids. How each stands is not among what is read: it is a matter of its pair.
pub(super) async fn states(call: &Call<'_>, ids: &[Uuid]) -> Result<HashMap<Uuid, Conversation>, StoreError> {
    let lookup = async |ids: Vec<Uuid>| {
        let rows = call.read(&call.statements().conversations, (ids,)).await?;
        call.rows(&rows, |row: EpochRow| Ok((row.pair()?, row.last()?, row)))
    };
    let rows = call.each(ids.chunks(TOGETHER).map(|ids| lookup(ids.to_vec())).collect()).await?;
    let mut all = HashMap::new();
    for (pair, last, row) in rows.into_iter().flatten() {
        let Some(pair) = pair else { continue };
        let id = ConversationId::try_from(row.id).map_err(|error| call.failed(&error))?;
        let of = all.entry(row.id).or_insert_with(|| Conversation::new(id, pair));
        if let Some(last) = last {
            of.receive(last);
        }
        for (side, read) in [(Side::Business, row.business_read), (Side::Phone, row.phone_read)] {
            if let Some(at) = position(row.epoch, read) {
                of.mark_read(side, at);
            }
        }
    }
    Ok(all)
}

/// Finds how each of a side's conversations stands.
pub(super) async fn stand(call: &Call<'_>, of: &Principal, all: &mut [Conversation]) -> Result<(), StoreError> {
    let lookup = async |pairs: Vec<Pair>| {
        let businesses = pairs.iter().map(|pair| pair.business.as_str());
        let phones = pairs.iter().map(|pair| phone(pair.phone));
        let keys: (Vec<_>, Vec<_>) = match of {
            Principal::Business(business) => (vec![business.as_str()], phones.collect()),
            Principal::Phone(of) => (businesses.collect(), vec![phone(*of)]),
        };
        let rows = call.read(&call.statements().open_conversations, keys).await?;
        call.rows(&rows, |row: OpenRow| Ok((row.conversation, row)))
    };
    let mut pairs: Vec<_> = all.iter().map(|conversation| conversation.pair.clone()).collect();
    pairs.sort_unstable();
    pairs.dedup();
    let open = call.each(pairs.chunks(TOGETHER).map(|pairs| lookup(pairs.to_vec())).collect()).await?;
    let open: HashMap<_, _> = open.into_iter().flatten().collect();
    for conversation in all {
        let id = Uuid::from(conversation.id);
        conversation.standing = open.get(&id).map_or(Standing::Closed, |row| row.standing(id));
    }
    Ok(())
}
