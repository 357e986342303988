//! `eshaar keys`: API keys, in the history store. The server may be running. What is changed is in the audit log first.

use eshaar_model::{AuditId, Clock, Timestamp};
use eshaar_store::{ApiKey, AuditEntry};

use crate::cli::{KeysCommand, Settings};
use crate::config;
use crate::engines;
use crate::output::outln;

pub async fn run(settings: &Settings, command: KeysCommand) -> anyhow::Result<()> {
    let config = config::load(settings)?;
    let clock = Clock::system();
    crate::first_start::prepare(&config.data_dir)?;
    let store = engines::open_store(&config, clock.clone()).await?;
    let now = clock.now();
    match command {
        KeysCommand::Create { business, permissions, name, expires_in_days, rate, json } => {
            let expires_at = expires_in_days.map(|days| now.plus_millis(i64::from(days) * 24 * 3600 * 1000));
            let mut minted = eshaar_auth::keys::mint(business, name, permissions, expires_at, now);
            minted.stored.rate = rate;
            let ApiKey { id, business, permissions, .. } = &minted.stored;
            let detail = serde_json::json!({"business": business, "permissions": permissions, "rate": rate, "expires_at": expires_at});
            store.audit.append(entry(now, "keys.create", id, &detail)).await?;
            let shown = described(&minted.stored);
            store.keys.put(minted.stored).await?;
            if json {
                outln!("{}", merged(shown, "key", &minted.text))?;
            } else {
                outln!("{}", minted.text)?;
            }
        }
        KeysCommand::List { business, json } => {
            for key in store.keys.list(business.as_ref()).await? {
                if json { outln!("{}", described(&key))? } else { outln!("{}", line(&key))? }
            }
        }
        KeysCommand::Revoke { id, json } => {
            anyhow::ensure!(store.keys.get(&id).await?.is_some(), "no key has this id");
            store.audit.append(entry(now, "keys.revoke", &id, &serde_json::json!({}))).await?;
            anyhow::ensure!(store.keys.revoke(&id, now).await?, "no key has this id");
            if json {
                outln!("{}", serde_json::json!({ "id": id, "revoked_at": now }))?;
            } else {
                outln!("revoked; a running server refuses it within seconds")?;
            }
        }
    }
    store.engine.close().await?;
    Ok(())
}

/// Whoever runs the command, as the audit log names them.
pub fn actor() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "unknown".to_owned());
    format!("cli:{user}")
}

fn entry(now: Timestamp, action: &str, key: &str, detail: &serde_json::Value) -> AuditEntry {
    AuditEntry {
        id: AuditId::new(now),
        actor: actor(),
        action: action.to_owned(),
        subject: key.to_owned(),
        detail: detail.to_string(),
        correlation: None,
    }
}

/// A key as JSON, without its secret.
fn described(key: &ApiKey) -> serde_json::Value {
    serde_json::json!({
        "id": key.id,
        "business": key.business,
        "name": key.name,
        "permissions": key.permissions,
        "rate": key.rate,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    })
}

fn merged(mut object: serde_json::Value, name: &str, value: &str) -> serde_json::Value {
    object[name] = value.into();
    object
}

fn line(key: &ApiKey) -> String {
    let permissions: Vec<&str> = key.permissions.iter().map(|permission| permission.as_str()).collect();
    let state = match (key.revoked_at, key.expires_at) {
        (Some(at), _) => format!("revoked {at}"),
        (None, Some(at)) => format!("expires {at}"),
        (None, None) => "active".to_owned(),
    };
    let rate = key.rate.map_or_else(|| "-".to_owned(), |rate| rate.to_string());
    let permissions = permissions.join(",");
    format!("{}  {}  {}  {state}  {permissions}  {rate}  {}", key.id, key.business, key.created_at, key.name)
}
