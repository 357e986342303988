//! `eshaar topics …`, `eshaar store …`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::parse_setting;

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
