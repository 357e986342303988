//! Which records repeat an earlier one: the ids that stand in the newest records of a topic's partition, with the lowest
//! offset of each. What the window cannot know it says so, and the store is asked. So every owner decides alike, whatever
//! it remembers.

mod ahead;
mod queue;

use ahash::RandomState;
use eshaar_model::{MessageId, Timestamp};
use hashbrown::HashTable;

use self::ahead::Ahead;
use self::queue::Queue;

/// How far the clock that an id was minted by may be ahead of the one that the record was stamped by, or of this process's,
/// in milliseconds. The store is asked about ids that are further ahead.
pub(crate) const SKEW_MS: i64 = 10_000;

/// Whether a record repeats an earlier one of its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// The id stands at a lower offset.
    Yes,
    /// It does not.
    No,
    /// The window does not cover the id: the store knows.
    AskStore,
}

/// The window of one partition. Holds at most `most` ids, at about 50 bytes each.
///
/// Only the clock of this process and the number of ids decide how long an id is kept. Times that other hosts wrote (in ids,
/// in records) decide only about the ids of those hosts: a clock that is ahead never takes anything from the others.
#[derive(Debug)]
pub(crate) struct Window {
    span_ms: i64,
    most: usize,
    /// In the order they were entered.
    seen: Queue<Seen>,
    /// The places of all in `seen`, to be found by id.
    places: HashTable<u32>,
    hasher: RandomState,
    /// The ids of all records stamped from then on were entered.
    covered_from: Timestamp,
    /// The latest time of a message whose id was let go.
    let_go_to: Timestamp,
    /// Ids from the future.
    ahead: Ahead,
}

/// An id, and the lowest offset that it stands at.
#[derive(Debug)]
struct Seen {
    id: MessageId,
    entered_at: Timestamp,
    /// Other records of the message are stamped earlier, or tell in `first_at` of a time that is not later.
    latest: Timestamp,
    lowest: u64,
}

/// Before all times: nothing is missing.
const BEGINNING: Timestamp = Timestamp::from_millis(i64::MIN);

impl Window {
    /// An empty window; records stamped before `covered_from` are not in it.
    pub(crate) fn new(span_ms: i64, most: usize, covered_from: Timestamp) -> Self {
        Self {
            span_ms,
            most,
            seen: Queue::default(),
            places: HashTable::new(),
            hasher: RandomState::new(),
            covered_from,
            let_go_to: BEGINNING,
            ahead: Ahead::new(most),
        }
    }

    /// Whether the message at `offset` repeats one at a lower offset. No record of the message is stamped before `first_at`: the
    /// time in its id, unless its headers know better. `now` decides which ids are from the future.
    pub(crate) fn repeats(&self, id: MessageId, offset: u64, first_at: Timestamp, now: Timestamp) -> Repeat {
        let place = self.places.find(self.hasher.hash_one(id), |place| self.is_at(id, *place));
        let seen = place.and_then(|place| self.seen.get(*place)).map(|seen| seen.lowest);
        match seen.or_else(|| self.ahead.lowest(id)) {
            Some(lowest) if lowest < offset => Repeat::Yes,
            None if self.has_edge() && !self.covers(id, first_at, now) => Repeat::AskStore,
            // New; or this very record, taken again: one that stands before it would have been entered before it.
            Some(_) | None => Repeat::No,
        }
    }

    /// Remembers the message at `offset`, which was handled `now`. Once it is let go of, the store is asked about messages whose
    /// `first_at` is not past `latest`.
    pub(crate) fn enter(&mut self, id: MessageId, offset: u64, latest: Timestamp, now: Timestamp) {
        let (seen, hasher) = (&mut self.seen, &self.hasher);
        let hash = hasher.hash_one(id);
        if let Some(place) = self.places.find(hash, |place| seen.get(*place).is_some_and(|seen| seen.id == id)) {
            if let Some(seen) = seen.get_mut(*place) {
                seen.lowest = seen.lowest.min(offset);
                seen.latest = seen.latest.max(latest);
            }
            return;
        }
        if is_from_the_future(id, now) || self.ahead.lowest(id).is_some() {
            self.ahead.enter(id, offset);
            return;
        }
        let place = seen.push(Seen { id, entered_at: now, latest, lowest: offset });
        self.places.insert_unique(hash, place, |place| seen.get(*place).map_or(0, |seen| hasher.hash_one(seen.id)));
        // A clock that was ahead when the window was opened has been set back since.
        self.covered_from = self.covered_from.min(now.plus_millis(self.span_ms));
        self.forget(now);
    }

    /// Lets go of what was entered first while it is older than the span, or there is too much.
    fn forget(&mut self, now: Timestamp) {
        let horizon = now.plus_millis(-self.span_ms);
        while let Some((place, Seen { id, entered_at, latest, lowest })) = self.seen.front() {
            if *entered_at >= horizon && self.seen.len() <= self.most {
                break;
            }
            if is_from_the_future(*id, now) {
                self.ahead.enter(*id, *lowest);
            } else {
                self.let_go_to = self.let_go_to.max(*latest);
            }
            if let Ok(found) = self.places.find_entry(self.hasher.hash_one(id), |other| *other == place) {
                found.remove();
            }
            self.seen.pop_front();
        }
        self.ahead.forget_until(self.let_go_to);
    }

    fn is_at(&self, id: MessageId, place: u32) -> bool {
        self.seen.get(place).is_some_and(|seen| seen.id == id)
    }

    /// Whether an id that is not in the window is in no earlier record.
    fn covers(&self, id: MessageId, first_at: Timestamp, now: Timestamp) -> bool {
        first_at > self.let_go_to
            && first_at >= self.covered_from.plus_millis(SKEW_MS)
            && first_at.millis_since(now) <= SKEW_MS
            && !is_from_the_future(id, now)
            && !self.ahead.may_have_had(id)
    }

    /// Whether anything is not covered: a window that was there from the first record on and let go of nothing covers all.
    const fn has_edge(&self) -> bool {
        self.covered_from.as_millis() > BEGINNING.as_millis()
            || self.let_go_to.as_millis() > BEGINNING.as_millis()
            || self.ahead.has_let_go()
    }
}

fn is_from_the_future(id: MessageId, now: Timestamp) -> bool {
    id.made_at().millis_since(now) > SKEW_MS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPAN_MS: i64 = 120_000;
    const DAY_MS: i64 = 24 * 3_600_000;
    const START: Timestamp = Timestamp::from_millis(1_760_000_000_000);

    fn after(millis: i64) -> Timestamp {
        START.plus_millis(millis)
    }

    /// Of a message whose headers say nothing of its age.
    fn repeats(window: &Window, id: MessageId, offset: u64, now: Timestamp) -> Repeat {
        window.repeats(id, offset, id.made_at(), now)
    }

    fn enter(window: &mut Window, id: MessageId, offset: u64, now: Timestamp) {
        window.enter(id, offset, id.made_at(), now);
    }

    #[test]
    fn an_old_id_whose_first_record_is_young_is_new() {
        let mut window = Window::new(SPAN_MS, 2, START);
        let old = MessageId::new(after(-DAY_MS));
        for round in 1..10 {
            let now = after(round * SKEW_MS);
            let line = MessageId::new(after(-DAY_MS));
            assert_eq!(window.repeats(line, round as u64, now, now), Repeat::No);
            window.enter(line, round as u64, now, now);
        }
        // The old one may have been among those that were let go.
        let now = after(10 * SKEW_MS);
        assert_eq!(repeats(&window, old, 100, now), Repeat::AskStore);
    }

    /// A repeat may stand before the record of the first attempt, which the log's client appended late.
    #[test]
    fn a_late_first_record_is_asked_of_the_store_once_its_repeat_was_let_go() {
        let mut window = Window::new(SPAN_MS, 1, BEGINNING);
        let (id, first, repeated) = (MessageId::new(after(-DAY_MS)), START, after(20_000));
        window.enter(id, 1, repeated, repeated);
        window.enter(MessageId::new(repeated), 2, repeated, repeated);
        assert_eq!(window.repeats(id, 3, first, repeated), Repeat::AskStore);
    }

    #[test]
    fn an_id_at_a_lower_offset_makes_a_repeat_and_its_own_offset_does_not() {
        let mut window = Window::new(SPAN_MS, 10, BEGINNING);
        let id = MessageId::new(START);
        assert_eq!(repeats(&window, id, 5, START), Repeat::No);
        enter(&mut window, id, 5, START);
        assert_eq!((repeats(&window, id, 5, START), repeats(&window, id, 6, START)), (Repeat::No, Repeat::Yes));
    }

    #[test]
    fn an_id_older_than_what_is_covered_is_asked_of_the_store() {
        let window = Window::new(SPAN_MS, 10, START);
        let now = after(SKEW_MS);
        assert_eq!(repeats(&window, MessageId::new(after(-1)), 5, now), Repeat::AskStore);
        assert_eq!(repeats(&window, MessageId::new(now), 5, now), Repeat::No);
    }

    #[test]
    fn a_window_that_is_full_covers_less_and_says_so() {
        let mut window = Window::new(SPAN_MS, 2, BEGINNING);
        let ids: Vec<MessageId> = (0..3).map(|second| MessageId::new(after(second * 20_000))).collect();
        let now = after(100_000);
        for (offset, id) in ids.iter().enumerate() {
            enter(&mut window, *id, offset as u64, now);
        }
        assert_eq!(repeats(&window, ids[0], 9, now), Repeat::AskStore);
        assert_eq!((repeats(&window, ids[1], 9, now), repeats(&window, ids[2], 9, now)), (Repeat::Yes, Repeat::Yes));
    }

    #[test]
    fn an_id_is_kept_for_the_span_by_this_clock_whatever_its_record_says() {
        let mut window = Window::new(SPAN_MS, 10, BEGINNING);
        let (old, id) = (MessageId::new(after(-DAY_MS)), MessageId::new(START));
        enter(&mut window, old, 1, START);
        enter(&mut window, id, 2, START);
        enter(&mut window, MessageId::new(after(DAY_MS)), 3, after(SPAN_MS));
        assert_eq!((repeats(&window, old, 4, START), repeats(&window, id, 4, START)), (Repeat::Yes, Repeat::Yes));
        enter(&mut window, MessageId::new(after(SPAN_MS + 1)), 5, after(SPAN_MS + 1));
        assert_eq!(repeats(&window, id, 6, after(SPAN_MS + 1)), Repeat::AskStore);
    }

    /// A host whose clock is a day ahead, among others: the store is asked about that host's messages, never about the others'.
    #[test]
    fn a_host_that_is_ahead_costs_the_others_nothing() {
        for (most, now_ms) in [(10, 0), (1_000, 10 * SPAN_MS)] {
            let mut window = Window::new(SPAN_MS, most, after(-DAY_MS));
            for round in 0..200 {
                let now = after(now_ms * round / 200 + round);
                let (honest, ahead) = (MessageId::new(now), MessageId::new(now.plus_millis(DAY_MS)));
                assert_eq!(repeats(&window, honest, 2 * round as u64, now), Repeat::No, "{round}");
                assert_eq!(repeats(&window, ahead, 2 * round as u64, now), Repeat::AskStore, "{round}");
                enter(&mut window, honest, 2 * round as u64, now);
                enter(&mut window, ahead, 2 * round as u64 + 1, now);
                assert_eq!(repeats(&window, ahead, 10_000, now), Repeat::Yes);
            }
        }
    }

    #[test]
    fn a_window_that_was_opened_by_a_clock_that_was_ahead_covers_what_comes_once_the_clock_is_right() {
        let mut window = Window::new(SPAN_MS, 10, after(DAY_MS));
        assert_eq!(repeats(&window, MessageId::new(START), 1, START), Repeat::AskStore);
        enter(&mut window, MessageId::new(START), 1, START);
        let later = after(SPAN_MS + SKEW_MS);
        assert_eq!(repeats(&window, MessageId::new(later), 2, later), Repeat::No);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// R4.3: whatever comes, in whatever order, minted by clocks that are days off, while this clock jumps: the window never
        /// calls a message new that stood before, and never calls one a repeat that did not.
        #[test]
        fn the_window_is_never_wrong(
            records in prop::collection::vec((0_usize..40, 0_i64..60_000), 1..200),
            hosts in prop::collection::vec(prop_oneof![3 => Just(0), 1 => -2 * DAY_MS..2 * DAY_MS], 40),
            jump in prop_oneof![2 => Just((0, 0)), 1 => (0_usize..200, -DAY_MS..DAY_MS)],
            most in 1_usize..60,
            covered in prop::option::of(-300_000_i64..0),
        ) {
            let ids: Vec<MessageId> = (0..40).map(|place| MessageId::new(after(hosts[place]))).collect();
            let mut window = Window::new(SPAN_MS, most, covered.map_or(BEGINNING, after));
            let mut stood = std::collections::HashSet::new();
            let mut passed = 0;
            for (offset, (place, pause)) in records.into_iter().enumerate() {
                passed += pause;
                // From this record on the clock of this process is wrong by so much.
                let now = after(passed + if offset >= jump.0 { jump.1.min(passed) } else { 0 });
                let (id, offset) = (ids[place], offset as u64);
                match repeats(&window, id, offset, now) {
                    Repeat::Yes => prop_assert!(stood.contains(&id)),
                    Repeat::No => prop_assert!(!stood.contains(&id)),
                    Repeat::AskStore => {}
                }
                stood.insert(id);
                enter(&mut window, id, offset, now);
            }
        }

        /// A host whose clock is a day or more ahead does not have the store asked about the messages of others, whatever is
        /// taken when. (Once its time has come, and more of its ids came than a window holds, it does.)
        #[test]
        fn a_hostile_clock_degrades_nobody_else(
            records in prop::collection::vec((any::<bool>(), 0_i64..5_000, DAY_MS..30 * DAY_MS), 1..200),
            most in 1_usize..60,
        ) {
            let mut window = Window::new(SPAN_MS, most, after(-DAY_MS));
            let mut now = START;
            for (offset, (is_honest, pause, ahead)) in records.into_iter().enumerate() {
                now = now.plus_millis(pause + 1);
                let id = MessageId::new(if is_honest { now } else { now.plus_millis(ahead) });
                let repeat = repeats(&window, id, offset as u64, now);
                prop_assert_eq!(repeat, if is_honest { Repeat::No } else { Repeat::AskStore });
                enter(&mut window, id, offset as u64, now);
            }
        }
    }
}
