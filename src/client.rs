//! What the commands that call a server share.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::cli::{OperatorArguments, ServerArguments};
use crate::first_start;

/// The part of a problem document that is for people.
#[derive(Debug, Deserialize)]
pub struct Problem {
    code: String,
    detail: String,
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

/// A WebSocket to the gateway.
pub type Socket = WebSocketStream<TcpStream>;

/// Connects to the gateway at `url` with a token or an API key.
pub async fn connect(url: &str, credential: &str) -> anyhow::Result<Socket> {
    let address = url.strip_prefix("http://").context("--url must begin with http://")?;
    let mut request = format!("ws://{address}/v1/ws").into_client_request().context("--url is not a URL")?;
    let host = request.uri().host().context("--url has no host")?.to_owned();
    let port = request.uri().port_u16().unwrap_or(80);
    let headers = request.headers_mut();
    headers.insert("Authorization", format!("Bearer {credential}").parse().context("the token is not one")?);
    headers.insert("Sec-WebSocket-Protocol", "eshaar.v1.json".parse()?);
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(tokio_tungstenite::client_async(request, stream).await?.0)
}

/// The answer, or what the server's problem document says.
pub async fn checked(answer: reqwest::Result<reqwest::Response>, url: &str) -> anyhow::Result<reqwest::Response> {
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
        Ok(problem) => bail!("{} ({}, {})", problem.detail, status.as_u16(), problem.code),
        Err(_) => bail!("the server answered {status}"),
    }
}
