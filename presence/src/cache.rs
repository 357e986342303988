//! What is read more often than it changes, in front of the store: lists of conversations, unread counts, the newest messages
//! (R8.1). It is never the only place of anything: whoever cannot ask it reads the store.
//!
//! Whoever writes to the store invalidates behind its write, and then says that it is done. A value is put in by whoever missed
//! it, under a lease that an invalidation voids: what was read before a write is not put in behind it. See ADR 0019.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{ConversationId, Pair, Principal, Side, Status};
use eshaar_service::metrics as names;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::PresenceError;

/// How long a value is shown at most.
pub const VALUE_TTL: Duration = Duration::from_mins(5);

/// How long whoever missed a value may take to put it in.
pub const LEASE_TTL: Duration = Duration::from_secs(2);

/// Longest value, in bytes; a longer one is not kept.
pub const MAX_VALUE: usize = 256 * 1024;

/// How long somebody else's reading of the store is waited for, time after time, before it is read beside it.
const WAITS: [Duration; 3] = [Duration::from_millis(4), Duration::from_millis(12), Duration::from_millis(36)];

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The first page of a side's conversations.
    Conversations(Principal),
    /// The first page of a side's active conversations.
    Active(Principal),
    /// How many messages of a conversation a side has not read.
    Unread(ConversationId, Side),
    /// The newest messages of a conversation.
    Newest(ConversationId),
}

impl Key {
    /// Its cache, for metrics.
    pub const fn cache(&self) -> &'static str {
        match self {
            Self::Conversations(_) | Self::Active(_) => "conversations",
            Self::Unread(..) => "unread",
            Self::Newest(_) => "newest",
        }
    }

    /// What changes when a conversation of a pair is started, archived or closed.
    pub fn of_standing(pair: &Pair) -> impl Iterator<Item = Self> {
        Side::BOTH.into_iter().flat_map(|side| {
            let of = pair.principal(side);
            [Self::Conversations(of.clone()), Self::Active(of)]
        })
    }

    /// What changes when `to` is told something in a conversation.
    pub fn of_message(conversation: ConversationId, pair: &Pair, to: Side) -> impl Iterator<Item = Self> {
        Self::of_standing(pair).chain([Self::Unread(conversation, to), Self::Newest(conversation)])
    }

    /// What changes when `by` has read a conversation.
    pub fn of_reading(conversation: ConversationId, pair: &Pair, by: Side) -> impl Iterator<Item = Self> {
        Self::of_standing(pair).chain([Self::Unread(conversation, by)])
    }

    /// What changes when a message of a conversation to `to` reaches a step. One that was delivered is no less unread.
    pub fn of_step(conversation: ConversationId, to: Side, step: Status) -> impl Iterator<Item = Self> {
        let unread = (step != Status::Delivered).then_some(Self::Unread(conversation, to));
        unread.into_iter().chain([Self::Newest(conversation)])
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conversations(of) => write!(f, "conversations:{of}"),
            Self::Active(of) => write!(f, "active:{of}"),
            Self::Unread(of, side) => write!(f, "unread:{of}:{}", *side as u8),
            Self::Newest(of) => write!(f, "newest:{of}"),
        }
    }
}

/// Leave to put a value in. Opaque.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub(crate) token: u64,
    pub(crate) generation: u64,
}

/// What was found at a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// A value.
    Hit(Bytes),
    /// Nothing: read the store, and put in what it says.
    Miss(Lease),
    /// Nothing, and somebody else is reading the store.
    Awaited,
}

/// A value to put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Where.
    pub key: Key,
    /// The leave to.
    pub lease: Lease,
    /// What, at most [`MAX_VALUE`] bytes.
    pub value: Bytes,
}

/// A cache in front of the store. It may let go of any value at any time.
#[async_trait]
pub trait Cache: Send + Sync + 'static {
    /// What is at each of `keys`. Who is given a lease reads the store after that.
    async fn look_up(&self, keys: &[Key]) -> Result<Vec<Lookup>, PresenceError>;

    /// Puts values in whose leases still hold: none was invalidated since, and [`LEASE_TTL`] has not passed. They are shown for
    /// [`VALUE_TTL`].
    async fn fill(&self, values: Vec<Fill>) -> Result<(), PresenceError>;

    /// What the store says of `keys` has changed. Values that were read before this are shown to nobody once it returns. Where
    /// the engine cannot be told, it is told as soon as it can be, and until then nothing is shown in this process; others may
    /// be shown what was there, if they can reach it.
    async fn invalidate(&self, keys: Vec<Key>);

    /// As [`Cache::invalidate`], of every key: somebody may have died before they said what they changed.
    async fn invalidate_all(&self);
}

/// Reads through `cache`: the values of `keys`, from the cache where it has them, else as `load` reads them from the store,
/// which is given the places of what is wanted and answers in their order.
pub async fn through<T, E>(
    cache: &Arc<dyn Cache>,
    keys: &[Key],
    load: impl AsyncFnOnce(&[usize]) -> Result<Vec<T>, E>,
) -> Result<Vec<T>, E>
where
    T: Serialize + DeserializeOwned,
{
    let mut found: Vec<Option<T>> = keys.iter().map(|_| None).collect();
    let mut leases = Vec::new();
    look(&**cache, keys, &mut found, &mut leases).await;
    let missing: Vec<usize> = (0..keys.len()).filter(|place| found[*place].is_none()).collect();
    if !missing.is_empty() {
        let loaded = load(&missing).await?;
        let mut fills = Vec::with_capacity(leases.len());
        for (place, value) in missing.into_iter().zip(loaded) {
            if let Some((_, lease)) = leases.iter().find(|(of, _)| *of == place)
                && let Ok(bytes) = postcard::to_allocvec(&value)
                && bytes.len() <= MAX_VALUE
            {
                fills.push(Fill { key: keys[place].clone(), lease: *lease, value: bytes.into() });
            }
            found[place] = Some(value);
        }
        if !fills.is_empty()
            && let Err(error) = cache.fill(fills).await
        {
            tracing::debug!(%error, "what was read is not cached");
        }
    }
    Ok(found.into_iter().flatten().collect())
}

/// Looks for what is not found yet, for as long as somebody else is about to put it in.
async fn look<T: DeserializeOwned>(
    cache: &dyn Cache,
    keys: &[Key],
    found: &mut [Option<T>],
    leases: &mut Vec<(usize, Lease)>,
) {
    let mut wanted: Vec<usize> = (0..keys.len()).collect();
    let mut waits = WAITS.into_iter();
    while !wanted.is_empty() {
        let asked: Vec<Key> = wanted.iter().map(|place| keys[*place].clone()).collect();
        let lookups = match cache.look_up(&asked).await {
            Ok(lookups) => lookups,
            Err(error) => {
                tracing::debug!(%error, "the cache cannot be asked");
                count(&asked, "unavailable");
                return;
            }
        };
        let mut awaited = Vec::new();
        for (place, lookup) in wanted.into_iter().zip(lookups) {
            let key = std::slice::from_ref(&keys[place]);
            match lookup {
                Lookup::Hit(bytes) => {
                    // Another version may have put in what this one cannot read; it is read from the store until it lapses.
                    found[place] = postcard::from_bytes(&bytes).ok();
                    count(key, if found[place].is_some() { "hit" } else { "miss" });
                }
                Lookup::Miss(lease) => {
                    leases.push((place, lease));
                    count(key, "miss");
                }
                Lookup::Awaited => awaited.push(place),
            }
        }
        wanted = awaited;
        match waits.next() {
            Some(wait) if !wanted.is_empty() => tokio::time::sleep(wait).await,
            Some(_) => {}
            None => {
                for place in wanted {
                    count(std::slice::from_ref(&keys[place]), "miss");
                }
                return;
            }
        }
    }
}

fn count(keys: &[Key], outcome: &'static str) {
    for key in keys {
        metrics::counter!(names::CACHE_LOOKUPS, "cache" => key.cache(), "outcome" => outcome).increment(1);
    }
}
