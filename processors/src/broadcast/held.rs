//! The broadcasts that a process holds: it takes those that nobody sends, as far as the caps allow, and releases one where
//! another business waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use eshaar_model::{BroadcastId, BusinessId};
use eshaar_service::metrics::BROADCASTS_OPEN;
use eshaar_store::{OpenBroadcast, StoreError, Task};
use metrics::gauge;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::choice::{Caps, Choice, choose};
use super::expand::Expander;

/// Broadcasts of a business that a look considers: the oldest.
const LOOKED_AT: usize = 64;
/// How long one that another process holds is not asked about.
const NOT_ASKED: Duration = Duration::from_secs(5);

/// The broadcasts that this process holds.
pub(super) struct UnderWay {
    expander: Arc<Expander>,
    caps: Caps,
    tasks: JoinSet<()>,
    held: HashMap<BroadcastId, Hold>,
    /// Those that another process was seen to hold, and until when they are not asked about again.
    others: HashMap<BroadcastId, Instant>,
}

struct Hold {
    business: BusinessId,
    task: tokio::task::Id,
    /// It is to be let go of when it next waits.
    release: CancellationToken,
}

impl UnderWay {
    pub(super) fn new(expander: Arc<Expander>, options: &Options) -> Self {
        let caps = Caps { all: options.held.max(1), each: options.held_per_business.max(1) };
        Self { expander, caps, tasks: JoinSet::new(), held: HashMap::new(), others: HashMap::new() }
    }

    /// The next task that ends; `None` while no broadcast is held.
    pub(super) async fn next_ended(&mut self) -> Option<tokio::task::Id> {
        let ended = self.tasks.join_next_with_id().await?;
        Some(ended.map_or_else(|error| error.id(), |(task, ())| task))
    }

    /// A broadcast's task has ended: it is held no longer.
    pub(super) fn ended(&mut self, task: tokio::task::Id) {
        self.held.retain(|_, hold| hold.task != task);
        gauge!(BROADCASTS_OPEN).set(self.held.len() as f64);
    }

    /// Takes on broadcasts that nobody sends.
    pub(super) async fn look(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        self.others.retain(|_, until| *until > now);
        let mut open = self.expander.ports.store.broadcasts.opened(LOOKED_AT).await?;
        open.retain(|one| !self.held.contains_key(&one.id) && !self.others.contains_key(&one.id));
        let held = self.held.iter().map(|(id, hold)| (*id, hold.business.clone())).collect();
        let Choice { candidates, release } = choose(open, &held, self.caps);
        if let Some(hold) = release.and_then(|id| self.held.get(&id)) {
            hold.release.cancel();
        }
        for one in candidates {
            if self.held.len() >= self.caps.all {
                break;
            }
            match self.expander.take(&one).await? {
                Some(task) => self.hold(one, task),
                None => drop(self.others.insert(one.id, now + NOT_ASKED)),
            }
        }
        gauge!(BROADCASTS_OPEN).set(self.held.len() as f64);
        Ok(())
    }

    fn hold(&mut self, open: OpenBroadcast, task: Task) {
        let (expander, release) = (Arc::clone(&self.expander), CancellationToken::new());
        let (id, business) = (open.id, open.business.clone());
        let spawned = self.tasks.spawn({
            let release = release.clone();
            async move { expander.send(open, task, release).await }
        });
        self.held.insert(id, Hold { business, task: spawned.id(), release });
    }
}
