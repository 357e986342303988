//! API keys. There are few and they change rarely, so all writes of them are conditional: a revocation and a replacement
//! that race are decided one after the other.

use std::collections::BTreeMap;

use async_trait::async_trait;
use eshaar_model::{BusinessId, Timestamp};
use futures_util::TryStreamExt as _;
use scylla::DeserializeRow;
use scylla::value::CqlTimestamp;

use super::Cql;
use super::columns::{time, timestamp};
use super::gather::Write;
use crate::keys::{permissions_from_text, permissions_to_text};
use crate::{ApiKey, KeyStore, StoreError};

/// Most keys of a list.
const LISTED: usize = 1_000;

#[async_trait]
impl KeyStore for Cql {
    async fn put(&self, key: ApiKey) -> Result<(), StoreError> {
        let call = self.call("put_key")?;
        let values = (
            key.business.as_str(),
            &key.name,
            &key.secret_hash[..],
            permissions_to_text(&key.permissions),
            time(key.created_at),
            key.expires_at.map(time),
            key.revoked_at.map(time),
            key.rate.map(|rate| rate.to_string()),
            &key.id,
        );
        // First: a key that works has a business that exists.
        call.write(vec![Write::new(&call.statements().put_business, (key.business.as_str().to_owned(),), 0)]).await?;
        // Keys are never deleted: one that cannot be made can be replaced.
        if call.decide(&call.statements().make_key, &values).await?.applied
            || call.decide(&call.statements().replace_key, &values).await?.applied
        {
            return Ok(());
        }
        Err(call.failed("the key is neither new nor there"))
    }

    async fn get(&self, id: &str) -> Result<Option<ApiKey>, StoreError> {
        let call = self.call("get_key")?;
        let row = call.first::<Row>(&call.statements().key, (id,)).await?;
        row.map(api_key).transpose().map_err(|reason| call.failed(&reason))
    }

    /// Reads the whole table and keeps the oldest: it is an operator who asks, and keys are in the thousands at most.
    async fn list(&self, business: Option<&BusinessId>) -> Result<Vec<ApiKey>, StoreError> {
        let call = self.call("list_keys")?;
        let _turn = call.turn().await?;
        let rows = call.session().execute_iter(call.statements().keys.clone(), ()).await;
        let rows = rows.map_err(|error| call.failed(&error))?.rows_stream::<Row>();
        let mut rows = rows.map_err(|error| call.failed(&error))?;
        let mut oldest = BTreeMap::new();
        while let Some(row) = rows.try_next().await.map_err(|error| call.failed(&error))? {
            let key = api_key(row).map_err(|reason| call.failed(&reason))?;
            if business.is_none_or(|business| key.business == *business) {
                oldest.insert((key.created_at, key.id.clone()), key);
                if oldest.len() > LISTED {
                    oldest.pop_last();
                }
            }
        }
        Ok(oldest.into_values().collect())
    }

    async fn has_business(&self, business: &BusinessId) -> Result<bool, StoreError> {
        let call = self.call("has_business")?;
        let found = call.first::<(String,)>(&call.statements().business, (business.as_str(),)).await?;
        Ok(found.is_some())
    }

    async fn revoke(&self, id: &str, at: Timestamp) -> Result<bool, StoreError> {
        let call = self.call("revoke_key")?;
        if call.first::<Row>(&call.statements().key, (id,)).await?.is_none() {
            return Ok(false);
        }
        // Refused where it was revoked before.
        call.decide(&call.statements().revoke_key, &(time(at), id)).await?;
        Ok(true)
    }
}

/// A row of `api_key`.
#[derive(DeserializeRow)]
struct Row {
    id: String,
    business: String,
    name: String,
    secret_hash: Vec<u8>,
    permissions: String,
    created_at: CqlTimestamp,
    expires_at: Option<CqlTimestamp>,
    revoked_at: Option<CqlTimestamp>,
    rate: Option<String>,
}

fn api_key(row: Row) -> Result<ApiKey, String> {
    let id = &row.id;
    let wrong = |field: &str| format!("key {id}: {field} is not as it was written");
    Ok(ApiKey {
        business: row.business.parse().map_err(|_| wrong("business"))?,
        secret_hash: row.secret_hash.try_into().map_err(|_| wrong("secret_hash"))?,
        permissions: permissions_from_text(&row.permissions),
        rate: row.rate.map(|rate| rate.parse()).transpose().map_err(|_| wrong("rate"))?,
        name: row.name,
        created_at: timestamp(row.created_at),
        expires_at: row.expires_at.map(timestamp),
        revoked_at: row.revoked_at.map(timestamp),
        id: row.id,
    })
}
