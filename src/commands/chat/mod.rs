//! `eshaar chat`: a conversation in the terminal, from either side. A line is a message; the end of input is the end.
//!
//! What was not answered when a connection ended is sent again under its `ref` on the next one, so it is sent once.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use eshaar_model::Principal;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::{Error as Broken, Message as Frame};

use crate::cli::{ChatArguments, Settings};
use crate::client::{self, Socket};
use crate::commands::token;
use crate::output::{OutputError, outln, printable};
use crate::{config, first_start};

/// The business whose key is made at the first start.
const DEMO: &str = "demo";

/// Messages of one's own whose ticks are shown, the newest.
const TICKED: usize = 200;

/// What comes from the server, as far as it is shown.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Received {
    Welcome {
        principal: Principal,
    },
    Message {
        id: String,
        cursor: Option<String>,
        from: Principal,
        conversation_id: Option<String>,
        content: String,
    },
    Sent {
        r#ref: String,
        id: String,
    },
    Status {
        id: String,
        status: String,
    },
    Conversation {
        conversation_id: String,
        change: String,
        by: Principal,
    },
    Typing {
        conversation_id: String,
        from: Principal,
        on: bool,
    },
    Error {
        r#ref: Option<String>,
        code: String,
        detail: String,
        temporary: bool,
    },
    Bye {
        code: u16,
        reason: String,
        reconnect_after_ms: Option<u64>,
    },
    #[serde(other)]
    Other,
}

/// A message of one's own that has no answer yet.
struct Unanswered {
    r#ref: String,
    content: String,
}

/// A message of one's own.
struct Own {
    content: String,
    /// Rank of the status that was shown last: a tick never goes back.
    rank: u8,
}

/// The order of statuses. A status of the last rank ends the message's way.
fn rank(status: &str) -> u8 {
    match status {
        "sent" => 1,
        "delivered" => 2,
        "read" => 3,
        "failed" | "expired" | "cancelled" => 4,
        _ => 0,
    }
}

/// How a connection ended.
enum Ended {
    Enough,
    Reconnect(Duration),
}

/// A conversation, over however many connections.
struct Chat<'a> {
    arguments: &'a ChatArguments,
    credential: String,
    conversation: String,
    lines: mpsc::Receiver<std::io::Result<String>>,
    /// Whether there may be more input.
    open: bool,
    unanswered: VecDeque<Unanswered>,
    /// What was shown, by id: a hint may come twice.
    shown: HashSet<String>,
    /// One's own messages by id, with the status that was shown last.
    own: HashMap<String, Own>,
    /// Ids of the messages that were shown, the oldest first.
    order: VecDeque<String>,
}

pub async fn run(settings: &Settings, arguments: &ChatArguments) -> anyhow::Result<()> {
    let credential = credential(settings, arguments).await?;
    let http = client::http(&arguments.endpoint)?;
    let conversation = start(&http, arguments, &credential).await?;
    let mut chat = Chat {
        arguments,
        credential,
        conversation,
        lines: input(),
        open: true,
        unanswered: VecDeque::new(),
        shown: HashSet::new(),
        own: HashMap::new(),
        order: VecDeque::new(),
    };
    chat.show_history(&http).await?;
    loop {
        let socket = client::connect(&arguments.endpoint, &chat.credential).await?;
        let wait = match chat.talk(socket).await {
            Ok(Ended::Enough) => return Ok(()),
            Ok(Ended::Reconnect(wait)) => wait,
            Err(error) if error.is::<Broken>() => Duration::from_secs(1),
            Err(error) => return Err(error),
        };
        chat.show(format_args!("  the connection ended; connecting again"))?;
        tokio::time::sleep(wait).await;
    }
}

async fn credential(settings: &Settings, arguments: &ChatArguments) -> anyhow::Result<String> {
    if let Some(token) = &arguments.token {
        return Ok(token.clone());
    }
    let config = config::load(settings)?;
    match &arguments.who {
        Principal::Phone(phone) => token::issue(&config, *phone, token::OWN_TTL).await,
        Principal::Business(business) if business.as_str() == DEMO => first_start::demo_key(&config.data_dir),
        Principal::Business(_) => bail!("give an API key of the business with --token"),
    }
}

/// The lines that are typed. They are read by a thread of its own, which the end of this command need not wait for.
fn input() -> mpsc::Receiver<std::io::Result<String>> {
    let (typed, lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if typed.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// The conversation of the two, and its id.
async fn start(http: &reqwest::Client, arguments: &ChatArguments, credential: &str) -> anyhow::Result<String> {
    let url = format!("{}/v1/conversations", arguments.endpoint.url);
    let request = || http.post(&url).bearer_auth(credential).json(&json!({ "with": arguments.with }));
    let conversation: Value = client::persistently(&arguments.endpoint.url, request).await?.json().await?;
    let of = |field: &str| conversation[field].as_str().map(str::to_owned).context("the answer is no conversation");
    let us = match arguments.who {
        Principal::Phone(_) => of("phone")?,
        Principal::Business(_) => of("business")?,
    };
    ensure!(us == arguments.who.to_string(), "the token is not one of {}", arguments.who);
    of("id")
}

impl Chat<'_> {
    async fn show_history(&mut self, http: &reqwest::Client) -> anyhow::Result<()> {
        if self.arguments.last == 0 {
            return Ok(());
        }
        let url = format!("{}/v1/conversations/{}/messages", self.arguments.endpoint.url, self.conversation);
        let request = || http.get(&url).bearer_auth(&self.credential).query(&[("limit", self.arguments.last)]);
        let page: Value = client::persistently(&self.arguments.endpoint.url, request).await?.json().await?;
        for message in page["messages"].as_array().into_iter().flatten() {
            let text = |field: &str| message[field].as_str().unwrap_or_default().to_owned();
            let (id, from, content) = (text("id"), text("from"), text("content"));
            self.show_message(&id, &from, &content)?;
        }
        Ok(())
    }

    async fn talk(&mut self, mut socket: Socket) -> anyhow::Result<Ended> {
        say(&mut socket, &json!({"op": "hello"})).await?;
        say(&mut socket, &json!({"op": "join", "conversation_id": self.conversation})).await?;
        for unanswered in &self.unanswered {
            say(&mut socket, &self.frame(unanswered)).await?;
        }
        let mut wait = Duration::from_secs(1);
        loop {
            if !self.open && self.unanswered.is_empty() {
                socket.close(None).await?;
                return Ok(Ended::Enough);
            }
            tokio::select! {
                line = self.lines.recv(), if self.open => match line.transpose()? {
                    None => self.open = false,
                    Some(line) if line.trim().is_empty() => {}
                    Some(content) => {
                        let unanswered = Unanswered { r#ref: format!("{:032x}", rand::random::<u128>()), content };
                        say(&mut socket, &self.frame(&unanswered)).await?;
                        self.unanswered.push_back(unanswered);
                    }
                },
                frame = socket.next() => match frame {
                    Some(Ok(Frame::Text(text))) => match self.parse(&text)? {
                        Received::Bye { code, reason, .. } if code >= 4500 => bail!("the server closed the session: {reason}"),
                        Received::Bye { reconnect_after_ms, .. } => {
                            wait = Duration::from_millis(reconnect_after_ms.unwrap_or(1_000));
                        }
                        received => self.take(&mut socket, received).await?,
                    },
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Ok(Ended::Reconnect(wait)),
                },
            }
        }
    }

    fn parse(&self, text: &str) -> anyhow::Result<Received> {
        if self.arguments.json {
            outln!("{text}")?;
        }
        Ok(serde_json::from_str(text)?)
    }

    /// Shows a line to people.
    fn show(&self, line: std::fmt::Arguments<'_>) -> Result<(), OutputError> {
        if self.arguments.json { Ok(()) } else { outln!("{line}") }
    }

    fn frame(&self, Unanswered { r#ref, content }: &Unanswered) -> Value {
        json!({"op": "send", "ref": r#ref, "conversation_id": self.conversation, "content": content})
    }

    async fn take(&mut self, socket: &mut Socket, received: Received) -> anyhow::Result<()> {
        match received {
            Received::Welcome { principal } => self.show(format_args!("connected as {principal}"))?,
            Received::Message { id, cursor, from, conversation_id, content } => {
                if conversation_id.as_deref() == Some(self.conversation.as_str()) {
                    self.show_message(&id, &from.to_string(), &content)?;
                    if from != self.arguments.who {
                        say(socket, &json!({"op": "read", "ids": [id]})).await?;
                    }
                } else if let Some(cursor) = cursor {
                    // Of somebody else: it was got, and will be read elsewhere.
                    say(socket, &json!({"op": "ack", "cursor": cursor})).await?;
                }
            }
            Received::Sent { r#ref, id } => {
                if let Some(place) = self.unanswered.iter().position(|unanswered| unanswered.r#ref == r#ref)
                    && let Some(unanswered) = self.unanswered.remove(place)
                {
                    self.show_message(&id, &self.arguments.who.to_string(), &unanswered.content)?;
                }
            }
            Received::Status { id, status } => {
                let new = rank(&status);
                if let Some(own) = self.own.get_mut(&id)
                    && own.rank < new
                {
                    own.rank = new;
                    let line = format!("  {status}: {}", printable(&own.content));
                    self.show(format_args!("{line}"))?;
                }
            }
            Received::Conversation { conversation_id, change, by }
                if conversation_id == self.conversation && change != "read" =>
            {
                self.show(format_args!("  {by}: {}", change.replace('_', " ")))?;
            }
            Received::Typing { conversation_id, from, on: true } if conversation_id == self.conversation => {
                self.show(format_args!("  {from} types"))?;
            }
            Received::Error { r#ref, code, detail, temporary } => {
                self.show(format_args!("{detail} ({code})"))?;
                if !temporary {
                    self.unanswered.retain(|unanswered| Some(&unanswered.r#ref) != r#ref.as_ref());
                } else if let Some(unanswered) = self.unanswered.iter().find(|one| Some(&one.r#ref) == r#ref.as_ref()) {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    say(socket, &self.frame(unanswered)).await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Shows a message, once.
    fn show_message(&mut self, id: &str, from: &str, content: &str) -> Result<(), OutputError> {
        if !self.shown.insert(id.to_owned()) {
            return Ok(());
        }
        let is_own = from == self.arguments.who.to_string();
        if is_own {
            self.own.insert(id.to_owned(), Own { content: content.to_owned(), rank: rank("sent") });
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > TICKED
            && let Some(oldest) = self.order.pop_front()
        {
            self.own.remove(&oldest);
            self.shown.remove(&oldest);
        }
        self.show(format_args!("{}: {}", if is_own { "you" } else { from }, printable(content)))
    }
}

async fn say(socket: &mut Socket, frame: &Value) -> anyhow::Result<()> {
    Ok(socket.send(Frame::text(frame.to_string())).await?)
}
