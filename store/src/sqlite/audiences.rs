//! Audiences and lists of recipients.

use async_trait::async_trait;
use eshaar_model::{BusinessId, Phone, RecipientsId, Timestamp};
use rusqlite::types::Type;
use rusqlite::{Error, OptionalExtension as _, Result, Row, params};

use super::columns::{identity, integer, text, timestamp, unsigned};
use super::{Operation, Sqlite};
use crate::audiences::{LISTED, PART_PAGES, pack, unpack};
use crate::{Audience, AudienceStore, Expiry, StoreError};

/// What a page takes up in the queue, in rows.
const PAGE_ROWS: usize = 40;

#[async_trait]
impl AudienceStore for Sqlite {
    async fn put_page(&self, list: RecipientsId, page: u32, phones: Vec<Phone>) -> Result<(), StoreError> {
        let phones = pack(&phones);
        self.write(Operation::new("put_recipients"), PAGE_ROWS, move |tables| {
            tables
                .db
                .prepare_cached("INSERT OR REPLACE INTO recipients (list, page, phones) VALUES (?1, ?2, ?3)")?
                .execute(params![list.as_bytes(), page, phones])
                .map(drop)
        })
        .await
    }

    async fn page(&self, list: RecipientsId, page: u32) -> Result<Vec<Phone>, StoreError> {
        self.query(Operation::new("recipients"), move |db| {
            db.prepare_cached("SELECT phones FROM recipients WHERE list = ?1 AND page = ?2")?
                .query_row(params![list.as_bytes(), page], phones)
                .optional()
                .map(Option::unwrap_or_default)
        })
        .await
    }

    async fn delete_pages(&self, list: RecipientsId, part: u32) -> Result<bool, StoreError> {
        self.write(Operation::new("delete_recipients"), PAGE_ROWS, move |tables| {
            let (from, to) = (part * PART_PAGES, (part + 1) * PART_PAGES);
            tables
                .db
                .prepare_cached("DELETE FROM recipients WHERE list = ?1 AND page >= ?2 AND page < ?3")?
                .execute(params![list.as_bytes(), from, to])
                .map(|deleted| deleted > 0)
        })
        .await
    }

    async fn put(&self, audience: Audience) -> Result<(), StoreError> {
        self.write(Operation::durable("put_audience"), 1, move |tables| {
            let Audience { business, name, recipients, total, uploaded_at } = &audience;
            tables
                .db
                .prepare_cached(
                    "INSERT OR REPLACE INTO audience (business, name, list, total, uploaded_at)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![
                    business.as_str(),
                    name,
                    recipients.as_bytes(),
                    integer(*total),
                    uploaded_at.as_millis()
                ])
                .map(drop)
        })
        .await
    }

    async fn get(&self, business: &BusinessId, name: &str) -> Result<Option<Audience>, StoreError> {
        let (business, name) = (business.clone(), name.to_owned());
        self.query(Operation::new("get_audience"), move |db| {
            db.prepare_cached(
                "SELECT business, name, list, total, uploaded_at FROM audience WHERE business = ?1 AND name = ?2",
            )?
            .query_row(params![business.as_str(), name], audience)
            .optional()
        })
        .await
    }

    async fn list(&self, business: &BusinessId) -> Result<Vec<Audience>, StoreError> {
        let business = business.clone();
        self.query(Operation::new("list_audiences"), move |db| {
            db.prepare_cached(
                "SELECT business, name, list, total, uploaded_at FROM audience WHERE business = ?1 ORDER BY name
                 LIMIT ?2",
            )?
            .query_map(params![business.as_str(), LISTED as i64], audience)?
            .collect()
        })
        .await
    }

    async fn remove(&self, business: &BusinessId, name: &str) -> Result<(), StoreError> {
        let (business, name) = (business.clone(), name.to_owned());
        self.write(Operation::durable("remove_audience"), 1, move |tables| {
            tables
                .db
                .prepare_cached("DELETE FROM audience WHERE business = ?1 AND name = ?2")?
                .execute(params![business.as_str(), name])
                .map(drop)
        })
        .await
    }

    async fn expire(&self, expiry: Expiry) -> Result<(), StoreError> {
        self.write(Operation::durable("expire_recipients"), 1, move |tables| {
            let (business, name) = expiry.audience.as_ref().map(|(business, name)| (business.as_str(), name)).unzip();
            tables
                .db
                .prepare_cached(
                    "INSERT OR REPLACE INTO recipients_due (due, list, business, name) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![expiry.due.as_millis(), expiry.recipients.as_bytes(), business, name])
                .map(drop)
        })
        .await
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Expiry>, StoreError> {
        self.query(Operation::new("recipients_due"), move |db| {
            db.prepare_cached(
                "SELECT due, list, business, name FROM recipients_due WHERE due <= ?1 ORDER BY due LIMIT ?2",
            )?
            .query_map(params![now.as_millis(), limit as i64], expiry)?
            .collect()
        })
        .await
    }

    async fn forget(&self, expiry: &Expiry) -> Result<(), StoreError> {
        let (due, list) = (expiry.due, expiry.recipients);
        self.write(Operation::new("forget_recipients"), 1, move |tables| {
            tables
                .db
                .prepare_cached("DELETE FROM recipients_due WHERE due = ?1 AND list = ?2")?
                .execute(params![due.as_millis(), list.as_bytes()])
                .map(drop)
        })
        .await
    }
}

fn phones(row: &Row<'_>) -> Result<Vec<Phone>> {
    let wrong = || Error::InvalidColumnType(0, "phones".to_owned(), Type::Blob);
    unpack(row.get_ref(0)?.as_blob()?).ok_or_else(wrong)
}

fn audience(row: &Row<'_>) -> Result<Audience> {
    Ok(Audience {
        business: text(row, 0)?,
        name: row.get(1)?,
        recipients: identity(row, 2, RecipientsId::from_bytes)?,
        total: unsigned(row, 3)?,
        uploaded_at: timestamp(row, 4)?,
    })
}

fn expiry(row: &Row<'_>) -> Result<Expiry> {
    let name: Option<String> = row.get(3)?;
    let audience = name.map(|name| Ok::<_, Error>((text(row, 2)?, name))).transpose()?;
    Ok(Expiry { due: timestamp(row, 0)?, recipients: identity(row, 1, RecipientsId::from_bytes)?, audience })
}
