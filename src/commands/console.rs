//! `eshaar console`: a link that opens the console.

use anyhow::Context as _;
use eshaar_model::{Clock, Timestamp};

use crate::cli::{ConsoleArguments, Settings};
use crate::config::{self, Config};
use crate::first_start::CONSOLE_SECRET_FILE;
use crate::output::outln;

pub fn run(settings: &Settings, arguments: &ConsoleArguments) -> anyhow::Result<()> {
    let config = config::load(settings)?;
    let address = if config.internal_listen.is_empty() { &config.listen } else { &config.internal_listen };
    let server = arguments.url.clone().unwrap_or_else(|| url_of(address));
    let url = format!("{}{}", server.trim_end_matches('/'), link(&config, Clock::system().now())?);
    if arguments.json {
        outln!("{}", serde_json::json!({ "url": url }))?;
    } else {
        outln!("{url}")?;
    }
    Ok(())
}

/// The URL at which this machine reaches a listener.
pub fn url_of(listen: &str) -> String {
    let (host, port) = listen.rsplit_once(':').unwrap_or((listen, "80"));
    let host = match host {
        "0.0.0.0" | "" => "127.0.0.1",
        "[::]" => "[::1]",
        host => host,
    };
    format!("http://{host}:{port}")
}

/// The path of a link that opens one session, within an hour of `now`.
pub fn link(config: &Config, now: Timestamp) -> anyhow::Result<String> {
    Ok(eshaar_ingest::console::link(&secret(config)?, now))
}

/// The secret that signs links and sessions.
pub fn secret(config: &Config) -> anyhow::Result<Vec<u8>> {
    let file = config.data_dir.join(CONSOLE_SECRET_FILE);
    std::fs::read(&file).with_context(|| format!("cannot read {}: has the server been started?", file.display()))
}
