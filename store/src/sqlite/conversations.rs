//! Conversations. One thread writes, each call in a transaction that no other stands in: what `start`, `archive` and `close`
//! find is what they change. That no pair has two open ones, the index `conversation_open` holds besides.

use async_trait::async_trait;
use eshaar_model::{
    ActivityCursor, ArchivedBehind, Conversation, ConversationId, ConversationPosition, Epoch, LastMessage, MessageId,
    Pair, Phone, Principal, Side, Standing, Timestamp,
};
use rusqlite::{Connection, OptionalExtension as _, Params, Result, Row, params};

use super::columns::{identity, integer, phone, text, timestamp, unsigned};
use super::{Operation, Sqlite, chat};
use crate::conversations::{Archived, How, PAGE_CONVERSATIONS, Started};
use crate::{
    ChatPage, ChatRow, ConversationPage, ConversationStore, ListQuery, ReadFrom, ReadMark, StoreError, Unread,
};

/// Most conversations that are looked at for one page of a list.
const EXAMINED: usize = 5_000;

/// All columns of conversations, as [`conversation`] reads them.
macro_rules! conversations {
    ($where:literal) => {
        concat!(
            "SELECT id, business, phone, closed, archived, archived_epoch, archived_offset, last_id, last_from, last_at,
                 last_epoch, last_offset, business_epoch, business_offset, phone_epoch, phone_offset
             FROM conversation WHERE ",
            $where
        )
    };
}
#[async_trait]
impl ConversationStore for Sqlite {
    async fn start(&self, pair: &Pair) -> Result<Started, StoreError> {
        let pair = pair.clone();
        let now = self.clock.now();
        self.write(Operation::durable("start_conversation"), 1, move |tables| start(&tables.db, &pair, now)).await
    }

    async fn get(&self, id: ConversationId) -> Result<Option<Conversation>, StoreError> {
        self.query(Operation::new("get_conversation"), move |db| get(db, id)).await
    }

    async fn pair(&self, id: ConversationId) -> Result<Option<Pair>, StoreError> {
        Ok(self.get(id).await?.map(|conversation| conversation.pair))
    }

    async fn standing(&self, id: ConversationId) -> Result<Option<(Pair, Standing)>, StoreError> {
        Ok(self.get(id).await?.map(|conversation| (conversation.pair, conversation.standing)))
    }

    async fn archive(&self, id: ConversationId) -> Result<Archived, StoreError> {
        self.write(Operation::new("archive_conversation"), 1, move |tables| archive(&tables.db, id)).await
    }

    async fn close(&self, id: ConversationId) -> Result<Option<Conversation>, StoreError> {
        self.write(Operation::durable("close_conversation"), 1, move |tables| {
            let Some(mut conversation) = get(&tables.db, id)? else { return Ok(None) };
            conversation.close();
            put(&tables.db, &conversation)?;
            Ok(Some(conversation))
        })
        .await
    }

    async fn list(&self, of: &Principal, query: ListQuery) -> Result<ConversationPage, StoreError> {
        let of = of.clone();
        self.query(Operation::new("list_conversations"), move |db| list(db, &of, &query)).await
    }

    async fn append(&self, rows: Vec<ChatRow>) -> Result<(), StoreError> {
        self.write(Operation::new("append_chat"), rows.len(), move |tables| chat::append(&tables.db, &rows)).await
    }

    async fn history(&self, id: ConversationId, from: ReadFrom, limit: usize) -> Result<ChatPage, StoreError> {
        self.query(Operation::new("read_chat"), move |db| chat::history(db, id, from, limit)).await
    }

    async fn mark_read(&self, marks: Vec<ReadMark>) -> Result<(), StoreError> {
        self.write(Operation::new("mark_read"), marks.len(), move |tables| chat::mark_read(&tables.db, &marks)).await
    }

    async fn unread(&self, of: &[(ConversationId, Side)], now: Timestamp) -> Result<Vec<Unread>, StoreError> {
        let of = of.to_vec();
        self.query(Operation::new("count_unread"), move |db| {
            of.iter().map(|(id, side)| chat::unread(db, *id, *side, now)).collect()
        })
        .await
    }
}

fn start(db: &Connection, pair: &Pair, now: Timestamp) -> Result<Started> {
    let known = one(
        db,
        conversations!("business = ?1 AND phone = ?2 AND closed = 0"),
        params![pair.business.as_str(), integer(pair.phone.digits())],
    )?;
    let Some(mut conversation) = known else {
        let conversation = Conversation::new(ConversationId::new(now), pair.clone());
        put(db, &conversation)?;
        return Ok(Started { conversation, how: How::Created });
    };
    let archived = conversation.status() == eshaar_model::ConversationStatus::Archived;
    if archived && conversation.take_up().is_ok() {
        put(db, &conversation)?;
    }
    Ok(Started { conversation, how: if archived { How::TakenUp } else { How::Found } })
}

fn archive(db: &Connection, id: ConversationId) -> Result<Archived> {
    let Some(mut conversation) = get(db, id)? else { return Ok(Archived::Unknown) };
    if conversation.archive().is_err() {
        return Ok(Archived::Closed);
    }
    put(db, &conversation)?;
    Ok(Archived::Done(conversation))
}

pub(super) fn get(db: &Connection, id: ConversationId) -> Result<Option<Conversation>> {
    one(db, conversations!("id = ?1"), [id.as_bytes()])
}

fn one(db: &Connection, sql: &str, key: impl Params) -> Result<Option<Conversation>> {
    db.prepare_cached(sql)?.query_row(key, conversation).optional()
}

fn conversation(row: &Row<'_>) -> Result<Conversation> {
    let standing = match (row.get(3)?, row.get(4)?) {
        (true, _) => Standing::Closed,
        (false, archived) => {
            let mark = ArchivedBehind(position(row, 5)?);
            Standing::Open { archived: if archived { Some(mark) } else { None } }
        }
    };
    let last = match position(row, 10)? {
        None => None,
        Some(position) => Some(LastMessage {
            id: identity(row, 7, MessageId::from_bytes)?,
            from: side(row, 8)?,
            at: timestamp(row, 9)?,
            position,
        }),
    };
    Ok(Conversation {
        id: identity(row, 0, ConversationId::from_bytes)?,
        pair: Pair { business: text(row, 1)?, phone: phone(row, 2)? },
        standing,
        last,
        read: [position(row, 12)?, position(row, 14)?],
    })
}

/// From two columns, the epoch first; `None` where they are null.
fn position(row: &Row<'_>, column: usize) -> Result<Option<ConversationPosition>> {
    match row.get(column)? {
        None => Ok(None),
        Some(epoch) => Ok(Some(ConversationPosition { epoch: Epoch(epoch), offset: unsigned(row, column + 1)? })),
    }
}

pub(super) fn side(row: &Row<'_>, column: usize) -> Result<Side> {
    let value: u8 = row.get(column)?;
    Side::from_index(value).ok_or(rusqlite::Error::IntegralValueOutOfRange(column, value.into()))
}

/// Writes a conversation as it is now. How far it was read is written by `mark_read` alone.
pub(super) fn put(db: &Connection, of: &Conversation) -> Result<()> {
    let (closed, archived) = match of.standing {
        Standing::Closed => (true, None),
        Standing::Open { archived } => (false, archived),
    };
    let epoch = |position: Option<ConversationPosition>| position.map(|position| position.epoch.0);
    let offset = |position: Option<ConversationPosition>| position.map(|position| integer(position.offset));
    let mark = archived.and_then(|ArchivedBehind(mark)| mark);
    let last = of.last_position();
    db.prepare_cached(
        "INSERT INTO conversation (id, business, phone, closed, archived, archived_epoch, archived_offset, activity_at,
             last_id, last_from, last_at, last_epoch, last_offset)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
         ON CONFLICT (id) DO UPDATE SET closed = excluded.closed, archived = excluded.archived,
             archived_epoch = excluded.archived_epoch, archived_offset = excluded.archived_offset,
             activity_at = excluded.activity_at, last_id = excluded.last_id, last_from = excluded.last_from,
             last_at = excluded.last_at, last_epoch = excluded.last_epoch, last_offset = excluded.last_offset",
    )?
    .execute(params![
        of.id.as_bytes(),
        of.pair.business.as_str(),
        integer(of.pair.phone.digits()),
        closed,
        archived.is_some(),
        epoch(mark),
        offset(mark),
        of.activity_at().as_millis(),
        of.last.as_ref().map(|last| last.id.as_bytes()),
        of.last.map(|last| last.from as u8),
        of.last.map(|last| last.at.as_millis()),
        epoch(last),
        offset(last),
    ])
    .map(drop)
}

/// Walks down the side's list in one snapshot (one statement).
fn list(db: &Connection, of: &Principal, query: &ListQuery) -> Result<ConversationPage> {
    let (at, id) = below(query.after);
    match of {
        Principal::Business(business) => page(
            db,
            conversations!("business = ?1 AND (activity_at, id) < (?2, ?3) ORDER BY activity_at DESC, id DESC"),
            params![business.as_str(), at, id],
            query,
        ),
        Principal::Phone(phone) => page(
            db,
            conversations!("phone = ?1 AND (activity_at, id) < (?2, ?3) ORDER BY activity_at DESC, id DESC"),
            params![integer(Phone::digits(*phone)), at, id],
            query,
        ),
    }
}

/// What everything on the page is below.
fn below(after: Option<ActivityCursor>) -> (i64, [u8; 16]) {
    after.map_or((i64::MAX, [0xff; 16]), |cursor| (cursor.at.as_millis(), *cursor.conversation.as_bytes()))
}

fn page(db: &Connection, sql: &str, key: impl Params, query: &ListQuery) -> Result<ConversationPage> {
    let limit = query.limit.clamp(1, PAGE_CONVERSATIONS);
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query(key)?;
    let (mut page, mut last, mut examined) = (ConversationPage::default(), None, 0);
    while let Some(row) = rows.next()? {
        if page.conversations.len() == limit || examined == EXAMINED {
            page.next = last;
            break;
        }
        examined += 1;
        let conversation = conversation(row)?;
        last = Some(conversation.cursor());
        if query.status.is_none_or(|wanted| wanted == conversation.status()) {
            page.conversations.push(conversation);
        }
    }
    Ok(page)
}
