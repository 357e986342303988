//! What waits in the retry topics of one partition number: each record by its key and origin, with the one copy of it that
//! counts. A key with anything here is fenced. Pure, and complete: what is in a retry topic and not here is a copy that
//! something else has been made of since, or a zombie's, and is let go of unseen.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use ahash::AHashMap;
use eshaar_model::{Attempt, Timestamp};

use crate::{Received, Topic};

/// Where a copy stands: retry topic and offset.
pub(in crate::runner) type Place = (Topic, u64);

/// What keeps records in order: topic and key; where a stage needs no order, the record itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::runner) struct FenceKey {
    pub(super) topic: Topic,
    bytes: Box<[u8]>,
}

/// A record that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::runner) struct Unsettled {
    /// How often it has failed: one that has not only waits for those before it.
    pub(super) attempt: Attempt,
    /// When its copy is due.
    pub(super) due: Timestamp,
    /// The copy that counts.
    pub(super) at: Place,
}

impl Unsettled {
    /// Whether it may be handled once nothing of its key is before it.
    pub(super) fn is_ready(&self, now: Timestamp) -> bool {
        self.attempt == Attempt::FIRST || self.due <= now
    }
}

/// How a record of an input stands to those that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::runner) enum Standing {
    /// Nothing before it waits.
    Free,
    /// It waits itself: a copy of it was written before a crash, or by another owner.
    Waits,
    /// One before it waits, at least until then.
    Behind(Timestamp),
}

/// The records that wait, by key.
#[derive(Debug)]
pub(in crate::runner) struct Fences {
    ordered: bool,
    keys: AHashMap<FenceKey, BTreeMap<u64, Unsettled>>,
    records: usize,
}

impl Fences {
    pub(super) fn new(ordered: bool) -> Self {
        Self { ordered, keys: AHashMap::new(), records: 0 }
    }

    /// How many records wait.
    pub(super) const fn len(&self) -> usize {
        self.records
    }

    pub(super) fn key(&self, record: &Received) -> FenceKey {
        let bytes =
            if self.ordered { Box::from(&record.key[..]) } else { Box::from(record.position.offset.to_be_bytes()) };
        FenceKey { topic: record.position.topic, bytes }
    }

    pub(super) fn standing(&self, record: &Received) -> Standing {
        if self.keys.is_empty() {
            return Standing::Free;
        }
        let Some(waiting) = self.keys.get(&self.key(record)) else { return Standing::Free };
        if waiting.contains_key(&record.position.offset) {
            return Standing::Waits;
        }
        match waiting.first_key_value() {
            Some((first, unsettled)) if *first < record.position.offset => Standing::Behind(unsettled.due),
            _ => Standing::Free,
        }
    }

    /// From here on this copy of the record counts.
    pub(super) fn enter(&mut self, key: FenceKey, offset: u64, unsettled: Unsettled) {
        if self.keys.entry(key).or_default().insert(offset, unsettled).is_none() {
            self.records += 1;
        }
    }

    /// A copy was found that an earlier owner wrote: it counts, unless a later one was found already.
    pub(super) fn find(&mut self, key: FenceKey, offset: u64, found: Unsettled) {
        match self.keys.entry(key).or_default().entry(offset) {
            Entry::Vacant(vacant) => {
                vacant.insert(found);
                self.records += 1;
            }
            Entry::Occupied(mut known) => {
                if (found.attempt, found.due) > (known.get().attempt, known.get().due) {
                    known.insert(found);
                }
            }
        }
    }

    /// The record is settled. Whether others of its key wait.
    pub(super) fn settle(&mut self, key: &FenceKey, offset: u64) -> bool {
        let Some(waiting) = self.keys.get_mut(key) else { return false };
        if waiting.remove(&offset).is_some() {
            self.records -= 1;
        }
        let others = !waiting.is_empty();
        if !others {
            self.keys.remove(key);
        }
        others
    }

    /// Whether the copy at `at` is the one of its record that counts.
    pub(super) fn counts(&self, key: &FenceKey, offset: u64, at: Place) -> bool {
        self.keys.get(key).and_then(|waiting| waiting.get(&offset)).is_some_and(|unsettled| unsettled.at == at)
    }

    /// The records of a key that wait, in their order.
    pub(super) fn of(&self, key: &FenceKey) -> impl Iterator<Item = (u64, Unsettled)> {
        self.keys.get(key).into_iter().flatten().map(|(offset, unsettled)| (*offset, *unsettled))
    }

    /// The first record of a key that waits.
    pub(super) fn first(&self, key: &FenceKey) -> Option<(u64, Unsettled)> {
        self.of(key).next()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Headers, LogPosition};

    fn record(offset: u64) -> Received {
        Received {
            position: LogPosition { topic: Topic::LaneHigh, partition: 0, offset },
            attempt: Attempt::FIRST,
            timestamp: Timestamp::from_millis(0),
            key: Bytes::from_static(b"key"),
            value: Bytes::new(),
            headers: Headers::none(),
        }
    }

    fn unsettled(attempt: u8, due: i64, at: u64) -> Unsettled {
        let attempt = Attempt::from_count(attempt).unwrap_or_default();
        Unsettled { attempt, due: Timestamp::from_millis(due), at: (Topic::RetryRoute1s, at) }
    }

    #[test]
    fn a_record_stands_behind_those_before_it_and_not_behind_those_after_it() {
        let mut fences = Fences::new(true);
        let key = fences.key(&record(0));
        fences.enter(key.clone(), 5, unsettled(1, 70, 0));
        assert_eq!(fences.standing(&record(4)), Standing::Free);
        assert_eq!(fences.standing(&record(5)), Standing::Waits);
        assert_eq!(fences.standing(&record(6)), Standing::Behind(Timestamp::from_millis(70)));
        let other = Received { key: Bytes::from_static(b"other"), ..record(6) };
        let in_another_lane = LogPosition { topic: Topic::LaneLow, ..record(6).position };
        assert_eq!(fences.standing(&other), Standing::Free);
        assert_eq!(fences.standing(&Received { position: in_another_lane, ..record(6) }), Standing::Free);
        assert!(!fences.settle(&key, 5));
        assert_eq!((fences.standing(&record(6)), fences.len()), (Standing::Free, 0));
    }

    #[test]
    fn of_two_copies_that_are_found_the_higher_attempt_counts_in_whatever_order_they_are_found() {
        for order in [[1, 2], [2, 1]] {
            let mut fences = Fences::new(true);
            let key = fences.key(&record(0));
            for attempt in order {
                fences.find(key.clone(), 5, unsettled(attempt, 10, u64::from(attempt)));
            }
            assert!(fences.counts(&key, 5, (Topic::RetryRoute1s, 2)));
            assert!(!fences.counts(&key, 5, (Topic::RetryRoute1s, 1)));
            assert_eq!(fences.len(), 1);
        }
    }

    #[test]
    fn without_order_nothing_stands_behind_anything() {
        let mut fences = Fences::new(false);
        fences.enter(fences.key(&record(5)), 5, unsettled(1, 70, 0));
        assert_eq!(fences.standing(&record(5)), Standing::Waits);
        assert_eq!(fences.standing(&record(6)), Standing::Free);
    }
}
