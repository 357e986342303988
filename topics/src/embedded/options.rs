//! What can be set about the embedded log.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// Options of the embedded log. Every bound is per process.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Directory of `log.db`; created where it is missing. One process at a time has it open for writing.
    pub dir: PathBuf,
    /// Bytes of records that may wait to be committed. An append that finds no room waits for it.
    pub queue_bytes: u32,
    /// Bytes of the newest records of a partition that are served from memory; older ones are read from the file.
    pub tail_bytes: usize,
    /// How long records of a quiet partition stay in memory, in milliseconds; the file has them.
    pub tail_ms: u64,
    /// Bytes of records that a partition of a memory topic holds. The oldest go when it is full.
    pub memory_topic_bytes: usize,
    /// Bytes that a reader that lags behind memory reads from the file at a time.
    pub read_ahead_bytes: usize,
    /// Connections to the file that readers share.
    pub readers: usize,
    /// How long a member of a group may take to give a partition up, in milliseconds (kafka-rules 9).
    pub revoke_timeout_ms: u64,
    /// How often records that are past their time are looked for, in milliseconds.
    pub sweep_interval_ms: u64,
    /// Bytes that the file may grow to. Appends fail with `Unknown` while it is full.
    pub max_file_bytes: u64,
    /// Bytes of the write-ahead log after which it is moved into the file.
    pub checkpoint_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("data"),
            queue_bytes: 16 << 20,
            tail_bytes: 512 << 10,
            tail_ms: 10_000,
            memory_topic_bytes: 8 << 20,
            read_ahead_bytes: 1 << 20,
            readers: 4,
            revoke_timeout_ms: 20_000,
            sweep_interval_ms: 10_000,
            max_file_bytes: 64 << 30,
            checkpoint_bytes: 8 << 20,
        }
    }
}

impl Options {
    /// The defaults, in `dir`.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), ..Self::default() }
    }

    pub(super) const fn revoke_timeout(&self) -> Duration {
        Duration::from_millis(self.revoke_timeout_ms)
    }

    pub(super) const fn sweep_interval(&self) -> Duration {
        Duration::from_millis(self.sweep_interval_ms)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_has_its_default_and_a_wrong_key_is_named() {
        let options: Options = toml::from_str("dir = \"/somewhere\"\ntail_ms = 5").unwrap();
        assert_eq!(options.tail_ms, 5);
        assert_eq!(options.readers, Options::default().readers);
        let error = toml::from_str::<Options>("tail_sm = 5").unwrap_err();
        assert!(error.to_string().contains("tail_sm"));
    }
}
