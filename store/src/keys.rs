//! API keys: stored as hashes, found by them.

use async_trait::async_trait;
use eshaar_model::{BusinessId, Permission, Rate, Timestamp};

use crate::StoreError;

/// An API key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Public id: the part of the key that may be shown and logged.
    pub id: String,
    /// Whose it is.
    pub business: BusinessId,
    /// What its owner calls it.
    pub name: String,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    /// What it allows.
    pub permissions: Vec<Permission>,
    /// How many messages may be sent with it. `None`: as many as the service takes.
    pub rate: Option<Rate>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Refused from then on.
    pub expires_at: Option<Timestamp>,
    /// Refused since.
    pub revoked_at: Option<Timestamp>,
}

/// API keys.
#[async_trait]
pub trait KeyStore: Send + Sync + 'static {
    /// Writes a key, durably; the same id again replaces it.
    async fn put(&self, key: ApiKey) -> Result<(), StoreError>;

    /// A key by its public id.
    async fn get(&self, id: &str) -> Result<Option<ApiKey>, StoreError>;

    /// The keys of a business, or all, oldest first, at most 1,000.
    async fn list(&self, business: Option<&BusinessId>) -> Result<Vec<ApiKey>, StoreError>;

    /// Revokes a key, durably; returns whether there is such a key. The first time of revocation stays.
    async fn revoke(&self, id: &str, at: Timestamp) -> Result<bool, StoreError>;
}
