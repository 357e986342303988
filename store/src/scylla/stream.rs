//! Streams, heads, floors, acked positions.
//!
//! A row's time to live goes with it: what is left of the stream's, and a thirtieth of it more, so that whoever asked for
//! the floor can still read what lies above it. A row that is written again later lives no longer for it.

use std::collections::VecDeque;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{Cursor, Epoch, Lane, MessageId, Phone, StreamPosition, Timestamp};
use scylla::response::query_result::QueryRowsResult;
use scylla::value::CqlTimestamp;
use smallvec::SmallVec;
use uuid::Uuid;

use super::call::Call;
use super::columns::{epoch, highest_wins, integer, lane, optional_time, phone, time, timestamp, ttl_s};
use super::gather::{Write, rounds};
use super::{Cql, columns};
use crate::{Earlier, StoreError, StreamPage, StreamRow, StreamStore};

/// Most rows of a page.
const PAGE_ROWS: usize = 1_000;

#[async_trait]
impl StreamStore for Cql {
    async fn append(&self, partition: u32, mut rows: Vec<StreamRow>) -> Result<(), StoreError> {
        let call = self.call("append")?;
        let epochs = self.new_epochs(&rows);
        let marks = self.marks(partition, &rows);
        // Stable: what a phone has of a lane stays in order.
        rows.sort_by_key(|row| row.phone);
        let new = epochs.iter().map(|new| Write::new(&call.statements().put_epoch, (epoch(*new),), 0));
        let marks = marks.into_iter().flat_map(|marks| marks.of(&call));
        // Before the rows: a cursor that a client got of them must never be past the head.
        call.write(marks.chain(new).collect()).await?;
        for writes in self.rounds(&call, &rows) {
            call.write(writes).await?;
        }
        if !epochs.is_empty() {
            self.epochs.lock().extend(epochs);
        }
        Ok(())
    }

    async fn read(&self, of: Phone, after: Cursor, limit: usize) -> Result<StreamPage, StoreError> {
        let call = self.call("read_stream")?;
        let limit = limit.clamp(1, PAGE_ROWS);
        let mut page = StreamPage::default();
        let mut after = after;
        loop {
            // Boxed: four requests side by side take 16 KB, which every future that holds this one would carry.
            let fetched = Box::pin(fetch(&call, of, after, limit - page.rows.len() + 1)).await?;
            let Fetched { lanes, newer, complete } = fetched;
            merge(lanes, limit, &mut page);
            let full = page.rows.len() == limit;
            match newer.first().map(|row| row.position.epoch) {
                _ if page.more => return Ok(page),
                None => return Ok(page),
                Some(_) if complete || full => {
                    for rows in newer.chunk_by(|a, b| a.position.epoch == b.position.epoch) {
                        merge(by_lane(rows.to_vec()), limit, &mut page);
                    }
                    return Ok(page);
                }
                Some(newer) => after = Cursor::start(newer),
            }
        }
    }

    async fn before(&self, of: &[(Phone, StreamPosition)]) -> Result<Vec<Option<u64>>, StoreError> {
        let call = self.call("find_before")?;
        let statement = &call.statements().offset_before;
        let lookup = async |of: Phone, at: StreamPosition| {
            let key = (phone(of), epoch(at.epoch), lane(at.lane), integer(at.offset));
            let found = call.first::<(i64,)>(statement, key).await?;
            Ok(found.map(|(offset,)| offset as u64))
        };
        call.each(of.iter().map(|(of, at)| lookup(*of, *at)).collect()).await
    }

    async fn stands_before(&self, of: &[Earlier]) -> Result<Vec<bool>, StoreError> {
        let call = self.call("find_repeats")?;
        call.each(of.iter().map(|earlier| Box::pin(stands_before(&call, *earlier))).collect()).await
    }

    async fn head(&self, of: Epoch, in_lane: Lane, partition: u32) -> Result<Option<u64>, StoreError> {
        let call = self.call("read_head")?;
        let key = (epoch(of), lane(in_lane), partition as i32);
        Ok(call.first::<(i64,)>(&call.statements().head, key).await?.map(|(head,)| head as u64))
    }

    async fn newest_epoch(&self) -> Result<Option<Epoch>, StoreError> {
        let call = self.call("read_epoch")?;
        let newest = call.first::<(i32,)>(&call.statements().newest_epoch, ()).await?;
        Ok(newest.map(|(epoch,)| Epoch(epoch as u32)))
    }

    /// Behind every mark whose span has wholly expired.
    async fn floor(&self, of: Epoch, in_lane: Lane, partition: u32, now: Timestamp) -> Result<u64, StoreError> {
        let call = self.call("read_floor")?;
        let expired = now.plus_millis(-self.options.stream_ttl_ms());
        let key = (epoch(of), lane(in_lane), partition as i32, time(expired));
        let highest = call.first::<(Option<i64>,)>(&call.statements().floor, key).await?;
        Ok(highest.and_then(|(offset,)| offset).map_or(0, |offset| offset as u64 + 1))
    }

    async fn acked(&self, of: Phone) -> Result<Option<Cursor>, StoreError> {
        type Row = (i32, Option<i64>, Option<i64>, Option<i64>, Option<i64>);
        let call = self.call("read_acked")?;
        let row = call.first::<Row>(&call.statements().acked, (phone(of),)).await?;
        Ok(row.map(|(epoch, high, normal, low, bulk)| Cursor {
            epoch: Epoch(epoch as u32),
            offsets: [high, normal, low, bulk].map(|offset| offset.map(|offset| offset as u64)),
        }))
    }

    async fn ack(&self, acks: Vec<(Phone, Cursor)>) -> Result<(), StoreError> {
        let call = self.call("ack")?;
        // What is behind it lives half as long: nothing that was acknowledged comes back when this goes.
        let ttl_s = ttl_s(self.options.stream_ttl_ms().saturating_mul(2));
        let mut writes = Vec::with_capacity(acks.len());
        for (of, cursor) in acks {
            let (of, epoch) = (phone(of), epoch(cursor.epoch));
            let reached = Lane::ALL.into_iter().filter_map(|lane| Some((lane, cursor.offset(lane)?)));
            let before = writes.len();
            // The offset is the write's timestamp too, so a lower one that comes later changes nothing.
            writes.extend(reached.map(|(lane, at)| {
                Write::new(call.statements().ack(lane), (of, epoch, integer(at), highest_wins(at), ttl_s), 0)
            }));
            if writes.len() == before {
                writes.push(Write::new(&call.statements().ack_epoch, (of, epoch, ttl_s), 0));
            }
        }
        call.write(writes).await
    }

    /// Rows go by themselves.
    async fn trim(&self, _now: Timestamp) -> Result<usize, StoreError> {
        self.call("trim_streams").map(|_| 0)
    }
}

/// Reads the ids of the range a page at a time, then those of the lane in earlier epochs.
async fn stands_before(call: &Call<'_>, earlier: Earlier) -> Result<bool, StoreError> {
    let Earlier { phone: of, position, id, from } = earlier;
    let (of, id) = (phone(of), Uuid::from(id));
    let (mut in_epoch, mut from, mut below) = (epoch(position.epoch), integer(from), integer(position.offset));
    let searches_epochs = from == 0;
    loop {
        while from < below {
            let key = (of, in_epoch, lane(position.lane), from, below, PAGE_ROWS as i32);
            let rows = call.read(&call.statements().ids_between, key).await?;
            let ids = call.rows(&rows, |(offset, id): (i64, Uuid)| Ok((offset, id)))?;
            if ids.iter().any(|(_, found)| *found == id) {
                return Ok(true);
            }
            match ids.last() {
                Some((last, _)) if ids.len() == PAGE_ROWS => from = last + 1,
                _ => break,
            }
        }
        if !searches_epochs {
            return Ok(false);
        }
        match call.first::<(i32,)>(&call.statements().epoch_before, (of, in_epoch)).await? {
            Some((older,)) => (in_epoch, from, below) = (older, 0, i64::MAX),
            None => return Ok(false),
        }
    }
}

/// A lane's partition, with the highest offset of each span of time that a batch has rows of.
struct Marks {
    lane: (Epoch, Lane, u32),
    highest: SmallVec<[(Timestamp, u64); 2]>,
}

impl Marks {
    fn of(self, call: &Call<'_>) -> impl Iterator<Item = Write> {
        let (of, in_lane, partition) = self.lane;
        self.highest.into_iter().map(move |(ends_at, highest)| {
            let (key, offset) = ((epoch(of), lane(in_lane), partition as i32), integer(highest));
            let values = (key.0, key.1, key.2, time(ends_at), offset, offset, highest_wins(highest));
            Write::new(&call.statements().mark, values, 0)
        })
    }
}

impl Cql {
    /// The rows as writes, sorted by phone. A reader takes what it sees of a lane for all there is before it, so the rows of
    /// one phone become visible together; where they are too many for one request, one round after the other.
    fn rounds(&self, call: &Call<'_>, rows: &[StreamRow]) -> Vec<Vec<Write>> {
        let now = self.clock.now();
        let kept_ms = self.options.stream_ttl_ms().saturating_add(self.options.mark_span_ms());
        let of_phones = rows.chunk_by(|a, b| a.phone == b.phone);
        rounds(of_phones.map(|rows| rows.iter().map(|row| ((), insert(call, row, kept_ms, now)))), call.limits())
    }

    /// What a batch says of the lanes it was read from: few, so searched one by one.
    fn marks(&self, partition: u32, rows: &[StreamRow]) -> SmallVec<[Marks; 2]> {
        let span_ms = self.options.mark_span_ms();
        let mut all = SmallVec::<[Marks; 2]>::new();
        for StreamRow { position: StreamPosition { epoch, lane, offset }, at, .. } in rows {
            let lane = (*epoch, *lane, partition);
            let ends_at = (at.as_millis().div_euclid(span_ms) + 1).saturating_mul(span_ms);
            let ends_at = Timestamp::from_millis(ends_at);
            let place = all.iter().position(|marks| marks.lane == lane).unwrap_or_else(|| {
                all.push(Marks { lane, highest: SmallVec::new() });
                all.len() - 1
            });
            let highest = &mut all[place].highest;
            match highest.iter_mut().find(|(ends, _)| *ends == ends_at) {
                Some((_, known)) => *known = (*known).max(*offset),
                None => highest.push((ends_at, *offset)),
            }
        }
        all
    }

    /// Epochs that this process has not written down yet.
    fn new_epochs(&self, rows: &[StreamRow]) -> Vec<Epoch> {
        let known = self.epochs.lock();
        let mut new: Vec<_> = rows.iter().map(|row| row.position.epoch).filter(|of| !known.contains(of)).collect();
        new.sort_unstable();
        new.dedup();
        new
    }
}

fn insert(call: &Call<'_>, row: &StreamRow, kept_ms: i64, now: Timestamp) -> Write {
    let StreamPosition { epoch: of, lane: in_lane, offset } = row.position;
    let ttl_s = ttl_s(row.at.plus_millis(kept_ms).millis_since(now));
    let (id, at, expires_at) = (Uuid::from(row.id), time(row.at), optional_time(row.expires_at));
    let key = (phone(row.phone), epoch(of), lane(in_lane), integer(offset));
    let values = (key.0, key.1, key.2, key.3, id, at, expires_at, row.value.clone(), ttl_s);
    Write::new(&call.statements().append, values, row.value.len())
}

/// The rows of a phone behind a cursor: those of its epoch by lane, and those of newer epochs.
struct Fetched {
    lanes: [VecDeque<StreamRow>; 4],
    newer: Vec<StreamRow>,
    /// Whether `newer` is all there is.
    complete: bool,
}

/// At most `limit` rows of each lane. The slice of the last lane runs on over the newer epochs, so that one round trip
/// tells whether there are any.
async fn fetch(call: &Call<'_>, of: Phone, after: Cursor, limit: usize) -> Result<Fetched, StoreError> {
    let rows = i32::try_from(limit).unwrap_or(i32::MAX);
    let (key, first) = (phone(of), epoch(after.epoch));
    let behind = |lane: Lane| after.offset(lane).map_or(-1, integer);
    let slice = async |in_lane: Lane| {
        let bounds = (key, first, lane(in_lane), behind(in_lane), rows);
        call.read(&call.statements().lane_rows, bounds).await
    };
    let last = async {
        let bounds = (key, first, lane(Lane::Bulk), behind(Lane::Bulk), rows);
        call.read(&call.statements().rows_behind, bounds).await
    };
    let (high, normal, low, last) = tokio::try_join!(slice(Lane::High), slice(Lane::Normal), slice(Lane::Low), last)?;
    let read = |rows: &QueryRowsResult| stream_rows(call, of, rows);
    let mut bulk = read(&last)?;
    let complete = bulk.len() < limit;
    let newer = bulk.split_off(bulk.partition_point(|row| row.position.epoch <= after.epoch));
    let lanes = [read(&high)?.into(), read(&normal)?.into(), read(&low)?.into(), bulk.into()];
    Ok(Fetched { lanes, newer, complete })
}

fn stream_rows(call: &Call<'_>, of: Phone, rows: &QueryRowsResult) -> Result<Vec<StreamRow>, StoreError> {
    type Row = (i32, i8, i64, Uuid, CqlTimestamp, Option<CqlTimestamp>, Bytes);
    call.rows(rows, |(epoch, lane, offset, id, at, expires_at, value): Row| {
        let lane = Lane::from_index(lane as usize).ok_or_else(|| format!("there is no lane {lane}"))?;
        Ok(StreamRow {
            phone: of,
            position: StreamPosition { epoch: Epoch(epoch as u32), lane, offset: offset as u64 },
            id: MessageId::try_from(id).map_err(|error| error.to_string())?,
            at: timestamp(at),
            expires_at: expires_at.map(columns::timestamp),
            value,
        })
    })
}

fn by_lane(rows: Vec<StreamRow>) -> [VecDeque<StreamRow>; 4] {
    let mut lanes = <[VecDeque<StreamRow>; 4]>::default();
    for row in rows {
        lanes[row.position.lane.index()].push_back(row);
    }
    lanes
}

/// Adds rows of one epoch, always from the lane whose next row is the oldest, until the page is full.
fn merge(mut lanes: [VecDeque<StreamRow>; 4], limit: usize, page: &mut StreamPage) {
    let oldest = |lanes: &[VecDeque<StreamRow>; 4]| {
        let next = (0..lanes.len()).filter_map(|lane| lanes[lane].front().map(|row| (row.at, lane)));
        next.min().map(|(_, lane)| lane)
    };
    while let Some(lane) = oldest(&lanes) {
        if page.rows.len() == limit {
            page.more = true;
            return;
        }
        page.rows.extend(lanes[lane].pop_front());
    }
}
