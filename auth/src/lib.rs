//! Who is calling: API keys of businesses, JWTs of mobile users. Shared by ingest and gateway.

use std::sync::Arc;

use eshaar_model::{Clock, Permission, Principal, Timestamp};
use eshaar_store::KeyStore;
use serde::Deserialize;

/// A caller whose credential was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who it is.
    pub principal: Principal,
    /// What its key allows. A phone has none: what a mobile user may do needs none.
    pub permissions: Vec<Permission>,
    /// Refused from then on.
    pub expires_at: Option<Timestamp>,
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
    /// It cannot be checked now.
    #[error("credentials cannot be checked at the moment: {0}")]
    Unavailable(String),
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
    _inner: Arc<()>,
}

impl Authenticator {
    /// Reads the secret and the key set that `options` name.
    pub async fn new(_options: Options, _keys: Arc<dyn KeyStore>, _clock: Clock) -> Result<Self, AuthError> {
        unimplemented!("the auth crate is being built")
    }

    /// Who holds this credential: an API key (`esk_…`) or a JWT.
    pub async fn authenticate(&self, _credential: &str) -> Result<Identity, AuthError> {
        unimplemented!("the auth crate is being built")
    }
}
