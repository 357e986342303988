//! What is done to a cluster in the midst of a run: processes and engines are killed, stopped, joined.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::cluster::{Cluster, Role};

/// Something that is done, once.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// When: the fraction of all messages that is accepted by then.
    pub at: f64,
    /// What.
    pub act: Act,
    /// To whom.
    pub whom: Whom,
    /// Which process of a role, from 0.
    #[serde(default)]
    pub number: usize,
    /// Milliseconds until it is over: it is started again, goes on, or leaves.
    pub for_ms: u64,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// SIGKILL, and a new start.
    Kill,
    /// SIGSTOP, and SIGCONT.
    Pause,
    /// SIGTERM, and a new start.
    Restart,
    /// One more of the role, which leaves in order.
    Join,
    /// Of Kafka: after that time everything is deleted that lanes hold, whoever has read it or not.
    DeleteLanes,
}

/// To whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "roles and engines, by their names")]
pub enum Whom {
    Ingest,
    Processors,
    Gateway,
    Kafka,
    Cassandra,
    Redis,
    Registry,
}

impl Whom {
    const fn role(self) -> Option<Role> {
        match self {
            Self::Ingest => Some(Role::Ingest),
            Self::Processors => Some(Role::Processors),
            Self::Gateway => Some(Role::Gateway),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Processors => "processors",
            Self::Gateway => "gateway",
            Self::Kafka => "kafka",
            Self::Cassandra => "cassandra",
            Self::Redis => "redis",
            Self::Registry => "registry",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let act = match self.act {
            Act::Kill => "kill",
            Act::Pause => "pause",
            Act::Restart => "restart",
            Act::Join => "join",
            Act::DeleteLanes => "delete the lanes of",
        };
        write!(f, "{act} {} {} for {} ms", self.whom.name(), self.number, self.for_ms)
    }
}

impl Event {
    /// An error where it cannot be done.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!((0.0..=1.0).contains(&self.at), "`chaos.events.at` is a fraction");
        let of_engine = self.whom.role().is_none();
        anyhow::ensure!(!of_engine || self.act != Act::Join, "{} cannot join", self.whom.name());
        let has_lanes = self.whom == Whom::Kafka;
        anyhow::ensure!(has_lanes || self.act != Act::DeleteLanes, "{} has no lanes", self.whom.name());
        Ok(())
    }

    async fn happen(self, cluster: Arc<Cluster>) -> anyhow::Result<()> {
        let lasting = Duration::from_millis(self.for_ms);
        let Some(role) = self.whom.role() else { return self.happen_to_engine(&cluster, lasting).await };
        match self.act {
            Act::Kill => cluster.kill(role, self.number, lasting).await,
            Act::Pause => cluster.pause(role, self.number, lasting).await,
            Act::Restart => cluster.restart(role, self.number, lasting).await,
            Act::Join | Act::DeleteLanes => cluster.join(role, lasting).await,
        }
    }

    async fn happen_to_engine(self, cluster: &Cluster, lasting: Duration) -> anyhow::Result<()> {
        if self.act == Act::DeleteLanes {
            sleep(lasting).await;
            return cluster.delete_lanes().await;
        }
        let (begin, end) = match self.act {
            Act::Pause => ("pause", "resume"),
            Act::Restart => ("stop", "restart"),
            Act::Kill | Act::Join | Act::DeleteLanes => ("kill", "restart"),
        };
        cluster.engine(begin, self.whom.name()).await?;
        sleep(lasting).await;
        cluster.engine(end, self.whom.name()).await
    }
}

/// The events of a run, as they become due.
pub struct Events {
    waiting: Vec<Event>,
    under_way: JoinSet<anyhow::Result<()>>,
}

impl Events {
    /// Nothing has happened yet.
    pub fn new(events: &[Event]) -> Self {
        Self { waiting: events.to_vec(), under_way: JoinSet::new() }
    }

    /// Begins what is due when `fraction` of the messages is accepted. An error of one that is over is returned.
    pub fn begin_due(&mut self, fraction: f64, cluster: &Arc<Cluster>) -> anyhow::Result<()> {
        for event in self.waiting.extract_if(.., |event| event.at <= fraction) {
            let what = event.to_string();
            let happening = event.happen(Arc::clone(cluster));
            self.under_way.spawn(async move { happening.await.context(what) });
        }
        while let Some(over) = self.under_way.try_join_next() {
            over.context("an event")??;
        }
        Ok(())
    }

    /// Whether all have happened, and are over.
    pub fn over(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty()
    }
}
