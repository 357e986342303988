//! A sender: one HTTP connection, some recipients of its own, and a timetable that it does not let slip.
//!
//! Open loop: a message is due when the timetable says so, however slow the server is, and its latency counts from then
//! (no coordinated omission). A request goes out again, with the same Idempotency-Key, until it is answered; the next one
//! waits for that, so each recipient's messages are sent in order.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use rand::Rng as _;
use serde::Deserialize;
use tokio::time::{Instant, sleep, sleep_until};

use crate::accounts::{Attempt, Sent};
use crate::cancels::{Accepted, Cancels, id_of};
use crate::http_client::{Answer, CallError, Client, Post};
use crate::phones::PhoneNumber;
use crate::reference::Reference;
use crate::run::Run;
use crate::scenario::{Mode, Senders};

/// First pause before a request goes out again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What a sender has to do.
pub struct Plan {
    /// Its place among the run's senders; part of its Idempotency-Keys.
    pub number: u32,
    /// How it submits.
    pub senders: Senders,
    /// The recipients that are its own.
    pub recipients: Vec<u32>,
    /// Messages to send.
    pub messages: u64,
    /// When its first request is due, in microseconds of the run's clock.
    pub first_us: u64,
    /// Microseconds from one request to the next; 0: none.
    pub interval_us: f64,
}

/// A sender at work.
pub struct Sender {
    plan: Plan,
    run: Arc<Run>,
    client: Client,
    books: Vec<(u32, Sent)>,
    /// Place in `books` of the next message's recipient.
    turn: usize,
    text: String,
}

/// A request, and the messages in it: (place in `books`, seq).
struct Batch {
    post: Post,
    due_us: u64,
    lines: Vec<(usize, u32)>,
}

impl Sender {
    /// A sender with a plan.
    pub fn new(plan: Plan, run: Arc<Run>) -> anyhow::Result<Self> {
        let client = Client::new(run.ingest.clone(), plan.number as usize, &run.api_key)?;
        let books = plan.recipients.iter().map(|recipient| (*recipient, Sent::default())).collect();
        Ok(Self { plan, run, client, books, turn: 0, text: String::new() })
    }

    /// Sends everything, unless a sender gives up. Gives back what was sent to whom.
    pub async fn work(mut self) -> Vec<(u32, Sent)> {
        let mut left = self.plan.messages;
        let mut number = 0_u64;
        while left > 0 && !self.run.given_up.is_cancelled() {
            let planned_us = self.plan.first_us + (number as f64 * self.plan.interval_us) as u64;
            sleep_until(self.run.clock.instant(planned_us)).await;
            // Without a timetable a message is due when the one before it was accepted.
            let due_us = if self.plan.interval_us > 0.0 { planned_us } else { self.run.clock.now_us() };
            let count = left.min(u64::from(self.plan.senders.lines()));
            let batch = self.batch(number, count as usize, due_us);
            self.submit(batch).await;
            left -= count;
            number += 1;
        }
        self.books
    }

    fn batch(&mut self, number: u64, count: usize, due_us: u64) -> Batch {
        let mut lines = Vec::with_capacity(count);
        self.text.clear();
        for _ in 0..count {
            let (recipient, sent) = &mut self.books[self.turn];
            let reference = Reference { recipient: *recipient, seq: sent.attempt(), intended_us: due_us };
            let priority = self.plan.senders.priority(reference.seq).as_str();
            let phone = self.run.phones.number(*recipient);
            render(&mut self.text, phone, &self.run.content, priority, reference);
            lines.push((self.turn, reference.seq));
            self.turn = (self.turn + 1) % self.books.len();
        }
        let (path, content_type) = match self.plan.senders.mode {
            Mode::Single => ("/v1/messages", "application/json"),
            Mode::Bulk => ("/v1/messages/bulk", "application/x-ndjson"),
        };
        let key = || HeaderValue::try_from(format!("{}-{}-{number}", self.run.id, self.plan.number)).ok();
        let key = self.plan.senders.idempotency_keys.then(key).flatten();
        let post = Post { path: path.into(), content_type, key, body: Bytes::copy_from_slice(self.text.as_bytes()) };
        Batch { post, due_us, lines }
    }

    /// Posts until there is an answer, and settles the books with it.
    async fn submit(&mut self, batch: Batch) {
        let patience = Duration::from_millis(self.plan.senders.request_timeout_ms);
        let give_up = Instant::now() + Duration::from_millis(self.plan.senders.give_up_ms);
        let mut pause = FIRST_PAUSE;
        loop {
            let result = self.client.post(batch.post.clone(), patience).await;
            let body = result.as_ref().map_or_else(|_| Bytes::new(), |answer| answer.body.clone());
            match judge(self.plan.senders.mode, batch.lines.len(), result) {
                Judgement::Settled(attempts) => {
                    if attempts == Attempts::All(Attempt::Accepted) {
                        self.begin_cancels(&batch, &body);
                    }
                    return self.settle(&batch, |line| attempts.of(line));
                }
                Judgement::Again(why, wait) => {
                    self.count_retry(why);
                    let wait = wait.unwrap_or_else(|| pause.mul_f64(rand::rng().random_range(0.5..1.0)));
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    // Only what was turned away (429) may be sent again without a key.
                    let once = batch.post.key.is_none() && why != Why::TurnedAway;
                    let too_late = Instant::now() + wait >= give_up;
                    if too_late {
                        self.run.given_up.cancel();
                    }
                    if once || too_late || self.run.given_up.is_cancelled() {
                        return self.settle(&batch, |_| Attempt::Unknown);
                    }
                    sleep(wait).await;
                }
            }
        }
    }

    /// Looks up and cancels an accepted message, where the plan says so.
    fn begin_cancels(&self, batch: &Batch, body: &[u8]) {
        let senders = &self.plan.senders;
        let [(place, seq)] = batch.lines[..] else { return };
        let recipient = self.books[place].0;
        if !senders.cancels(recipient, seq) && !senders.looks_up(recipient, seq) {
            return;
        }
        match id_of(body) {
            Some(id) => Cancels::begin(&self.run, senders, Accepted { recipient, seq, id }),
            None => self.run.totals.protocol_errors.one(),
        }
    }

    fn count_retry(&self, why: Why) {
        let totals = &self.run.totals;
        match why {
            Why::Connection => totals.retries_connection.one(),
            Why::Timeout => totals.retries_timeout.one(),
            Why::Status | Why::TurnedAway => totals.retries_status.one(),
        }
    }

    fn settle(&mut self, batch: &Batch, attempt_of: impl Fn(usize) -> Attempt) {
        let mut accepted = 0;
        for (line, (place, seq)) in batch.lines.iter().enumerate() {
            let attempt = attempt_of(line);
            accepted += u64::from(attempt == Attempt::Accepted);
            self.books[*place].1.settle(*seq, attempt);
        }
        self.run.totals.accepted.add(accepted);
        self.run.totals.abandoned.add(batch.lines.len() as u64 - accepted);
        if let Some(latency_us) = self.run.latency_us(batch.due_us) {
            self.run.accept_latency.record(&[latency_us]);
        }
    }
}

/// Appends a message in JSON and a line end.
pub fn render(out: &mut String, phone: PhoneNumber, content: &str, priority: &str, reference: Reference) {
    // Writing to a String cannot fail.
    let _ =
        write!(out, r#"{{"to":"{phone}","type":"one_way","priority":"{priority}","content":"{content}","reference":""#);
    reference.write_to(out);
    out.push_str("\"}\n");
}

/// Why a request goes out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Connection,
    Timeout,
    /// 5xx or 409: what became of it is not certain.
    Status,
    /// 429, or a full queue: nothing came of it.
    TurnedAway,
}

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    /// It is known what became of each message.
    Settled(Attempts),
    /// Ask again, after this pause where the server named one.
    Again(Why, Option<Duration>),
}

#[derive(Debug, PartialEq, Eq)]
enum Attempts {
    All(Attempt),
    Each(Vec<Attempt>),
}

impl Attempts {
    fn of(&self, line: usize) -> Attempt {
        match self {
            Self::All(attempt) => *attempt,
            Self::Each(attempts) => attempts[line],
        }
    }
}

fn judge(mode: Mode, lines: usize, result: Result<Answer, CallError>) -> Judgement {
    let answer = match result {
        Ok(answer) => answer,
        Err(CallError::Connection(_)) => return Judgement::Again(Why::Connection, None),
        Err(CallError::Timeout(_)) => return Judgement::Again(Why::Timeout, None),
    };
    if answer.status.is_success() {
        return match mode {
            Mode::Single => Judgement::Settled(Attempts::All(Attempt::Accepted)),
            // A bulk answer without its end: what became of the lines is not known.
            Mode::Bulk => read_bulk_answer(&answer.body, lines)
                .map_or(Judgement::Again(Why::Connection, None), Judgement::Settled),
        };
    }
    match answer.status {
        StatusCode::TOO_MANY_REQUESTS => Judgement::Again(Why::TurnedAway, answer.retry_after),
        StatusCode::SERVICE_UNAVAILABLE if is_queue_full(&answer.body) => {
            Judgement::Again(Why::TurnedAway, answer.retry_after)
        }
        // 409 is "the first use of this key is still under way".
        StatusCode::CONFLICT | StatusCode::REQUEST_TIMEOUT => Judgement::Again(Why::Status, answer.retry_after),
        status if status.is_server_error() => Judgement::Again(Why::Status, answer.retry_after),
        _ => Judgement::Settled(Attempts::All(Attempt::Refused)),
    }
}

/// Whether a problem is that too many messages wait: then nothing was taken.
fn is_queue_full(body: &[u8]) -> bool {
    /// What is read of a problem.
    #[derive(Deserialize)]
    struct Problem {
        code: String,
    }
    serde_json::from_slice(body).is_ok_and(|Problem { code }| code == "queue_full")
}

/// The last line of a bulk answer.
#[derive(Deserialize)]
pub struct BulkEnd {
    /// Lines accepted.
    pub accepted: u64,
    /// Lines refused.
    pub rejected: u64,
    /// Why lines were not looked at, or are not known to have been taken.
    #[serde(default)]
    error: Option<serde::de::IgnoredAny>,
}

impl BulkEnd {
    /// Reads it from the end of an answer; `None` where the answer was cut short, or the request was.
    pub fn read(body: &[u8]) -> Option<Self> {
        let body = body.trim_ascii_end();
        let start = body.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        serde_json::from_slice(&body[start..]).ok().filter(|end: &Self| end.error.is_none())
    }
}

/// A line of a bulk answer.
#[derive(Deserialize)]
struct BulkLine {
    /// The line of the request, from 1.
    line: usize,
    #[serde(default)]
    error: Option<serde::de::IgnoredAny>,
}

fn read_bulk_answer(body: &[u8], lines: usize) -> Option<Attempts> {
    let end = BulkEnd::read(body)?;
    if end.accepted + end.rejected != lines as u64 {
        return None;
    }
    if end.rejected == 0 {
        return Some(Attempts::All(Attempt::Accepted));
    }
    let mut attempts = vec![Attempt::Unknown; lines];
    for line in body.split(|byte| *byte == b'\n') {
        if let Ok(BulkLine { line, error }) = serde_json::from_slice(line) {
            *attempts.get_mut(line.checked_sub(1)?)? =
                if error.is_some() { Attempt::Refused } else { Attempt::Accepted };
        }
    }
    Some(Attempts::Each(attempts))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::phones::Phones;

    fn judged(mode: Mode, lines: usize, status: u16, body: &'static str) -> Judgement {
        let status = StatusCode::from_u16(status).unwrap();
        judge(mode, lines, Ok(Answer { status, retry_after: None, body: body.into() }))
    }

    #[test]
    fn a_rendered_message_is_a_line_of_json() {
        let mut text = String::new();
        let reference = Reference { recipient: 1, seq: 2, intended_us: 3 };
        let phone = Phones::new(1).number(7);
        render(&mut text, phone, "hello", "high", reference);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["reference"], "r-1-2-3");
        assert_eq!(value["to"], phone.to_string());
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn a_single_message_is_accepted_refused_or_asked_again() {
        let settled = |attempt| Judgement::Settled(Attempts::All(attempt));
        assert_eq!(judged(Mode::Single, 1, 202, "{}"), settled(Attempt::Accepted));
        assert_eq!(judged(Mode::Single, 1, 400, "{}"), settled(Attempt::Refused));
        assert_eq!(judged(Mode::Single, 1, 429, ""), Judgement::Again(Why::TurnedAway, None));
        assert_eq!(judged(Mode::Single, 1, 503, r#"{"code":"queue_full"}"#), Judgement::Again(Why::TurnedAway, None));
        for status in [409, 500, 503] {
            assert_eq!(judged(Mode::Single, 1, status, ""), Judgement::Again(Why::Status, None));
        }
        let timeout = Err(CallError::Timeout(Duration::from_secs(1)));
        assert_eq!(judge(Mode::Single, 1, timeout), Judgement::Again(Why::Timeout, None));
    }

    #[test]
    fn a_bulk_answer_that_was_cut_short_is_asked_again() {
        let broken = "{\"accepted\":0,\"rejected\":2,\"error\":{\"code\":\"log_unavailable\",\"detail\":\"\"}}";
        for body in ["", "{\"line\":1,\"id\":\"a\",\"status\":\"sent\"}\n", "{\"accepted\":1,\"rejected\":0}\n", broken]
        {
            assert_eq!(judged(Mode::Bulk, 2, 200, body), Judgement::Again(Why::Connection, None), "{body}");
        }
    }

    #[test]
    fn a_bulk_answer_says_which_line_was_refused() {
        let body = "{\"line\":1,\"id\":\"a\",\"status\":\"sent\"}\n{\"line\":2,\"error\":{\"code\":\"x\",\"detail\":\"\"}}\n\
                    {\"accepted\":1,\"rejected\":1}\n";
        let attempts = Attempts::Each(vec![Attempt::Accepted, Attempt::Refused]);
        assert_eq!(judged(Mode::Bulk, 2, 200, body), Judgement::Settled(attempts));
        let all = judged(Mode::Bulk, 2, 200, "{\"accepted\":2,\"rejected\":0}");
        assert_eq!(all, Judgement::Settled(Attempts::All(Attempt::Accepted)));
    }
}
