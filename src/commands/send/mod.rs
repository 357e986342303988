//! `eshaar send`: one message, or a file of them in bulk.

mod bulk;
mod file;
mod refused;

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::cli::{SendArguments, Settings};
use crate::output::outln;
use crate::{client, config};

/// How long the request of one message may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

pub async fn run(settings: &Settings, arguments: SendArguments) -> anyhow::Result<()> {
    let key = match &arguments.server.api_key {
        Some(key) => key.clone(),
        None => client::api_key(&arguments.server, &config::data_dir(settings)?)?,
    };
    match arguments.file.clone() {
        Some(file) => bulk::run(settings, &arguments, &key, &file).await,
        None => single(&arguments, &key).await,
    }
}

async fn single(arguments: &SendArguments, key: &str) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Accepted {
        id: String,
        status: String,
    }

    let mut body = serde_json::json!({
        "type": "one_way",
        "to": arguments.to,
        "content": arguments.content,
        "priority": arguments.priority.as_str(),
    });
    if let Some(ttl) = arguments.ttl {
        body["ttl_s"] = ttl.into();
    }
    if let Some(at) = arguments.at {
        body["send_at"] = at.to_string().into();
    }
    if let Some(reference) = &arguments.reference {
        body["reference"] = reference.clone().into();
    }
    let endpoint = &arguments.server.endpoint;
    let url = format!("{}/v1/messages", endpoint.url);
    let mut request = client::http(endpoint)?.post(&url).bearer_auth(key).json(&body).timeout(REQUEST_TIMEOUT);
    if let Some(idempotency_key) = &arguments.idempotency_key {
        request = request.header("Idempotency-Key", idempotency_key);
    }
    let answer: Value = client::checked(request.send().await, &endpoint.url).await?.json().await?;
    if arguments.json {
        outln!("{answer}")?;
    } else {
        let Accepted { id, status } = serde_json::from_value(answer)?;
        outln!("{id} {status}")?;
    }
    Ok(())
}
