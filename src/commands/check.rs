//! `eshaar check`: reads the configuration as a role would, tries every engine, and says what would be done, what would be in
//! the way, and what to do about it.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;

use eshaar_topics::Topic;

use crate::cli::{CheckArguments, Settings};
use crate::client;
use crate::config::{self, Config};
use crate::engines::{self, Kind};
use crate::first_start;
use crate::output::outln;

/// Open files that a server of many connections needs.
const OPEN_FILES: u64 = 16_384;

pub async fn run(settings: &Settings, arguments: &CheckArguments) -> anyhow::Result<()> {
    if arguments.defaults {
        return Ok(outln!("{}", config::DEFAULTS.trim_end())?);
    }
    let config = config::load(settings)?;
    let mut findings = vec![
        ("configuration", Ok("well formed".to_owned())),
        ("listen", address("listen", &config.listen).await),
        ("internal_listen", address("internal_listen", &config.internal_listen).await),
        ("http", http(&config)),
        ("data", data_dir(&config)),
        ("secrets", secrets(&config)),
        ("tokens", tokens(&config)),
        ("topics", Ok(topics(&config))),
        ("files", open_files()),
    ];
    if config.engines == Kind::Distributed {
        findings.extend(Box::pin(engines::findings(&config)).await);
    }
    let mut wrong = 0;
    for (name, finding) in findings {
        wrong += usize::from(finding.is_err());
        let (is_ok, text) = match &finding {
            Ok(text) => (true, text),
            Err(text) => (false, text),
        };
        if arguments.json {
            outln!("{}", serde_json::json!({ "name": name, "ok": is_ok, "message": text }))?;
        } else {
            outln!("{name:<14} {}{text}", if is_ok { "" } else { "WRONG: " })?;
        }
    }
    anyhow::ensure!(wrong == 0, "{wrong} of these would be in the way");
    Ok(())
}

type Finding = Result<String, String>;

async fn address(option: &str, address: &str) -> Finding {
    if address.is_empty() && option == "internal_listen" {
        return Ok("unset: `listen` answers operators too".to_owned());
    }
    match TcpListener::bind(address) {
        Ok(_) => Ok(format!("would listen on {address}")),
        Err(error) if error.kind() == ErrorKind::AddrInUse && client::is_served_by_eshaar(address).await => {
            Ok(format!("{address} is in use by eshaar, which runs already"))
        }
        Err(error) => Err(format!(
            "cannot listen on {address}: {error}. Choose another with --{}, or stop what has it",
            if option == "listen" { "listen" } else { "set internal_listen=ADDRESS" }
        )),
    }
}

fn http(config: &Config) -> Finding {
    eshaar_service::cors::layer(&config.http.cors_origins).map_err(|error| error.to_string())?;
    Ok(format!(
        "{} trusted proxies, pages of {} origins may call",
        config.http.trusted_proxies.len(),
        config.http.cors_origins.len()
    ))
}

fn data_dir(config: &Config) -> Finding {
    let dir = &config.data_dir;
    match std::fs::metadata(dir) {
        Ok(found) if !found.is_dir() => Err(format!("{} is not a directory", dir.display())),
        Ok(found) if found.permissions().readonly() => Err(format!("{} cannot be written to", dir.display())),
        Ok(_) if config.engines == Kind::Distributed => Ok(format!("secrets are in {}", dir.display())),
        _ if config.engines == Kind::Distributed => Err(format!(
            "{} is not there; `eshaar keys create` makes it, with secrets that all roles must share",
            dir.display()
        )),
        Ok(_) if dir.join("log.db").exists() => Ok(format!("would go on with what is in {}", dir.display())),
        _ => Ok(format!("would make {} with new secrets and a demo business", dir.display())),
    }
}

fn secrets(config: &Config) -> Finding {
    use std::os::unix::fs::PermissionsExt as _;

    let files = [
        first_start::JWT_SECRET_FILE,
        first_start::CONSOLE_SECRET_FILE,
        first_start::DEMO_KEY_FILE,
        first_start::OPERATOR_KEY_FILE,
    ];
    for file in files {
        let path = config.data_dir.join(file);
        let Ok(found) = std::fs::metadata(&path) else { continue };
        if found.permissions().mode() & 0o077 != 0 {
            return Err(format!("{0} can be read by others: chmod 600 {0}", path.display()));
        }
    }
    Ok("readable by their owner alone".to_owned())
}

fn tokens(config: &Config) -> Finding {
    let (secret, jwks) = (&config.auth.jwt_secret_file, &config.auth.jwks);
    let is_remote = jwks.starts_with("http://") || jwks.starts_with("https://");
    if secret.is_empty() && jwks.is_empty() {
        return Err("auth.jwt_secret_file and auth.jwks are both empty: no phone could connect".to_owned());
    }
    if config.engines == Kind::Distributed && !secret.is_empty() && !Path::new(secret).is_file() {
        return Err(format!(
            "auth.jwt_secret_file: no file at {secret}; `eshaar keys create` makes one, and every role must have the same"
        ));
    }
    if !jwks.is_empty() && !is_remote && !Path::new(jwks).is_file() {
        return Err(format!("auth.jwks: no file at {jwks}"));
    }
    let by = [(!secret.is_empty()).then_some("HS256"), (!jwks.is_empty()).then_some("the keys of auth.jwks")];
    Ok(format!("of phones are checked by {}", by.into_iter().flatten().collect::<Vec<_>>().join(" and ")))
}

fn topics(config: &Config) -> String {
    let partitions: u32 = Topic::ALL.into_iter().map(|topic| engines::partitions(config, topic)).sum();
    format!("{} with prefix `{}`, {partitions} partitions in all", Topic::ALL.len(), config.topic_prefix)
}

fn open_files() -> Finding {
    let limits = std::fs::read_to_string("/proc/self/limits").map_err(|error| error.to_string())?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let limit = line.and_then(|line| line.split_whitespace().nth(3)).unwrap_or("0");
    match limit.parse::<u64>() {
        Ok(files) if files < OPEN_FILES => {
            Ok(format!("{files} may be open: enough for about {} connections", files / 2))
        }
        _ => Ok(format!("{limit} may be open")),
    }
}
