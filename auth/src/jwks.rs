//! The public keys of an identity provider: a JWKS document (RFC 7517) in a file or behind a URL.
//!
//! It is read again when a token names a key that is not in it (a rotation), and when it is old; behind a URL never more often
//! than [`MIN_INTERVAL`], whatever tokens claim. While it cannot be read, the keys known so far stay good. A token whose key is
//! not in a document that was read before the token came may be signed with a newer key: it is neither accepted nor refused
//! until the document may be read again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::RwLock;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::AuthError;

/// Shortest time between two readings of the document.
pub const MIN_INTERVAL: Duration = Duration::from_secs(30);
/// A document older than this is read again, so that keys taken back go out of use.
pub const MAX_AGE: Duration = Duration::from_mins(10);
/// Largest document, in bytes.
pub const DOCUMENT_BYTES: usize = 256 * 1024;
/// Most names of keys that are remembered as not published.
const MAX_ABSENT: usize = 1_024;
/// Most keys of a document that are used.
const MAX_KEYS: usize = 64;
/// How long a provider may take to answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Shortest RSA modulus, in bytes: 2048 bits (RFC 7518, 3.3).
const RSA_BYTES: usize = 256;

/// A key set cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Its path.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The provider did not answer as it should.
    #[error("cannot fetch {url}: {reason}")]
    Fetch {
        /// Where from.
        url: String,
        /// Why not.
        reason: String,
    },
    /// Larger than [`DOCUMENT_BYTES`].
    #[error("the document is larger than {DOCUMENT_BYTES} bytes")]
    TooLarge,
    /// Not a JWKS document.
    #[error("the document is not a JSON Web Key Set: {0}")]
    Malformed(String),
}

/// A key, and the one algorithm it is for.
#[derive(Clone)]
pub(crate) struct VerifyingKey {
    pub(crate) algorithm: Algorithm,
    pub(crate) key: DecodingKey,
}

enum Source {
    File(String),
    Url { url: String, client: reqwest::Client },
}

#[derive(Default)]
struct KeySet {
    /// By `kid`; a key without one is under the empty name.
    keys: HashMap<String, Arc<VerifyingKey>>,
    /// Names of keys that cannot be used, and names that tokens had before the document was read and that are not in it.
    absent: HashSet<String>,
    read_at: Option<Instant>,
}

/// A key set, kept fresh.
pub(crate) struct Jwks {
    source: Source,
    set: RwLock<KeySet>,
    /// When the document was last asked for, and what came of it. Held while it is read: one reader at a time.
    last_attempt: Mutex<Attempt>,
}

#[derive(Default)]
struct Attempt {
    at: Option<Instant>,
    failure: Option<String>,
    /// Of a file that was read: when it was changed, and its length.
    file: Option<(SystemTime, u64)>,
}

impl Jwks {
    /// Opens a file, which must be readable, or a URL, which need not answer yet.
    pub(crate) async fn open(location: &str) -> Result<Self, JwksError> {
        let is_url = location.starts_with("https://") || location.starts_with("http://");
        let source = if is_url {
            Source::Url { url: location.to_owned(), client: client(location)? }
        } else {
            Source::File(location.to_owned())
        };
        let jwks = Self { source, set: RwLock::default(), last_attempt: Mutex::default() };
        match jwks.refresh(None).await {
            Err(error @ (JwksError::Fetch { .. } | JwksError::TooLarge | JwksError::Malformed(_))) if is_url => {
                tracing::warn!(%error, "the key set cannot be read; it is tried again when a token needs it");
            }
            other => other?,
        }
        Ok(jwks)
    }

    /// The key that a token names by `kid`; without one, the only key for its algorithm.
    pub(crate) async fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Arc<VerifyingKey>, AuthError> {
        let (began, seen) = (Instant::now(), self.read_at());
        if let Some(key) = self.lookup(kid, algorithm)
            && seen.is_some_and(|at| at.elapsed() < MAX_AGE)
        {
            return Ok(key);
        }
        if let Err(error) = self.refresh(seen).await {
            tracing::warn!(%error, "the key set cannot be read; the keys known so far are used");
        }
        if let Some(key) = self.lookup(kid, algorithm) {
            return Ok(key);
        }
        let attempt = self.last_attempt.lock().await;
        match (&attempt.failure, attempt.at) {
            (Some(failure), _) => Err(AuthError::Unavailable(failure.clone())),
            (None, Some(at)) if !self.is_absent(kid.unwrap_or_default(), began) => {
                let pause = MIN_INTERVAL.saturating_sub(at.elapsed());
                Err(AuthError::KeyUnknownYet { retry_after_s: pause.as_secs() + 1 })
            }
            (None, _) => Err(AuthError::Refused("the token names a key that its issuer does not publish")),
        }
    }

    /// Whether a key that is not in the document was missing from it after a token had named it.
    fn is_absent(&self, kid: &str, named_at: Instant) -> bool {
        let mut set = self.set.write();
        if set.absent.contains(kid) {
            return true;
        }
        let was_read_since = set.read_at.is_some_and(|at| at >= named_at);
        if was_read_since && set.absent.len() < MAX_ABSENT {
            set.absent.insert(kid.to_owned());
        }
        was_read_since
    }

    fn read_at(&self) -> Option<Instant> {
        self.set.read().read_at
    }

    fn lookup(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<Arc<VerifyingKey>> {
        let set = self.set.read();
        if let Some(kid) = kid {
            return set.keys.get(kid).cloned();
        }
        let mut candidates = set.keys.values().filter(|key| key.algorithm == algorithm);
        let only = candidates.next()?;
        candidates.next().is_none().then(|| Arc::clone(only))
    }

    /// Reads the document again, unless somebody has since `seen`, or has tried within [`MIN_INTERVAL`]. A file is looked at
    /// each time, which costs little: one that has not changed is as good as read.
    async fn refresh(&self, seen: Option<Instant>) -> Result<(), JwksError> {
        let mut attempt = self.last_attempt.lock().await;
        if self.read_at() != seen {
            return Ok(());
        }
        let file = self.source.file().await;
        if file.is_some() && file == attempt.file && attempt.failure.is_none() {
            self.set.write().read_at = Some(Instant::now());
            return Ok(());
        }
        if file.is_none() && attempt.at.is_some_and(|at| at.elapsed() < MIN_INTERVAL) {
            return Ok(());
        }
        attempt.at = Some(Instant::now());
        attempt.file = file;
        let read = match self.source.read().await {
            Ok(document) => parse(&document),
            Err(error) => Err(error),
        };
        attempt.failure = read.as_ref().err().map(ToString::to_string);
        let (keys, absent) = read?;
        *self.set.write() = KeySet { keys, absent, read_at: Some(Instant::now()) };
        Ok(())
    }
}

fn client(url: &str) -> Result<reqwest::Client, JwksError> {
    // The process may have chosen a provider already: then that one is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(FETCH_TIMEOUT)
        .redirect(reqwest::redirect::Policy::limited(3))
        .build()
        .map_err(|error| JwksError::Fetch { url: url.to_owned(), reason: error.to_string() })
}

impl Source {
    /// When a file was changed, and its length; `None` of a URL.
    async fn file(&self) -> Option<(SystemTime, u64)> {
        let Self::File(path) = self else { return None };
        let metadata = tokio::fs::metadata(path).await.ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    }

    async fn read(&self) -> Result<Vec<u8>, JwksError> {
        let (url, client) = match self {
            Self::File(path) => {
                let document =
                    tokio::fs::read(path).await.map_err(|source| JwksError::File { path: path.clone(), source })?;
                return if document.len() > DOCUMENT_BYTES { Err(JwksError::TooLarge) } else { Ok(document) };
            }
            Self::Url { url, client } => (url, client),
        };
        let failed = |error: reqwest::Error| JwksError::Fetch { url: url.clone(), reason: error.to_string() };
        let mut response =
            client.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(failed)?;
        let mut document = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if document.len() + chunk.len() > DOCUMENT_BYTES {
                return Err(JwksError::TooLarge);
            }
            document.extend_from_slice(&chunk);
        }
        Ok(document)
    }
}

/// The keys of a document that can be used, and the names of the others (encryption keys, other algorithms), which are
/// passed over, as RFC 7517 (5) asks.
#[expect(clippy::type_complexity, reason = "a pair that is taken apart at once")]
fn parse(document: &[u8]) -> Result<(HashMap<String, Arc<VerifyingKey>>, HashSet<String>), JwksError> {
    let set: JwkSet = serde_json::from_slice(document).map_err(|error| JwksError::Malformed(error.to_string()))?;
    let usable = set.keys.iter().filter_map(|jwk| {
        let algorithm = algorithm_of(jwk)?;
        let key = DecodingKey::from_jwk(jwk).ok()?;
        let kid = jwk.common.key_id.clone().unwrap_or_default();
        Some((kid, Arc::new(VerifyingKey { algorithm, key })))
    });
    let usable: HashMap<_, _> = usable.take(MAX_KEYS).collect();
    let names = set.keys.iter().filter_map(|jwk| jwk.common.key_id.clone());
    let absent = names.filter(|name| !usable.contains_key(name)).take(MAX_ABSENT).collect();
    Ok((usable, absent))
}

/// The algorithm that a key is for. A symmetric key has no place among public ones.
fn algorithm_of(jwk: &Jwk) -> Option<Algorithm> {
    if matches!(&jwk.common.public_key_use, Some(usage) if *usage != PublicKeyUse::Signature) {
        return None;
    }
    let (algorithm, name) = match &jwk.algorithm {
        AlgorithmParameters::RSA(key) if modulus_bytes(&key.n) >= RSA_BYTES => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        _ => return None,
    };
    jwk.common.key_algorithm.is_none_or(|said| said == name).then_some(algorithm)
}

/// Length of what unpadded base64 of this length decodes to.
const fn modulus_bytes(base64: &str) -> usize {
    base64.len() * 3 / 4
}
