//! Which gateways are told of something: those where its principal has a session, or, while presence does not answer, every
//! one that is known. A hint too many costs a little; one too few, until its session reads by itself.

use std::sync::Arc;

use eshaar_model::{Clock, Principal, Timestamp};
use eshaar_presence::{Presence, Slots};
use parking_lot::Mutex;

/// How often it is asked which gateways live, in milliseconds: more often than they lapse.
const GATEWAYS_EVERY_MS: i64 = 5_000;

/// Where principals are.
pub(crate) struct Whereabouts {
    presence: Arc<dyn Presence>,
    clock: Clock,
    /// How many slots there can be.
    slots: u32,
    gateways: Mutex<Gateways>,
}

/// The gateways that live, as presence last named them.
#[derive(Default)]
struct Gateways {
    slots: Slots,
    /// When they are asked for again.
    due: Timestamp,
}

impl Whereabouts {
    /// As `presence` knows it; gateways have slots below `slots`.
    pub(crate) fn new(presence: Arc<dyn Presence>, clock: Clock, slots: u32) -> Self {
        Self { presence, clock, slots, gateways: Mutex::default() }
    }

    /// The slots of those of `principals` that are online, for a stage of that name.
    pub(crate) async fn of(&self, mut principals: Vec<Principal>, stage: &'static str) -> Vec<(Principal, Slots)> {
        principals.sort_unstable();
        principals.dedup();
        match self.presence.slots_of(&principals).await {
            Ok(slots) => {
                self.keep_gateways_known().await;
                principals.into_iter().zip(slots).filter(|(_, slots)| !slots.is_empty()).collect()
            }
            Err(error) => {
                tracing::warn!(stage, %error, "presence does not answer; hints go to every gateway known");
                let everywhere = self.gateways_known();
                principals.into_iter().map(|principal| (principal, everywhere.clone())).collect()
            }
        }
    }

    /// Asks from time to time which gateways live.
    async fn keep_gateways_known(&self) {
        let now = self.clock.now();
        {
            let mut gateways = self.gateways.lock();
            if now < gateways.due {
                return;
            }
            gateways.due = now.plus_millis(GATEWAYS_EVERY_MS);
        }
        if let Ok(nodes) = self.presence.nodes().await {
            self.gateways.lock().slots = nodes.iter().map(|node| node.slot).collect();
        }
    }

    /// The slots of those that were known last; all there can be, where none was.
    fn gateways_known(&self) -> Slots {
        let known = self.gateways.lock().slots.clone();
        if known.is_empty() { (0..self.slots).collect() } else { known }
    }
}
