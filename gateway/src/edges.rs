//! Heads and floors of the lanes' partitions, read once for all sessions of a gateway instead of once for each.
//!
//! Both only rise. A head that was read earlier is too low at worst, so a cursor that it covers fits, and one that it does not
//! cover is decided by a head whose read began after the cursor came. A floor that was read earlier is too low by what is
//! let go of in [`KEPT_MS`]; stores keep rows for longer than that behind the floor.
//!
//! Where a session begins to read its stream never rests on a head from here, but for `from: head`, which takes one whose read
//! began after its hello: so no message falls between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::AHashMap;
use eshaar_model::{Lane, Phone, Timestamp};
use eshaar_store::StoreError;
use parking_lot::Mutex;

use crate::shared::Shared;

/// How long a floor is taken as it was read, in milliseconds.
const KEPT_MS: i64 = 5_000;

/// The edges of what is held of a lane's partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edge {
    /// The highest offset that was appended.
    pub(crate) head: Option<u64>,
    /// The lowest that is certain to be kept.
    pub(crate) floor: u64,
    read_at: Timestamp,
    /// The ticket of the read: those with a lower one asked before it began.
    ticket: u64,
}

/// Held locked while it is read: whoever comes meanwhile waits, and takes what was read.
type Place = Arc<tokio::sync::Mutex<Option<Edge>>>;

/// What is known of the edges, by lane and partition.
#[derive(Default)]
pub(crate) struct Edges {
    known: Mutex<AHashMap<(Lane, u32), Place>>,
    tickets: AtomicU64,
}

/// How new an edge must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    /// Its head covers this offset, or was read since now.
    Covering(Option<u64>),
    /// It was read since now.
    Fresh,
}

impl Edges {
    /// The edges of the partitions that carry a phone's lanes.
    pub(crate) async fn of(&self, shared: &Shared, phone: Phone, wanted: [Wanted; 4]) -> Result<[Edge; 4], StoreError> {
        let ticket = self.tickets.fetch_add(1, Ordering::AcqRel);
        let [high, normal, low, bulk] =
            Lane::ALL.map(|lane| self.one(shared, (lane, shared.partition(phone, lane)), wanted[lane.index()], ticket));
        tokio::try_join!(high, normal, low, bulk).map(Into::into)
    }

    async fn one(
        &self,
        shared: &Shared,
        (lane, partition): (Lane, u32),
        wanted: Wanted,
        asked: u64,
    ) -> Result<Edge, StoreError> {
        let place = Arc::clone(self.known.lock().entry((lane, partition)).or_default());
        let mut known = place.lock().await;
        let now = shared.clock.now();
        let is_enough = |edge: &Edge| {
            let is_recent = (0..KEPT_MS).contains(&now.millis_since(edge.read_at));
            edge.ticket > asked || matches!(wanted, Wanted::Covering(offset) if is_recent && edge.head >= offset)
        };
        if let Some(edge) = known.filter(is_enough) {
            return Ok(edge);
        }
        let ticket = self.tickets.fetch_add(1, Ordering::AcqRel);
        let epoch = shared.epoch();
        let streams = &shared.streams;
        let (head, floor) =
            tokio::try_join!(streams.head(epoch, lane, partition), streams.floor(epoch, lane, partition, now))?;
        let edge = Edge { head, floor, read_at: now, ticket };
        *known = Some(edge);
        Ok(edge)
    }
}
