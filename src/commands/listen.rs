//! `eshaar listen`: a phone in the terminal.

use std::time::Duration;

use anyhow::bail;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message as Frame;

use crate::cli::{FromArgument, ListenArguments, Settings};
use crate::commands::token;
use crate::output::{OutputError, noteln, outln, printable};
use crate::{client, config};

/// A frame of the server, as far as a terminal shows it.
#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Received {
    Welcome {
        principal: String,
    },
    Message {
        /// None for what the user said on another device.
        cursor: Option<String>,
        from: String,
        content: String,
        sent_at: String,
    },
    CaughtUp {},
    Gap {
        reason: String,
    },
    Bye {
        code: u16,
        reason: String,
        reconnect_after_ms: Option<u64>,
    },
    Error {
        code: String,
        detail: String,
    },
    #[serde(other)]
    Other,
}

/// How a connection ended.
enum Ended {
    Enough,
    Reconnect(Duration),
    Final(String),
}

/// State that outlives a connection.
struct Listener<'a> {
    arguments: &'a ListenArguments,
    token: String,
    after: Option<String>,
    left: u64,
}

pub async fn run(settings: &Settings, arguments: &ListenArguments) -> anyhow::Result<()> {
    let token = match (&arguments.token, arguments.phone) {
        (Some(token), _) => token.clone(),
        (None, Some(phone)) => token::issue(&config::load(settings)?, phone, token::OWN_TTL).await?,
        (None, None) => bail!("give --phone or --token"),
    };
    let after = arguments.after.map(|cursor| cursor.to_string());
    let mut listener = Listener { arguments, token, after, left: arguments.count.unwrap_or(u64::MAX) };
    loop {
        let socket = client::connect(&arguments.endpoint, &listener.token, &client::to_stderr).await?;
        match listener.listen(socket).await? {
            Ended::Enough => return Ok(()),
            Ended::Final(reason) => bail!("the server closed the session for good: {reason}"),
            Ended::Reconnect(wait) => {
                noteln!("the connection ended; connecting again");
                tokio::time::sleep(wait).await;
            }
        }
    }
}

impl Listener<'_> {
    async fn listen(&mut self, mut socket: client::Socket) -> anyhow::Result<Ended> {
        let hello = match (&self.after, self.arguments.from) {
            (Some(after), _) => json!({"op": "hello", "after": after}),
            (None, Some(FromArgument::Start)) => json!({"op": "hello", "from": "start"}),
            (None, Some(FromArgument::Head)) => json!({"op": "hello", "from": "head"}),
            (None, None) => json!({"op": "hello"}),
        };
        socket.send(Frame::text(hello.to_string())).await?;
        let mut wait = Duration::from_secs(1);
        while let Some(frame) = socket.next().await {
            let Ok(frame) = frame else { break };
            let Frame::Text(text) = frame else { continue };
            if self.arguments.json {
                outln!("{text}")?;
            }
            match serde_json::from_str(&text)? {
                Received::Message { cursor: None, content, sent_at, .. } => {
                    self.show(format_args!("{sent_at}  you: {}", printable(&content)))?;
                }
                Received::Message { cursor: Some(cursor), from, content, sent_at } => {
                    self.show(format_args!("{sent_at}  {from}: {}", printable(&content)))?;
                    if !self.arguments.no_ack {
                        socket.send(Frame::text(json!({"op": "ack", "cursor": cursor}).to_string())).await?;
                    }
                    self.after = Some(cursor);
                    self.left -= 1;
                    if self.left == 0 {
                        socket.close(None).await?;
                        // The acknowledgement is on its way once the server has answered the close.
                        while let Some(Ok(_)) = socket.next().await {}
                        return Ok(Ended::Enough);
                    }
                }
                Received::Bye { code, reason, .. } if code >= 4500 => return Ok(Ended::Final(reason)),
                Received::Bye { reconnect_after_ms, .. } => {
                    wait = Duration::from_millis(reconnect_after_ms.unwrap_or(1_000));
                }
                Received::Welcome { principal } => self.show(format_args!("connected as {principal}"))?,
                Received::CaughtUp {} => self.show(format_args!("caught up; waiting for messages"))?,
                Received::Gap { reason } => self.show(format_args!("some messages are no longer kept ({reason})"))?,
                Received::Error { code, detail } => self.show(format_args!("{detail} ({code})"))?,
                Received::Other => {}
            }
        }
        Ok(Ended::Reconnect(wait))
    }

    fn show(&self, line: std::fmt::Arguments<'_>) -> Result<(), OutputError> {
        if self.arguments.json { Ok(()) } else { outln!("{line}") }
    }
}
