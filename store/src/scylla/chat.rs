//! What was said in conversations, by position; read positions; what is unread.
//!
//! A partition holds what a conversation has of 2^26 offsets of the log, so that none grows without end and a page is mostly
//! of one or two; `conversation_bucket` says which there are.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use eshaar_model::{
    Conversation, ConversationId, ConversationPosition, Epoch, MessageId, Pair, Side, StatusSteps, Timestamp,
};
use scylla::deserialize::row::DeserializeRow;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlTimestamp;
use uuid::Uuid;

use super::Cql;
use super::activity::Known;
use super::call::Call;
use super::columns::{epoch, highest_wins, integer, optional_time, phone, time, timestamp};
use super::conversations::{side, states};
use super::gather::{Write, rounds};
use super::messages::steps_of;
use crate::conversations::{PAGE_MESSAGES, ReadFrom, UNREAD_EXAMINED, shown_at};
use crate::{ChatPage, ChatRow, ReadMark, StoreError, Unread};

/// Offsets of a bucket are alike but for this many of their bits. Not to be changed: rows would no longer be found.
const BUCKET_BITS: u32 = 26;
/// Buckets that one request tells of.
const TOLD: usize = 64;
/// Most buckets that are read side by side.
const BUCKETS_AT_ONCE: usize = 8;
/// Rows that are looked at together for a count of what is unread.
const COUNTED_AT_ONCE: usize = 200;

/// Buckets of conversations: which one's, of which epoch, and which.
pub(super) type Buckets = Known<(Uuid, i32, i64)>;

fn bucket(row: &ChatRow) -> (Uuid, i32, i64) {
    let ConversationPosition { epoch: of, offset } = row.position;
    (row.conversation.into(), epoch(of), integer(offset) >> BUCKET_BITS)
}

impl Cql {
    /// Three steps, each of which ends before the next begins: what finds the rows, the rows, and what says that they are the
    /// last. So a reader that finds one finds what is before it, and the list never lacks a conversation because its older
    /// place is stale and its newer one not there yet.
    pub(super) async fn append_chat(&self, mut rows: Vec<ChatRow>) -> Result<(), StoreError> {
        let call = self.call("append_chat")?;
        let statements = call.statements();
        rows.sort_by_key(|row| (row.conversation, row.position));
        let of_each = || rows.chunk_by(|a, b| a.conversation == b.conversation);
        let last = || of_each().filter_map(<[ChatRow]>::last);

        let new = self.conversations.chat.new_of(rows.iter().map(bucket));
        let happened = last().map(|row| (&row.pair, row.conversation, row.at));
        let happened =
            happened.map(|(pair, conversation, at)| (pair, eshaar_model::ActivityCursor { at, conversation }));
        let (mut writes, new_activity) = self.activity(&call, happened);
        writes.extend(new.iter().map(|place| Write::new(&statements.put_chat_bucket, *place, 0)));
        call.write(writes).await?;

        let groups = of_each().map(|rows| rows.iter().map(|row| (bucket(row), insert(&call, row))));
        for writes in rounds(groups, call.limits()) {
            call.write(writes).await?;
        }

        call.write(last().map(|row| is_last(&call, row)).collect()).await?;
        self.conversations.chat.know(new);
        self.conversations.activity.know(new_activity);
        Ok(())
    }
}

fn insert(call: &Call<'_>, row: &ChatRow) -> Write {
    let (conversation, of, bucket) = bucket(row);
    let key = (conversation, bucket, of, integer(row.position.offset));
    let (id, expires_at) = (Uuid::from(row.id), optional_time(row.expires_at));
    let values = (key.0, key.1, key.2, key.3, id, row.from as i8, time(row.at), expires_at, row.value.clone());
    Write::new(&call.statements().append_chat, values, row.value.len())
}

/// The highest offset of an epoch stands, whoever writes last.
fn is_last(call: &Call<'_>, row: &ChatRow) -> Write {
    let (key, offset) = ((Uuid::from(row.conversation), epoch(row.position.epoch)), row.position.offset);
    let whose = (row.pair.business.to_string(), phone(row.pair.phone));
    let last = (integer(offset), Uuid::from(row.id), row.from as i8, time(row.at));
    let values = (key.0, key.1, whose.0, whose.1, last.0, last.1, last.2, last.3, highest_wins(offset));
    Write::new(&call.statements().put_last, values, 0)
}

/// The highest offset of an epoch stands.
pub(super) fn read_mark(call: &Call<'_>, mark: &ReadMark) -> Write {
    let ConversationPosition { epoch: of, offset } = mark.up_to;
    let values = (Uuid::from(mark.conversation), epoch(of), integer(offset), highest_wins(offset));
    let statement = match mark.side {
        Side::Business => &call.statements().read_by_business,
        Side::Phone => &call.statements().read_by_phone,
    };
    Write::new(statement, values, 0)
}

pub(super) async fn history(
    call: &Call<'_>,
    (id, pair): (ConversationId, &Pair),
    from: ReadFrom,
    limit: usize,
) -> Result<ChatPage, StoreError> {
    let limit = limit.clamp(1, PAGE_MESSAGES);
    let mut walk = Walk::new(call, id.into(), from);
    let statement = if walk.backward { &call.statements().chat_before } else { &call.statements().chat_after };
    let mut rows = Vec::new();
    while rows.len() <= limit {
        let wanted = limit + 1 - rows.len();
        let make = |row: Columns| chat_row(row, id, pair).map(|row| (row.position, row));
        let found = walk.next(statement, wanted, make).await?;
        if found.is_empty() {
            break;
        }
        rows.extend(found);
    }
    let more = rows.len() > limit;
    rows.truncate(limit);
    if walk.backward {
        rows.reverse();
    }
    Ok(ChatPage { rows, more })
}

type Columns = (i32, i64, Uuid, i8, CqlTimestamp, Option<CqlTimestamp>, Bytes);

fn chat_row(columns: Columns, conversation: ConversationId, pair: &Pair) -> Result<ChatRow, String> {
    let (of, offset, id, from, at, expires_at, value) = columns;
    Ok(ChatRow {
        conversation,
        pair: pair.clone(),
        from: side(from)?,
        position: position(of, offset),
        id: MessageId::try_from(id).map_err(|error| error.to_string())?,
        at: timestamp(at),
        expires_at: expires_at.map(timestamp),
        value,
    })
}

const fn position(of: i32, offset: i64) -> ConversationPosition {
    ConversationPosition { epoch: Epoch(of as u32), offset: offset as u64 }
}

/// What a count needs to know of a message.
struct Head {
    position: ConversationPosition,
    id: Uuid,
    from: Side,
    expires_at: Option<Timestamp>,
}

type HeadColumns = (i32, i64, Uuid, i8, Option<CqlTimestamp>);

fn head((of, offset, id, from, expires_at): HeadColumns) -> Result<(ConversationPosition, Head), String> {
    let position = position(of, offset);
    Ok((position, Head { position, id, from: side(from)?, expires_at: expires_at.map(timestamp) }))
}

/// For each what is not read. Where nothing stands behind the read position, nothing more is asked.
pub(super) async fn unread(
    call: &Call<'_>,
    of: &[(ConversationId, Side)],
    now: Timestamp,
) -> Result<Vec<Unread>, StoreError> {
    let ids: Vec<Uuid> = of.iter().map(|(id, _)| (*id).into()).collect();
    let known = states(call, &ids).await?;
    let count = async |(id, side): (&Uuid, Side)| match known.get(id) {
        Some(conversation) if conversation.last_position() > conversation.read[side as usize] => {
            count(call, conversation, side, now).await
        }
        _ => Ok(Unread::default()),
    };
    call.each(ids.iter().zip(of.iter().map(|(_, side)| *side)).map(count).collect()).await
}

async fn count(call: &Call<'_>, conversation: &Conversation, of: Side, now: Timestamp) -> Result<Unread, StoreError> {
    let mut walk = Walk::from_read_to_last(call, conversation, of);
    let (mut unread, mut examined) = (Unread::default(), 0);
    loop {
        let heads = walk.next(&call.statements().chat_heads, COUNTED_AT_ONCE, head).await?;
        if heads.is_empty() {
            return Ok(unread);
        }
        let theirs: Vec<_> = heads.iter().filter(|head| head.from != of).map(|head| head.id).collect();
        let steps: HashMap<Uuid, StatusSteps> = steps_of(call, &theirs).await?.into_iter().collect();
        for head in heads {
            if examined == UNREAD_EXAMINED {
                return Ok(Unread { more: true, ..unread });
            }
            examined += 1;
            let steps = steps.get(&head.id).copied().unwrap_or_default();
            let shown = shown_at(&steps, head.expires_at, now);
            if conversation.counts_as_unread(of, head.from, head.position, shown) && unread.add() {
                return Ok(unread);
            }
        }
    }
}

/// Goes over a conversation, bucket after bucket, several side by side where they hold little.
struct Walk<'a> {
    call: &'a Call<'a>,
    conversation: Uuid,
    backward: bool,
    /// Behind this, in the direction of the walk, is what comes next: an epoch, and an offset or one that is none.
    behind: (i32, i64),
    /// The next buckets that there are; the first may be read in part.
    buckets: VecDeque<(i32, i64)>,
    /// The last that was told of.
    told: Option<(i32, i64)>,
    /// Whether there are more than were told of.
    more_buckets: bool,
    at_once: usize,
}

impl<'a> Walk<'a> {
    fn new(call: &'a Call<'a>, conversation: Uuid, from: ReadFrom) -> Self {
        let place = |at: ConversationPosition| (epoch(at.epoch), integer(at.offset));
        let (backward, behind) = match from {
            ReadFrom::Newest => (true, (i32::MAX, i64::MAX)),
            ReadFrom::Before(at) => (true, place(at)),
            ReadFrom::After(at) => (false, at.map_or((-1, -1), place)),
        };
        let told = None;
        Self { call, conversation, backward, behind, buckets: VecDeque::new(), told, more_buckets: true, at_once: 1 }
    }

    /// Over what a side has not read. Where that is all of one bucket, that one need not be asked for.
    fn from_read_to_last(call: &'a Call<'a>, conversation: &Conversation, side: Side) -> Self {
        let (read, last) = (conversation.read[side as usize], conversation.last_position());
        let walk = Self::new(call, conversation.id.into(), ReadFrom::After(read));
        let bucket = |at: ConversationPosition| (epoch(at.epoch), integer(at.offset) >> BUCKET_BITS);
        match (read.map(bucket), last.map(bucket)) {
            (Some(first), Some(only)) if first == only => {
                Self { buckets: VecDeque::from([only]), more_buckets: false, ..walk }
            }
            _ => walk,
        }
    }

    /// The next rows: at most `limit` of a bucket; none at the end.
    async fn next<R, T>(
        &mut self,
        statement: &PreparedStatement,
        limit: usize,
        make: impl Fn(R) -> Result<(ConversationPosition, T), String>,
    ) -> Result<Vec<T>, StoreError>
    where
        R: for<'row> DeserializeRow<'row, 'row>,
    {
        loop {
            if self.buckets.is_empty() && self.more_buckets {
                self.learn_buckets().await?;
            }
            if self.buckets.is_empty() {
                return Ok(Vec::new());
            }
            let (call, make) = (self.call, &make);
            let read = async |(of, bucket): (i32, i64), behind: i64| {
                let key = (self.conversation, bucket, of, behind, limit as i32);
                let rows = call.read(statement, key).await?;
                call.rows(&rows, make)
            };
            let group = self.buckets.iter().take(self.at_once);
            let found = call.each(group.map(|place| read(*place, self.behind_in(*place))).collect()).await?;
            let rows = self.take(found, limit);
            if !rows.is_empty() {
                return Ok(rows);
            }
        }
    }

    /// Where reading a bucket begins: within it, only where the walk has come to it.
    const fn behind_in(&self, (of, _): (i32, i64)) -> i64 {
        let (known, offset) = self.behind;
        match (of == known, self.backward) {
            (true, _) => offset,
            (false, true) => i64::MAX,
            (false, false) => -1,
        }
    }

    /// Goes over what was read, up to the first bucket that has more.
    fn take<T>(&mut self, found: Vec<Vec<(ConversationPosition, T)>>, limit: usize) -> Vec<T> {
        let mut rows = Vec::new();
        for of_bucket in found {
            let full = of_bucket.len() == limit;
            for (at, row) in of_bucket {
                self.behind = (epoch(at.epoch), integer(at.offset));
                rows.push(row);
            }
            if full {
                break;
            }
            self.buckets.pop_front();
        }
        self.at_once = (self.at_once * 2).min(BUCKETS_AT_ONCE);
        rows
    }

    async fn learn_buckets(&mut self) -> Result<(), StoreError> {
        let statements = self.call.statements();
        let (statement, (of, bucket)) = match (self.backward, self.told) {
            // One that was told of is over; of the first, a part may be wanted.
            (true, Some((of, bucket))) => (&statements.chat_buckets_before, (of, bucket - 1)),
            (false, Some((of, bucket))) => (&statements.chat_buckets_after, (of, bucket + 1)),
            (true, None) => (&statements.chat_buckets_before, (self.behind.0, self.behind.1 >> BUCKET_BITS)),
            (false, None) => (&statements.chat_buckets_after, (self.behind.0, self.behind.1 >> BUCKET_BITS)),
        };
        let rows = self.call.read(statement, (self.conversation, of, bucket, TOLD as i32)).await?;
        self.buckets = self.call.rows(&rows, |(of, bucket): (i32, i64)| Ok((of, bucket)))?.into();
        self.more_buckets = self.buckets.len() == TOLD;
        self.told = self.buckets.back().copied();
        Ok(())
    }
}
