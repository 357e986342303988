//! `eshaar chat`: a conversation in the terminal, from either side. A line is a message; the end of input is the end, and at
//! a terminal Ctrl-C on an empty line. `screen` has the terminal.
//!
//! A message that was not answered when a connection ended is sent again under its `ref` on the next one, so it is sent once.

mod screen;

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use eshaar_model::Principal;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Error as Broken, Message as Frame};

use self::screen::{Output, Screen, Stop};
use crate::cli::{ChatArguments, Settings};
use crate::client::{self, Socket};
use crate::commands::token;
use crate::output::{OutputError, outln, printable};
use crate::{config, first_start};

/// The business whose key is made at the first start.
const DEMO: &str = "demo";

/// Messages of one's own whose ticks are shown, the newest.
const TICKED: usize = 200;

/// A frame of the server, as far as it is shown.
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

impl Unanswered {
    fn new(content: String) -> Self {
        Self { r#ref: format!("{:032x}", rand::random::<u128>()), content }
    }
}

/// Messages as the user types them.
struct Typed<'a> {
    screen: &'a mut Screen,
    /// False after the end of input.
    is_open: bool,
}

impl Typed<'_> {
    /// The next message; none where a line is blank, and at the end. Waits forever behind the end. Cancel-safe.
    async fn message(&mut self) -> std::io::Result<Option<String>> {
        if !self.is_open {
            return std::future::pending().await;
        }
        let line = self.screen.line().await.transpose()?;
        self.is_open = line.is_some();
        Ok(line.filter(|line| !line.trim().is_empty()))
    }
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
    output: Output,
    unanswered: VecDeque<Unanswered>,
    /// Ids of the messages that were shown: a hint may come twice.
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
        output: Output::new(arguments.json),
        unanswered: VecDeque::new(),
        shown: HashSet::new(),
        own: HashMap::new(),
        order: VecDeque::new(),
    };
    chat.show_history(&http).await?;
    let (mut screen, stops) = Screen::open(chat.output.clone())?;
    chat.output = screen.output().clone();
    let mut typed = Typed { screen: &mut screen, is_open: true };
    let done = tokio::select! {
        done = chat.talk(&mut typed) => done,
        stop = stops.next() => chat.stopped(&stop),
    };
    // Before anybody is told how it ended: the terminal is as it was.
    screen.close();
    done
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

/// The conversation of the two, and its id.
async fn start(http: &reqwest::Client, arguments: &ChatArguments, credential: &str) -> anyhow::Result<String> {
    let url = format!("{}/v1/conversations", arguments.endpoint.url);
    let request = || http.post(&url).bearer_auth(credential).json(&json!({ "with": arguments.with }));
    let conversation: Value =
        client::persistently(&arguments.endpoint.url, request, &client::to_stderr).await?.json().await?;
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
        let url = &self.arguments.endpoint.url;
        let page: Value = client::persistently(url, request, &client::to_stderr).await?.json().await?;
        for message in page["messages"].as_array().into_iter().flatten() {
            let text = |field: &str| message[field].as_str().unwrap_or_default().to_owned();
            let (id, from, content) = (text("id"), text("from"), text("content"));
            self.show_message(&id, &from, &content)?;
        }
        Ok(())
    }

    /// Talks over one connection after the other, until all is said.
    async fn talk(&mut self, typed: &mut Typed<'_>) -> anyhow::Result<()> {
        let mut wait = Duration::ZERO;
        loop {
            let Some(socket) = self.connect(wait, typed).await? else { return Ok(()) };
            wait = match self.talk_over(socket, typed).await {
                Ok(Ended::Enough) => return Ok(()),
                Ok(Ended::Reconnect(wait)) => wait,
                Err(error) if error.is::<Broken>() => Duration::from_secs(1),
                Err(error) => return Err(error),
            };
            self.show(format_args!("  the connection ended; connecting again"))?;
        }
    }

    /// Connects after `wait`. What is typed meanwhile waits for the connection. Returns none if the input ends and nothing
    /// waits.
    async fn connect(&mut self, wait: Duration, typed: &mut Typed<'_>) -> anyhow::Result<Option<Socket>> {
        let Self { arguments, credential, output, unanswered, .. } = self;
        let connected = async {
            tokio::time::sleep(wait).await;
            client::connect(&arguments.endpoint, credential, &|text| output.note(text)).await
        };
        let all_is_said = async {
            while typed.is_open || !unanswered.is_empty() {
                if let Some(content) = typed.message().await? {
                    unanswered.push_back(Unanswered::new(content));
                }
            }
            anyhow::Ok(())
        };
        tokio::select! {
            socket = connected => socket.map(Some),
            said = all_is_said => said.map(|()| None),
        }
    }

    async fn talk_over(&mut self, mut socket: Socket, typed: &mut Typed<'_>) -> anyhow::Result<Ended> {
        say(&mut socket, &json!({"op": "hello"})).await?;
        say(&mut socket, &json!({"op": "join", "conversation_id": self.conversation})).await?;
        for unanswered in &self.unanswered {
            say(&mut socket, &self.frame(unanswered)).await?;
        }
        let mut wait = Duration::from_secs(1);
        loop {
            if !typed.is_open && self.unanswered.is_empty() {
                socket.close(None).await?;
                return Ok(Ended::Enough);
            }
            tokio::select! {
                message = typed.message() => if let Some(content) = message? {
                    let unanswered = Unanswered::new(content);
                    let frame = self.frame(&unanswered);
                    // It waits for its answer before it is sent: a connection that breaks now does not lose it.
                    self.unanswered.push_back(unanswered);
                    say(&mut socket, &frame).await?;
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

    /// The end of a command that the user ended at once.
    fn stopped(&self, stop: &Stop) -> anyhow::Result<()> {
        match (stop, self.unanswered.len()) {
            (Stop::Terminated, _) => bail!("ended by SIGTERM"),
            (Stop::Interrupted, 0) => Ok(()),
            (Stop::Interrupted, count) => {
                bail!("interrupted; messages that may not be sent, since nothing answered them: {count}")
            }
        }
    }

    fn parse(&self, text: &str) -> anyhow::Result<Received> {
        if self.arguments.json {
            outln!("{text}")?;
        }
        Ok(serde_json::from_str(text)?)
    }

    fn show(&self, line: std::fmt::Arguments<'_>) -> Result<(), OutputError> {
        self.output.show(line)
    }

    fn frame(&self, Unanswered { r#ref, content }: &Unanswered) -> Value {
        json!({"op": "send", "ref": r#ref, "conversation_id": self.conversation, "content": content})
    }

    async fn take(&mut self, socket: &mut Socket, received: Received) -> anyhow::Result<()> {
        match received {
            Received::Welcome { principal } => self.show(format_args!("connected as {principal}"))?,
            Received::Message { id, cursor, from, conversation_id, content } => {
                if conversation_id.as_deref() == Some(self.conversation.as_str()) {
                    let is_typed = from == self.arguments.who
                        && self.unanswered.iter().any(|unanswered| unanswered.content == content);
                    if is_typed {
                        self.show_typed(&id, &content)?;
                    } else {
                        self.show_message(&id, &from.to_string(), &content)?;
                    }
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
                    self.show_typed(&id, &unanswered.content)?;
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
        let is_own = from == self.arguments.who.to_string();
        if !self.add(id, is_own.then_some(content)) {
            return Ok(());
        }
        self.show(format_args!("{}: {}", if is_own { "you" } else { from }, printable(content)))
    }

    /// Shows a message that was typed here, once: at a prompt it stands there as it was typed.
    fn show_typed(&mut self, id: &str, content: &str) -> Result<(), OutputError> {
        if !self.add(id, Some(content)) || self.output.shows_typed_lines() {
            return Ok(());
        }
        self.show(format_args!("you: {}", printable(content)))
    }

    /// Adds a message to those that were shown, with its content if it is one's own. Returns false if it is among them.
    fn add(&mut self, id: &str, own: Option<&str>) -> bool {
        if !self.shown.insert(id.to_owned()) {
            return false;
        }
        if let Some(content) = own {
            self.own.insert(id.to_owned(), Own { content: content.to_owned(), rank: rank("sent") });
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > TICKED
            && let Some(oldest) = self.order.pop_front()
        {
            self.own.remove(&oldest);
            self.shown.remove(&oldest);
        }
        true
    }
}

async fn say(socket: &mut Socket, frame: &Value) -> anyhow::Result<()> {
    Ok(socket.send(Frame::text(frame.to_string())).await?)
}
