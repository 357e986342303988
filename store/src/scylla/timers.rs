//! Timers. A partition is an hour of a partition of the log; `timer_hour` says which hours there are. Rows are never
//! deleted: reads begin behind the mark, so nobody passes over what is done with, and it goes by its time to live. The mark
//! is a row of a table of its own, and every write of it conditional.

use std::collections::BTreeSet;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::Timestamp;
use scylla::value::CqlTimestamp;
use uuid::Uuid;

use super::Cql;
use super::call::Call;
use super::columns::{time, timestamp, ttl_s};
use super::gather::Write;
use crate::timers::KEPT_MS;
use crate::{Holder, StoreError, Timer, TimerPlace, TimerStore};

const HOUR_MS: i64 = 3_600_000;
/// Most hours that one request brings: 60 days.
const HOURS: i32 = 1_440;
/// How often a partition that others take over at the same time is tried to be taken over.
const TRIES: u32 = 10;

#[async_trait]
impl TimerStore for Cql {
    async fn partitions(&self) -> Result<Vec<u32>, StoreError> {
        let call = self.call("timer_partitions")?;
        let rows = call.read(&call.statements().timer_partitions, ()).await?;
        let mut partitions = call.rows(&rows, |(partition,): (i32,)| Ok(partition as u32))?;
        partitions.sort_unstable();
        Ok(partitions)
    }

    async fn take(&self, partition: u32, holder: Holder) -> Result<TimerPlace, StoreError> {
        let call = self.call("take_timers")?;
        for _ in 0..TRIES {
            let taken = match find(&call, partition).await? {
                None => {
                    let first = TimerPlace::before(Timestamp::default());
                    let values = (partition as i32, holder.0, time(first.due), first.id);
                    call.decide(&call.statements().make_timer_mark, &values).await?
                }
                Some((known, _)) => {
                    let values = (holder.0, partition as i32, known);
                    call.decide(&call.statements().take_timers, &values).await?
                }
            };
            // Also when it was refused because of an attempt of ours before it, whose outcome had not been known.
            if taken.applied || taken.uuid("holder") == Some(holder.0) {
                // As the holder before had left it by now.
                return match find(&call, partition).await? {
                    Some((known, mark)) if known == holder.0 => Ok(mark),
                    _ => Err(call.failed("another has taken it over at the same time")),
                };
            }
        }
        Err(call.failed("others take it over at the same time"))
    }

    async fn put(&self, partition: u32, timers: Vec<Timer>) -> Result<(), StoreError> {
        let call = self.call("put_timers")?;
        let (statements, now) = (call.statements(), self.clock.now());
        let kept_s = |due: Timestamp| ttl_s(due.plus_millis(KEPT_MS).millis_since(now));
        let hours: BTreeSet<i32> = timers.iter().map(|timer| hour(timer.place.due)).collect();
        let mut writes: Vec<Write> = hours
            .into_iter()
            .map(|hour| {
                let end = Timestamp::from_millis((i64::from(hour) + 1) * HOUR_MS);
                Write::new(&statements.put_timer_hour, (partition as i32, hour, kept_s(end)), 0)
            })
            .collect();
        writes.extend(timers.into_iter().map(|Timer { place, key, headers, value }| {
            let bytes = key.len() + headers.len() + value.len();
            let kept_s = kept_s(place.due);
            let at = (partition as i32, hour(place.due), time(place.due), place.id);
            Write::new(&statements.put_timer, (at.0, at.1, at.2, at.3, key, headers, value, kept_s), bytes)
        }));
        call.write(writes).await
    }

    async fn next(
        &self,
        partition: u32,
        after: TimerPlace,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Timer>, StoreError> {
        type Row = (CqlTimestamp, Uuid, Bytes, Bytes, Bytes);
        let call = self.call("next_timers")?;
        let end = TimerPlace::after(until);
        let mut found = Vec::new();
        for hour in hours(&call, partition, after.due, until).await? {
            let left = (limit - found.len()) as i32;
            let values = (partition as i32, hour, time(after.due), after.id, time(end.due), end.id, left);
            let rows = call.read(&call.statements().timers, values).await?;
            found.extend(call.rows(&rows, |(due, id, key, headers, value): Row| {
                Ok(Timer { place: TimerPlace { due: timestamp(due), id }, key, headers, value })
            })?);
            if found.len() == limit {
                break;
            }
        }
        Ok(found)
    }

    async fn mark(&self, partition: u32, holder: Holder, mark: TimerPlace) -> Result<bool, StoreError> {
        let call = self.call("mark_timers")?;
        let values = (time(mark.due), mark.id, partition as i32, holder.0);
        Ok(call.decide(&call.statements().mark_timers, &values).await?.applied)
    }

    async fn count(&self, partition: u32, after: TimerPlace) -> Result<u64, StoreError> {
        let call = self.call("count_timers")?;
        let mut count = 0;
        for hour in hours(&call, partition, after.due, Timestamp::from_millis(i64::MAX)).await? {
            let values = (partition as i32, hour, time(after.due), after.id);
            let of_hour = call.first::<(i64,)>(&call.statements().count_timers, values).await?;
            count += of_hour.map_or(0, |(count,)| count as u64);
        }
        Ok(count)
    }
}

fn hour(at: Timestamp) -> i32 {
    i32::try_from(at.as_millis().div_euclid(HOUR_MS)).unwrap_or(if at.as_millis() < 0 { i32::MIN } else { i32::MAX })
}

/// The hours of a partition that have had timers, from `from` until `until`, the first of them.
async fn hours(call: &Call<'_>, partition: u32, from: Timestamp, until: Timestamp) -> Result<Vec<i32>, StoreError> {
    let values = (partition as i32, hour(from), hour(until), HOURS);
    let rows = call.read(&call.statements().timer_hours, values).await?;
    call.rows(&rows, |(hour,): (i32,)| Ok(hour))
}

/// Who holds a partition, and its mark.
async fn find(call: &Call<'_>, partition: u32) -> Result<Option<(Uuid, TimerPlace)>, StoreError> {
    let row = call.first::<(Uuid, CqlTimestamp, Uuid)>(&call.statements().timer_mark, (partition as i32,)).await?;
    Ok(row.map(|(holder, due, id)| (holder, TimerPlace { due: timestamp(due), id })))
}
