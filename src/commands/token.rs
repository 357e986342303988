//! `eshaar token`: a token for a mobile user, signed with the data directory's secret.

use std::time::Duration;

use eshaar_auth::jwt::Issuer;
use eshaar_model::{Clock, Phone};

use crate::cli::{Settings, TokenArguments};
use crate::config::{self, Config};
use crate::output::outln;

/// How long a token is valid that a command makes for itself.
pub const OWN_TTL: Duration = Duration::from_hours(24);

pub async fn run(settings: &Settings, arguments: &TokenArguments) -> anyhow::Result<()> {
    let token = issue(&config::load(settings)?, arguments.phone, Duration::from_secs(arguments.ttl)).await?;
    if arguments.json {
        let described = serde_json::json!({ "token": token, "phone": arguments.phone, "expires_in_s": arguments.ttl });
        outln!("{described}")?;
    } else {
        outln!("{token}")?;
    }
    Ok(())
}

/// A token of `phone`, valid for so long.
pub async fn issue(config: &Config, phone: Phone, valid_for: Duration) -> anyhow::Result<String> {
    Ok(Issuer::new(&config.auth).await?.issue(phone, valid_for, Clock::system().now())?)
}
