//! The stages, one file each, in the order of the flow: `prioritize` (to a lane) → `route` (to the recipient's stream, and
//! to the gateways that have them) · `archive` (to the history) · `notify` (back to the sender); and `housekeeping`, which
//! lets go of what is no longer kept.
//!
//! A stage decides and has effects; reading, retrying, committing, measuring and draining are the runner's
//! (`eshaar_topics::runner`). No stage knows an engine.

pub mod archive;
pub mod housekeeping;
pub mod notify;
pub mod prioritize;
pub mod route;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use eshaar_model::Clock;
use eshaar_presence::Presence;
use eshaar_schemas::{Codecs, Contract, DecodeError, RegistryError};
use eshaar_store::Store;
use eshaar_topics::{Log, Outcome, runner};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

pub use archive::Archive;
pub use notify::Notify;
pub use prioritize::Prioritize;
pub use route::Route;

/// How the stages work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What holds for every stage.
    pub runner: runner::Options,
    /// To the recipient's stream.
    pub route: route::Options,
    /// To the history.
    pub archive: archive::Options,
    /// What is no longer kept.
    pub housekeeping: housekeeping::Options,
}

/// What the stages work with.
#[derive(Clone)]
pub struct Deps {
    /// Where records come from and go to.
    pub log: Arc<dyn Log>,
    /// Records to bytes and back.
    pub codecs: Codecs,
    /// What is remembered.
    pub store: Store,
    /// Who is connected where.
    pub presence: Arc<dyn Presence>,
    /// The present.
    pub clock: Clock,
}

/// Runs every stage until `shutdown`, and returns when all have drained.
pub async fn run(deps: Deps, options: Options, shutdown: CancellationToken) {
    let Deps { log, codecs, store, presence, clock } = deps;
    let prioritize = Prioritize::new(codecs.clone(), clock.clone());
    let route = Route::new(
        route::Ports { log: Arc::clone(&log), store: store.clone(), presence: Arc::clone(&presence) },
        codecs.clone(),
        clock.clone(),
        options.route,
    );
    let archive = Archive::new(store.clone(), codecs.clone(), clock.clone(), options.archive);
    let notify = Notify::new(presence, codecs.clone(), clock.clone());
    let housekeeping = housekeeping::run(store, clock.clone(), options.housekeeping, shutdown.clone());
    let deps = runner::Deps { log, codecs, clock };
    tokio::join!(
        runner::run(Arc::new(prioritize), deps.clone(), options.runner.clone(), shutdown.clone()),
        runner::run(Arc::new(route), deps.clone(), options.runner.clone(), shutdown.clone()),
        runner::run(Arc::new(archive), deps.clone(), options.runner.clone(), shutdown.clone()),
        runner::run(Arc::new(notify), deps, options.runner, shutdown),
        housekeeping,
    );
}

/// A value that could not be read.
#[derive(Debug, thiserror::Error)]
enum Undecodable {
    /// It never will be.
    #[error(transparent)]
    Value(DecodeError),
    /// The registry, which knows how it was written, did not answer.
    #[error(transparent)]
    Registry(RegistryError),
}

impl Undecodable {
    /// What becomes of the record: it waits for the registry `pause_ms`, or is dead.
    fn outcome(self, clock: &Clock, pause_ms: u64) -> Outcome {
        match self {
            Self::Value(error) => Outcome::Dead { code: "undecodable", reason: error.to_string() },
            Self::Registry(error) => pause(clock, pause_ms, &error),
        }
    }
}

/// The record in `value`; a schema that is not known yet is asked for.
async fn decode<T: Contract>(codecs: &Codecs, value: &[u8]) -> Result<T, Undecodable> {
    match codecs.decode(value) {
        Err(DecodeError::UnknownSchema(id)) => match codecs.learn(id).await {
            Ok(()) => codecs.decode(value).map_err(Undecodable::Value),
            Err(error @ RegistryError::Unavailable { .. }) => Err(Undecodable::Registry(error)),
            Err(_) => Err(Undecodable::Value(DecodeError::UnknownSchema(id))),
        },
        decoded => decoded.map_err(Undecodable::Value),
    }
}

/// Something that a stage depends on does not answer: what it wrote may be there or not, so the record is taken again, and
/// never becomes a dead letter for it.
fn pause(clock: &Clock, pause_ms: u64, cause: &dyn std::fmt::Display) -> Outcome {
    let until = clock.now().plus_millis(i64::try_from(pause_ms).unwrap_or(i64::MAX));
    Outcome::Pause { until, reason: cause.to_string() }
}
