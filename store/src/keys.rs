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

/// First word of stored permissions that hold everything that the key allows. Keys without it were stored before reading
/// messages and managing webhooks needed permissions, and allow both.
const COMPLETE: &str = "v2";

/// Permissions that keys have which were stored before these permissions were there.
const ALWAYS_ALLOWED_BEFORE: [Permission; 2] = [Permission::MessagesRead, Permission::WebhooksManage];

/// The text that both engines store for the permissions of a key.
pub(crate) fn permissions_to_text(permissions: &[Permission]) -> String {
    let names = permissions.iter().map(|permission| permission.as_str());
    std::iter::once(COMPLETE).chain(names).collect::<Vec<_>>().join(" ")
}

/// The permissions of a stored key. A name that this program does not know grants nothing: a newer one wrote it.
pub(crate) fn permissions_from_text(text: &str) -> Vec<Permission> {
    let mut words = text.split_whitespace().peekable();
    let is_complete = words.next_if_eq(&COMPLETE).is_some();
    let mut permissions: Vec<Permission> = words.filter_map(|word| word.parse().ok()).collect();
    if !is_complete {
        permissions.extend(ALWAYS_ALLOWED_BEFORE);
    }
    permissions
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

    /// Returns true if a business exists: it has, or had, an API key.
    async fn has_business(&self, business: &BusinessId) -> Result<bool, StoreError>;

    /// Revokes a key, durably; returns whether there is such a key. The first time of revocation stays.
    async fn revoke(&self, id: &str, at: Timestamp) -> Result<bool, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_come_back_as_they_were_stored() {
        for permissions in [vec![], vec![Permission::MediaUpload], Permission::ALL.to_vec()] {
            assert_eq!(permissions_from_text(&permissions_to_text(&permissions)), permissions);
        }
    }

    #[test]
    fn keys_stored_before_reading_needed_a_permission_may_read_and_manage_webhooks() {
        let permissions = permissions_from_text("media:upload");
        assert_eq!(permissions, [Permission::MediaUpload, Permission::MessagesRead, Permission::WebhooksManage]);
        assert_eq!(permissions_from_text(""), ALWAYS_ALLOWED_BEFORE);
    }

    #[test]
    fn a_permission_of_a_newer_program_grants_nothing() {
        assert_eq!(permissions_from_text("v2 chat stars:count"), [Permission::Chat]);
    }
}
