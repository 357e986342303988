//! `eshaar console`: a link that opens the console.

use anyhow::Context as _;
use eshaar_model::{Clock, Timestamp};

use crate::cli::Settings;
use crate::config::{self, Config};
use crate::first_start::CONSOLE_SECRET_FILE;

pub fn run(settings: &Settings) -> anyhow::Result<()> {
    let config = config::load(settings)?;
    let address = if config.internal_listen.is_empty() { &config.listen } else { &config.internal_listen };
    println!("http://{address}{}", link(&config, Clock::system().now())?);
    Ok(())
}

/// The path of a link that opens one session, within an hour of `now`.
pub fn link(config: &Config, now: Timestamp) -> anyhow::Result<String> {
    Ok(eshaar_ingest::console::link(&secret(config)?, now))
}

/// What signs links and sessions.
pub fn secret(config: &Config) -> anyhow::Result<Vec<u8>> {
    let file = config.data_dir.join(CONSOLE_SECRET_FILE);
    std::fs::read(&file).with_context(|| format!("cannot read {}: has the server been started?", file.display()))
}
