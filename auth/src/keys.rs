//! API keys: `esk_<id>_<secret>`. The id is public; of the secret only a SHA-256 is kept, and it is shown once, when it
//! is minted (R12.3).
//!
//! A plain hash is enough: the secret is 256 random bits, so there is nothing for a slow hash to slow down.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use eshaar_model::{BusinessId, Clock, Permission, Principal, Timestamp};
use eshaar_store::{ApiKey, KeyStore};
use moka::future::Cache;
use rand::Rng as _;
use rand::distr::Alphanumeric;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::{AuthError, Identity};

/// What every API key begins with; secret scanners look for it.
pub const PREFIX: &str = "esk_";

/// How long a key that was looked up is taken to be as it was: a revocation takes at most this long to hold everywhere.
pub const CACHED_FOR: Duration = Duration::from_secs(5);

/// How long a key is remembered for when the store does not answer (R6.3): who could call before can go on, and a key that
/// is revoked meanwhile could not be seen anyway.
pub const REMEMBERED_FOR: Duration = Duration::from_hours(1);

/// How long the store may take to say how a key is that is remembered.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a store that did not answer is not asked again about keys that are remembered, in milliseconds: a revocation
/// made meanwhile takes this much longer to hold.
const NOT_ASKED_MS: i64 = 15_000;

/// Characters of the public id: 71 bits, so that none is minted twice.
const ID_LENGTH: usize = 12;
/// Characters of the secret: 43 of 62, 256 bits.
const SECRET_LENGTH: usize = 43;
/// Keys remembered, those known and those unknown apart: a flood of made-up ids pushes no real one out.
const CACHED_KEYS: u64 = 10_000;

const MALFORMED: AuthError = AuthError::Refused("it is not an API key of this service");
const UNKNOWN: AuthError = AuthError::Refused("no such API key");
const REVOKED: AuthError = AuthError::Refused("the API key is revoked");
const EXPIRED: AuthError = AuthError::Refused("the API key has expired");

/// A key that was just made: what to store, and the text to show its owner, once.
pub struct Minted {
    /// For [`KeyStore::put`].
    pub stored: ApiKey,
    /// The whole key, secret included. It cannot be shown again.
    pub text: String,
}

/// Without the secret.
impl fmt::Debug for Minted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minted").field("id", &self.stored.id).finish_non_exhaustive()
    }
}

/// Makes a key without a rate of its own. It works once `stored` is put into the store.
pub fn mint(
    business: BusinessId,
    name: impl Into<String>,
    permissions: Vec<Permission>,
    expires_at: Option<Timestamp>,
    now: Timestamp,
) -> Minted {
    let (id, secret) = (random_text(ID_LENGTH), random_text(SECRET_LENGTH));
    let text = format!("{PREFIX}{id}_{secret}");
    let stored = ApiKey {
        id,
        business,
        name: name.into(),
        secret_hash: hash(&secret),
        permissions,
        rate: None,
        created_at: now,
        expires_at,
        revoked_at: None,
    };
    Minted { stored, text }
}

fn random_text(length: usize) -> String {
    rand::rng().sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Splits a key into id and secret; `None` where it is not one of ours.
fn split(credential: &str) -> Option<(&str, &str)> {
    let (id, secret) = credential.strip_prefix(PREFIX)?.split_once('_')?;
    let well_formed = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_alphanumeric());
    (well_formed(id, ID_LENGTH) && well_formed(secret, SECRET_LENGTH)).then_some((id, secret))
}

/// Looks keys up, by way of a cache.
pub(crate) struct Keys {
    store: Arc<dyn KeyStore>,
    known: Cache<String, Arc<Known>>,
    unknown: Cache<String, ()>,
    /// What each key was when it was last looked up: asked only when the store does not answer.
    remembered: Cache<String, Arc<Known>>,
    /// Until when the store is not asked about those, in milliseconds of the clock.
    not_asked_until: AtomicI64,
    clock: Clock,
}

/// A stored key, and the identity that it gives.
struct Known {
    secret_hash: [u8; 32],
    revoked: bool,
    identity: Identity,
}

impl From<ApiKey> for Known {
    fn from(key: ApiKey) -> Self {
        Self {
            secret_hash: key.secret_hash,
            revoked: key.revoked_at.is_some(),
            identity: Identity {
                principal: Principal::Business(key.business),
                permissions: key.permissions,
                expires_at: key.expires_at,
                rate: key.rate,
                key_id: Some(key.id),
            },
        }
    }
}

impl Keys {
    pub(crate) fn new(store: Arc<dyn KeyStore>, clock: Clock) -> Self {
        let known = Cache::builder().max_capacity(CACHED_KEYS).time_to_live(CACHED_FOR).build();
        let unknown = Cache::builder().max_capacity(CACHED_KEYS).time_to_live(CACHED_FOR).build();
        let remembered = Cache::builder().max_capacity(CACHED_KEYS).time_to_live(REMEMBERED_FOR).build();
        Self { store, known, unknown, remembered, not_asked_until: AtomicI64::new(i64::MIN), clock }
    }

    pub(crate) async fn authenticate(&self, credential: &str) -> Result<Identity, AuthError> {
        let (id, secret) = split(credential).ok_or(MALFORMED)?;
        let key = self.find(id).await?;
        // The secret is compared before anything is said about the key: who does not hold it learns nothing of it.
        if !bool::from(hash(secret).ct_eq(&key.secret_hash)) {
            return Err(UNKNOWN);
        }
        self.standing(&key)
    }

    /// As [`Keys::authenticate`], of a key whose secret was shown before.
    pub(crate) async fn still(&self, id: &str) -> Result<Identity, AuthError> {
        self.standing(&*self.find(id).await?)
    }

    fn standing(&self, key: &Known) -> Result<Identity, AuthError> {
        if key.revoked {
            return Err(REVOKED);
        }
        if key.identity.expires_at.is_some_and(|at| at <= self.clock.now()) {
            return Err(EXPIRED);
        }
        Ok(key.identity.clone())
    }

    pub(crate) async fn forget(&self, id: &str) {
        self.known.invalidate(id).await;
        self.unknown.invalidate(id).await;
        self.remembered.invalidate(id).await;
    }

    /// Concurrent look-ups of one key are one query.
    async fn find(&self, id: &str) -> Result<Arc<Known>, AuthError> {
        if let Some(key) = self.known.get(id).await {
            return Ok(key);
        }
        if self.unknown.contains_key(id) {
            return Err(UNKNOWN);
        }
        let found = self.known.try_get_with_by_ref(id, self.look_up(id)).await;
        found.map_err(|error| AuthError::clone(&error))
    }

    async fn look_up(&self, id: &str) -> Result<Arc<Known>, AuthError> {
        match self.remembered.get(id).await {
            None => match self.store.get(id).await {
                Ok(found) => self.found(id, found).await,
                Err(error) => Err(AuthError::Unavailable(error.to_string())),
            },
            Some(key) if self.clock.now().as_millis() < self.not_asked_until.load(Ordering::Relaxed) => Ok(key),
            Some(key) => {
                if let Ok(Ok(found)) = tokio::time::timeout(PATIENCE, self.store.get(id)).await {
                    return self.found(id, found).await;
                }
                tracing::warn!(key = id, "the store does not answer: an API key is taken to be as it was");
                self.not_asked_until.store(self.clock.now().as_millis() + NOT_ASKED_MS, Ordering::Relaxed);
                Ok(key)
            }
        }
    }

    async fn found(&self, id: &str, found: Option<ApiKey>) -> Result<Arc<Known>, AuthError> {
        let Some(key) = found else {
            self.remembered.invalidate(id).await;
            self.unknown.insert(id.to_owned(), ()).await;
            return Err(UNKNOWN);
        };
        let key = Arc::new(Known::from(key));
        self.remembered.insert(id.to_owned(), Arc::clone(&key)).await;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use async_trait::async_trait;
    use eshaar_store::StoreError;

    use super::*;

    /// Holds one key, until it is down. Counts how often it is asked.
    struct Store {
        key: ApiKey,
        down: AtomicBool,
        asked: AtomicI64,
    }

    #[async_trait]
    impl KeyStore for Store {
        async fn put(&self, _: ApiKey) -> Result<(), StoreError> {
            Ok(())
        }

        async fn get(&self, id: &str) -> Result<Option<ApiKey>, StoreError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            if self.down.load(Ordering::SeqCst) {
                return Err(StoreError::Closed);
            }
            Ok(Some(self.key.clone()).filter(|key| key.id == id))
        }

        async fn list(&self, _: Option<&BusinessId>) -> Result<Vec<ApiKey>, StoreError> {
            Ok(vec![self.key.clone()])
        }

        async fn has_business(&self, _: &BusinessId) -> Result<bool, StoreError> {
            Ok(true)
        }

        async fn revoke(&self, _: &str, _: Timestamp) -> Result<bool, StoreError> {
            Ok(false)
        }
    }

    #[tokio::test]
    async fn a_key_that_was_seen_is_believed_while_the_store_is_down_and_no_other_is() {
        let now = Timestamp::from_millis(1_760_000_000_000);
        let minted = mint("acme".parse().unwrap(), "", vec![Permission::MessagesSend], None, now);
        let other = mint("acme".parse().unwrap(), "", vec![], None, now);
        let id = minted.stored.id.clone();
        let store = Arc::new(Store { key: minted.stored, down: AtomicBool::new(false), asked: AtomicI64::new(0) });
        let clock = Clock::manual(now);
        let keys = Keys::new(store.clone(), clock.clone());
        keys.authenticate(&minted.text).await.unwrap();
        store.down.store(true, Ordering::SeqCst);
        for asked in [2, 2, 2] {
            // As after CACHED_FOR.
            keys.known.invalidate(&id).await;
            assert!(keys.authenticate(&minted.text).await.is_ok());
            assert_eq!(store.asked.load(Ordering::SeqCst), asked, "a store that is down is left alone for a while");
        }
        assert!(matches!(keys.authenticate(&other.text).await, Err(AuthError::Unavailable(_))));
        clock.advance_millis(NOT_ASKED_MS);
        store.down.store(false, Ordering::SeqCst);
        keys.known.invalidate(&id).await;
        assert!(keys.authenticate(&minted.text).await.is_ok());
        assert_eq!(store.asked.load(Ordering::SeqCst), 4);
    }
}
