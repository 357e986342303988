//! A line of an upload: the phone in it, or why there is none. Pure.

use std::borrow::Cow;

use eshaar_model::Phone;
use eshaar_model::phone::PhoneError;
use eshaar_service::Problem;
use http::StatusCode;
use serde::Deserialize;

/// A stable code, and what is wrong.
pub(super) type Wrong = (&'static str, String);

/// The name of the column, or field, with the phone.
const COLUMN: &str = "to";

/// What lines are.
pub(super) enum Form {
    /// Fields; `None` before the header, then which of them is the phone.
    Csv(Option<usize>),
    Ndjson,
}

impl Form {
    pub(super) const fn csv() -> Self {
        Self::Csv(None)
    }

    /// The phone in a line; `None` in a header. The upload ends where it has no header.
    pub(super) fn phone(&mut self, line: &[u8]) -> Result<Option<Result<Phone, Wrong>>, Problem> {
        let Ok(text) = std::str::from_utf8(line) else {
            return Ok(Some(Err(("not_utf8", "the line is not UTF-8".to_owned()))));
        };
        let text = text.trim_end_matches('\r');
        Ok(Some(match self {
            Self::Ndjson => of_json(text),
            Self::Csv(Some(column)) => of_fields(text, *column),
            Self::Csv(column) => {
                let header = fields(text.trim_start_matches('\u{feff}'));
                let found = header.iter().position(|name| name.trim().eq_ignore_ascii_case(COLUMN));
                *column = Some(found.ok_or_else(|| {
                    let detail = format!("its first line must be a header that names a column `{COLUMN}`");
                    Problem::new(StatusCode::BAD_REQUEST, "missing_column", detail)
                })?);
                return Ok(None);
            }
        }))
    }
}

pub(super) fn too_long(limit: usize) -> Wrong {
    ("line_too_long", format!("a line must have at most {limit} bytes"))
}

fn of_fields(line: &str, column: usize) -> Result<Phone, Wrong> {
    let fields = fields(line);
    let field = fields.get(column).ok_or_else(|| {
        ("missing_field", format!("has {} fields; `{COLUMN}` is the one of number {}", fields.len(), column + 1))
    })?;
    parse(field)
}

fn of_json(line: &str) -> Result<Phone, Wrong> {
    #[derive(Deserialize)]
    struct Recipient<'a> {
        #[serde(borrow)]
        to: Cow<'a, str>,
    }
    let wrong = |_| ("wrong_line", format!("must be a phone as a string, or an object with a string `{COLUMN}`"));
    if line.trim_start().starts_with('"') {
        parse(&serde_json::from_str::<Text<'_>>(line).map_err(wrong)?.0)
    } else {
        parse(&serde_json::from_str::<Recipient<'_>>(line).map_err(wrong)?.to)
    }
}

/// A string, borrowed where it can be.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn parse(text: &str) -> Result<Phone, Wrong> {
    text.trim().parse().map_err(|error: PhoneError| ("invalid_phone", error.to_string()))
}

/// The fields of a line (RFC 4180, but for line breaks within a field).
fn fields(line: &str) -> Vec<Cow<'_, str>> {
    let (mut fields, mut rest) = (Vec::new(), line);
    loop {
        let (field, left) = if let Some(quoted) = rest.strip_prefix('"') { unquote(quoted) } else { plain(rest) };
        fields.push(field);
        match left {
            Some(left) => rest = left,
            None => return fields,
        }
    }
}

/// A field up to a comma, and what is behind that.
fn plain(text: &str) -> (Cow<'_, str>, Option<&str>) {
    match text.split_once(',') {
        Some((field, left)) => (field.into(), Some(left)),
        None => (text.into(), None),
    }
}

/// A field behind its opening quote; a quote in it is doubled.
fn unquote(text: &str) -> (Cow<'_, str>, Option<&str>) {
    let (mut field, mut rest) = (String::new(), text);
    while let Some((part, left)) = rest.split_once('"') {
        field.push_str(part);
        match left.strip_prefix('"') {
            Some(behind) => {
                field.push('"');
                rest = behind;
            }
            None => return (field.into(), left.split_once(',').map(|(_, left)| left)),
        }
    }
    field.push_str(rest);
    (field.into(), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut form: Form, lines: &[&str]) -> Vec<Option<Result<String, &'static str>>> {
        let phone = |line: &&str| {
            let phone = form.phone(line.as_bytes()).unwrap();
            phone.map(|phone| phone.map(|phone| phone.to_string()).map_err(|(code, _)| code))
        };
        lines.iter().map(phone).collect()
    }

    #[test]
    fn a_column_named_to_is_read_wherever_it_stands() {
        let lines = [
            "\u{feff}name,\"To\",note",
            "Sara,+966501234567,x\r",
            "\"O\"\"mar, the 2nd\",\"+966501234568\",",
            "no phone",
            "Ali,0501234567,",
            "Ali,\"+966501234569",
        ];
        let expected = [
            None,
            Some(Ok("+966501234567".to_owned())),
            Some(Ok("+966501234568".to_owned())),
            Some(Err("missing_field")),
            Some(Err("invalid_phone")),
            Some(Ok("+966501234569".to_owned())),
        ];
        assert_eq!(read(Form::csv(), &lines), expected);
    }

    #[test]
    fn a_file_without_that_column_is_refused_as_a_whole() {
        let refused = Form::csv().phone(b"+966501234567").unwrap_err();
        assert_eq!(refused.code, "missing_column");
    }

    #[test]
    fn a_json_line_is_a_phone_or_an_object_with_one() {
        let lines = [
            r#""+966501234567""#,
            r#"{"to": "+966501234568", "name": "Sara"}"#,
            r#" "\u002b966501234569" "#,
            r#"{"name": "Sara"}"#,
            "966501234567",
            r#"{"to": "SECRET"}"#,
            "[",
        ];
        let expected = [
            Some(Ok("+966501234567".to_owned())),
            Some(Ok("+966501234568".to_owned())),
            Some(Ok("+966501234569".to_owned())),
            Some(Err("wrong_line")),
            Some(Err("wrong_line")),
            Some(Err("invalid_phone")),
            Some(Err("wrong_line")),
        ];
        assert_eq!(read(Form::Ndjson, &lines), expected);
        for line in ["{\"to\": \"SECRET\"}", "\"SECRET\"", "SECRET"] {
            let (_, detail) = Form::Ndjson.phone(line.as_bytes()).unwrap().unwrap().unwrap_err();
            assert!(!detail.contains("SECRET"), "{detail}");
        }
        assert!(matches!(Form::Ndjson.phone(&[0xff]), Ok(Some(Err(("not_utf8", _))))));
    }
}
