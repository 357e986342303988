//! The store on ScyllaDB, or on Cassandra, which speaks the same CQL.
//!
//! `options` · `schema` (the tables) · `setup` (`apply`, `check`) · `connect` · `statements` (all CQL) · `call` (a call's
//! way through the bounds) · `gather` (what is written together) · `conditional` (LWT) · `buckets`
//! (queues) · `copies` (rows that a migration moves) · then a file for each aggregate. Writes are at `LOCAL_QUORUM` when they
//! return, so there is nothing to sync. No row is written both conditionally and plainly.

mod activity;
mod audiences;
mod audit;
mod broadcasts;
mod buckets;
mod call;
mod chat;
mod claims;
mod columns;
mod conditional;
mod connect;
mod conversations;
mod copies;
mod dead_letters;
mod gather;
mod keys;
mod messages;
mod options;
mod schema;
mod sent;
mod setup;
mod statements;
mod stream;
mod tasks;
mod timers;
mod webhooks;

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use eshaar_model::{BusinessId, Clock, Epoch, Timestamp};
use eshaar_service::breaker::{Breaker, policies};
use eshaar_service::bulkhead::{Bounds, Bulkhead};
use parking_lot::{Mutex, RwLock};
use scylla::value::CqlTimestamp;
use tokio::sync::{Semaphore, TryAcquireError};

use self::call::{Call, Link};
use self::gather::Gather;
use self::statements::Statements;
use crate::{Store, StoreEngine, StoreError};

pub use self::options::{Options, Replication, Strategy, Tls};
pub use self::setup::{Checked, Report, SetupError, apply, check};

/// Opens the store. Fails where the keyspace is not there or not of this version; `apply` makes it so.
pub async fn open(options: Options, clock: Clock) -> Result<Store, StoreError> {
    let session = setup::connect_ready(&options).await.map_err(|error| failed("open", &error))?;
    let statements = Statements::prepare(&session, &options).await.map_err(|error| failed("open", &error))?;
    let calls = u32::try_from(options.calls).unwrap_or(u32::MAX).clamp(1, MOST_CALLS);
    let engine = Arc::new(Cql {
        clock,
        link: RwLock::new(Some(Arc::new(Link { session, statements }))),
        calls: Semaphore::new(calls as usize),
        most_calls: calls,
        requests: Bulkhead::new(Bounds {
            dependency: "database",
            at_once: options.requests.max(1),
            waiting: calls as usize,
            patience: options.queue_wait(),
        }),
        breaker: Breaker::new(policies::DATABASE),
        gather: Arc::new(Gather::new(&options)),
        options,
        epochs: Mutex::default(),
        days: Mutex::default(),
        conversations: conversations::Remembered::default(),
    });
    Ok(Store {
        streams: Arc::clone(&engine) as _,
        messages: Arc::clone(&engine) as _,
        claims: Arc::clone(&engine) as _,
        keys: Arc::clone(&engine) as _,
        dead_letters: Arc::clone(&engine) as _,
        tasks: Arc::clone(&engine) as _,
        audit: Arc::clone(&engine) as _,
        timers: Arc::clone(&engine) as _,
        webhooks: Arc::clone(&engine) as _,
        audiences: Arc::clone(&engine) as _,
        broadcasts: Arc::clone(&engine) as _,
        conversations: Arc::clone(&engine) as _,
        engine,
    })
}

/// A bound on the bound: what a semaphore takes.
const MOST_CALLS: u32 = 1 << 20;

/// Every port, on one session.
struct Cql {
    options: Options,
    clock: Clock,
    /// `None` once it was closed.
    link: RwLock<Option<Arc<Link>>>,
    calls: Semaphore,
    most_calls: u32,
    requests: Bulkhead,
    breaker: Arc<Breaker>,
    gather: Arc<Gather>,
    /// Epochs that are known to be written down.
    epochs: Mutex<HashSet<Epoch>>,
    /// Days of businesses that are known to be written down.
    days: Mutex<HashSet<(BusinessId, i32)>>,
    conversations: conversations::Remembered,
}

impl Cql {
    /// Begins a call, which metrics and errors know by `name`.
    fn call(&self, name: &'static str) -> Result<Call<'_>, StoreError> {
        let link = self.link.read().clone().ok_or(StoreError::Closed)?;
        let room = self.calls.try_acquire().map_err(|error| match error {
            TryAcquireError::NoPermits if self.link.read().is_some() => {
                StoreError::Overloaded { waiting: self.calls_under_way() }
            }
            // While it is being closed, `close` has all the room.
            _ => StoreError::Closed,
        })?;
        Ok(Call::new(self, name, link, room))
    }

    fn calls_under_way(&self) -> usize {
        (self.most_calls as usize).saturating_sub(self.calls.available_permits())
    }
}

#[async_trait]
impl StoreEngine for Cql {
    /// Nothing to do: what has returned is with a quorum.
    async fn sync(&self) -> Result<(), StoreError> {
        self.call("sync").map(drop)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let call = self.call("ping")?;
        call.first::<(i32,)>(&call.statements().newest_epoch, ()).await.map(drop)
    }

    async fn time(&self) -> Result<Option<Timestamp>, StoreError> {
        let call = self.call("read_time")?;
        let time = call.first::<(CqlTimestamp,)>(&call.statements().server_time, ()).await?;
        Ok(time.map(|(at,)| columns::timestamp(at)))
    }

    fn breaker(&self) -> Option<Arc<Breaker>> {
        Some(Arc::clone(&self.breaker))
    }

    async fn close(&self) -> Result<(), StoreError> {
        // New calls find no link; those under way have theirs, and are waited for.
        let link = self.link.write().take();
        let all = self.calls.acquire_many(self.most_calls).await;
        self.calls.close();
        drop((all, link));
        Ok(())
    }
}

fn failed(action: &'static str, reason: &(impl std::fmt::Display + ?Sized)) -> StoreError {
    StoreError::Engine { action, reason: reason.to_string() }
}
