//! Messages, their steps, and what each business has sent.

use async_trait::async_trait;
use eshaar_model::{BusinessId, ConversationId, MessageId, MessageType, Status, StatusSteps, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Result, Row, params};

use super::columns::{bytes, identity, integer, optional_timestamp, text, timestamp, unsigned};
use super::{Operation, Sqlite};
use crate::messages::CopyRank;
use crate::{MessageRow, MessageStore, SentPage, SentQuery, Step, StoreError, StoredMessage};

/// Most messages of a page.
const PAGE_MESSAGES: usize = 1_000;
/// Most messages that are looked at for one page of a filtered list.
const EXAMINED: usize = 5_000;

#[async_trait]
impl MessageStore for Sqlite {
    async fn put(&self, rows: Vec<MessageRow>) -> Result<(), StoreError> {
        self.write(Operation::new("put_messages"), rows.len(), move |tables| put(&tables.db, &rows)).await
    }

    async fn reach(&self, steps: Vec<Step>) -> Result<(), StoreError> {
        self.write(Operation::new("reach"), steps.len(), move |tables| reach(&tables.db, &steps)).await
    }

    async fn set_retries(&self, id: MessageId, count: u32) -> Result<(), StoreError> {
        self.write(Operation::new("set_retries"), 1, move |tables| {
            tables
                .db
                .prepare_cached(
                    "INSERT INTO message (id, retries) VALUES (?1, ?2)
                     ON CONFLICT DO UPDATE SET retries = excluded.retries
                     WHERE retries IS NULL OR retries < excluded.retries",
                )?
                .execute(params![id.as_bytes(), count])?;
            Ok(())
        })
        .await
    }

    async fn retries(&self, id: MessageId) -> Result<u32, StoreError> {
        self.query(Operation::new("get_retries"), move |db| {
            let found = db
                .prepare_cached("SELECT coalesce(retries, 0) FROM message WHERE id = ?1")?
                .query_row([id.as_bytes()], |row| row.get(0))
                .optional()?;
            Ok(found.unwrap_or(0))
        })
        .await
    }

    async fn get(&self, id: MessageId) -> Result<Option<StoredMessage>, StoreError> {
        self.query(Operation::new("get_message"), move |db| get(db, id)).await
    }

    async fn get_many(&self, ids: &[MessageId]) -> Result<Vec<Option<StoredMessage>>, StoreError> {
        let ids = ids.to_vec();
        self.query(Operation::new("get_messages"), move |db| ids.iter().map(|id| get(db, *id)).collect()).await
    }

    async fn sent_by(&self, business: &BusinessId, query: SentQuery, now: Timestamp) -> Result<SentPage, StoreError> {
        let business = business.clone();
        self.query(Operation::new("list_sent"), move |db| sent_by(db, &business, &query, now)).await
    }
}

/// In place of an offset: it is not in `messages.accepted` yet.
const SCHEDULED: i64 = -1;

fn put(db: &Connection, rows: &[MessageRow]) -> Result<()> {
    let mut body = db.prepare_cached(
        "INSERT INTO message_body (id, type, conversation, sender, recipient, created_at, expires_at,
             accepted_partition, accepted_offset, value, may_repeat)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?;
    let mut message = db.prepare_cached(
        "INSERT INTO message (id, body) VALUES (?1, ?2)
         ON CONFLICT DO UPDATE SET body = excluded.body WHERE body IS NULL",
    )?;
    let mut sent = db.prepare_cached(
        "INSERT INTO sent (business, id, type, phone, expires_at, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for row in rows {
        let (id, message_type, value) = (row.id.as_bytes(), row.message_type as u8, &row.value[..]);
        let conversation = row.conversation.as_ref().map(ConversationId::as_bytes);
        let (sender, recipient) = (row.sender.to_string(), row.recipient.to_string());
        let (created_at, expires_at) = (row.created_at.as_millis(), row.expires_at.map(Timestamp::as_millis));
        let (partition, offset) = (row.accepted.0, row.accepted.1.map_or(SCHEDULED, integer));
        let inserted = body.insert(params![
            id,
            message_type,
            conversation,
            sender,
            recipient,
            created_at,
            expires_at,
            partition,
            offset,
            value,
            row.may_repeat
        ])?;
        if message.execute(params![id, inserted])? == 0 {
            keep_one(db, row, inserted)?;
        } else if let Some(business) = row.sender.business() {
            let phone = row.recipient.phone().map(|phone| integer(phone.digits()));
            sent.execute(params![business.as_str(), id, message_type, phone, expires_at, inserted])?;
        }
    }
    Ok(())
}

/// Of two copies of a message, the one that is there and the `inserted` one, keeps the one that stands.
fn keep_one(db: &Connection, row: &MessageRow, inserted: i64) -> Result<()> {
    let (known, rank) = db
        .prepare_cached(
            "SELECT b.body, accepted_partition, accepted_offset, may_repeat
             FROM message m JOIN message_body b ON b.body = m.body WHERE m.id = ?1",
        )?
        .query_row([row.id.as_bytes()], |known| {
            let rank = match accepted_offset(known, 2)? {
                Some(offset) => CopyRank::Accepted { may_repeat: known.get(3)?, partition: known.get(1)?, offset },
                None => CopyRank::Scheduled,
            };
            Ok((known.get::<_, i64>(0)?, rank))
        })?;
    let dropped = if row.rank() < rank {
        db.prepare_cached("UPDATE message SET body = ?2 WHERE id = ?1")?
            .execute(params![row.id.as_bytes(), inserted])?;
        if let Some(business) = row.sender.business() {
            let expires_at = row.expires_at.map(Timestamp::as_millis);
            db.prepare_cached("UPDATE sent SET body = ?3, expires_at = ?4 WHERE business = ?1 AND id = ?2")?
                .execute(params![business.as_str(), row.id.as_bytes(), inserted, expires_at])?;
        }
        known
    } else {
        inserted
    };
    db.prepare_cached("DELETE FROM message_body WHERE body = ?1")?.execute([dropped])?;
    Ok(())
}

macro_rules! reach_step {
    ($step:literal) => {
        concat!(
            "INSERT INTO message (id, ",
            $step,
            ") VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET ",
            $step,
            " = excluded.",
            $step,
            " WHERE ",
            $step,
            " IS NULL OR excluded.",
            $step,
            " < ",
            $step
        )
    };
}

const REACH_FAILED: &str = "INSERT INTO message (id, failed, reason) VALUES (?1, ?2, ?3)
     ON CONFLICT DO UPDATE SET failed = excluded.failed, reason = excluded.reason WHERE failed IS NULL
         OR excluded.failed < failed
         OR excluded.failed = failed AND coalesce(excluded.reason, '') > coalesce(reason, '')";

fn reach(db: &Connection, steps: &[Step]) -> Result<()> {
    for step in steps {
        let sql = match step.status {
            // The message itself says when it was sent.
            Status::Sent => continue,
            Status::Failed => {
                let values = params![step.id.as_bytes(), step.at.as_millis(), step.reason];
                db.prepare_cached(REACH_FAILED)?.execute(values)?;
                continue;
            }
            Status::Expired => reach_step!("expired"),
            Status::Cancelled => reach_step!("cancelled"),
            Status::Delivered => reach_step!("delivered"),
            Status::Read => reach_step!("read"),
        };
        db.prepare_cached(sql)?.execute(params![step.id.as_bytes(), step.at.as_millis()])?;
    }
    Ok(())
}

fn get(db: &Connection, id: MessageId) -> Result<Option<StoredMessage>> {
    db.prepare_cached(
        "SELECT failed, expired, cancelled, delivered, read, reason,
             b.id, type, conversation, sender, recipient, created_at, expires_at, accepted_partition, accepted_offset,
             value
         FROM message m JOIN message_body b ON b.body = m.body WHERE m.id = ?1",
    )?
    .query_row([id.as_bytes()], stored_message)
    .optional()
}

fn stored_message(row: &Row<'_>) -> Result<StoredMessage> {
    let mut steps = steps(row, 0)?;
    let row_of_message = MessageRow {
        id: identity(row, 6, MessageId::from_bytes)?,
        message_type: message_type(row, 7)?,
        conversation: match row.get_ref(8)?.as_blob_or_null()? {
            Some(_) => Some(identity(row, 8, ConversationId::from_bytes)?),
            None => None,
        },
        sender: text(row, 9)?,
        recipient: text(row, 10)?,
        created_at: timestamp(row, 11)?,
        expires_at: optional_timestamp(row, 12)?,
        accepted: (row.get(13)?, accepted_offset(row, 14)?),
        may_repeat: false,
        value: bytes(row, 15)?,
    };
    if row_of_message.accepted.1.is_some() {
        steps.reach(Status::Sent, row_of_message.created_at);
    }
    Ok(StoredMessage { row: row_of_message, steps, failure_reason: row.get(5)? })
}

fn accepted_offset(row: &Row<'_>, column: usize) -> Result<Option<u64>> {
    match row.get(column)? {
        SCHEDULED => Ok(None),
        _ => unsigned(row, column).map(Some),
    }
}

/// The steps from five columns, lowest first, from `first` on.
pub(super) fn steps(row: &Row<'_>, first: usize) -> Result<StatusSteps> {
    let mut steps = StatusSteps::default();
    for (place, status) in Status::ALL.into_iter().skip(1).enumerate() {
        if let Some(at) = optional_timestamp(row, first + place)? {
            steps.reach(status, at);
        }
    }
    Ok(steps)
}

fn message_type(row: &Row<'_>, column: usize) -> Result<MessageType> {
    match row.get(column)? {
        0 => Ok(MessageType::OneWay),
        1 => Ok(MessageType::Chat),
        other => Err(rusqlite::Error::IntegralValueOutOfRange(column, other)),
    }
}

/// Walks down the business's list in one snapshot (one statement), and fetches what the query wants of it.
fn sent_by(db: &Connection, business: &BusinessId, query: &SentQuery, now: Timestamp) -> Result<SentPage> {
    let limit = query.limit.clamp(1, PAGE_MESSAGES);
    // Above every id there is: UUIDs of version 7 begin with a time.
    let before = query.before.map_or([0xff; 16], |id| *id.as_bytes());
    let mut list = db.prepare_cached(
        "SELECT failed, expired, cancelled, delivered, read, s.id, s.type, s.phone, s.expires_at, s.body
         FROM sent s JOIN message m ON m.id = s.id
         WHERE s.business = ?1 AND s.id < ?2 ORDER BY s.id DESC",
    )?;
    let mut rows = list.query(params![business.as_str(), before])?;
    let mut page = SentPage::default();
    let mut last = None;
    let mut examined = 0;
    while let Some(row) = rows.next()? {
        if page.messages.len() == limit || examined == EXAMINED {
            page.next = last;
            break;
        }
        examined += 1;
        let id = identity(row, 5, MessageId::from_bytes)?;
        last = Some(id);
        if wanted(db, row, query, now)? {
            page.messages.extend(get(db, id)?);
        }
    }
    Ok(page)
}

fn wanted(db: &Connection, row: &Row<'_>, query: &SentQuery, now: Timestamp) -> Result<bool> {
    if query.message_type.is_some_and(|wanted| Ok(wanted) != message_type(row, 6)) {
        return Ok(false);
    }
    let phone: Option<i64> = row.get(7)?;
    if query.to.is_some_and(|wanted| Some(integer(wanted.digits())) != phone) {
        return Ok(false);
    }
    let Some(wanted) = query.status else { return Ok(true) };
    let mut steps = steps(row, 0)?;
    if steps.current().is_none() {
        let (created_at, is_sent) = db
            .prepare_cached("SELECT created_at, accepted_offset >= 0 FROM message_body WHERE body = ?1")?
            .query_row([row.get::<_, i64>(9)?], |row| Ok((timestamp(row, 0)?, row.get(1)?)))?;
        if is_sent {
            steps.reach(Status::Sent, created_at);
        }
    }
    Ok(crate::messages::status_at(&steps, optional_timestamp(row, 8)?, now) == wanted)
}
