//! Phones in NDJSON: each line a phone as a string, or an object with `to`.

use std::borrow::Cow;

use eshaar_model::Phone;
use eshaar_service::Problem;
use serde::Deserialize;

use super::csv::{COLUMN, Limits, Row};
use super::phones::{self, Wrong};
use crate::bulk::lines::{Line, Lines, Next};

/// Reads the phones of an upload.
pub(super) struct Ndjson {
    lines: Lines,
    limits: Limits,
}

impl Ndjson {
    pub(super) const fn new(lines: Lines, limits: Limits) -> Self {
        Self { lines, limits }
    }

    /// The next line that is not blank; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Row>, Problem> {
        loop {
            match self.lines.next()? {
                Next::Line(line, Line::Text(text)) => return Ok(Some((line, phone(&text)))),
                Next::Line(line, Line::TooLong) => return Ok(Some((line, Err(too_long(self.limits.record_bytes))))),
                Next::NotYet => self.lines.wait().await?,
                Next::End => return Ok(None),
            }
        }
    }
}

pub(super) fn too_long(limit: usize) -> Wrong {
    ("line_too_long", format!("a line must have at most {limit} bytes").into())
}

fn phone(line: &[u8]) -> Result<Phone, Wrong> {
    #[derive(Deserialize)]
    struct Recipient<'a> {
        #[serde(borrow)]
        to: Cow<'a, str>,
    }
    let text = std::str::from_utf8(line).map_err(|_| -> Wrong { ("not_utf8", "the line is not UTF-8".into()) })?;
    let wrong = |_| -> Wrong {
        let detail = format!("must be a phone as a string, or an object with a string `{COLUMN}`");
        ("wrong_line", detail.into())
    };
    if text.trim_start().starts_with('"') {
        phones::parse(&serde_json::from_str::<Text<'_>>(text).map_err(wrong)?.0)
    } else {
        phones::parse(&serde_json::from_str::<Recipient<'_>>(text).map_err(wrong)?.to)
    }
}

/// A string, borrowed where it can be.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_is_a_phone_or_an_object_with_one() {
        let lines = [
            (r#""+966501234567""#, Ok("+966501234567")),
            (r#"{"to": "+966501234568", "name": "Sara"}"#, Ok("+966501234568")),
            (" \"\\u002b966501234569\" \r", Ok("+966501234569")),
            (r#"{"name": "Sara"}"#, Err("wrong_line")),
            ("966501234567", Err("wrong_line")),
            (r#""966501234567""#, Err("plus_missing")),
            (r#"{"to": "SECRET"}"#, Err("invalid_phone")),
            ("[", Err("wrong_line")),
        ];
        for (line, expected) in lines {
            let read = phone(line.as_bytes()).map(|phone| phone.to_string()).map_err(|(code, _)| code);
            assert_eq!(read, expected.map(str::to_owned), "{line}");
        }
        for line in ["{\"to\": \"SECRET\"}", "\"SECRET\"", "SECRET"] {
            let (_, detail) = phone(line.as_bytes()).unwrap_err();
            assert!(!detail.contains("SECRET"), "{detail}");
        }
        assert_eq!(phone(&[0xff]).unwrap_err().0, "not_utf8");
    }
}
