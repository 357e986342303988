//! How much waits in each stage, published by the processes that run it, read by those that take messages in (R5.4).

use std::time::Duration;

use async_trait::async_trait;

use crate::PresenceError;

/// How long a depth holds without being published again: that of a process that died does not linger.
pub const DEPTH_TTL: Duration = Duration::from_secs(5);

/// What waits in a partition of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Depth {
    /// The stage's name.
    pub stage: String,
    /// The partition number, of all its inputs.
    pub partition: u32,
    /// Messages of the interactive lanes.
    pub interactive: u64,
    /// Messages of the bulk lane.
    pub bulk: u64,
}

/// What waits in the stages of all processes.
#[async_trait]
pub trait Depths: Send + Sync + 'static {
    /// Says how much waits, for [`DEPTH_TTL`]; of a partition that was said before, this holds.
    async fn publish(&self, depths: &[Depth]) -> Result<(), PresenceError>;

    /// What was said and holds, in no order.
    async fn depths(&self) -> Result<Vec<Depth>, PresenceError>;
}
