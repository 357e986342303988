//! `eshaar dead-letters`: what stages gave up on, over the HTTP API.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::{DeadLettersCommand, LetterFilter, LetterSelection, OperatorArguments, Settings};
use crate::output::{outln, printable};
use crate::{client, config};

/// How long a request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// Time between two looks at how far a task is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Most letters of a page of the API.
const PAGE: usize = 100;

pub async fn run(settings: &Settings, command: DeadLettersCommand) -> anyhow::Result<()> {
    let server = match &command {
        DeadLettersCommand::List { server, .. } | DeadLettersCommand::Show { server, .. } => server,
        DeadLettersCommand::Redrive(selection) | DeadLettersCommand::Discard(selection) => &selection.server,
    };
    let api = Api::new(server, settings)?;
    match &command {
        DeadLettersCommand::List { filter, state, limit, .. } => {
            let mut query = filter.query();
            query.extend(state.map(|state| ("state", state.as_str().to_owned())));
            list(&api, query, *limit).await
        }
        DeadLettersCommand::Show { id, .. } => show(&api, id).await,
        DeadLettersCommand::Redrive(selection) => act(&api, "redrive", selection).await,
        DeadLettersCommand::Discard(selection) => act(&api, "discard", selection).await,
    }
}

/// The server, called as an operator.
struct Api {
    http: reqwest::Client,
    url: String,
    key: String,
    json: bool,
}

impl Api {
    fn new(arguments: &OperatorArguments, settings: &Settings) -> anyhow::Result<Self> {
        let key = client::operator_key(arguments, || config::data_dir(settings))?;
        let http = client::http(&arguments.endpoint)?;
        Ok(Self { http, url: arguments.endpoint.url.clone(), key, json: arguments.json })
    }

    async fn get(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<Value> {
        self.answer(self.http.get(format!("{}/v1/admin/dead-letters{path}", self.url)).query(query)).await
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.answer(self.http.post(format!("{}/v1/admin/dead-letters{path}", self.url)).json(body)).await
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let sent = request.bearer_auth(&self.key).timeout(REQUEST_LIMIT).send().await;
        Ok(client::checked(sent, &self.url).await?.json().await?)
    }
}

async fn list(api: &Api, mut query: Vec<(&'static str, String)>, limit: usize) -> anyhow::Result<()> {
    let mut left = limit;
    let mut cursor: Option<String> = None;
    while left > 0 {
        query.retain(|(name, _)| !["limit", "cursor"].contains(name));
        query.push(("limit", left.min(PAGE).to_string()));
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page = api.get("", &query).await?;
        for letter in page["dead_letters"].as_array().into_iter().flatten() {
            if api.json {
                outln!("{letter}")?;
            } else {
                outln!("{}", line(letter))?;
            }
            left = left.saturating_sub(1);
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
    }
    Ok(())
}

fn line(letter: &Value) -> String {
    let text = |field: &str| letter[field].as_str().unwrap_or("–");
    format!(
        "{}  {}  {:<9}  {}/{}  {}[{}]@{}  {}  {} attempts, {} redrives, {} B",
        text("id"),
        text("at"),
        text("state"),
        text("stage"),
        text("code"),
        text("topic"),
        letter["partition"],
        letter["offset"],
        text("business"),
        letter["attempts"],
        letter["redrives"],
        letter["size_bytes"],
    )
}

async fn show(api: &Api, id: &str) -> anyhow::Result<()> {
    // The id is a part of the path: nothing else may get into it.
    let id: String = id.chars().filter(|char| char.is_ascii_hexdigit() || *char == '-').collect();
    anyhow::ensure!(!id.is_empty(), "this is not the id of a dead letter");
    let letter = api.get(&format!("/{id}"), &[]).await?;
    if api.json {
        outln!("{letter}")?;
        return Ok(());
    }
    outln!("{}", line(&letter))?;
    for field in ["reason", "event_id", "correlation_id", "settled_at", "settled_by", "key"] {
        if let Some(value) = letter[field].as_str() {
            outln!("    {field}: {}", printable(value))?;
        }
    }
    for (name, value) in letter["headers"].as_object().into_iter().flatten() {
        outln!("    {}: {}", printable(name), printable(value.as_str().unwrap_or_default()))?;
    }
    match (&letter["payload"], letter["payload_base64"].as_str()) {
        (Value::Null, Some(base64)) => {
            let error = letter["payload_error"].as_str().unwrap_or_default();
            outln!("cannot be decoded: {error}; {} B in base64:\n{base64}", letter["size_bytes"])?;
        }
        (payload, _) => outln!("{}", serde_json::to_string_pretty(payload)?)?,
    }
    Ok(())
}

async fn act(api: &Api, action: &str, selection: &LetterSelection) -> anyhow::Result<()> {
    let body = if selection.all {
        let filter: serde_json::Map<String, Value> =
            selection.filter.query().into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        json!({ "filter": filter })
    } else {
        json!({ "ids": selection.ids })
    };
    let mut answer = api.post(&format!("/{action}"), &body).await?;
    for refused in answer["refused"].as_array().into_iter().flatten().filter(|_| !api.json) {
        let text = |field: &str| refused[field].as_str().unwrap_or_default();
        outln!("{}  refused: {} ({})", text("id"), text("detail"), text("code"))?;
    }
    if selection.wait {
        let path = format!("/tasks/{}", answer["task"]["id"].as_str().unwrap_or_default());
        while answer["task"]["finished"] == false {
            tokio::time::sleep(LOOK_EVERY).await;
            answer["task"] = api.get(&path, &[]).await?;
        }
    }
    if api.json {
        outln!("{answer}")?;
        return Ok(());
    }
    let task = &answer["task"];
    let state = if task["finished"] == true { "finished" } else { "under way" };
    outln!(
        "{} {action} {state}: {} done, {} refused, {} passed over",
        task["id"].as_str().unwrap_or_default(),
        task["done"],
        task["refused"],
        task["skipped"]
    )?;
    Ok(())
}

impl LetterFilter {
    /// As the API's parameters.
    fn query(&self) -> Vec<(&'static str, String)> {
        let fields = [
            ("stage", self.stage.clone()),
            ("code", self.code.clone()),
            ("business", self.business.as_ref().map(ToString::to_string)),
            ("from", self.from.map(|from| from.to_string())),
            ("until", self.until.map(|until| until.to_string())),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}
