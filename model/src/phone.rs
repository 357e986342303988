//! A mobile user's address: an E.164 phone number.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An E.164 number: at most 15 digits behind a `+`, the first not zero. Eight bytes, copied freely.
///
/// What it accepts is decided by the numbering plans of Google's libphonenumber (a *possible* number: known country
/// code, right length for it), not by whether the number is in service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Phone(u64);

/// The text is not an E.164 number. It says the size of what was refused, never the number itself.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PhoneError {
    /// No `+`, a character that is not a digit, or more than 15 digits.
    #[error("expected an E.164 phone number (`+`, then 7 to 15 digits), got {length} characters that are not one")]
    Form {
        /// Length of the refused text, in characters.
        length: usize,
    },
    /// The numbering plans know no such number.
    #[error("no country has phone numbers like this one ({length} characters): check the country code and the length")]
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

    /// From digits that were a `Phone` before; `None` where they cannot have been one.
    pub fn from_digits(digits: u64) -> Option<Self> {
        (1_000_000..=999_999_999_999_999).contains(&digits).then_some(Self(digits))
    }

    /// For logs: country code and last two digits, the rest masked (R11.1).
    pub fn masked(self) -> String {
        let text = self.0.to_string();
        let (head, tail) = (&text[..2], &text[text.len() - 2..]);
        format!("+{head}{}{tail}", "*".repeat(text.len() - 4))
    }

    fn parse_form(text: &str) -> Option<u64> {
        let digits = text.strip_prefix('+')?;
        let well_formed = (7..=15).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && !digits.starts_with('0');
        if well_formed { digits.parse().ok() } else { None }
    }
}

impl FromStr for Phone {
    type Err = PhoneError;

    fn from_str(text: &str) -> Result<Self, PhoneError> {
        let digits = Self::parse_form(text).ok_or_else(|| PhoneError::Form { length: text.chars().count() })?;
        if plan::possible(&text[1..]) { Ok(Self(digits)) } else { Err(PhoneError::Plan { length: text.len() }) }
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

/// What the world's numbering plans allow: a country code that exists, and a length that its numbers may have. The
/// metadata answers both without the library's regular expressions, at a tenth of their price.
mod plan {
    use phonenumber::Type;
    use phonenumber::metadata::DATABASE;

    const KINDS: [Type; 10] = [
        Type::Mobile,
        Type::FixedLine,
        Type::TollFree,
        Type::PremiumRate,
        Type::SharedCost,
        Type::PersonalNumber,
        Type::Voip,
        Type::Pager,
        Type::Uan,
        Type::Voicemail,
    ];

    pub(super) fn possible(digits: &str) -> bool {
        (1..=3).any(|code_length| {
            let (code, national) = digits.split_at(code_length);
            let Some(countries) = code.parse().ok().and_then(|code: u16| DATABASE.by_code(&code)) else {
                return false;
            };
            let length = national.len() as u16;
            countries.iter().any(|country| {
                KINDS
                    .iter()
                    .filter_map(|kind| country.descriptors().get(*kind))
                    .any(|kind| kind.possible_length().contains(&length))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_several_countries_are_accepted() {
        for text in ["+966501234567", "+14155550123", "+442071838750", "+4915112345678", "+6591234567"] {
            assert_eq!(text.parse::<Phone>().map(|phone| phone.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_is_not_e164_is_refused_by_form() {
        for text in ["", "966501234567", "+", "+0501234567", "+96650 123", "+9665012345678901", "+٩٦٦٥٠١٢٣٤٥٦٧"]
        {
            let refused = PhoneError::Form { length: text.chars().count() };
            assert_eq!(text.parse::<Phone>(), Err(refused), "{text}");
        }
    }

    #[test]
    fn a_number_no_country_has_is_refused_by_plan() {
        assert_eq!("+9991234567".parse::<Phone>(), Err(PhoneError::Plan { length: 11 }));
        assert_eq!("+1415555".parse::<Phone>(), Err(PhoneError::Plan { length: 8 }));
    }

    #[test]
    fn a_phone_is_masked_in_debug_output() {
        let phone: Phone = "+966501234567".parse().unwrap();
        assert_eq!(format!("{phone:?}"), "+96********67");
    }
}
