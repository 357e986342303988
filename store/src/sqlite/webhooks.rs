//! Webhooks and their cursors.

use async_trait::async_trait;
use eshaar_model::{BusinessId, Epoch, MessageId, Status, Timestamp, WebhookId};
use rusqlite::types::Type;
use rusqlite::{Connection, Error, OptionalExtension as _, Result, Row, params};
use uuid::Uuid;

use super::columns::{bytes, identity, integer, optional_timestamp, text, timestamp, unsigned};
use super::{Operation, Sqlite};
use crate::webhooks::{CURSORS, LISTED, event_names};
use crate::{StoreError, Webhook, WebhookCursor, WebhookStore};

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, business, url, events, key, generation, rotated_at, created_at, disabled_at, disabled_reason,
                 failures, failing_since, revision, last_failure, missed FROM webhook ",
            $rest
        )
    };
}

#[async_trait]
impl WebhookStore for Sqlite {
    async fn create(&self, mut webhook: Webhook) -> Result<Webhook, StoreError> {
        webhook.revision = self.revision();
        self.write(Operation::durable("create_webhook"), 1, move |tables| {
            let made = write(&tables.db, INSERT, &webhook, None)?;
            if made { Ok(webhook.clone()) } else { stands(&tables.db, &webhook) }
        })
        .await
    }

    async fn replace(&self, webhook: Webhook) -> Result<Option<Webhook>, StoreError> {
        let changed = Webhook { revision: self.revision(), ..webhook.clone() };
        self.write(Operation::durable("replace_webhook"), 1, move |tables| {
            let written = write(&tables.db, UPDATE, &changed, Some(webhook.revision))?;
            Ok(written.then(|| changed.clone()))
        })
        .await
    }

    async fn get(&self, business: &BusinessId, id: WebhookId) -> Result<Option<Webhook>, StoreError> {
        let business = business.clone();
        self.query(Operation::new("get_webhook"), move |db| {
            db.prepare_cached(select!("WHERE business = ?1 AND id = ?2"))?
                .query_row(params![business.as_str(), id.as_bytes()], webhook)
                .optional()
        })
        .await
    }

    async fn list(&self, business: &BusinessId) -> Result<Vec<Webhook>, StoreError> {
        let business = business.clone();
        self.query(Operation::new("list_webhooks"), move |db| {
            db.prepare_cached(select!("WHERE business = ?1 ORDER BY id LIMIT ?2"))?
                .query_map(params![business.as_str(), LISTED as i64], webhook)?
                .collect()
        })
        .await
    }

    async fn delete(&self, business: &BusinessId, id: WebhookId) -> Result<bool, StoreError> {
        let business = business.clone();
        self.write(Operation::durable("delete_webhook"), 1, move |tables| {
            let deleted = tables
                .db
                .prepare_cached("DELETE FROM webhook WHERE business = ?1 AND id = ?2")?
                .execute(params![business.as_str(), id.as_bytes()])?;
            Ok(deleted == 1)
        })
        .await
    }

    async fn put_cursors(&self, partition: u32, cursors: Vec<WebhookCursor>) -> Result<(), StoreError> {
        self.write(Operation::new("put_webhook_cursors"), cursors.len(), move |tables| {
            let mut put = tables.db.prepare_cached(
                "INSERT OR REPLACE INTO webhook_cursor (partition, webhook, business, epoch, offset, state)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for cursor in &cursors {
                let WebhookCursor { business, webhook, epoch, offset, state } = cursor;
                let (id, business, offset) = (webhook.as_bytes(), business.as_str(), integer(*offset));
                put.execute(params![partition, id, business, epoch.0, offset, &state[..]])?;
            }
            Ok(())
        })
        .await
    }

    async fn remove_cursor(&self, partition: u32, webhook: WebhookId) -> Result<(), StoreError> {
        self.write(Operation::new("remove_webhook_cursor"), 1, move |tables| {
            tables
                .db
                .prepare_cached("DELETE FROM webhook_cursor WHERE partition = ?1 AND webhook = ?2")?
                .execute(params![partition, webhook.as_bytes()])
                .map(drop)
        })
        .await
    }

    async fn cursors(&self, partition: u32) -> Result<Vec<WebhookCursor>, StoreError> {
        self.query(Operation::new("webhook_cursors"), move |db| {
            db.prepare_cached(
                "SELECT business, webhook, epoch, offset, state FROM webhook_cursor WHERE partition = ?1 ORDER BY webhook
                 LIMIT ?2",
            )?
            .query_map(params![partition, CURSORS], cursor)?
            .collect()
        })
        .await
    }
}

impl Sqlite {
    fn revision(&self) -> Uuid {
        MessageId::new(self.clock.now()).into()
    }
}

const INSERT: &str = "INSERT INTO webhook (id, business, url, events, key, generation, rotated_at, created_at,
         disabled_at, disabled_reason, failures, failing_since, revision, last_failure, missed)
     SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?15, ?16 WHERE ?14 IS NULL
     ON CONFLICT DO NOTHING";

const UPDATE: &str = "UPDATE webhook SET url = ?3, events = ?4, key = ?5, generation = ?6, rotated_at = ?7,
         created_at = ?8, disabled_at = ?9, disabled_reason = ?10, failures = ?11, failing_since = ?12, revision = ?13,
         last_failure = ?15, missed = ?16
     WHERE business = ?2 AND id = ?1 AND revision = ?14";

fn write(db: &Connection, statement: &'static str, webhook: &Webhook, read: Option<Uuid>) -> Result<bool> {
    let disabled = webhook.disabled.as_ref();
    let written = db.prepare_cached(statement)?.execute(params![
        webhook.id.as_bytes(),
        webhook.business.as_str(),
        webhook.url,
        event_names(&webhook.events),
        webhook.key,
        webhook.generation,
        webhook.rotated_at.map(Timestamp::as_millis),
        webhook.created_at.as_millis(),
        disabled.map(|(at, _)| at.as_millis()),
        disabled.map(|(_, reason)| reason),
        webhook.failures,
        webhook.failing_since.map(Timestamp::as_millis),
        webhook.revision.as_bytes(),
        read.as_ref().map(Uuid::as_bytes),
        webhook.last_failure,
        integer(webhook.missed),
    ])?;
    Ok(written == 1)
}

fn stands(db: &Connection, new: &Webhook) -> Result<Webhook> {
    db.prepare_cached(select!("WHERE business = ?1 AND id = ?2"))?
        .query_row(params![new.business.as_str(), new.id.as_bytes()], webhook)
}

fn webhook(row: &Row<'_>) -> Result<Webhook> {
    let events = row.get_ref(3)?.as_str()?.split_whitespace().map(str::parse::<Status>);
    let events = events
        .collect::<Result<_, _>>()
        .map_err(|error| Error::FromSqlConversionFailure(3, Type::Text, Box::new(error)))?;
    let reason: Option<String> = row.get(9)?;
    Ok(Webhook {
        id: identity(row, 0, WebhookId::from_bytes)?,
        business: text(row, 1)?,
        url: row.get(2)?,
        events,
        key: row.get(4)?,
        generation: row.get(5)?,
        rotated_at: optional_timestamp(row, 6)?,
        created_at: timestamp(row, 7)?,
        disabled: optional_timestamp(row, 8)?.zip(reason),
        failures: row.get(10)?,
        failing_since: optional_timestamp(row, 11)?,
        revision: identity(row, 12, Uuid::from_slice)?,
        last_failure: row.get(13)?,
        missed: unsigned(row, 14)?,
    })
}

fn cursor(row: &Row<'_>) -> Result<WebhookCursor> {
    Ok(WebhookCursor {
        business: text(row, 0)?,
        webhook: identity(row, 1, WebhookId::from_bytes)?,
        epoch: Epoch(row.get(2)?),
        offset: unsigned(row, 3)?,
        state: bytes(row, 4)?,
    })
}
