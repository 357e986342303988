//! The configuration of every role: `eshaar.default.toml`, the file, the environment and the flags, in that order.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use eshaar_service::config::Sources;
use serde::Deserialize;

use crate::cli::Settings;
use crate::engines::{self, Kind};

/// The defaults, commented: the documentation of every option.
pub const DEFAULTS: &str = include_str!("../eshaar.default.toml");

/// Everything that can be configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which engines.
    pub engines: Kind,
    /// Address of the HTTP listener.
    pub listen: String,
    /// Address of the listener for operators. Empty: `listen` is for all.
    pub internal_listen: String,
    /// Where data and secrets are kept.
    pub data_dir: PathBuf,
    /// Prefix of topics and registry subjects.
    pub topic_prefix: String,
    /// Logs.
    pub logging: eshaar_service::telemetry::Options,
    /// The HTTP listener.
    pub http: eshaar_service::listener::Options,
    /// Tokens of mobile users.
    pub auth: eshaar_auth::Options,
    /// The embedded log.
    pub log: eshaar_topics::embedded::Options,
    /// The embedded history store.
    pub store: eshaar_store::sqlite::Options,
    /// The log on Kafka.
    pub kafka: eshaar_topics::kafka::Options,
    /// The history store on a CQL database.
    pub scylla: eshaar_store::scylla::Options,
    /// Presence on Redis.
    pub redis: eshaar_presence::redis::Options,
    /// The schema registry.
    pub registry: eshaar_schemas::registry::confluent::Options,
    /// The HTTP API.
    pub ingest: eshaar_ingest::Options,
    /// How well every process knows what was cancelled.
    pub cancellations: eshaar_topics::cancelled::Options,
    /// How much each may send.
    pub limits: eshaar_presence::limits::Options,
    /// The stages.
    pub stages: eshaar_processors::Options,
    /// The WebSocket gateway.
    pub gateway: eshaar_gateway::Options,
    /// Webhooks, for all who know of them.
    pub webhooks: Webhooks,
}

/// The keys of webhooks, and the addresses that endpoints may have.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhooks {
    /// The master keys that secrets are made from.
    pub key_file: PathBuf,
    /// Allows endpoints at http URLs and at addresses of private networks.
    pub allow_private: bool,
    /// Authorities that are trusted besides the system's, PEM.
    pub ca_file: Option<PathBuf>,
}

/// Reads the configuration that `settings` name.
pub fn load(settings: &Settings) -> anyhow::Result<Config> {
    load_with(settings, &[])
}

/// Like [`load`], with the keys that a command's own flags set.
pub fn load_with(settings: &Settings, of_command: &[(&str, toml::Value)]) -> anyhow::Result<Config> {
    let mut flags: Vec<(String, toml::Value)> = Vec::new();
    if let Some(dir) = &settings.data_dir {
        let dir = dir.to_str().context("--data-dir is not UTF-8")?;
        flags.push(("data_dir".to_owned(), dir.into()));
    }
    flags.extend(of_command.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let sources = Sources {
        file: settings.config.as_deref(),
        environment: std::env::vars_os().collect(),
        set: &settings.set,
        flags: &flags,
    };
    let mut config: Config = eshaar_service::config::load(DEFAULTS, sources)?;
    config.log.dir = config.data_dir.join(&config.log.dir);
    config.store.path = config.data_dir.join(&config.store.path);
    if !config.auth.jwt_secret_file.is_empty() {
        let file = config.data_dir.join(&config.auth.jwt_secret_file);
        file.to_str().context("data_dir is not UTF-8")?.clone_into(&mut config.auth.jwt_secret_file);
    }
    let smtp = &mut config.stages.digest.smtp;
    for file in [&mut smtp.ca_file, &mut smtp.password_file].into_iter().flatten() {
        *file = config.data_dir.join(&*file);
    }
    let webhooks = &mut config.webhooks;
    webhooks.key_file = config.data_dir.join(&webhooks.key_file);
    webhooks.ca_file = webhooks.ca_file.take().map(|file| config.data_dir.join(file));
    config.stages.webhooks.allow_private = webhooks.allow_private;
    config.stages.webhooks.ca_file.clone_from(&webhooks.ca_file);
    engines::resolve(&mut config);
    Ok(config)
}

/// The data directory alone, for commands that need nothing else.
pub fn data_dir(settings: &Settings) -> anyhow::Result<PathBuf> {
    match &settings.data_dir {
        Some(dir) => Ok(dir.clone()),
        None => Ok(load(settings)?.data_dir),
    }
}

/// Where the embedded registry is.
pub fn registry_file(data_dir: &Path) -> PathBuf {
    data_dir.join("registry.db")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(set: &[(&str, &str)]) -> Settings {
        let set = set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Settings { config: None, data_dir: None, set }
    }

    #[test]
    fn the_defaults_are_complete_and_hold_no_key_that_nothing_reads() {
        let config = load(&settings(&[])).unwrap();
        assert_eq!(config.listen, "127.0.0.1:8080");
    }

    #[test]
    fn an_unknown_option_on_the_command_line_is_named() {
        let error = format!("{:#}", load(&settings(&[("gateway.pnig", "5")])).unwrap_err());
        assert!(error.contains("pnig"), "{error}");
    }

    #[test]
    fn text_is_taken_as_it_is_and_numbers_are_read() {
        let set =
            [("auth.audience", "407408718192"), ("kafka.epoch", "2"), ("gateway.slot", "3"), ("redis.password", "5")];
        let config = load(&settings(&set)).unwrap();
        assert_eq!(
            (config.auth.audience.as_str(), config.kafka.epoch, config.gateway.slot),
            ("407408718192", 2, Some(3))
        );
    }
}
