//! `eshaar topics`: what is in the log. An embedded one is read from its file beside a running server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use eshaar_schemas::registry::embedded::EmbeddedRegistry;
use eshaar_schemas::{Codecs, DecodeError, Registry};
use eshaar_topics::embedded::ReadOnlyLog;
use eshaar_topics::kafka::KafkaLog;
use eshaar_topics::{Bounds, Durability, Log as _, Reader, Record, Topic};

use super::append;
use crate::cli::{Settings, TailArguments, TopicsCommand};
use crate::config::{self, Config};
use crate::engines::{self, Kind};
use crate::output::{outln, printable};

/// How often a tail looks for more.
const POLL: Duration = Duration::from_millis(200);

/// Most records read of a partition at a time.
const PAGE: usize = 500;

pub async fn run(settings: &Settings, command: TopicsCommand) -> anyhow::Result<()> {
    let config = config::load(settings)?;
    match command {
        TopicsCommand::List { json } => list(&config, json).await,
        TopicsCommand::Tail(arguments) => tail(&config, &arguments).await,
        TopicsCommand::Append(arguments) => {
            append::run(&config, topic_named(&config, &arguments.topic)?, &arguments).await
        }
        TopicsCommand::Apply { json } => {
            let done = match config.engines {
                Kind::Distributed => engines::apply_topics(&config).await?,
                Kind::Embedded => "nothing to do: the embedded log has every topic".to_owned(),
            };
            if json {
                outln!("{}", serde_json::json!({ "done": done }))?;
            } else {
                outln!("{done}")?;
            }
            Ok(())
        }
    }
}

/// Where records are read from.
enum Source {
    /// The file of an embedded log, which a server may be writing.
    File(ReadOnlyLog),
    /// Kafka, with a reader for each partition that is followed.
    Kafka(KafkaLog, Vec<Box<dyn Reader>>),
}

impl Source {
    async fn open(config: &Config) -> anyhow::Result<Self> {
        match config.engines {
            Kind::Embedded => {
                let log = ReadOnlyLog::open(&config.log.dir);
                let dir = config.log.dir.display();
                Ok(Self::File(log.with_context(|| format!("no log in {dir}: has the server been started?"))?))
            }
            Kind::Distributed => {
                Ok(Self::Kafka(KafkaLog::open(config.kafka.clone(), &config.topic_prefix).await?, Vec::new()))
            }
        }
    }

    /// Returns true if records of `topic` can be seen from here.
    fn shows(&self, topic: Topic) -> bool {
        matches!(self, Self::Kafka(..)) || topic.spec().durability != Durability::Memory
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> anyhow::Result<Bounds> {
        match self {
            Self::File(log) => Ok(log.bounds(topic, partition)?),
            Self::Kafka(log, _) => Ok(log.bounds(topic, partition).await?),
        }
    }

    /// Records at hand of each partition from `next` on, which is moved behind them. Waits a while where there are none.
    async fn page(&mut self, topic: Topic, next: &mut [u64], wait: bool) -> anyhow::Result<Vec<Record>> {
        let mut page: Vec<Record> = Vec::new();
        match self {
            Self::File(log) => {
                for (partition, offset) in next.iter().enumerate() {
                    page.extend(log.read(topic, partition as u32, *offset, PAGE)?);
                }
                if page.is_empty() && wait {
                    tokio::time::sleep(POLL).await;
                }
            }
            Self::Kafka(log, readers) => {
                if readers.is_empty() {
                    for (partition, offset) in next.iter().enumerate() {
                        readers.push(log.read(topic, partition as u32, *offset).await?);
                    }
                }
                let ready = futures_util::future::select_all(readers.iter_mut().map(|reader| reader.ready()));
                // What does not come in time is looked for again.
                if let Ok((ready, ..)) = tokio::time::timeout(POLL, ready).await {
                    ready?;
                }
                page.extend(readers.iter_mut().flat_map(|reader| reader.take(PAGE)));
            }
        }
        for record in &page {
            let offset = &mut next[record.position.partition as usize];
            *offset = (*offset).max(record.position.offset + 1);
        }
        // Between partitions there is no order but time's.
        page.sort_by_key(|record| record.timestamp);
        Ok(page)
    }
}

async fn list(config: &Config, json: bool) -> anyhow::Result<()> {
    // Without a log there is still the list.
    let source = match config.engines {
        Kind::Embedded => Source::open(config).await.ok(),
        Kind::Distributed => Some(Source::open(config).await?),
    };
    if !json {
        let names = ["topic", "partitions", "kept", "records", "value"];
        outln!("{:<20} {:>10} {:>6} {:>12}  {:<13} from → to", names[0], names[1], names[2], names[3], names[4])?;
    }
    for topic in Topic::ALL {
        let spec = topic.spec();
        let records = match &source {
            Some(source) if source.shows(topic) => Some(held(config, source, topic).await?),
            _ => None,
        };
        if json {
            let described = serde_json::json!({
                "topic": spec.name,
                "partitions": engines::partitions(config, topic),
                "retention_ms": spec.kept_ms,
                "records": records,
                "value": spec.value.clone(),
                "flow": spec.flow.clone(),
            });
            outln!("{described}")?;
            continue;
        }
        let records = records.map_or_else(|| "–".to_owned(), |records| records.to_string());
        let kept = format!("{} h", spec.kept_ms / 3_600_000);
        outln!(
            "{:<20} {:>10} {kept:>6} {records:>12}  {:<13} {}",
            spec.name,
            engines::partitions(config, topic),
            spec.value,
            spec.flow
        )?;
    }
    Ok(())
}

async fn held(config: &Config, source: &Source, topic: Topic) -> anyhow::Result<u64> {
    let mut records = 0;
    for partition in 0..engines::partitions(config, topic) {
        let bounds = source.bounds(topic, partition).await?;
        records += bounds.end - bounds.start;
    }
    Ok(records)
}

/// The topic of that name, with or without the prefix.
fn topic_named(config: &Config, name: &str) -> anyhow::Result<Topic> {
    let name = name.strip_prefix(&config.topic_prefix).unwrap_or(name);
    let names = || Topic::ALL.map(Topic::name).join(", ");
    let found = Topic::ALL.into_iter().find(|topic| topic.name() == name);
    found.with_context(|| format!("no such topic; there are {}", names()))
}

async fn tail(config: &Config, arguments: &TailArguments) -> anyhow::Result<()> {
    let topic = topic_named(config, &arguments.topic)?;
    let mut source = Source::open(config).await?;
    if !source.shows(topic) {
        bail!("{topic} is kept in the server's memory alone, where this command cannot look");
    }
    let codecs = codecs(config).await?;
    let (mut next, mut ends) = (Vec::new(), Vec::new());
    for partition in 0..engines::partitions(config, topic) {
        let bounds = source.bounds(topic, partition).await?;
        next.push(if arguments.from_start { bounds.start } else { bounds.end });
        ends.push(bounds.end);
    }
    let mut left = arguments.count.unwrap_or(u64::MAX);
    loop {
        if arguments.no_follow && next.iter().zip(&ends).all(|(next, end)| next >= end) {
            return Ok(());
        }
        for record in source.page(topic, &mut next, !arguments.no_follow).await? {
            print(&codecs, &record, arguments).await?;
            left -= 1;
            if left == 0 {
                return Ok(());
            }
        }
    }
}

/// Codecs that know no contract beforehand: each schema is asked for when it is met.
async fn codecs(config: &Config) -> anyhow::Result<Codecs> {
    if config.engines == Kind::Distributed {
        return engines::reading_codecs(config).await;
    }
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
        outln!(
            "{}[{}]@{}  {}  key {}",
            position.topic,
            position.partition,
            position.offset,
            record.timestamp,
            printable(&key),
        )?;
        for (name, value) in headers {
            outln!("    {}: {}", printable(&name), printable(&value))?;
        }
        match value {
            Ok(value) => outln!("    {value}\n")?,
            Err(error) => outln!("    cannot be decoded: {error}\n")?,
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
    outln!("{line}")?;
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
