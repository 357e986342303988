//! A client of the HTTP API and the gateway, for the commands that call a server.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use reqwest::{Client, ClientBuilder, Response, StatusCode, Upgraded, Url};
use serde::Deserialize;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::cli::{Endpoint, OperatorArguments, ServerArguments};
use crate::first_start;
use crate::output::noteln;

/// How long a connection and the upgrade to a WebSocket may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Shortest and longest wait before a connection is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// The part of a problem document that is for people.
#[derive(Debug, Deserialize)]
pub struct Problem {
    code: String,
    detail: String,
    field: Option<String>,
}

/// The API key to call with: the one given, or the demo business's.
pub fn api_key(arguments: &ServerArguments, data_dir: &Path) -> anyhow::Result<String> {
    if let Some(key) = &arguments.api_key {
        return Ok(key.clone());
    }
    first_start::demo_key(data_dir).context("no --api-key was given")
}

/// The API key to call with as an operator: the one given, or that of the data directory.
pub fn operator_key(
    arguments: &OperatorArguments,
    data_dir: impl FnOnce() -> anyhow::Result<PathBuf>,
) -> anyhow::Result<String> {
    match &arguments.api_key {
        Some(key) => Ok(key.clone()),
        None => first_start::operator_key(&data_dir()?).context("no --api-key was given"),
    }
}

/// An HTTP client for `endpoint`.
pub fn http(endpoint: &Endpoint) -> anyhow::Result<Client> {
    builder(endpoint)?.build().context("cannot make an HTTP client")
}

/// The settings of every client for `endpoint`.
pub fn builder(endpoint: &Endpoint) -> anyhow::Result<ClientBuilder> {
    let url: Url = endpoint.url.parse().with_context(|| format!("--url {}: not a URL", endpoint.url))?;
    anyhow::ensure!(["http", "https"].contains(&url.scheme()), "--url must begin with http:// or https://");
    let mut builder = Client::builder().connect_timeout(CONNECT_TIMEOUT);
    if is_loopback(&url) {
        // HTTP_PROXY is meant for the world outside.
        builder = builder.no_proxy();
    }
    if let Some(file) = &endpoint.ca_file {
        let pem = std::fs::read(file).with_context(|| format!("--ca-file: cannot read {}", file.display()))?;
        let authorities = reqwest::Certificate::from_pem_bundle(&pem);
        let authorities = authorities.with_context(|| format!("--ca-file: {} is not PEM", file.display()))?;
        builder = authorities.into_iter().fold(builder, ClientBuilder::add_root_certificate);
    }
    Ok(builder)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// A WebSocket to the gateway.
pub type Socket = WebSocketStream<Upgraded>;

/// A connection could not be made.
enum Failed {
    /// Another try may succeed.
    ForNow(anyhow::Error),
    /// It will not.
    ForGood(anyhow::Error),
}

/// Takes notes for the user, which are no output of the command.
pub type Notes<'a> = &'a (dyn Fn(&str) + 'a);

/// Notes on standard error.
pub fn to_stderr(text: &str) {
    noteln!("{text}");
}

/// Connects to the gateway with a token or an API key. Tries again, and says so, until a connection stands or the server
/// refuses the caller.
pub async fn connect(endpoint: &Endpoint, credential: &str, notes: Notes<'_>) -> anyhow::Result<Socket> {
    let http = builder(endpoint)?.http1_only().build().context("cannot make an HTTP client")?;
    let mut retries = Retries::new(&endpoint.url, notes);
    loop {
        match tokio::time::timeout(CONNECT_TIMEOUT, upgrade(&http, endpoint, credential)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(Failed::ForGood(error))) => return Err(error),
            Ok(Err(Failed::ForNow(error))) => retries.wait(&error).await,
            Err(_) => retries.wait(&anyhow::anyhow!("no answer within {} s", CONNECT_TIMEOUT.as_secs())).await,
        }
    }
}

/// A request that is tried again, and says so, until the server answers it.
pub async fn persistently(
    url: &str,
    mut request: impl FnMut() -> reqwest::RequestBuilder,
    notes: Notes<'_>,
) -> anyhow::Result<Response> {
    let mut retries = Retries::new(url, notes);
    loop {
        match request().send().await {
            Ok(answer) if answer.status() == StatusCode::SERVICE_UNAVAILABLE => {
                let Err(error) = checked(Ok(answer), url).await else { bail!("the server answered 503") };
                retries.wait(&error).await;
            }
            Err(error) if error.is_connect() || error.is_timeout() => {
                retries.wait(&anyhow::Error::new(error.without_url()).context("no server answers")).await;
            }
            answer => return checked(answer, url).await,
        }
    }
}

/// Waits between tries: longer each time, with jitter.
struct Retries<'a> {
    url: &'a str,
    notes: Notes<'a>,
    next: Duration,
    told: bool,
}

impl<'a> Retries<'a> {
    const fn new(url: &'a str, notes: Notes<'a>) -> Self {
        Self { url, notes, next: BACKOFF.0, told: false }
    }

    async fn wait(&mut self, error: &anyhow::Error) {
        if !std::mem::replace(&mut self.told, true) {
            (self.notes)(&format!("{}: {error:#}; trying again", self.url));
        }
        tokio::time::sleep(self.next.mul_f64(rand::random_range(0.5..1.0))).await;
        self.next = (self.next * 2).min(BACKOFF.1);
    }
}

async fn upgrade(http: &Client, endpoint: &Endpoint, credential: &str) -> Result<Socket, Failed> {
    let key = generate_key();
    let request = http
        .get(format!("{}/v1/ws", endpoint.url.trim_end_matches('/')))
        .bearer_auth(credential)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(SEC_WEBSOCKET_PROTOCOL, "eshaar.v1.json");
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) if error.is_builder() => return Err(Failed::ForGood(error.into())),
        Err(error) => return Err(Failed::ForNow(error.without_url().into())),
    };
    let status = answer.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        let error = match checked(Ok(answer), &endpoint.url).await {
            Err(error) => error,
            Ok(_) => anyhow::anyhow!("there is no gateway at this URL: it answered {status}"),
        };
        return Err(if may_pass { Failed::ForNow(error) } else { Failed::ForGood(error) });
    }
    let expected = derive_accept_key(key.as_bytes());
    if answer.headers().get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes) != Some(expected.as_bytes()) {
        return Err(Failed::ForGood(anyhow::anyhow!("the answer at this URL is not that of a WebSocket server")));
    }
    let stream = answer.upgrade().await.map_err(|error| Failed::ForNow(error.into()))?;
    Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
}

/// Returns true if the server that listens on `address` is eshaar.
pub async fn is_served_by_eshaar(address: &str) -> bool {
    #[derive(Deserialize)]
    struct Served {
        service: String,
    }

    let asked = async {
        let http = Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        http.get(format!("http://{address}/health")).send().await?.json::<Served>().await
    };
    asked.await.is_ok_and(|served| served.service == "eshaar")
}

/// The answer, or the server's problem document as an error.
pub async fn checked(answer: reqwest::Result<Response>, url: &str) -> anyhow::Result<Response> {
    let answer = answer.map_err(|error| {
        if error.is_connect() {
            anyhow::anyhow!("no server answers at {url}: is `eshaar serve` running?")
        } else {
            error.into()
        }
    })?;
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status();
    match answer.json::<Problem>().await {
        Ok(problem) => {
            let text = described(problem.field.as_deref(), &problem.detail, &problem.code);
            bail!("{text} ({})", status.as_u16())
        }
        Err(_) => bail!("the server answered {status}"),
    }
}

/// An error of the API in one line: the field, the reason, the code.
pub fn described(field: Option<&str>, detail: &str, code: &str) -> String {
    field.map_or_else(|| format!("{detail} ({code})"), |field| format!("{field}: {detail} ({code})"))
}
