//! The command line, as `eshaar --help` shows it.

mod credentials;
mod dead_letters;
mod messages;
mod roles;
mod server;
mod topics;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use self::credentials::{ConsoleArguments, KeysCommand, TokenArguments};
pub use self::dead_letters::{DeadLettersCommand, LetterFilter, LetterSelection};
pub use self::messages::{ChatArguments, FromArgument, ListenArguments, SendArguments};
pub use self::roles::{ProcessorsArguments, RoleArguments};
pub use self::server::{Endpoint, OperatorArguments, ServerArguments};
pub use self::topics::{AppendArguments, StoreCommand, TailArguments, TopicsCommand};

/// Business messages to mobile users, at high volume.
#[derive(Debug, Parser)]
#[command(name = "eshaar", version, about, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// Flags that every command shares.
    #[command(flatten)]
    pub settings: Settings,
    /// The command.
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

/// `eshaar completions`
#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// The shell.
    pub shell: clap_complete::Shell,
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
