//! `eshaar send`, `eshaar listen`, `eshaar chat`

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use eshaar_model::{Cursor, Phone, Principal, Timestamp};

use super::{Endpoint, ServerArguments};

/// `eshaar send`
#[derive(Debug, Args)]
pub struct SendArguments {
    /// The server and the caller.
    #[command(flatten)]
    pub server: ServerArguments,
    /// The recipient, in E.164.
    #[arg(long, required_unless_present = "file")]
    pub to: Option<Phone>,
    /// The text.
    #[arg(required_unless_present = "file")]
    pub content: Option<String>,
    /// How urgent it is.
    #[arg(long, default_value = "normal")]
    pub priority: PriorityArgument,
    /// Do not deliver it after this many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub ttl: Option<u64>,
    /// Send it at this time, at most 30 days ahead, e.g. 2026-01-31T12:00:00+03:00.
    #[arg(long, value_name = "TIME")]
    pub at: Option<Timestamp>,
    /// Your own reference.
    #[arg(long)]
    pub reference: Option<String>,
    /// Sending again with the same key is the same message.
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Send the messages of this file instead: NDJSON, one `{"to": …, "content": …}` a line, plain, .gz or .zst; `-` for
    /// standard input.
    #[arg(long, conflicts_with_all = ["to", "content", "ttl", "at", "reference"], value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// With --file: go on behind this line of it. Needs the --idempotency-key of the upload that was interrupted, which prints
    /// the whole command.
    #[arg(
        long,
        requires_all = ["file", "idempotency_key"],
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(0..=15_000_000)
    )]
    pub after_line: Option<u64>,
    /// With --file: print the result of every line, not only of those refused.
    #[arg(long, requires = "file")]
    pub verbose: bool,
    /// With --file: write refused lines to this file, to be corrected and sent. Default: the file's name with `.refused`
    /// behind it.
    #[arg(long, requires = "file", value_name = "FILE")]
    pub refused: Option<PathBuf>,
    /// Print JSON: the answer of the server, an object a line.
    #[arg(long)]
    pub json: bool,
}

/// A priority on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[allow(missing_docs, reason = "the names say it")]
pub enum PriorityArgument {
    High,
    Normal,
    Low,
}

impl PriorityArgument {
    /// Its name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

/// `eshaar listen`
#[derive(Debug, Args)]
pub struct ListenArguments {
    /// The server.
    #[command(flatten)]
    pub endpoint: Endpoint,
    /// The phone to be, with a token made from the data directory's secret.
    #[arg(long, required_unless_present = "token", value_parser = Phone::parse_valid)]
    pub phone: Option<Phone>,
    /// A token to use instead.
    #[arg(long, env = "ESHAAR_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Begin behind this cursor.
    #[arg(long, conflicts_with = "from")]
    pub after: Option<Cursor>,
    /// Begin at the start of what is kept, or at its head. Default: behind what was last acknowledged.
    #[arg(long)]
    pub from: Option<FromArgument>,
    /// Print each frame as it comes, as JSON.
    #[arg(long)]
    pub json: bool,
    /// Do not acknowledge.
    #[arg(long)]
    pub no_ack: bool,
    /// End after this many messages.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

/// `eshaar chat`
#[derive(Debug, Args)]
pub struct ChatArguments {
    /// The server.
    #[command(flatten)]
    pub endpoint: Endpoint,
    /// Your side: a phone, with a token made from the data directory's secret, or a business, by its API key.
    #[arg(long = "as", value_name = "PHONE OR BUSINESS", value_parser = Principal::parse_valid)]
    pub who: Principal,
    /// The other side: a business, or a phone.
    #[arg(long, value_name = "BUSINESS OR PHONE", value_parser = Principal::parse_valid)]
    pub with: Principal,
    /// A token of the phone, or an API key of the business with the permission `chat`, to use instead. Default for the
    /// business `demo`: the key made at the first start.
    #[arg(long, env = "ESHAAR_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Messages of before that are shown.
    #[arg(long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub last: u32,
    /// Print each frame as it comes, as JSON. Lines of standard input are still messages.
    #[arg(long)]
    pub json: bool,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[allow(missing_docs, reason = "the names say it")]
pub enum FromArgument {
    Start,
    Head,
}
