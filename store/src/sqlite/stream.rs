//! Streams, acked positions, heads, floors.
//!
//! What was kept for the stream's time to live goes, a slice at a time, once a further thirtieth of it has passed: until
//! then whoever asked for the floor can still read what lies above it.

use std::sync::Arc;

use async_trait::async_trait;
use eshaar_model::{Cursor, Epoch, Lane, MessageId, Phone, StreamPosition, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Result, Row, Rows, Transaction, TransactionBehavior, params};
use smallvec::SmallVec;

use super::columns::{bytes, identity, integer, lane, optional_timestamp, phone, timestamp, unsigned};
use super::recent::{Entry, Recent};
use super::writer::Tables;
use super::{Operation, Sqlite};
use crate::{Earlier, StoreError, StreamPage, StreamRow, StreamStore};

/// Most rows of a page.
const PAGE_ROWS: usize = 1_000;
/// Most rows that one trim lets go of: some milliseconds of the writer's time.
const TRIM_ROWS: u32 = 1_000;
/// Time marks in a stream's time to live.
const MARKS: i64 = 30;

#[async_trait]
impl StreamStore for Sqlite {
    async fn append(&self, partition: u32, rows: Vec<StreamRow>) -> Result<(), StoreError> {
        let span_ms = self.mark_span_ms();
        let weight = rows.len();
        self.write(Operation::new("append"), weight, move |tables| append(tables, partition, &rows, span_ms)).await
    }

    async fn read(&self, phone: Phone, after: Cursor, limit: usize) -> Result<StreamPage, StoreError> {
        let limit = limit.clamp(1, PAGE_ROWS);
        let recent = Arc::clone(&self.recent);
        self.query(Operation::new("read_stream"), move |db| read(db, &recent, phone, after, limit)).await
    }

    async fn before(&self, of: &[(Phone, StreamPosition)]) -> Result<Vec<Option<u64>>, StoreError> {
        let (of, recent) = (of.to_vec(), Arc::clone(&self.recent));
        self.query(Operation::new("find_before"), move |db| before(db, &recent, &of)).await
    }

    async fn stands_before(&self, of: &[Earlier]) -> Result<Vec<bool>, StoreError> {
        let (of, recent) = (of.to_vec(), Arc::clone(&self.recent));
        self.query(Operation::new("find_repeats"), move |db| stands_before(db, &recent, &of)).await
    }

    async fn head(&self, epoch: Epoch, lane: Lane, partition: u32) -> Result<Option<u64>, StoreError> {
        self.query(Operation::new("read_head"), move |db| {
            db.prepare_cached("SELECT offset FROM head WHERE epoch = ?1 AND lane = ?2 AND partition = ?3")?
                .query_row(params![epoch.0, lane as u8, partition], |row| unsigned(row, 0))
                .optional()
        })
        .await
    }

    async fn newest_epoch(&self) -> Result<Option<Epoch>, StoreError> {
        self.query(Operation::new("read_epoch"), |db| {
            let newest: Option<u32> =
                db.prepare_cached("SELECT max(epoch) FROM head")?.query_row([], |row| row.get(0))?;
            Ok(newest.map(Epoch))
        })
        .await
    }

    async fn floor(&self, epoch: Epoch, lane: Lane, partition: u32, now: Timestamp) -> Result<u64, StoreError> {
        let expired = now.plus_millis(-self.stream_ttl_ms());
        self.query(Operation::new("read_floor"), move |db| floor(db, epoch, lane, partition, expired)).await
    }

    async fn acked(&self, phone: Phone) -> Result<Option<Cursor>, StoreError> {
        self.query(Operation::new("read_acked"), move |db| {
            db.prepare_cached("SELECT epoch, high, normal, low, bulk FROM acked WHERE phone = ?1")?
                .query_row([integer(phone.digits())], acked)
                .optional()
        })
        .await
    }

    async fn ack(&self, acks: Vec<(Phone, Cursor)>) -> Result<(), StoreError> {
        self.write(Operation::new("ack"), acks.len(), move |tables| ack(&tables.db, &acks)).await
    }

    async fn trim(&self, now: Timestamp) -> Result<usize, StoreError> {
        let expired = now.plus_millis(-self.stream_ttl_ms()).plus_millis(-self.mark_span_ms());
        self.write(Operation::new("trim_streams"), TRIM_ROWS as usize, move |tables| trim(tables, expired)).await
    }
}

impl Sqlite {
    fn stream_ttl_ms(&self) -> i64 {
        i64::try_from(self.options.stream_ttl_s.saturating_mul(1_000)).unwrap_or(i64::MAX)
    }

    /// The span of time that one mark stands for.
    fn mark_span_ms(&self) -> i64 {
        (self.stream_ttl_ms() / MARKS).max(1)
    }
}

/// The highest offset of each (epoch, lane) and each (epoch, lane, mark) in a batch: few, so searched one by one.
type Highest<K, V = u64> = SmallVec<[(K, V); 4]>;

/// Whether `offset` is higher than what was known of `key`.
fn raise<K: PartialEq, V: PartialOrd + Copy>(highest: &mut Highest<K, V>, key: K, offset: V) -> bool {
    match highest.iter_mut().find(|(known, _)| *known == key) {
        Some((_, known)) if *known >= offset => return false,
        Some((_, known)) => *known = offset,
        None => highest.push((key, offset)),
    }
    true
}

/// The heads of the lanes that `rows` are of, as they are before them.
fn heads_before(db: &Connection, partition: u32, rows: &[StreamRow]) -> Result<Highest<(Epoch, Lane), Option<u64>>> {
    let mut heads = Highest::new();
    let mut head = db.prepare_cached("SELECT offset FROM head WHERE epoch = ?1 AND lane = ?2 AND partition = ?3")?;
    for StreamPosition { epoch, lane, .. } in rows.iter().map(|row| row.position) {
        if !heads.iter().any(|(known, _)| *known == (epoch, lane)) {
            let key = params![epoch.0, lane as u8, partition];
            heads.push(((epoch, lane), head.query_row(key, |row| unsigned(row, 0)).optional()?));
        }
    }
    Ok(heads)
}

fn append(tables: &mut Tables, partition: u32, rows: &[StreamRow], span_ms: i64) -> Result<()> {
    let Tables { db, index } = tables;
    let mut heads = heads_before(db, partition, rows)?;
    let mut marks = Highest::<(Epoch, Lane, i64)>::new();
    let mut body = db.prepare_cached(
        "INSERT INTO stream_body (phone, epoch, lane, offset, partition, at, id, expires_at, value)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    for row in rows {
        let StreamRow { phone, position, id, at, expires_at, value } = row;
        let StreamPosition { epoch, lane, offset } = *position;
        let ends_at = (at.as_millis().div_euclid(span_ms) + 1).saturating_mul(span_ms);
        raise(&mut marks, (epoch, lane, ends_at), offset);
        // Above the head it is new; below, it is a replay or came late.
        if !raise(&mut heads, (epoch, lane), Some(offset)) && index.holds(db, &(*phone, *position))? {
            continue;
        }
        let (digits, expires_at) = (integer(phone.digits()), expires_at.map(Timestamp::as_millis));
        let (lane, offset) = (lane as u8, integer(offset));
        let (millis, id_bytes) = (at.as_millis(), id.as_bytes());
        let values = params![digits, epoch.0, lane, offset, partition, millis, id_bytes, expires_at, &value[..]];
        let body = body.insert(values)?;
        index.add((*phone, *position), Entry { at: *at, id: *id, body });
    }
    let mut head = db.prepare_cached(
        "INSERT INTO head (epoch, lane, partition, offset) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET offset = excluded.offset WHERE offset < excluded.offset",
    )?;
    for ((epoch, lane), offset) in heads {
        head.execute(params![epoch.0, lane as u8, partition, offset.map(integer)])?;
    }
    let mut mark = db.prepare_cached(
        "INSERT INTO mark (epoch, lane, partition, ends_at, offset) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT DO UPDATE SET offset = excluded.offset WHERE offset < excluded.offset",
    )?;
    for ((epoch, lane, ends_at), offset) in marks {
        mark.execute(params![epoch.0, lane as u8, partition, ends_at, integer(offset)])?;
    }
    Ok(())
}

/// A page, within one snapshot.
fn read(db: &Connection, recent: &Recent, phone: Phone, after: Cursor, limit: usize) -> Result<StreamPage> {
    let recent = recent.behind(phone, after, limit + 1);
    let snapshot = Transaction::new_unchecked(db, TransactionBehavior::Deferred)?;
    let mut next_epoch = snapshot.prepare_cached("SELECT min(epoch) FROM stream WHERE phone = ?1 AND epoch > ?2")?;
    let mut page = StreamPage::default();
    let mut after = after;
    loop {
        merge_lanes(&snapshot, &recent, phone, after, limit, &mut page)?;
        if page.more {
            break;
        }
        let stored: Option<u32> =
            next_epoch.query_row(params![integer(phone.digits()), after.epoch.0], |row| row.get(0))?;
        let recent = recent.iter().map(|(position, _)| position.epoch).find(|epoch| *epoch > after.epoch);
        match stored.map(Epoch).into_iter().chain(recent).min() {
            Some(newer) => after = Cursor::start(newer),
            None => break,
        }
    }
    Ok(page)
}

macro_rules! read_lane {
    ($lane:literal) => {
        concat!(
            "SELECT s.lane, s.offset, s.at, s.id, b.expires_at, b.value
             FROM stream s JOIN stream_body b ON b.body = s.body
             WHERE s.phone = ?1 AND s.epoch = ?2 AND s.lane = ",
            $lane,
            " AND s.offset > ?3 ORDER BY s.offset"
        )
    };
}

/// A statement for each lane, so that all four can be stepped side by side.
const READ_LANE: [&str; 4] = [read_lane!(0), read_lane!(1), read_lane!(2), read_lane!(3)];

/// Adds the rows of one epoch behind `after`, always from the lane whose next row is the oldest, until the page is full.
fn merge_lanes(
    db: &Connection,
    recent: &[(StreamPosition, Entry)],
    phone: Phone,
    after: Cursor,
    limit: usize,
    page: &mut StreamPage,
) -> Result<()> {
    let mut statements = SmallVec::<[_; 4]>::new();
    for sql in READ_LANE {
        statements.push(db.prepare_cached(sql)?);
    }
    let mut lanes = SmallVec::<[_; 4]>::new();
    for (statement, lane) in statements.iter_mut().zip(Lane::ALL) {
        let behind = after.offset(lane).map_or(-1, integer);
        let stored = statement.query(params![integer(phone.digits()), after.epoch.0, behind])?;
        let recent = of_lane(recent, after.epoch, lane);
        let mut rows = LaneRows { db, phone, epoch: after.epoch, stored, next_stored: None, recent };
        rows.step()?;
        if let Some(next) = rows.next()? {
            lanes.push((next, rows));
        }
    }
    while let Some(oldest) = (0..lanes.len()).min_by_key(|lane| lanes[*lane].0.at) {
        if page.rows.len() == limit {
            page.more = true;
            return Ok(());
        }
        let (next, rows) = &mut lanes[oldest];
        match rows.next()? {
            Some(row) => page.rows.push(std::mem::replace(next, row)),
            None => page.rows.push(lanes.remove(oldest).0),
        }
    }
    Ok(())
}

/// Entries are in the order of their positions, so those of a lane stand together.
fn of_lane(entries: &[(StreamPosition, Entry)], epoch: Epoch, lane: Lane) -> &[(StreamPosition, Entry)] {
    let first = entries.partition_point(|(position, _)| (position.epoch, position.lane) < (epoch, lane));
    let entries = &entries[first..];
    &entries[..entries.partition_point(|(position, _)| (position.epoch, position.lane) == (epoch, lane))]
}

/// The rows of one lane, from the table and from what is not yet in it, by offset.
struct LaneRows<'a> {
    db: &'a Connection,
    phone: Phone,
    epoch: Epoch,
    stored: Rows<'a>,
    next_stored: Option<StreamRow>,
    recent: &'a [(StreamPosition, Entry)],
}

impl LaneRows<'_> {
    fn next(&mut self) -> Result<Option<StreamRow>> {
        while let Some(((position, entry), rest)) = self.recent.split_first() {
            match &self.next_stored {
                Some(stored) if stored.position < *position => break,
                Some(stored) if stored.position == *position => self.recent = rest,
                _ => {
                    self.recent = rest;
                    if let Some(row) = recent_row(self.db, self.phone, *position, *entry)? {
                        return Ok(Some(row));
                    }
                }
            }
        }
        let stored = self.next_stored.take();
        if stored.is_some() {
            self.step()?;
        }
        Ok(stored)
    }

    fn step(&mut self) -> Result<()> {
        self.next_stored = match self.stored.next()? {
            Some(row) => Some(stored_row(row, self.phone, self.epoch)?),
            None => None,
        };
        Ok(())
    }
}

fn stored_row(row: &Row<'_>, phone: Phone, epoch: Epoch) -> Result<StreamRow> {
    Ok(StreamRow {
        phone,
        position: StreamPosition { epoch, lane: lane(row, 0)?, offset: unsigned(row, 1)? },
        at: timestamp(row, 2)?,
        id: identity(row, 3, MessageId::from_bytes)?,
        expires_at: optional_timestamp(row, 4)?,
        value: bytes(row, 5)?,
    })
}

/// `None` where it was let go of since its entry was found.
fn recent_row(db: &Connection, phone: Phone, position: StreamPosition, entry: Entry) -> Result<Option<StreamRow>> {
    let Entry { at, id, body } = entry;
    db.prepare_cached("SELECT expires_at, value FROM stream_body WHERE body = ?1")?
        .query_row([body], |row| {
            Ok(StreamRow { phone, position, id, at, expires_at: optional_timestamp(row, 0)?, value: bytes(row, 1)? })
        })
        .optional()
}

fn before(db: &Connection, recent: &Recent, of: &[(Phone, StreamPosition)]) -> Result<Vec<Option<u64>>> {
    let mut highest = db.prepare_cached(
        "SELECT offset FROM stream WHERE phone = ?1 AND epoch = ?2 AND lane = ?3 AND offset < ?4
         ORDER BY offset DESC LIMIT 1",
    )?;
    of.iter()
        .map(|(phone, position)| {
            let StreamPosition { epoch, lane, offset } = position;
            let below = recent.below((*phone, *position));
            let key = params![integer(phone.digits()), epoch.0, *lane as u8, integer(*offset)];
            Ok(highest.query_row(key, |row| unsigned(row, 0)).optional()?.max(below))
        })
        .collect()
}

fn stands_before(db: &Connection, recent: &Recent, of: &[Earlier]) -> Result<Vec<bool>> {
    let mut lower = db.prepare_cached(LOWER)?;
    let mut earlier = db.prepare_cached(IN_EARLIER_EPOCHS)?;
    of.iter()
        .map(|query| {
            let Earlier { phone, position: StreamPosition { epoch, lane, offset }, id, from } = query;
            let (phone, lane) = (integer(phone.digits()), *lane as u8);
            Ok(recent.stands_before(query)
                || lower.exists(params![phone, epoch.0, lane, integer(*from), integer(*offset), id.as_bytes()])?
                || (*from == 0 && earlier.exists(params![phone, epoch.0, lane, id.as_bytes()])?))
        })
        .collect()
}

const LOWER: &str = "SELECT 1 FROM stream
     WHERE phone = ?1 AND epoch = ?2 AND lane = ?3 AND offset >= ?4 AND offset < ?5 AND id = ?6";
const IN_EARLIER_EPOCHS: &str = "SELECT 1 FROM stream WHERE phone = ?1 AND epoch < ?2 AND lane = ?3 AND id = ?4";

/// Behind what was let go of, and behind every mark whose span has wholly expired: that may go next.
fn floor(db: &Connection, epoch: Epoch, lane: Lane, partition: u32, expired: Timestamp) -> Result<u64> {
    let key = params![epoch.0, lane as u8, partition, expired.as_millis()];
    db.prepare_cached(
        "SELECT max(
             coalesce((SELECT floor FROM head WHERE epoch = ?1 AND lane = ?2 AND partition = ?3), 0),
             coalesce((SELECT max(offset) + 1 FROM mark
                       WHERE epoch = ?1 AND lane = ?2 AND partition = ?3 AND ends_at <= ?4), 0))",
    )?
    .query_row(key, |row| unsigned(row, 0))
}

fn acked(row: &Row<'_>) -> Result<Cursor> {
    let mut cursor = Cursor::start(Epoch(row.get(0)?));
    for lane in Lane::ALL {
        let offset: i64 = row.get(1 + lane.index())?;
        cursor.offsets[lane.index()] = u64::try_from(offset).ok();
    }
    Ok(cursor)
}

/// The furthest in each lane; an older epoch changes nothing, a newer one starts afresh: as `Cursor::max` says.
fn ack(db: &Connection, acks: &[(Phone, Cursor)]) -> Result<()> {
    let mut furthest = db.prepare_cached(
        "INSERT INTO acked (phone, epoch, high, normal, low, bulk) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT DO UPDATE SET
             epoch = excluded.epoch,
             high = CASE WHEN excluded.epoch > epoch THEN excluded.high ELSE max(high, excluded.high) END,
             normal = CASE WHEN excluded.epoch > epoch THEN excluded.normal ELSE max(normal, excluded.normal) END,
             low = CASE WHEN excluded.epoch > epoch THEN excluded.low ELSE max(low, excluded.low) END,
             bulk = CASE WHEN excluded.epoch > epoch THEN excluded.bulk ELSE max(bulk, excluded.bulk) END
         WHERE excluded.epoch >= epoch",
    )?;
    for (phone, cursor) in acks {
        let [high, normal, low, bulk] = cursor.offsets.map(|offset| offset.map_or(-1, integer));
        furthest.execute(params![integer(phone.digits()), cursor.epoch.0, high, normal, low, bulk])?;
    }
    Ok(())
}

/// Lets go of rows from before `expired`, in the order they were appended, up to the first that is younger: what stands
/// behind it was appended later still, so it waits only as long.
fn trim(tables: &mut Tables, expired: Timestamp) -> Result<usize> {
    let Tables { db, index } = tables;
    let mut oldest = db.prepare_cached(
        // Never the newest: the numbers of bodies must go on rising.
        "SELECT body, phone, epoch, lane, offset, partition, at FROM stream_body
         WHERE body < (SELECT max(body) FROM stream_body) ORDER BY body LIMIT ?1",
    )?;
    let mut drop_row =
        db.prepare_cached("DELETE FROM stream WHERE phone = ?1 AND epoch = ?2 AND lane = ?3 AND offset = ?4")?;
    let mut floors = Highest::<(Epoch, Lane, u32)>::new();
    let mut last_body = None;
    let mut trimmed = 0;
    let mut rows = oldest.query([TRIM_ROWS])?;
    while let Some(row) = rows.next()? {
        if timestamp(row, 6)? >= expired {
            break;
        }
        let (phone, epoch, lane, offset) = (phone(row, 1)?, Epoch(row.get(2)?), lane(row, 3)?, unsigned(row, 4)?);
        drop_row.execute(params![integer(phone.digits()), epoch.0, lane as u8, integer(offset)])?;
        index.remove((phone, StreamPosition { epoch, lane, offset }));
        raise(&mut floors, (epoch, lane, row.get(5)?), offset);
        last_body = Some(row.get::<_, i64>(0)?);
        trimmed += 1;
    }
    drop(rows);
    let Some(last_body) = last_body else { return Ok(0) };
    db.prepare_cached("DELETE FROM stream_body WHERE body <= ?1")?.execute([last_body])?;
    let mut raise_floor =
        db.prepare_cached("UPDATE head SET floor = max(floor, ?4) WHERE epoch = ?1 AND lane = ?2 AND partition = ?3")?;
    for ((epoch, lane, partition), offset) in floors {
        raise_floor.execute(params![epoch.0, lane as u8, partition, integer(offset) + 1])?;
    }
    // A mark below its floor has nothing more to say.
    db.prepare_cached(
        "DELETE FROM mark WHERE ends_at <= ?1 AND offset < (SELECT floor FROM head WHERE head.epoch = mark.epoch
             AND head.lane = mark.lane AND head.partition = mark.partition)",
    )?
    .execute([expired.as_millis()])?;
    Ok(trimmed)
}
