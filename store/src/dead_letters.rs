//! Dead letters: records that a stage gave up on, what became of each, and who is at work on it (R4.2, R4.4).
//!
//! A letter is open until it is redriven or discarded, once. Whoever is about to do that claims it first, for a while: of
//! two that want the same letter one gets it, and a claim whose holder died lapses.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{BusinessId, Epoch, Timestamp};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{Holder, StoreError};

/// How long letters are kept, in milliseconds: 7 days, as long as their topic.
pub const KEPT_MS: i64 = 7 * 24 * 3600 * 1000;

/// Where a record was given up on. Two letters of the same origin are the same letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The stage.
    pub stage: &'a str,
    /// The log's life.
    pub epoch: Epoch,
    /// Topic, without the prefix.
    pub topic: &'a str,
    /// Partition.
    pub partition: u32,
    /// Offset.
    pub offset: u64,
    /// How often it had been redriven by then.
    pub redrives: u32,
}

/// Identity of a letter, made from its origin: a UUID of version 8.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeadLetterId(Uuid);

impl DeadLetterId {
    /// The letter of that origin.
    pub fn of(origin: &Origin<'_>) -> Self {
        let mut hash = Sha256::new();
        for name in [origin.stage, origin.topic] {
            hash.update((name.len() as u64).to_be_bytes());
            hash.update(name);
        }
        hash.update(origin.epoch.0.to_be_bytes());
        hash.update(origin.partition.to_be_bytes());
        hash.update(origin.offset.to_be_bytes());
        hash.update(origin.redrives.to_be_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// The 16 bytes, in network order.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From 16 bytes in network order.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DeadLetterIdError> {
        let uuid = Uuid::from_slice(bytes).map_err(|_| DeadLetterIdError { length: bytes.len() })?;
        Self::try_from(uuid)
    }
}

/// The text is not the id of a dead letter.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected the id of a dead letter (a UUID of version 8), got {length} characters that are not one")]
pub struct DeadLetterIdError {
    /// Length of the refused text, in characters.
    pub length: usize,
}

impl TryFrom<Uuid> for DeadLetterId {
    type Error = DeadLetterIdError;

    fn try_from(uuid: Uuid) -> Result<Self, DeadLetterIdError> {
        if uuid.get_version_num() == 8 { Ok(Self(uuid)) } else { Err(DeadLetterIdError { length: 36 }) }
    }
}

impl From<DeadLetterId> for Uuid {
    fn from(id: DeadLetterId) -> Self {
        id.0
    }
}

impl FromStr for DeadLetterId {
    type Err = DeadLetterIdError;

    fn from_str(text: &str) -> Result<Self, DeadLetterIdError> {
        let refused = DeadLetterIdError { length: text.chars().count() };
        match Uuid::try_parse(text) {
            Ok(uuid) if text.len() == 36 => Self::try_from(uuid).map_err(|_| refused),
            _ => Err(refused),
        }
    }
}

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What is known of a letter without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterHead {
    /// Its id.
    pub id: DeadLetterId,
    /// The stage that gave up.
    pub stage: String,
    /// Where the record was read: topic, without the prefix.
    pub topic: String,
    /// Partition.
    pub partition: u32,
    /// Offset.
    pub offset: u64,
    /// How often the record had been redriven when it was given up on.
    pub redrives: u32,
    /// The business that sent the message, where that is known.
    pub business: Option<BusinessId>,
    /// The CloudEvents id: of a message, its own.
    pub event: Option<String>,
    /// The request that it comes from.
    pub correlation: Option<String>,
    /// Why, for programs.
    pub code: String,
    /// Why, for people.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was given up on.
    pub at: Timestamp,
    /// Bytes of its value.
    pub bytes: u64,
}

/// The record as it was read; the store does not look into it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterBody {
    /// Its key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// Its headers, as their writer encoded them.
    pub headers: Bytes,
}

/// What became of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LetterState {
    /// It waits for someone to decide.
    Open,
    /// It was sent again, and the log has acknowledged it.
    Redriven,
    /// It was given up for good.
    Discarded,
}

impl LetterState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Open, Self::Redriven, Self::Discarded];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Redriven => "redriven",
            Self::Discarded => "discarded",
        }
    }
}

/// The text names no state of a dead letter.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected open, redriven or discarded, got {length} characters that are none of them")]
pub struct LetterStateError {
    /// Length of the refused text, in characters.
    pub length: usize,
}

impl FromStr for LetterState {
    type Err = LetterStateError;

    fn from_str(text: &str) -> Result<Self, LetterStateError> {
        let found = Self::ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| LetterStateError { length: text.chars().count() })
    }
}

impl fmt::Display for LetterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a letter ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Redriven or discarded.
    pub state: LetterState,
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub by: String,
}

/// A letter as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// What it is.
    pub head: LetterHead,
    /// How it ended; `None` while it is open.
    pub settled: Option<Settlement>,
}

impl Letter {
    /// What became of it.
    pub fn state(&self) -> LetterState {
        self.settled.as_ref().map_or(LetterState::Open, |settled| settled.state)
    }
}

/// Place in the list of letters, which is newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LetterPlace {
    /// When the letter was given up on.
    pub at: Timestamp,
    /// The letter.
    pub id: DeadLetterId,
}

/// Which letters are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterQuery {
    /// Of this stage only.
    pub stage: Option<String>,
    /// With this code only.
    pub code: Option<String>,
    /// Of messages of this business only.
    pub business: Option<BusinessId>,
    /// In this state only.
    pub state: Option<LetterState>,
    /// Given up on at this time or later.
    pub from: Option<Timestamp>,
    /// Given up on before this time.
    pub until: Option<Timestamp>,
    /// Behind this place: the last one of the page before.
    pub before: Option<LetterPlace>,
    /// At most this many.
    pub limit: usize,
}

impl LetterQuery {
    /// Whether a letter with these is wanted, its time and state aside.
    pub(crate) fn wants(&self, stage: &str, code: &str, business: Option<&str>) -> bool {
        self.stage.as_deref().is_none_or(|wanted| wanted == stage)
            && self.code.as_deref().is_none_or(|wanted| wanted == code)
            && self.business.as_ref().is_none_or(|wanted| Some(wanted.as_str()) == business)
    }

    /// The first time that is wanted, of those that are kept.
    pub(crate) fn oldest(&self, now: Timestamp) -> Timestamp {
        let kept = now.plus_millis(1 - KEPT_MS);
        self.from.map_or(kept, |from| from.max(kept))
    }

    /// Everything wanted is before this place.
    pub(crate) fn newest(&self) -> LetterPlace {
        let lowest = DeadLetterId(Uuid::from_u128(0x8000_8000_0000_0000_0000));
        let highest = DeadLetterId(Uuid::from_u128(0xffff_ffff_ffff_8fff_bfff_ffff_ffff_ffff));
        let until = self.until.map_or(LetterPlace { at: LAST, id: highest }, |at| LetterPlace { at, id: lowest });
        self.before.map_or(until, |before| before.min(until))
    }
}

/// Later than everything, and still a time that every engine can hold.
const LAST: Timestamp = Timestamp::from_millis(253_402_300_799_999);

/// A page of letters, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterPage {
    /// The letters.
    pub letters: Vec<Letter>,
    /// Where the next page begins ([`LetterQuery::before`]); `None` at the end. A filtered page may be short, even empty,
    /// and still have a next: the rows examined for one page are bounded.
    pub next: Option<LetterPlace>,
}

/// A claim that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// For whom.
    pub holder: Holder,
    /// The present: a claim that has lapsed by then is nobody's.
    pub now: Timestamp,
    /// Until when.
    pub until: Timestamp,
}

/// What came of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LetterClaim {
    /// The letter is the claimer's until the claim lapses.
    Yours(Box<(Letter, LetterBody)>),
    /// Another holds it.
    Held,
    /// It was redriven or discarded before.
    Settled(LetterState),
    /// There is no such letter, or it is kept no longer.
    Gone,
}

/// Dead letters.
#[async_trait]
pub trait DeadLetterStore: Send + Sync + 'static {
    /// Keeps letters for 7 days from their time. A letter that is there already stays as it is.
    async fn put(&self, letters: Vec<(LetterHead, LetterBody)>) -> Result<(), StoreError>;

    /// A letter, whole.
    async fn get(&self, id: DeadLetterId) -> Result<Option<(Letter, LetterBody)>, StoreError>;

    /// Letters by time, newest first.
    async fn list(&self, query: LetterQuery, now: Timestamp) -> Result<LetterPage, StoreError>;

    /// Claims an open letter: exactly one of those that try at the same time gets it. Who holds it may claim it again.
    async fn claim(&self, id: DeadLetterId, hold: Hold) -> Result<LetterClaim, StoreError>;

    /// Ends a letter that `holder` holds, durably, or with `None` lets go of it. `false`: another holds it by now, or it
    /// has ended.
    async fn settle(
        &self,
        id: DeadLetterId,
        holder: Holder,
        settlement: Option<Settlement>,
    ) -> Result<bool, StoreError>;

    /// Lets go of letters older than 7 days; returns how many went, 0 where the engine lets go of them by itself.
    async fn trim(&self, now: Timestamp) -> Result<usize, StoreError>;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_its_origin_makes_another_letter() {
        let origin =
            Origin { stage: "route", epoch: Epoch(0), topic: "lane.high", partition: 1, offset: 2, redrives: 0 };
        let others = [
            Origin { stage: "archive", ..origin },
            Origin { epoch: Epoch(1), ..origin },
            Origin { topic: "lane.low", ..origin },
            Origin { stage: "routel", topic: "ane.high", ..origin },
            Origin { partition: 2, ..origin },
            Origin { offset: 3, ..origin },
            Origin { redrives: 1, ..origin },
        ];
        let id = DeadLetterId::of(&origin);
        assert!(others.iter().all(|other| DeadLetterId::of(other) != id));
        assert_eq!(DeadLetterId::of(&origin), id);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(DeadLetterId::from_bytes(id.as_bytes()), Ok(id));
        for text in ["", "x", "019b7600-0000-7000-8000-000000000000"] {
            assert!(text.parse::<DeadLetterId>().is_err(), "{text}");
        }
    }
}
