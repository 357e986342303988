//! What a store may answer instead.

/// A store failed. Whether a write took place is unknown: every write here may be repeated.
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
    /// A bounded queue to the engine is full; try again later.
    #[error("the store is overloaded: {waiting} operations wait")]
    Overloaded {
        /// How many operations wait.
        waiting: usize,
    },
    /// It is being closed.
    #[error("the store is closed")]
    Closed,
}
