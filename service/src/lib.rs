//! What every role shares: configuration, telemetry, metrics, health, errors over HTTP, trace context. Rests on nothing
//! of ours.

pub mod config;
pub mod health;
pub mod listener;
pub mod metrics;
pub mod problem;
pub mod shutdown;
pub mod telemetry;
pub mod trace;

pub use health::Health;
pub use problem::Problem;
pub use trace::TraceContext;
