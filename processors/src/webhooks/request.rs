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
const LONGEST_WAIT: Duration = Duration::from_hours(1);
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
    Silent(String),
    /// It answered otherwise, to this message.
    Refused(StatusCode),
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

    /// Whether requests to this endpoint can be signed.
    pub(super) fn can_sign(&self, webhook: &Webhook) -> bool {
        self.keys.secret(&webhook.key, webhook.id, webhook.generation).is_some()
    }

    /// Tells an endpoint of a change, once. `id` names the event: it is the same at every try.
    pub(super) async fn tell(&self, webhook: &Webhook, id: &str, body: Vec<u8>, now: Timestamp) -> Answer {
        let url = match self.destination(&webhook.url) {
            Ok(url) => url,
            Err(reason) => return Answer::Silent(reason.to_owned()),
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
            Ok(answer) => meaning(answer.status(), answer.headers()),
            Err(error) => Answer::Silent(reason(&error)),
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

fn meaning(status: StatusCode, headers: &HeaderMap) -> Answer {
    match status {
        _ if status.is_success() => Answer::Taken,
        StatusCode::GONE => Answer::Gone,
        StatusCode::TOO_MANY_REQUESTS => {
            let asked = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
            Answer::Wait(asked.map_or(USUAL_WAIT, Duration::from_secs).clamp(Duration::from_secs(1), LONGEST_WAIT))
        }
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Answer::Silent(format!("it answered {status}"))
        }
        _ => Answer::Refused(status),
    }
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

    #[test]
    fn an_answer_is_about_the_message_and_silence_about_the_endpoint() {
        let none = HeaderMap::new();
        let of = |code: u16| meaning(StatusCode::from_u16(code).unwrap(), &none);
        assert_eq!([200, 204, 299].map(of), [Answer::Taken, Answer::Taken, Answer::Taken]);
        assert_eq!(of(410), Answer::Gone);
        assert!([502, 503, 504].map(of).iter().all(|answer| matches!(answer, Answer::Silent(_))));
        for code in [301, 307, 400, 401, 404, 408, 500] {
            assert_eq!(of(code), Answer::Refused(StatusCode::from_u16(code).unwrap()));
        }
    }

    #[test]
    fn the_wait_that_is_asked_for_is_kept_within_bounds() {
        let of = |text: &'static str| {
            let headers = [(RETRY_AFTER, reqwest::header::HeaderValue::from_static(text))].into_iter().collect();
            meaning(StatusCode::TOO_MANY_REQUESTS, &headers)
        };
        let seconds = |seconds| Answer::Wait(Duration::from_secs(seconds));
        assert_eq!([of("7"), of("0"), of("999999"), of("soon")], [7, 1, 3_600, 10].map(seconds));
    }
}
