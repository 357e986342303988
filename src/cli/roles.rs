//! `eshaar serve`, `eshaar ingest`, `eshaar processors`, `eshaar gateway`

use clap::{Args, ValueEnum};

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
    /// Flags that every role has.
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
