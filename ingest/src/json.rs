//! Reading JSON that is not trusted: bounded in depth, borrowed where it can be, and never failing on a type, so that the
//! validation can say which field is at fault and what it is instead, without its content.

use std::borrow::Cow;
use std::fmt;

use eshaar_service::Problem;
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::problems;

/// Reads `bytes` as a `T` that accepts any JSON object.
pub(crate) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], depth: usize) -> Result<T, Problem> {
    if is_deeper_than(bytes, depth) {
        return Err(problems::json_too_deep(depth));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        // The text of a data error may hold a part of the data.
        if error.is_data() { problems::json_not_object() } else { problems::json_syntax(&error) }
    })
}

/// Whether arrays and objects are nested deeper than `limit`; a cheap look before any structure is built.
fn is_deeper_than(bytes: &[u8], limit: usize) -> bool {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// The value of a field, whatever its type; arrays and objects by their size alone.
#[derive(Debug, Default, PartialEq)]
pub(crate) enum Field<'a> {
    /// Not given.
    #[default]
    Absent,
    Null,
    Bool,
    Integer(i64),
    /// A fraction, or an integer beyond 64 bits.
    Number,
    Text(Cow<'a, str>),
    Array(usize),
    Object,
}

impl Field<'_> {
    /// What it is, for people.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Absent => "missing",
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Integer(_) => "an integer",
            Self::Number => "a number that is no 64-bit integer",
            Self::Text(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object => "an object",
        }
    }

    /// Whether nothing is said: a null is as good as a field left out.
    pub(crate) const fn is_none(&self) -> bool {
        matches!(self, Self::Absent | Self::Null)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

/// Up to here every integer is a float, and the other way round.
const EXACT: f64 = 9_007_199_254_740_992.0;

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Field<'de>, E> {
        Ok(Field::Null)
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Field<'de>, E> {
        Ok(Field::Bool)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Field<'de>, E> {
        Ok(Field::Integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Field<'de>, E> {
        Ok(i64::try_from(value).map_or(Field::Number, Field::Integer))
    }

    /// JSON has one kind of number: `60.0` and `6e1` are the integer 60. Beyond 2^53 a float is no exact integer.
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Field<'de>, E> {
        let is_exact = value.fract() == 0.0 && value.abs() <= EXACT;
        Ok(if is_exact { Field::Integer(value as i64) } else { Field::Number })
    }

    fn visit_borrowed_str<E: de::Error>(self, value: &'de str) -> Result<Field<'de>, E> {
        Ok(Field::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Field<'de>, E> {
        Ok(Field::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Field<'de>, A::Error> {
        let mut length = 0;
        while items.next_element::<IgnoredAny>()?.is_some() {
            length += 1;
        }
        Ok(Field::Array(length))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Field<'de>, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_of_strings_alone() {
        assert!(!is_deeper_than(br#"{"a": [[1], {"b": []}]}"#, 4));
        assert!(is_deeper_than(br#"{"a": [[1], {"b": []}]}"#, 3));
        assert!(!is_deeper_than(br#"{"a": "[[[[\"{{{{\\"}"#, 1));
        assert!(is_deeper_than(&vec![b'['; 10_000], 16));
    }

    #[test]
    fn the_text_of_an_error_of_syntax_says_where_and_not_what() {
        let problem = parse::<Field<'_>>(b"{\"secret\": \n hidden}", 16).unwrap_err();
        assert_eq!(problem.detail, "not JSON: expected value at line 2 column 2");
    }
}
