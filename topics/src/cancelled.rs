//! What was taken back: the whole of `cancellations`, in the memory of every process that may show a message to somebody.
//!
//! [`follow`](Cancelled::follow) reads the topic to its end before it returns, so nothing opens before everything that was
//! taken back is known; from then on a cancellation takes effect here as soon as it is read. Whoever is about to send a
//! message asks first whether the knowledge is fresh ([`is_fresh`](Cancelled::is_fresh)). A cancellation holds for the
//! messages of the business that made it alone, so it may name an id before anybody knows whose it is. An id is forgotten
//! when what it names cannot be shown any more, by its own age: about 16 bytes each until then.

mod fresh;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use eshaar_model::{BroadcastId, Clock, MessageId, Timestamp};
use eshaar_service::metrics::{CANCELLATIONS, CANCELLATIONS_AGE};
use eshaar_service::workers;
use parking_lot::RwLock;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::fresh::Options;
use self::fresh::{Freshness, Places};
use crate::{Log, LogError, Reader, Record, Topic, headers};

/// Records taken at once.
const BATCH: usize = 1_000;

/// How long a partition that has not been read to its end may give nothing before it is looked at anew.
const STALLED: Duration = Duration::from_secs(10);

/// Wait before reading is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Shortest wait between two proofs that everything is known.
const SHORT_WAIT: Duration = Duration::from_millis(50);

const DAY_MS: i64 = 24 * 3600 * 1000;

/// Fewer ids of a day than this are not worth sorting.
const SORT_FROM: usize = 1_024;

/// What was taken back, as far as this process has read.
#[derive(Debug)]
pub struct Cancelled {
    clock: Clock,
    known: RwLock<Known>,
    /// Mostly none, and then nothing is locked.
    count: AtomicUsize,
    freshness: Freshness,
}

/// How many cancellations are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Those of one business.
    pub of_business: usize,
    /// Those of all businesses.
    pub all: usize,
    /// Businesses that have any.
    pub businesses: usize,
}

/// Cancellations by the business that made them.
#[derive(Debug, Default)]
struct Known {
    businesses: AHashMap<Box<str>, OfBusiness>,
    /// The oldest day that is kept.
    oldest: i64,
}

/// Cancellations of one business, by the day that the id itself was made on: one look-up, and what is too old goes a day at
/// a time.
#[derive(Debug, Default)]
struct OfBusiness {
    days: BTreeMap<i64, Day>,
}

impl OfBusiness {
    fn len(&self) -> usize {
        self.days.values().map(Day::len).sum()
    }
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
    /// Nothing is taken back, and nothing is followed: the knowledge is always fresh.
    pub fn none(clock: Clock) -> Self {
        let freshness = Freshness::ageless(clock.clone());
        Self { clock, known: RwLock::default(), count: AtomicUsize::new(0), freshness }
    }

    /// Reads all of `cancellations`, and goes on reading until `shutdown`. Returns when what stood there at the call is
    /// known.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn follow(
        log: Arc<dyn Log>,
        clock: Clock,
        options: &Options,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, LogError> {
        let freshness = Freshness::of(clock.clone(), options);
        let cancelled = Arc::new(Self { freshness, ..Self::none(clock) });
        let (asked, partitions) = (cancelled.freshness.now(), log.partitions(Topic::Cancellations));
        let (mut readers, places) = (Vec::new(), Arc::new(Places::new(partitions)));
        for partition in 0..partitions {
            let reader = cancelled.read_to_end(&*log, partition).await?;
            places.set(partition, reader.next_offset());
            readers.push(reader);
        }
        cancelled.freshness.prove(asked);
        tracing::info!(cancellations = cancelled.len(), "loaded the cancellations");
        for reader in readers {
            let (cancelled, log, places) = (Arc::clone(&cancelled), Arc::clone(&log), Arc::clone(&places));
            let reading = async move { cancelled.read_on(&*log, reader, &places).await };
            let reading = shutdown.clone().run_until_cancelled_owned(reading);
            tokio::spawn(workers::guarded("cancellations", reading));
        }
        let (proving, refresh) = (Arc::clone(&cancelled), options.refresh());
        let proving = async move { proving.prove(&*log, &places, refresh).await };
        tokio::spawn(workers::guarded("cancellations-age", shutdown.run_until_cancelled_owned(proving)));
        Ok(cancelled)
    }

    /// Returns true if every cancellation is known that was answered up to a short time ago ([`Options::max_age_ms`]).
    /// Cheap: asked before each message that is sent.
    pub fn is_fresh(&self) -> bool {
        self.freshness.is_fresh()
    }

    /// Waits until the knowledge is fresh.
    pub async fn fresh(&self) {
        self.freshness.fresh().await;
    }

    /// Age of the newest proof that the knowledge is complete, in milliseconds.
    pub fn age_ms(&self) -> i64 {
        self.freshness.age_ms()
    }

    /// Returns true if `business` has cancelled this message, or broadcast.
    pub fn covers(&self, business: &str, id: MessageId) -> bool {
        self.count.load(Ordering::Acquire) > 0
            && self
                .known
                .read()
                .businesses
                .get(business)
                .and_then(|of| of.days.get(&day(id)))
                .is_some_and(|day| day.has(id))
    }

    /// Returns true if its sender has cancelled a message, or the broadcast that it is part of.
    pub fn takes(&self, sender: &str, id: MessageId, broadcast: Option<BroadcastId>) -> bool {
        self.covers(sender, id) || broadcast.is_some_and(|broadcast| self.covers(sender, broadcast.into()))
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Counts for `business` and for all.
    pub fn counts(&self, business: &str) -> Counts {
        let known = self.known.read();
        let of_business = known.businesses.get(business).map_or(0, OfBusiness::len);
        Counts { of_business, all: self.len(), businesses: known.businesses.len() }
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes note of one.
    pub fn enter(&self, business: &str, id: MessageId) {
        self.enter_all([(business, id)].into_iter());
    }

    /// Proves again and again that everything is known.
    async fn prove(&self, log: &dyn Log, places: &Places, refresh: Duration) {
        loop {
            let asked = self.freshness.now();
            match log.ends(Topic::Cancellations).await {
                Ok(ends) => {
                    places.reach(&ends).await;
                    self.freshness.prove(asked);
                }
                Err(LogError::Closed) => return,
                Err(error) => tracing::warn!(%error, age_ms = self.age_ms(), "the end of cancellations is not known"),
            }
            metrics::gauge!(CANCELLATIONS_AGE).set(self.age_ms() as f64 / 1_000.0);
            // A proof that took long is about to lapse: the next one is begun at once.
            if self.age_ms() < refresh.as_millis() as i64 {
                tokio::time::sleep(refresh).await;
            } else {
                tokio::time::sleep(SHORT_WAIT).await;
            }
        }
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

    async fn read_on(&self, log: &dyn Log, mut reader: Box<dyn Reader>, places: &Places) {
        loop {
            match reader.ready().await {
                Ok(()) => {
                    self.take(&reader.take(BATCH));
                    places.set(reader.source().1, reader.next_offset());
                }
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
            let id = std::str::from_utf8(&record.key).ok().and_then(|id| id.parse().ok());
            let taken = record.headers.text(headers::FROM).zip(id);
            if taken.is_none() {
                let (partition, offset) = (record.position.partition, record.position.offset);
                tracing::error!(partition, offset, "a cancellation without an id or a business is ignored");
            }
            taken
        }));
    }

    fn enter_all<'a>(&self, cancellations: impl Iterator<Item = (&'a str, MessageId)>) {
        let oldest = oldest_day(self.clock.now());
        let mut known = self.known.write();
        for (business, id) in cancellations.filter(|(_, id)| day(*id) >= oldest) {
            if !known.businesses.contains_key(business) {
                known.businesses.insert(business.into(), OfBusiness::default());
            }
            let of = known.businesses.get_mut(business);
            if of.is_some_and(|of| of.days.entry(day(id)).or_default().enter(id)) {
                self.count.fetch_add(1, Ordering::AcqRel);
            }
        }
        if oldest > known.oldest {
            known.oldest = oldest;
            known.businesses.retain(|_, of| {
                let kept = of.days.split_off(&oldest);
                let forgotten: usize = std::mem::replace(&mut of.days, kept).values().map(Day::len).sum();
                self.count.fetch_sub(forgotten, Ordering::AcqRel);
                !of.days.is_empty()
            });
        }
        drop(known);
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
    use crate::embedded::{self, EmbeddedLog};
    use crate::{Headers, NewRecord};

    const START: Timestamp = Timestamp::from_millis(1_760_000_000_000);

    fn record(id: MessageId) -> NewRecord {
        NewRecord {
            topic: Topic::Cancellations,
            partition: None,
            key: Bytes::from(id.to_string()),
            value: Bytes::new(),
            headers: Headers::new([(headers::FROM, b"acme".as_slice())]),
            timestamp: START,
        }
    }

    #[tokio::test]
    async fn everything_taken_back_before_is_known_at_once_and_what_comes_later_soon() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::manual(START));
        let log: Arc<dyn Log> =
            Arc::new(EmbeddedLog::open(embedded::Options::in_dir(dir.path()), clock.clone()).unwrap());
        let ids: Vec<MessageId> = (0..5_000).map(|_| MessageId::new(START)).collect();
        log.append(ids.iter().copied().map(record).collect()).await.unwrap();

        let shutdown = CancellationToken::new();
        let cancelled =
            Cancelled::follow(Arc::clone(&log), clock, &Options::default(), shutdown.clone()).await.unwrap();
        assert!(ids.iter().all(|id| cancelled.covers("acme", *id)));
        let later = MessageId::new(START);
        assert!(!cancelled.covers("acme", later));

        // A repeat is one still, and what is no id harms nothing.
        let wrong = NewRecord { key: Bytes::from_static(b"no id"), ..record(later) };
        log.append(vec![record(ids[0]), wrong, record(later)]).await.unwrap();
        timeout(Duration::from_secs(5), async {
            while !cancelled.covers("acme", later) {
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
        cancelled.enter("acme", one.into());
        let id = MessageId::of_recipient(one, 7, START);
        assert!(cancelled.takes("acme", id, Some(one)));
        assert!(!cancelled.takes("acme", id, None) && !cancelled.takes("acme", id, Some(other)));
    }

    #[test]
    fn a_cancellation_holds_for_the_messages_of_its_business_alone() {
        let cancelled = Cancelled::none(Clock::manual(START));
        let (id, broadcast) = (MessageId::new(START), BroadcastId::new(START));
        cancelled.enter("mallory", id);
        cancelled.enter("mallory", broadcast.into());
        assert!(!cancelled.takes("acme", id, Some(broadcast)));
        assert!(cancelled.takes("mallory", id, None));
        assert_eq!(
            (cancelled.len(), cancelled.counts("mallory").of_business, cancelled.counts("acme").of_business),
            (2, 2, 0)
        );
    }

    #[test]
    fn what_cannot_be_shown_any_more_is_forgotten() {
        let clock = Clock::manual(START);
        let cancelled = Cancelled::none(clock.clone());
        let (old, new) = (MessageId::new(START), MessageId::new(START.plus_millis(40 * DAY_MS)));
        cancelled.enter("acme", old);
        clock.advance_millis(62 * DAY_MS);
        cancelled.enter("acme", new);
        assert!(cancelled.covers("acme", old) && cancelled.covers("acme", new));
        clock.advance_millis(2 * DAY_MS);
        cancelled.enter("acme", new);
        assert_eq!((cancelled.covers("acme", old), cancelled.covers("acme", new), cancelled.len()), (false, true, 1));
    }

    #[test]
    fn a_million_take_about_their_own_bytes() {
        let cancelled = Cancelled::none(Clock::manual(START));
        cancelled.enter_all((0..1_000_000).map(|_| ("acme", MessageId::new(START))));
        let known = cancelled.known.read();
        let day = &known.businesses["acme"].days[&day_of(START)];
        assert_eq!(day.len(), 1_000_000);
        let bytes = day.sorted.capacity() * 16 + day.recent.capacity() * 17;
        assert!(bytes < 28 << 20, "{bytes}");
    }
}
