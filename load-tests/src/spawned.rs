//! What a load test started itself: a server in one process, or a cluster of several.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::failed::Failed;
use crate::server::Server;
use crate::watch::Process;

/// A server that the load test started.
pub enum Spawned {
    /// Everything in one process.
    Server(Box<Server>),
    /// Several processes of each role, on real engines.
    Cluster(Arc<Cluster>),
}

impl Spawned {
    /// The processes that run now.
    pub fn processes(&self) -> Vec<Process> {
        match self {
            Self::Server(server) => server.pid().into_iter().map(|pid| Process { role: "", pid }).collect(),
            Self::Cluster(cluster) => cluster.processes(),
        }
    }

    /// From process start to serving, of each start.
    pub fn starts(&self) -> Vec<Duration> {
        match self {
            Self::Server(server) => server.starts().to_vec(),
            Self::Cluster(cluster) => cluster.starts(),
        }
    }

    /// From SIGTERM to the end, of each process that was told to stop.
    pub fn stops(&self) -> Vec<Duration> {
        match self {
            Self::Server(_) => Vec::new(),
            Self::Cluster(cluster) => cluster.stops(),
        }
    }

    /// A new key of a business, with these permissions.
    pub async fn key(&self, business: &str, permissions: &[&str]) -> anyhow::Result<String> {
        let mut arguments = vec!["keys", "create", "--business", business];
        arguments.extend(permissions.iter().flat_map(|permission| ["--permission", permission]));
        match self {
            Self::Server(server) => server.run(&arguments).await,
            Self::Cluster(cluster) => cluster.run(&arguments).await,
        }
        .map(|printed| printed.trim().to_owned())
    }

    /// What each process shows at `/metrics`.
    pub async fn metrics(&mut self) -> anyhow::Result<Vec<String>> {
        match self {
            Self::Server(server) => Ok(vec![server.metrics().await?]),
            Self::Cluster(cluster) => cluster.metrics().await,
        }
    }

    /// What the stages failed on until now.
    pub async fn failed(&mut self) -> anyhow::Result<Failed> {
        match self {
            Self::Server(server) => server.failed().await,
            Self::Cluster(cluster) => cluster.failed().await,
        }
    }
}
