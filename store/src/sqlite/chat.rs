//! What was said in conversations, by position; read positions; what is unread.
//!
//! Rows go to the end of one table, in the order of the log; an index finds them by conversation.

use std::collections::HashMap;

use eshaar_model::{Conversation, ConversationId, ConversationPosition, Epoch, MessageId, Side, Timestamp};
use rusqlite::{Connection, Params, Result, Row, params};

use super::columns::{bytes, identity, integer, optional_timestamp, timestamp, unsigned};
use super::conversations::{get, put, side};
use super::messages::steps;
use crate::conversations::{PAGE_MESSAGES, ReadFrom, UNREAD_EXAMINED, shown_at};
use crate::{ChatPage, ChatRow, ReadMark, Unread};

pub(super) fn append(db: &Connection, rows: &[ChatRow]) -> Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT INTO chat (conversation, epoch, offset, id, sender, at, expires_at, value)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING",
    )?;
    let mut last = HashMap::<ConversationId, &ChatRow>::new();
    for row in rows {
        insert.execute(params![
            row.conversation.as_bytes(),
            row.position.epoch.0,
            integer(row.position.offset),
            row.id.as_bytes(),
            row.from as u8,
            row.at.as_millis(),
            row.expires_at.map(Timestamp::as_millis),
            &row.value[..],
        ])?;
        let highest = last.entry(row.conversation).or_insert(row);
        if row.position > highest.position {
            *highest = row;
        }
    }
    for row in last.into_values() {
        let known = get(db, row.conversation)?;
        let mut conversation = known.clone().unwrap_or_else(|| {
            let mut lost = Conversation::new(row.conversation, row.pair.clone());
            lost.close();
            lost
        });
        conversation.receive(row.as_last());
        if known.as_ref() != Some(&conversation) {
            put(db, &conversation)?;
        }
    }
    Ok(())
}

/// The columns of messages, as [`chat_row`] reads them.
macro_rules! rows {
    ($rest:literal) => {
        concat!(
            "SELECT epoch, offset, id, sender, at, expires_at, value FROM chat WHERE conversation = ?1 AND (epoch, offset) ",
            $rest,
            " LIMIT ?4"
        )
    };
}

pub(super) fn history(db: &Connection, id: ConversationId, from: ReadFrom, limit: usize) -> Result<ChatPage> {
    let limit = limit.clamp(1, PAGE_MESSAGES);
    let Some(of) = get(db, id)? else { return Ok(ChatPage::default()) };
    let (key, more) = (id.as_bytes(), limit as i64 + 1);
    let backward = rows!("< (?2, ?3) ORDER BY epoch DESC, offset DESC");
    let mut rows = match from {
        ReadFrom::Newest => read(db, &of, backward, params![key, i64::MAX, i64::MAX, more])?,
        ReadFrom::Before(at) => read(db, &of, backward, params![key, at.epoch.0, integer(at.offset), more])?,
        ReadFrom::After(at) => {
            let (epoch, offset) = at.map_or((-1, -1), |at| (i64::from(at.epoch.0), integer(at.offset)));
            read(db, &of, rows!("> (?2, ?3) ORDER BY epoch, offset"), params![key, epoch, offset, more])?
        }
    };
    let more = rows.len() > limit;
    rows.truncate(limit);
    if !matches!(from, ReadFrom::After(_)) {
        rows.reverse();
    }
    Ok(ChatPage { rows, more })
}

fn read(db: &Connection, of: &Conversation, sql: &str, key: impl Params) -> Result<Vec<ChatRow>> {
    db.prepare_cached(sql)?.query_map(key, |row| chat_row(row, of))?.collect()
}

fn chat_row(row: &Row<'_>, of: &Conversation) -> Result<ChatRow> {
    Ok(ChatRow {
        conversation: of.id,
        pair: of.pair.clone(),
        from: side(row, 3)?,
        position: position(row)?,
        id: identity(row, 2, MessageId::from_bytes)?,
        at: timestamp(row, 4)?,
        expires_at: optional_timestamp(row, 5)?,
        value: bytes(row, 6)?,
    })
}

fn position(row: &Row<'_>) -> Result<ConversationPosition> {
    Ok(ConversationPosition { epoch: Epoch(row.get(0)?), offset: unsigned(row, 1)? })
}

pub(super) fn mark_read(db: &Connection, marks: &[ReadMark]) -> Result<()> {
    for mark in marks {
        let (epoch, offset) = (mark.up_to.epoch.0, integer(mark.up_to.offset));
        db.prepare_cached(match mark.side {
            Side::Business => {
                "UPDATE conversation SET business_epoch = ?2, business_offset = ?3
                 WHERE id = ?1 AND (business_epoch IS NULL OR (business_epoch, business_offset) < (?2, ?3))"
            }
            Side::Phone => {
                "UPDATE conversation SET phone_epoch = ?2, phone_offset = ?3
                 WHERE id = ?1 AND (phone_epoch IS NULL OR (phone_epoch, phone_offset) < (?2, ?3))"
            }
        })?
        .execute(params![mark.conversation.as_bytes(), epoch, offset])?;
    }
    Ok(())
}

/// From the read position on, with what became of each message.
pub(super) fn unread(db: &Connection, id: ConversationId, side: Side, now: Timestamp) -> Result<Unread> {
    let Some(conversation) = get(db, id)? else { return Ok(Unread::default()) };
    let (epoch, offset) =
        conversation.read[side as usize].map_or((-1, -1), |at| (i64::from(at.epoch.0), integer(at.offset)));
    let mut statement = db.prepare_cached(
        "SELECT epoch, offset, sender, c.expires_at, failed, expired, cancelled, delivered, read
         FROM chat c LEFT JOIN message m ON m.id = c.id
         WHERE conversation = ?1 AND (epoch, offset) > (?2, ?3) ORDER BY epoch, offset",
    )?;
    let mut rows = statement.query(params![id.as_bytes(), epoch, offset])?;
    let (mut unread, mut examined) = (Unread::default(), 0);
    while let Some(row) = rows.next()? {
        if examined == UNREAD_EXAMINED {
            unread.more = true;
            break;
        }
        examined += 1;
        let shown = shown_at(&steps(row, 4)?, optional_timestamp(row, 3)?, now);
        let from = super::conversations::side(row, 2)?;
        if conversation.counts_as_unread(side, from, position(row)?, shown) && unread.add() {
            break;
        }
    }
    Ok(unread)
}
