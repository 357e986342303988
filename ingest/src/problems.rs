//! Every error of the API, and what it becomes over HTTP. Nothing here holds what a client sent but names of fields.

use std::time::Duration;

use eshaar_auth::AuthError;
use eshaar_model::{ConversationClosed, PairError, Permission, ReplyRefused, Status};
use eshaar_schemas::{DecodeError, EncodeError, RegistryError};
use eshaar_service::Problem;
use eshaar_store::{LetterState, StoreError};
use eshaar_topics::AppendError;
use http::StatusCode;

/// When to come back after something of ours was down, in seconds.
const RETRY_AFTER_S: u64 = 2;

/// Longest name of an unknown field that is said back, in characters.
const NAME_CHARS: usize = 64;

pub(crate) fn unauthenticated(error: &AuthError) -> Problem {
    match error {
        AuthError::Missing | AuthError::Refused(_) => {
            Problem::new(StatusCode::UNAUTHORIZED, "unauthenticated", error.to_string())
        }
        AuthError::KeyUnknownYet { retry_after_s } => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "auth_unavailable", error.to_string())
                .retry_after(*retry_after_s)
        }
        AuthError::Unavailable(_) => {
            tracing::error!(%error, "a caller could not be authenticated");
            unavailable("auth_unavailable", "credentials cannot be checked at the moment")
        }
    }
}

/// The caller needs one of these permissions.
pub(crate) fn forbidden(wanted: &[Permission]) -> Problem {
    let names: Vec<_> = wanted.iter().map(|permission| format!("`{permission}`")).collect();
    let detail = format!("this needs an API key with the permission {}", names.join(" or "));
    Problem::new(StatusCode::FORBIDDEN, "permission_missing", detail)
}

pub(crate) fn business_only() -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "business_only", "only businesses may ask this: use an API key")
}

pub(crate) fn phone_only() -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "phone_only", "only recipients may ask this: use a mobile user's token")
}

/// The same answer for what is not there and for what is another's.
pub(crate) fn message_not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "message_not_found", "you have neither sent nor received a message of this id")
}

/// What was asked for cannot be told yet, and may be there.
pub(crate) fn not_yet_known(detail: &str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_yet_known", detail).retry_after(1)
}

/// The same answer for what is not there and for what is others'.
pub(crate) fn conversation_not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "conversation_not_found", "you are in no conversation of this id")
}

pub(crate) fn conversation_closed() -> Problem {
    Problem::new(StatusCode::CONFLICT, "conversation_closed", ConversationClosed.to_string())
}

pub(crate) fn reply_refused() -> Problem {
    Problem::field("conversation_id", "reply_refused", ReplyRefused.to_string())
}

/// Two of a kind do not talk.
pub(crate) fn invalid_pair(field: &str, error: &PairError) -> Problem {
    Problem::field(field, "invalid_recipient", error.to_string())
}

pub(crate) fn invalid_reference(most: usize) -> Problem {
    invalid_header("ref", "invalid_ref", most)
}

pub(crate) fn too_late_to_cancel(status: Status) -> Problem {
    let (code, detail) = match status {
        Status::Read => ("already_read", "it was read already; only what was not delivered yet can be cancelled"),
        Status::Failed => ("already_failed", "it has failed; there is nothing left to cancel"),
        Status::Expired => ("already_expired", "its time to live has passed; there is nothing left to cancel"),
        _ => ("already_delivered", "it was delivered already; only what was not delivered yet can be cancelled"),
    };
    Problem::new(StatusCode::CONFLICT, code, detail)
}

pub(crate) fn broadcast_not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "broadcast_not_found", "you have sent no broadcast of this id")
}

/// `limit` names the limit that the broadcast is too large for; `most` is what it allows.
pub(crate) fn broadcast_too_large(limit: &str, most: u64, total: u64) -> Problem {
    let detail = format!(
        "{limit} lets {most} messages be sent in 30 days, the longest that a broadcast may take; it has {total} recipients"
    );
    Problem::new(StatusCode::BAD_REQUEST, "broadcast_too_large", detail)
}

/// `field` names the business.
pub(crate) fn business_unknown(field: &str) -> Problem {
    Problem::field(field, "business_unknown", "there is no business of this id")
}

pub(crate) fn audience_not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "audience_not_found", "you have no audience of this name")
}

pub(crate) fn cancellations_full(limit: usize) -> Problem {
    let detail = format!("cancellation limit of the service reached: {limit} are active; this one was not made");
    unavailable("cancellations_full", detail)
}

/// Cancellations lapse 62 days after the message was accepted: to come back in a while is all that helps.
pub(crate) fn own_cancellations_full(active: usize, limit: usize) -> Problem {
    let detail =
        format!("cancellation limit of this business reached: {active} active, at most {limit}; this one was not made");
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "business_cancellations_full", detail).retry_after(3600)
}

pub(crate) fn dead_letter_not_found() -> Problem {
    let detail = "there is no dead letter of this id, or it is kept no longer: they are, for 7 days";
    Problem::new(StatusCode::NOT_FOUND, "dead_letter_not_found", detail)
}

pub(crate) fn dead_letter_settled(state: LetterState) -> Problem {
    Problem::new(StatusCode::CONFLICT, "dead_letter_settled", format!("the dead letter is {state} already"))
}

pub(crate) fn redrive_limit(most: u32) -> Problem {
    let detail = format!("the record was redriven {most} times and died each time, which is the most; discard it");
    Problem::new(StatusCode::CONFLICT, "redrive_limit", detail)
}

pub(crate) fn task_not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "task_not_found", "there is no task of this id, or it is kept no longer")
}

pub(crate) fn letter_selection() -> Problem {
    let detail = "must be either {\"ids\": […]}, or {\"filter\": {…}} with any of stage, code, business, from and until, \
                  each a string";
    Problem::new(StatusCode::BAD_REQUEST, "invalid_selection", detail)
}

pub(crate) fn webhook_not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "webhook_not_found", "you have no webhook of this id")
}

pub(crate) fn too_many_webhooks(most: usize) -> Problem {
    let detail = format!("you have {most} webhooks, which are the most; delete one first");
    Problem::new(StatusCode::CONFLICT, "too_many_webhooks", detail)
}

pub(crate) fn webhooks_unavailable() -> Problem {
    unavailable("webhooks_unavailable", "no key is configured here that secrets of webhooks are made from")
}

pub(crate) fn webhook_busy() -> Problem {
    unavailable("webhook_busy", "others change this webhook at the same time; repeat the request")
}

pub(crate) fn no_such_path() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no_such_path", "there is nothing here; /openapi.json lists what there is")
}

pub(crate) fn store(error: &StoreError) -> Problem {
    tracing::error!(%error, "a request failed on the store");
    unavailable("store_unavailable", "what is remembered cannot be reached at the moment")
}

/// An append that is known to have had no effect, or one that is not (the `code` tells).
pub(crate) fn append(error: &AppendError) -> Problem {
    tracing::error!(%error, "a request failed on the log");
    match error {
        AppendError::Refused { .. } => unavailable("log_unavailable", "the message was not accepted; send it again"),
        AppendError::Unknown { .. } => outcome_unknown(),
        AppendError::Closed => {
            unavailable("shutting_down", "this process is shutting down; nothing was accepted; send it again")
        }
    }
}

pub(crate) fn outcome_unknown() -> Problem {
    unavailable(
        "outcome_unknown",
        "it is not known whether the message was accepted; repeat the request with the same Idempotency-Key and body: \
         the message is then sent once",
    )
}

pub(crate) fn encode(error: &EncodeError) -> Problem {
    tracing::error!(%error, "a record could not be written");
    internal()
}

pub(crate) fn decode(error: &DecodeError) -> Problem {
    tracing::error!(%error, "a stored message could not be read");
    internal()
}

pub(crate) fn registry(error: &RegistryError) -> Problem {
    tracing::error!(%error, "a stored message could not be read");
    unavailable("registry_unavailable", "the schema of this message cannot be looked up at the moment")
}

pub(crate) fn internal() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "this service failed; it is logged")
}

pub(crate) fn timed_out() -> Problem {
    unavailable(
        "timed_out",
        "the answer took too long, and it is not known what came of the request; repeat it, with the same \
         Idempotency-Key if it had one",
    )
}

pub(crate) fn bulk_busy(limit: usize) -> Problem {
    unavailable("bulk_busy", format!("{limit} bulk requests are under way already, which is the most at a time"))
}

/// Of one business.
pub(crate) fn too_many_uploads(limit: usize) -> Problem {
    let detail = format!("{limit} uploads of your business are under way already, which is the most at a time");
    unavailable("bulk_busy", detail)
}

/// The client has read no answers for so long.
pub(crate) fn answers_unread(waited: Duration) -> Problem {
    let detail = format!(
        "no answers were read for {} s, and there is no memory for more: lines behind `last_line` were not read. Read the \
         answers while you send, or ask for `answers=summary`",
        waited.as_secs()
    );
    Problem::new(StatusCode::REQUEST_TIMEOUT, "answers_unread", detail)
}

fn unavailable(code: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).retry_after(RETRY_AFTER_S)
}

pub(crate) fn body_too_large(limit: usize) -> Problem {
    let detail = format!("the body must have at most {limit} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
}

pub(crate) fn body_timeout(seconds: u64) -> Problem {
    let detail = format!("the body was not received within {seconds} s");
    Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
}

pub(crate) fn body_broken() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "body_broken", "the body ended before it was complete")
}

pub(crate) fn content_type(wanted: &str) -> Problem {
    let detail = format!("the body must be declared as `Content-Type: {wanted}`");
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type_unsupported", detail)
}

pub(crate) fn content_encoding(wanted: &str) -> Problem {
    let detail = format!("`Content-Encoding` must be {wanted}");
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_encoding_unsupported", detail)
}

/// `error` is of syntax: its text is the parser's own, with line and column.
pub(crate) fn json_syntax(error: &serde_json::Error) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "json_invalid", format!("not JSON: {error}"))
}

pub(crate) fn json_not_object() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "json_not_object", "must be one JSON object")
}

pub(crate) fn json_too_deep(limit: usize) -> Problem {
    let detail = format!("JSON must be nested at most {limit} deep");
    Problem::new(StatusCode::BAD_REQUEST, "json_too_deep", detail)
}

pub(crate) fn unknown_field(name: &str) -> Problem {
    Problem::field(presentable(name), "unknown_field", "there is no such field")
}

pub(crate) fn repeated_field(name: &str) -> Problem {
    Problem::field(presentable(name), "repeated_field", "is given more than once")
}

pub(crate) fn unknown_parameter(name: &str) -> Problem {
    Problem::field(presentable(name), "unknown_parameter", "there is no such query parameter")
}

pub(crate) fn repeated_parameter(name: &str) -> Problem {
    Problem::field(presentable(name), "repeated_parameter", "is given more than once")
}

pub(crate) fn invalid_parameter(name: &str, reason: impl Into<String>) -> Problem {
    Problem::field(name, "invalid_parameter", reason)
}

pub(crate) fn invalid_header(name: &str, code: &'static str, most: usize) -> Problem {
    Problem::field(name, code, format!("must be 1 to {most} visible ASCII characters"))
}

pub(crate) fn idempotency_in_flight() -> Problem {
    let detail = "the first request with this Idempotency-Key is still being answered; repeat this one in a moment";
    Problem::new(StatusCode::CONFLICT, "idempotency_in_flight", detail).retry_after(1)
}

pub(crate) fn idempotency_mismatch() -> Problem {
    let detail = "this Idempotency-Key was used for another request in the last 24 hours; use a new one";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_mismatch", detail)
}

/// A name as it may be said back: bounded, and nothing that a terminal or a log would act on.
fn presentable(name: &str) -> String {
    name.chars().take(NAME_CHARS).map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}
