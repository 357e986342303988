//! Between our types and CQL's.

use eshaar_model::{Epoch, Lane, Phone, Timestamp};
use scylla::value::{CqlTimestamp, MaybeUnset};

use crate::messages::CopyRank;

/// Offsets, phones and other unsigned numbers. One past the range, which only a forged cursor can hold, is behind
/// everything that is stored.
pub(super) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// One past the range, which only a forged cursor can hold, is newer than everything that is stored.
pub(super) fn epoch(epoch: Epoch) -> i32 {
    i32::try_from(epoch.0).unwrap_or(i32::MAX)
}

pub(super) const fn lane(lane: Lane) -> i8 {
    lane as i8
}

pub(super) fn phone(phone: Phone) -> i64 {
    integer(phone.digits())
}

pub(super) const fn time(at: Timestamp) -> CqlTimestamp {
    CqlTimestamp(at.as_millis())
}

pub(super) const fn timestamp(at: CqlTimestamp) -> Timestamp {
    Timestamp::from_millis(at.0)
}

/// What is not there is not written: a null would be a tombstone.
pub(super) fn optional_time(at: Option<Timestamp>) -> MaybeUnset<CqlTimestamp> {
    MaybeUnset::from_option(at.map(time))
}

/// Longest time to live that CQL knows: 20 years.
const LONGEST_TTL_S: i64 = 630_720_000;

/// A time to live, in seconds, from what is left of it. What is past its time already is written all the same, for a
/// second.
pub(super) fn ttl_s(left_ms: i64) -> i32 {
    (left_ms / 1_000).saturating_add(1).clamp(1, LONGEST_TTL_S) as i32
}

/// A write timestamp from what must be highest to stand, such as an offset.
pub(super) fn highest_wins(value: u64) -> i64 {
    integer(value).saturating_add(1).min(EARLIEST)
}

/// A write timestamp from what must be lowest to stand, such as a time.
pub(super) fn lowest_wins(value: i64) -> i64 {
    EARLIEST - value.clamp(0, EARLIEST - 1)
}

/// A write timestamp of a copy of a message: the lowest rank stands. Rows that were written before there were ranks, by their
/// offset alone, stand before all: nothing changes them.
pub(super) fn copy_wins(rank: CopyRank) -> i64 {
    match rank {
        CopyRank::Scheduled => SCHEDULED_AT,
        CopyRank::Accepted { may_repeat, partition, offset } => {
            let partition =
                i64::from(partition.min(MAX_PARTITION)) + i64::from(may_repeat) * (i64::from(MAX_PARTITION) + 1);
            lowest_wins(partition * OFFSETS + integer(offset).min(OFFSETS - 1))
        }
    }
}

/// Below every copy of `messages.accepted`.
const SCHEDULED_AT: i64 = 0;

/// Partitions and offsets that a write timestamp tells apart: 1,024 (the most that an option allows), and 4.8 * 10^11 in each.
const MAX_PARTITION: u32 = 1_023;
const OFFSETS: i64 = 480_000_000_000;

/// 10^15: in the microseconds of a clock, September 2001. A deletion by the clock is above it, so it deletes.
const EARLIEST: i64 = 1_000_000_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_timestamps_are_in_order_and_below_those_of_a_clock() {
        assert!(highest_wins(7) > highest_wins(6) && highest_wins(0) > 0);
        assert!(lowest_wins(1_760_000_000_000) > lowest_wins(1_760_000_000_001));
        for extreme in [highest_wins(u64::MAX), lowest_wins(i64::MIN), lowest_wins(i64::MAX)] {
            assert!((1..=EARLIEST).contains(&extreme), "{extreme}");
        }
    }

    #[test]
    fn the_write_timestamps_of_copies_are_in_the_order_of_their_ranks() {
        let rank = |may_repeat, partition, offset| CopyRank::Accepted { may_repeat, partition, offset };
        let ranks = [
            rank(false, 0, 0),
            rank(false, 0, 400_000_000_000),
            rank(false, 1, 0),
            rank(false, 1, 9),
            rank(false, 1_023, 400_000_000_000),
            rank(true, 0, 3),
            rank(true, 1_023, u64::MAX),
            CopyRank::Scheduled,
        ];
        assert!(ranks.is_sorted_by(|a, b| a < b));
        let written_at = ranks.map(copy_wins);
        assert!(written_at.is_sorted_by(|a, b| a > b), "{written_at:?}");
        assert!((0..EARLIEST + 1).contains(&written_at[0]) && written_at[6] > 0);
    }

    #[test]
    fn a_time_to_live_is_within_what_cql_takes() {
        assert_eq!([1_500, 0, -1_500, i64::MAX].map(ttl_s), [2, 1, 1, LONGEST_TTL_S as i32]);
    }
}
