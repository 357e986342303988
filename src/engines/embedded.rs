//! Everything in this process: SQLite files in the data directory, presence in memory.

use std::sync::Arc;

use anyhow::Context as _;
use eshaar_auth::Authenticator;
use eshaar_auth::signing::SigningKeys;
use eshaar_model::Clock;
use eshaar_presence::limits::Limiter;
use eshaar_presence::local::{LocalCache, LocalPresence};
use eshaar_schemas::registry::embedded::EmbeddedRegistry;
use eshaar_schemas::{Codecs, Registry};
use eshaar_topics::embedded::EmbeddedLog;
use tracing::warn;

use super::{Engines, check, epoch_due, subjects};
use crate::config::{self, Config};

/// Opens the files, making them where they are not there yet.
pub async fn open(config: &Config) -> anyhow::Result<Engines> {
    let clock = Clock::system();
    let store =
        eshaar_store::sqlite::open(config.store.clone(), clock.clone()).context("cannot open the history store")?;
    let log = EmbeddedLog::open(config.log.clone(), clock.clone()).context("cannot open the log")?;
    if let Some(epoch) = epoch_due(&log, &store).await? {
        warn!(epoch = epoch.0, "the log ends below what the store has seen of it: a new epoch begins");
        log.begin_epoch(epoch).await?;
    }
    let registry =
        EmbeddedRegistry::open(&config::registry_file(&config.data_dir)).context("cannot open the schema registry")?;
    let codecs = Codecs::register(Arc::new(registry.clone()) as Arc<dyn Registry>, &subjects(&config.topic_prefix))
        .await
        .context("cannot register the schemas")?;
    let auth = Authenticator::new(config.auth.clone(), Arc::clone(&store.keys), clock.clone()).await?;
    let registry_check = Arc::from(check({
        let registry = registry.clone();
        move || {
            let registry = registry.clone();
            async move { registry.subjects().await.map(drop) }
        }
    }));
    let presence = Arc::new(LocalPresence::new(clock.clone()));
    Ok(Engines {
        log: Arc::new(log),
        store,
        presence: Arc::clone(&presence) as _,
        limiter: Arc::new(Limiter::local(config.limits.clone(), clock.clone())),
        depths: presence,
        cache: Arc::new(LocalCache::new(clock.clone())),
        breakers: Vec::new(),
        codecs,
        auth,
        signing: SigningKeys::read(&config.webhooks.key_file)?,
        clock,
        registry_check,
        own_registry: Some(registry),
    })
}
