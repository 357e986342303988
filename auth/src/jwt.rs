//! JWTs of mobile users: `sub` is the phone. HS256 with a secret of our own, or RS256, ES256 and EdDSA with the keys of
//! an identity provider (`jwks`).
//!
//! The key decides the algorithm, never the token: a token whose `alg` is not that of the key it names is refused
//! (RFC 8725, 3.1). `exp` is required; `nbf` is obeyed; `iss` and `aud` are when they are configured.

use std::sync::Arc;
use std::time::Duration;

use eshaar_model::phone::PhoneError;
use eshaar_model::{Clock, Phone, Principal, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::jwks::{Jwks, VerifyingKey};
use crate::{AuthError, Identity, Options, SetupError};

/// Shortest HS256 secret, in bytes: that of the hash (RFC 7518, 3.2).
pub const SECRET_BYTES: usize = 32;

/// How far the clocks of issuer and checker may be apart.
pub const LEEWAY: Duration = Duration::from_secs(5);

/// Verified tokens remembered; past it the least used go.
const CACHED_TOKENS: u64 = 50_000;
/// How long a verified token is not verified again: a key that its provider took back is honoured no longer than this.
const CACHED_FOR: Duration = Duration::from_mins(5);

/// Claims we read. Others are ignored.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// Seconds since the Unix epoch; RFC 7519 allows a fraction.
    exp: f64,
    nbf: Option<f64>,
}

/// Claims we issue.
#[derive(Serialize)]
struct Issued<'a> {
    sub: String,
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    iss: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    aud: &'a str,
}

/// Issues HS256 tokens that this service accepts: for `eshaar token`, the console and tests.
pub struct Issuer {
    key: EncodingKey,
    iss: String,
    aud: String,
}

impl Issuer {
    /// Reads the secret that `options` name.
    pub async fn new(options: &Options) -> Result<Self, SetupError> {
        let secret = read_secret(options).await?.ok_or(SetupError::NoSecret)?;
        Ok(Self { key: EncodingKey::from_secret(&secret), iss: options.issuer.clone(), aud: options.audience.clone() })
    }

    /// A token of `phone`, valid from `now` on.
    pub fn issue(&self, phone: Phone, valid_for: Duration, now: Timestamp) -> Result<String, AuthError> {
        let iat = now.as_millis().div_euclid(1000);
        let exp = iat.saturating_add_unsigned(valid_for.as_secs());
        let claims = Issued { sub: phone.to_string(), iat, exp, iss: &self.iss, aud: &self.aud };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.key)
            .map_err(|error| AuthError::Unavailable(format!("a token could not be signed: {error}")))
    }
}

/// Checks tokens, and remembers those that were good.
pub(crate) struct Tokens {
    hs256: Option<VerifyingKey>,
    jwks: Option<Jwks>,
    issuer: String,
    audience: String,
    verified: Cache<[u8; 32], Arc<Verified>>,
    clock: Clock,
}

struct Verified {
    identity: Identity,
    expires_at: Timestamp,
}

impl Tokens {
    pub(crate) async fn new(options: &Options, clock: Clock) -> Result<Self, SetupError> {
        let secret = read_secret(options).await?;
        let hs256 =
            secret.map(|secret| VerifyingKey { algorithm: Algorithm::HS256, key: DecodingKey::from_secret(&secret) });
        let jwks = if options.jwks.is_empty() { None } else { Some(Jwks::open(&options.jwks).await?) };
        Ok(Self {
            hs256,
            jwks,
            issuer: options.issuer.clone(),
            audience: options.audience.clone(),
            verified: Cache::builder().max_capacity(CACHED_TOKENS).time_to_live(CACHED_FOR).build(),
            clock,
        })
    }

    pub(crate) async fn authenticate(&self, token: &str) -> Result<Identity, AuthError> {
        let fingerprint: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let verified = if let Some(verified) = self.verified.get(&fingerprint) {
            verified
        } else {
            let verified = Arc::new(self.verify(token).await?);
            self.verified.insert(fingerprint, Arc::clone(&verified));
            verified
        };
        if has_expired(verified.expires_at, self.clock.now()) {
            return Err(AuthError::Refused("the token has expired"));
        }
        Ok(verified.identity.clone())
    }

    async fn verify(&self, token: &str) -> Result<Verified, AuthError> {
        let header = jsonwebtoken::decode_header(token)
            .map_err(|_| AuthError::Refused("it is neither an API key nor a JWT of a known algorithm"))?;
        if header.crit.is_some() {
            return Err(AuthError::Refused("the token has critical header parameters that are not understood"));
        }
        let key = self.key_for(&header).await?;
        if key.algorithm != header.alg {
            return Err(AuthError::Refused("the token's algorithm is not that of its key"));
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &key.key, &self.validation(key.algorithm))
            .map_err(|error| AuthError::Refused(reason(error.kind())))?
            .claims;
        self.judge(&claims)
    }

    /// The secret for HS256 without a `kid` of a key set; otherwise the key that the token names.
    async fn key_for(&self, header: &Header) -> Result<Arc<VerifyingKey>, AuthError> {
        if header.alg == Algorithm::HS256 {
            let key = self.hs256.clone().ok_or(AuthError::Refused("HS256 tokens are not accepted here"))?;
            return Ok(Arc::new(key));
        }
        let jwks = self.jwks.as_ref().ok_or(AuthError::Refused("only HS256 tokens are accepted here"))?;
        jwks.find(header.kid.as_deref(), header.alg).await
    }

    /// Signature, issuer and audience are the library's to check; times are ours, by our clock.
    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = !self.audience.is_empty();
        let mut required = vec!["sub", "exp"];
        if !self.issuer.is_empty() {
            validation.set_issuer(&[&self.issuer]);
            required.push("iss");
        }
        if !self.audience.is_empty() {
            validation.set_audience(&[&self.audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    fn judge(&self, claims: &Claims) -> Result<Verified, AuthError> {
        let now = self.clock.now();
        let expires_at = seconds(claims.exp).ok_or(AuthError::Refused("the token's `exp` is not a time"))?;
        if has_expired(expires_at, now) {
            return Err(AuthError::Refused("the token has expired"));
        }
        if let Some(not_before) = claims.nbf {
            let not_before = seconds(not_before).ok_or(AuthError::Refused("the token's `nbf` is not a time"))?;
            if not_before.millis_since(now) > LEEWAY.as_millis() as i64 {
                return Err(AuthError::Refused("the token is not valid yet"));
            }
        }
        let phone: Phone = Phone::parse_valid(&claims.sub).map_err(|error| AuthError::Refused(sub_refused(&error)))?;
        let identity = Identity {
            principal: Principal::Phone(phone),
            permissions: Vec::new(),
            expires_at: Some(expires_at),
            rate: None,
            key_id: None,
        };
        Ok(Verified { identity, expires_at })
    }
}

fn sub_refused(error: &PhoneError) -> &'static str {
    match error {
        PhoneError::Form { .. } => "the token's `sub` is not an E.164 phone number",
        PhoneError::TrunkPrefix { .. } => {
            "the token's `sub` is not a number that can be reached from abroad: leave out the `0` behind the country code"
        }
        PhoneError::Plan { .. } => "the token's `sub` is not a phone number of any country",
    }
}

fn has_expired(expires_at: Timestamp, now: Timestamp) -> bool {
    now.millis_since(expires_at) >= LEEWAY.as_millis() as i64
}

/// A NumericDate, from 1970 to far beyond the year 9999.
fn seconds(value: f64) -> Option<Timestamp> {
    (0.0..=1e12).contains(&value).then(|| Timestamp::from_millis((value * 1000.0) as i64))
}

fn reason(kind: &jsonwebtoken::errors::ErrorKind) -> &'static str {
    use jsonwebtoken::errors::ErrorKind;
    match kind {
        ErrorKind::InvalidSignature => "the token's signature is wrong",
        ErrorKind::InvalidIssuer => "the token is of another issuer",
        ErrorKind::InvalidAudience => "the token is for another audience",
        ErrorKind::MissingRequiredClaim(_) => {
            "the token lacks a claim: `sub`, `exp`, and `iss` and `aud` where required"
        }
        ErrorKind::Json(_) => "the token's claims are not as expected: `sub` a text, `exp` and `nbf` numbers",
        _ => "the token is malformed",
    }
}

async fn read_secret(options: &Options) -> Result<Option<Vec<u8>>, SetupError> {
    let path = &options.jwt_secret_file;
    if path.is_empty() {
        return Ok(None);
    }
    let file = |source| SetupError::File { option: "auth.jwt_secret_file", path: path.clone(), source };
    let content = tokio::fs::read(path).await.map_err(file)?;
    // An editor's line end is no part of the secret.
    let secret = content.trim_ascii_end();
    if secret.len() < SECRET_BYTES {
        return Err(SetupError::ShortSecret { length: secret.len() });
    }
    Ok(Some(secret.to_vec()))
}
