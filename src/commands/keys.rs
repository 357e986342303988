//! `eshaar keys`: API keys, in the history store. The server may be running.

use std::io::{Write as _, stdout};

use eshaar_model::Clock;
use eshaar_store::ApiKey;

use crate::cli::{KeysCommand, Settings};
use crate::config;
use crate::engines;

pub async fn run(settings: &Settings, command: KeysCommand) -> anyhow::Result<()> {
    let config = config::load(settings)?;
    let clock = Clock::system();
    crate::first_start::prepare(&config.data_dir)?;
    let store = engines::open_store(&config, clock.clone()).await?;
    let now = clock.now();
    match command {
        KeysCommand::Create { business, permissions, name, expires_in_days } => {
            let expires_at = expires_in_days.map(|days| now.plus_millis(i64::from(days) * 24 * 3600 * 1000));
            let minted = eshaar_auth::keys::mint(business, name, permissions, expires_at, now);
            store.keys.put(minted.stored).await?;
            println!("{}", minted.text);
        }
        KeysCommand::List { business } => {
            for key in store.keys.list(business.as_ref()).await? {
                writeln!(stdout(), "{}", line(&key))?;
            }
        }
        KeysCommand::Revoke { id } => {
            anyhow::ensure!(store.keys.revoke(&id, now).await?, "no key has this id");
            println!("revoked; a running server refuses it within seconds");
        }
    }
    store.engine.close().await?;
    Ok(())
}

fn line(key: &ApiKey) -> String {
    let permissions: Vec<&str> = key.permissions.iter().map(|permission| permission.as_str()).collect();
    let state = match (key.revoked_at, key.expires_at) {
        (Some(at), _) => format!("revoked {at}"),
        (None, Some(at)) => format!("expires {at}"),
        (None, None) => "active".to_owned(),
    };
    format!("{}  {}  {}  {}  {}  {}", key.id, key.business, key.created_at, state, permissions.join(","), key.name)
}
