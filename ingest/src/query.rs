//! Query parameters: each known, given once, and of its type; what is not is named.

use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use eshaar_model::{MessageId, Phone};
use eshaar_service::Problem;

use crate::problems;

/// Most items of a page, and how many it has when nothing is said.
pub(crate) const MAX_LIMIT: usize = 100;
pub(crate) const DEFAULT_LIMIT: usize = 50;

/// The parameters of a request.
#[derive(Debug)]
pub(crate) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Reads a query; every name must be among `known`.
    pub(crate) fn parse(query: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        let uri: http::Uri = format!("/?{}", query.unwrap_or_default())
            .parse()
            .map_err(|_| problems::invalid_parameter("query", "the query is not one"))?;
        let axum::extract::Query(pairs) = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri)
            .map_err(|_| problems::invalid_parameter("query", "the query is not one"))?;
        for (index, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                return Err(problems::unknown_parameter(name));
            }
            if pairs[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(problems::repeated_parameter(name));
            }
        }
        Ok(Self(pairs))
    }

    /// A parameter, if it was given.
    pub(crate) fn get<T>(&self, name: &str) -> Result<Option<T>, Problem>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        self.parsed(name, |value| value.parse().map_err(|error: T::Err| error.to_string()))
    }

    /// A phone number, if it was given: valid by its numbering plan.
    pub(crate) fn phone(&self, name: &str) -> Result<Option<Phone>, Problem> {
        self.parsed(name, |value| Phone::parse_valid(value).map_err(|error| error.to_string()))
    }

    fn parsed<T>(&self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, Problem> {
        let Some((_, value)) = self.0.iter().find(|(given, _)| given == name) else { return Ok(None) };
        let wrong = |reason: String| problems::invalid_parameter(name, format!("{reason}{}", plus_hint(value)));
        parse(value).map(Some).map_err(wrong)
    }

    /// `limit`: 1 to [`MAX_LIMIT`].
    pub(crate) fn limit(&self) -> Result<usize, Problem> {
        let wrong = || problems::invalid_parameter("limit", format!("must be an integer from 1 to {MAX_LIMIT}"));
        match self.0.iter().find(|(name, _)| name == "limit") {
            None => Ok(DEFAULT_LIMIT),
            Some((_, text)) => match text.parse() {
                Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
                _ => Err(wrong()),
            },
        }
    }
}

/// The usual cause of a space in a value: a `+` of a phone number or of a time's offset that was not encoded.
fn plus_hint(value: &str) -> &'static str {
    if value.contains(' ') { "; in a query a `+` stands for a space: write `%2B` for a plus" } else { "" }
}

/// Where a page of sent messages begins: behind this message. Opaque to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageCursor(pub(crate) MessageId);

const VERSION: u8 = 1;

/// Not a cursor of ours.
#[derive(Debug, thiserror::Error)]
#[error("must be a `next_cursor` as it was received from this service")]
pub(crate) struct PageCursorError;

impl std::fmt::Display for PageCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut bytes = [VERSION; 17];
        bytes[1..].copy_from_slice(self.0.as_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for PageCursor {
    type Err = PageCursorError;

    fn from_str(text: &str) -> Result<Self, PageCursorError> {
        if text.len() > 32 {
            return Err(PageCursorError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| PageCursorError)?;
        match bytes.split_first() {
            Some((&VERSION, id)) => MessageId::from_bytes(id).map(Self).map_err(|_| PageCursorError),
            _ => Err(PageCursorError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_anything_else_is_refused() {
        let cursor = PageCursor(MessageId::new(eshaar_model::Timestamp::from_millis(1_767_225_600_000)));
        assert_eq!(cursor.to_string().parse::<PageCursor>().unwrap(), cursor);
        for text in ["", "AQ", "!", &cursor.to_string()[1..], &"A".repeat(23), &"A".repeat(1_000)] {
            assert!(text.parse::<PageCursor>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_plus_that_was_not_encoded_is_named() {
        let detail = |query: &str| {
            let parameters = Parameters::parse(Some(query), &["to", "from", "cursor"]).unwrap();
            let phone = parameters.phone("to").unwrap_err();
            assert_eq!(phone.field.as_deref(), Some("to"));
            phone.detail
        };
        assert!(detail("to=+966501234567").contains("%2B"));
        assert!(detail("to=%20966501234567").contains("%2B"));
        assert!(!detail("to=966501234567").contains("%2B"));
        let encoded = Parameters::parse(Some("to=%2B966501234567"), &["to"]).unwrap();
        assert_eq!(encoded.phone("to").unwrap().map(|phone| phone.to_string()).as_deref(), Some("+966501234567"));
        let query = "from=2026-01-01T00:00:00+03:00&cursor=AQ+B";
        let parameters = Parameters::parse(Some(query), &["from", "cursor"]).unwrap();
        assert!(parameters.get::<eshaar_model::Timestamp>("from").unwrap_err().detail.contains("%2B"));
        assert!(parameters.get::<PageCursor>("cursor").unwrap_err().detail.contains("%2B"));
    }

    #[test]
    fn parameters_that_are_unknown_repeated_or_out_of_bounds_are_named() {
        let code = |query: &str| {
            let parameters = Parameters::parse(Some(query), &["limit", "to"])?;
            parameters.limit()
        };
        assert_eq!(code("limit=7").unwrap(), 7);
        assert_eq!(code("").unwrap(), DEFAULT_LIMIT);
        for (query, field, expected) in [
            ("offset=1", "offset", "unknown_parameter"),
            ("to=a&to=b", "to", "repeated_parameter"),
            ("limit=0", "limit", "invalid_parameter"),
            ("limit=101", "limit", "invalid_parameter"),
            ("limit=x", "limit", "invalid_parameter"),
            ("limit", "limit", "invalid_parameter"),
            ("limit=60.5", "limit", "invalid_parameter"),
        ] {
            let problem = code(query).unwrap_err();
            assert_eq!((problem.field.as_deref(), problem.code), (Some(field), expected), "{query}");
        }
    }
}
