//! What every engine must do, as one suite: each engine's tests run it against a fresh, empty store for each check.
//!
//! A check panics where the engine is wrong. It holds the clock that the store was opened with, and moves it.

#![allow(clippy::unwrap_used, reason = "a check that fails panics")]

pub mod claims;
pub mod keys;
pub mod messages;
pub mod streams;

use std::future::Future;

use bytes::Bytes;
use eshaar_model::{Clock, Epoch, Lane, MessageId, Phone, StreamPosition, Timestamp};

use crate::{Store, StoreError, StreamRow};

/// How long the store under test must keep streams, in milliseconds: 30 days.
pub const STREAM_TTL_MS: i64 = 30 * 24 * 3600 * 1000;

/// A fresh store, with the clock it was opened with: a manual one that stands at [`start`].
pub struct Subject {
    /// The store.
    pub store: Store,
    /// Its clock.
    pub clock: Clock,
}

/// Where the clock of a [`Subject`] stands at first.
pub const fn start() -> Timestamp {
    Timestamp::from_millis(1_760_000_000_000)
}

/// Runs the checks of every port, each against a store of its own that `fresh` makes.
pub async fn run<F, S>(fresh: F) -> Result<(), StoreError>
where
    F: Fn() -> S,
    S: Future<Output = Subject>,
{
    streams::run(&fresh).await?;
    messages::run(&fresh).await?;
    claims::run(&fresh).await?;
    keys::run(&fresh).await
}

/// Runs checks by name, each against a store of its own.
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

/// A phone of a valid series.
pub(crate) fn phone(number: u64) -> Phone {
    Phone::from_digits(966_500_000_000 + number).unwrap()
}

pub(crate) const fn at(epoch: u32, lane: Lane, offset: u64) -> StreamPosition {
    StreamPosition { epoch: Epoch(epoch), lane, offset }
}

/// A row that was accepted `after_ms` after the start.
pub(crate) fn row(phone: Phone, position: StreamPosition, after_ms: i64) -> StreamRow {
    let accepted = start().plus_millis(after_ms);
    let value = Bytes::from(format!("{}/{}/{}", position.epoch.0, position.lane, position.offset));
    StreamRow { phone, position, id: MessageId::new(accepted), at: accepted, expires_at: None, value }
}
