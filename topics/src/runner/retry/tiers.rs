//! The retry topics of one partition number. Each has one delay, so its records are in the order in which they are due, and
//! leave it in that order: what is settled earlier leaves a gap behind, and goes when its turn comes.

use std::collections::VecDeque;
use std::time::Duration;

use eshaar_model::Timestamp;
use futures_util::FutureExt as _;
use futures_util::future::select_all;

use super::fences::Place;
use crate::{LogError, PartitionStream, Received, Record, Topic};

/// Most records that are taken of a topic at once.
const TAKE: usize = 100;

/// Most bytes of records that are held of one topic of a partition; at least one record is.
const MOST_BYTES: usize = 2 << 20;

/// A place in a retry topic that was read.
pub(super) struct Slot {
    pub(super) offset: u64,
    pub(super) due: Timestamp,
    pub(super) held: Held,
}

/// What is at a place.
pub(super) enum Held {
    /// The copy that counts of a record.
    Waits(Received),
    /// A record that is no copy: not ours.
    Foreign(Record, &'static str),
    /// Settled, or a copy that does not count.
    Gone,
}

impl Held {
    fn bytes(&self) -> usize {
        match self {
            Self::Waits(record) => record.value.len() + record.key.len() + record.headers.as_bytes().len(),
            Self::Foreign(record, _) => record.value.len() + record.key.len() + record.headers.as_bytes().len(),
            Self::Gone => 0,
        }
    }
}

/// One retry topic.
pub(super) struct Tier {
    pub(super) topic: Topic,
    pub(super) delay: Duration,
    stream: PartitionStream,
    slots: VecDeque<Slot>,
    bytes: usize,
    most_slots: usize,
}

impl Tier {
    pub(super) fn new(stream: PartitionStream, delay: Duration, most_slots: usize) -> Self {
        let topic = stream.source().0;
        Self { topic, delay, stream, slots: VecDeque::new(), bytes: 0, most_slots: most_slots.max(1) }
    }

    /// Reads on while there is room; `read` says what is at a place.
    fn fill(&mut self, mut read: impl FnMut(Record) -> Slot) -> Result<(), LogError> {
        while self.has_room() {
            // Also begins a fetch that the stream needs before it has anything to give.
            match self.stream.ready().now_or_never() {
                None => return Ok(()),
                Some(ready) => ready?,
            }
            for record in self.stream.take(TAKE.min(self.most_slots - self.slots.len())) {
                let slot = read(record);
                self.bytes += slot.held.bytes();
                self.slots.push_back(slot);
            }
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.slots.len() < self.most_slots && (self.bytes < MOST_BYTES || self.slots.is_empty())
    }

    /// Lets go of what is settled up to the first that is not; returns the offset of that one, or of the next to be read.
    pub(super) fn floor(&mut self) -> u64 {
        while self.slots.front().is_some_and(|slot| matches!(slot.held, Held::Gone)) {
            self.slots.pop_front();
        }
        self.slots.front().map_or_else(|| self.stream.next_offset(), |slot| slot.offset)
    }

    /// What was read and is not settled, in due order.
    pub(super) fn unsettled(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| !matches!(slot.held, Held::Gone))
    }

    fn position(&self, offset: u64) -> Option<usize> {
        self.slots.binary_search_by_key(&offset, |slot| slot.offset).ok()
    }
}

/// All of them, from the shortest delay to the longest.
pub(super) struct Tiers(Vec<Tier>);

impl Tiers {
    pub(super) fn new(mut tiers: Vec<Tier>) -> Self {
        tiers.sort_by_key(|tier| tier.delay);
        Self(tiers)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Tier> {
        self.0.iter()
    }

    pub(super) fn fill(&mut self, mut read: impl FnMut(Record) -> Slot) -> Result<(), LogError> {
        self.0.iter_mut().try_for_each(|tier| tier.fill(&mut read))
    }

    /// Waits until there is something to read where there is room for it. Cancel-safe.
    pub(super) async fn ready(&mut self) -> Result<(), LogError> {
        let with_room: Vec<_> =
            self.0.iter_mut().filter(|tier| tier.has_room()).map(|tier| tier.stream.ready()).collect();
        if with_room.is_empty() {
            return std::future::pending().await;
        }
        select_all(with_room).await.0
    }

    /// The record whose copy is there, if that was read.
    pub(super) fn get(&self, (topic, offset): Place) -> Option<&Received> {
        let tier = self.0.iter().find(|tier| tier.topic == topic)?;
        match &tier.slots.get(tier.position(offset)?)?.held {
            Held::Waits(record) => Some(record),
            Held::Foreign(..) | Held::Gone => None,
        }
    }

    /// What is there need not be looked at again.
    pub(super) fn let_go(&mut self, (topic, offset): Place) {
        let Some(tier) = self.0.iter_mut().find(|tier| tier.topic == topic) else { return };
        if let Some(slot) = tier.position(offset).and_then(|position| tier.slots.get_mut(position)) {
            tier.bytes -= std::mem::replace(&mut slot.held, Held::Gone).bytes();
        }
    }

    /// Where each topic can be committed.
    pub(super) fn floors(&mut self) -> Vec<Place> {
        self.0.iter_mut().map(|tier| (tier.topic, tier.floor())).collect()
    }

    /// When the next record is due, of those that were read.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.0.iter().filter_map(|tier| tier.unsettled().next()).map(|slot| slot.due).min()
    }

    /// The topic of the longest delay that ends before `until`; of the shortest where none does.
    pub(super) fn before(&self, until: Timestamp, now: Timestamp) -> Option<(Topic, Duration)> {
        let left_ms = until.millis_since(now);
        let fits =
            self.0.iter().rfind(|tier| i64::try_from(tier.delay.as_millis()).is_ok_and(|delay| delay <= left_ms));
        fits.or_else(|| self.0.first()).map(|tier| (tier.topic, tier.delay))
    }
}
