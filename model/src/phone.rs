//! A mobile user's address: an E.164 phone number.

mod plan;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use self::plan::Verdict;

/// An E.164 number: at most 15 digits behind a `+`, the first not zero. Eight bytes, copied freely.
///
/// [`Phone::parse_valid`] is for what comes from outside: the number must fit its country's numbering plan, as
/// Google's libphonenumber has it. `FromStr` and `Deserialize` check the form alone. They are for what was accepted before (rows,
/// records, cursors): plans change, and what they change must not make old rows unreadable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Phone(u64);

/// The text is not a phone number. The error says the size of what was refused, never the number itself.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PhoneError {
    /// No `+`, a character that is not a digit, or more than 15 digits.
    #[error("expected an E.164 phone number (`+`, then 7 to 15 digits), got {length} characters that are not one")]
    Form {
        /// Length of the refused text, in characters.
        length: usize,
    },
    /// The prefix for calls within the country was kept behind the country code.
    #[error(
        "not a number that can be reached from abroad: leave out the prefix for calls within the country (often a `0`) behind \
         +{code}"
    )]
    TrunkPrefix {
        /// The country code.
        code: u16,
    },
    /// The numbering plans know no such number.
    #[error(
        "no country has phone numbers like this one ({length} characters): check the country code, the length and the first \
         digits"
    )]
    Plan {
        /// Length of the refused text, in characters.
        length: usize,
    },
}

impl Phone {
    /// The digits as a number, without the `+`. A compact key for stores and caches.
    pub const fn digits(self) -> u64 {
        self.0
    }

    /// From digits that were a `Phone` before, by the form alone; `None` where they cannot have been one.
    pub fn from_digits(digits: u64) -> Option<Self> {
        (1_000_000..=999_999_999_999_999).contains(&digits).then_some(Self(digits))
    }

    /// For logs: country code and last two digits, the rest masked (R11.1).
    pub fn masked(self) -> String {
        let text = self.0.to_string();
        let (head, tail) = (&text[..2], &text[text.len() - 2..]);
        format!("+{head}{}{tail}", "*".repeat(text.len() - 4))
    }

    /// A number that comes from outside: of the right form, and one that its country has or may get: it begins as its plan
    /// allows, is as long as that, and has no prefix for calls within the country.
    pub fn parse_valid(text: &str) -> Result<Self, PhoneError> {
        let phone: Self = text.parse()?;
        match plan::judge(&text[1..]) {
            Verdict::Valid => Ok(phone),
            Verdict::TrunkPrefix { code } => Err(PhoneError::TrunkPrefix { code }),
            Verdict::Unknown => Err(PhoneError::Plan { length: text.len() }),
        }
    }

    fn parse_form(text: &str) -> Option<u64> {
        let digits = text.strip_prefix('+')?;
        let well_formed = (7..=15).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && !digits.starts_with('0');
        if well_formed { digits.parse().ok() } else { None }
    }
}

/// By the form alone.
impl FromStr for Phone {
    type Err = PhoneError;

    fn from_str(text: &str) -> Result<Self, PhoneError> {
        let digits = Self::parse_form(text).ok_or_else(|| PhoneError::Form { length: text.chars().count() })?;
        Ok(Self(digits))
    }
}

impl fmt::Display for Phone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{}", self.0)
    }
}

/// Masked: a full number must not reach a log by way of `{:?}`.
impl fmt::Debug for Phone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl Serialize for Phone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Phone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_several_countries_are_accepted() {
        for text in ["+966501234567", "+14155550123", "+442071838750", "+4915112345678", "+6591234567"] {
            assert_eq!(Phone::parse_valid(text).map(|phone| phone.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_is_not_e164_is_refused_by_form() {
        for text in ["", "966501234567", "+", "+0501234567", "+96650 123", "+9665012345678901", "+٩٦٦٥٠١٢٣٤٥٦٧"]
        {
            let refused = PhoneError::Form { length: text.chars().count() };
            assert_eq!(Phone::parse_valid(text), Err(refused), "{text}");
            assert!(text.parse::<Phone>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_that_no_plan_has_is_refused_from_outside_and_read_from_rows() {
        for text in ["+9991234567", "+1415555", "+9661012", "+11234567890", "+96650123456", "+9665012345678"] {
            let length = text.len();
            assert_eq!(Phone::parse_valid(text), Err(PhoneError::Plan { length }), "{text}");
            if length >= 8 {
                assert_eq!(text.parse::<Phone>().map(|phone| phone.to_string()), Ok(text.to_owned()));
            }
        }
    }

    #[test]
    fn a_kept_trunk_prefix_is_named() {
        for (text, code) in
            [("+9660501234567", 966), ("+460736829291", 46), ("+4407911123456", 44), ("+788005553535", 7)]
        {
            assert_eq!(Phone::parse_valid(text), Err(PhoneError::TrunkPrefix { code }), "{text}");
        }
    }

    #[test]
    fn a_range_that_a_plan_may_assign_is_accepted() {
        // 52 is free in Saudi Arabia, and looks like any mobile number.
        assert!(Phone::parse_valid("+966521234567").is_ok());
    }

    #[test]
    fn a_leading_zero_that_the_plan_keeps_is_accepted() {
        for text in ["+390612345678", "+2250707070707"] {
            assert!(Phone::parse_valid(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_phone_is_masked_in_debug_output() {
        let phone: Phone = "+966501234567".parse().unwrap();
        assert_eq!(format!("{phone:?}"), "+96********67");
    }
}
