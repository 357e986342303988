//! Who sends, receives and connects: a business, or a phone.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Phone;
use crate::limits::BUSINESS_ID_CHARS;

/// Identity of a business: 1 to 64 characters of `a-z 0-9 _ -`, the first a letter or digit. So it never looks like a
/// phone number, which begins with `+`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusinessId(Arc<str>);

/// The text names no business.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "expected a business id (1 to 64 of a-z 0-9 _ -, first a letter or digit), got {length} characters that are not one"
)]
pub struct BusinessIdError {
    /// Length of the refused text, in characters.
    pub length: usize,
}

impl BusinessId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BusinessId {
    type Err = BusinessIdError;

    fn from_str(text: &str) -> Result<Self, BusinessIdError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
        let well_formed = (1..=BUSINESS_ID_CHARS).contains(&text.len())
            && text.bytes().all(allowed)
            && text.as_bytes()[0].is_ascii_alphanumeric();
        if well_formed { Ok(Self(text.into())) } else { Err(BusinessIdError { length: text.chars().count() }) }
    }
}

impl fmt::Display for BusinessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BusinessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A business or a phone. Its text form tells which: a phone begins with `+`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// A mobile user.
    Phone(Phone),
    /// A business, any of its agents and systems.
    Business(BusinessId),
}

/// The text names neither a phone nor a business.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PrincipalError {
    /// It begins with `+` and is no phone number.
    #[error(transparent)]
    Phone(#[from] crate::phone::PhoneError),
    /// It does not begin with `+` and is no business id.
    #[error(transparent)]
    Business(#[from] BusinessIdError),
}

impl Principal {
    /// A principal that comes from outside: a phone must be valid by its numbering plan. `FromStr` checks forms alone, for
    /// what was accepted before.
    pub fn parse_valid(text: &str) -> Result<Self, PrincipalError> {
        if text.starts_with('+') {
            Ok(Self::Phone(Phone::parse_valid(text)?))
        } else {
            Ok(Self::Business(text.parse()?))
        }
    }

    /// The phone, when it is one.
    pub const fn phone(&self) -> Option<Phone> {
        match self {
            Self::Phone(phone) => Some(*phone),
            Self::Business(_) => None,
        }
    }

    /// The business, when it is one.
    pub const fn business(&self) -> Option<&BusinessId> {
        match self {
            Self::Business(business) => Some(business),
            Self::Phone(_) => None,
        }
    }
}

impl From<Phone> for Principal {
    fn from(phone: Phone) -> Self {
        Self::Phone(phone)
    }
}

impl From<BusinessId> for Principal {
    fn from(business: BusinessId) -> Self {
        Self::Business(business)
    }
}

impl FromStr for Principal {
    type Err = PrincipalError;

    fn from_str(text: &str) -> Result<Self, PrincipalError> {
        if text.starts_with('+') { Ok(Self::Phone(text.parse()?)) } else { Ok(Self::Business(text.parse()?)) }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Phone(phone) => fmt::Display::fmt(phone, f),
            Self::Business(business) => fmt::Display::fmt(business, f),
        }
    }
}

macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

serde_as_text!(BusinessId);
serde_as_text!(Principal);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_principal_tells_which_kind_it_is() {
        assert!(matches!("+966501234567".parse(), Ok(Principal::Phone(_))));
        assert!(matches!("acme-bank".parse(), Ok(Principal::Business(_))));
    }

    #[test]
    fn a_business_id_with_other_characters_is_refused() {
        for text in ["", "-acme", "Acme", "a b", "acme.bank", &"a".repeat(65)] {
            assert_eq!(text.parse::<BusinessId>(), Err(BusinessIdError { length: text.len() }));
        }
    }
}
