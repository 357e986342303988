//! What was taken back: the whole of `cancellations`, in the memory of every process that may show a message to somebody.
//!
//! [`follow`](Cancelled::follow) reads the topic to its end before it returns, so nothing opens before everything that was
//! taken back is known; from then on a cancellation takes effect here as soon as it is read. An id is forgotten when what
//! it names cannot be shown any more, by its own age: about 16 bytes each until then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ahash::AHashSet;
use eshaar_model::{BroadcastId, Clock, MessageId, Timestamp};
use eshaar_service::metrics::CANCELLATIONS;
use eshaar_service::workers;
use parking_lot::RwLock;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{Log, LogError, Reader, Record, Topic};

/// Records taken at once.
const BATCH: usize = 1_000;

/// How long a partition that has not been read to its end may give nothing before it is looked at anew.
const STALLED: Duration = Duration::from_secs(10);

/// Wait before reading is tried again.
const RETRY: Duration = Duration::from_millis(500);

const DAY_MS: i64 = 24 * 3600 * 1000;

/// Fewer ids of a day than this are not worth sorting.
const SORT_FROM: usize = 1_024;

/// What was taken back, as far as this process has read.
#[derive(Debug)]
pub struct Cancelled {
    clock: Clock,
    /// By the day that the id itself was made on: one look-up, and what is too old goes a day at a time.
    days: RwLock<BTreeMap<i64, Day>>,
    /// Mostly none, and then nothing is locked.
    count: AtomicUsize,
}

/// The ids of one day: sorted, and a few that are not sorted in yet.
#[derive(Debug, Default)]
struct Day {
    sorted: Vec<MessageId>,
    recent: AHashSet<MessageId>,
}

impl Day {
    fn has(&self, id: MessageId) -> bool {
        self.recent.contains(&id) || self.sorted.binary_search(&id).is_ok()
    }

    fn enter(&mut self, id: MessageId) -> bool {
        if self.has(id) {
            return false;
        }
        self.recent.insert(id);
        if self.recent.len() > SORT_FROM.max(self.sorted.len() / 8) {
            self.sorted.reserve_exact(self.recent.len());
            self.sorted.extend(std::mem::take(&mut self.recent));
            self.sorted.sort_unstable();
        }
        true
    }

    fn len(&self) -> usize {
        self.sorted.len() + self.recent.len()
    }
}

impl Cancelled {
    /// Nothing is taken back.
    pub fn none(clock: Clock) -> Self {
        Self { clock, days: RwLock::default(), count: AtomicUsize::new(0) }
    }

    /// Reads all of `cancellations`, and goes on reading until `shutdown`. Returns when what stood there at the call is
    /// known.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn follow(log: Arc<dyn Log>, clock: Clock, shutdown: CancellationToken) -> Result<Arc<Self>, LogError> {
        let cancelled = Arc::new(Self::none(clock));
        let mut readers = Vec::new();
        for partition in 0..log.partitions(Topic::Cancellations) {
            readers.push(cancelled.read_to_end(&*log, partition).await?);
        }
        tracing::info!(cancellations = cancelled.len(), "loaded the cancellations");
        for reader in readers {
            let (cancelled, log, shutdown) = (Arc::clone(&cancelled), Arc::clone(&log), shutdown.clone());
            tokio::spawn(workers::guarded("cancellations", async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = cancelled.read_on(&*log, reader) => {}
                }
            }));
        }
        Ok(cancelled)
    }

    /// Whether the message, or the broadcast, of this id was taken back.
    pub fn covers(&self, id: MessageId) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.days.read().get(&day(id)).is_some_and(|day| day.has(id))
    }

    /// Whether a message was taken back, itself or with the broadcast that it is part of.
    pub fn takes(&self, id: MessageId, broadcast: Option<BroadcastId>) -> bool {
        self.covers(id) || broadcast.is_some_and(|broadcast| self.covers(broadcast.into()))
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes note of one.
    pub fn enter(&self, id: MessageId) {
        self.enter_all([id].into_iter());
    }

    async fn read_to_end(&self, log: &dyn Log, partition: u32) -> Result<Box<dyn Reader>, LogError> {
        let bounds = log.bounds(Topic::Cancellations, partition).await?;
        let mut reader = log.read(Topic::Cancellations, partition, bounds.start).await?;
        while reader.next_offset() < bounds.end {
            if let Ok(ready) = timeout(STALLED, reader.ready()).await {
                ready?;
                self.take(&reader.take(BATCH));
            } else {
                // What stood there may have gone in the meantime.
                let start = log.bounds(Topic::Cancellations, partition).await?.start;
                reader = log.read(Topic::Cancellations, partition, reader.next_offset().max(start)).await?;
            }
        }
        Ok(reader)
    }

    async fn read_on(&self, log: &dyn Log, mut reader: Box<dyn Reader>) {
        loop {
            match reader.ready().await {
                Ok(()) => self.take(&reader.take(BATCH)),
                Err(LogError::Closed) => return,
                Err(error) => {
                    let (topic, partition) = reader.source();
                    tracing::warn!(%topic, partition, %error, "cannot be read; trying again");
                    tokio::time::sleep(RETRY).await;
                    if let Ok(again) = log.read(topic, partition, reader.next_offset()).await {
                        reader = again;
                    }
                }
            }
        }
    }

    fn take(&self, records: &[Record]) {
        self.enter_all(records.iter().filter_map(|record| {
            let id = std::str::from_utf8(&record.key).ok()?.parse().ok();
            if id.is_none() {
                let (partition, offset) = (record.position.partition, record.position.offset);
                tracing::error!(partition, offset, "a cancellation whose key is no id takes nothing back");
            }
            id
        }));
    }

    fn enter_all(&self, ids: impl Iterator<Item = MessageId>) {
        let oldest = oldest_day(self.clock.now());
        let mut days = self.days.write();
        for id in ids.filter(|id| day(*id) >= oldest) {
            if days.entry(day(id)).or_default().enter(id) {
                self.count.fetch_add(1, Ordering::AcqRel);
            }
        }
        while let Some(entry) = days.first_entry().filter(|entry| *entry.key() < oldest) {
            self.count.fetch_sub(entry.remove().len(), Ordering::AcqRel);
        }
        drop(days);
        metrics::gauge!(CANCELLATIONS).set(self.len() as f64);
    }
}

/// The day that an id was made on, counted from the Unix epoch.
const fn day_of(at: Timestamp) -> i64 {
    at.as_millis().div_euclid(DAY_MS)
}

fn day(id: MessageId) -> i64 {
    day_of(id.made_at())
}

/// Nothing that was made before it can be shown any more: `cancellations` are kept for as long as there is anything to
/// show.
fn oldest_day(now: Timestamp) -> i64 {
    day_of(now.plus_millis(-(Topic::Cancellations.spec().kept_ms as i64)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::embedded::{EmbeddedLog, Options};
    use crate::{Headers, NewRecord};

    const START: Timestamp = Timestamp::from_millis(1_760_000_000_000);

    fn record(id: MessageId) -> NewRecord {
        NewRecord {
            topic: Topic::Cancellations,
            partition: None,
            key: Bytes::from(id.to_string()),
            value: Bytes::new(),
            headers: Headers::none(),
            timestamp: START,
        }
    }

    #[tokio::test]
    async fn everything_taken_back_before_is_known_at_once_and_what_comes_later_soon() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::manual(START));
        let log: Arc<dyn Log> = Arc::new(EmbeddedLog::open(Options::in_dir(dir.path()), clock.clone()).unwrap());
        let ids: Vec<MessageId> = (0..5_000).map(|_| MessageId::new(START)).collect();
        log.append(ids.iter().copied().map(record).collect()).await.unwrap();

        let shutdown = CancellationToken::new();
        let cancelled = Cancelled::follow(Arc::clone(&log), clock, shutdown.clone()).await.unwrap();
        assert!(ids.iter().all(|id| cancelled.covers(*id)));
        let later = MessageId::new(START);
        assert!(!cancelled.covers(later));

        // A repeat is one still, and what is no id harms nothing.
        let wrong = NewRecord { key: Bytes::from_static(b"no id"), ..record(later) };
        log.append(vec![record(ids[0]), wrong, record(later)]).await.unwrap();
        timeout(Duration::from_secs(5), async {
            while !cancelled.covers(later) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        assert_eq!(cancelled.len(), ids.len() + 1);
        shutdown.cancel();
    }

    #[test]
    fn a_message_is_taken_back_with_its_broadcast() {
        let cancelled = Cancelled::none(Clock::manual(START));
        let (one, other) = (BroadcastId::new(START), BroadcastId::new(START));
        cancelled.enter(one.into());
        let id = MessageId::of_recipient(one, 7, START);
        assert!(cancelled.takes(id, Some(one)));
        assert!(!cancelled.takes(id, None) && !cancelled.takes(id, Some(other)));
    }

    #[test]
    fn what_cannot_be_shown_any_more_is_forgotten() {
        let clock = Clock::manual(START);
        let cancelled = Cancelled::none(clock.clone());
        let (old, new) = (MessageId::new(START), MessageId::new(START.plus_millis(40 * DAY_MS)));
        cancelled.enter(old);
        clock.advance_millis(62 * DAY_MS);
        cancelled.enter(new);
        assert!(cancelled.covers(old) && cancelled.covers(new));
        clock.advance_millis(2 * DAY_MS);
        cancelled.enter(new);
        assert_eq!((cancelled.covers(old), cancelled.covers(new), cancelled.len()), (false, true, 1));
    }

    #[test]
    fn a_million_take_about_their_own_bytes() {
        let cancelled = Cancelled::none(Clock::manual(START));
        cancelled.enter_all((0..1_000_000).map(|_| MessageId::new(START)));
        let days = cancelled.days.read();
        let day = &days[&day_of(START)];
        assert_eq!(day.len(), 1_000_000);
        let bytes = day.sorted.capacity() * 16 + day.recent.capacity() * 17;
        assert!(bytes < 28 << 20, "{bytes}");
    }
}
