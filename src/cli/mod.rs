//! The command line, as `eshaar --help` shows it.

mod dead_letters;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use eshaar_model::{BusinessId, Cursor, Permission, Phone, Principal, Rate, Timestamp};

pub use self::dead_letters::{DeadLettersCommand, LetterFilter, LetterSelection};

/// Business messages to mobile users, at high volume.
#[derive(Debug, Parser)]
#[command(name = "eshaar", version, about, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What every command shares.
    #[command(flatten)]
    pub settings: Settings,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Where the configuration and the data are.
#[derive(Debug, Args)]
pub struct Settings {
    /// Configuration file (TOML). `eshaar check --defaults` prints every option with its default.
    #[arg(long, global = true, env = "ESHAAR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where data and secrets are kept.
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Set one option, e.g. `--set gateway.ping_interval_s=20`. May be repeated.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = parse_setting)]
    pub set: Vec<(String, String)>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in one process; on embedded engines, unless the configuration names others.
    #[command(
        after_help = "Examples:\n  eshaar serve\n  eshaar serve --listen 127.0.0.1:8090 --data-dir /var/lib/eshaar"
    )]
    Serve(RoleArguments),
    /// Run the HTTP API alone (needs engines = "distributed").
    #[command(after_help = "Examples:\n  eshaar ingest --listen 127.0.0.1:8081 --config /etc/eshaar/eshaar.toml")]
    Ingest(RoleArguments),
    /// Run the stages alone (needs engines = "distributed").
    #[command(
        after_help = "Examples:\n  eshaar processors --listen 127.0.0.1:8082\n  eshaar processors --stage route --stage archive"
    )]
    Processors(ProcessorsArguments),
    /// Run the WebSocket gateway alone (needs engines = "distributed").
    #[command(after_help = "Examples:\n  eshaar gateway --listen 127.0.0.1:8083 --set gateway.slot=0")]
    Gateway(RoleArguments),
    /// Send a message, or a file of messages.
    #[command(
        after_help = "Examples:\n  eshaar send --to +966501234567 \"Your card was used.\"\n  eshaar send --to +966501234567 --at 2026-01-31T12:00:00+03:00 --ttl 3600 \"See you.\"\n  eshaar send --file messages.ndjson.gz"
    )]
    Send(SendArguments),
    /// Receive messages as a phone, live, and acknowledge them.
    #[command(
        after_help = "Examples:\n  eshaar listen --phone +966501234567\n  eshaar listen --phone +966501234567 --from start --json | jq .content"
    )]
    Listen(ListenArguments),
    /// Talk in the terminal, as a phone or a business: each line is a message.
    #[command(
        after_help = "Examples:\n  eshaar chat --as +966501234567 --with demo\n  eshaar chat --as acme --with +966501234567 --token \"$KEY\""
    )]
    Chat(ChatArguments),
    /// Make, list and revoke API keys.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Make a token for a mobile user.
    #[command(
        after_help = "Examples:\n  eshaar token --phone +966501234567\n  eshaar token --phone +966501234567 --ttl 60 --json"
    )]
    Token(TokenArguments),
    /// Look at the topics of the log, and make them.
    #[command(subcommand)]
    Topics(TopicsCommand),
    /// Make the tables of the history store.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Look into what stages gave up on; send it again, or give it up for good.
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Print a link that opens the console in a browser, for an hour.
    #[command(after_help = "Examples:\n  eshaar console\n  eshaar console --url https://eshaar.example.com")]
    Console(ConsoleArguments),
    /// Check the configuration and every engine: what would be done, what is wrong, and what to do about it.
    #[command(after_help = "Examples:\n  eshaar check\n  eshaar check --defaults >eshaar.toml\n  eshaar check --json")]
    Check(CheckArguments),
    /// Print a script that completes commands and flags in a shell.
    #[command(
        after_help = "Examples:\n  eshaar completions bash >/etc/bash_completion.d/eshaar\n  eshaar completions zsh >~/.zfunc/_eshaar"
    )]
    Completions(CompletionsArguments),
}

/// `eshaar serve`, `eshaar ingest`, `eshaar gateway`
#[derive(Debug, Args)]
pub struct RoleArguments {
    /// Address to listen on, e.g. 127.0.0.1:8080. Port 0: any free one.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
}

impl RoleArguments {
    /// As keys of the configuration.
    pub fn as_settings(&self) -> Vec<(&'static str, toml::Value)> {
        self.listen.iter().map(|listen| ("listen", listen.as_str().into())).collect()
    }
}

/// `eshaar processors`
#[derive(Debug, Args)]
pub struct ProcessorsArguments {
    /// What every role has.
    #[command(flatten)]
    pub role: RoleArguments,
    /// Run this stage only; may be repeated. Every stage must be run by at least one process.
    #[arg(long = "stage", value_name = "STAGE")]
    pub stages: Vec<StageArgument>,
}

impl ProcessorsArguments {
    /// As keys of the configuration.
    pub fn as_settings(&self) -> Vec<(&'static str, toml::Value)> {
        let mut settings = self.role.as_settings();
        if !self.stages.is_empty() {
            let stages: Vec<&str> = self.stages.iter().map(|stage| stage.as_str()).collect();
            settings.push(("stages.run", stages.into()));
        }
        settings
    }
}

/// A stage on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[allow(missing_docs, reason = "the names say it")]
pub enum StageArgument {
    Prioritize,
    Route,
    Archive,
    Notify,
    Webhooks,
    #[value(name = "dead_letter", alias = "dead-letter")]
    DeadLetter,
    Broadcast,
    Schedule,
    Housekeeping,
}

impl StageArgument {
    /// Its name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prioritize => "prioritize",
            Self::Route => "route",
            Self::Archive => "archive",
            Self::Notify => "notify",
            Self::Webhooks => "webhooks",
            Self::DeadLetter => "dead_letter",
            Self::Broadcast => "broadcast",
            Self::Schedule => "schedule",
            Self::Housekeeping => "housekeeping",
        }
    }
}

/// Where the server is.
#[derive(Debug, Args)]
pub struct Endpoint {
    /// The server, http:// or https://. One on this machine is called directly, whatever HTTP_PROXY says.
    #[arg(long, env = "ESHAAR_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// Certificates of authorities that are trusted besides the system's, PEM.
    #[arg(long, env = "ESHAAR_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

/// Where the server is and who is calling.
#[derive(Debug, Args)]
pub struct ServerArguments {
    /// The server.
    #[command(flatten)]
    pub endpoint: Endpoint,
    /// API key. Default: the demo business's, from the data directory.
    #[arg(long, env = "ESHAAR_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
}

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
    /// Who you are: a phone, with a token made from the data directory's secret, or a business, by its API key.
    #[arg(long = "as", value_name = "PHONE OR BUSINESS", value_parser = Principal::parse_valid)]
    pub who: Principal,
    /// Whom you talk to: a business, or a phone.
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

/// `eshaar keys …`
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key; it is shown once.
    #[command(
        after_help = "Examples:\n  eshaar keys create --business acme --permission messages:send --rate 1000/s\n  eshaar keys create --business operators --permission admin"
    )]
    Create {
        /// Whose it is.
        #[arg(long)]
        business: BusinessId,
        /// What it allows; may be repeated: messages:send, messages:read, broadcasts:send, chat, conversations:manage,
        /// media:upload, webhooks:manage or admin (all of them).
        #[arg(long = "permission", required = true)]
        permissions: Vec<Permission>,
        /// What to call it.
        #[arg(long, default_value = "")]
        name: String,
        /// Refused after this many days.
        #[arg(long, value_name = "DAYS")]
        expires_in_days: Option<u32>,
        /// Most messages that may be sent with it, e.g. 100/min; s, min, h or d. Default: as many as the service takes.
        #[arg(long, value_name = "RATE")]
        rate: Option<Rate>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List keys, without their secrets.
    #[command(after_help = "Examples:\n  eshaar keys list --business acme\n  eshaar keys list --json")]
    List {
        /// Of this business only.
        #[arg(long)]
        business: Option<BusinessId>,
        /// Print JSON, an object a line.
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key.
    #[command(after_help = "Example:\n  eshaar keys revoke L0bKg2Vd")]
    Revoke {
        /// Its public id, as `list` shows it.
        id: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// `eshaar token`
#[derive(Debug, Args)]
pub struct TokenArguments {
    /// The mobile user.
    #[arg(long, value_parser = Phone::parse_valid)]
    pub phone: Phone,
    /// How long the token is valid, in seconds.
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    pub ttl: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `eshaar console`
#[derive(Debug, Args)]
pub struct ConsoleArguments {
    /// The server as the browser reaches it. Default: the address of `listen`.
    #[arg(long, env = "ESHAAR_URL")]
    pub url: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `eshaar completions`
#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// The shell.
    pub shell: clap_complete::Shell,
}

/// `eshaar topics …`
#[derive(Debug, Subcommand)]
pub enum TopicsCommand {
    /// List the topics: partitions, retention, and what is in them.
    #[command(after_help = "Examples:\n  eshaar topics list\n  eshaar topics list --json")]
    List {
        /// Print JSON, an object a line.
        #[arg(long)]
        json: bool,
    },
    /// Print the records of a topic, decoded, and go on as they come.
    #[command(
        after_help = "Examples:\n  eshaar topics tail messages.accepted --from-start\n  eshaar topics tail message.status --json --count 10"
    )]
    Tail(TailArguments),
    /// Append records as they are, for repair. An embedded log must not be in use by a server.
    #[command(
        after_help = "Example:\n  eshaar topics append message.status --key 019a0000-0000-7000-8000-000000000000 --file record.avro"
    )]
    Append(AppendArguments),
    /// Make what the catalogue lists in Kafka and in the schema registry, where it is not there yet. May be repeated; nothing
    /// is ever taken away.
    #[command(after_help = "Example:\n  eshaar topics apply")]
    Apply {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// `eshaar store …`
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Bring the tables to this version. May be repeated, and be run by several at once.
    #[command(after_help = "Example:\n  eshaar store apply")]
    Apply {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// `eshaar topics tail`
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own on the command line")]
pub struct TailArguments {
    /// The topic, e.g. messages.accepted.
    pub topic: String,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
    /// With --json: the value's bytes too, in base64.
    #[arg(long, requires = "json")]
    pub raw: bool,
    /// Begin at the oldest record kept instead of the end.
    #[arg(long)]
    pub from_start: bool,
    /// End at what is there now instead of waiting for more.
    #[arg(long)]
    pub no_follow: bool,
    /// End after this many records.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

/// `eshaar topics append`
#[derive(Debug, Args)]
pub struct AppendArguments {
    /// The topic, e.g. message.status.
    pub topic: String,
    /// The records' key.
    #[arg(long)]
    pub key: String,
    /// A header of the records; may be repeated.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = parse_setting)]
    pub headers: Vec<(String, String)>,
    /// The value, as it is; `-` for standard input.
    #[arg(long, default_value = "-", value_name = "FILE")]
    pub file: PathBuf,
    /// Each line of the file is a record.
    #[arg(long)]
    pub lines: bool,
}

/// Where the server is, and which operator is calling.
#[derive(Debug, Args)]
pub struct OperatorArguments {
    /// The server.
    #[command(flatten)]
    pub endpoint: Endpoint,
    /// API key with the permission admin. Default: the operators' key, from the data directory.
    #[arg(long, env = "ESHAAR_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Print JSON, an object a line.
    #[arg(long)]
    pub json: bool,
}

/// `eshaar check`
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Print the commented default configuration and end.
    #[arg(long)]
    pub defaults: bool,
    /// Print JSON, an object a line.
    #[arg(long, conflicts_with = "defaults")]
    pub json: bool,
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
