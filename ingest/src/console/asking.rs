//! How the console's pages ask the API, and what they show when it refuses.

use axum::body::{Body, to_bytes};
use axum::response::{Html, IntoResponse, Response};
use http::{Method, Request, StatusCode, header};
use serde_json::Value;

use super::{Console, page};

/// Longest answer of the API, in bytes: a letter of 1 MiB in base64, and the rest.
const MAX_ANSWER: usize = 4 << 20;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    /// An operator.
    Operator,
    /// The demo business.
    Business,
}

/// What the API said instead.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    /// For people; of what the API refused, with its code.
    pub(super) detail: String,
}

impl Refused {
    /// A form without the session's CSRF token.
    pub(super) fn forged() -> Self {
        let detail = "the request did not come from the console's page, or from one that is too old: open it again";
        Self { status: StatusCode::FORBIDDEN, detail: detail.to_owned() }
    }

    /// A form that is not one of the page's.
    pub(super) fn unreadable() -> Self {
        let detail = "the form cannot be read: open the page again".to_owned();
        Self { status: StatusCode::BAD_REQUEST, detail }
    }

    /// There is no such page.
    pub(super) fn no_page() -> Self {
        Self { status: StatusCode::NOT_FOUND, detail: "there is no such page".to_owned() }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, Html(page::refused(&self.detail).into_string())).into_response()
    }
}

impl Console {
    /// Asks the API.
    pub(super) async fn ask(&self, by: By, method: Method, path: &str, body: Option<Value>) -> Result<Value, Refused> {
        let broken = || {
            let detail = "the console failed; try again".to_owned();
            Refused { status: StatusCode::INTERNAL_SERVER_ERROR, detail }
        };
        let key = match by {
            By::Operator => &self.operator_key,
            By::Business => &self.api_key,
        };
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        let response = self.call(request).await;
        let status = response.status();
        let answer = to_bytes(response.into_body(), MAX_ANSWER).await.map_err(|_| broken())?;
        let answer: Value = serde_json::from_slice(&answer).map_err(|_| broken())?;
        if status.is_success() {
            return Ok(answer);
        }
        let detail = answer["detail"].as_str().unwrap_or("the API refused it");
        let code = answer["code"].as_str().map(|code| format!(" ({code})")).unwrap_or_default();
        Err(Refused { status, detail: format!("{detail}{code}") })
    }
}

/// `a=b&c=d`, without what is empty.
pub(super) fn query(fields: &[(&str, &str)]) -> String {
    let given = fields.iter().filter(|(_, value)| !value.is_empty());
    given.map(|(name, value)| format!("{name}={}", encoded(value))).collect::<Vec<_>>().join("&")
}

/// As a part of a path or a query.
pub(super) fn encoded(value: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    value.bytes().map(byte).collect()
}
