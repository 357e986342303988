//! A file of messages as one bulk upload: progress, refused lines in a file of their own, and a command that goes on after
//! an interruption.
//!
//! Every upload has an Idempotency-Key. Ids of messages derive from it and from their place in the file, so the file is sent
//! again from its start: lines that were accepted before are the same messages.

use std::path::Path;

use anyhow::Context as _;
use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use futures_util::TryStreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio_util::io::{ReaderStream, StreamReader};

use super::refused::{self, Refused};
use crate::cli::{SendArguments, Settings};
use crate::client;
use crate::invocation::{Invocation, url_flag};
use crate::output::{OutputError, noteln, outln};

/// Bytes of a chunk of the request.
const CHUNK_BYTES: usize = 64 * 1024;

/// A line of the answer: of a message, or the last one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Refused { line: u64, error: LineError },
    Accepted { line: u64, id: String },
    Total { accepted: u64, rejected: u64, error: Option<LineError> },
}

#[derive(Deserialize)]
struct LineError {
    code: String,
    detail: String,
    field: Option<String>,
}

impl LineError {
    fn described(&self) -> String {
        client::described(self.field.as_deref(), &self.detail, &self.code)
    }
}

/// An upload, as far as it is answered.
struct Upload<'a> {
    arguments: &'a SendArguments,
    progress: ProgressBar,
    refused: Refused,
    accepted: u64,
    rejected: u64,
    /// The last line that was answered. Answers come in the order of the lines.
    answered: u64,
    /// The accepted and refused lines, as the server counts them; none before its last line.
    total: Option<(u64, u64)>,
}

pub async fn run(settings: &Settings, arguments: &SendArguments, key: &str, file: &Path) -> anyhow::Result<()> {
    let idempotency_key =
        arguments.idempotency_key.clone().unwrap_or_else(|| format!("send-{:032x}", rand::random::<u128>()));
    let progress = progress(size_of(file).await?);
    let mut upload = Upload {
        arguments,
        progress: progress.clone(),
        refused: Refused::default(),
        accepted: 0,
        rejected: 0,
        answered: 0,
        total: None,
    };
    let done = tokio::select! {
        done = upload.send(key, &idempotency_key, file) => done,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            Err(anyhow::anyhow!("interrupted"))
        }
    };
    progress.finish_and_clear();
    let copied = upload.copy_refused(file).await;
    let counts = format!("{} accepted, {} refused", upload.accepted, upload.rejected);
    match done {
        Ok((accepted, rejected)) => {
            if !arguments.json {
                outln!("{accepted} accepted, {rejected} refused")?;
            }
            copied?;
            anyhow::ensure!(rejected == 0, "{rejected} lines were refused");
            Ok(())
        }
        Err(error) if error.chain().any(<dyn std::error::Error>::is::<OutputError>) => Err(error),
        Err(error) => {
            if let Err(error) = copied {
                noteln!("{error:#}");
            }
            noteln!("{counts}, up to line {}. Go on with this command; no message is sent twice:", upload.answered);
            noteln!("  {}", resume(settings, arguments, &idempotency_key, file));
            Err(error)
        }
    }
}

impl Upload<'_> {
    /// Sends the file and reads the answers. Returns the counts of the server's last line.
    async fn send(&mut self, key: &str, idempotency_key: &str, file: &Path) -> anyhow::Result<(u64, u64)> {
        let endpoint = &self.arguments.server.endpoint;
        let input = self.progress.wrap_async_read(open(file).await?);
        let mut request = patient(endpoint)?
            .post(format!("{}/v1/messages/bulk", endpoint.url))
            .bearer_auth(key)
            .header("Content-Type", "application/x-ndjson")
            .header("Idempotency-Key", idempotency_key)
            .body(reqwest::Body::wrap_stream(ReaderStream::with_capacity(input, CHUNK_BYTES)));
        if let Some(encoding) = encoding_of(file) {
            request = request.header("Content-Encoding", encoding);
        }
        let answer = client::checked(request.send().await, &endpoint.url).await?;
        let mut lines = BufReader::new(StreamReader::new(answer.bytes_stream().map_err(std::io::Error::other))).lines();
        while let Some(text) = lines.next_line().await.context("the connection broke off")? {
            self.take(&text)?;
        }
        self.total.context("the answer ended without its total")
    }

    fn take(&mut self, text: &str) -> anyhow::Result<()> {
        let line = serde_json::from_str(text)
            .with_context(|| format!("a line of the answer, {} bytes long, is not one of a bulk upload", text.len()))?;
        if self.arguments.json {
            self.progress.suspend(|| outln!("{text}"))?;
        }
        let is_shown = !self.arguments.json;
        match line {
            Line::Refused { line, error } => {
                self.rejected += 1;
                self.answered = line;
                self.refused.add(line);
                if is_shown {
                    self.progress.suspend(|| outln!("line {line}: {}", error.described()))?;
                }
            }
            Line::Accepted { line, id } => {
                self.accepted += 1;
                self.answered = line;
                if is_shown && self.arguments.verbose {
                    self.progress.suspend(|| outln!("line {line}: {id}"))?;
                }
            }
            Line::Total { error: Some(error), .. } => anyhow::bail!("{}", error.described()),
            Line::Total { accepted, rejected, error: None } => self.total = Some((accepted, rejected)),
        }
        self.show_progress();
        Ok(())
    }

    fn show_progress(&self) {
        let seconds = self.progress.elapsed().as_secs_f64().max(0.001);
        let rate = ((self.accepted + self.rejected) as f64 / seconds) as u64;
        self.progress.set_message(format!("{} accepted, {} refused, {rate}/s", self.accepted, self.rejected));
    }

    /// Standard input and pipes cannot be read again: of their refused lines there are the numbers alone.
    async fn copy_refused(&self, file: &Path) -> anyhow::Result<()> {
        if size_of(file).await?.is_none() {
            return Ok(());
        }
        let output = self.arguments.refused.clone().unwrap_or_else(|| refused::default_path(file));
        if self.refused.copy(file, &output).await? {
            noteln!("the refused lines are in {}", output.display());
        }
        Ok(())
    }
}

/// The command that goes on after an interruption.
fn resume(settings: &Settings, arguments: &SendArguments, key: &str, file: &Path) -> String {
    let file = file.display().to_string();
    let mut words = vec!["send"];
    words.extend(url_flag(&arguments.server.endpoint.url));
    words.extend(["--file", &file, "--idempotency-key", key]);
    Invocation::current(settings).command(words)
}

/// A client that waits as long as the server reads nothing: an upload is read as fast as the key may send, which may be
/// slower than TCP's user timeout allows (30 s, where reqwest sets it).
fn patient(endpoint: &crate::cli::Endpoint) -> anyhow::Result<reqwest::Client> {
    let client = client::builder(endpoint)?;
    #[cfg(target_os = "linux")]
    let client = client.tcp_user_timeout(None);
    client.build().context("cannot make an HTTP client")
}

type Input = Box<dyn AsyncRead + Send + Unpin>;

/// The content of the file, decompressed.
pub async fn open_decoded(file: &Path) -> anyhow::Result<Input> {
    let input = BufReader::new(open(file).await?);
    Ok(match encoding_of(file) {
        Some("gzip") => {
            let mut decoder = GzipDecoder::new(input);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        Some(_) => Box::new(ZstdDecoder::new(input)),
        None => Box::new(input),
    })
}

async fn open(file: &Path) -> anyhow::Result<tokio::fs::File> {
    let path = if file == Path::new("-") { Path::new("/dev/stdin") } else { file };
    tokio::fs::File::open(path).await.with_context(|| format!("cannot read {}", file.display()))
}

/// The size of a file that can be read again, in bytes.
async fn size_of(file: &Path) -> anyhow::Result<Option<u64>> {
    if file == Path::new("-") {
        return Ok(None);
    }
    let found = tokio::fs::metadata(file).await.with_context(|| format!("cannot read {}", file.display()))?;
    Ok(found.is_file().then_some(found.len()))
}

fn encoding_of(file: &Path) -> Option<&'static str> {
    match file.extension()?.to_str()? {
        "gz" => Some("gzip"),
        "zst" => Some("zstd"),
        _ => None,
    }
}

fn progress(size: Option<u64>) -> ProgressBar {
    let template = match size {
        Some(_) => "{bar:24} {percent:>3} %  {msg}  {eta} left",
        None => "{bytes} read  {msg}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr()).with_style(style)
}
