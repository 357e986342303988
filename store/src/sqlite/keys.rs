//! API keys.

use async_trait::async_trait;
use eshaar_model::{BusinessId, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Result, Row, params};

use super::columns::{optional_timestamp, text, timestamp};
use super::{Operation, Sqlite};
use crate::keys::{permissions_from_text, permissions_to_text};
use crate::{ApiKey, KeyStore, StoreError};

/// Most keys of a list.
const LISTED: i64 = 1_000;

macro_rules! select_keys {
    ($rest:literal) => {
        concat!(
            "SELECT id, business, name, secret_hash, permissions, created_at, expires_at, revoked_at, rate FROM api_key ",
            $rest
        )
    };
}

#[async_trait]
impl KeyStore for Sqlite {
    async fn put(&self, key: ApiKey) -> Result<(), StoreError> {
        self.write(Operation::durable("put_key"), 1, move |tables| put(&tables.db, &key)).await
    }

    async fn get(&self, id: &str) -> Result<Option<ApiKey>, StoreError> {
        let id = id.to_owned();
        self.query(Operation::new("get_key"), move |db| {
            db.prepare_cached(select_keys!("WHERE id = ?1"))?.query_row([id], api_key).optional()
        })
        .await
    }

    async fn list(&self, business: Option<&BusinessId>) -> Result<Vec<ApiKey>, StoreError> {
        let business = business.cloned();
        self.query(Operation::new("list_keys"), move |db| list(db, business.as_ref())).await
    }

    async fn has_business(&self, business: &BusinessId) -> Result<bool, StoreError> {
        let business = business.clone();
        self.query(Operation::new("has_business"), move |db| {
            db.prepare_cached("SELECT 1 FROM api_key WHERE business = ?1 LIMIT 1")?.exists([business.as_str()])
        })
        .await
    }

    async fn revoke(&self, id: &str, at: Timestamp) -> Result<bool, StoreError> {
        let id = id.to_owned();
        self.write(Operation::durable("revoke_key"), 1, move |tables| {
            let revoked = tables
                .db
                .prepare_cached("UPDATE api_key SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1")?
                .execute(params![id, at.as_millis()])?;
            Ok(revoked == 1)
        })
        .await
    }
}

fn put(db: &Connection, key: &ApiKey) -> Result<()> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO api_key
             (id, business, name, secret_hash, permissions, created_at, expires_at, revoked_at, rate)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        key.id,
        key.business.as_str(),
        key.name,
        key.secret_hash,
        permissions_to_text(&key.permissions),
        key.created_at.as_millis(),
        key.expires_at.map(Timestamp::as_millis),
        key.revoked_at.map(Timestamp::as_millis),
        key.rate.map(|rate| rate.to_string())
    ])?;
    Ok(())
}

fn list(db: &Connection, business: Option<&BusinessId>) -> Result<Vec<ApiKey>> {
    match business {
        Some(business) => db
            .prepare_cached(select_keys!("WHERE business = ?1 ORDER BY created_at, id LIMIT ?2"))?
            .query_map(params![business.as_str(), LISTED], api_key)?
            .collect(),
        None => {
            db.prepare_cached(select_keys!("ORDER BY created_at, id LIMIT ?1"))?.query_map([LISTED], api_key)?.collect()
        }
    }
}

fn api_key(row: &Row<'_>) -> Result<ApiKey> {
    Ok(ApiKey {
        id: row.get(0)?,
        business: text(row, 1)?,
        name: row.get(2)?,
        secret_hash: row.get(3)?,
        permissions: permissions_from_text(row.get_ref(4)?.as_str()?),
        created_at: timestamp(row, 5)?,
        expires_at: optional_timestamp(row, 6)?,
        revoked_at: optional_timestamp(row, 7)?,
        rate: row.get::<_, Option<String>>(8)?.map(|_| text(row, 8)).transpose()?,
    })
}
