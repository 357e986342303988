//! Which gateways are told of something: those where its principal has a session, or, while presence cannot be relied on, every
//! one that is known. A hint too many costs a little; one too few, until its session reads by itself.
//!
//! Presence that did not answer is not asked for a while, and not relied on at once when it answers again: the gateways first
//! announce themselves and enter their sessions again. Whoever asked meanwhile would be told that nobody is there.

use std::sync::Arc;

use eshaar_model::{Clock, Principal, Timestamp};
use eshaar_presence::{Presence, PresenceError, Slots};
use parking_lot::Mutex;

/// How often it is asked which gateways live, in milliseconds: more often than they lapse.
const GATEWAYS_EVERY_MS: i64 = 5_000;

/// Wait before presence that did not answer is asked again, in milliseconds.
const ASKED_AGAIN_MS: i64 = 2_000;

/// How long presence must have answered again before it is relied on, in milliseconds: gateways connect again within 5 s and
/// need a moment.
const SETTLES_MS: i64 = 8_000;

/// Presence, as far as it can be relied on.
pub(crate) struct Sight {
    presence: Arc<dyn Presence>,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Clone, Copy)]
enum State {
    Clear,
    /// It did not answer, and is asked again then.
    Blind(Timestamp),
    /// It answers again, and is relied on from then.
    Settling(Timestamp),
}

impl Sight {
    pub(crate) fn new(presence: Arc<dyn Presence>, clock: Clock) -> Self {
        Self { presence, clock, state: Mutex::new(State::Clear) }
    }

    /// Where principals are; `None` while that cannot be known.
    pub(crate) async fn slots_of(&self, principals: &[Principal], stage: &'static str) -> Option<Vec<Slots>> {
        let state = *self.state.lock();
        match state {
            State::Clear => {}
            State::Settling(until) if self.clock.now() >= until => *self.state.lock() = State::Clear,
            State::Settling(_) => return None,
            State::Blind(until) => {
                if self.clock.now() >= until {
                    // One asks; the others go on as before.
                    self.blind();
                    if self.presence.ping().await.is_ok() {
                        *self.state.lock() = State::Settling(self.clock.now().plus_millis(SETTLES_MS));
                    }
                }
                return None;
            }
        }
        match self.presence.slots_of(principals).await {
            Ok(slots) => Some(slots),
            Err(error) => {
                self.fail(&error, stage);
                None
            }
        }
    }

    fn fail(&self, error: &PresenceError, stage: &'static str) {
        tracing::warn!(stage, %error, "presence does not answer; it is not relied on until it has for some seconds");
        self.blind();
    }

    fn blind(&self) {
        *self.state.lock() = State::Blind(self.clock.now().plus_millis(ASKED_AGAIN_MS));
    }
}

/// Where principals are.
pub(crate) struct Whereabouts {
    sight: Sight,
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
        Self { sight: Sight::new(presence, clock), slots, gateways: Mutex::default() }
    }

    /// The slots of those of `principals` that are online, for a stage of that name.
    pub(crate) async fn of(&self, mut principals: Vec<Principal>, stage: &'static str) -> Vec<(Principal, Slots)> {
        principals.sort_unstable();
        principals.dedup();
        if let Some(slots) = self.sight.slots_of(&principals, stage).await {
            self.keep_gateways_known().await;
            return principals.into_iter().zip(slots).filter(|(_, slots)| !slots.is_empty()).collect();
        }
        let everywhere = self.gateways_known();
        principals.into_iter().map(|principal| (principal, everywhere.clone())).collect()
    }

    /// Asks from time to time which gateways live.
    async fn keep_gateways_known(&self) {
        let now = self.sight.clock.now();
        {
            let mut gateways = self.gateways.lock();
            if now < gateways.due {
                return;
            }
            gateways.due = now.plus_millis(GATEWAYS_EVERY_MS);
        }
        if let Ok(nodes) = self.sight.presence.nodes().await {
            self.gateways.lock().slots = nodes.iter().map(|node| node.slot).collect();
        }
    }

    /// The slots of those that were known last; all there can be, where none was.
    fn gateways_known(&self) -> Slots {
        let known = self.gateways.lock().slots.clone();
        if known.is_empty() { (0..self.slots).collect() } else { known }
    }
}
