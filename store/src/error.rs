//! What a store may answer instead.

/// A store failed. Unless it says otherwise, whether a write took place is unknown: every write here may be repeated.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine failed.
    #[error("the store failed to {action}: {reason}")]
    Engine {
        /// What was tried.
        action: &'static str,
        /// What the engine said.
        reason: String,
    },
    /// The engine will not take one of the values, and said so: it was not written. Whether others of the same call were is
    /// unknown.
    #[error("the store refused to {action}: {reason}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// What the engine said.
        reason: String,
    },
    /// A bounded queue to the engine is full; try again later.
    #[error("the store is overloaded: {waiting} operations wait")]
    Overloaded {
        /// How many operations wait.
        waiting: usize,
    },
    /// Its engine has failed again and again and is left alone for a while; nothing was asked of it.
    #[error("the store is not asked: {0}")]
    Resting(eshaar_service::breaker::Refused),
    /// It is being closed.
    #[error("the store is closed")]
    Closed,
}
