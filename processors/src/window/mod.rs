//! Which records repeat an earlier one: the ids that stand in the newest records of a topic's partition, with the lowest
//! offset of each. What the window cannot know it says so, and the store is asked. So every owner decides alike, whatever
//! it remembers.

mod queue;

use ahash::RandomState;
use eshaar_model::{MessageId, Timestamp};
use hashbrown::HashTable;

use self::queue::Queue;

/// How far the clock that an id was minted by may be ahead of the one that the record was stamped by, in milliseconds.
const SKEW_MS: i64 = 10_000;

/// Whether a record repeats an earlier one of its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// The id stands at a lower offset.
    Yes,
    /// It does not.
    No,
    /// The id is older than what the window covers: the store knows.
    AskStore,
}

/// The window of one partition. Holds at most `most` ids, at about 40 bytes each.
#[derive(Debug)]
pub(crate) struct Window {
    span_ms: i64,
    most: usize,
    /// In the order they were seen.
    seen: Queue<Seen>,
    /// The places of all in `seen`, to be found by id.
    places: HashTable<u32>,
    hasher: RandomState,
    /// The newest time that a record was stamped with.
    newest: Timestamp,
    /// The ids of all records stamped from then on are here.
    covered_from: Timestamp,
}

/// An id, and the lowest offset that it stands at.
#[derive(Debug)]
struct Seen {
    id: MessageId,
    at: Timestamp,
    lowest: u64,
}

impl Window {
    /// An empty window; records stamped before `covered_from` are not in it.
    pub(crate) fn new(span_ms: i64, most: usize, covered_from: Timestamp) -> Self {
        Self {
            span_ms,
            most,
            seen: Queue::default(),
            places: HashTable::new(),
            hasher: RandomState::new(),
            newest: Timestamp::from_millis(i64::MIN),
            covered_from,
        }
    }

    /// Whether the message at `offset` repeats one at a lower offset.
    pub(crate) fn repeats(&self, id: MessageId, offset: u64) -> Repeat {
        let place = self.places.find(self.hasher.hash_one(id), |place| self.is_at(id, *place));
        match place.and_then(|place| self.seen.get(*place)) {
            Some(seen) if seen.lowest < offset => Repeat::Yes,
            None if id.made_at() < self.covered_from.plus_millis(SKEW_MS) && self.has_edge() => Repeat::AskStore,
            // New; or this very record, taken again: one that stands before it would have been entered before it.
            Some(_) | None => Repeat::No,
        }
    }

    /// Remembers the message at `offset`, stamped `at`; `now` bounds how far a stamp from the future moves the window.
    pub(crate) fn enter(&mut self, id: MessageId, offset: u64, at: Timestamp, now: Timestamp) {
        let (seen, hasher) = (&mut self.seen, &self.hasher);
        let hash = hasher.hash_one(id);
        if let Some(place) = self.places.find(hash, |place| seen.get(*place).is_some_and(|seen| seen.id == id)) {
            if let Some(seen) = seen.get_mut(*place) {
                seen.lowest = seen.lowest.min(offset);
            }
            return;
        }
        let place = seen.push(Seen { id, at, lowest: offset });
        self.places.insert_unique(hash, place, |place| seen.get(*place).map_or(0, |seen| hasher.hash_one(seen.id)));
        self.newest = self.newest.max(at.min(now));
        self.forget();
    }

    /// Lets go of the oldest seen while they are older than the span, or too many.
    fn forget(&mut self) {
        let horizon = self.newest.plus_millis(-self.span_ms);
        while let Some((place, Seen { id, at, .. })) = self.seen.front() {
            if *at >= horizon && self.seen.len() <= self.most {
                break;
            }
            self.covered_from = self.covered_from.max(at.plus_millis(1));
            if let Ok(found) = self.places.find_entry(self.hasher.hash_one(id), |other| *other == place) {
                found.remove();
            }
            self.seen.pop_front();
        }
    }

    fn is_at(&self, id: MessageId, place: u32) -> bool {
        self.seen.get(place).is_some_and(|seen| seen.id == id)
    }

    /// Whether anything is not covered: a window that was there from the first record on covers all.
    fn has_edge(&self) -> bool {
        self.covered_from.as_millis() > i64::MIN
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPAN_MS: i64 = 120_000;
    const BEGINNING: Timestamp = Timestamp::from_millis(i64::MIN);
    const START: Timestamp = Timestamp::from_millis(1_760_000_000_000);

    fn after(millis: i64) -> Timestamp {
        START.plus_millis(millis)
    }

    #[test]
    fn an_id_at_a_lower_offset_makes_a_repeat_and_its_own_offset_does_not() {
        let mut window = Window::new(SPAN_MS, 10, BEGINNING);
        let id = MessageId::new(START);
        assert_eq!(window.repeats(id, 5), Repeat::No);
        window.enter(id, 5, START, START);
        assert_eq!((window.repeats(id, 5), window.repeats(id, 6)), (Repeat::No, Repeat::Yes));
    }

    #[test]
    fn an_id_older_than_what_is_covered_is_asked_of_the_store() {
        let window = Window::new(SPAN_MS, 10, START);
        assert_eq!(window.repeats(MessageId::new(after(-1)), 5), Repeat::AskStore);
        assert_eq!(window.repeats(MessageId::new(after(SKEW_MS)), 5), Repeat::No);
    }

    #[test]
    fn a_window_that_is_full_covers_less_and_says_so() {
        let mut window = Window::new(SPAN_MS, 2, BEGINNING);
        let ids: Vec<MessageId> = (0..3).map(|second| MessageId::new(after(second * 20_000))).collect();
        for (offset, id) in ids.iter().enumerate() {
            window.enter(*id, offset as u64, id.made_at(), after(1_000_000));
        }
        assert_eq!(window.repeats(ids[0], 9), Repeat::AskStore);
        assert_eq!((window.repeats(ids[1], 9), window.repeats(ids[2], 9)), (Repeat::Yes, Repeat::Yes));
    }

    #[test]
    fn a_stamp_from_the_future_does_not_empty_the_window() {
        let mut window = Window::new(SPAN_MS, 10, BEGINNING);
        let id = MessageId::new(START);
        window.enter(id, 1, START, START);
        window.enter(MessageId::new(START), 2, after(3_600_000), START);
        assert_eq!(window.repeats(id, 3), Repeat::Yes);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// R4.3: whatever comes, in whatever order and with whatever stamps, the window never calls a message new that stood
        /// before, and never calls one a repeat that did not.
        #[test]
        fn the_window_is_never_wrong(
            records in prop::collection::vec((0_usize..40, 0_i64..600_000), 1..200),
            most in 1_usize..60,
            covered in prop::option::of(0_i64..300_000),
        ) {
            let ids: Vec<MessageId> = (0..40).map(|place| MessageId::new(after(place * 10_000))).collect();
            let mut window = Window::new(SPAN_MS, most, covered.map_or(BEGINNING, after));
            let mut stood = std::collections::HashSet::new();
            for (offset, (place, delay)) in records.into_iter().enumerate() {
                let (id, offset) = (ids[place], offset as u64);
                // A record is stamped when its id is minted, or later.
                let stamped = id.made_at().plus_millis(delay);
                match window.repeats(id, offset) {
                    Repeat::Yes => prop_assert!(stood.contains(&id)),
                    Repeat::No => prop_assert!(!stood.contains(&id)),
                    Repeat::AskStore => {}
                }
                stood.insert(id);
                window.enter(id, offset, stamped, after(2_000_000));
            }
        }
    }
}
