//! `eshaar topics`: what is in the log, read from its file beside a running server.

use std::collections::BTreeMap;
use std::io::{Write as _, stdout};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use eshaar_schemas::registry::embedded::EmbeddedRegistry;
use eshaar_schemas::{Codecs, DecodeError, Registry};
use eshaar_topics::embedded::ReadOnlyLog;
use eshaar_topics::{Durability, Record, Topic};

use crate::cli::{Settings, TailArguments, TopicsCommand};
use crate::config::{self, Config};

/// How often a tail looks for more.
const POLL: Duration = Duration::from_millis(200);

/// Most records read of a partition at a time.
const PAGE: usize = 500;

pub async fn run(settings: &Settings, command: TopicsCommand) -> anyhow::Result<()> {
    let config = config::load(settings)?;
    match command {
        TopicsCommand::List => list(&config),
        TopicsCommand::Tail(arguments) => tail(&config, &arguments).await,
    }
}

fn list(config: &Config) -> anyhow::Result<()> {
    let log = ReadOnlyLog::open(&config.log.dir).ok();
    writeln!(
        stdout(),
        "{:<20} {:>10} {:>6} {:>12}  {:<13} from → to",
        "topic",
        "partitions",
        "kept",
        "records",
        "value"
    )?;
    for topic in Topic::ALL {
        let spec = topic.spec();
        let records = match &log {
            Some(log) if spec.durability != Durability::Memory => held(log, topic)?.to_string(),
            _ => "–".to_owned(),
        };
        let kept = format!("{} h", spec.kept_ms / 3_600_000);
        writeln!(
            stdout(),
            "{:<20} {:>10} {kept:>6} {records:>12}  {:<13} {}",
            spec.name,
            spec.partitions,
            spec.value,
            spec.flow
        )?;
    }
    Ok(())
}

fn held(log: &ReadOnlyLog, topic: Topic) -> anyhow::Result<u64> {
    let mut records = 0;
    for partition in 0..topic.spec().partitions {
        let bounds = log.bounds(topic, partition)?;
        records += bounds.end - bounds.start;
    }
    Ok(records)
}

async fn tail(config: &Config, arguments: &TailArguments) -> anyhow::Result<()> {
    let name = arguments.topic.strip_prefix(&config.topic_prefix).unwrap_or(&arguments.topic);
    let names = || Topic::ALL.map(Topic::name).join(", ");
    let topic = Topic::ALL
        .into_iter()
        .find(|topic| topic.name() == name)
        .with_context(|| format!("no such topic; there are {}", names()))?;
    if topic.spec().durability == Durability::Memory {
        bail!("{topic} is kept in the server's memory alone, where this command cannot look");
    }
    let log = ReadOnlyLog::open(&config.log.dir)
        .with_context(|| format!("no log in {}: has the server been started?", config.log.dir.display()))?;
    let codecs = codecs(config).await?;
    let mut next = Vec::new();
    for partition in 0..topic.spec().partitions {
        let bounds = log.bounds(topic, partition)?;
        next.push(if arguments.from_start { bounds.start } else { bounds.end });
    }
    let mut left = arguments.count.unwrap_or(u64::MAX);
    loop {
        let mut page: Vec<Record> = Vec::new();
        for (partition, offset) in next.iter_mut().enumerate() {
            let records = log.read(topic, partition as u32, *offset, PAGE)?;
            if let Some(last) = records.last() {
                *offset = last.position.offset + 1;
            }
            page.extend(records);
        }
        let is_empty = page.is_empty();
        // Between partitions there is no order but time's.
        page.sort_by_key(|record| record.timestamp);
        for record in page {
            print(&codecs, &record, arguments).await?;
            left -= 1;
            if left == 0 {
                return Ok(());
            }
        }
        if is_empty {
            if arguments.no_follow {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Codecs that know no contract beforehand: each schema is asked for when it is met.
async fn codecs(config: &Config) -> anyhow::Result<Codecs> {
    let registry =
        EmbeddedRegistry::open(&config::registry_file(&config.data_dir)).context("cannot open the schema registry")?;
    Ok(Codecs::register(Arc::new(registry) as Arc<dyn Registry>, &[]).await?)
}

async fn print(codecs: &Codecs, record: &Record, arguments: &TailArguments) -> anyhow::Result<()> {
    let value = decoded(codecs, &record.value).await;
    let headers: BTreeMap<_, _> = record
        .headers
        .iter()
        .map(|(name, value)| (String::from_utf8_lossy(name), String::from_utf8_lossy(value)))
        .collect();
    let (position, key) = (record.position, String::from_utf8_lossy(&record.key));
    if !arguments.json {
        writeln!(
            stdout(),
            "{}[{}]@{}  {}  key {key}",
            position.topic,
            position.partition,
            position.offset,
            record.timestamp
        )?;
        for (name, value) in headers {
            writeln!(stdout(), "    {name}: {value}")?;
        }
        match value {
            Ok(value) => writeln!(stdout(), "    {value}\n")?,
            Err(error) => writeln!(stdout(), "    cannot be decoded: {error}\n")?,
        }
        return Ok(());
    }
    let mut line = serde_json::json!({
        "topic": position.topic.name(),
        "partition": position.partition,
        "offset": position.offset,
        "timestamp": record.timestamp,
        "key": key,
        "headers": headers,
    });
    match value {
        Ok(value) => line["value"] = value,
        Err(error) => line["error"] = error.to_string().into(),
    }
    if arguments.raw {
        line["value_base64"] = STANDARD.encode(&record.value).into();
    }
    writeln!(stdout(), "{line}")?;
    Ok(())
}

async fn decoded(codecs: &Codecs, value: &[u8]) -> anyhow::Result<serde_json::Value> {
    match codecs.decode_json(value) {
        Err(DecodeError::UnknownSchema(id)) => {
            codecs.learn(id).await?;
            Ok(codecs.decode_json(value)?)
        }
        other => Ok(other?),
    }
}
