//! What an operator may set of the SQLite store.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Options of the SQLite store. Its memory is the sum of the caches and what waits in the queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The database file; its folder must be there. SQLite keeps `-wal` and `-shm` beside it.
    pub path: PathBuf,
    /// How long a stream's rows are kept, in seconds. They go up to a thirtieth of it later.
    pub stream_ttl_s: u64,
    /// Threads that read, each with a connection of its own.
    pub readers: usize,
    /// Page cache of the writing connection, in KiB.
    pub write_cache_kib: u32,
    /// Page cache of each reading connection, in KiB.
    pub read_cache_kib: u32,
    /// Stream rows whose index entries wait in memory, about 100 B each, to be written in the order of the index. More
    /// make writing cheaper, and opening after a crash slower (some ten thousand rows are read again in 0.1 s).
    pub index_rows: u32,
    /// Rows that may wait to be written. A call that finds no room waits, at most `queue_wait_ms`.
    pub queue_rows: u32,
    /// Reads that may wait.
    pub queue_reads: u32,
    /// Longest wait for room in a queue, in milliseconds; then the call fails as overloaded.
    pub queue_wait_ms: u64,
    /// The write-ahead log is copied into the database file whenever it has grown to this many pages of 4 KiB.
    pub checkpoint_pages: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            path: PathBuf::from("store.db"),
            stream_ttl_s: 30 * 24 * 3600,
            readers: 2,
            write_cache_kib: 8 * 1024,
            read_cache_kib: 2 * 1024,
            index_rows: 16_384,
            queue_rows: 20_000,
            queue_reads: 1_024,
            queue_wait_ms: 2_000,
            checkpoint_pages: 4_000,
        }
    }
}

impl Options {
    /// The defaults, with the database at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    pub(super) fn queue_wait(&self) -> Duration {
        Duration::from_millis(self.queue_wait_ms)
    }
}
