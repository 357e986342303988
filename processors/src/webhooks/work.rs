//! The events that the task of one endpoint and partition has in hand: what may be told next, what waits behind another event
//! of its message, and what was refused and waits to be tried again. Pure bookkeeping.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ahash::{AHashMap, AHashSet};
use eshaar_model::{MessageId, Timestamp};
use eshaar_topics::Received;

use super::parked::{MAX_PARKED, Parked, Place, TOPICS, place};

/// Most events that are in memory besides the backlog.
const MAX_IN_HAND: usize = 64;

/// An event in hand.
pub(super) struct Event {
    pub(super) place: Place,
    pub(super) id: MessageId,
    /// `None`: it is read again first.
    pub(super) record: Option<Received>,
    /// How often it was refused, and when last.
    pub(super) tries: u8,
    pub(super) tried: Timestamp,
    is_parked: bool,
}

/// What is in hand. Of each message one event is under way at a time, the earliest that is not settled.
#[derive(Default)]
pub(super) struct Work {
    /// To be told next, in order.
    ready: VecDeque<Event>,
    /// The messages of which an event is under way, and the events behind it.
    under_way: AHashMap<MessageId, VecDeque<Event>>,
    /// The places of those that are not parked.
    untold: BTreeSet<Place>,
    parked: BTreeMap<Place, Parked>,
    in_hand: usize,
    /// The earliest time at which a parked one is to be tried, as far as is known.
    next_due: Option<Timestamp>,
}

impl Work {
    pub(super) fn new(parked: BTreeMap<Place, Parked>) -> Self {
        let next_due = (!parked.is_empty()).then_some(Timestamp::from_millis(i64::MIN));
        Self { parked, next_due, ..Self::default() }
    }

    /// Whether one more event may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.in_hand < MAX_IN_HAND && self.parked.len() + self.untold.len() < MAX_PARKED
    }

    /// Whether nothing is in hand or parked.
    pub(super) fn is_empty(&self) -> bool {
        self.in_hand == 0 && self.parked.is_empty()
    }

    /// Events in hand and parked.
    pub(super) fn count(&self) -> u64 {
        (self.untold.len() + self.parked.len()) as u64
    }

    /// Those that wait to be tried again.
    pub(super) const fn parked(&self) -> &BTreeMap<Place, Parked> {
        &self.parked
    }

    /// The lowest offset of each topic that is in hand and not parked.
    pub(super) fn lowest(&self) -> [Option<u64>; 2] {
        std::array::from_fn(|topic| {
            let first = self.untold.range((topic, 0)..).next();
            first.filter(|(of, _)| *of == topic && topic < TOPICS.len()).map(|(_, offset)| *offset)
        })
    }

    /// Takes an event of the backlog.
    pub(super) fn admit(&mut self, id: MessageId, record: Received) {
        let place = place(&record.position);
        if self.parked.values().any(|parked| parked.id == id) {
            let now = record.timestamp;
            self.parked.insert(place, Parked { id, tries: 0, tried: now, due: now, record: None, is_out: false });
            return;
        }
        self.untold.insert(place);
        self.in_hand += 1;
        let tried = record.timestamp;
        self.ready.push_back(Event { place, id, record: Some(record), tries: 0, tried, is_parked: false });
    }

    /// Makes those parked events ready that are due and the first of their message, as far as there is room.
    pub(super) fn take_due(&mut self, now: Timestamp) {
        if self.next_due.is_none_or(|due| due > now) {
            return;
        }
        let (mut messages, mut next_due) = (AHashSet::with_capacity(self.parked.len()), None::<Timestamp>);
        for (place, parked) in &mut self.parked {
            if !messages.insert(parked.id) || parked.is_out {
                continue;
            }
            if parked.due > now || self.in_hand >= MAX_IN_HAND {
                next_due = Some(next_due.map_or(parked.due, |due| due.min(parked.due)));
                continue;
            }
            parked.is_out = true;
            self.in_hand += 1;
            let (id, tries, tried) = (parked.id, parked.tries, parked.tried);
            self.ready.push_back(Event {
                place: *place,
                id,
                record: parked.record.take(),
                tries,
                tried,
                is_parked: true,
            });
        }
        self.next_due = next_due;
    }

    /// Whether an event may be told now.
    pub(super) fn is_ready(&mut self) -> bool {
        while let Some(event) = self.ready.front() {
            let Some(behind) = self.under_way.get_mut(&event.id) else { return true };
            behind.extend(self.ready.pop_front());
        }
        false
    }

    /// The next event that is to be told, which from now on is under way.
    pub(super) fn next(&mut self) -> Option<Event> {
        if !self.is_ready() {
            return None;
        }
        let event = self.ready.pop_front()?;
        self.under_way.insert(event.id, VecDeque::new());
        Some(event)
    }

    /// An event is done with: the next one of its message may be told.
    pub(super) fn settled(&mut self, event: &Event) {
        self.in_hand -= 1;
        if event.is_parked {
            self.parked.remove(&event.place);
            let due = event.tried;
            if let Some(next) = self.parked.values_mut().find(|parked| parked.id == event.id) {
                next.due = due;
                self.next_due = Some(due);
            }
        } else {
            self.untold.remove(&event.place);
        }
        self.release(event.id);
    }

    /// An event was not told, or the endpoint said nothing about it: it is told as soon as the endpoint may be asked.
    pub(super) fn not_now(&mut self, event: Event) {
        let id = event.id;
        if event.is_parked {
            self.in_hand -= 1;
            if let Some(parked) = self.parked.get_mut(&event.place) {
                parked.is_out = false;
                self.next_due = Some(self.next_due.map_or(parked.due, |due| due.min(parked.due)));
            }
            self.release(id);
        } else {
            self.release(id);
            self.ready.push_front(event);
        }
    }

    /// An event was refused `at` that time: it is parked, with those behind it, until `due`.
    pub(super) fn refused(&mut self, event: Event, at: Timestamp, due: Timestamp, keeps: bool) {
        let Event { place, id, record, tries, .. } = event;
        let record = record.filter(|_| keeps);
        let tries = tries.saturating_add(1);
        self.park(place, Parked { id, tries, tried: at, due, record, is_out: false });
        for behind in self.under_way.remove(&id).unwrap_or_default() {
            self.park(behind.place, Parked { id, tries: 0, tried: at, due, record: None, is_out: false });
        }
        // Those that are ready, and of the message, were behind it too.
        let mut kept = VecDeque::with_capacity(self.ready.len());
        for event in std::mem::take(&mut self.ready) {
            if event.id == id {
                self.park(event.place, Parked { id, tries: 0, tried: at, due, record: None, is_out: false });
            } else {
                kept.push_back(event);
            }
        }
        self.ready = kept;
    }

    /// The endpoint has recovered: nothing waits for its delay.
    pub(super) fn try_all_now(&mut self, now: Timestamp) {
        for parked in self.parked.values_mut() {
            parked.due = parked.due.min(now);
        }
        self.next_due = (!self.parked.is_empty()).then_some(now);
    }

    fn park(&mut self, place: Place, parked: Parked) {
        self.in_hand -= 1;
        self.untold.remove(&place);
        self.next_due = Some(self.next_due.map_or(parked.due, |due| due.min(parked.due)));
        self.parked.insert(place, parked);
    }

    /// Nothing of a message is under way.
    fn release(&mut self, id: MessageId) {
        for behind in self.under_way.remove(&id).unwrap_or_default().into_iter().rev() {
            self.ready.push_front(behind);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use eshaar_model::Attempt;
    use eshaar_topics::{Headers, LogPosition, Topic};

    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_760_000_000_000);

    fn after(ms: i64) -> Timestamp {
        START.plus_millis(ms)
    }

    fn record(offset: u64) -> Received {
        Received {
            position: LogPosition { topic: Topic::MessageStatus, partition: 0, offset },
            attempt: Attempt::FIRST,
            timestamp: START,
            key: Bytes::new(),
            value: Bytes::new(),
            headers: Headers::none(),
        }
    }

    fn work(events: &[(MessageId, u64)]) -> Work {
        let mut work = Work::default();
        for (id, offset) in events {
            work.admit(*id, record(*offset));
        }
        work
    }

    fn offsets(work: &mut Work) -> Vec<u64> {
        std::iter::from_fn(|| work.next()).map(|event| event.place.1).collect()
    }

    #[test]
    fn events_of_a_message_are_told_one_after_the_other() {
        let [one, other] = [0; 2].map(|_| MessageId::new(START));
        let mut work = work(&[(one, 0), (one, 1), (other, 2), (one, 3)]);
        let first = work.next().unwrap();
        assert_eq!(offsets(&mut work), [2]);
        assert_eq!(work.lowest(), [None, Some(0)]);
        work.settled(&first);
        let second = work.next().unwrap();
        assert_eq!((second.place.1, work.lowest()), (1, [None, Some(1)]));
        work.not_now(second);
        assert_eq!(offsets(&mut work), [1]);
    }

    #[test]
    fn a_refused_event_waits_with_those_behind_it_and_holds_up_nothing_else() {
        let [one, other] = [0; 2].map(|_| MessageId::new(START));
        let mut work = work(&[(one, 0), (one, 1), (other, 2)]);
        let first = work.next().unwrap();
        work.refused(first, START, after(5_000), true);
        work.admit(one, record(3));
        assert_eq!((offsets(&mut work), work.parked().len(), work.lowest()), (vec![2], 3, [None, Some(2)]));
        work.take_due(after(4_999));
        assert!(!work.is_ready());
        work.take_due(after(5_000));
        let again = work.next().unwrap();
        assert_eq!((again.place.1, again.tries, again.record.is_some(), work.is_ready()), (0, 1, true, false));
        work.settled(&again);
        for expected in [1, 3] {
            work.take_due(after(5_000));
            let next = work.next().unwrap();
            assert_eq!((next.place.1, next.tries), (expected, 0));
            work.settled(&next);
        }
        assert!(work.parked().is_empty());
    }

    #[test]
    fn a_parked_event_that_is_not_told_stays_parked() {
        let one = MessageId::new(START);
        let mut work = work(&[(one, 0)]);
        let first = work.next().unwrap();
        work.refused(first, START, after(5_000), false);
        for _ in 0..3 {
            work.take_due(after(5_000));
            let again = work.next().unwrap();
            assert!(again.record.is_none());
            work.not_now(again);
        }
        work.take_due(after(5_000));
        let again = work.next().unwrap();
        work.refused(again, after(5_000), after(305_000), false);
        work.try_all_now(after(6_000));
        work.take_due(after(6_000));
        let again = work.next().unwrap();
        assert_eq!(again.tries, 2);
        work.settled(&again);
        assert!(work.is_empty());
    }

    #[test]
    fn what_is_in_hand_is_bounded_and_so_is_what_is_parked() {
        let mut work = Work::default();
        let (mut taken, mut offset) = (0, 0);
        while work.parked().len() < MAX_PARKED {
            while work.has_room() {
                work.admit(MessageId::new(START), record(offset));
                offset += 1;
            }
            taken = taken.max(work.in_hand);
            while let Some(event) = work.next() {
                work.refused(event, START, after(5_000), false);
            }
        }
        assert_eq!((taken, work.parked().len(), work.has_room()), (MAX_IN_HAND, MAX_PARKED, false));
        work.take_due(after(5_000));
        assert_eq!(offsets(&mut work).len(), MAX_IN_HAND);
    }
}
