//! `eshaar topics append`: puts records into a topic as they are, for repair and for tests of what becomes of them. An
//! embedded log has one writer: the server must be stopped.

use std::io::Read as _;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use eshaar_model::{AuditId, Clock};
use eshaar_store::AuditEntry;
use eshaar_topics::embedded::EmbeddedLog;
use eshaar_topics::kafka::KafkaLog;
use eshaar_topics::{Headers, Log, NewRecord, Topic};

use super::keys;
use crate::cli::AppendArguments;
use crate::config::Config;
use crate::engines::{self, Kind};
use crate::output::outln;

/// Most records that are appended at once.
const BATCH: usize = 500;

pub async fn run(config: &Config, topic: Topic, arguments: &AppendArguments) -> anyhow::Result<()> {
    let values = values(arguments)?;
    let clock = Clock::system();
    let log: Arc<dyn Log> = match config.engines {
        Kind::Embedded => {
            let opened = EmbeddedLog::open(config.log.clone(), clock.clone());
            Arc::new(opened.context("an embedded log has one writer: stop the server first")?)
        }
        Kind::Distributed => Arc::new(KafkaLog::open(config.kafka.clone(), &config.topic_prefix).await?),
    };
    let store = engines::open_store(config, clock.clone()).await?;
    let detail = serde_json::json!({"records": values.len()});
    let entry = AuditEntry {
        id: AuditId::new(clock.now()),
        actor: keys::actor(),
        action: "topics.append".to_owned(),
        subject: topic.name().to_owned(),
        detail: detail.to_string(),
        correlation: None,
    };
    store.audit.append(entry).await?;
    let headers: Vec<_> = arguments.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let headers = Headers::new(headers);
    let record = |value: &Bytes| NewRecord {
        topic,
        partition: None,
        key: Bytes::copy_from_slice(arguments.key.as_bytes()),
        value: value.clone(),
        headers: headers.clone(),
        timestamp: clock.now(),
    };
    for values in values.chunks(BATCH) {
        for position in log.append(values.iter().map(record).collect()).await? {
            outln!("{topic}[{}]@{}", position.partition, position.offset)?;
        }
    }
    log.close().await;
    store.engine.close().await?;
    Ok(())
}

/// The file as one value, or each of its lines.
fn values(arguments: &AppendArguments) -> anyhow::Result<Vec<Bytes>> {
    ensure!(!arguments.key.is_empty(), "--key must not be empty: it is what keeps records in order");
    let mut bytes = Vec::new();
    if arguments.file.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes)?;
    } else {
        let path = arguments.file.display();
        bytes = std::fs::read(&arguments.file).with_context(|| format!("cannot read {path}"))?;
    }
    if !arguments.lines {
        return Ok(vec![bytes.into()]);
    }
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.map(Bytes::copy_from_slice).collect())
}
