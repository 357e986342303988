//! What every role shares: configuration, telemetry, metrics, health, breakers and bulkheads, JSON and errors over HTTP,
//! trace context. Rests on nothing of ours.

pub mod breaker;
pub mod bulkhead;
pub mod config;
pub mod cors;
pub mod egress;
pub mod health;
pub mod json;
pub mod listener;
pub mod metrics;
pub mod problem;
pub mod shutdown;
pub mod telemetry;
pub mod trace;
pub mod workers;

pub use breaker::Breaker;
pub use bulkhead::Bulkhead;
pub use health::Health;
pub use json::Json;
pub use problem::Problem;
pub use trace::TraceContext;
