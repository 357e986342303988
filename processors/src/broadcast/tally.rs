//! Counts what becomes of the messages of broadcasts, without a counter: `archive` reads every status anyway, and marks here,
//! in memory, which recipient of which broadcast reached which step. About once a second, before offsets are committed, what
//! changed is written, with the offset it reaches to. A mark that is set again changes nothing, so neither a status that
//! comes twice nor a replay counts twice; and all statuses of a recipient are in one partition, so that its owner alone
//! writes them. Of a writer that was stopped and comes back, what it writes is of a lower offset, and does not stand.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashMap;
use bytes::Bytes;
use eshaar_model::{BroadcastId, Epoch, MessageId, Status};
use eshaar_store::broadcasts::SEGMENT;
use eshaar_store::{BroadcastStore, Counts, StoreError, Tally};
use eshaar_topics::{Received, headers};
use parking_lot::Mutex;

/// Segments of a partition that are kept in memory though nothing of them changed; at most 8 KiB each.
const KEPT: usize = 128;

/// Words of a bitmap of a segment.
const WORDS: usize = SEGMENT as usize / 64;

/// A step's place in marks.
const fn place_of(status: Status) -> Option<usize> {
    match status {
        Status::Delivered => Some(0),
        Status::Read => Some(1),
        Status::Failed => Some(2),
        Status::Expired => Some(3),
        Status::Sent | Status::Cancelled => None,
    }
}

/// Which of a segment's recipients reached which step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Marks([Option<Box<[u64; WORDS]>>; 4]);

impl Marks {
    /// Whether it was not set yet.
    fn set(&mut self, step: usize, recipient: u32) -> bool {
        let map = self.0[step].get_or_insert_with(|| Box::new([0; WORDS]));
        let (word, bit) = (&mut map[recipient as usize / 64], 1 << (recipient % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Each recipient once, for the furthest step.
    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for word in 0..WORDS {
            let [delivered, read, failed, expired] =
                [0, 1, 2, 3].map(|step| self.0[step].as_ref().map_or(0, |map| map[word]));
            let delivered = delivered | read;
            counts.delivered += u64::from(delivered.count_ones());
            counts.read += u64::from(read.count_ones());
            counts.failed += u64::from((failed & !delivered).count_ones());
            counts.expired += u64::from((expired & !delivered & !failed).count_ones());
        }
        counts
    }

    /// A byte that says which maps there are, then those.
    fn encode(&self) -> Bytes {
        let there = (0..4).filter(|step| self.0[*step].is_some()).fold(0, |there, step| there | 1 << step);
        let mut bytes = vec![there];
        for map in self.0.iter().flatten() {
            bytes.extend(map.iter().flat_map(|word| word.to_be_bytes()));
        }
        bytes.into()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (there, maps) = bytes.split_first()?;
        let (words, rest) = maps.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_be_bytes(*word));
        let mut marks = Self::default();
        for step in (0..4).filter(|step| there >> step & 1 == 1) {
            let mut map = Box::new([0; WORDS]);
            for word in map.iter_mut() {
                *word = words.next()?;
            }
            marks.0[step] = Some(map);
        }
        (rest.is_empty() && words.next().is_none()).then_some(marks)
    }
}

/// A broadcast, and a segment of its recipients.
type Place = (BroadcastId, u32);

#[derive(Default)]
struct Partition {
    /// What is before it is marked.
    offset: u64,
    segments: AHashMap<Place, Segment>,
}

struct Segment {
    marks: Marks,
    changed: bool,
}

/// The tallies of the partitions that this process owns.
pub(crate) struct Tallies {
    store: Arc<dyn BroadcastStore>,
    epoch: Epoch,
    partitions: Mutex<BTreeMap<u32, Partition>>,
}

impl Tallies {
    pub(crate) fn new(store: Arc<dyn BroadcastStore>, epoch: Epoch) -> Self {
        Self { store, epoch, partitions: Mutex::default() }
    }

    /// A partition is begun: what others wrote of it meanwhile is looked up again.
    pub(crate) async fn open(&self, partition: u32) -> Result<(), StoreError> {
        self.flush().await?;
        self.partitions.lock().remove(&partition);
        Ok(())
    }

    /// Marks what a batch of statuses, of one partition, says.
    pub(crate) async fn note(&self, batch: &[Received]) -> Result<(), StoreError> {
        let Some(last) = batch.last() else { return Ok(()) };
        let partition = last.position.partition;
        let noted: Vec<(Place, usize, u32)> = batch.iter().filter_map(noted).collect();
        loop {
            let missing = {
                let mut partitions = self.partitions.lock();
                let of = partitions.entry(partition).or_default();
                let missing: Vec<Place> =
                    noted.iter().map(|(place, ..)| *place).filter(|place| !of.segments.contains_key(place)).collect();
                if missing.is_empty() {
                    for (place, step, recipient) in &noted {
                        if let Some(segment) = of.segments.get_mut(place) {
                            segment.changed |= segment.marks.set(*step, *recipient);
                        }
                    }
                    of.offset = of.offset.max(last.position.offset + 1);
                    return Ok(());
                }
                missing
            };
            self.load(partition, missing).await?;
        }
    }

    async fn load(&self, partition: u32, mut places: Vec<Place>) -> Result<(), StoreError> {
        places.sort_unstable();
        places.dedup();
        for (broadcast, segment) in places {
            let found = self.store.marks(broadcast, partition, segment).await?;
            let marks = found.and_then(|bytes| {
                let marks = Marks::decode(&bytes);
                if marks.is_none() {
                    tracing::error!(%broadcast, partition, segment, "a tally cannot be read; it is begun anew");
                }
                marks
            });
            let loaded = Segment { marks: marks.unwrap_or_default(), changed: false };
            let mut partitions = self.partitions.lock();
            partitions.entry(partition).or_default().segments.entry((broadcast, segment)).or_insert(loaded);
        }
        Ok(())
    }

    /// Writes what has changed.
    pub(crate) async fn flush(&self) -> Result<(), StoreError> {
        let changed = self.changed();
        if changed.is_empty() {
            return Ok(());
        }
        let places: Vec<(u32, Place)> =
            changed.iter().map(|tally| (tally.partition, (tally.broadcast, tally.segment))).collect();
        let written = self.store.put_tallies(changed).await;
        let mut partitions = self.partitions.lock();
        if written.is_err() {
            for (partition, place) in places {
                if let Some(segment) = partitions.get_mut(&partition).and_then(|of| of.segments.get_mut(&place)) {
                    segment.changed = true;
                }
            }
        }
        for of in partitions.values_mut().filter(|of| of.segments.len() > KEPT) {
            of.segments.retain(|_, segment| segment.changed);
        }
        written
    }

    fn changed(&self) -> Vec<Tally> {
        let mut changed = Vec::new();
        for (partition, of) in self.partitions.lock().iter_mut() {
            for ((broadcast, segment), kept) in of.segments.iter_mut().filter(|(_, segment)| segment.changed) {
                kept.changed = false;
                changed.push(Tally {
                    broadcast: *broadcast,
                    partition: *partition,
                    segment: *segment,
                    epoch: self.epoch,
                    offset: of.offset,
                    counts: kept.marks.counts(),
                    marks: kept.marks.encode(),
                });
            }
        }
        changed
    }
}

/// What a status says of a broadcast: where, which step, and which recipient of the segment.
fn noted(record: &Received) -> Option<(Place, usize, u32)> {
    let broadcast = record.headers.text(headers::BROADCAST)?.parse().ok()?;
    let (id, status) = record.headers.text(headers::CE_ID)?.rsplit_once('.')?;
    let (id, step) = (id.parse::<MessageId>().ok()?, place_of(status.parse().ok()?)?);
    Some(((broadcast, id.recipient() / SEGMENT), step, id.recipient() % SEGMENT))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use eshaar_schemas::StatusChanged;
    use eshaar_topics::flow::{self, Origin};
    use eshaar_topics::{Record, Topic};

    use super::*;
    use crate::testing::{Engines, START, at};

    fn status(engines: &Engines, broadcast: BroadcastId, number: u32, status: Status, offset: u64) -> Received {
        let change = StatusChanged {
            id: MessageId::of_recipient(broadcast, number, START),
            status,
            at: START.as_millis(),
            sender: "acme-bank".to_owned(),
            recipient: "+966500000001".to_owned(),
            reason: None,
        };
        let record = flow::status(&change, Bytes::from_static(b"key"), &engines.codecs, Origin::default()).unwrap();
        at(flow::part_of(record, Some(broadcast)), Topic::MessageStatus, (2, offset))
    }

    #[tokio::test]
    async fn each_message_counts_once_for_the_furthest_it_came_however_often_it_is_said() {
        let (engines, broadcast) = (Engines::open().await, BroadcastId::new(START));
        let store = &engines.store.broadcasts;
        let tallies = Tallies::new(Arc::clone(store), Epoch(0));
        tallies.open(2).await.unwrap();
        let said = [
            (1, Status::Delivered),
            (1, Status::Delivered),
            (1, Status::Read),
            (2, Status::Read),
            (3, Status::Failed),
            (3, Status::Delivered),
            (4, Status::Failed),
            (4, Status::Expired),
            (SEGMENT + 1, Status::Expired),
            (SEGMENT + 1, Status::Cancelled),
        ];
        let batch: Vec<Received> = said
            .iter()
            .enumerate()
            .map(|(offset, (number, step))| status(&engines, broadcast, *number, *step, offset as u64))
            .collect();
        tallies.note(&batch).await.unwrap();
        tallies.flush().await.unwrap();
        let expected = Counts { delivered: 3, read: 2, failed: 1, expired: 1 };
        assert_eq!(store.counts(broadcast).await.unwrap(), expected);

        // Another owner reads all of it again, and more.
        let next = Tallies::new(Arc::clone(store), Epoch(0));
        next.open(2).await.unwrap();
        next.note(&batch[2..]).await.unwrap();
        next.note(&[status(&engines, broadcast, 5, Status::Delivered, 10)]).await.unwrap();
        next.flush().await.unwrap();
        let expected = Counts { delivered: 4, ..expected };
        assert_eq!(store.counts(broadcast).await.unwrap(), expected);

        // The one before had been stopped, not dead: what it writes does not stand.
        tallies.note(&[status(&engines, broadcast, 6, Status::Read, 9)]).await.unwrap();
        tallies.flush().await.unwrap();
        assert_eq!(store.counts(broadcast).await.unwrap(), expected);
    }

    #[tokio::test]
    async fn statuses_of_no_broadcast_cost_nothing() {
        let engines = Engines::open().await;
        let tallies = Tallies::new(Arc::clone(&engines.store.broadcasts), Epoch(0));
        let of_one = status(&engines, BroadcastId::new(START), 1, Status::Read, 0);
        let headers = of_one.headers.iter().filter(|(name, _)| *name != headers::BROADCAST.as_bytes());
        let headers: Vec<_> = headers.map(|(name, value)| (std::str::from_utf8(name).unwrap(), value)).collect();
        let record = Record {
            position: of_one.position,
            timestamp: of_one.timestamp,
            key: of_one.key.clone(),
            value: of_one.value.clone(),
            headers: eshaar_topics::Headers::new(headers),
        };
        tallies.note(&[record.into()]).await.unwrap();
        assert!(tallies.changed().is_empty());
    }

    #[test]
    fn marks_are_read_as_they_were_written() {
        let mut marks = Marks::default();
        assert_eq!(Marks::decode(&marks.encode()), Some(marks.clone()));
        for (step, recipient) in [(0, 0), (2, SEGMENT - 1), (2, 63)] {
            assert!(marks.set(step, recipient) && !marks.set(step, recipient));
            assert_eq!(Marks::decode(&marks.encode()), Some(marks.clone()));
        }
        let bytes = marks.encode();
        assert!(bytes.len() <= 1 + 4 * SEGMENT as usize / 8);
        assert!([0, 1, bytes.len() - 1].iter().all(|cut| Marks::decode(&bytes[..*cut]).is_none()));
    }
}
