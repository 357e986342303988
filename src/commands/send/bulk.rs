//! A file of messages as one bulk upload: progress, refused lines in a file of their own, and a command that goes on after
//! an interruption.
//!
//! Every upload has an Idempotency-Key. Ids of messages derive from it and from the numbers of their lines in the file, so an
//! interrupted upload goes on behind the last line that was accepted: what was accepted and not answered is the same message.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::{RequestBuilder, StatusCode};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio_util::io::{ReaderStream, StreamReader};

use super::file::{Input, Lines, decoded, encoding_of, open, size_of};
use super::refused::{self, Refused};
use crate::cli::{SendArguments, Settings};
use crate::client;
use crate::invocation::{Invocation, url_flag};
use crate::output::{OutputError, noteln, outln};

/// Bytes of a chunk of the request.
const CHUNK_BYTES: usize = 64 * 1024;

/// How long the server may work on the lines that an interrupted upload left it with: a batch of 500 at 10 a second takes 50 s.
const IN_FLIGHT_LIMIT: Duration = Duration::from_mins(2);
/// The wait before it is asked again.
const IN_FLIGHT_WAIT: Duration = Duration::from_secs(1);

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
    /// The last line that was accepted. Answers come in the order of the lines.
    last_accepted: u64,
    /// The first line that was refused with each code.
    first_refused: HashMap<String, u64>,
    /// The code that ended the upload early.
    ended_by: Option<String>,
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
        last_accepted: after_line(arguments),
        first_refused: HashMap::new(),
        ended_by: None,
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
    let goes_on_after = upload.goes_on_after();
    if done.is_err() {
        upload.refused.forget_after(goes_on_after);
    }
    let copied = upload.copy_refused(file).await;
    let counts = format!("{} accepted, {} refused", upload.accepted, upload.refused.count());
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
            noteln!("{counts}, up to line {goes_on_after}. Go on with this command; no message is sent twice:");
            noteln!("  {}", resume(settings, arguments, &idempotency_key, file, goes_on_after));
            Err(error)
        }
    }
}

impl Upload<'_> {
    /// Sends the file and reads the answers. Returns the counts of the server's last line.
    async fn send(&mut self, key: &str, idempotency_key: &str, file: &Path) -> anyhow::Result<(u64, u64)> {
        let url = &self.arguments.server.endpoint.url;
        let is_file = size_of(file).await?.is_some();
        let begun = Instant::now();
        let mut is_told = false;
        let answer = loop {
            let answer = self.request(key, idempotency_key, file).await?.send().await;
            let in_flight = answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::CONFLICT);
            // A pipe cannot be read again from its start.
            if !in_flight || !is_file || begun.elapsed() > IN_FLIGHT_LIMIT {
                break client::checked(answer, url).await?;
            }
            if !std::mem::replace(&mut is_told, true) {
                self.progress.suspend(|| noteln!("the server has not ended the interrupted upload yet; trying again"));
            }
            tokio::time::sleep(IN_FLIGHT_WAIT).await;
        };
        let mut lines = BufReader::new(StreamReader::new(answer.bytes_stream().map_err(std::io::Error::other))).lines();
        while let Some(text) = lines.next_line().await.context("the connection broke off")? {
            self.take(&text)?;
        }
        self.total.context("the answer ended without its total")
    }

    /// The request, with the lines of the file behind those that were sent before.
    async fn request(&self, key: &str, idempotency_key: &str, file: &Path) -> anyhow::Result<RequestBuilder> {
        let endpoint = &self.arguments.server.endpoint;
        self.progress.set_position(0);
        let read = self.progress.wrap_async_read(open(file).await?);
        let after_line = after_line(self.arguments);
        let (input, encoding): (Input, _) = match after_line {
            0 => (Box::new(read), encoding_of(file)),
            line => (Lines::new(decoded(read, file)).await?.behind(line, file).await?, None),
        };
        let mut request = patient(endpoint)?
            .post(format!("{}/v1/messages/bulk", endpoint.url))
            .bearer_auth(key)
            .header("Content-Type", "application/x-ndjson")
            .header("Idempotency-Key", idempotency_key)
            .body(reqwest::Body::wrap_stream(ReaderStream::with_capacity(input, CHUNK_BYTES)));
        if let Some(encoding) = encoding {
            request = request.header("Content-Encoding", encoding);
        }
        if after_line > 0 {
            request = request.query(&[("after_line", after_line)]);
        }
        Ok(request)
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
                self.refused.add(line);
                if is_shown {
                    self.progress.suspend(|| outln!("line {line}: {}", error.described()))?;
                }
                self.first_refused.entry(error.code).or_insert(line);
            }
            Line::Accepted { line, id } => {
                self.accepted += 1;
                self.last_accepted = line;
                if is_shown && self.arguments.verbose {
                    self.progress.suspend(|| outln!("line {line}: {id}"))?;
                }
            }
            Line::Total { error: Some(error), .. } => {
                let described = error.described();
                self.ended_by = Some(error.code);
                anyhow::bail!(described);
            }
            Line::Total { accepted, rejected, error: None } => self.total = Some((accepted, rejected)),
        }
        self.show_progress();
        Ok(())
    }

    /// The line behind which an interrupted upload goes on: the last one accepted. What was refused behind it is asked again,
    /// as are lines that were refused for the reason that ended the upload (the log was away): it may have passed.
    fn goes_on_after(&self) -> u64 {
        let refused = self.ended_by.as_ref().and_then(|code| self.first_refused.get(code));
        refused.map_or(self.last_accepted, |line| self.last_accepted.min(line - 1))
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
        if self.refused.copy(file, &output, after_line(self.arguments) > 0).await? {
            noteln!("the refused lines are in {}", output.display());
        }
        Ok(())
    }
}

/// The line behind which the upload begins.
fn after_line(arguments: &SendArguments) -> u64 {
    arguments.after_line.unwrap_or(0)
}

/// The command that goes on after an interruption.
fn resume(settings: &Settings, arguments: &SendArguments, key: &str, file: &Path, after_line: u64) -> String {
    let endpoint = &arguments.server.endpoint;
    let [file, ca_file, refused] = [Some(file), endpoint.ca_file.as_deref(), arguments.refused.as_deref()]
        .map(|path| path.map(|path| path.display().to_string()));
    let line = (after_line > 0).then(|| after_line.to_string());
    let mut words = vec!["send"];
    words.extend(url_flag(&endpoint.url));
    let flags = [
        ("--ca-file", ca_file.as_deref()),
        ("--file", file.as_deref()),
        ("--refused", refused.as_deref()),
        ("--idempotency-key", Some(key)),
        ("--after-line", line.as_deref()),
    ];
    words.extend(flags.into_iter().filter_map(|(flag, value)| Some([flag, value?])).flatten());
    words.extend(
        [("--verbose", arguments.verbose), ("--json", arguments.json)].iter().filter(|flag| flag.1).map(|flag| flag.0),
    );
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

fn progress(size: Option<u64>) -> ProgressBar {
    let template = match size {
        Some(_) => "{bar:24} {percent:>3} %  {msg}  {eta} left",
        None => "{bytes} read  {msg}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr()).with_style(style)
}
