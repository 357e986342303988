//! Cancellations and look-ups of messages that were just accepted, each by requests of its own beside the sender's.
//!
//! An accepted message is known to the server: 404 for one is a fault, however far the history lags. What cannot be answered
//! yet (429, 5xx, no answer) is asked again, of the next process, until there is an answer.
//!
//! A cancellation is answered when the load generator has read the success. [`accounts`](crate::accounts) compares that time
//! with the one at which the message was read: late reading of ours would be taken for late sending of the server's. So
//! [`Stalls`] measures how late the load generator is itself, and that is added to what is allowed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::StatusCode;
use parking_lot::Mutex;
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::accounts::{Cancelled, Verdict};
use crate::http_client::{Answer, CallError, Client, Post};
use crate::measure::{Counter, Latencies, Percentiles};
use crate::report::{write_percentiles, write_percentiles_head};
use crate::run::Run;
use crate::scenario::{Checks, Senders};

/// Most requests of a kind under way at once.
const MAX_REQUESTS: usize = 256;

/// First pause before a request goes out again where the server names none; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Most faults that are kept as examples.
const EXAMPLES: usize = 20;

/// How often it is measured how late the load generator is.
const PULSE: Duration = Duration::from_millis(10);

/// A frame may arrive just after a socket was looked at, wait for the next look, and then stand behind half a window of frames
/// that are read in another turn: so many stalls.
const STALLS_PER_FRAME: u64 = 3;

/// An accepted message that is looked up or cancelled.
pub struct Accepted {
    /// The recipient's place in the run.
    pub recipient: u32,
    /// The message's place among the recipient's.
    pub seq: u32,
    /// The id that the server gave it.
    pub id: String,
}

/// Cancellations and look-ups of a run.
pub struct Cancels {
    tasks: Mutex<JoinSet<()>>,
    cancel_requests: Semaphore,
    look_up_requests: Semaphore,
    cancel_latency: Latencies,
    look_up_latency: Latencies,
    repeats: Counter,
    books: Mutex<Books>,
    /// How late the load generator is.
    pub stalls: Stalls,
}

#[derive(Default)]
struct Books {
    /// The earlier event of each message that is to be cancelled: its receipt, or the answer to its cancellation.
    first: HashMap<(u32, u32), First>,
    /// Messages that were cancelled, and not received so far.
    withheld: u64,
    cancelled: Vec<(u32, u32, Cancelled)>,
    totals: Totals,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Received,
    Cancelled,
}

/// Counts of the answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Cancellations answered 200: the history has the message.
    pub cancelled: u64,
    /// Cancellations answered 202: the history does not have the message yet.
    pub cancelled_unseen: u64,
    /// Cancellations answered 409: the message was delivered before.
    pub too_late: u64,
    /// Look-ups answered 200.
    pub looked_up: u64,
    /// Cancellations answered 404: faults.
    pub cancel_not_found: u64,
    /// Look-ups answered 404: faults.
    pub look_up_not_found: u64,
    /// Requests without an answer until the sender's `give_up_ms`: faults.
    pub unanswered: u64,
    /// Other answers, by status and code: faults.
    pub refused: BTreeMap<String, u64>,
    /// The first faults.
    pub examples: Vec<String>,
}

/// The findings of a run about cancellations and look-ups.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Counts of the answers.
    #[serde(flatten)]
    pub totals: Totals,
    /// Requests sent again because the server could not answer yet.
    pub repeats: u64,
    /// From due to the answer of a cancellation.
    pub cancel_ms: Percentiles,
    /// From acceptance to the answer of a look-up.
    pub look_up_ms: Percentiles,
    /// Longest time for which the load generator did not read what was there, in milliseconds.
    pub stall_ms: f64,
}

/// A request about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    LookUp,
    Cancel,
}

/// The meaning of an answer.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// 200.
    Done,
    /// 202.
    DoneUnseen,
    /// 409: the recipient had it before.
    TooLate,
    /// 404.
    NotFound,
    /// Anything else, by status and code.
    Refused(String),
}

impl Cancels {
    /// None yet.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            tasks: Mutex::default(),
            cancel_requests: Semaphore::new(MAX_REQUESTS),
            look_up_requests: Semaphore::new(MAX_REQUESTS),
            cancel_latency: Latencies::new()?,
            look_up_latency: Latencies::new()?,
            repeats: Counter::default(),
            books: Mutex::default(),
            stalls: Stalls::default(),
        })
    }

    /// Looks up and cancels a message that was accepted just now, where the scenario says so.
    pub fn begin(run: &Arc<Run>, senders: &Senders, message: Accepted) {
        let Accepted { recipient, seq, .. } = message;
        let message = Arc::new(message);
        let mut tasks = run.cancels.tasks.lock();
        if senders.looks_up(recipient, seq) {
            tasks.spawn(look_up(Arc::clone(run), senders.clone(), Arc::clone(&message)));
        }
        if senders.cancels(recipient, seq) {
            tasks.spawn(cancel(Arc::clone(run), senders.clone(), message));
        }
    }

    /// Returns true if every request has its answer. An error where a task has failed.
    pub fn are_over(&self) -> anyhow::Result<bool> {
        let mut tasks = self.tasks.lock();
        while let Some(ended) = tasks.try_join_next() {
            ended.context("a cancellation")?;
        }
        Ok(tasks.is_empty())
    }

    /// Says that a message that is to be cancelled was received.
    pub fn received(&self, recipient: u32, seq: u32) {
        let mut books = self.books.lock();
        if books.first.insert((recipient, seq), First::Received) == Some(First::Cancelled) {
            books.withheld -= 1;
        }
    }

    /// Messages that need not arrive any more: cancelled, and not received so far.
    pub fn withheld(&self) -> u64 {
        self.books.lock().withheld
    }

    /// Takes the cancelled messages: recipient, place among the recipient's messages, and what became of it.
    pub fn take_cancelled(&self) -> Vec<(u32, u32, Cancelled)> {
        std::mem::take(&mut self.books.lock().cancelled)
    }

    /// The findings so far.
    pub fn report(&self) -> Report {
        Report {
            totals: self.books.lock().totals.clone(),
            repeats: self.repeats.get(),
            cancel_ms: self.cancel_latency.percentiles(),
            look_up_ms: self.look_up_latency.percentiles(),
            stall_ms: self.stalls.longest_us() as f64 / 1e3,
        }
    }

    fn settle(&self, call: Call, message: &Accepted, outcome: Option<&Outcome>, at_us: u64) {
        let mut books = self.books.lock();
        books.totals.add(call, message, outcome, at_us);
        let answered_us = match (call, outcome) {
            (Call::Cancel, Some(Outcome::Done | Outcome::DoneUnseen)) => Some(at_us),
            (Call::Cancel, None) => None,
            _ => return,
        };
        let Accepted { recipient, seq, id } = message;
        books.cancelled.push((*recipient, *seq, Cancelled { id: id.clone(), answered_us }));
        if answered_us.is_some() && !books.first.contains_key(&(*recipient, *seq)) {
            books.first.insert((*recipient, *seq), First::Cancelled);
            books.withheld += 1;
        }
    }
}

async fn look_up(run: Arc<Run>, senders: Senders, message: Arc<Accepted>) {
    ask(&run, &senders, &message, Call::LookUp).await;
}

async fn cancel(run: Arc<Run>, senders: Senders, message: Arc<Accepted>) {
    let (from_ms, to_ms) = senders.cancel_after_ms;
    let after_ms = rand::rng().random_range(from_ms..=to_ms);
    sleep(Duration::from_millis(after_ms)).await;
    ask(&run, &senders, &message, Call::Cancel).await;
}

/// Asks until there is an answer, and enters it.
async fn ask(run: &Run, senders: &Senders, message: &Accepted, call: Call) {
    let due_us = run.clock.now_us();
    let outcome = answer(run, senders, message, call).await;
    let now_us = run.clock.now_us();
    if outcome.is_some() {
        let latency = match call {
            Call::LookUp => &run.cancels.look_up_latency,
            Call::Cancel => &run.cancels.cancel_latency,
        };
        latency.record(&[now_us - due_us]);
    }
    run.cancels.settle(call, message, outcome.as_ref(), now_us);
}

/// The answer, from whichever process gives one; `None` where the sender's `give_up_ms` have passed.
async fn answer(run: &Run, senders: &Senders, message: &Accepted, call: Call) -> Option<Outcome> {
    let patience = Duration::from_millis(senders.request_timeout_ms);
    let give_up = Instant::now() + Duration::from_millis(senders.give_up_ms);
    let (mut pause, mut turn) = (FIRST_PAUSE, rand::random::<u8>() as usize);
    let requests = match call {
        Call::LookUp => &run.cancels.look_up_requests,
        Call::Cancel => &run.cancels.cancel_requests,
    };
    loop {
        let result = {
            // Never closed, so always granted.
            let _permit = requests.acquire().await;
            let mut client = Client::new(run.ingest.clone(), turn, &run.api_key).ok()?;
            call_once(&mut client, message, call, patience).await
        };
        let retry_after = match result {
            Ok(answer) => match judge(call, &answer) {
                Some(outcome) => return Some(outcome),
                None => answer.retry_after,
            },
            Err(_) => None,
        };
        run.cancels.repeats.one();
        turn += 1;
        let wait = retry_after.unwrap_or_else(|| pause.mul_f64(rand::rng().random_range(0.5..1.0)));
        pause = (pause * 2).min(MAX_PAUSE);
        if Instant::now() + wait >= give_up {
            return None;
        }
        sleep(wait).await;
    }
}

async fn call_once(
    client: &mut Client,
    message: &Accepted,
    call: Call,
    patience: Duration,
) -> Result<Answer, CallError> {
    let path = format!("/v1/messages/{}", message.id);
    match call {
        Call::LookUp => client.get(&path, patience).await,
        Call::Cancel => {
            let path = format!("{path}/cancel").into();
            client.post(Post { path, content_type: "application/json", key: None, body: Bytes::new() }, patience).await
        }
    }
}

/// The meaning of an answer; `None` where the request is to be repeated.
fn judge(call: Call, answer: &Answer) -> Option<Outcome> {
    let Answer { status, body, .. } = answer;
    if status.is_server_error() || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(status) {
        return None;
    }
    let code = code_of(body);
    Some(match (call, *status) {
        (_, StatusCode::OK) => Outcome::Done,
        (Call::Cancel, StatusCode::ACCEPTED) => Outcome::DoneUnseen,
        (Call::Cancel, StatusCode::CONFLICT) if ["already_delivered", "already_read"].contains(&&*code) => {
            Outcome::TooLate
        }
        (_, StatusCode::NOT_FOUND) => Outcome::NotFound,
        (_, status) => Outcome::Refused(format!("{} {code}", status.as_u16())),
    })
}

/// The code of a problem; empty where there is none.
fn code_of(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Problem {
        code: String,
    }
    serde_json::from_slice(body).map_or_else(|_| String::new(), |Problem { code }| code)
}

/// The id in the answer to an accepted message.
pub fn id_of(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        id: String,
    }
    serde_json::from_slice(body).ok().map(|Answer { id }| id)
}

impl Totals {
    fn add(&mut self, call: Call, message: &Accepted, outcome: Option<&Outcome>, at_us: u64) {
        let what = match (call, outcome) {
            (Call::Cancel, Some(Outcome::Done)) => return self.cancelled += 1,
            (Call::Cancel, Some(Outcome::DoneUnseen)) => return self.cancelled_unseen += 1,
            (_, Some(Outcome::Done | Outcome::DoneUnseen)) => return self.looked_up += 1,
            (_, Some(Outcome::TooLate)) => return self.too_late += 1,
            (Call::Cancel, Some(Outcome::NotFound)) => {
                self.cancel_not_found += 1;
                "404".to_owned()
            }
            (Call::LookUp, Some(Outcome::NotFound)) => {
                self.look_up_not_found += 1;
                "404".to_owned()
            }
            (_, Some(Outcome::Refused(why))) => {
                *self.refused.entry(why.clone()).or_default() += 1;
                why.clone()
            }
            (_, None) => {
                self.unanswered += 1;
                "nothing".to_owned()
            }
        };
        if self.examples.len() < EXAMPLES {
            let call = if call == Call::Cancel { "cancellation" } else { "look-up" };
            let (id, recipient, seq) = (&message.id, message.recipient, message.seq);
            let at_s = at_us as f64 / 1e6;
            self.examples.push(format!(
                "{call} of {id} (recipient {recipient}, message {seq}) answered {what} {at_s:.3} s after the start"
            ));
        }
    }
}

impl Report {
    /// Why a run fails whose books say `accounts`.
    pub fn failures(&self, accounts: &Verdict, checks: &Checks) -> Vec<String> {
        let Totals { cancel_not_found, look_up_not_found, unanswered, refused, cancelled_unseen, .. } = &self.totals;
        let mut failures = Vec::new();
        for (count, what) in [
            (cancel_not_found, "cancellations of accepted messages were answered 404"),
            (look_up_not_found, "look-ups of accepted messages were answered 404"),
            (unanswered, "cancellations and look-ups had no answer for too long (give_up_ms)"),
        ] {
            if *count > 0 {
                failures.push(format!("{count} {what}"));
            }
        }
        let refused =
            refused.iter().map(|(why, count)| format!("{count} cancellations or look-ups were answered {why}"));
        failures.extend(refused);
        for (count, min, what) in [
            (accounts.cancelled.withheld, checks.min_withheld, "cancelled messages were not received"),
            (self.repeats, checks.min_repeats, "cancellations and look-ups were repeated"),
            (
                *cancelled_unseen,
                checks.min_cancelled_unseen,
                "cancellations were answered before the history knew of it",
            ),
        ] {
            if count < min {
                failures.push(format!("only {count} {what}: at least {min} are needed to show anything"));
            }
        }
        failures
    }

    /// Writes it, with what the books say of cancelled messages.
    pub fn write(&self, f: &mut fmt::Formatter<'_>, accounts: &Verdict) -> fmt::Result {
        let Self { totals, repeats, cancel_ms, look_up_ms, stall_ms } = self;
        write_percentiles_head(f, "answers, ms")?;
        write_percentiles(f, "cancellations", cancel_ms)?;
        write_percentiles(f, "look-ups", look_up_ms)?;
        let of = accounts.cancelled;
        writeln!(
            f,
            "cancellations        {} answered 200, {} answered 202, {} too late; {} requests again; faults: {} answered 404, \
             {} look-ups answered 404, {} unanswered",
            totals.cancelled,
            totals.cancelled_unseen,
            totals.too_late,
            repeats,
            totals.cancel_not_found,
            totals.look_up_not_found,
            totals.unanswered
        )?;
        writeln!(
            f,
            "cancelled messages   {} never received, {} received before the answer, {} after it in the time allowed, {} \
             later; {:.0} ms at most (load generator late by {stall_ms:.0} ms at most)",
            of.withheld,
            of.before,
            of.within,
            of.after,
            of.longest_us as f64 / 1e3
        )?;
        totals.examples.iter().try_for_each(|example| writeln!(f, "  {example}"))
    }
}

/// How late the load generator is to do what is due: for so long it does not read what has arrived either.
#[derive(Debug, Default)]
pub struct Stalls(AtomicU64);

impl Stalls {
    /// Measures for ever.
    pub async fn watch(run: Arc<Run>) {
        loop {
            let due = Instant::now() + PULSE;
            sleep_until(due).await;
            run.cancels.stalls.0.fetch_max(due.elapsed().as_micros() as u64, Ordering::Relaxed);
        }
    }

    /// The longest one so far, in microseconds.
    pub fn longest_us(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// How long a frame may have stood in a socket before it was read, in microseconds.
    pub fn frame_us(&self) -> u64 {
        self.longest_us() * STALLS_PER_FRAME
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "cancels_tests.rs"]
mod tests;
