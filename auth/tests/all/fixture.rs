//! A key store in memory, a clock that stands still, and tokens of any kind, good and forged.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use eshaar_auth::{Authenticator, Options};
use eshaar_model::{BusinessId, Clock, Phone, Timestamp};
use eshaar_store::{ApiKey, KeyStore, StoreError};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

/// 2026-01-01T00:00:00Z.
pub const NOW: Timestamp = Timestamp::from_millis(1_767_225_600_000);
pub const NOW_S: i64 = 1_767_225_600;
pub const SECRET: &str = "a secret of the tests, long enough for HS256";

pub fn phone() -> Phone {
    "+966501234567".parse().unwrap()
}

#[derive(Default)]
pub struct MemoryKeys {
    keys: Mutex<HashMap<String, ApiKey>>,
    pub lookups: AtomicUsize,
    pub down: AtomicBool,
}

#[async_trait]
impl KeyStore for MemoryKeys {
    async fn put(&self, key: ApiKey) -> Result<(), StoreError> {
        self.keys.lock().insert(key.id.clone(), key);
        Ok(())
    }

    async fn get(&self, id: &str) -> Result<Option<ApiKey>, StoreError> {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::Overloaded { waiting: 1 });
        }
        Ok(self.keys.lock().get(id).cloned())
    }

    async fn list(&self, _business: Option<&BusinessId>) -> Result<Vec<ApiKey>, StoreError> {
        Ok(self.keys.lock().values().cloned().collect())
    }

    async fn has_business(&self, business: &BusinessId) -> Result<bool, StoreError> {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::Overloaded { waiting: 1 });
        }
        Ok(self.keys.lock().values().any(|key| key.business == *business))
    }

    async fn revoke(&self, id: &str, at: Timestamp) -> Result<bool, StoreError> {
        let mut keys = self.keys.lock();
        let found = keys.get_mut(id);
        Ok(found.map(|key| key.revoked_at.get_or_insert(at)).is_some())
    }
}

/// An authenticator and what it rests on.
pub struct Fixture {
    pub auth: Authenticator,
    pub keys: Arc<MemoryKeys>,
    pub clock: Clock,
    _secret: NamedTempFile,
}

impl Fixture {
    /// HS256 alone, unless `change` says otherwise.
    pub async fn new(change: impl FnOnce(&mut Options)) -> Self {
        let secret = file(SECRET);
        let mut options = options(&secret);
        change(&mut options);
        let (keys, clock) = (Arc::new(MemoryKeys::default()), Clock::manual(NOW));
        let auth = Authenticator::new(options, keys.clone(), clock.clone()).await.unwrap();
        Self { auth, keys, clock, _secret: secret }
    }
}

pub fn options(secret: &NamedTempFile) -> Options {
    Options {
        jwt_secret_file: secret.path().display().to_string(),
        jwks: String::new(),
        issuer: String::new(),
        audience: String::new(),
    }
}

pub fn file(content: impl AsRef<[u8]>) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content.as_ref()).unwrap();
    file
}

/// Claims of a token valid for an hour, with `change` merged into them; null takes a claim away.
#[allow(clippy::needless_pass_by_value, reason = "literals read better by value")]
pub fn claims(change: Value) -> Value {
    let mut claims = json!({ "sub": phone().to_string(), "exp": NOW_S + 3600 });
    for (name, value) in change.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

pub fn hs256(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
}

/// A private key of the tests, the algorithm it is for, and its name.
pub fn private_keys() -> [(&'static str, Algorithm, EncodingKey); 3] {
    [
        ("rsa-1", Algorithm::RS256, EncodingKey::from_rsa_pem(include_bytes!("pem/rsa.pem")).unwrap()),
        ("ec-1", Algorithm::ES256, EncodingKey::from_ec_pem(include_bytes!("pem/p256.pem")).unwrap()),
        ("ed-1", Algorithm::EdDSA, EncodingKey::from_ed_pem(include_bytes!("pem/ed25519.pem")).unwrap()),
    ]
}

pub fn signed(kid: Option<&str>, algorithm: Algorithm, key: &EncodingKey) -> String {
    let mut header = Header::new(algorithm);
    header.kid = kid.map(str::to_owned);
    jsonwebtoken::encode(&header, &claims(json!({})), key).unwrap()
}
