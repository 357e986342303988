//! `eshaar keys …`, `eshaar token`, `eshaar console`

use clap::{Args, Subcommand};
use eshaar_model::{BusinessId, Permission, Phone, Rate};

/// `eshaar keys …`
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key; it is shown once.
    #[command(
        after_help = "Examples:\n  eshaar keys create --business acme --permission messages:send --rate 1000/s\n  eshaar keys create --business operators --permission admin"
    )]
    Create {
        /// The business that it is for.
        #[arg(long)]
        business: BusinessId,
        /// A permission of the key; may be repeated: messages:send, messages:read, broadcasts:send, chat, conversations:manage,
        /// media:upload, webhooks:manage or admin (all of them).
        #[arg(long = "permission", required = true)]
        permissions: Vec<Permission>,
        /// A name for it.
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
