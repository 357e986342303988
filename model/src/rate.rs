//! So many in so long: `100/min`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// At most `count` within any `per`. Written `100/min`; the units are `s`, `min`, `h` and `d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    count: u32,
    per: Per,
}

/// The time that a rate is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Per {
    /// 1 s.
    Second,
    /// 60 s.
    Minute,
    /// 3,600 s.
    Hour,
    /// 86,400 s.
    Day,
}

impl Per {
    const ALL: [Self; 4] = [Self::Second, Self::Minute, Self::Hour, Self::Day];

    const fn unit(self) -> &'static str {
        match self {
            Self::Second => "s",
            Self::Minute => "min",
            Self::Hour => "h",
            Self::Day => "d",
        }
    }
}

impl Rate {
    /// At most `count` within any `per`. At least 1: a rate of nothing is a revoked permission, not a limit.
    pub const fn new(count: u32, per: Per) -> Option<Self> {
        if count == 0 { None } else { Some(Self { count, per }) }
    }

    /// How many.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// Within how long.
    pub const fn window(self) -> Duration {
        Duration::from_secs(match self.per {
            Per::Second => 1,
            Per::Minute => 60,
            Per::Hour => 3_600,
            Per::Day => 86_400,
        })
    }
}

/// The text is no rate.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "expected a rate such as 100/min (a number of 1 or more, and s, min, h or d), got {length} characters that are not one"
)]
pub struct RateError {
    /// Length of the refused text, in characters.
    pub length: usize,
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let parse = || {
            let (count, unit) = text.split_once('/')?;
            let per = Per::ALL.into_iter().find(|per| per.unit() == unit)?;
            Self::new(count.parse().ok()?, per)
        };
        parse().ok_or_else(|| RateError { length: text.chars().count() })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, self.per.unit())
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_read_as_it_is_written() {
        for (text, count, seconds) in
            [("100/min", 100, 60), ("1/s", 1, 1), ("5000/h", 5_000, 3_600), ("9/d", 9, 86_400)]
        {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.count(), rate.window().as_secs()), (count, seconds));
            assert_eq!(rate.to_string(), text);
        }
        for text in ["", "100", "100/", "/min", "0/s", "-1/s", "100/minute", "1/2/s", "4294967296/s"] {
            assert_eq!(text.parse::<Rate>(), Err(RateError { length: text.chars().count() }), "{text}");
        }
    }
}
