//! Between our types and CQL's.

use eshaar_model::{Epoch, Lane, Phone, Timestamp};
use scylla::value::{CqlTimestamp, MaybeUnset};

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
    fn a_time_to_live_is_within_what_cql_takes() {
        assert_eq!([1_500, 0, -1_500, i64::MAX].map(ttl_s), [2, 1, 1, LONGEST_TTL_S as i32]);
    }
}
