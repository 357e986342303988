//! Broadcasts and their tallies. Nothing is conditional: a broadcast's row is the same whoever writes it, and of two tallies
//! the one of the higher place in the log stands, by the write's own timestamp.

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{BroadcastId, BusinessId, Timestamp};
use scylla::value::CqlTimestamp;
use uuid::Uuid;

use super::Cql;
use super::call::Call;
use super::columns::{highest_wins, time, timestamp, ttl_s};
use super::gather::Write;
use crate::broadcasts::KEPT_MS;
use crate::{BroadcastRow, BroadcastStore, Counts, StoreError, Tally};

/// Most broadcasts of a list.
const LISTED: usize = 1_000;
/// Most ids of one read.
const IDS: usize = 100;
/// Bits of a tally's write timestamp that are the offset; the log's epoch stands above them.
const OFFSET_BITS: u32 = 40;

#[async_trait]
impl BroadcastStore for Cql {
    async fn put(&self, row: BroadcastRow) -> Result<(), StoreError> {
        let call = self.call("put_broadcast")?;
        let left = self.left(&row);
        call.write(vec![put(&call, row, left)]).await
    }

    async fn get(&self, ids: &[BroadcastId]) -> Result<Vec<BroadcastRow>, StoreError> {
        let call = self.call("get_broadcasts")?;
        let reads = ids.chunks(IDS).map(async |ids| {
            let ids: Vec<Uuid> = ids.iter().copied().map(Uuid::from).collect();
            let rows = call.read(&call.statements().broadcasts, (ids,)).await?;
            call.rows(&rows, broadcast)
        });
        Ok(call.each(reads.collect()).await?.into_iter().flatten().collect())
    }

    async fn open(&self, row: BroadcastRow) -> Result<(), StoreError> {
        let call = self.call("open_broadcast")?;
        let (id, business, left) = (Uuid::from(row.id), row.business.as_str().to_owned(), self.left(&row));
        let list = Write::new(&call.statements().list_broadcast, (business, id, left), 0);
        call.write(vec![put(&call, row, left), list]).await?;
        // Last: who sends it finds the rest.
        call.write(vec![Write::new(&call.statements().open_broadcast, (id,), 0)]).await
    }

    async fn opened(&self, limit: usize) -> Result<Vec<BroadcastId>, StoreError> {
        let call = self.call("open_broadcasts")?;
        let rows = call.read(&call.statements().broadcasts_open, (limit as i32,)).await?;
        call.rows(&rows, |(id,): (Uuid,)| identity(id))
    }

    async fn close(&self, id: BroadcastId) -> Result<(), StoreError> {
        let call = self.call("close_broadcast")?;
        call.write(vec![Write::new(&call.statements().close_broadcast, (Uuid::from(id),), 0)]).await
    }

    async fn list(
        &self,
        business: &BusinessId,
        before: Option<BroadcastId>,
        limit: usize,
    ) -> Result<Vec<BroadcastId>, StoreError> {
        let call = self.call("list_broadcasts")?;
        let before = before.map_or(Uuid::max(), Uuid::from);
        let values = (business.as_str(), before, limit.min(LISTED) as i32);
        let rows = call.read(&call.statements().broadcasts_sent, values).await?;
        call.rows(&rows, |(id,): (Uuid,)| identity(id))
    }

    async fn put_tallies(&self, tallies: Vec<Tally>) -> Result<(), StoreError> {
        let call = self.call("put_tallies")?;
        let statement = &call.statements().put_tally;
        let writes =
            tallies.into_iter().map(|Tally { broadcast, partition, segment, epoch, offset, counts, marks }| {
                let bytes = marks.len();
                let Counts { delivered, read, failed, expired } = counts;
                let place = (Uuid::from(broadcast), partition as i32, segment as i32);
                let [delivered, read, failed, expired] = [delivered, read, failed, expired].map(|count| count as i32);
                let stamp = highest_wins(u64::from(epoch.0) << OFFSET_BITS | offset & ((1 << OFFSET_BITS) - 1));
                let values =
                    (place.0, place.1, place.2, delivered, read, failed, expired, marks, stamp, ttl_s(KEPT_MS));
                Write::new(statement, values, bytes)
            });
        call.write(writes.collect()).await
    }

    async fn marks(&self, id: BroadcastId, partition: u32, segment: u32) -> Result<Option<Bytes>, StoreError> {
        let call = self.call("tally_marks")?;
        let place = (Uuid::from(id), partition as i32, segment as i32);
        let found = call.first::<(Bytes,)>(&call.statements().tally_marks, place).await?;
        Ok(found.map(|(marks,)| marks))
    }

    async fn counts(&self, id: BroadcastId) -> Result<Counts, StoreError> {
        let call = self.call("broadcast_counts")?;
        let rows = call.read(&call.statements().tallies, (Uuid::from(id),)).await?;
        let counts = call.rows(&rows, |(delivered, read, failed, expired): (i32, i32, i32, i32)| {
            let [delivered, read, failed, expired] = [delivered, read, failed, expired].map(|count| count as u64);
            Ok(Counts { delivered, read, failed, expired })
        })?;
        Ok(counts.into_iter().sum())
    }

    /// They go by themselves.
    async fn trim(&self, _now: Timestamp) -> Result<usize, StoreError> {
        self.call("trim_broadcasts").map(|_| 0)
    }
}

impl Cql {
    /// How long a row is kept still, in seconds.
    fn left(&self, row: &BroadcastRow) -> i32 {
        ttl_s(row.created_at.plus_millis(KEPT_MS).millis_since(self.clock.now()))
    }
}

fn put(call: &Call<'_>, row: BroadcastRow, left: i32) -> Write {
    let BroadcastRow { id, business, created_at, value } = row;
    let bytes = value.len();
    let values = (Uuid::from(id), business.as_str().to_owned(), time(created_at), value, left);
    Write::new(&call.statements().put_broadcast, values, bytes)
}

fn broadcast((id, business, created_at, value): (Uuid, String, CqlTimestamp, Bytes)) -> Result<BroadcastRow, String> {
    Ok(BroadcastRow {
        id: identity(id)?,
        business: business.parse().map_err(|_| format!("broadcast {id}: business is not as it was written"))?,
        created_at: timestamp(created_at),
        value,
    })
}

fn identity(id: Uuid) -> Result<BroadcastId, String> {
    BroadcastId::try_from(id).map_err(|_| format!("{id} is no id of a broadcast"))
}
