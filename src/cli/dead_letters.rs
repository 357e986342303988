//! `eshaar dead-letters …`

use clap::{Args, Subcommand, ValueEnum};
use eshaar_model::{BusinessId, Timestamp};

use super::OperatorArguments;

/// `eshaar dead-letters …`
#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List dead letters, newest first.
    #[command(after_help = "Example:\n  eshaar dead-letters list --stage route --from 2026-01-31T00:00:00Z")]
    List {
        /// The server and the caller.
        #[command(flatten)]
        server: OperatorArguments,
        /// Which ones.
        #[command(flatten)]
        filter: LetterFilter,
        /// In this state only.
        #[arg(long)]
        state: Option<LetterStateArgument>,
        /// At most this many.
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: usize,
    },
    /// Show a dead letter with its content, decoded. That it was looked at is written to the audit log.
    #[command(after_help = "Example:\n  eshaar dead-letters show 019a0000-0000-7000-8000-000000000000")]
    Show {
        /// The server and the caller.
        #[command(flatten)]
        server: OperatorArguments,
        /// Its id, as `list` shows it.
        id: String,
    },
    /// Send records again to the topic that they were read from, some a second, in the background.
    #[command(after_help = "Example:\n  eshaar dead-letters redrive --all --stage route --wait")]
    Redrive(LetterSelection),
    /// Give records up for good.
    #[command(after_help = "Example:\n  eshaar dead-letters discard 019a0000-0000-7000-8000-000000000000")]
    Discard(LetterSelection),
}

/// Properties that the selected dead letters share.
#[derive(Debug, Args)]
pub struct LetterFilter {
    /// Given up on by this stage.
    #[arg(long)]
    pub stage: Option<String>,
    /// With this code, e.g. undecodable.
    #[arg(long)]
    pub code: Option<String>,
    /// Of messages of this business.
    #[arg(long)]
    pub business: Option<BusinessId>,
    /// Given up on at this time or later, e.g. 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub from: Option<Timestamp>,
    /// Given up on before this time.
    #[arg(long, value_name = "TIME")]
    pub until: Option<Timestamp>,
}

/// `eshaar dead-letters redrive`, `eshaar dead-letters discard`
#[derive(Debug, Args)]
pub struct LetterSelection {
    /// The server and the caller.
    #[command(flatten)]
    pub server: OperatorArguments,
    /// Their ids, at most 100.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub ids: Vec<String>,
    /// All that are open now, and are as the other options say.
    #[arg(long)]
    pub all: bool,
    /// With --all: which ones.
    #[command(flatten)]
    pub filter: LetterFilter,
    /// Wait until it is done.
    #[arg(long)]
    pub wait: bool,
}

/// A state of a dead letter on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LetterStateArgument {
    Open,
    Redriven,
    Discarded,
}

impl LetterStateArgument {
    /// Its name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Redriven => "redriven",
            Self::Discarded => "discarded",
        }
    }
}
