//! A batch of lines: those at hand, each parsed or refused. It waits for the first line, never for more.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use eshaar_model::MessageId;
use eshaar_service::Problem;
use http::StatusCode;

use super::Submission;
use super::lines::{Line, Lines, Next};
use crate::idempotency::Fingerprint;
use crate::submit::{self, Draft, Rules, meaning};

/// Bytes of lines after which a batch is not added to: it must fit the log's queue with room for others.
const BATCH_BYTES: usize = 1024 * 1024;

/// What lines with a key of their own are distinguished by from other requests with the same key.
const KIND: &str = "line of POST /v1/messages/bulk";

/// A line, as far as it could be taken without asking anybody.
pub(super) enum Entry {
    Ready {
        line: u64,
        id: MessageId,
        draft: Draft,
    },
    /// It has a key of its own, which is to be claimed first.
    Keyed {
        line: u64,
        id: MessageId,
        draft: Draft,
        key: String,
        request: Fingerprint,
    },
    Refused {
        line: u64,
        problem: Problem,
    },
}

/// A batch, and whether the upload ended with it: well, or not.
pub(super) struct Gathered {
    pub(super) entries: Vec<Entry>,
    pub(super) end: Option<Result<(), Problem>>,
}

/// Makes batches of lines.
pub(super) struct Gather {
    submission: Arc<Submission>,
    lines: Lines,
    /// A line that was read and belongs to the next batch, with its number.
    left: Option<(u64, Bytes, Draft)>,
}

impl Gather {
    pub(super) fn new(submission: Arc<Submission>, lines: Lines) -> Self {
        Self { submission, lines, left: None }
    }

    /// The next batch.
    pub(super) async fn batch(&mut self) -> Gathered {
        let limit = self.submission.app.options.bulk.batch_lines.get();
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut keys = HashSet::new();
        if let Some((line, text, draft)) = self.left.take() {
            keys.extend(draft.idempotency_key.clone());
            entries.push(self.entry(line, &text, draft));
        }
        while entries.len() < limit && bytes < BATCH_BYTES {
            match self.lines.next() {
                Ok(Next::Line(line, Line::Text(text))) => {
                    bytes += text.len();
                    match self.parse(&text) {
                        Err(problem) => entries.push(Entry::Refused { line, problem }),
                        // A key that stands twice in one batch: its second use must find the first one answered.
                        Ok(draft) if draft.idempotency_key.as_ref().is_some_and(|key| !keys.insert(key.clone())) => {
                            self.left = Some((line, text, draft));
                            break;
                        }
                        Ok(draft) => entries.push(self.entry(line, &text, draft)),
                    }
                }
                Ok(Next::Line(line, Line::TooLong)) => {
                    entries.push(Entry::Refused { line, problem: self.too_long() });
                }
                Ok(Next::NotYet) if entries.is_empty() => {
                    if let Err(problem) = self.lines.wait().await {
                        return Gathered { entries, end: Some(Err(problem)) };
                    }
                }
                Ok(Next::NotYet) => break,
                Ok(Next::End) => return Gathered { entries, end: Some(Ok(())) },
                Err(problem) => return Gathered { entries, end: Some(Err(problem)) },
            }
        }
        Gathered { entries, end: None }
    }

    /// Reads the rest of the upload and throws it away.
    pub(super) async fn discard(mut self) {
        self.lines.discard().await;
    }

    fn parse(&self, text: &[u8]) -> Result<Draft, Problem> {
        let app = &self.submission.app;
        submit::parse_line(text, Rules::of(&app.options), app.deps.clock.now())
    }

    fn entry(&self, line: u64, text: &Bytes, mut draft: Draft) -> Entry {
        let Submission { app, ids, .. } = &*self.submission;
        let key = draft.idempotency_key.take();
        let meaning = if ids.is_some() || key.is_some() { meaning::of_one_way(KIND, &draft) } else { [0; 32] };
        let id = match ids {
            None => app.ids.mint(app.deps.clock.now()),
            Some(ids) if ids.by_bytes() => ids.of(line, text),
            Some(ids) => ids.of(line, &[&meaning[..], key.as_deref().unwrap_or_default().as_bytes()].concat()),
        };
        if let Some(key) = key {
            let request = Fingerprint::new(meaning, KIND, text.slice_ref(text.trim_ascii()));
            return Entry::Keyed { line, id, draft, key, request };
        }
        Entry::Ready { line, id, draft }
    }

    fn too_long(&self) -> Problem {
        let limit = self.submission.app.options.bulk.line_limit_bytes;
        let detail = format!("a line must have at most {limit} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "line_too_long", detail)
    }
}
