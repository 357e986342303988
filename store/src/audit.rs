//! The audit log: who did what, when, on whose request (R12.4). Entries are appended, and never change or go.

use async_trait::async_trait;
use eshaar_model::{AuditId, Timestamp};
use uuid::Uuid;

use crate::StoreError;

/// Something that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its id, which carries when.
    pub id: AuditId,
    /// Who did it: `<business>:<key id>`, or `cli:<user>`.
    pub actor: String,
    /// What was done: stable, for programs, e.g. `dead_letters.redrive`.
    pub action: String,
    /// On what: an id, or nothing where the details say it.
    pub subject: String,
    /// Everything else that matters, a JSON object. No content, no phone number.
    pub detail: String,
    /// The request that it was done in.
    pub correlation: Option<String>,
}

/// Which entries are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditQuery {
    /// Of this actor only.
    pub actor: Option<String>,
    /// Made at this time or later.
    pub from: Option<Timestamp>,
    /// Made before this time.
    pub until: Option<Timestamp>,
    /// Older than this entry: the last one of the page before.
    pub before: Option<AuditId>,
    /// At most this many.
    pub limit: usize,
}

impl AuditQuery {
    /// The lowest id that is wanted.
    pub(crate) fn lowest(&self) -> Uuid {
        first_at(self.from.unwrap_or_default())
    }

    /// Every id that is wanted is below this one.
    pub(crate) fn below(&self) -> Uuid {
        let until = self.until.map_or(LAST_ID, first_at);
        self.before.map_or(until, |before| until.min(Uuid::from(before)))
    }
}

/// Above every id: all are UUIDs of version 7.
const LAST_ID: Uuid = Uuid::from_u128(0xffff_ffff_ffff_7fff_bfff_ffff_ffff_ffff);

/// The lowest id that can be made at `at`.
pub(crate) fn first_at(at: Timestamp) -> Uuid {
    let millis = at.as_millis().clamp(0, (1 << 48) - 1) as u128;
    Uuid::from_u128(millis << 80 | 0x7000_8000_0000_0000_0000)
}

/// A page of entries, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditPage {
    /// The entries.
    pub entries: Vec<AuditEntry>,
    /// Where the next page begins ([`AuditQuery::before`]); `None` at the end.
    pub next: Option<AuditId>,
}

/// The audit log.
#[async_trait]
pub trait AuditStore: Send + Sync + 'static {
    /// Appends an entry, durably; the same one again changes nothing.
    async fn append(&self, entry: AuditEntry) -> Result<(), StoreError>;

    /// Entries, newest first.
    async fn list(&self, query: AuditQuery) -> Result<AuditPage, StoreError>;
}
