//! The stages, one file each, in the order of the flow: `prioritize` (to a lane) → `route` (to the recipient's stream, and
//! to the gateways that have them) · `archive` (to the history, and to those who talk) · `notify` (back to the sender, live) ·
//! `webhooks` (and by HTTP) · `broadcast` (one message to many, before all of them) · `schedule` (what waits for its time, likewise) · `dead_letter` (what
//! the others gave up on, to the store), with the `digest` of it for administrators; and `housekeeping`, which lets go of
//! what is no longer kept.
//!
//! A stage decides and has effects; reading, retrying, committing, measuring and draining are the runner's
//! (`eshaar_topics::runner`). No stage knows an engine.

pub mod archive;
pub mod broadcast;
pub mod dead_letter;
mod depth;
pub mod digest;
pub mod housekeeping;
pub mod notify;
mod previous;
pub mod prioritize;
pub mod route;
pub mod schedule;
#[cfg(test)]
mod testing;
mod timers;
#[cfg(test)]
mod unread;
pub mod webhooks;
mod whereabouts;
mod window;

use std::sync::Arc;

use eshaar_model::Clock;
use eshaar_presence::Presence;
use eshaar_presence::cache::Cache;
use eshaar_presence::depths::Depths;
use eshaar_presence::limits::Limiter;
use eshaar_schemas::{Codecs, Contract, DecodeError, RegistryError};
use eshaar_service::metrics::HELD;
use eshaar_store::Store;
use eshaar_topics::runner::Watchdog;
use eshaar_topics::{Cancelled, Log, Outcome, Received, Stage, Topic, runner};
use metrics::counter;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use depth::Told;

pub use archive::Archive;
pub use broadcast::OpenBroadcasts;
pub use dead_letter::KeepDeadLetters;
pub use notify::Notify;
pub use prioritize::Prioritize;
pub use route::Route;
pub use schedule::Schedule;
pub use webhooks::Webhooks;

/// A stage, by its name; and housekeeping, which is run like one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is described at its module")]
pub enum StageName {
    Prioritize,
    Route,
    Archive,
    Notify,
    Webhooks,
    DeadLetter,
    Broadcast,
    Schedule,
    Housekeeping,
}

impl StageName {
    /// All of them, in the order of the flow.
    pub const ALL: [Self; 9] = [
        Self::Prioritize,
        Self::Route,
        Self::Archive,
        Self::Notify,
        Self::Webhooks,
        Self::DeadLetter,
        Self::Broadcast,
        Self::Schedule,
        Self::Housekeeping,
    ];
}

/// How the stages work.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Which of them this process runs. Every stage must be run by at least one process.
    pub run: Vec<StageName>,
    /// What holds for every stage.
    pub runner: runner::Options,
    /// To the recipient's stream.
    pub route: route::Options,
    /// To the history.
    pub archive: archive::Options,
    /// Telling businesses at their webhooks.
    pub webhooks: webhooks::Options,
    /// What stages gave up on.
    pub dead_letter: dead_letter::Options,
    /// Telling administrators of it.
    pub digest: digest::Options,
    /// One message to many.
    pub broadcast: broadcast::Options,
    /// What waits for its time.
    pub schedule: schedule::Options,
    /// What is no longer kept.
    pub housekeeping: housekeeping::Options,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            run: StageName::ALL.to_vec(),
            runner: runner::Options::default(),
            route: route::Options::default(),
            archive: archive::Options::default(),
            webhooks: webhooks::Options::default(),
            dead_letter: dead_letter::Options::default(),
            digest: digest::Options::default(),
            broadcast: broadcast::Options::default(),
            schedule: schedule::Options::default(),
            housekeeping: housekeeping::Options::default(),
        }
    }
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
    /// What was taken back.
    pub cancelled: Arc<Cancelled>,
    /// Makes and signs requests to webhooks.
    pub sender: Arc<webhooks::Sender>,
    /// The present.
    pub clock: Clock,
    /// Is told what the stages are at.
    pub watchdog: Watchdog,
    /// Is told how much waits.
    pub depths: Arc<dyn Depths>,
    /// What is told of what the archive changes.
    pub cache: Arc<dyn Cache>,
    /// How much each business may send, with broadcasts too.
    pub limits: Arc<Limiter>,
}

/// Runs the stages that `options` name until `shutdown`, and returns when all have drained.
pub async fn run(deps: Deps, options: Options, shutdown: CancellationToken) {
    let Deps { log, codecs, store, presence, cancelled, sender, clock, watchdog, depths, cache, limits } = deps;
    let Options {
        run: names,
        runner,
        route,
        archive,
        webhooks,
        dead_letter,
        digest,
        broadcast,
        schedule,
        housekeeping,
    } = options;
    let prioritize = Prioritize::new(Arc::clone(&cancelled), clock.clone());
    let told = Told::new(prioritize.mix());
    let of_runner = runner::Deps {
        log: Arc::clone(&log),
        codecs: codecs.clone(),
        clock: clock.clone(),
        watchdog,
        backlogs: Arc::clone(&told) as _,
    };
    let epoch = log.epoch();
    let dead_letter = KeepDeadLetters::new(store.clone(), codecs.clone(), clock.clone(), epoch, dead_letter);
    let of_digest =
        digest::Ports { log: Arc::clone(&log), store: store.clone(), codecs: codecs.clone(), clock: clock.clone() };
    let of_webhooks = webhooks::Ports {
        log: Arc::clone(&log),
        store: Arc::clone(&store.webhooks),
        audit: Arc::clone(&store.audit),
        codecs: codecs.clone(),
        sender,
        clock: clock.clone(),
    };
    let webhooks = Webhooks::new(of_webhooks, webhooks);
    let of_broadcasts = broadcast::expand::Ports {
        log: Arc::clone(&log),
        store: store.clone(),
        codecs: codecs.clone(),
        depths: Arc::clone(&depths),
        limits,
        cancelled: Arc::clone(&cancelled),
        clock: clock.clone(),
    };
    let open_broadcasts = OpenBroadcasts::new(store.clone(), codecs.clone(), clock.clone(), broadcast.clone());
    let ports = schedule::Ports {
        log: Arc::clone(&log),
        store: store.clone(),
        depths: Arc::clone(&depths),
        cancelled: Arc::clone(&cancelled),
    };
    let schedule = Schedule::new(ports, codecs.clone(), clock.clone(), schedule);
    let of_archive = archive::Ports {
        log: Arc::clone(&log),
        store: store.clone(),
        presence: Arc::clone(&presence),
        cache,
        cancelled: Arc::clone(&cancelled),
    };
    let ports = route::Ports { log, store: store.clone(), presence: Arc::clone(&presence), cancelled };
    let route = Route::new(ports, codecs.clone(), clock.clone(), route);
    let archive = Archive::new(of_archive, codecs.clone(), clock.clone(), archive);
    let notify = Notify::new(presence, codecs, clock.clone());
    let chosen = |name| names.contains(&name);
    tokio::join!(
        told.publish(&*depths, &shutdown),
        run_if(chosen(StageName::Prioritize), prioritize, &of_runner, &runner, &shutdown),
        run_if(chosen(StageName::Route), route, &of_runner, &runner, &shutdown),
        run_if(chosen(StageName::Archive), archive, &of_runner, &runner, &shutdown),
        run_if(chosen(StageName::Notify), notify, &of_runner, &runner, &shutdown),
        run_if(chosen(StageName::Webhooks), webhooks, &of_runner, &runner, &shutdown),
        run_if(chosen(StageName::DeadLetter), dead_letter, &of_runner, &runner, &shutdown),
        run_if(chosen(StageName::Broadcast), open_broadcasts, &of_runner, &runner, &shutdown),
        run_if(chosen(StageName::Schedule), schedule, &of_runner, &runner, &shutdown),
        async {
            if chosen(StageName::Broadcast) {
                broadcast::expand::run(of_broadcasts, broadcast, shutdown.clone()).await;
            }
        },
        async {
            if chosen(StageName::DeadLetter) {
                digest::run(of_digest, digest, shutdown.clone()).await;
            }
        },
        async {
            if chosen(StageName::Housekeeping) {
                housekeeping::run(store, clock, housekeeping, shutdown.clone()).await;
            }
        },
    );
}

async fn run_if<S: Stage>(
    chosen: bool,
    stage: S,
    deps: &runner::Deps,
    options: &runner::Options,
    shutdown: &CancellationToken,
) {
    if chosen {
        runner::run(Arc::new(stage), deps.clone(), options.clone(), shutdown.clone()).await;
    }
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

/// What a batch has of each topic, in its order.
fn by_topic(batch: &[Received]) -> impl Iterator<Item = (Topic, &[Received])> {
    batch
        .chunk_by(|one, other| one.position.topic == other.position.topic)
        .filter_map(|part| Some((part.first()?.position.topic, part)))
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
/// Wait before it is looked again whether the newest cancellations are known, in milliseconds.
const STALE_PAUSE_MS: u64 = 50;

/// Pauses a batch of `stage` while this process may not know the newest cancellations.
fn pause_if_stale(cancelled: &Cancelled, clock: &Clock, stage: &'static str) -> Option<Outcome> {
    if cancelled.is_fresh() {
        return None;
    }
    counter!(HELD, "stage" => stage).increment(1);
    let reason = format!("the newest cancellations are not known: {} ms old", cancelled.age_ms());
    Some(pause(clock, STALE_PAUSE_MS, &reason))
}

fn pause(clock: &Clock, pause_ms: u64, cause: &dyn std::fmt::Display) -> Outcome {
    let until = clock.now().plus_millis(i64::try_from(pause_ms).unwrap_or(i64::MAX));
    Outcome::Pause { until, reason: cause.to_string() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use eshaar_model::{Cursor, Epoch, Lane, MessageId};
    use eshaar_schemas::{Delivery, Hint};
    use eshaar_service::TraceContext;
    use eshaar_topics::{Reader, flow};

    use super::*;
    use crate::testing::{Engines, message, sender};

    const PHONES: u32 = 10;

    pub(super) fn deps(engines: &Engines) -> Deps {
        Deps {
            log: Arc::new(engines.log.clone()),
            codecs: engines.codecs.clone(),
            store: engines.store.clone(),
            presence: Arc::clone(&engines.presence) as _,
            cancelled: Arc::clone(&engines.cancelled),
            sender: sender(&webhooks::Options::default()),
            clock: engines.clock.clone(),
            watchdog: Watchdog::new(std::time::Duration::from_mins(1)),
            depths: Arc::clone(&engines.presence) as _,
            cache: Arc::clone(&engines.cache) as _,
            limits: Arc::new(Limiter::local(eshaar_presence::limits::Options::default(), engines.clock.clone())),
        }
    }

    /// Sends `count` messages, to the phones in turn; returns their ids.
    async fn send(engines: &Engines, count: u32) -> Vec<MessageId> {
        let messages: Vec<_> = (0..count).map(|number| message(number % PHONES)).collect();
        let record = |message| flow::accepted(message, Lane::Normal, &engines.codecs, &TraceContext::new()).unwrap();
        engines.log.append(messages.iter().map(record).collect()).await.unwrap();
        messages.iter().map(|message| message.id).collect()
    }

    /// Reads hints until `count` different messages were told of.
    async fn told(engines: &Engines, reader: &mut dyn Reader, count: usize) {
        let mut told: std::collections::HashSet<Bytes> = std::collections::HashSet::new();
        while told.len() < count {
            reader.ready().await.unwrap();
            for record in reader.take(100) {
                let delivery: Delivery = engines.codecs.decode(&record.value).unwrap();
                if let Hint::Message(hint) = delivery.hint {
                    told.insert(hint.message);
                }
            }
        }
    }

    #[tokio::test]
    async fn whole_stages_carry_every_message_once_though_they_are_cut_off_in_between() {
        let engines = Engines::open().await;
        for phone in 0..PHONES {
            engines.connect(&message(phone).recipient).await;
        }
        let mut hints = engines.log.read(Topic::Deliveries, 3, 0).await.unwrap();
        let mut sent = send(&engines, 1_000).await;
        let cut_off = tokio::spawn(run(deps(&engines), Options::default(), CancellationToken::new()));
        told(&engines, &mut *hints, 300).await;
        cut_off.abort();
        assert!(cut_off.await.unwrap_err().is_cancelled());

        sent.extend(send(&engines, 1_000).await);
        let mut hints = engines.log.read(Topic::Deliveries, 3, 0).await.unwrap();
        let shutdown = CancellationToken::new();
        let stages = tokio::spawn(run(deps(&engines), Options::default(), shutdown.clone()));
        told(&engines, &mut *hints, 2_000).await;
        shutdown.cancel();
        stages.await.unwrap();

        for phone in 0..PHONES {
            let to: Vec<MessageId> = sent.iter().copied().skip(phone as usize).step_by(PHONES as usize).collect();
            let phone = message(phone).recipient.parse().unwrap();
            let page = engines.store.streams.read(phone, Cursor::start(Epoch(0)), 1_000).await.unwrap();
            assert_eq!(page.rows.iter().map(|row| row.id).collect::<Vec<_>>(), to);
        }
        for partition in 0..engines.log.partitions(Topic::LaneNormal) {
            let end = engines.log.bounds(Topic::LaneNormal, partition).await.unwrap().end;
            let committed = engines.log.committed("route", Topic::LaneNormal, partition).await.unwrap();
            assert_eq!(committed.unwrap_or(0), end);
        }
    }
}
