//! Webhooks: a row is written conditionally, on its revision, so that two who change it are decided one after the other.
//! Cursors are rows of another table and need no decision.

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{BusinessId, Epoch, MessageId, Status, WebhookId};
use scylla::DeserializeRow;
use scylla::value::CqlTimestamp;
use uuid::Uuid;

use super::Cql;
use super::call::Call;
use super::columns::{epoch, integer, time, timestamp};
use super::gather::Write;
use crate::webhooks::{CURSORS, LISTED, event_names};
use crate::{StoreError, Webhook, WebhookCursor, WebhookStore};

/// What a cursor's row takes up, about, in bytes.
const CURSOR_BYTES: usize = 100;

#[async_trait]
impl WebhookStore for Cql {
    async fn create(&self, mut webhook: Webhook) -> Result<Webhook, StoreError> {
        let call = self.call("create_webhook")?;
        webhook.revision = self.revision();
        let values = values(&webhook);
        let decision = call.decide(&call.statements().make_webhook, &values).await?;
        if decision.applied || decision.uuid("revision") == Some(webhook.revision) {
            return Ok(webhook);
        }
        let known = get(&call, &webhook.business, webhook.id).await?;
        known.ok_or_else(|| call.failed("the webhook is neither new nor there"))
    }

    async fn replace(&self, webhook: Webhook) -> Result<Option<Webhook>, StoreError> {
        let call = self.call("replace_webhook")?;
        let changed = Webhook { revision: self.revision(), ..webhook.clone() };
        #[rustfmt::skip]
        let (url, events, key, generation, rotated, created, disabled, reason, failures, since, last, missed, revision,
            of, id) = values(&changed);
        let read = webhook.revision;
        #[rustfmt::skip]
        let values = (url, events, key, generation, rotated, created, disabled, reason, failures, since, last, missed,
            revision, of, id, read);
        let decision = call.decide(&call.statements().replace_webhook, &values).await?;
        // Refused, and it is ours: an attempt before, whose outcome had not been known, was applied.
        let ours = decision.applied || decision.uuid("revision") == Some(changed.revision);
        Ok(ours.then_some(changed))
    }

    async fn get(&self, business: &BusinessId, id: WebhookId) -> Result<Option<Webhook>, StoreError> {
        get(&self.call("get_webhook")?, business, id).await
    }

    async fn list(&self, business: &BusinessId) -> Result<Vec<Webhook>, StoreError> {
        let call = self.call("list_webhooks")?;
        let rows = call.read(&call.statements().webhooks, (business.as_str(), LISTED as i32)).await?;
        call.rows(&rows, webhook)
    }

    async fn delete(&self, business: &BusinessId, id: WebhookId) -> Result<bool, StoreError> {
        let call = self.call("delete_webhook")?;
        if get(&call, business, id).await?.is_none() {
            return Ok(false);
        }
        call.decide(&call.statements().delete_webhook, &(business.as_str(), Uuid::from(id))).await?;
        Ok(true)
    }

    async fn put_cursors(&self, partition: u32, cursors: Vec<WebhookCursor>) -> Result<(), StoreError> {
        let call = self.call("put_webhook_cursors")?;
        let statement = &call.statements().put_webhook_cursor;
        let writes = cursors.into_iter().map(|cursor| {
            let business = cursor.business.as_str().to_owned();
            let place = (epoch(cursor.epoch), integer(cursor.offset));
            let bytes = CURSOR_BYTES + cursor.state.len();
            let values = (partition as i32, Uuid::from(cursor.webhook), business, place.0, place.1, cursor.state);
            Write::new(statement, values, bytes)
        });
        call.write(writes.collect()).await
    }

    async fn remove_cursor(&self, partition: u32, webhook: WebhookId) -> Result<(), StoreError> {
        let call = self.call("remove_webhook_cursor")?;
        let values = (partition as i32, Uuid::from(webhook));
        call.write(vec![Write::new(&call.statements().remove_webhook_cursor, values, CURSOR_BYTES)]).await
    }

    async fn cursors(&self, partition: u32) -> Result<Vec<WebhookCursor>, StoreError> {
        let call = self.call("webhook_cursors")?;
        let rows = call.read(&call.statements().webhook_cursors, (partition as i32, CURSORS)).await?;
        call.rows(&rows, |(webhook, business, epoch, offset, state): (Uuid, String, i32, i64, Option<Bytes>)| {
            let wrong = |field: &str| format!("cursor of webhook {webhook}: {field} is not as it was written");
            Ok(WebhookCursor {
                business: business.parse().map_err(|_| wrong("business"))?,
                webhook: WebhookId::try_from(webhook).map_err(|_| wrong("webhook"))?,
                epoch: Epoch(u32::try_from(epoch).map_err(|_| wrong("epoch"))?),
                offset: u64::try_from(offset).map_err(|_| wrong("offset"))?,
                state: state.unwrap_or_default(),
            })
        })
    }
}

impl Cql {
    fn revision(&self) -> Uuid {
        MessageId::new(self.clock.now()).into()
    }
}

type Values<'a> = (
    &'a str,
    String,
    &'a str,
    i32,
    Option<CqlTimestamp>,
    CqlTimestamp,
    Option<CqlTimestamp>,
    Option<&'a str>,
    i32,
    Option<CqlTimestamp>,
    Option<&'a str>,
    i64,
    Uuid,
    &'a str,
    Uuid,
);

fn values(webhook: &Webhook) -> Values<'_> {
    let disabled = webhook.disabled.as_ref();
    (
        &webhook.url,
        event_names(&webhook.events),
        &webhook.key,
        webhook.generation as i32,
        webhook.rotated_at.map(time),
        time(webhook.created_at),
        disabled.map(|(at, _)| time(*at)),
        disabled.map(|(_, reason)| reason.as_str()),
        webhook.failures as i32,
        webhook.failing_since.map(time),
        webhook.last_failure.as_deref(),
        integer(webhook.missed),
        webhook.revision,
        webhook.business.as_str(),
        webhook.id.into(),
    )
}

async fn get(call: &Call<'_>, business: &BusinessId, id: WebhookId) -> Result<Option<Webhook>, StoreError> {
    let row = call.first::<Row>(&call.statements().webhook, (business.as_str(), Uuid::from(id))).await?;
    row.map(webhook).transpose().map_err(|reason| call.failed(&reason))
}

/// A row of `webhook`.
#[derive(DeserializeRow)]
struct Row {
    business: String,
    id: Uuid,
    url: String,
    events: String,
    key: String,
    generation: i32,
    rotated_at: Option<CqlTimestamp>,
    created_at: CqlTimestamp,
    disabled_at: Option<CqlTimestamp>,
    disabled_reason: Option<String>,
    failures: i32,
    failing_since: Option<CqlTimestamp>,
    last_failure: Option<String>,
    missed: Option<i64>,
    revision: Uuid,
}

fn webhook(row: Row) -> Result<Webhook, String> {
    let wrong = |field: &str| format!("webhook {}: {field} is not as it was written", row.id);
    let events = row.events.split_whitespace().map(str::parse::<Status>);
    Ok(Webhook {
        id: WebhookId::try_from(row.id).map_err(|_| wrong("id"))?,
        business: row.business.parse().map_err(|_| wrong("business"))?,
        events: events.collect::<Result<_, _>>().map_err(|_| wrong("events"))?,
        generation: u32::try_from(row.generation).map_err(|_| wrong("generation"))?,
        failures: u32::try_from(row.failures).map_err(|_| wrong("failures"))?,
        url: row.url,
        key: row.key,
        rotated_at: row.rotated_at.map(timestamp),
        created_at: timestamp(row.created_at),
        disabled: row.disabled_at.map(timestamp).zip(row.disabled_reason),
        failing_since: row.failing_since.map(timestamp),
        last_failure: row.last_failure,
        missed: row.missed.unwrap_or_default().max(0) as u64,
        revision: row.revision,
    })
}
