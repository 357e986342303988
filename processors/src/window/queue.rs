//! A queue whose items keep their places, and whose memory follows what is in it: it grows and shrinks by a chunk, and
//! nothing is ever copied.

use std::collections::VecDeque;

/// Items of a chunk.
const CHUNK: usize = 256;

/// A queue. A place is counted from the first item ever pushed, and begins again after 2^32 of them: fewer are held.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// All but the last are full.
    chunks: VecDeque<Vec<T>>,
    /// Items of the first chunk that were taken.
    taken: usize,
    /// Place of the first item.
    first: u32,
    len: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { chunks: VecDeque::new(), taken: 0, first: 0, len: 0 }
    }
}

impl<T> Queue<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Puts an item behind all others; says its place.
    pub(super) fn push(&mut self, item: T) -> u32 {
        if self.chunks.back().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push_back(Vec::with_capacity(CHUNK));
        }
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.push(item);
        }
        self.len += 1;
        self.first.wrapping_add((self.len - 1) as u32)
    }

    pub(super) fn get(&self, place: u32) -> Option<&T> {
        let index = self.index(place);
        self.chunks.get(index / CHUNK)?.get(index % CHUNK)
    }

    pub(super) fn get_mut(&mut self, place: u32) -> Option<&mut T> {
        let index = self.index(place);
        self.chunks.get_mut(index / CHUNK)?.get_mut(index % CHUNK)
    }

    /// The first item and its place.
    pub(super) fn front(&self) -> Option<(u32, &T)> {
        self.get(self.first).map(|item| (self.first, item))
    }

    /// Drops the first item, and its chunk with the last of it.
    pub(super) fn pop_front(&mut self) {
        if self.len == 0 {
            return;
        }
        self.len -= 1;
        self.taken += 1;
        self.first = self.first.wrapping_add(1);
        if self.taken == CHUNK {
            self.chunks.pop_front();
            self.taken = 0;
        }
    }

    fn index(&self, place: u32) -> usize {
        place.wrapping_sub(self.first) as usize + self.taken
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_holds_what_a_plain_queue_holds_each_at_its_place(
            first in prop_oneof![Just(0), Just(u32::MAX - 300)],
            steps in prop::collection::vec((0_usize..400, 0_usize..400), 1..12),
        ) {
            let mut queue = Queue { first, ..Queue::default() };
            let (mut plain, mut next) = (VecDeque::new(), first);
            for (pushed, popped) in steps {
                for _ in 0..pushed {
                    prop_assert_eq!(queue.push(next), next);
                    plain.push_back(next);
                    next = next.wrapping_add(1);
                }
                for _ in 0..popped {
                    queue.pop_front();
                    plain.pop_front();
                }
                prop_assert_eq!(queue.len(), plain.len());
                prop_assert_eq!(queue.front(), plain.front().map(|place| (*place, place)));
                prop_assert!(plain.iter().all(|place| queue.get(*place) == Some(place)));
                prop_assert_eq!(queue.get(next), None);
                prop_assert!(queue.chunks.len() <= plain.len() / CHUNK + 2);
            }
        }
    }

    #[test]
    fn an_item_can_be_changed_where_it_stands() {
        let mut queue = Queue::default();
        let places: Vec<u32> = (0..600).map(|number| queue.push(number)).collect();
        *queue.get_mut(places[599]).unwrap() = 7;
        assert_eq!((queue.get(places[599]), queue.get(places[598])), (Some(&7), Some(&598)));
    }
}
