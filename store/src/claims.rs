//! Idempotency claims: the first use of a key claims it; a repeat finds what the first was given (design §5).

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::Timestamp;

use crate::StoreError;

/// How long a claim stands, in milliseconds: 24 h.
pub const KEPT_MS: i64 = 24 * 3600 * 1000;

/// A key, within the principal that used it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClaimKey {
    /// Text of the principal.
    pub principal: String,
    /// The Idempotency-Key, or a WebSocket `ref`.
    pub key: String,
}

/// What the first use of a key left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// SHA-256 of the request body: a repeat with another body is refused.
    pub body_hash: [u8; 32],
    /// The ids that were minted for it, as the caller encodes them: a repeat uses the same.
    pub minted: Bytes,
    /// The answer, once everything was produced. `None`: never known to be produced; produce again with the same ids.
    pub answer: Option<Bytes>,
    /// When it was claimed.
    pub claimed_at: Timestamp,
}

/// What came of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The key is ours, durably.
    First,
    /// It was used before.
    Repeat(Claim),
}

/// Idempotency claims.
#[async_trait]
pub trait ClaimStore: Send + Sync + 'static {
    /// Claims `key`, exactly one caller being first, under concurrency too. Durable (fsync) when it returns `First`. A
    /// claim older than 24 h counts as gone.
    async fn claim(&self, key: &ClaimKey, claim: Claim) -> Result<Claimed, StoreError>;

    /// Records the answer of the claim that minted `minted`; where the key has another claim by now, or none, nothing.
    async fn answered(&self, key: &ClaimKey, minted: &Bytes, answer: Bytes) -> Result<(), StoreError>;

    /// Lets go of claims older than 24 h; returns how many went, 0 where the engine lets go of them by itself.
    async fn trim(&self, now: Timestamp) -> Result<usize, StoreError>;
}
