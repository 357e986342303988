//! A request's body, whole and bounded in size and time.

use axum::body::Body;
use bytes::Bytes;
use eshaar_service::Problem;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::options::Options;
use crate::problems;

/// Reads a JSON body. What its head already gives away (type, encoding, length) is refused before a byte is read.
pub(crate) async fn json(headers: &HeaderMap, body: Body, options: &Options) -> Result<Bytes, Problem> {
    json_within(options.body_limit_bytes, headers, body, options).await
}

/// As [`json`], of at most `limit` bytes.
pub(crate) async fn json_within(
    limit: usize,
    headers: &HeaderMap,
    body: Body,
    options: &Options,
) -> Result<Bytes, Problem> {
    if !is_of_type(headers, &["application/json"]) {
        return Err(problems::content_type("application/json"));
    }
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(problems::content_encoding("left out: only bulk requests may be compressed"));
    }
    if declared_length(headers).is_some_and(|length| length > limit as u64) {
        return Err(problems::body_too_large(limit));
    }
    let read = tokio::time::timeout(options.body_timeout(), Limited::new(body, limit).collect());
    match read.await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(problems::body_too_large(limit)),
        Ok(Err(_)) => Err(problems::body_broken()),
        Err(_) => Err(problems::body_timeout(options.body_timeout_s)),
    }
}

/// Whether the content type is one of `wanted`, whatever its parameters.
pub(crate) fn is_of_type(headers: &HeaderMap, wanted: &[&str]) -> bool {
    let declared = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = declared.split(';').next().unwrap_or_default().trim();
    wanted.iter().any(|wanted| essence.eq_ignore_ascii_case(wanted))
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
