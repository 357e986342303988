//! What an operator may set of the CQL store.

use std::path::PathBuf;
use std::time::Duration;

use eshaar_model::Secret;
use serde::Deserialize;

/// Options of the store on ScyllaDB or Cassandra. Reads and writes are at `LOCAL_QUORUM`, claims and API keys at
/// `LOCAL_SERIAL`: that is no option, because streams rely on a read that sees every write before it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Some nodes, `host:port`; the others are learned from them.
    pub nodes: Vec<String>,
    /// The keyspace: lower-case letters, digits and `_`, at most 48, a letter first.
    pub keyspace: String,
    /// The datacenter to stay in. Empty: there is only one.
    pub datacenter: String,
    /// How `apply` makes the keyspace.
    pub replication: Replication,
    /// Who we are; empty where the cluster does not ask.
    pub username: String,
    /// The password; better in a file.
    pub password: Secret,
    /// A file that holds the password, in place of `password`.
    pub password_file: Option<PathBuf>,
    /// Encryption of the connections.
    pub tls: Tls,
    /// Longest wait for a connection, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Longest wait for the answer to one request, retries included, in milliseconds; then the call fails.
    pub request_timeout_ms: u64,
    /// A read that is not answered after this many milliseconds is also sent to another replica; 0: never.
    pub second_read_ms: u64,
    /// Reads and conditional writes at once (R6.7).
    pub requests: usize,
    /// Requests with rows to be written that are under way to one node. What comes meanwhile goes with the next: more of
    /// them cost more CPU, everywhere, and wait less for each other.
    pub writes_at_once: usize,
    /// Most rows of a request.
    pub batch_rows: usize,
    /// Most bytes of a request's rows, but for one that is larger alone. Below what the cluster refuses:
    /// `batch_size_fail_threshold` (50 KiB in Cassandra, 1 MiB in ScyllaDB).
    pub batch_bytes: usize,
    /// Most rows that wait to be written; a call that would make it more is refused as overloaded.
    pub queue_rows: usize,
    /// Calls at once, those included that wait for their turn; one more is refused as overloaded.
    pub calls: usize,
    /// Longest wait of a request for its turn, in milliseconds; then the call fails as overloaded.
    pub queue_wait_ms: u64,
    /// How long a stream's rows are kept, in seconds. They go up to a thirtieth of it later.
    pub stream_ttl_s: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: vec!["127.0.0.1:9042".to_owned()],
            keyspace: "eshaar".to_owned(),
            datacenter: String::new(),
            replication: Replication::default(),
            username: String::new(),
            password: Secret::default(),
            password_file: None,
            tls: Tls::default(),
            connect_timeout_ms: 5_000,
            request_timeout_ms: 5_000,
            second_read_ms: 250,
            requests: 50,
            writes_at_once: 2,
            batch_rows: 64,
            batch_bytes: 40 * 1024,
            queue_rows: 20_000,
            calls: 4_096,
            queue_wait_ms: 2_000,
            stream_ttl_s: 30 * 24 * 3600,
        }
    }
}

/// How many copies there are of each row, and where.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Replication {
    /// Whether the copies are spread over racks and counted by datacenter.
    pub strategy: Strategy,
    /// Copies; with `network_topology`, in each datacenter, or in the one that is named.
    pub factor: u8,
}

impl Default for Replication {
    fn default() -> Self {
        Self { strategy: Strategy::NetworkTopology, factor: 3 }
    }
}

/// A replication strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// `NetworkTopologyStrategy`.
    NetworkTopology,
    /// `SimpleStrategy`: one datacenter, no racks.
    Simple,
}

/// Encryption of the connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Whether connections are encrypted, and the nodes' certificates checked against their addresses.
    pub enabled: bool,
    /// The authority that signed the nodes' certificates, PEM; the system's where it is not given.
    pub ca_file: Option<PathBuf>,
}

impl Options {
    /// The keyspace is put into statements as it is.
    pub(super) fn keyspace_is_a_name(&self) -> bool {
        let bytes = self.keyspace.as_bytes();
        let allowed = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_';
        bytes.len() <= 48 && bytes.first().is_some_and(u8::is_ascii_lowercase) && bytes.iter().all(allowed)
    }

    pub(super) const fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    pub(super) const fn queue_wait(&self) -> Duration {
        Duration::from_millis(self.queue_wait_ms)
    }

    pub(super) fn stream_ttl_ms(&self) -> i64 {
        i64::try_from(self.stream_ttl_s.saturating_mul(1_000)).unwrap_or(i64::MAX)
    }

    /// The span of time that one mark of a lane stands for: a thirtieth of the streams' time to live.
    pub(super) fn mark_span_ms(&self) -> i64 {
        (self.stream_ttl_ms() / 30).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_printed() {
        let options = Options { password: "hunter2".to_owned().into(), ..Options::default() };
        assert!(!format!("{options:?}").contains("hunter2"));
    }

    #[test]
    fn a_keyspace_is_a_plain_name() {
        for (name, allowed) in [("eshaar", true), ("e_2", true), ("", false), ("2e", false), ("a; DROP", false)] {
            let options = Options { keyspace: name.to_owned(), ..Options::default() };
            assert_eq!(options.keyspace_is_a_name(), allowed, "{name}");
        }
        assert!(!Options { keyspace: "e".repeat(49), ..Options::default() }.keyspace_is_a_name());
    }
}
