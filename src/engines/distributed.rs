//! Kafka, a CQL database (ScyllaDB, Cassandra), Redis and a schema registry that speaks Confluent's API.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use eshaar_auth::Authenticator;
use eshaar_auth::signing::SigningKeys;
use eshaar_model::Clock;
use eshaar_presence::limits::Limiter;
use eshaar_presence::redis::RedisPresence;
use eshaar_schemas::registry::confluent::{self, ConfluentRegistry};
use eshaar_schemas::{Codecs, Registry};
use eshaar_topics::LogError;
use eshaar_topics::kafka::KafkaLog;

use super::{Engines, check, epoch_due, subjects};
use crate::config::Config;
use crate::roles::clock::ClockWatch;

/// Connects to all of them, and sees that they are as this version needs them, and belong together.
pub async fn open(config: &Config) -> anyhow::Result<Engines> {
    let clock = Clock::system();
    let (log, store, presence, registry) = tokio::join!(
        KafkaLog::open(config.kafka.clone(), &config.topic_prefix),
        eshaar_store::scylla::open(config.scylla.clone(), clock.clone()),
        RedisPresence::connect(config.redis.clone()),
        look_up(config),
    );
    let (log, store) = (log.context("Kafka")?, store.context("the history store")?);
    let (registry, codecs) = registry.context("the schema registry")?;
    if let Some(epoch) = epoch_due(&log, &store).await? {
        bail!(
            "Kafka ends below what the history store has seen of it: it was restored or made anew. Stop every role, set \
             kafka.epoch = {epoch} for all of them, and start again (was {})",
            config.kafka.epoch,
            epoch = epoch.0,
        );
    }
    let auth = Authenticator::new(config.auth.clone(), Arc::clone(&store.keys), clock.clone()).await?;
    let registry_check = Arc::from(check(move || {
        let registry = Arc::clone(&registry);
        async move { registry.ping().await }
    }));
    let redis = presence.context("Redis")?;
    let breakers = store.engine.breaker().into_iter().chain([redis.breaker()]).collect();
    Ok(Engines {
        log: Arc::new(log),
        store,
        limiter: Arc::new(Limiter::shared(config.limits.clone(), Arc::clone(&redis) as _, clock.clone())),
        depths: Arc::clone(&redis) as _,
        cache: Arc::clone(&redis) as _,
        breakers,
        presence: redis,
        codecs,
        auth,
        signing: SigningKeys::read(&config.webhooks.key_file)?,
        clock,
        registry_check,
        own_registry: None,
    })
}

/// The ids of our schemas: from the registry, or, while it is down, from what it last said.
async fn look_up(config: &Config) -> anyhow::Result<(Arc<ConfluentRegistry>, Codecs)> {
    let registry = Arc::new(ConfluentRegistry::new(config.registry.clone()).await?);
    let codecs = Codecs::lookup(Arc::clone(&registry) as Arc<dyn Registry>, &subjects(&config.topic_prefix)).await?;
    Ok((registry, codecs))
}

/// Codecs that know no contract beforehand: each schema is asked for when it is met.
pub async fn reading_codecs(config: &Config) -> anyhow::Result<Codecs> {
    let registry = Arc::new(ConfluentRegistry::new(config.registry.clone()).await?);
    Ok(Codecs::lookup(registry as Arc<dyn Registry>, &[]).await?)
}

/// Makes the topics, and registers their schemas. What was done, line by line.
pub async fn apply_topics(config: &Config) -> anyhow::Result<String> {
    let registry = Arc::new(ConfluentRegistry::new(config.registry.clone()).await?);
    let subjects = subjects(&config.topic_prefix);
    Codecs::register(registry as Arc<dyn Registry>, &subjects).await.context("cannot register the schemas")?;
    let report = eshaar_topics::kafka::apply(&config.kafka, &config.topic_prefix).await?;
    anyhow::ensure!(report.is_complete(), "not every topic could be made as it must be:\n{report}");
    Ok(format!("{report}{} subjects in the registry, all FULL_TRANSITIVE", subjects.len()))
}

/// Makes the tables.
pub async fn apply_store(config: &Config) -> anyhow::Result<String> {
    Ok(eshaar_store::scylla::apply(&config.scylla).await?.to_string())
}

/// How each engine is: fit for use, or what is wrong and what to do.
pub async fn findings(config: &Config) -> Vec<(&'static str, Result<String, String>)> {
    let (kafka, store, redis, registry) = tokio::join!(kafka(config), store(config), redis(config), registry(config));
    let mut findings = vec![("kafka", kafka), ("scylla", store), ("redis", redis), ("registry", registry)];
    if findings.iter().all(|(_, finding)| finding.is_ok()) {
        findings.push(("clock", clock(config).await));
    }
    findings
}

/// Compares this host's clock with those of the engines. The error says what is off.
async fn clock(config: &Config) -> Result<String, String> {
    let clock = Clock::system();
    let failed = |error: &dyn std::fmt::Display| format!("it cannot be compared with those of the engines: {error}");
    let store =
        eshaar_store::scylla::open(config.scylla.clone(), clock.clone()).await.map_err(|error| failed(&error))?;
    let presence = RedisPresence::connect(config.redis.clone()).await.map_err(|error| failed(&error))?;
    let checked = ClockWatch::new(clock, presence, Arc::clone(&store.engine)).check().await;
    // Nothing was written: there is nothing to see through.
    let _ = store.engine.close().await;
    checked
        .map(|()| "this host's and those of the engines agree".to_owned())
        .map_err(|off| format!("{off}. Let it be set by a time server (chrony, systemd-timesyncd)"))
}

async fn kafka(config: &Config) -> Result<String, String> {
    let servers = &config.kafka.bootstrap_servers;
    match eshaar_topics::kafka::check(&config.kafka, &config.topic_prefix).await {
        Ok(differences) if differences.is_empty() => Ok(format!("{servers}: every topic is as it must be")),
        Ok(differences) => {
            let list: Vec<String> = differences.iter().map(ToString::to_string).collect();
            Err(format!("{}: run `eshaar topics apply`", list.join("; ")))
        }
        Err(LogError::Option(wrong)) => Err(wrong),
        Err(error) => Err(format!("{error}. Is kafka.bootstrap_servers = \"{servers}\" right, and Kafka running?")),
    }
}

async fn store(config: &Config) -> Result<String, String> {
    let checked = eshaar_store::scylla::check(&config.scylla).await;
    checked.map(|found| found.to_string()).map_err(|error| error.to_string())
}

async fn redis(config: &Config) -> Result<String, String> {
    let checked = eshaar_presence::redis::check(&config.redis).await;
    checked.map(|()| format!("{} answers", config.redis.addresses.join(", "))).map_err(|error| error.to_string())
}

async fn registry(config: &Config) -> Result<String, String> {
    let findings = confluent::check(&config.registry, &subjects(&config.topic_prefix)).await;
    let findings = findings.map_err(|error| error.to_string())?;
    if findings.is_empty() {
        return Ok(format!("{}: every schema is there", config.registry.url));
    }
    Err(findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

/// Takes paths that are not absolute from the data directory.
pub fn resolve(config: &mut Config) {
    let dir = config.data_dir.clone();
    let in_dir = |path: &mut PathBuf| {
        if !path.as_os_str().is_empty() {
            *path = dir.join(&*path);
        }
    };
    let kafka = &mut config.kafka;
    let files = [&mut kafka.ca_file, &mut kafka.certificate_file, &mut kafka.key_file, &mut kafka.password_file];
    files.into_iter().for_each(in_dir);
    let (scylla, redis, registry) = (&mut config.scylla, &mut config.redis, &mut config.registry);
    let optional = [
        &mut scylla.password_file,
        &mut scylla.tls.ca_file,
        &mut redis.password_file,
        &mut redis.sentinel_password_file,
        &mut redis.ca_file,
        &mut registry.password_file,
        &mut registry.ca_file,
        &mut registry.cache_file,
    ];
    optional.into_iter().flatten().for_each(in_dir);
}
