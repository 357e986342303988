//! The recipients' addresses: a series of valid Saudi mobile numbers, `+9665` and eight digits.

use std::fmt;

const SERIES: u64 = 100_000_000;

/// A run's phones. Each run starts somewhere else, so that runs against one server do not meet.
#[derive(Clone, Copy, Debug)]
pub struct Phones {
    start: u64,
}

/// One phone of the series, in E.164.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhoneNumber(u64);

impl Phones {
    /// A series that depends on `seed` alone.
    pub fn new(seed: u64) -> Self {
        // Multiplying by an odd constant spreads neighbouring seeds over the series.
        Self { start: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % SERIES }
    }

    /// The phone of a recipient. Different for each of the first 100 million.
    pub fn number(self, recipient: u32) -> PhoneNumber {
        PhoneNumber(966_500_000_000 + (self.start + u64::from(recipient)) % SERIES)
    }
}

impl fmt::Display for PhoneNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{}", self.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use eshaar_model::Phone;

    use super::*;

    #[test]
    fn every_phone_of_the_series_is_valid_and_different() {
        let phones = Phones::new(u64::MAX);
        let numbers: ahash::HashSet<String> = (0..5_000).map(|index| phones.number(index).to_string()).collect();
        assert_eq!(numbers.len(), 5_000);
        for number in numbers {
            number.parse::<Phone>().unwrap();
        }
    }
}
