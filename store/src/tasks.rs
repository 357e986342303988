//! Work that outlives a process: each task is held by one process at a time, under a lease, and goes on from what was
//! saved of it, whoever goes on.

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::Timestamp;
use uuid::Uuid;

use crate::StoreError;

/// How long a task is kept after it was last saved, in milliseconds: 30 days.
pub const KEPT_MS: i64 = 30 * 24 * 3600 * 1000;

/// Who holds something for a while: a process, for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder(pub(crate) Uuid);

impl Holder {
    /// One that nobody was before.
    #[allow(clippy::new_without_default, reason = "no two are the same")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// Nobody.
    pub(crate) const NOBODY: Self = Self(Uuid::nil());
}

/// A task as it was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// What kind of work it is.
    pub kind: String,
    /// Which one, within its kind.
    pub id: String,
    /// When it was made.
    pub made_at: Timestamp,
    /// What is to be done and how far it is, as its worker encodes it.
    pub progress: Bytes,
    /// Whether it is done.
    pub finished: bool,
}

/// A task that is to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// By whom.
    pub holder: Holder,
    /// The present: a lease that has lapsed by then is nobody's.
    pub now: Timestamp,
    /// Until when.
    pub until: Timestamp,
}

/// Tasks.
#[async_trait]
pub trait TaskStore: Send + Sync + 'static {
    /// Makes a task, durably; one that is there already stays as it is.
    async fn make(&self, task: Task) -> Result<(), StoreError>;

    /// A task.
    async fn get(&self, kind: &str, id: &str) -> Result<Option<Task>, StoreError>;

    /// The tasks of a kind, by id, the highest first.
    async fn list(&self, kind: &str, limit: usize) -> Result<Vec<Task>, StoreError>;

    /// Takes a task that is not finished and that nobody else holds; `None` where there is none to take. Who holds it may
    /// take it again.
    async fn take(&self, kind: &str, id: &str, lease: Lease) -> Result<Option<Task>, StoreError>;

    /// Saves a task, durably, and holds it until `until`; when it is finished, or `until` is `None`, lets go of it.
    /// `false`: another has taken it, and nothing was saved.
    async fn save(&self, task: Task, holder: Holder, until: Option<Timestamp>) -> Result<bool, StoreError>;

    /// Lets go of tasks that were not saved for 30 days; returns how many went, 0 where the engine lets go of them by
    /// itself.
    async fn trim(&self, now: Timestamp) -> Result<usize, StoreError>;
}
