//! What every engine must do, as one suite.
//!
//! A check panics where the engine is wrong. It holds the clock that the store was opened with, and moves it. It keeps to
//! phones, epochs, names and keys of its own, which its [`Subject`] hands out, so that checks may share one database where
//! making another is slow.

#![allow(clippy::unwrap_used, reason = "a check that fails panics")]

pub mod audiences;
pub mod audit;
pub mod broadcasts;
pub mod claims;
pub mod conversations;
pub mod dead_letters;
pub mod keys;
pub mod messages;
pub mod streams;
pub mod tasks;
pub mod timers;
pub mod webhooks;

use std::future::Future;

use bytes::Bytes;
use eshaar_model::{BusinessId, Clock, Epoch, Lane, MessageId, Phone, StreamPosition, Timestamp};

use crate::{Store, StoreError, StreamRow};

/// How long the store under test must keep streams, in milliseconds: 30 days.
pub const STREAM_TTL_MS: i64 = 30 * 24 * 3600 * 1000;

/// A store with the clock it was opened with, a manual one that stands at [`start`], and keys of one's own.
pub struct Subject {
    /// The store.
    pub store: Store,
    /// Its clock.
    pub clock: Clock,
    /// Keeps the keys of subjects apart that share a database: each has another, the later a higher one, below 9,000.
    pub space: u32,
}

impl Subject {
    pub(crate) fn phone(&self, number: u64) -> Phone {
        Phone::from_digits(966_500_000_000 + u64::from(self.space) * 10_000 + number).unwrap()
    }

    pub(crate) fn epoch(&self, number: u32) -> Epoch {
        Epoch(self.space * 16 + number)
    }

    pub(crate) fn at(&self, epoch: u32, lane: Lane, offset: u64) -> StreamPosition {
        StreamPosition { epoch: self.epoch(epoch), lane, offset }
    }

    /// A row of the phone of this number that was accepted `after_ms` after the start.
    pub(crate) fn row(&self, number: u64, position: StreamPosition, after_ms: i64) -> StreamRow {
        let accepted = start().plus_millis(after_ms);
        let value = Bytes::from(format!("{}/{}/{}", position.epoch.0, position.lane, position.offset));
        let id = MessageId::new(accepted);
        StreamRow { phone: self.phone(number), position, id, at: accepted, expires_at: None, value }
    }

    /// A name of our own.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{name}-{}", self.space)
    }

    pub(crate) fn business(&self, name: &str) -> BusinessId {
        self.name(name).parse().unwrap()
    }
}

/// Where the clock of a [`Subject`] stands at first.
pub const fn start() -> Timestamp {
    Timestamp::from_millis(1_760_000_000_000)
}

/// Runs the checks of every port, each against a subject of its own that `fresh` makes.
pub async fn run<F, S>(fresh: F) -> Result<(), StoreError>
where
    F: Fn() -> S,
    S: Future<Output = Subject>,
{
    the_time_of_a_server_is_told(&fresh().await).await?;
    streams::run(&fresh).await?;
    messages::run(&fresh).await?;
    claims::run(&fresh).await?;
    keys::run(&fresh).await?;
    dead_letters::run(&fresh).await?;
    tasks::run(&fresh).await?;
    audit::run(&fresh).await?;
    timers::run(&fresh).await?;
    webhooks::run(&fresh).await?;
    audiences::run(&fresh).await?;
    broadcasts::run(&fresh).await?;
    conversations::run(&fresh).await
}

/// An engine in this process has no other clock to tell of. The servers of the tests are on this machine.
async fn the_time_of_a_server_is_told(subject: &Subject) -> Result<(), StoreError> {
    let before = Clock::system().now();
    if let Some(time) = subject.store.engine.time().await? {
        assert!(time.millis_since(before).abs() < 60_000, "{time} is not {before}");
    }
    subject.store.engine.close().await
}

/// Runs checks by name, each against a subject of its own.
macro_rules! checks {
    ($(#[$doc:meta])* $($check:ident),* $(,)?) => {
        $(#[$doc])*
        pub async fn run<F, S>(fresh: &F) -> Result<(), crate::StoreError>
        where
            F: Fn() -> S,
            S: std::future::Future<Output = crate::conformance::Subject>,
        {
            $({
                let subject = fresh().await;
                $check(&subject).await?;
                subject.store.engine.close().await?;
            })*
            Ok(())
        }
    };
}
use checks;
