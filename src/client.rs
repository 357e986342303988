//! What the commands that call a server share.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::cli::ServerArguments;
use crate::first_start;

/// The part of a problem document that is for people.
#[derive(Debug, Deserialize)]
pub struct Problem {
    code: String,
    detail: String,
}

/// The API key to call with: the one given, or the demo business's.
pub fn api_key(arguments: &ServerArguments, data_dir: &Path) -> anyhow::Result<String> {
    if let Some(key) = &arguments.api_key {
        return Ok(key.clone());
    }
    let file = data_dir.join(first_start::DEMO_KEY_FILE);
    let key = std::fs::read_to_string(&file).with_context(|| {
        format!("no --api-key, and no demo key at {}: start the server once, or give a key", file.display())
    })?;
    Ok(key.trim().to_owned())
}

/// The answer, or what the server's problem document says.
pub async fn checked(answer: reqwest::Result<reqwest::Response>, url: &str) -> anyhow::Result<reqwest::Response> {
    let answer = answer.map_err(|error| {
        if error.is_connect() {
            anyhow::anyhow!("no server answers at {url}: is `eshaar serve` running?")
        } else {
            error.into()
        }
    })?;
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status();
    match answer.json::<Problem>().await {
        Ok(problem) => bail!("{} ({}, {})", problem.detail, status.as_u16(), problem.code),
        Err(_) => bail!("the server answered {status}"),
    }
}
