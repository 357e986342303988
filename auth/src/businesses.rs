//! Which businesses exist, by way of a cache: a phone that starts a conversation names one, and must not cost a read of the
//! store each time, nor make a conversation with a business that nobody is.

use std::sync::Arc;
use std::time::Duration;

use eshaar_model::BusinessId;
use eshaar_store::{KeyStore, StoreError};
use moka::future::Cache;

/// How long a business that was found is taken to be there. Businesses are never deleted.
const KNOWN_FOR: Duration = Duration::from_hours(1);

/// How long a business that was not found is taken not to be there: so long after its first key is made phones may be told
/// that it is unknown.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);

/// Businesses remembered, those known and those unknown apart: a flood of made-up ids pushes no real one out.
const CACHED: u64 = 10_000;

pub(crate) struct Businesses {
    store: Arc<dyn KeyStore>,
    known: Cache<BusinessId, ()>,
    unknown: Cache<BusinessId, ()>,
}

impl Businesses {
    pub(crate) fn new(store: Arc<dyn KeyStore>) -> Self {
        let cache = |kept| Cache::builder().max_capacity(CACHED).time_to_live(kept).build();
        Self { store, known: cache(KNOWN_FOR), unknown: cache(UNKNOWN_FOR) }
    }

    /// Returns true if the business exists. Fails only for one that is not cached, while the store does not answer.
    pub(crate) async fn has(&self, business: &BusinessId) -> Result<bool, StoreError> {
        if self.known.contains_key(business) {
            return Ok(true);
        }
        if self.unknown.contains_key(business) {
            return Ok(false);
        }
        let is_there = self.store.has_business(business).await?;
        let cache = if is_there { &self.known } else { &self.unknown };
        cache.insert(business.clone(), ()).await;
        Ok(is_there)
    }
}
