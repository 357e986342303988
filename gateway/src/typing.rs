//! Who types: told from gateway to gateway over presence, never over the log, and gone by itself.
//!
//! Each gateway listens on a channel of its slot. Who types is published to the gateways where either side has sessions; these
//! hand it to the sessions that have joined the conversation, and say that it is over when it was not repeated for a while.
//! It may be lost, and comes at most once.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use bytes::Bytes;
use eshaar_model::{ConversationId, Pair, Principal, Side};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;

use crate::hub::{Hint, TICKS, Ticks};
use crate::message::Subject;
use crate::shared::Shared;

/// Typing that is not repeated lapses after this.
const LAPSES_AFTER: Ticks = 6 * TICKS;

/// Who types at most, in all conversations that this gateway was told of: further ones are not shown.
const TYPISTS: usize = 10_000;

/// Wait before a channel that could not be listened on is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// One side of a conversation types, or stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Typing {
    pub(crate) conversation: ConversationId,
    business: Principal,
    phone: Principal,
    from: Side,
    pub(crate) on: bool,
    /// The session that says so: its gateway's slot and its number.
    said_by: (u32, u64),
}

impl Typing {
    /// That the side `from` of a pair types, as the session `said_by` says.
    pub(crate) fn new(
        conversation: ConversationId,
        pair: &Pair,
        (from, on): (Side, bool),
        said_by: (u32, u64),
    ) -> Self {
        let [business, phone] = Side::BOTH.map(|side| pair.principal(side));
        Self { conversation, business, phone, from, on, said_by }
    }

    /// Who types.
    pub(crate) fn from(&self) -> &Principal {
        match self.from {
            Side::Business => &self.business,
            Side::Phone => &self.phone,
        }
    }
}

/// Who types, as this gateway was told, and when that lapses.
#[derive(Default)]
pub(crate) struct Typists(Mutex<AHashMap<(ConversationId, Side), (Typing, Ticks)>>);

impl Typists {
    /// Notes what was told at `now`; whether it is to be shown.
    fn note(&self, typing: &Typing, now: Ticks) -> bool {
        let (mut typists, key) = (self.0.lock(), (typing.conversation, typing.from));
        if !typing.on {
            return typists.remove(&key).is_some();
        }
        if typists.len() >= TYPISTS && !typists.contains_key(&key) {
            return false;
        }
        let known = typists.insert(key, (typing.clone(), now + LAPSES_AFTER));
        known.is_none_or(|(known, _)| known.said_by != typing.said_by)
    }

    /// Somebody said what they typed: clients have seen by that that they type no more.
    pub(crate) fn has_said(&self, subject: &Subject) {
        let mut typists = self.0.lock();
        if typists.is_empty() {
            return;
        }
        let Some(Ok(conversation)) = subject.conversation.as_ref().map(|id| id.parse()) else { return };
        let side = if subject.sender.starts_with('+') { Side::Phone } else { Side::Business };
        typists.remove(&(conversation, side));
    }

    /// Takes out whoever has not repeated it by `now`.
    fn lapsed(&self, now: Ticks) -> Vec<Typing> {
        let mut typists = self.0.lock();
        if typists.is_empty() {
            return Vec::new();
        }
        typists.extract_if(|_, (_, until)| *until <= now).map(|(_, (typing, _))| typing).collect()
    }
}

fn channel(slot: u32) -> String {
    format!("typing.{slot}")
}

/// Tells the gateways where either side is. What cannot be told is lost: it is only typing.
pub(crate) async fn tell(shared: &Shared, typing: &Typing) {
    let Ok(payload) = serde_json::to_vec(typing).map(Bytes::from) else { return };
    let sides = [typing.business.clone(), typing.phone.clone()];
    let Ok(slots) = shared.presence.slots_of_unmarked(&sides).await else { return };
    let mut slots: Vec<u32> = slots.into_iter().flatten().collect();
    slots.sort_unstable();
    slots.dedup();
    for slot in slots {
        let _ = shared.presence.publish(&channel(slot), payload.clone()).await;
    }
}

/// Listens on the channel of a slot for ever.
pub(crate) async fn listen(shared: &Shared, slot: u32) {
    loop {
        let Ok(mut told) = shared.presence.listen(&channel(slot)).await else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        loop {
            match told.recv().await {
                Ok(payload) => {
                    let typing = serde_json::from_slice::<Typing>(&payload);
                    if let Ok(typing) = typing.inspect_err(|error| tracing::warn!(%error, "who types cannot be read"))
                        && shared.typists.note(&typing, shared.ticks())
                    {
                        show(shared, typing);
                    }
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => break,
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Says of whoever did not repeat it by `now` that they type no more.
pub(crate) fn lapse(shared: &Shared, now: Ticks) {
    for typing in shared.typists.lapsed(now) {
        show(shared, Typing { on: false, ..typing });
    }
}

/// Hands it to the sessions of both sides, but for the one that says so.
fn show(shared: &Shared, typing: Typing) {
    let typing = Arc::new(typing);
    let slot = shared.node().map(|node| node.slot);
    for side in [&typing.business, &typing.phone] {
        for session in shared.hub.of(side) {
            if slot.map(|slot| (slot, session.id)) != Some(typing.said_by) {
                session.deliver(Hint::Typing(Arc::clone(&typing)), shared.options.hints);
            }
        }
    }
}
