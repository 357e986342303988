//! Endpoints for webhooks: a good one of the business that sends, which must be told of every message in time, and hostile ones
//! of another business, which do what they can to hold it up.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

use crate::drive::Target;
use crate::http_client::{Client, Post};
use crate::run::Run;
use crate::spawned::Spawned;

/// The business whose endpoints are hostile.
const HOSTILE: &str = "hostile";
/// How long a slow endpoint takes: a little less than a request may.
const SLOW: Duration = Duration::from_millis(9_500);
/// Longest wait for an answer of the API.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether everything was told.
const TICK: Duration = Duration::from_millis(50);
/// Phones that the hostile business sends to.
const HOSTILE_PHONES: u64 = 100;

/// The endpoints of a scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Hostile endpoints, at most 10: in turn they answer after 9.5 s, hang, answer 500, answer 503, redirect, and send headers
    /// without end.
    pub hostile: u32,
    /// Messages a second that the business of the hostile endpoints sends.
    pub hostile_rate: u32,
    /// Milliseconds after the last message has arrived within which the good endpoint must have been told of everything.
    pub within_ms: u64,
}

/// What the good endpoint was told.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Told {
    /// Messages of which it was told `sent`.
    pub sent: u64,
    /// Messages of which it was told `delivered`.
    pub delivered: u64,
    /// Events that came more than once.
    pub repeats: u64,
    /// Messages of which a later step was told first.
    pub out_of_order: u64,
    /// Requests to hostile endpoints.
    pub hostile_requests: u64,
    /// Milliseconds from the last message's arrival until everything was told.
    pub caught_up_ms: f64,
}

/// The endpoints, and what they were told.
pub struct Endpoints {
    books: Arc<Mutex<Books>>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Books {
    /// The steps that each message was told of.
    steps: HashMap<String, Vec<String>>,
    told: Told,
}

impl Endpoints {
    /// Makes the endpoints known to `target`, and begins to send as the hostile business.
    pub async fn start(options: &Options, run: &Arc<Run>, target: &Target) -> anyhow::Result<Self> {
        ensure!(options.hostile <= 10, "`webhooks.hostile` is at most 10");
        let spawned = target.spawned.as_ref().context("`webhooks` needs a server that is started with --spawn")?;
        let (books, mut tasks) = (Arc::<Mutex<Books>>::default(), JoinSet::new());
        let own = if matches!(spawned, Spawned::Server(_)) { "demo" } else { "acme" };
        let mut client = Client::new(run.ingest.clone(), 0, &key_of(spawned, own).await?)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        make(&mut client, &listener).await?;
        tasks.spawn(good(listener, Arc::clone(&books)));
        if options.hostile > 0 {
            let mut client = Client::new(run.ingest.clone(), 0, &key_of(spawned, HOSTILE).await?)?;
            for number in 0..options.hostile {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                make(&mut client, &listener).await?;
                tasks.spawn(hostile(listener, number, Arc::clone(&books)));
            }
            tasks.spawn(send(client, options.hostile_rate));
        }
        Ok(Self { books, _tasks: tasks })
    }

    /// Waits until the good endpoint was told of `count` messages, for as long as it may take.
    pub async fn told(&self, count: u64, options: &Options) -> Told {
        let begun = Instant::now();
        let is_over = |told: &Told| told.sent >= count && told.delivered >= count;
        while !is_over(&self.books.lock().told) && begun.elapsed() < Duration::from_millis(options.within_ms) {
            sleep(TICK).await;
        }
        let caught_up_ms = begun.elapsed().as_secs_f64() * 1e3;
        Told { caught_up_ms, ..self.books.lock().told.clone() }
    }
}

impl Told {
    /// Why a run fails that had `count` messages accepted and delivered.
    pub fn failures(&self, count: u64) -> Vec<String> {
        let mut failures = Vec::new();
        for (told, step) in [(self.sent, "sent"), (self.delivered, "delivered")] {
            if told < count {
                failures.push(format!("webhook: {} of {count} messages were not told as {step}", count - told));
            }
        }
        if self.out_of_order > 0 {
            failures.push(format!("webhook: {} messages out of order", self.out_of_order));
        }
        failures
    }
}

impl Books {
    fn enter(&mut self, id: &str) {
        let Some((message, step)) = id.split_once('.') else { return };
        let steps = self.steps.entry(message.to_owned()).or_default();
        if steps.iter().any(|known| known == step) {
            self.told.repeats += 1;
            return;
        }
        self.told.out_of_order += u64::from(step == "sent" && !steps.is_empty());
        steps.push(step.to_owned());
        match step {
            "sent" => self.told.sent += 1,
            "delivered" => self.told.delivered += 1,
            _ => {}
        }
    }
}

/// A key that may send, and make webhooks; by permissions of its own where those are told apart.
async fn key_of(spawned: &Spawned, business: &str) -> anyhow::Result<String> {
    match spawned.key(business, &["messages:send", "webhooks:manage"]).await {
        Ok(key) => Ok(key),
        Err(_) => spawned.key(business, &["messages:send"]).await.with_context(|| format!("a key of {business}")),
    }
}

/// Makes a webhook of the client's business there.
async fn make(client: &mut Client, listener: &TcpListener) -> anyhow::Result<()> {
    let url = format!("http://{}/hook", listener.local_addr()?);
    let body = json!({ "url": url, "events": ["sent", "delivered"] }).to_string();
    let post =
        Post { path: "/v1/webhooks".into(), content_type: "application/json", key: None, body: Bytes::from(body) };
    let answer = client.post(post, PATIENCE).await.context("making a webhook")?;
    ensure!(answer.status == StatusCode::CREATED, "a webhook was not made: {}", answer.status);
    Ok(())
}

async fn good(listener: TcpListener, books: Arc<Mutex<Books>>) {
    while let Ok((socket, _)) = listener.accept().await {
        let books = Arc::clone(&books);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let id = request.headers().get("webhook-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
                let books = Arc::clone(&books);
                async move {
                    drop(request.into_body().collect().await);
                    books.lock().enter(&id.unwrap_or_default());
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
                }
            });
            drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await);
        });
    }
}

async fn hostile(listener: TcpListener, number: u32, books: Arc<Mutex<Books>>) {
    while let Ok((socket, _)) = listener.accept().await {
        books.lock().told.hostile_requests += 1;
        tokio::spawn(answer_badly(socket, number));
    }
}

async fn answer_badly(mut socket: TcpStream, number: u32) {
    let answer: &[u8] = match number % 6 {
        0 => {
            sleep(SLOW).await;
            b"HTTP/1.1 204 No Content\r\n\r\n"
        }
        1 => {
            sleep(Duration::from_mins(1)).await;
            b""
        }
        2 => b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n",
        3 => b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
        4 => b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
        _ => b"HTTP/1.1 200 OK\r\n",
    };
    if socket.write_all(answer).await.is_err() {
        return;
    }
    while number % 6 == 5 && socket.write_all(b"a: b\r\n").await.is_ok() {
        sleep(TICK).await;
    }
    sleep(Duration::from_secs(1)).await;
}

/// Sends as the hostile business until it is dropped.
async fn send(mut client: Client, rate: u32) {
    let mut due = interval(Duration::from_secs(1) / rate.max(1));
    for number in 0_u64.. {
        due.tick().await;
        let to = format!("+9665099{:05}", number % HOSTILE_PHONES);
        let message: Value = json!({ "to": to, "content": "hostile" });
        let post = Post {
            path: "/v1/messages".into(),
            content_type: "application/json",
            key: None,
            body: Bytes::from(message.to_string()),
        };
        // It may be down: what is not accepted is not missed.
        drop(client.post(post, PATIENCE).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_is_out_of_order_fails_the_run() {
        let mut books = Books::default();
        for id in ["a.sent", "a.delivered", "a.delivered", "b.delivered", "b.sent", "c.sent"] {
            books.enter(id);
        }
        let told = books.told;
        assert_eq!((told.sent, told.delivered, told.repeats, told.out_of_order), (3, 2, 1, 1));
        let failures = told.failures(3);
        assert_eq!(failures.len(), 2, "{failures:?}");
        assert!(failures[0].contains("1 of 3 messages were not told as delivered"));
    }
}
