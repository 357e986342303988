//! The results, a line for each line, on their way to the client.
//!
//! They wait in memory for a client that sends before it reads (many HTTP libraries write the whole body first): 20 bytes for
//! an accepted line, until the client reads on. The memory is bounded, and shared by businesses ([`Shares`]). Where there is
//! no more of it and the client reads nothing for a while, the upload ends with a total that says so.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use eshaar_model::{BusinessId, MessageId};
use eshaar_service::{Problem, json, metrics as names};
use futures_util::Stream;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;

use super::settle::{Outcome, Taken};
use crate::problems;
use crate::shares::{Share, Shares};

/// Length of the answer to an accepted line, about.
const ANSWER_BYTES: usize = 80;

/// Which lines are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Each by a line.
    All,
    /// Those that are refused; of the others the total says how many.
    Summary,
}

/// Why a request is not followed to its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// Something is wrong; the client is told.
    Broken(Problem),
    /// The client is gone.
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
    last_line: Option<u64>,
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

/// Where answers come from, and whose memory they take.
pub(super) struct Terms {
    pub(super) mode: Mode,
    /// The number of the line before the first of the upload.
    pub(super) after_line: u64,
    pub(super) business: BusinessId,
    pub(super) memory: Arc<Shares>,
    /// How long a client may read nothing where there is no more memory.
    pub(super) stall_timeout: Duration,
}

/// Writes answers.
pub(super) struct Answers {
    terms: Terms,
    queue: Arc<Queue>,
    accepted: u64,
    rejected: u64,
    /// The last line that was settled; the one before the upload where none was.
    last_line: u64,
}

/// What the client reads.
pub(super) struct AnswerStream(Arc<Queue>);

/// Answers that the client has not read.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// The client has read, or is gone.
    read: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Part>,
    reader: Option<Waker>,
    ended: bool,
    /// Its answers were dropped: it must not take what it has for all of them.
    is_aborted: bool,
    is_gone: bool,
}

/// Answers to some lines, and the memory that they take.
struct Part {
    lines: Lines,
    _memory: Option<Share>,
}

enum Lines {
    /// Accepted ones: each by its distance from the first.
    Accepted { first: u64, lines: Vec<Accepted> },
    /// As they are written.
    Text(Vec<u8>),
}

struct Accepted {
    id: MessageId,
    /// Distance from the first line, and the highest bit where it is scheduled.
    place: u32,
}

const SCHEDULED: u32 = 1 << 31;

impl Lines {
    fn bytes(&self) -> usize {
        size_of::<Part>()
            + match self {
                Self::Accepted { lines, .. } => lines.capacity() * size_of::<Accepted>(),
                Self::Text(text) => text.capacity(),
            }
    }

    fn write(self) -> Bytes {
        let (first, lines) = match self {
            Self::Accepted { first, lines } => (first, lines),
            Self::Text(text) => return text.into(),
        };
        let mut text = Vec::with_capacity(lines.len() * ANSWER_BYTES);
        for Accepted { id, place } in lines {
            let (line, is_scheduled) = (first + u64::from(place & !SCHEDULED), place & SCHEDULED != 0);
            let status = Taken { id, is_scheduled }.status();
            // Writing to memory cannot fail.
            let _ = writeln!(text, r#"{{"line":{line},"id":"{id}","status":"{status}"}}"#);
        }
        text.into()
    }
}

impl Answers {
    /// Answers, and what the client reads of them.
    pub(super) fn new(terms: Terms) -> (Self, AnswerStream) {
        let queue = Arc::new(Queue::default());
        let stream = AnswerStream(Arc::clone(&queue));
        let last_line = terms.after_line;
        (Self { terms, queue, accepted: 0, rejected: 0, last_line }, stream)
    }

    /// Answers a batch of lines, whether or not the client reads: they are settled.
    pub(super) async fn send(&mut self, outcomes: &[Outcome]) -> Result<(), Stop> {
        let mut sent = Ok(());
        for lines in self.lines(outcomes) {
            let pushed = self.push(lines).await;
            sent = sent.and(pushed);
        }
        sent
    }

    /// The last line. With `problem`, what is behind the last line that was answered was not looked at.
    pub(super) fn total(&mut self, problem: Option<&Problem>) {
        let tells_place = problem.is_some() || self.terms.mode == Mode::Summary;
        let total = Total {
            accepted: self.accepted,
            rejected: self.rejected,
            last_line: tells_place.then_some(self.last_line),
            error: problem.map(Into::into),
        };
        let mut text = serde_json::to_vec(&total).unwrap_or_default();
        text.push(b'\n');
        let mut state = self.queue.state.lock();
        state.waiting.push_back(Part { lines: Lines::Text(text), _memory: None });
        state.ended = true;
        state.wake();
    }

    /// Waits until the client has read everything; lets go of it where the client reads nothing for too long.
    pub(super) async fn drained(self) {
        loop {
            {
                let state = self.queue.state.lock();
                if state.is_gone || state.waiting.is_empty() {
                    return;
                }
            }
            if tokio::time::timeout(self.terms.stall_timeout, self.queue.read.notified()).await.is_err() {
                tracing::debug!("a bulk sender reads no answers; they are dropped");
                let mut state = self.queue.state.lock();
                state.waiting.clear();
                state.is_aborted = true;
                return;
            }
        }
    }

    /// Runs of accepted lines and of refused ones, in order.
    fn lines(&mut self, outcomes: &[Outcome]) -> Vec<Lines> {
        let mut all: Vec<Lines> = Vec::new();
        for (line, outcome) in outcomes {
            self.last_line = *line;
            match outcome {
                Ok(_) if self.terms.mode == Mode::Summary => self.accepted += 1,
                Ok(Taken { id, is_scheduled }) => {
                    self.accepted += 1;
                    if !matches!(all.last(), Some(Lines::Accepted { .. })) {
                        let lines = Vec::with_capacity(outcomes.len());
                        all.push(Lines::Accepted { first: *line, lines });
                    }
                    if let Some(Lines::Accepted { first, lines }) = all.last_mut() {
                        let place = (line - *first) as u32 | if *is_scheduled { SCHEDULED } else { 0 };
                        lines.push(Accepted { id: *id, place });
                    }
                }
                Err(problem) => {
                    self.rejected += 1;
                    metrics::counter!(names::INGEST_REJECTED, "code" => problem.code).increment(1);
                    if !matches!(all.last(), Some(Lines::Text(_))) {
                        all.push(Lines::Text(Vec::new()));
                    }
                    if let Some(Lines::Text(text)) = all.last_mut() {
                        let refused = RefusedLine { line: *line, error: problem.into() };
                        // Writing to memory cannot fail.
                        let _ = json::to_writer(&mut *text, &refused);
                        text.push(b'\n');
                    }
                }
            }
        }
        all.iter_mut().for_each(Lines::shrink);
        all
    }

    /// Adds to what waits. Where there is no memory for it the client must read first; one that has read everything gets
    /// the next at once.
    async fn push(&self, lines: Lines) -> Result<(), Stop> {
        let bytes = lines.bytes();
        let mut stop = None;
        loop {
            {
                let mut state = self.queue.state.lock();
                if state.is_gone {
                    return Err(Stop::Gone);
                }
                let memory = self.terms.memory.take(&self.terms.business, bytes);
                if stop.is_some() || memory.is_ok() || state.waiting.is_empty() {
                    state.waiting.push_back(Part { lines, _memory: memory.ok() });
                    state.wake();
                    return stop.map_or(Ok(()), Err);
                }
            }
            let read = tokio::time::timeout(self.terms.stall_timeout, self.queue.read.notified()).await;
            stop = read.is_err().then(|| Stop::Broken(problems::answers_unread(self.terms.stall_timeout)));
        }
    }
}

impl Lines {
    /// What waits takes no more than it needs.
    fn shrink(&mut self) {
        match self {
            Self::Accepted { lines, .. } => lines.shrink_to_fit(),
            Self::Text(text) => text.shrink_to_fit(),
        }
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        state.ended = true;
        state.wake();
    }
}

impl Stream for AnswerStream {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.0.state.lock();
        let Some(part) = state.waiting.pop_front() else {
            if state.is_aborted {
                return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
            }
            if state.ended {
                return Poll::Ready(None);
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        drop(state);
        self.0.read.notify_one();
        Poll::Ready(Some(Ok(part.lines.write())))
    }
}

impl Drop for AnswerStream {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.0.state.lock();
            state.is_gone = true;
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
        self.0.read.notify_one();
    }
}
