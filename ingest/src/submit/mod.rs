//! From the bytes of one submission to a message that the log has acknowledged. Shared by single and bulk requests.
//!
//! `raw` (any JSON object, borrowed) → `validate` (pure: a draft that can be sent, or what is wrong) → `accept` (the
//! record, appended).

pub(crate) mod accept;
mod ids;
mod raw;
mod validate;

use std::collections::HashSet;

use eshaar_model::phone::PhoneError;
use eshaar_model::{Phone, Timestamp};
use eshaar_service::Problem;
use serde::Deserialize;

pub(crate) use accept::{Sender, append, due};
pub(crate) use ids::{Ids, LineIds};
pub(crate) use validate::{BroadcastDraft, Draft};

use crate::json::{self, Field};

/// Where a submission arrives: a line of a bulk request may have a field more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Single,
    Line,
}

/// Reads and checks one submission, which is made `now`.
pub(crate) fn parse(bytes: &[u8], form: Form, depth: usize, now: Timestamp) -> Result<Draft, Problem> {
    validate::validate(json::parse::<raw::Raw<'_>>(bytes, depth)?, form, now)
}

/// Reads and checks a broadcast. Where it lists its recipients, [`recipients`] reads them.
pub(crate) fn parse_broadcast(bytes: &[u8], depth: usize) -> Result<BroadcastDraft, Problem> {
    validate::validate_broadcast(json::parse::<raw::Raw<'_>>(bytes, depth)?)
}

/// The recipients that a broadcast lists, each once; the first that is no phone is named by its place.
pub(crate) fn recipients(bytes: &[u8], depth: usize) -> Result<Vec<Phone>, Problem> {
    let listed = json::parse::<Listed<'_>>(bytes, depth)?;
    let mut phones = Vec::with_capacity(listed.to.len());
    for (place, to) in listed.to.into_iter().enumerate() {
        let wrong = |reason: &str| Problem::field(format!("to[{place}]"), "invalid_phone", reason.to_owned());
        let Field::Text(text) = to else { return Err(wrong(&format!("must be a string, is {}", to.kind()))) };
        phones.push(text.parse().map_err(|error: PhoneError| wrong(&error.to_string()))?);
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
