//! Ids for new messages.

use std::sync::atomic::{AtomicU64, Ordering};

use eshaar_model::{MessageId, Timestamp};
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};

/// Bits of the counter that follows the milliseconds (RFC 9562, 6.2, method 1): 4,096 ids a millisecond, then it runs
/// into the next.
const COUNTER_BITS: u32 = 12;

/// Furthest that the generator runs ahead of the clock, in milliseconds. Small steps of the clock keep ids in order; after
/// a larger one (a clock that was corrected) the generator follows the clock.
const MAX_AHEAD_MS: i64 = 1_000;

/// Makes ids that only grow within this process, so that a sender's messages are listed in the order they were accepted.
/// The order is broken only where the clock steps back by more than [`MAX_AHEAD_MS`]. Ids stay unique there, too: each has
/// 62 random bits.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    /// Milliseconds and counter of the newest id.
    last: AtomicU64,
}

impl Ids {
    pub(crate) fn mint(&self, now: Timestamp) -> MessageId {
        let floor = (now.as_millis().max(0) as u64) << COUNTER_BITS;
        let ceiling = floor.saturating_add((MAX_AHEAD_MS as u64) << COUNTER_BITS);
        let next = |last: u64| if last < ceiling { floor.max(last + 1) } else { floor };
        let mut last = self.last.load(Ordering::Relaxed);
        while let Err(newer) = self.last.compare_exchange_weak(last, next(last), Ordering::Relaxed, Ordering::Relaxed) {
            last = newer;
        }
        let stamp = next(last);
        assemble(stamp >> COUNTER_BITS, stamp & 0xfff, rand::rng().next_u64())
    }
}

/// Ids of the lines of a bulk request that has an Idempotency-Key: the same for the same line of a repeat, in the order
/// of the lines. A line that was changed is another message, so its meaning is part of its id.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LineIds {
    base: MessageId,
    by_bytes: bool,
}

impl LineIds {
    /// `by_bytes`: the request was begun by an earlier release, which made ids of the bytes of lines.
    pub(crate) const fn new(base: MessageId, by_bytes: bool) -> Self {
        Self { base, by_bytes }
    }

    /// Whether ids are made of the bytes of lines and their numbers, blank lines counted; not of their meaning.
    pub(crate) const fn by_bytes(self) -> bool {
        self.by_bytes
    }

    /// `line` counts from 1. Order holds up to line 2^24.
    pub(crate) fn of(self, line: u64, meaning: &[u8]) -> MessageId {
        let hash = Sha256::new()
            .chain_update(self.base.as_bytes())
            .chain_update(line.to_be_bytes())
            .chain_update(meaning)
            .finalize();
        let random = hash.first_chunk().map_or(0, |bytes: &[u8; 8]| u64::from_be_bytes(*bytes));
        // Twelve bits of the line's number stand behind the milliseconds, twelve more lead the random bits.
        let low = (line & 0xfff) << 50 | random >> 14;
        assemble(self.base.made_at().as_millis() as u64, line >> 12 & 0xfff, low)
    }
}

/// A UUIDv7 of 48 bits of milliseconds, 12 bits behind them, and the lower 62 bits of `low`.
fn assemble(millis: u64, counter: u64, low: u64) -> MessageId {
    let high = millis << 16 | 0x7000 | counter;
    let low = low & (u64::MAX >> 2) | 1 << 63;
    let uuid = uuid::Uuid::from_u64_pair(high, low);
    // The version was just set to 7, which is all that is checked.
    MessageId::try_from(uuid).unwrap_or_else(|_| MessageId::new(Timestamp::from_millis(millis as i64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_767_225_600_123);

    #[test]
    fn ids_grow_within_a_millisecond_and_when_the_clock_steps_back() {
        let ids = Ids::default();
        let minted: Vec<_> = (0..10_000).map(|round| ids.mint(NOW.plus_millis(-(round / 100)))).collect();
        assert!(minted.is_sorted_by(|a, b| a < b));
        assert_eq!(minted[0].made_at(), NOW);
        assert!(minted[9_999].made_at().millis_since(NOW) <= 3);
    }

    #[test]
    fn the_generator_follows_a_clock_that_is_set_back_and_its_ids_stay_unique_and_grow_again() {
        const DAY_MS: i64 = 24 * 3_600_000;
        let ids = Ids::default();
        let ahead: Vec<_> = (0..100).map(|_| ids.mint(NOW.plus_millis(DAY_MS))).collect();
        let after: Vec<_> = (0..10_000).map(|round| ids.mint(NOW.plus_millis(round / 100))).collect();
        assert_eq!(after[0].made_at(), NOW);
        assert!(after.is_sorted_by(|a, b| a < b));
        for (round, id) in after.iter().enumerate() {
            let now = NOW.plus_millis(round as i64 / 100);
            assert!((0..=MAX_AHEAD_MS).contains(&id.made_at().millis_since(now)), "{round}");
        }
        let all: std::collections::HashSet<_> = ahead.iter().chain(&after).collect();
        assert_eq!(all.len(), 10_100);
    }

    #[test]
    fn ids_of_several_threads_are_all_different() {
        let ids = Ids::default();
        let minted: Vec<Vec<_>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..5_000).map(|_| ids.mint(NOW)).collect())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let all: std::collections::HashSet<_> = minted.into_iter().flatten().collect();
        assert_eq!(all.len(), 20_000);
    }

    #[test]
    fn ids_of_lines_are_the_same_again_grow_with_the_line_and_change_with_its_text() {
        let ids = LineIds::new(MessageId::new(NOW), false);
        let minted: Vec<_> = (1..=20_000).map(|line| ids.of(line, b"text")).collect();
        assert!(minted.is_sorted_by(|a, b| a < b));
        assert_eq!(minted[41], ids.of(42, b"text"));
        assert_ne!(minted[41], ids.of(42, b"other"));
        assert_ne!(minted[41], LineIds::new(MessageId::new(NOW), false).of(42, b"text"));
        assert_eq!(minted[19_999].made_at(), NOW);
    }
}
