//! A submission as it was sent: each field of whatever type, what is unknown or repeated noted by name.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::json::Field;

macro_rules! raw_fields {
    ($($field:ident = $name:literal),* $(,)?) => {
        /// The fields of a submission.
        #[derive(Debug, Default)]
        pub(super) struct Raw<'a> {
            $(pub(super) $field: Field<'a>,)*
            /// The first field that there is not.
            pub(super) unknown: Option<String>,
            /// The first field that was given twice.
            pub(super) repeated: Option<&'static str>,
        }

        impl<'a> Raw<'a> {
            /// The place of a field, and its name.
            fn slot(&mut self, name: &str) -> Option<(&mut Field<'a>, &'static str)> {
                match name {
                    $($name => Some((&mut self.$field, $name)),)*
                    _ => None,
                }
            }
        }
    };
}

raw_fields! {
    to = "to",
    conversation_id = "conversation_id",
    message_type = "type",
    content = "content",
    priority = "priority",
    media = "media",
    ttl_s = "ttl_s",
    send_at = "send_at",
    reference = "reference",
    collapse_key = "collapse_key",
    idempotency_key = "idempotency_key",
    audience = "audience",
    rate = "rate",
}

impl<'de> Deserialize<'de> for Raw<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw<'de>, A::Error> {
        let mut raw = Raw::default();
        while let Some(Name(name)) = entries.next_key()? {
            match raw.slot(&name) {
                Some((slot, _)) if *slot == Field::Absent => *slot = entries.next_value()?,
                Some((_, name)) => {
                    entries.next_value::<IgnoredAny>()?;
                    raw.repeated.get_or_insert(name);
                }
                None => {
                    entries.next_value::<IgnoredAny>()?;
                    raw.unknown.get_or_insert_with(|| name.into_owned());
                }
            }
        }
        Ok(raw)
    }
}

/// A field's name, borrowed unless it was written with escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;

        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E: de::Error>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }

        deserializer.deserialize_str(NameVisitor)
    }
}
