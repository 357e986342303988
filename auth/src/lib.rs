//! Who is calling: API keys of businesses, JWTs of mobile users. Shared by ingest and gateway.
//!
//! `keys` (the form of an API key, minting, looking it up) · `jwt` (what a token must hold, issuing one) · `jwks` (the
//! public keys of an identity provider) · `operations` (who may call what) · `businesses` (which exist) · `signing` (what signs webhooks). Credentials are never logged and never part of an error.

mod businesses;
pub mod jwks;
pub mod jwt;
pub mod keys;
pub mod operations;
pub mod signing;

use std::sync::Arc;

use eshaar_model::{BusinessId, Clock, Permission, Principal, Rate, Timestamp};
use eshaar_store::{KeyStore, StoreError};
use serde::Deserialize;

/// Longest credential that is looked at, in bytes. Tokens with many claims stay below 4 KiB.
pub const CREDENTIAL_BYTES: usize = 8 * 1024;

/// A caller whose credential was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who it is.
    pub principal: Principal,
    /// What its key allows. A phone has none: what a mobile user may do needs none.
    pub permissions: Vec<Permission>,
    /// Refused from then on.
    pub expires_at: Option<Timestamp>,
    /// How many messages may be sent with its key, where the key says so.
    pub rate: Option<Rate>,
    /// The public id of the API key, for logs and limits.
    pub key_id: Option<String>,
}

impl Identity {
    /// Whether it may do what `wanted` allows.
    pub fn may(&self, wanted: Permission) -> bool {
        self.permissions.iter().any(|permission| permission.covers(wanted))
    }
}

/// Why a credential was refused. It never holds the credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// None was given.
    #[error("no credential: send `Authorization: Bearer` with an API key or a token")]
    Missing,
    /// It is not valid.
    #[error("the credential was refused: {0}")]
    Refused(&'static str),
    /// The token names a key that its issuer may have published since its keys were read.
    #[error("the key of this token is not known yet: its issuer's keys are read again in {retry_after_s} s")]
    KeyUnknownYet {
        /// When they may be read again, in seconds.
        retry_after_s: u64,
    },
    /// It cannot be checked now.
    #[error("credentials cannot be checked at the moment: {0}")]
    Unavailable(String),
}

/// The options name something that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file cannot be read.
    #[error("{option}: cannot read {path}: {source}")]
    File {
        /// The option that names it.
        option: &'static str,
        /// Its path.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The HS256 secret is too short to be safe (RFC 7518, 3.2).
    #[error("auth.jwt_secret_file: needs a secret of at least {} bytes, has {length}", jwt::SECRET_BYTES)]
    ShortSecret {
        /// Its length in bytes.
        length: usize,
    },
    /// A key that signs webhooks is too short to be safe.
    #[error("webhooks.key_file: a key needs at least {} bytes, has {length}", signing::KEY_BYTES)]
    ShortSigningKey {
        /// Its length in bytes.
        length: usize,
    },
    /// Tokens cannot be issued without a secret.
    #[error("auth.jwt_secret_file is empty: tokens can be checked, not issued")]
    NoSecret,
    /// The key set is not one.
    #[error("auth.jwks: {0}")]
    Jwks(#[from] jwks::JwksError),
}

/// How mobile users' tokens are checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Secret for HS256 tokens, at least 32 bytes, read from this file. Empty: HS256 is refused.
    pub jwt_secret_file: String,
    /// A JWKS document: a file, or an `https://` (or `http://`) URL. Empty: none.
    pub jwks: String,
    /// Required `iss`. Empty: any.
    pub issuer: String,
    /// Required `aud`. Empty: any.
    pub audience: String,
}

/// Checks credentials. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    inner: Arc<Inner>,
}

struct Inner {
    keys: keys::Keys,
    businesses: businesses::Businesses,
    tokens: jwt::Tokens,
}

impl Authenticator {
    /// Reads the secret and the key set that `options` name. A key set behind a URL that does not answer is no error: it
    /// is asked again when a token needs it.
    pub async fn new(options: Options, keys: Arc<dyn KeyStore>, clock: Clock) -> Result<Self, SetupError> {
        let tokens = jwt::Tokens::new(&options, clock.clone()).await?;
        let businesses = businesses::Businesses::new(Arc::clone(&keys));
        Ok(Self { inner: Arc::new(Inner { keys: keys::Keys::new(keys, clock), businesses, tokens }) })
    }

    /// Who holds this credential: an API key (`esk_…`) or a JWT.
    pub async fn authenticate(&self, credential: &str) -> Result<Identity, AuthError> {
        if credential.is_empty() {
            return Err(AuthError::Missing);
        }
        if credential.len() > CREDENTIAL_BYTES {
            return Err(AuthError::Refused("it is longer than any of ours"));
        }
        if credential.starts_with(keys::PREFIX) {
            self.inner.keys.authenticate(credential).await
        } else {
            self.inner.tokens.authenticate(credential).await
        }
    }

    /// Returns true if a business exists: it has, or had, an API key.
    ///
    /// # Errors
    /// When the store does not answer, of a business that was not asked for lately.
    pub async fn has_business(&self, business: &BusinessId) -> Result<bool, StoreError> {
        self.inner.businesses.has(business).await
    }

    /// Whether an identity that was given earlier would be given still: an API key may have been revoked. What it may do now
    /// is answered. A token stands until it expires.
    pub async fn still(&self, identity: &Identity) -> Result<Identity, AuthError> {
        match &identity.key_id {
            Some(id) => self.inner.keys.still(id).await,
            None => Ok(identity.clone()),
        }
    }

    /// Forgets what is cached of an API key, so that its revocation holds at once in this process; in others it holds
    /// within [`keys::CACHED_FOR`].
    pub async fn forget_key(&self, id: &str) {
        self.inner.keys.forget(id).await;
    }
}
