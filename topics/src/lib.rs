//! The log: which topics there are, the port to it, its engines, and the runner that carries stages over it.
//!
//! Reads top-down: `catalogue` (what topics there are) → `record` (what is in them) → `log` (the port) → `embedded`
//! and `kafka` (its engines) → `flow` (the records of the flow, made in one place) → `cancelled` (what was taken back) →
//! `redrive` (what a dead letter is sent again as) → `runner` (what drives a stage).

pub mod cancelled;
pub mod catalogue;
#[doc(hidden)]
pub mod conformance;
pub mod embedded;
pub mod flow;
pub mod headers;
pub mod kafka;
pub mod log;
pub mod partitioner;
pub mod record;
pub mod redrive;
pub mod runner;

pub use cancelled::Cancelled;
pub use catalogue::{Durability, Topic, TopicSpec};
pub use headers::Headers;
pub use log::{
    AppendError, Assignment, Bounds, Committer, Consumer, ConsumerEvent, Gap, Log, LogError, PartitionStream, Reader,
    Release, StartAt, kept_time,
};
pub use record::{LogPosition, NewRecord, Received, Record};
pub use runner::{Backlogs, Outcome, Retries, Stage, StageError};
