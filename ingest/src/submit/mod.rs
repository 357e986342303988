//! From the bytes of one submission to a message that the log has acknowledged. Shared by single and bulk requests.
//!
//! `raw` (any JSON object, borrowed) → `validate` and its `fields` (pure: a draft that can be sent, or what is wrong) →
//! `accept` (the record, appended). `meaning` says which drafts are the same, for requests with an Idempotency-Key.

pub(crate) mod accept;
mod fields;
mod ids;
pub(crate) mod meaning;
mod raw;
mod validate;

use std::collections::HashSet;

use eshaar_model::{Phone, Timestamp};
use eshaar_service::Problem;
use serde::Deserialize;

pub(crate) use accept::{Attempt, Sender, append};
pub(crate) use ids::{Ids, LineIds};
pub(crate) use validate::{BroadcastDraft, ChatDraft, Draft, Party, Submission};

use crate::json::{self, Field};
use crate::options::{Markup, Options};
use crate::problems;

/// Where a submission arrives: a line of a bulk request may have a field more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Single,
    Line,
}

/// What an operator decides about submissions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// How deep JSON may be nested.
    json_depth: usize,
    pub(crate) markup: Markup,
}

impl Rules {
    pub(crate) const fn of(options: &Options) -> Self {
        Self { json_depth: options.json_depth, markup: options.markup }
    }

    /// Markup is allowed.
    #[cfg(test)]
    pub(crate) const fn new(json_depth: usize) -> Self {
        Self { json_depth, markup: Markup::Allow }
    }
}

/// Reads and checks one submission, which is made `now`.
pub(crate) fn parse(bytes: &[u8], rules: Rules, now: Timestamp) -> Result<Submission, Problem> {
    validate::validate(json::parse::<raw::Raw<'_>>(bytes, rules.json_depth)?, Form::Single, rules.markup, now)
}

/// Reads and checks a line of a bulk request, which is made `now`.
pub(crate) fn parse_line(bytes: &[u8], rules: Rules, now: Timestamp) -> Result<Draft, Problem> {
    let raw = json::parse::<raw::Raw<'_>>(bytes, rules.json_depth)?;
    match validate::validate(raw, Form::Line, rules.markup, now)? {
        Submission::OneWay(draft) => Ok(draft),
        Submission::Chat(_) => Err(validate::one_way_only()),
    }
}

/// Checks a chat message that did not come as JSON of a submission.
pub(crate) fn chat(message: Typed<'_>, rules: Rules, now: Timestamp) -> Result<ChatDraft, Problem> {
    let text = |text: Option<&str>| text.map_or(Field::Absent, |text| Field::Text(text.to_owned().into()));
    let raw = raw::Raw {
        message_type: text(Some("chat")),
        to: text(message.to),
        conversation_id: text(message.conversation_id),
        content: text(Some(message.content)),
        reference: text(message.reference),
        media: if message.has_media { Field::Array(1) } else { Field::Absent },
        ..raw::Raw::default()
    };
    match validate::validate(raw, Form::Single, rules.markup, now)? {
        Submission::Chat(draft) => Ok(draft),
        Submission::OneWay(_) => Err(problems::internal()),
    }
}

/// The fields of a chat message, each of its type already.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Typed<'a> {
    pub(crate) to: Option<&'a str>,
    pub(crate) conversation_id: Option<&'a str>,
    pub(crate) content: &'a str,
    pub(crate) reference: Option<&'a str>,
    pub(crate) has_media: bool,
}

/// Reads and checks a broadcast. Where it lists its recipients, [`recipients`] reads them.
pub(crate) fn parse_broadcast(bytes: &[u8], rules: Rules) -> Result<BroadcastDraft, Problem> {
    validate::validate_broadcast(json::parse::<raw::Raw<'_>>(bytes, rules.json_depth)?, rules.markup)
}

/// The recipients that a broadcast lists, each once; the first that is no phone is named by its place.
pub(crate) fn recipients(bytes: &[u8], rules: Rules) -> Result<Vec<Phone>, Problem> {
    let listed = json::parse::<Listed<'_>>(bytes, rules.json_depth)?;
    let mut phones = Vec::with_capacity(listed.to.len());
    for (place, to) in listed.to.into_iter().enumerate() {
        let wrong = |reason: &str| Problem::field(format!("to[{place}]"), "invalid_phone", reason.to_owned());
        let Field::Text(text) = to else { return Err(wrong(&format!("must be a string, is {}", to.kind()))) };
        phones.push(Phone::parse_valid(&text).map_err(|error| wrong(&error.to_string()))?);
    }
    let mut seen = HashSet::with_capacity(phones.len());
    phones.retain(|phone| seen.insert(*phone));
    Ok(phones)
}

/// The recipients of a broadcast, of whatever type.
#[derive(Deserialize)]
struct Listed<'a> {
    #[serde(borrow, default)]
    to: Vec<Field<'a>>,
}
