//! Queues whose rows go when they are done with: cut into partitions by time and shard, and an index of those that hold
//! something. A read passes over the tombstones of one partition at most, and a partition gets few: the busiest
//! half hour of 100,000 rows a day leaves about 500 in each.
//!
//! A row is written first and its partition entered into the index behind it. A partition that is found empty leaves the
//! index by a delete that carries the write time of the entry that was read before: it takes out that entry, and none
//! that was made since. So no clock but the cluster's own decides.

use eshaar_model::Timestamp;

use super::call::Call;
use super::gather::Write;
use crate::StoreError;

/// Length of a bucket, in milliseconds: 30 min. Not to be changed: rows would no longer be found.
const BUCKET_MS: i64 = 1_800_000;
/// Shards of a bucket. Not to be lowered: rows would no longer be found.
const SHARDS: u32 = 4;
/// How long an empty partition stays in the index after its time, in milliseconds: it may get rows still, and need not leave
/// and enter each time.
const STAYS_MS: i64 = 600_000;
/// Most partitions of a queue that one read considers: the oldest.
const PARTITIONS: i32 = 2_000;

/// A queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// Broadcasts that are to be sent, by when they were accepted.
    OpenBroadcasts,
    /// Lists of recipients that go, by when they are due.
    ListsDue,
}

impl Queue {
    const fn name(self) -> &'static str {
        match self {
            Self::OpenBroadcasts => "broadcasts",
            Self::ListsDue => "lists",
        }
    }
}

/// A partition of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) bucket: i32,
    pub(super) shard: i8,
}

impl Bucket {
    /// The partition of the row of this time and id.
    pub(super) fn of(at: Timestamp, id: &[u8; 16]) -> Self {
        // FNV-1a: some bytes of an id are not random.
        let hash = id.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        Self { bucket: Self::bucket_of(at), shard: ((hash >> 16) % SHARDS) as i8 }
    }

    fn bucket_of(at: Timestamp) -> i32 {
        at.as_millis().div_euclid(BUCKET_MS) as i32
    }

    fn ends_at(self) -> Timestamp {
        Timestamp::from_millis((i64::from(self.bucket) + 1) * BUCKET_MS)
    }
}

/// A partition in the index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) of: Bucket,
    /// When it was entered, by the cluster's clock, in microseconds.
    written: i64,
}

/// Enters a partition into the index; to be written behind its row.
pub(super) fn enter(call: &Call<'_>, queue: Queue, of: Bucket) -> Write {
    Write::new(&call.statements().enter_bucket, (queue.name(), of.bucket, of.shard), 0)
}

/// The partitions that may hold something, of a time up to `until` where it is given; the oldest first.
pub(super) async fn entered(call: &Call<'_>, queue: Queue, until: Option<Timestamp>) -> Result<Vec<Entry>, StoreError> {
    let values = (queue.name(), until.map_or(i32::MAX, Bucket::bucket_of), PARTITIONS);
    let rows = call.read(&call.statements().buckets, values).await?;
    call.rows(&rows, |(bucket, shard, written): (i32, i8, i64)| Ok(Entry { of: Bucket { bucket, shard }, written }))
}

/// Takes a partition that was found empty out of the index, once its time is past.
pub(super) async fn leave(call: &Call<'_>, queue: Queue, entry: Entry, now: Timestamp) -> Result<(), StoreError> {
    let Entry { of, written } = entry;
    if of.ends_at().plus_millis(STAYS_MS) >= now {
        return Ok(());
    }
    let values = (written, queue.name(), of.bucket, of.shard);
    call.write(vec![Write::new(&call.statements().leave_bucket, values, 0)]).await
}

#[cfg(test)]
mod tests {
    use eshaar_model::BroadcastId;

    use super::*;

    #[test]
    fn ids_of_one_time_are_spread_over_all_shards() {
        let at = Timestamp::from_millis(1_760_000_000_000);
        let mut counts = [0; SHARDS as usize];
        for _ in 0..4_000 {
            let of = Bucket::of(at, BroadcastId::new(at).as_bytes());
            assert_eq!(of.bucket, 977_777);
            counts[of.shard as usize] += 1;
        }
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
    }
}
