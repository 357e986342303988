//! Messages by id, and their steps.
//!
//! Each write carries a timestamp that says what stands, so that neither the order of writes matters nor who writes: of
//! two copies of one message the one of the lowest rank, of two times of a step the earliest. A step may come before its
//! message: it is a row without a `type`, which nobody is shown.

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{BusinessId, ConversationId, MessageId, MessageType, Principal, Status, StatusSteps, Timestamp};
use scylla::DeserializeRow;
use scylla::value::{CqlTimestamp, MaybeUnset};
use uuid::Uuid;

use super::Cql;
use super::call::Call;
use super::columns::{copy_wins, lowest_wins, optional_time, time, timestamp};
use super::gather::Write;
use super::statements::reach;
use crate::{MessageRow, MessageStore, SentPage, SentQuery, Step, StoreError, StoredMessage};

/// Messages that are asked for by one request; ScyllaDB refuses more than 100.
const TOGETHER: usize = 50;

#[async_trait]
impl MessageStore for Cql {
    async fn put(&self, rows: Vec<MessageRow>) -> Result<(), StoreError> {
        let call = self.call("put_messages")?;
        let days = self.new_days(&rows);
        let mut writes: Vec<Write> = rows.iter().map(|row| put(&call, row)).collect();
        writes.extend(super::sent::writes(&call, &rows, &days));
        // What is said in a conversation is told when it is there; what is sent one way went to its phone without it.
        if rows.iter().any(|row| row.conversation.is_some()) {
            call.write(writes).await?;
        } else {
            call.write_later(writes).await?;
        }
        self.know_days(days);
        Ok(())
    }

    async fn reach(&self, steps: Vec<Step>) -> Result<(), StoreError> {
        let call = self.call("reach")?;
        call.write(steps.into_iter().filter_map(|step| reached(&call, step)).collect()).await
    }

    /// The count is the timestamp of its write, so that the highest stands.
    async fn set_retries(&self, id: MessageId, count: u32) -> Result<(), StoreError> {
        let call = self.call("set_retries")?;
        let values = (i64::from(count), count as i32, Uuid::from(id));
        call.write(vec![Write::new(&call.statements().set_retries, values, 0)]).await
    }

    async fn retries(&self, id: MessageId) -> Result<u32, StoreError> {
        let call = self.call("get_retries")?;
        let found = call.first::<(Option<i32>,)>(&call.statements().retries, (Uuid::from(id),)).await?;
        Ok(found.and_then(|(count,)| count).unwrap_or(0) as u32)
    }

    async fn get(&self, id: MessageId) -> Result<Option<StoredMessage>, StoreError> {
        let call = self.call("get_message")?;
        let rows = call.read(&call.statements().message, (Uuid::from(id),)).await?;
        Ok(call.rows(&rows, stored_message)?.into_iter().flatten().next())
    }

    async fn get_many(&self, ids: &[MessageId]) -> Result<Vec<Option<StoredMessage>>, StoreError> {
        let call = self.call("get_messages")?;
        let uuids: Vec<_> = ids.iter().map(|id| Uuid::from(*id)).collect();
        let found = messages_of(&call, &uuids).await?;
        let found: HashMap<_, _> = found.into_iter().map(|stored| (stored.row.id, stored)).collect();
        Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
    }

    async fn sent_by(&self, business: &BusinessId, query: SentQuery, now: Timestamp) -> Result<SentPage, StoreError> {
        let call = self.call("list_sent")?;
        super::sent::page(&call, business, &query, now).await
    }
}

fn put(call: &Call<'_>, row: &MessageRow) -> Write {
    let offset = row.accepted.1.map(super::columns::integer);
    let values = (
        Uuid::from(row.id),
        row.message_type as i8,
        MaybeUnset::from_option(row.conversation.map(Uuid::from)),
        row.sender.to_string(),
        row.recipient.to_string(),
        time(row.created_at),
        optional_time(row.expires_at),
        row.accepted.0 as i32,
        MaybeUnset::from_option(offset),
        row.value.clone(),
        copy_wins(row.rank()),
    );
    Write::new(&call.statements().put_message, values, row.value.len())
}

/// `None` for `sent`, which is the message's own to say.
fn reached(call: &Call<'_>, step: Step) -> Option<Write> {
    let (written_at, at, id) = (lowest_wins(step.at.as_millis()), time(step.at), Uuid::from(step.id));
    if step.status == Status::Failed {
        // Of two failures of one millisecond CQL keeps the reason that sorts last.
        let reason = MaybeUnset::from_option(step.reason);
        return Some(Write::new(&call.statements().reach_failed, (written_at, at, reason, id), 0));
    }
    Some(Write::new(reach(call.statements(), step.status)?, (written_at, at, id), 0))
}

/// A row of `message`.
#[derive(DeserializeRow)]
struct Row {
    id: Uuid,
    #[scylla(rename = "type")]
    message_type: Option<i8>,
    conversation: Option<Uuid>,
    sender: Option<String>,
    recipient: Option<String>,
    created_at: Option<CqlTimestamp>,
    expires_at: Option<CqlTimestamp>,
    accepted_partition: Option<i32>,
    accepted_offset: Option<i64>,
    value: Option<Bytes>,
    reason: Option<String>,
    failed: Option<CqlTimestamp>,
    expired: Option<CqlTimestamp>,
    cancelled: Option<CqlTimestamp>,
    delivered: Option<CqlTimestamp>,
    read: Option<CqlTimestamp>,
}

/// `None` where only steps have come.
fn stored_message(row: Row) -> Result<Option<StoredMessage>, String> {
    let (Some(message_type), Some(created_at)) = (row.message_type, row.created_at.map(timestamp)) else {
        return Ok(None);
    };
    let id = MessageId::try_from(row.id).map_err(|error| error.to_string())?;
    let of_message = MessageRow {
        id,
        message_type: self::message_type(message_type)?,
        conversation: row.conversation.map(ConversationId::try_from).transpose().map_err(|error| error.to_string())?,
        sender: principal(row.sender.as_deref(), id)?,
        recipient: principal(row.recipient.as_deref(), id)?,
        created_at,
        expires_at: row.expires_at.map(timestamp),
        accepted: (row.accepted_partition.unwrap_or(0) as u32, row.accepted_offset.map(|offset| offset as u64)),
        may_repeat: false,
        value: row.value.unwrap_or_default(),
    };
    let mut steps = steps([row.failed, row.expired, row.cancelled, row.delivered, row.read]);
    if row.accepted_offset.is_some() {
        steps.reach(Status::Sent, created_at);
    }
    Ok(Some(StoredMessage { row: of_message, steps, failure_reason: row.reason }))
}

fn principal(text: Option<&str>, of: MessageId) -> Result<Principal, String> {
    text.unwrap_or_default().parse().map_err(|error| format!("message {of}: {error}"))
}

pub(super) fn message_type(value: i8) -> Result<MessageType, String> {
    match value {
        0 => Ok(MessageType::OneWay),
        1 => Ok(MessageType::Chat),
        other => Err(format!("there is no message type {other}")),
    }
}

/// From the columns of all steps but `sent`, lowest first.
fn steps(columns: [Option<CqlTimestamp>; 5]) -> StatusSteps {
    let mut steps = StatusSteps::default();
    for (status, at) in Status::ALL.into_iter().skip(1).zip(columns) {
        if let Some(at) = at {
            steps.reach(status, timestamp(at));
        }
    }
    steps
}

/// The steps of messages, in no order; one of which nothing has come is not among them.
pub(super) async fn steps_of(call: &Call<'_>, ids: &[Uuid]) -> Result<Vec<(Uuid, StatusSteps)>, StoreError> {
    type At = Option<CqlTimestamp>;
    type Row = (Uuid, At, At, At, At, At, At, Option<i64>);
    let lookup = async |ids: Vec<Uuid>| {
        let rows = call.read(&call.statements().steps, (ids,)).await?;
        call.rows(&rows, |(id, failed, expired, cancelled, delivered, read, created_at, accepted): Row| {
            let mut steps = steps([failed, expired, cancelled, delivered, read]);
            if let Some(created_at) = created_at.filter(|_| accepted.is_some()) {
                steps.reach(Status::Sent, timestamp(created_at));
            }
            Ok((id, steps))
        })
    };
    Ok(call.each(ids.chunks(TOGETHER).map(|ids| lookup(ids.to_vec())).collect()).await?.concat())
}

/// Messages by their ids, in no order.
pub(super) async fn messages_of(call: &Call<'_>, ids: &[Uuid]) -> Result<Vec<StoredMessage>, StoreError> {
    let lookup = async |ids: Vec<Uuid>| {
        let rows = call.read(&call.statements().messages, (ids,)).await?;
        call.rows(&rows, stored_message)
    };
    let found = call.each(ids.chunks(TOGETHER).map(|ids| lookup(ids.to_vec())).collect()).await?;
    Ok(found.into_iter().flatten().flatten().collect())
}
