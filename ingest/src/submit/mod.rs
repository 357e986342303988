//! From the bytes of one submission to a message that the log has acknowledged. Shared by single and bulk requests.
//!
//! `raw` (any JSON object, borrowed) → `validate` (pure: a draft that can be sent, or what is wrong) → `accept` (the
//! record, appended).

pub(crate) mod accept;
mod ids;
mod raw;
mod validate;

use eshaar_service::Problem;

pub(crate) use accept::{Sender, append};
pub(crate) use ids::{Ids, LineIds};
pub(crate) use validate::Draft;

use crate::json;

/// Where a submission arrives: a line of a bulk request may have a field more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Single,
    Line,
}

/// Reads and checks one submission.
pub(crate) fn parse(bytes: &[u8], form: Form, depth: usize) -> Result<Draft, Problem> {
    validate::validate(json::parse::<raw::Raw<'_>>(bytes, depth)?, form)
}
