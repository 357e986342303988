//! One request to an endpoint: what is sent (Standard Webhooks 1.0), where it may go, and what the answer means.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use eshaar_auth::signing::{OVERLAP_MS, SigningKeys};
use eshaar_model::{Status, Timestamp};
use eshaar_schemas::StatusChanged;
use eshaar_service::egress;
use eshaar_store::Webhook;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, StatusCode, Url};
use serde::Serialize;

use super::Options;

/// Longest time that an endpoint may ask us to wait.
const LONGEST_WAIT: Duration = Duration::from_hours(24);
/// Shortest one.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// What is waited where an endpoint asks for a pause and does not say how long.
const USUAL_WAIT: Duration = Duration::from_secs(10);

/// What an endpoint answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// 2xx.
    Taken,
    /// 410: it wants nothing more.
    Gone,
    /// 429: not now; when.
    Wait(Duration),
    /// It did not answer, or something before it said that it does not: nothing is said about the message.
    Silent {
        /// What happened.
        reason: String,
        /// How long it asks us to wait (`Retry-After` of a 503).
        wait: Option<Duration>,
    },
    /// It answered otherwise, to this message.
    Refused(StatusCode),
}

impl Answer {
    fn silent(reason: impl Into<String>) -> Self {
        Self::Silent { reason: reason.into(), wait: None }
    }

    /// Its name in metrics.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Gone => "gone",
            Self::Wait(_) => "wait",
            Self::Silent { .. } => "silent",
            Self::Refused(_) => "refused",
        }
    }
}

/// The options cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The file of authorities cannot be read.
    #[error("webhooks.ca_file: cannot read {path}: {source}")]
    File {
        /// Its path.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The HTTP client cannot be made.
    #[error("webhooks: cannot make an HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

/// Makes requests to endpoints, and signs them.
pub struct Sender {
    client: Client,
    keys: SigningKeys,
    allow_private: bool,
}

impl Sender {
    /// One that signs with `keys`. The process must have a default crypto provider of rustls by then.
    ///
    /// # Errors
    /// When the options cannot be used.
    pub fn new(keys: SigningKeys, options: &Options) -> Result<Self, SetupError> {
        let allow_private = options.allow_private;
        let timeout = Duration::from_secs(options.timeout_s.max(1));
        let mut client = Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout)
            .pool_max_idle_per_host(options.concurrent_per_endpoint.get())
            // What an answer points to is not where its owner told us to go.
            .redirect(Policy::none())
            // A proxy would look names up in our place.
            .no_proxy()
            .dns_resolver(Arc::new(Guarded { allow_private }))
            .user_agent(concat!("eshaar/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &options.ca_file {
            let read = std::fs::read(path);
            let pem = read.map_err(|source| SetupError::File { path: path.display().to_string(), source })?;
            client = client.tls_certs_merge(Certificate::from_pem_bundle(&pem)?);
        }
        Ok(Self { client: client.build()?, keys, allow_private })
    }

    /// Tells an endpoint of a change, once. `id` names the event: it is the same at every try.
    pub(super) async fn tell(&self, webhook: &Webhook, id: &str, body: Vec<u8>, now: Timestamp) -> Answer {
        // Of an operator's making: this endpoint alone waits for the key.
        if self.keys.secret(&webhook.key, webhook.id, webhook.generation).is_none() {
            return Answer::silent(NO_KEY);
        }
        let url = match self.destination(&webhook.url) {
            Ok(url) => url,
            Err(reason) => return Answer::silent(reason),
        };
        let request = self
            .client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", now.as_millis().div_euclid(1_000).to_string())
            .header("webhook-signature", self.signatures(webhook, id, &body, now))
            .body(body);
        match request.send().await {
            Ok(answer) => meaning(answer.status(), answer.headers(), now),
            Err(error) => Answer::silent(reason(&error)),
        }
    }

    /// By the secret, and for a while by the one before it.
    fn signatures(&self, webhook: &Webhook, id: &str, body: &[u8], now: Timestamp) -> String {
        let rotated = webhook.rotated_at.filter(|at| now.millis_since(*at) < OVERLAP_MS);
        let before = rotated.and_then(|_| webhook.generation.checked_sub(1));
        let generations = [Some(webhook.generation), before];
        let secrets = generations.into_iter().flatten();
        let secrets = secrets.filter_map(|generation| self.keys.secret(&webhook.key, webhook.id, generation));
        secrets.map(|secret| secret.sign(id, now, body)).collect::<Vec<_>>().join(" ")
    }

    /// An address in the URL itself is not looked up, so it is looked at here.
    fn destination(&self, url: &str) -> Result<Url, &'static str> {
        let url: Url = url.parse().map_err(|_| "its URL is not one")?;
        if self.allow_private {
            return Ok(url);
        }
        if url.scheme() != "https" {
            return Err("its URL is not https");
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        match host.parse::<IpAddr>() {
            Ok(address) if !egress::is_public(address) => Err(NOT_PUBLIC),
            _ => Ok(url),
        }
    }
}

const NO_KEY: &str = "the key that its secret is made from is missing on the server; its operator must restore it";
const NOT_PUBLIC: &str = "its host has no address of the internet";

/// Looks names up, and keeps of their addresses those that may be connected to: what is checked is what is used.
struct Guarded {
    allow_private: bool,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<_> = found.filter(|found| allow_private || egress::is_public(found.ip())).collect();
            if allowed.is_empty() {
                return Err(NOT_PUBLIC.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

fn meaning(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Answer {
    match status {
        _ if status.is_success() => Answer::Taken,
        StatusCode::GONE => Answer::Gone,
        StatusCode::TOO_MANY_REQUESTS => Answer::Wait(retry_after(headers, now).unwrap_or(USUAL_WAIT)),
        StatusCode::SERVICE_UNAVAILABLE => {
            Answer::Silent { reason: format!("it answered {status}"), wait: retry_after(headers, now) }
        }
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => Answer::silent(format!("it answered {status}")),
        _ => Answer::Refused(status),
    }
}

/// `Retry-After`, in seconds or as a date (RFC 9110, 10.2.3), within bounds.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // One too large for a number is large.
        text.parse().map_or(LONGEST_WAIT, Duration::from_secs)
    } else {
        let date = httpdate::parse_http_date(text).ok()?;
        let at = date.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let millis = i64::try_from(at.as_millis()).unwrap_or(i64::MAX).saturating_sub(now.as_millis());
        Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    };
    Some(wait.clamp(SHORTEST_WAIT, LONGEST_WAIT))
}

/// Why there was no answer, without the URL: it may hold a secret of its owner's.
fn reason(error: &reqwest::Error) -> String {
    let what = if error.is_timeout() { "it did not answer in time" } else { "it could not be reached" };
    let mut cause = std::error::Error::source(error);
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(|| what.to_owned(), |cause| format!("{what}: {cause}"))
}

#[derive(Serialize)]
struct Event<'a> {
    r#type: String,
    timestamp: String,
    data: Change<'a>,
}

#[derive(Serialize)]
struct Change<'a> {
    id: String,
    status: Status,
    at: String,
    to: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// The body that tells of a change: the same bytes each time.
pub(super) fn body(change: &StatusChanged) -> Vec<u8> {
    let at = Timestamp::from_millis(change.at).to_string();
    let data = Change {
        id: change.id.to_string(),
        status: change.status,
        at: at.clone(),
        to: &change.recipient,
        reason: change.reason.as_deref(),
    };
    let event = Event { r#type: format!("message.{}", change.status), timestamp: at, data };
    eshaar_service::json::to_vec(&event).unwrap_or_else(|_| unreachable!("text and numbers become JSON"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// 2025-10-09 08:53:20 GMT.
    const NOW: Timestamp = Timestamp::from_millis(1_760_000_000_000);

    #[test]
    fn an_answer_is_about_the_message_and_silence_about_the_endpoint() {
        let none = HeaderMap::new();
        let of = |code: u16| meaning(StatusCode::from_u16(code).unwrap(), &none, NOW);
        assert_eq!([200, 204, 299].map(of), [Answer::Taken, Answer::Taken, Answer::Taken]);
        assert_eq!(of(410), Answer::Gone);
        assert!([502, 503, 504].map(of).iter().all(|answer| matches!(answer, Answer::Silent { wait: None, .. })));
        for code in [301, 307, 400, 401, 404, 408, 500] {
            assert_eq!(of(code), Answer::Refused(StatusCode::from_u16(code).unwrap()));
        }
    }

    #[test]
    fn the_wait_that_is_asked_for_is_kept_within_bounds() {
        let asked = |status, text: &'static str| {
            let headers = [(RETRY_AFTER, reqwest::header::HeaderValue::from_static(text))].into_iter().collect();
            match meaning(status, &headers, NOW) {
                Answer::Wait(wait) => Some(wait.as_secs()),
                Answer::Silent { wait, .. } => wait.map(|wait| wait.as_secs()),
                other => panic!("{other:?}"),
            }
        };
        let day = 24 * 3_600;
        for (text, wait) in [
            ("7", 7),
            (" 7 ", 7),
            ("0", 1),
            ("999999", day),
            ("99999999999999999999999", day),
            ("Thu, 09 Oct 2025 08:55:20 GMT", 120),
            ("Thursday, 09-Oct-25 08:55:20 GMT", 120),
            ("Thu Oct  9 08:55:20 2025", 120),
            ("Thu, 09 Oct 2025 08:00:00 GMT", 1),
            ("Fri, 09 Oct 2026 08:55:20 GMT", day),
        ] {
            for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE] {
                assert_eq!(asked(status, text), Some(wait), "{status} {text}");
            }
        }
        for text in ["soon", "", "-5", "1.5", "Thu, 99 Oct 2025 08:55:20 GMT"] {
            assert_eq!(asked(StatusCode::TOO_MANY_REQUESTS, text), Some(10), "{text}");
            assert_eq!(asked(StatusCode::SERVICE_UNAVAILABLE, text), None, "{text}");
        }
    }
}
