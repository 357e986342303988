//! Broadcasts and their tallies. Nothing is conditional: a broadcast's row is the same whoever writes it, and of two tallies
//! the one of the higher place in the log stands, by the write's own timestamp.

use std::collections::HashSet;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{BroadcastId, BusinessId, MessageId, RecipientsId, Timestamp};
use scylla::value::CqlTimestamp;
use uuid::Uuid;

use super::Cql;
use super::buckets::{self, Bucket, Entry, Queue};
use super::call::Call;
use super::columns::{highest_wins, time, timestamp, ttl_s};
use super::gather::Write;
use crate::broadcasts::KEPT_MS;
use crate::{BroadcastRow, BroadcastStore, Counts, OpenBroadcast, StoreError, Tally};

/// Most broadcasts of a list.
const LISTED: usize = 1_000;
/// Most ids of one read.
const IDS: usize = 100;
/// Rows of a page of open broadcasts; more than [`MOST_EACH`].
const PAGE: i32 = 250;
/// Most open broadcasts of a business that one look brings.
const MOST_EACH: usize = 200;
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

    async fn open(&self, row: BroadcastRow, list: RecipientsId) -> Result<(), StoreError> {
        let call = self.call("open_broadcast")?;
        let of = bucket(row.id);
        let open = (of.bucket, of.shard, row.business.as_str().to_owned(), Uuid::from(row.id), Uuid::from(list));
        let (id, business, left) = (Uuid::from(row.id), row.business.as_str().to_owned(), self.left(&row));
        let list = Write::new(&call.statements().list_broadcast, (business, id, left), 0);
        call.write(vec![put(&call, row, left), list]).await?;
        // Last: who sends it finds the rest.
        call.write(vec![Write::new(&call.statements().open_broadcast, open, 0)]).await?;
        call.write(vec![buckets::enter(&call, Queue::OpenBroadcasts, of)]).await
    }

    async fn opened(&self, each: usize) -> Result<Vec<OpenBroadcast>, StoreError> {
        let call = self.call("open_broadcasts")?;
        let each = each.clamp(1, MOST_EACH);
        let now = self.clock.now();
        let entered = buckets::entered(&call, Queue::OpenBroadcasts, None).await?;
        let of_bucket = async |entry: Entry| {
            let found = open_in(&call, entry.of, each).await?;
            if found.is_empty() {
                buckets::leave(&call, Queue::OpenBroadcasts, entry, now).await?;
            }
            Ok::<_, StoreError>(found)
        };
        let found = call.each(entered.into_iter().map(of_bucket).collect()).await?;
        Ok(OpenBroadcast::oldest(found.into_iter().flatten().collect(), each))
    }

    async fn close(&self, open: &OpenBroadcast) -> Result<(), StoreError> {
        let call = self.call("close_broadcast")?;
        let of = bucket(open.id);
        let values = (of.bucket, of.shard, open.business.as_str().to_owned(), Uuid::from(open.id));
        call.write(vec![Write::new(&call.statements().close_broadcast, values, 0)]).await
    }

    async fn lists_in_use(&self) -> Result<HashSet<RecipientsId>, StoreError> {
        let call = self.call("lists_in_use")?;
        let entered = buckets::entered(&call, Queue::OpenBroadcasts, None).await?;
        let found = call.each(entered.into_iter().map(async |entry| lists_in(&call, entry.of).await).collect()).await?;
        Ok(found.into_iter().flatten().collect())
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

/// The partition of open broadcasts that one is in.
fn bucket(id: BroadcastId) -> Bucket {
    Bucket::of(MessageId::from(id).made_at(), MessageId::from(id).as_bytes())
}

/// The open broadcasts of a partition: of each business the first `each`, at least. A business that has more is passed over
/// from there on, so that it costs a page, however many it has.
async fn open_in(call: &Call<'_>, of: Bucket, each: usize) -> Result<Vec<OpenBroadcast>, StoreError> {
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let values = (of.bucket, of.shard, after.as_str(), PAGE);
        let rows = call.read(&call.statements().open_broadcasts, values).await?;
        let mut page = call.rows(&rows, |(business, id): (String, Uuid)| Ok((business, identity(id)?)))?;
        let is_full = page.len() == PAGE as usize;
        if let Some((last, _)) = page.last().cloned().filter(|_| is_full) {
            let begins = page.partition_point(|(business, _)| *business < last);
            // The last business may have more than is on this page.
            if page.len() - begins < each && begins > 0 {
                page.truncate(begins);
            }
        }
        after = page.last().map_or(after, |(business, _)| business.clone());
        for (business, id) in page {
            let business = business.parse().map_err(|_| call.failed("the business of an open broadcast is none"))?;
            found.push(OpenBroadcast { business, id });
        }
        if !is_full {
            return Ok(found);
        }
    }
}

/// The lists of recipients of a partition's open broadcasts.
async fn lists_in(call: &Call<'_>, of: Bucket) -> Result<Vec<RecipientsId>, StoreError> {
    let (mut lists, mut after) = (Vec::new(), (String::new(), Uuid::nil()));
    loop {
        let values = (of.bucket, of.shard, after.0.as_str(), after.1, PAGE);
        let rows = call.read(&call.statements().open_lists, values).await?;
        let page = call.rows(&rows, |row: (String, Uuid, Option<Uuid>)| Ok(row))?;
        let is_full = page.len() == PAGE as usize;
        for (business, id, list) in page {
            lists.extend(list.and_then(|list| RecipientsId::try_from(list).ok()));
            after = (business, id);
        }
        if !is_full {
            return Ok(lists);
        }
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
