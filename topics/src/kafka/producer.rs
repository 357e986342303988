//! Appending: a batch is queued record by record, then its acknowledgements are awaited together (kafka-rules 4, 5).
//!
//! One allocation a record and one wake-up a batch: each record carries its place in the batch, the delivery report writes
//! the offset there, and the last one wakes whoever waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use eshaar_service::metrics::{LOG_APPEND_SECONDS, LOG_APPENDED};
use metrics::{Counter, Histogram, counter, histogram};
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::Statistics;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::engine;
use super::hooks::{log_error, log_line};
use super::names::Names;
use super::watch::Watch;
use crate::log::refused;
use crate::{AppendError, LogError, LogPosition, NewRecord, Topic};

/// Headers that a record of ours has, about.
const USUAL_HEADERS: usize = 10;

/// Longest wait for room before it is looked for again: librdkafka makes it a moment after the last report that tells of it.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(5);

/// No offset yet.
const NONE: i64 = -1;

type Native = ThreadedProducer<Deliveries>;
type Outgoing<'a> = BaseRecord<'a, [u8], [u8], Box<Place>>;

/// The producer of a log.
pub(super) struct Producer {
    config: ClientConfig,
    names: Arc<Names>,
    watch: Watch,
    /// Replaced when librdkafka has given up on it; empty once it is closed.
    native: Mutex<Held>,
    appended: [Counter; Topic::ALL.len()],
    seconds: Histogram,
}

/// A hold on a producer. Whoever lets go last has its own thread made for it: the drop waits for the producer's
/// (kafka-rules 13).
#[derive(Clone, Default)]
struct Held(Option<Arc<Native>>);

/// What is known of the records of an append.
struct Batch {
    offsets: Box<[AtomicI64]>,
    /// Records without an outcome, and one for whoever still queues them.
    left: AtomicUsize,
    failure: Mutex<Failure>,
    done: Mutex<Option<oneshot::Sender<()>>>,
}

/// How records of a batch failed.
#[derive(Default)]
struct Failure {
    reason: Option<String>,
    /// How many the broker refused for good.
    refused: usize,
}

/// The place of a record in its batch.
struct Place {
    batch: Arc<Batch>,
    index: usize,
}

/// Takes delivery reports.
struct Deliveries {
    /// Told for each report while somebody waits for room in the queue.
    room: Notify,
    waiting: AtomicUsize,
}

impl Batch {
    fn new(records: usize) -> (Arc<Self>, oneshot::Receiver<()>) {
        let (done, finished) = oneshot::channel();
        let batch = Self {
            offsets: (0..records).map(|_| AtomicI64::new(NONE)).collect(),
            left: AtomicUsize::new(records + 1),
            failure: Mutex::default(),
            done: Mutex::new(Some(done)),
        };
        (Arc::new(batch), finished)
    }

    fn settle(&self, records: usize) {
        if self.left.fetch_sub(records, Ordering::AcqRel) == records
            && let Some(done) = self.done.lock().take()
        {
            // An append that was given up has nobody who waits.
            let _ = done.send(());
        }
    }

    fn fail(&self, error: &KafkaError) {
        let mut failure = self.failure.lock();
        failure.refused += usize::from(is_refusal(error));
        failure.reason.get_or_insert_with(|| error.to_string());
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }

    fn stats(&self, _: Statistics) {}
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Place>;

    fn delivery(&self, result: &DeliveryResult<'_>, place: Box<Place>) {
        match result {
            Ok(message) => place.batch.offsets[place.index].store(message.offset(), Ordering::Relaxed),
            Err((error, _)) => place.batch.fail(error),
        }
        place.batch.settle(1);
        if self.waiting.load(Ordering::Acquire) > 0 {
            self.room.notify_one();
        }
    }
}

impl Producer {
    pub fn open(config: ClientConfig, names: Arc<Names>, watch: Watch) -> Result<Self, LogError> {
        let native = create(&config, &watch)?;
        Ok(Self {
            config,
            names,
            watch,
            native: Mutex::new(Held(Some(native))),
            appended: Topic::ALL.map(|topic| counter!(LOG_APPENDED, "topic" => topic.name())),
            seconds: histogram!(LOG_APPEND_SECONDS, "durability" => "replicated"),
        })
    }

    /// Appends records that were checked and have their partitions.
    pub async fn append(&self, records: Vec<NewRecord>) -> Result<Vec<LogPosition>, AppendError> {
        let begun = Instant::now();
        let headers = records.iter().map(headers_of).collect::<Result<Vec<_>, _>>()?;
        let held = self.native.lock().clone();
        let native = held.0.as_ref().ok_or(AppendError::Closed)?;
        let (batch, finished) = Batch::new(records.len());
        let queued = self.queue(native, &batch, &records, headers).await;
        batch.settle(records.len() - queued.as_ref().map_or_else(|(count, _)| *count, |()| records.len()) + 1);
        if let Err((count, error)) = queued {
            self.replace_if_dead(native);
            // Nothing of it was written where the first record was not even taken.
            return Err(if count == 0 && is_refusal(&error) { refused(error.to_string()) } else { unknown(&error) });
        }
        if finished.await.is_err() {
            return Err(AppendError::Closed);
        }
        let failure = std::mem::take(&mut *batch.failure.lock());
        if let Some(reason) = failure.reason {
            self.replace_if_dead(native);
            let all_refused = failure.refused == records.len();
            return Err(if all_refused { refused(reason) } else { AppendError::Unknown { reason } });
        }
        self.seconds.record(begun.elapsed().as_secs_f64());
        Ok(self.positions(&batch, &records))
    }

    /// Queues all of a batch, in order; waits where there is no room. Says how many it did queue when it fails.
    async fn queue(
        &self,
        native: &Native,
        batch: &Arc<Batch>,
        records: &[NewRecord],
        headers: Vec<OwnedHeaders>,
    ) -> Result<(), (usize, KafkaError)> {
        for (index, (record, headers)) in records.iter().zip(headers).enumerate() {
            let outgoing = BaseRecord {
                topic: self.names.of(record.topic),
                partition: record.partition.map(|partition| partition as i32),
                payload: Some(&record.value[..]),
                key: Some(&record.key[..]),
                timestamp: Some(record.timestamp.as_millis()),
                headers: Some(headers),
                delivery_opaque: Box::new(Place { batch: Arc::clone(batch), index }),
            };
            let sent = match native.send(outgoing) {
                Err((error, kept)) if is_full(&error) => send_when_there_is_room(native, kept).await,
                Err((error, _)) => Err(error),
                Ok(()) => Ok(()),
            };
            sent.map_err(|error| (index, error))?;
        }
        Ok(())
    }

    fn positions(&self, batch: &Batch, records: &[NewRecord]) -> Vec<LogPosition> {
        let positions = records.iter().zip(&batch.offsets).map(|(record, offset)| {
            self.appended[record.topic as usize].increment(1);
            LogPosition {
                topic: record.topic,
                partition: record.partition.unwrap_or_default(),
                offset: offset.load(Ordering::Relaxed) as u64,
            }
        });
        positions.collect()
    }

    /// A producer that librdkafka has declared dead never writes again; the next append gets another.
    fn replace_if_dead(&self, native: &Arc<Native>) {
        let Some((code, reason)) = native.client().fatal_error() else { return };
        let mut present = self.native.lock();
        if present.0.as_ref().is_none_or(|present| !Arc::ptr_eq(present, native)) {
            return;
        }
        match create(&self.config, &self.watch) {
            Ok(another) => {
                tracing::error!(?code, %reason, "the producer is dead; going on with another");
                *present = Held(Some(another));
            }
            Err(error) => tracing::error!(?code, %reason, %error, "the producer is dead, and no other could be made"),
        }
    }

    /// Records that are queued or sent, and not acknowledged.
    #[cfg(test)]
    pub fn in_flight(&self) -> i32 {
        self.native.lock().0.as_ref().map_or(0, |native| native.in_flight_count())
    }

    /// Takes nothing more in, and waits until what is queued has its outcome. Blocks.
    pub fn close(&self, timeout: Duration) {
        let held = std::mem::take(&mut *self.native.lock());
        let Some(native) = &held.0 else { return };
        if let Err(error) = native.flush(timeout) {
            tracing::error!(%error, "the log was closed before all records were acknowledged");
        }
        let left = native.in_flight_count();
        if left > 0 {
            tracing::error!(records = left, "not acknowledged when the log was closed");
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(last) = self.0.take().and_then(Arc::into_inner) else { return };
        let dropped = std::thread::Builder::new().name("kafka-drop".to_owned()).spawn(move || drop(last));
        if let Err(error) = dropped {
            tracing::error!(%error, "no thread to drop a producer on");
        }
    }
}

fn create(config: &ClientConfig, watch: &Watch) -> Result<Arc<Native>, LogError> {
    let deliveries = Deliveries { room: Notify::new(), waiting: AtomicUsize::new(0) };
    let native = config.create_with_context(deliveries).map_err(engine("make a producer"))?;
    let native = Arc::new(native);
    watch.add(&native);
    Ok(native)
}

/// Keeps that one record until it is taken. Each delivery report may have made room for it.
async fn send_when_there_is_room(native: &Native, mut kept: Outgoing<'_>) -> Result<(), KafkaError> {
    let deliveries = native.client().context();
    let _waits = Waiting::new(&deliveries.waiting);
    loop {
        let room = deliveries.room.notified();
        tokio::pin!(room);
        // Before the next try, so that a report between the two is not missed.
        room.as_mut().enable();
        match native.send(kept) {
            Err((error, back)) if is_full(&error) => kept = back,
            Err((error, _)) => return Err(error),
            Ok(()) => return Ok(()),
        }
        // Either way it is looked for again.
        let _ = timeout(LOOK_FOR_ROOM, room).await;
    }
}

/// Counted among those who wait for room, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn headers_of(record: &NewRecord) -> Result<OwnedHeaders, AppendError> {
    let mut headers = OwnedHeaders::new_with_capacity(USUAL_HEADERS);
    for (name, value) in record.headers.iter() {
        let key = std::str::from_utf8(name).ok().filter(|name| !name.contains('\0'));
        let key =
            key.ok_or_else(|| refused(format!("a record of {} has a header name that is no text", record.topic)))?;
        headers = headers.insert(Header { key, value: Some(value) });
    }
    Ok(headers)
}

fn is_full(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull)
}

/// Whether the record will never be taken, however often it is sent.
fn is_refusal(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{InvalidRecord, InvalidTimestamp, MessageSizeTooLarge, PolicyViolation};
    matches!(error.rdkafka_error_code(), Some(MessageSizeTooLarge | InvalidTimestamp | InvalidRecord | PolicyViolation))
}

fn unknown(error: &KafkaError) -> AppendError {
    AppendError::Unknown { reason: error.to_string() }
}
