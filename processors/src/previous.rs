//! The offset of the last message of each stream, or conversation, for the `prev` of a hint. Bounded: what is forgotten is
//! looked up again.
//!
//! An entry must never be behind what was written: a `prev` that leaves a message out would have a client leave it out too.
//! So every row that is appended moves the entry of its stream on, if there is one, whether or not anybody is online.

use std::hash::Hash;

use ahash::AHashMap;

/// Two generations: when the young one is full it becomes the old one, and the old one is forgotten.
#[derive(Debug)]
pub struct Previous<S> {
    most: usize,
    young: AHashMap<S, u64>,
    old: AHashMap<S, u64>,
}

impl<S: Copy + Eq + Hash> Previous<S> {
    /// Remembers about `most` streams.
    pub(crate) fn new(most: usize) -> Self {
        Self { most: most.max(2), young: AHashMap::new(), old: AHashMap::new() }
    }

    /// The last offset before `offset`, where it is known.
    pub(crate) fn before(&self, stream: S, offset: u64) -> Option<u64> {
        self.last(stream).filter(|last| *last < offset)
    }

    /// `offset` was appended. A stream that is not `wanted` is not taken up, only kept right.
    pub(crate) fn appended(&mut self, stream: S, offset: u64, wanted: bool) {
        let known = self.last(stream);
        if known.is_none() && !wanted {
            return;
        }
        if self.young.len() >= self.most / 2 && !self.young.contains_key(&stream) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(stream, known.map_or(offset, |last| last.max(offset)));
    }

    fn last(&self, stream: S) -> Option<u64> {
        self.young.get(&stream).or_else(|| self.old.get(&stream)).copied()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use eshaar_model::{Lane, Phone};

    use super::*;

    fn stream(number: u64) -> (Phone, Lane) {
        (Phone::from_digits(966_500_000_000 + number).unwrap(), Lane::Normal)
    }

    #[test]
    fn an_entry_follows_its_stream_even_while_nobody_wants_it() {
        let mut previous = Previous::new(10);
        previous.appended(stream(1), 5, true);
        previous.appended(stream(1), 6, false);
        assert_eq!(previous.before(stream(1), 7), Some(6));
    }

    #[test]
    fn what_nobody_wants_is_not_taken_up() {
        let mut previous = Previous::new(10);
        previous.appended(stream(1), 5, false);
        assert_eq!(previous.before(stream(1), 7), None);
    }

    #[test]
    fn an_entry_that_is_not_below_the_message_is_no_answer() {
        let mut previous = Previous::new(10);
        previous.appended(stream(1), 5, true);
        assert_eq!(previous.before(stream(1), 5), None);
    }

    #[test]
    fn it_is_bounded_and_what_was_used_last_stays() {
        let mut previous = Previous::new(10);
        for number in 0..1_000 {
            previous.appended(stream(number), number, true);
            previous.appended(stream(0), number, true);
        }
        assert!(previous.young.len() + previous.old.len() <= 10);
        assert_eq!(previous.before(stream(0), 5_000), Some(999));
    }
}
