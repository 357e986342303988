//! `Idempotency-Key`: however often a request is sent, it has one effect and one answer (R4.3, design §5).
//!
//! The first use claims the key in the store, durably, with the id minted for it, before anything is produced. A repeat
//! finds the claim: with an answer it gets that answer; without one (the first died in between) the message is produced
//! again with the same id, which the log's readers drop if it stood there already. Only while the first is being answered
//! in this very process is a repeat sent away (409).

use std::collections::HashSet;
use std::sync::Arc;

use axum::http::HeaderMap;
use bytes::Bytes;
use eshaar_model::limits::IDEMPOTENCY_KEY_CHARS;
use eshaar_model::{BusinessId, MessageId, Timestamp};
use eshaar_service::{Problem, metrics as names};
use eshaar_store::{Claim, ClaimKey, ClaimStore, Claimed};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::problems;

/// The request's header.
pub(crate) const HEADER: &str = "idempotency-key";
/// The answer's header, `true` when it is that of an earlier request.
pub(crate) const REPLAYED: &str = "idempotency-replayed";

/// Whether a text may be an Idempotency-Key.
pub(crate) fn is_key(text: &str) -> bool {
    (1..=IDEMPOTENCY_KEY_CHARS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The key of a request, if it has one.
pub(crate) fn of(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    match value.to_str() {
        Ok(text) if is_key(text) => Ok(Some(text.to_owned())),
        _ => Err(problems::invalid_header("Idempotency-Key", "invalid_idempotency_key", IDEMPOTENCY_KEY_CHARS)),
    }
}

/// What a repeat must have in common with the first: the kind of request and its body.
pub(crate) fn hash_of(kind: &str, body: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(kind).chain_update([0]).chain_update(body).finalize().into()
}

/// The claims of this process.
pub(crate) struct Claims {
    store: Arc<dyn ClaimStore>,
    in_flight: Arc<Mutex<HashSet<ClaimKey>>>,
}

/// A key that is ours to act on.
pub(crate) struct Held {
    pub(crate) key: ClaimKey,
    /// The id that its message has, now as at the first time.
    pub(crate) id: MessageId,
    /// Whether it was used before.
    pub(crate) repeat: bool,
    in_flight: Arc<Mutex<HashSet<ClaimKey>>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.in_flight.lock().remove(&self.key);
    }
}

/// What becomes of a request with a key.
pub(crate) enum Turn {
    /// Produce it, with this id.
    Produce(Held),
    /// Answer this, again.
    Replay(Bytes),
}

impl Claims {
    pub(crate) fn new(store: Arc<dyn ClaimStore>) -> Self {
        Self { store, in_flight: Arc::default() }
    }

    /// Claims `key` for a request of `hash`; `minted` is its id if it is the first.
    pub(crate) async fn claim(
        &self,
        business: &BusinessId,
        key: String,
        hash: [u8; 32],
        minted: MessageId,
        now: Timestamp,
    ) -> Result<Turn, Problem> {
        let key = ClaimKey { principal: business.to_string(), key };
        if !self.in_flight.lock().insert(key.clone()) {
            return Err(problems::idempotency_in_flight());
        }
        // From here on, whatever happens, the key is let go of by `held`.
        let mut held = Held { key, id: minted, repeat: false, in_flight: Arc::clone(&self.in_flight) };
        let claim =
            Claim { body_hash: hash, minted: Bytes::copy_from_slice(minted.as_bytes()), answer: None, claimed_at: now };
        let earlier = match self.store.claim(&held.key, claim).await.map_err(|error| problems::store(&error))? {
            Claimed::First => return Ok(Turn::Produce(held)),
            Claimed::Repeat(earlier) => earlier,
        };
        if earlier.body_hash != hash {
            return Err(problems::idempotency_mismatch());
        }
        metrics::counter!(names::INGEST_REPEATED).increment(1);
        if let Some(answer) = earlier.answer {
            return Ok(Turn::Replay(answer));
        }
        held.id = MessageId::from_bytes(&earlier.minted).map_err(|_| problems::internal())?;
        held.repeat = true;
        Ok(Turn::Produce(held))
    }

    /// Keeps the answer for repeats. When that fails nothing is lost: a repeat is produced again, with the same id.
    pub(crate) async fn answered(&self, held: &Held, answer: Bytes) {
        let minted = Bytes::copy_from_slice(held.id.as_bytes());
        if let Err(error) = self.store.answered(&held.key, &minted, answer).await {
            tracing::warn!(%error, "the answer of an idempotent request could not be kept");
        }
    }
}
