//! `Idempotency-Key`: however often a request is sent, it has one effect and one answer (R4.3, design §5).
//!
//! The first use claims the key in the store, durably, with the id minted for it, before anything is produced. A repeat
//! finds the claim: with an answer it gets that answer; without one (the first died in between) the message is produced
//! again with the same id, which the log's readers drop if it stood there already. Only while the first is being produced
//! in this very process is a repeat sent away (409). Of what is sent into a conversation that the request names no answer is
//! kept: every such message has a key, most are never repeated, and the history has what there is to say of it.
//!
//! However many repeats come at once, one of them asks the store, and the others of this process wait for what it finds:
//! a client that sends the same thing ten thousand times at once costs the store ten thousand decisions on one row otherwise,
//! which it makes one after the other.
//!
//! Requests are compared by what they mean ([`Fingerprint`], [`crate::submit::meaning`]), not by their bytes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use axum::http::HeaderMap;
use bytes::Bytes;
use eshaar_model::limits::IDEMPOTENCY_KEY_CHARS;
use eshaar_model::{MessageId, Timestamp};
use eshaar_service::{Problem, metrics as names};
use eshaar_store::{Claim, ClaimKey, ClaimStore, Claimed};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::problems;
use crate::submit::Attempt;

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

/// The first bytes of a stored fingerprint whose form is versioned, and the version of the canonical form that is written.
const MARK: [u8; 3] = [0xe5, b'f', b'p'];
const VERSION: u8 = 1;

/// What a repeat must have in common with the first.
///
/// Stored are [`MARK`], [`VERSION`], and the last 28 bytes of the SHA-256 of the request's meaning. Claims that an earlier
/// release made, which stand for 24 hours, hold the SHA-256 of the request's bytes instead: with those a repeat is compared
/// by its bytes, as that release did. A fingerprint of a version that is not known here, made by a later release, cannot be
/// compared, and is taken for the same: to refuse a repeat for good would be worse than to answer it.
pub(crate) struct Fingerprint {
    stored: [u8; 32],
    kind: &'static str,
    bytes: Bytes,
}

/// How a request compares with the first of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compared {
    Same,
    /// The same, by its bytes.
    SameBytes,
    Other,
}

impl Fingerprint {
    /// Of a request that means `meaning`. Earlier releases hashed `bytes`, as a request of this `kind`.
    pub(crate) fn new(meaning: [u8; 32], kind: &'static str, bytes: Bytes) -> Self {
        let mut stored = meaning;
        stored[..3].copy_from_slice(&MARK);
        stored[3] = VERSION;
        Self { stored, kind, bytes }
    }

    fn compare(&self, first: &[u8; 32]) -> Compared {
        if *first == self.stored {
            return Compared::Same;
        }
        if first.starts_with(&MARK) {
            return if first[3] == VERSION { Compared::Other } else { Compared::Same };
        }
        let of_bytes = Sha256::new().chain_update(self.kind).chain_update([0]).chain_update(&self.bytes).finalize();
        if of_bytes[..] == first[..] { Compared::SameBytes } else { Compared::Other }
    }

    fn is_of(&self, first: &[u8; 32]) -> bool {
        self.compare(first) != Compared::Other
    }
}

/// What a request with a key has found out about it, for those that come with the same key meanwhile.
#[derive(Clone)]
enum Found {
    /// Nothing yet: the store is being asked.
    Nothing,
    /// The store did not say.
    Failed(Problem),
    /// The key belongs to requests of this fingerprint.
    Claimed { hash: [u8; 32], state: State },
}

/// How far the request is that a key belongs to.
#[derive(Clone)]
enum State {
    /// Its message is being produced, in this process.
    Producing,
    /// It has this answer.
    Answered(Bytes),
    /// It has none, and nobody here is about to produce it: who asked first had another body.
    Open,
}

/// Who asks about which key, in this process.
type InFlight = Arc<Mutex<HashMap<ClaimKey, watch::Receiver<Found>>>>;

/// The claims of this process.
pub(crate) struct Claims {
    store: Arc<dyn ClaimStore>,
    in_flight: InFlight,
}

/// A key that is ours to act on.
pub(crate) struct Held {
    pub(crate) key: ClaimKey,
    /// The id that its message has, now as at the first time.
    pub(crate) id: MessageId,
    /// Whether it was used before.
    pub(crate) repeat: bool,
    /// Whether its first use was of an earlier release, which compared bytes.
    pub(crate) by_bytes: bool,
    /// The fingerprint that the key was claimed with.
    hash: [u8; 32],
    found: watch::Sender<Found>,
    in_flight: InFlight,
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

/// Whether a request is the one that asks about its key.
enum Place {
    First(Held),
    Behind(watch::Receiver<Found>),
}

impl Claims {
    pub(crate) fn new(store: Arc<dyn ClaimStore>) -> Self {
        Self { store, in_flight: Arc::default() }
    }

    /// Claims `key` of a principal for a request; `minted` is its id if it is the first.
    pub(crate) async fn claim(
        &self,
        principal: String,
        key: String,
        request: &Fingerprint,
        minted: MessageId,
        now: Timestamp,
    ) -> Result<Turn, Problem> {
        let key = ClaimKey { principal, key };
        loop {
            let mut other = match self.place(&key, minted, request) {
                Place::First(held) => return self.ask(held, request, now).await,
                Place::Behind(other) => other,
            };
            // Where it went away without a word, the next one asks.
            let Ok(found) = other.wait_for(|found| !matches!(found, Found::Nothing)).await.map(|found| found.clone())
            else {
                continue;
            };
            match found {
                Found::Nothing => {}
                Found::Failed(problem) => return Err(problem),
                Found::Claimed { hash, .. } if !request.is_of(&hash) => return Err(problems::idempotency_mismatch()),
                Found::Claimed { state: State::Producing, .. } => return Err(problems::idempotency_in_flight()),
                Found::Claimed { state: State::Answered(answer), .. } => return Ok(replay(answer)),
                // Whoever said so lets go of the key at once.
                Found::Claimed { state: State::Open, .. } => tokio::task::yield_now().await,
            }
        }
    }

    /// The request's place among those of this process with the same key.
    fn place(&self, key: &ClaimKey, minted: MessageId, request: &Fingerprint) -> Place {
        match self.in_flight.lock().entry(key.clone()) {
            Entry::Occupied(other) => Place::Behind(other.get().clone()),
            Entry::Vacant(free) => {
                let (found, others) = watch::channel(Found::Nothing);
                free.insert(others);
                let in_flight = Arc::clone(&self.in_flight);
                let hash = request.stored;
                Place::First(Held {
                    key: key.clone(),
                    id: minted,
                    repeat: false,
                    by_bytes: false,
                    hash,
                    found,
                    in_flight,
                })
            }
        }
    }

    /// Asks the store whose the key is. Whatever happens, it is let go of by `held`, once the others are told.
    async fn ask(&self, mut held: Held, request: &Fingerprint, now: Timestamp) -> Result<Turn, Problem> {
        let (hash, minted) = (held.hash, Bytes::copy_from_slice(held.id.as_bytes()));
        let claim = Claim { body_hash: hash, minted, answer: None, claimed_at: now };
        let earlier = match self.store.claim(&held.key, claim).await {
            Ok(Claimed::First) => {
                held.tell(hash, State::Producing);
                return Ok(Turn::Produce(held));
            }
            Ok(Claimed::Repeat(earlier)) => earlier,
            Err(error) => {
                let problem = problems::store(&error);
                held.found.send_replace(Found::Failed(problem.clone()));
                return Err(problem);
            }
        };
        let of = earlier.body_hash;
        let compared = request.compare(&of);
        if let Some(answer) = earlier.answer {
            held.tell(of, State::Answered(answer.clone()));
            return match compared {
                Compared::Other => Err(problems::idempotency_mismatch()),
                Compared::Same | Compared::SameBytes => Ok(replay(answer)),
            };
        }
        if compared == Compared::Other {
            held.tell(of, State::Open);
            return Err(problems::idempotency_mismatch());
        }
        metrics::counter!(names::INGEST_REPEATED).increment(1);
        held.id = MessageId::from_bytes(&earlier.minted).map_err(|_| problems::internal())?;
        held.repeat = true;
        held.by_bytes = compared == Compared::SameBytes;
        held.hash = of;
        held.tell(of, State::Producing);
        Ok(Turn::Produce(held))
    }

    /// Gives the answer to those that come with the same key, now and later. When keeping it fails nothing is lost: a repeat
    /// is produced again, with the same id.
    pub(crate) async fn answered(&self, held: &Held, answer: Bytes) {
        let minted = Bytes::copy_from_slice(held.id.as_bytes());
        let kept = self.store.answered(&held.key, &minted, answer.clone()).await;
        held.answered(answer);
        if let Err(error) = kept {
            tracing::warn!(%error, "the answer of an idempotent request could not be kept");
        }
    }
}

impl Held {
    /// The attempt, at `now`, to accept the message of this key.
    pub(crate) const fn attempt(&self, now: Timestamp) -> Attempt {
        Attempt { id: self.id, at: now, may_repeat: self.repeat }
    }

    /// Gives the answer to those of this process that came with the same key meanwhile; what comes later finds it elsewhere.
    pub(crate) fn answered(&self, answer: Bytes) {
        self.tell(self.hash, State::Answered(answer));
    }

    fn tell(&self, hash: [u8; 32], state: State) {
        self.found.send_replace(Found::Claimed { hash, state });
    }
}

fn replay(answer: Bytes) -> Turn {
    metrics::counter!(names::INGEST_REPEATED).increment(1);
    Turn::Replay(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(meaning: &[u8], bytes: &'static [u8]) -> Fingerprint {
        Fingerprint::new(Sha256::digest(meaning).into(), "kind", Bytes::from_static(bytes))
    }

    #[test]
    fn requests_are_compared_by_meaning_and_with_claims_of_earlier_releases_by_bytes() {
        let first = of(b"m", b"{ }");
        assert_eq!(of(b"m", b"{}").compare(&first.stored), Compared::Same);
        assert_eq!(of(b"n", b"{ }").compare(&first.stored), Compared::Other);
        let earlier: [u8; 32] = Sha256::digest(b"kind\0{ }").into();
        assert_eq!(first.compare(&earlier), Compared::SameBytes);
        assert_eq!(of(b"m", b"{}").compare(&earlier), Compared::Other);
    }

    #[test]
    fn a_fingerprint_of_a_later_release_is_not_refused() {
        let mut later = of(b"m", b"").stored;
        later[3] = VERSION + 1;
        later[10] ^= 1;
        assert_eq!(of(b"m", b"").compare(&later), Compared::Same);
    }
}
