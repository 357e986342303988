//! `eshaar send`: one message, or a file of them in bulk.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio_util::io::{ReaderStream, StreamReader};

use crate::cli::{SendArguments, Settings};
use crate::client;
use crate::config;

pub async fn run(settings: &Settings, arguments: SendArguments) -> anyhow::Result<()> {
    let key = client::api_key(&arguments.server, &config::data_dir(settings)?)?;
    match arguments.file.clone() {
        Some(file) => bulk(&arguments, &key, &file).await,
        None => single(&arguments, &key).await,
    }
}

async fn single(arguments: &SendArguments, key: &str) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Accepted {
        id: String,
        status: String,
    }

    let mut body = serde_json::json!({
        "type": "one_way",
        "to": arguments.to,
        "content": arguments.content,
        "priority": arguments.priority.as_str(),
    });
    if let Some(ttl) = arguments.ttl {
        body["ttl_s"] = ttl.into();
    }
    if let Some(at) = arguments.at {
        body["send_at"] = at.to_string().into();
    }
    if let Some(reference) = &arguments.reference {
        body["reference"] = reference.clone().into();
    }
    let url = format!("{}/v1/messages", arguments.server.url);
    let mut request = reqwest::Client::new().post(&url).bearer_auth(key).json(&body).timeout(Duration::from_secs(30));
    if let Some(idempotency_key) = &arguments.idempotency_key {
        request = request.header("Idempotency-Key", idempotency_key);
    }
    let accepted: Accepted = client::checked(request.send().await, &arguments.server.url).await?.json().await?;
    println!("{} {}", accepted.id, accepted.status);
    Ok(())
}

/// A line of the bulk answer: of a message, or the last one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Refused { line: u64, error: LineError },
    Accepted { line: u64, id: String },
    Total { accepted: u64, rejected: u64 },
}

#[derive(Deserialize)]
struct LineError {
    code: String,
    detail: String,
}

async fn bulk(arguments: &SendArguments, key: &str, file: &Path) -> anyhow::Result<()> {
    let (input, size) = open(file).await?;
    let progress = progress(size);
    let counted = progress.clone();
    let body = ReaderStream::with_capacity(progress.wrap_async_read(input), 64 * 1024);
    let url = format!("{}/v1/messages/bulk", arguments.server.url);
    let mut request = patient()?
        .post(&url)
        .bearer_auth(key)
        .header("Content-Type", "application/x-ndjson")
        .body(reqwest::Body::wrap_stream(body));
    if let Some(encoding) = content_encoding(file) {
        request = request.header("Content-Encoding", encoding);
    }
    if let Some(idempotency_key) = &arguments.idempotency_key {
        request = request.header("Idempotency-Key", idempotency_key);
    }
    let answer = client::checked(request.send().await, &arguments.server.url).await?;
    let mut lines = BufReader::new(StreamReader::new(answer.bytes_stream().map_err(std::io::Error::other))).lines();
    let mut total = None;
    while let Some(text) =
        lines.next_line().await.context("the answer broke off; send again with the same --idempotency-key")?
    {
        match serde_json::from_str(&text)
            .with_context(|| format!("an answer line of {} bytes is not one", text.len()))?
        {
            Line::Refused { line, error } => {
                counted.suspend(|| println!("line {line}: {} ({})", error.detail, error.code));
            }
            Line::Accepted { line, id } if arguments.verbose => counted.suspend(|| println!("line {line}: {id}")),
            Line::Accepted { .. } => {}
            Line::Total { accepted, rejected } => total = Some((accepted, rejected)),
        }
    }
    counted.finish_and_clear();
    let (accepted, rejected) = total.context("the answer ended without its total: not all lines were accepted")?;
    println!("{accepted} accepted, {rejected} refused");
    anyhow::ensure!(rejected == 0, "{rejected} lines were refused");
    Ok(())
}

/// A client that waits as long as the server reads nothing: an upload is read as fast as the key may send, which may be
/// slower than TCP's user timeout allows (30 s, where reqwest sets it).
fn patient() -> reqwest::Result<reqwest::Client> {
    let client = reqwest::Client::builder();
    #[cfg(target_os = "linux")]
    let client = client.tcp_user_timeout(None);
    client.build()
}

/// The input and, where it is known, its size in bytes.
async fn open(file: &Path) -> anyhow::Result<(Box<dyn AsyncRead + Send + Unpin>, Option<u64>)> {
    if file == Path::new("-") {
        return Ok((Box::new(tokio::fs::File::open("/dev/stdin").await?), None));
    }
    let opened = tokio::fs::File::open(file).await.with_context(|| format!("cannot read {}", file.display()))?;
    let size = opened.metadata().await?.len();
    Ok((Box::new(opened), Some(size)))
}

fn content_encoding(file: &Path) -> Option<&'static str> {
    match file.extension()?.to_str()? {
        "gz" => Some("gzip"),
        "zst" => Some("zstd"),
        _ => None,
    }
}

fn progress(size: Option<u64>) -> ProgressBar {
    let template = "{bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr()).with_style(style)
}
