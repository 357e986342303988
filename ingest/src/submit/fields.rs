//! What each field of a submission may be. Pure; of a value that is refused an error says the limit and the size, never the
//! content.

use std::borrow::Cow;

use eshaar_model::limits::{COLLAPSE_KEY_BYTES, IDEMPOTENCY_KEY_CHARS, REFERENCE_CHARS, SEND_AHEAD_MS, TTL_SECONDS};
use eshaar_model::text::has_markup;
use eshaar_model::{Content, ContentError, Phone, Priority, Timestamp};
use eshaar_service::Problem;

use crate::idempotency::is_key;
use crate::json::Field;
use crate::options::Markup;
use crate::problems;

/// Highest rate that a broadcast may be given, in messages a second.
const MOST_RATE: i64 = 1_000_000;

pub(super) fn rate(field: &Field<'_>) -> Result<Option<u32>, Problem> {
    match field {
        Field::Absent | Field::Null => Ok(None),
        Field::Integer(rate @ 1..=MOST_RATE) => Ok(Some(*rate as u32)),
        other => {
            let is = if let Field::Integer(rate) = other { rate.to_string() } else { other.kind().to_owned() };
            let detail = format!("must be an integer from 1 to {MOST_RATE}, in messages a second; is {is}");
            Err(Problem::field("rate", "invalid_rate", detail))
        }
    }
}

pub(super) fn recipient(field: Field<'_>) -> Result<Phone, Problem> {
    Phone::parse_valid(&text("to", field)?).map_err(|error| Problem::field("to", "invalid_phone", error.to_string()))
}

pub(super) fn content(field: Field<'_>, markup: Markup) -> Result<Content, Problem> {
    let text = text("content", field)?.into_owned();
    check_markup("content", &text, markup)?;
    Content::parse(text).map_err(|error| {
        let code = match error {
            ContentError::Empty => "content_empty",
            ContentError::TooLong { .. } => "content_too_long",
            ContentError::Control { .. } => "content_control_character",
        };
        Problem::field("content", code, error.to_string())
    })
}

/// Where an operator wants no markup, text with it is refused as a whole, and never altered.
fn check_markup(name: &str, text: &str, markup: Markup) -> Result<(), Problem> {
    if markup == Markup::Allow || !has_markup(text) {
        return Ok(());
    }
    let detail = "must not contain markup: a `<` that is followed by a letter, `/`, `!` or `?`";
    Err(Problem::field(name, "content_markup", detail))
}

pub(super) fn priority(field: &Field<'_>) -> Result<Priority, Problem> {
    match field {
        Field::Absent | Field::Null => Ok(Priority::default()),
        Field::Text(text) => match text.as_ref() {
            "high" => Ok(Priority::High),
            "normal" => Ok(Priority::Normal),
            "low" => Ok(Priority::Low),
            other => {
                let detail =
                    format!("must be `high`, `normal` or `low`, has {} characters that are none of them", chars(other));
                Err(Problem::field("priority", "invalid_priority", detail))
            }
        },
        other => Err(not_text("priority", other)),
    }
}

pub(super) fn time_to_live(field: &Field<'_>) -> Result<Option<u64>, Problem> {
    let wrong = |is: &str| {
        let detail = format!("must be an integer from 1 to {TTL_SECONDS} (30 days), in seconds; is {is}");
        Problem::field("ttl_s", "invalid_ttl", detail)
    };
    match field {
        Field::Absent | Field::Null => Ok(None),
        Field::Integer(seconds) => match u64::try_from(*seconds) {
            Ok(seconds) if (1..=TTL_SECONDS).contains(&seconds) => Ok(Some(seconds)),
            _ => Err(wrong(&seconds.to_string())),
        },
        other => Err(wrong(other.kind())),
    }
}

pub(super) fn send_at(field: &Field<'_>, now: Timestamp) -> Result<Option<Timestamp>, Problem> {
    const DAYS: i64 = SEND_AHEAD_MS / (24 * 3600 * 1000);
    let wrong = |is: String| {
        let detail = format!(
            "must be an RFC 3339 time with its offset, such as 2026-01-31T12:00:00+03:00, at most {DAYS} days ahead; {is}"
        );
        Problem::field("send_at", "invalid_send_at", detail)
    };
    match field {
        Field::Absent | Field::Null => Ok(None),
        Field::Text(text) => match text.parse::<Timestamp>() {
            Ok(at) if at.millis_since(now) <= SEND_AHEAD_MS => Ok(Some(at)),
            Ok(_) => Err(wrong("is later".to_owned())),
            Err(error) => Err(wrong(format!("has {} characters that are not one", error.length))),
        },
        other => Err(not_text("send_at", other)),
    }
}

pub(super) fn reference(field: Field<'_>, markup: Markup) -> Result<Option<String>, Problem> {
    let Some(text) = optional_text("reference", field)? else { return Ok(None) };
    let length = chars(&text);
    if !(1..=REFERENCE_CHARS).contains(&length) || text.contains(char::is_control) {
        let detail = format!("must have 1 to {REFERENCE_CHARS} characters, none of them control; has {length}");
        return Err(Problem::field("reference", "invalid_reference", detail));
    }
    check_markup("reference", &text, markup)?;
    Ok(Some(text))
}

pub(super) fn collapse_key(field: Field<'_>, markup: Markup) -> Result<Option<String>, Problem> {
    let Some(text) = optional_text("collapse_key", field)? else { return Ok(None) };
    if !(1..=COLLAPSE_KEY_BYTES).contains(&text.len()) || text.contains(char::is_control) {
        let detail =
            format!("must have 1 to {COLLAPSE_KEY_BYTES} bytes of UTF-8, no control characters; has {}", text.len());
        return Err(Problem::field("collapse_key", "invalid_collapse_key", detail));
    }
    check_markup("collapse_key", &text, markup)?;
    Ok(Some(text))
}

pub(super) fn idempotency_key(field: Field<'_>) -> Result<Option<String>, Problem> {
    let Some(text) = optional_text("idempotency_key", field)? else { return Ok(None) };
    if is_key(&text) {
        Ok(Some(text))
    } else {
        Err(problems::invalid_header("idempotency_key", "invalid_idempotency_key", IDEMPOTENCY_KEY_CHARS))
    }
}

pub(super) fn text<'a>(name: &str, field: Field<'a>) -> Result<Cow<'a, str>, Problem> {
    match field {
        Field::Text(text) => Ok(text),
        Field::Absent => Err(Problem::field(name, "missing_field", "is required")),
        other => Err(not_text(name, &other)),
    }
}

pub(super) fn optional_text(name: &str, field: Field<'_>) -> Result<Option<String>, Problem> {
    if field.is_none() { Ok(None) } else { text(name, field).map(|text| Some(text.into_owned())) }
}

pub(super) fn not_text(name: &str, field: &Field<'_>) -> Problem {
    wrong_kind(name, "a string", field)
}

pub(super) fn wrong_kind(name: &str, wanted: &str, field: &Field<'_>) -> Problem {
    Problem::field(name, "wrong_type", format!("must be {wanted}, is {}", field.kind()))
}

pub(super) fn chars(text: &str) -> usize {
    text.chars().count()
}
