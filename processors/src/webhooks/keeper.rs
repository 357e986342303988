//! Looks after the backlogs of endpoints that are disabled: writes down how much waits for each, takes them on again once they
//! are enabled, and removes those of endpoints that were deleted.

use std::sync::Arc;
use std::time::Duration;

use eshaar_model::{BusinessId, WebhookId};
use tokio::time::{MissedTickBehavior, interval};

use super::Tellers;
use super::endpoint::{Endpoint, State};

/// An endpoint that is disabled is looked up once in so many times that one that is told is.
const PATIENCE: u64 = 4;

/// Looks after the endpoints of a partition that are disabled.
pub(super) struct Keeper {
    pub(super) tellers: Arc<Tellers>,
}

impl Keeper {
    pub(super) async fn run(self) {
        let options = &self.tellers.shared.options;
        let mut tick = interval(Duration::from_millis(options.known_for_ms.max(1).saturating_mul(PATIENCE)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for (webhook, business) in self.tellers.shelf.dormant() {
                self.look_after(webhook, &business).await;
            }
            self.save().await;
        }
    }

    async fn look_after(&self, webhook: WebhookId, business: &BusinessId) {
        let Tellers { shared, shelf, .. } = &*self.tellers;
        let known = shared.endpoints.of(business).await;
        let Ok(endpoints) = known else { return };
        let endpoint: Option<&Arc<Endpoint>> = endpoints.iter().find(|endpoint| endpoint.id == webhook);
        match endpoint.map(|endpoint| (endpoint, endpoint.state())) {
            Some((_, State::Disabled)) => {}
            Some((endpoint, State::Enabled)) => {
                let _rows = shelf.rows.lock().await;
                if let Some(standing) = shelf.wake(webhook) {
                    self.tellers.take_on(Arc::clone(endpoint), standing, true);
                }
            }
            Some((_, State::Deleted)) | None => {
                let _rows = shelf.rows.lock().await;
                match shared.store.remove_cursor(shelf.partition, webhook).await {
                    Ok(()) => shelf.remove(webhook),
                    Err(error) => tracing::debug!(%webhook, %error, "the cursor of a webhook is not removed yet"),
                }
            }
        }
    }

    async fn save(&self) {
        let Tellers { shared, shelf, .. } = &*self.tellers;
        // None of them may be removed meanwhile and written again here.
        let _rows = shelf.rows.lock().await;
        let changed = shelf.changed().into_iter();
        let cursors: Vec<_> =
            changed.map(|(webhook, business, standing)| shared.cursor(&business, webhook, &standing)).collect();
        if cursors.is_empty() {
            return;
        }
        if let Err(error) = shared.store.put_cursors(shelf.partition, cursors).await {
            tracing::debug!(%error, "how much waits for disabled webhooks is not written down");
        }
    }
}
