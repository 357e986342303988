//! Carries each message to its recipient: into the stream first, then, as a hint, to the gateways that have them.
//!
//! Reads the four lanes, co-partitioned; writes streams in the store (key: phone and log position), `deliveries` (the
//! partition is a gateway's slot). Invariants:
//! - the row of a record is the same row whoever writes it, however often;
//! - a message stands in a lane of a stream once: repeats are dropped before the append ([`window`](crate::window));
//! - what was taken back, or has expired, is not appended;
//! - it appends first and asks presence after, so that a session that registers in between reads the stream;
//! - a store that does not answer holds the partition: whether it has the rows is unknown, so they are never given up;
//! - a row that the store refuses is tried again from the retry topics, and later ones of its phone and lane wait for it.

#[cfg(test)]
mod impaired;
mod recovery;
mod repeats;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use async_trait::async_trait;
use eshaar_model::{Clock, Lane, Phone, Principal, StreamPosition, Timestamp};
use eshaar_presence::{Presence, Slots};
use eshaar_schemas::{Codecs, Delivery, EncodeError, Hint, MessageHint};
use eshaar_service::metrics::{CANCELLED, EXPIRED, ROUTE_HINTS};
use eshaar_store::{Store, StoreError, StreamRow};
use eshaar_topics::flow::{self, Envelope, HeaderError};
use eshaar_topics::{
    Cancelled, Gap, Log, LogError, NewRecord, Outcome, Received, Record, Retries, Stage, StageError, Topic, headers,
};
use futures_util::future::try_join_all;
use metrics::counter;
use serde::Deserialize;

use crate::previous::Previous;
use crate::whereabouts::Whereabouts;
use crate::window::Window;
use crate::{pause, pause_if_stale};

/// Records that are read at once when a window is read back.
const READ_BACK: usize = 1_000;

/// Newest records that say of which time a partition is.
const NEWEST: u64 = 101;

/// How long the log may take to give the next records of a window that is read back.
const READ_BACK_LIMIT: Duration = Duration::from_secs(10);

/// A stream of one lane.
type OfLane = (Phone, Lane);

/// How messages are carried to their recipients.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Of records that wait in all lanes, how many are taken of high, normal, low and bulk in turn. Zero counts as one: no
    /// lane starves.
    pub weights: [u32; 4],
    /// How long an id is kept in memory to find repeats, in milliseconds by this process's clock; older ones are looked for
    /// in the stream.
    pub window_ms: u64,
    /// Most ids in the window of one lane's partition: about 60 bytes each.
    pub window_ids: usize,
    /// Streams of a partition whose last offset is kept at hand: about 60 bytes each.
    pub previous_streams: usize,
    /// How long is waited when the store does not answer, in milliseconds.
    pub pause_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { weights: [8, 4, 2, 1], window_ms: 120_000, window_ids: 250_000, previous_streams: 50_000, pause_ms: 200 }
    }
}

/// What the stage reads and writes besides its records.
#[derive(Clone)]
pub struct Ports {
    /// To read windows back.
    pub log: Arc<dyn Log>,
    /// The streams.
    pub store: Store,
    /// Who is connected where.
    pub presence: Arc<dyn Presence>,
    /// What was taken back.
    pub cancelled: Arc<Cancelled>,
}

/// The stage.
pub struct Route {
    ports: Ports,
    codecs: Codecs,
    clock: Clock,
    options: Options,
    /// Where hints go.
    whereabouts: Whereabouts,
}

/// What is remembered of a partition number.
pub struct Partition {
    number: u32,
    windows: [Window; 4],
    previous: Previous<OfLane>,
}

impl Route {
    /// The stage.
    pub fn new(ports: Ports, codecs: Codecs, clock: Clock, options: Options) -> Self {
        let slots = ports.log.partitions(Topic::Deliveries);
        let whereabouts = Whereabouts::new(Arc::clone(&ports.presence), clock.clone(), slots);
        Self { ports, codecs, clock, options, whereabouts }
    }
}

#[async_trait]
impl Stage for Route {
    const NAME: &'static str = "route";
    /// A lane's key is the phone.
    const RETRIES: Retries = Retries::Ordered(Topic::RETRY_ROUTE);
    type Partition = Partition;

    fn inputs(&self) -> Vec<(Topic, u32)> {
        Lane::ALL.into_iter().map(Topic::of_lane).zip(self.options.weights).collect()
    }

    async fn open(&self, partition: u32, next: &[(Topic, u64)]) -> Result<Partition, StageError> {
        let mut windows = Vec::with_capacity(Lane::ALL.len());
        for lane in Lane::ALL {
            let topic = Topic::of_lane(lane);
            let next = next.iter().find(|(of, _)| *of == topic).map_or(0, |(_, offset)| *offset);
            let read = self.read_back(topic, partition, next).await;
            windows.push(read.map_err(|error| StageError(format!("{topic}, partition {partition}: {error}")))?);
        }
        let windows = windows.try_into().map_err(|_| StageError("a lane is missing".to_owned()))?;
        Ok(Partition { number: partition, windows, previous: Previous::new(self.options.previous_streams) })
    }

    async fn handle(&self, partition: &mut Partition, batch: &[Received]) -> Vec<Outcome> {
        if let Some(paused) = pause_if_stale(&self.ports.cancelled, &self.clock, Self::NAME) {
            return vec![paused];
        }
        // Whatever of it was written will be written again, the same.
        self.route(partition, batch)
            .await
            .unwrap_or_else(|error| vec![pause(&self.clock, self.options.pause_ms, &error)])
    }

    async fn recover(&self, gap: Gap) -> Result<u64, StageError> {
        self.carry_on(gap).await.map_err(|error| StageError(error.to_string()))
    }

    async fn sync(&self) -> Result<(), StageError> {
        self.ports.store.engine.sync().await.map_err(|error| StageError(error.to_string()))
    }
}

/// A message on its way: its place in the batch, and its row.
struct Arrival {
    place: usize,
    row: StreamRow,
    /// The record of this message that died is in the window, and its message is not in the stream.
    is_redriven: bool,
    /// No record of the message is stamped earlier.
    first_at: Timestamp,
    /// See [`Envelope::latest`].
    latest: Timestamp,
}

impl Route {
    async fn route(&self, partition: &mut Partition, batch: &[Received]) -> Result<Vec<Outcome>, StoreError> {
        let now = self.clock.now();
        self.note_retries(batch).await?;
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(batch.len());
        let mut arrivals = Vec::with_capacity(batch.len());
        for (place, record) in batch.iter().enumerate() {
            match self.decide(record, now) {
                Ok(Decision::Append(row, first_at, latest)) => {
                    outcomes.push(Outcome::Done);
                    let is_redriven = record.headers.get(headers::REDRIVE).is_some();
                    arrivals.push(Arrival { place, row, is_redriven, first_at, latest });
                }
                Ok(Decision::Expired | Decision::Cancelled) => outcomes.push(Outcome::Done),
                Err(error) => outcomes.push(error.into()),
            }
        }
        self.drop_repeats(partition, &mut arrivals, now).await?;
        if arrivals.is_empty() {
            return Ok(outcomes);
        }
        for (place, reason) in self.append(partition.number, &mut arrivals).await? {
            outcomes[place] = Outcome::Retry { reason };
        }
        // Not before: a batch that is taken again must find the window as it was.
        for Arrival { row, latest, .. } in &arrivals {
            let window = &mut partition.windows[row.position.lane.index()];
            window.enter(row.id, row.position.offset, *latest, now);
        }
        let online = self.online(&arrivals).await;
        for (place, hints) in self.hints(&mut partition.previous, &arrivals, &online, batch, now).await {
            outcomes[place] = hints;
        }
        Ok(outcomes)
    }

    /// Has the history show how often each message of the batch was retried. Most batches have none.
    async fn note_retries(&self, batch: &[Received]) -> Result<(), StoreError> {
        for record in batch.iter().filter(|record| record.attempt.count() > 0) {
            // A record without an envelope is refused by `decide`.
            if let Ok(envelope) = Envelope::read(&record.headers) {
                self.ports.store.messages.set_retries(envelope.id, record.attempt.count().into()).await?;
            }
        }
        Ok(())
    }

    fn decide(&self, record: &Received, now: Timestamp) -> Result<Decision, Error> {
        let lane = record.position.topic.lane().ok_or(Error::NoLane)?;
        let envelope = Envelope::read(&record.headers)?;
        let phone = envelope.to.ok_or(HeaderError { name: headers::TO })?;
        if self.ports.cancelled.takes(envelope.from, envelope.id, envelope.broadcast) {
            counter!(CANCELLED, "stage" => Self::NAME).increment(1);
            return Ok(Decision::Cancelled);
        }
        match envelope.expires_at {
            Some(at) if at <= now => {
                counter!(EXPIRED, "stage" => Self::NAME).increment(1);
                // Its timer says so (`archive`).
                Ok(Decision::Expired)
            }
            expires_at => Ok(Decision::Append(
                StreamRow {
                    phone,
                    position: StreamPosition { epoch: self.ports.log.epoch(), lane, offset: record.position.offset },
                    id: envelope.id,
                    at: record.timestamp,
                    expires_at,
                    value: record.value.clone(),
                },
                envelope.first_at,
                envelope.latest(record.timestamp, now),
            )),
        }
    }

    /// Appends the rows of arrivals. Those that the store refuses, or that stand behind one of their stream that it refused,
    /// are taken out, with the reason by place: the others are there.
    async fn append(&self, number: u32, arrivals: &mut Vec<Arrival>) -> Result<Vec<(usize, String)>, StoreError> {
        let rows = arrivals.iter().map(|arrival| arrival.row.clone()).collect();
        match self.ports.store.streams.append(number, rows).await {
            Ok(()) => return Ok(Vec::new()),
            Err(StoreError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut of_streams: AHashMap<OfLane, Vec<&Arrival>> = AHashMap::new();
        for arrival in arrivals.iter() {
            of_streams.entry((arrival.row.phone, arrival.row.position.lane)).or_default().push(arrival);
        }
        let each = of_streams.into_values().map(|of_stream| self.append_in_order(number, of_stream));
        let refused: Vec<(usize, String)> = try_join_all(each).await?.into_iter().flatten().collect();
        arrivals.retain(|arrival| refused.iter().all(|(place, _)| *place != arrival.place));
        Ok(refused)
    }

    /// Appends the rows of one stream one after the other, up to the first that is refused.
    async fn append_in_order(&self, number: u32, arrivals: Vec<&Arrival>) -> Result<Vec<(usize, String)>, StoreError> {
        let mut left = arrivals.into_iter();
        while let Some(Arrival { place, row, .. }) = left.next() {
            match self.ports.store.streams.append(number, vec![row.clone()]).await {
                Ok(()) => {}
                Err(error @ StoreError::Refused { .. }) => {
                    let behind = left.map(|arrival| (arrival.place, "stands behind one that was refused".to_owned()));
                    return Ok(std::iter::once((*place, error.to_string())).chain(behind).collect());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Vec::new())
    }

    /// The slots of each phone of the batch that is online.
    async fn online(&self, arrivals: &[Arrival]) -> AHashMap<Phone, Slots> {
        let phones = arrivals.iter().map(|arrival| arrival.row.phone.into()).collect();
        let online = self.whereabouts.of(phones, Self::NAME).await;
        online.into_iter().filter_map(|(principal, slots)| Some((principal.phone()?, slots))).collect()
    }

    /// The hints that follow from what was appended, by place in the batch.
    async fn hints(
        &self,
        previous: &mut Previous<OfLane>,
        arrivals: &[Arrival],
        online: &AHashMap<Phone, Slots>,
        batch: &[Received],
        now: Timestamp,
    ) -> Vec<(usize, Outcome)> {
        let looked_up = self.look_up(previous, arrivals, online).await;
        let mut hints = Vec::with_capacity(arrivals.len());
        let mut count = 0;
        for Arrival { place, row, .. } in arrivals {
            let (stream, offset) = ((row.phone, row.position.lane), row.position.offset);
            let slots = online.get(&row.phone);
            if let Some(slots) = slots {
                let known = previous.before(stream, offset).map(|last| last as i64);
                let prev = known.or_else(|| looked_up.get(&stream).copied());
                let outcome = match self.records(row, prev, slots, &batch[*place], now) {
                    Ok(records) => {
                        count += records.len() as u64;
                        Outcome::Forward(records)
                    }
                    // It is in the stream; the hint alone is lost.
                    Err(error) => {
                        tracing::error!(stage = Self::NAME, %error, "hint cannot be written");
                        Outcome::Done
                    }
                };
                hints.push((*place, outcome));
            }
            previous.appended(stream, offset, slots.is_some());
        }
        if count > 0 {
            counter!(ROUTE_HINTS).increment(count);
        }
        hints
    }

    /// What stands before the first arrival of each online stream whose last offset is not at hand: -1 where nothing does.
    /// A stream that is not there could not be looked up: its hint says that it does not know.
    async fn look_up(
        &self,
        previous: &Previous<OfLane>,
        arrivals: &[Arrival],
        online: &AHashMap<Phone, Slots>,
    ) -> AHashMap<OfLane, i64> {
        let mut wanted: AHashMap<OfLane, StreamPosition> = AHashMap::new();
        for row in arrivals.iter().map(|arrival| &arrival.row).filter(|row| online.contains_key(&row.phone)) {
            let stream = (row.phone, row.position.lane);
            if previous.before(stream, row.position.offset).is_none() {
                wanted.entry(stream).or_insert(row.position);
            }
        }
        if wanted.is_empty() {
            return AHashMap::new();
        }
        let wanted: Vec<(Phone, StreamPosition)> =
            wanted.into_iter().map(|((phone, _), position)| (phone, position)).collect();
        match self.ports.store.streams.before(&wanted).await {
            Ok(found) => {
                let streams = wanted.into_iter().map(|(phone, position)| (phone, position.lane));
                streams.zip(found.into_iter().map(|offset| offset.map_or(-1, |offset| offset as i64))).collect()
            }
            Err(error) => {
                tracing::warn!(stage = Self::NAME, %error, "hints go out without what stands before them");
                AHashMap::new()
            }
        }
    }

    /// The hint of one row, to each gateway.
    fn records(
        &self,
        row: &StreamRow,
        prev: Option<i64>,
        slots: &Slots,
        record: &Received,
        now: Timestamp,
    ) -> Result<Vec<NewRecord>, EncodeError> {
        let principal = Principal::from(row.phone).to_string();
        let hint = MessageHint {
            epoch: row.position.epoch.0 as i32,
            lane: row.position.lane.index() as i32,
            offset: row.position.offset as i64,
            prev,
            message: row.value.clone(),
            in_conversation: false,
        };
        let value = self.codecs.encode(&Delivery { principal: principal.clone(), hint: Hint::Message(hint) })?;
        let origin = flow::Origin::of(&record.headers);
        Ok(slots.iter().map(|slot| flow::delivery_of(value.clone(), &principal, *slot, now, origin)).collect())
    }

    /// The window of a lane's partition as it stood before `next`.
    async fn read_back(&self, topic: Topic, partition: u32, next: u64) -> Result<Window, ReadBackError> {
        let (span_ms, most) = (self.options.window_ms as i64, self.options.window_ids.max(1));
        let (log, now) = (&self.ports.log, self.clock.now());
        let bounds = log.bounds(topic, partition).await?;
        if next == 0 {
            return Ok(Window::new(span_ms, most, Timestamp::from_millis(i64::MIN)));
        }
        if next <= bounds.start {
            return Ok(Window::new(span_ms, most, now));
        }
        let from_time = self.usual_time(topic, partition, (bounds.start, next)).await?.plus_millis(-span_ms);
        let from = log.offset_at(topic, partition, from_time).await?.min(next);
        let covered_from = if from == 0 { Timestamp::from_millis(i64::MIN) } else { from_time };
        let mut window = Window::new(span_ms, most, covered_from);
        let mut reader = log.read(topic, partition, from).await?;
        while reader.next_offset() < next {
            for record in first_of(&mut *reader).await?.iter().filter(|record| record.position.offset < next) {
                if let Ok(envelope) = Envelope::read(&record.headers) {
                    let latest = envelope.latest(record.timestamp, now);
                    window.enter(envelope.id, record.position.offset, latest, now);
                }
            }
        }
        Ok(window)
    }

    /// The time of the newest records before `next`: the middle one of a few, so that a single host whose clock is wrong does
    /// not decide.
    async fn usual_time(
        &self,
        topic: Topic,
        partition: u32,
        (start, next): (u64, u64),
    ) -> Result<Timestamp, ReadBackError> {
        let now = self.clock.now();
        let mut reader = self.ports.log.read(topic, partition, next.saturating_sub(NEWEST).max(start)).await?;
        let mut times = Vec::new();
        while reader.next_offset() < next {
            let records = first_of(&mut *reader).await?;
            let before = records.iter().filter(|record| record.position.offset < next);
            times.extend(before.map(|record| record.timestamp.min(now)));
        }
        times.sort_unstable();
        Ok(times.get(times.len() / 2).copied().unwrap_or(now))
    }
}

/// The next records of a partition; it is known that there are some.
async fn first_of(reader: &mut dyn eshaar_topics::Reader) -> Result<Vec<Record>, ReadBackError> {
    tokio::time::timeout(READ_BACK_LIMIT, reader.ready()).await.map_err(|_| ReadBackError::Slow)??;
    Ok(reader.take(READ_BACK))
}

/// What is to be done with a record of a lane.
enum Decision {
    /// With the first time at which a record of the message can be stamped, and the latest that is known.
    Append(StreamRow, Timestamp, Timestamp),
    Expired,
    Cancelled,
}

/// A record that cannot be carried on.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Headers(#[from] HeaderError),
    #[error("it was read from a topic that is no lane")]
    NoLane,
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::Headers(_) => "headers",
            Error::NoLane => "no_lane",
        };
        Self::Dead { code, reason: error.to_string() }
    }
}

/// A window could not be read back.
#[derive(Debug, thiserror::Error)]
enum ReadBackError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the log gave no record for {} s", READ_BACK_LIMIT.as_secs())]
    Slow,
}
