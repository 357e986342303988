//! The results, a line for each line, on their way to the client: one buffer a batch, and a bounded number of those.

use std::convert::Infallible;
use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use eshaar_service::{Problem, metrics as names};
use serde::Serialize;
use tokio::sync::mpsc;

use super::settle::{Outcome, Taken};
use crate::options::BulkOptions;

/// Length of the answer to an accepted line, about.
const ANSWER_BYTES: usize = 80;

/// Why a request is not followed to its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// Something is wrong; the client is told.
    Broken(Problem),
    /// The client is gone, or reads no answers.
    Gone,
}

/// The answer to a line that was refused.
#[derive(Serialize)]
struct RefusedLine<'a> {
    line: u64,
    error: ErrorOf<'a>,
}

/// The last line.
#[derive(Serialize)]
struct Total<'a> {
    accepted: u64,
    rejected: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorOf<'a>>,
}

#[derive(Serialize)]
struct ErrorOf<'a> {
    code: &'static str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
}

impl<'a> From<&'a Problem> for ErrorOf<'a> {
    fn from(problem: &'a Problem) -> Self {
        Self { code: problem.code, detail: &problem.detail, field: problem.field.as_deref() }
    }
}

/// Writes answers.
pub(super) struct Answers {
    to_client: mpsc::Sender<Result<Bytes, Infallible>>,
    stall_timeout: Duration,
    accepted: u64,
    rejected: u64,
}

impl Answers {
    /// Answers, and what the client reads of them.
    pub(super) fn new(options: &BulkOptions) -> (Self, mpsc::Receiver<Result<Bytes, Infallible>>) {
        let (to_client, from_us) = mpsc::channel(options.answer_batches.get());
        (Self { to_client, stall_timeout: options.stall_timeout(), accepted: 0, rejected: 0 }, from_us)
    }

    /// Answers a batch of lines.
    pub(super) async fn send(&mut self, outcomes: &[Outcome]) -> Result<(), Stop> {
        if outcomes.is_empty() {
            return Ok(());
        }
        let mut text = Vec::with_capacity(outcomes.len() * ANSWER_BYTES);
        for (line, outcome) in outcomes {
            // Writing to memory cannot fail.
            let _ = match outcome {
                Ok(taken @ Taken { id, .. }) => {
                    self.accepted += 1;
                    let status = taken.status();
                    write!(text, r#"{{"line":{line},"id":"{id}","status":"{status}"}}"#)
                }
                Err(problem) => {
                    self.rejected += 1;
                    metrics::counter!(names::INGEST_REJECTED, "code" => problem.code).increment(1);
                    serde_json::to_writer(&mut text, &RefusedLine { line: *line, error: problem.into() })
                        .map_err(Into::into)
                }
            };
            text.push(b'\n');
        }
        self.write(text).await
    }

    /// The last line. With `problem`, what was not answered by a line before was not looked at.
    pub(super) async fn total(&mut self, problem: Option<&Problem>) {
        let total = Total { accepted: self.accepted, rejected: self.rejected, error: problem.map(Into::into) };
        let mut text = serde_json::to_vec(&total).unwrap_or_default();
        text.push(b'\n');
        // A client that is gone has been noticed by then, or is not waiting for this.
        let _ = self.write(text).await;
    }

    async fn write(&self, text: Vec<u8>) -> Result<(), Stop> {
        match self.to_client.send_timeout(Ok(Bytes::from(text)), self.stall_timeout).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Stop::Gone),
        }
    }
}
