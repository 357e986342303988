//! The offset of the last message of each phone in each lane, for the `prev` of a hint. Bounded: what is forgotten is looked
//! up in the stream again.
//!
//! An entry must never be behind the stream: a `prev` that leaves a message out would have a session leave it out too. So
//! every row that is appended moves the entry of its phone on, if there is one, whether or not the phone is online.

use ahash::AHashMap;
use eshaar_model::{Lane, Phone};

/// A stream of one lane.
pub(super) type Stream = (Phone, Lane);

/// Two generations: when the young one is full it becomes the old one, and the old one is forgotten.
#[derive(Debug)]
pub(super) struct Previous {
    most: usize,
    young: AHashMap<Stream, u64>,
    old: AHashMap<Stream, u64>,
}

impl Previous {
    /// Remembers about `most` streams.
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(2), young: AHashMap::new(), old: AHashMap::new() }
    }

    /// The last offset before `offset`, where it is known.
    pub(super) fn before(&self, stream: Stream, offset: u64) -> Option<u64> {
        self.last(stream).filter(|last| *last < offset)
    }

    /// `offset` was appended. A stream that is not `wanted` is not taken up, only kept right.
    pub(super) fn appended(&mut self, stream: Stream, offset: u64, wanted: bool) {
        let known = self.last(stream);
        if known.is_none() && !wanted {
            return;
        }
        if self.young.len() >= self.most / 2 && !self.young.contains_key(&stream) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(stream, known.map_or(offset, |last| last.max(offset)));
    }

    fn last(&self, stream: Stream) -> Option<u64> {
        self.young.get(&stream).or_else(|| self.old.get(&stream)).copied()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn stream(number: u64) -> Stream {
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
