//! Watches the server's processes, and our own, while a run goes on: CPU by thread, memory.

use std::time::Duration;

use serde::Serialize;

use crate::procfs::{CpuByThread, resident_bytes};

/// A process of the server.
#[derive(Clone, Debug)]
pub struct Process {
    /// What it does; empty where one does everything.
    pub role: &'static str,
    /// Its id.
    pub pid: u32,
}

/// Samples from the beginning to the end of a measurement.
pub struct Watch {
    server: CpuByThread,
    client: CpuByThread,
    resident_before: Option<u64>,
    resident_peak: u64,
    resident_last: u64,
    /// Of each sample.
    resident: Vec<u64>,
}

/// Most values of memory over time that are shown.
const SHOWN: usize = 20;

/// CPU time of a group of threads, for each message.
#[derive(Clone, Debug, Serialize)]
pub struct ThreadGroup {
    /// Their name, without the number.
    pub name: String,
    /// Microseconds a message.
    pub us_per_message: f64,
}

/// What was used.
#[derive(Clone, Debug, Serialize)]
pub struct Usage {
    /// The server's CPU time, microseconds a message.
    pub server_us_per_message: f64,
    /// The same by group of threads, the busiest first.
    pub server_threads: Vec<ThreadGroup>,
    /// The load generator's CPU time, microseconds a message.
    pub client_us_per_message: f64,
    /// The server's resident memory at the beginning, in bytes.
    pub resident_before: u64,
    /// The highest that was sampled, in bytes.
    pub resident_peak: u64,
    /// At the end, in bytes.
    pub resident_after: u64,
    /// In steps of equal length from the beginning to the end, in bytes.
    pub resident_over_time: Vec<u64>,
}

impl Usage {
    /// By how much the server's memory grew at most, in bytes.
    pub const fn growth(&self) -> u64 {
        self.resident_peak.saturating_sub(self.resident_before)
    }
}

impl Watch {
    /// Begins to measure. `server` are the server's processes, where they are on this machine.
    pub fn begin(server: &[Process]) -> Self {
        let mut watch = Self {
            server: CpuByThread::default(),
            client: CpuByThread::default(),
            resident_before: None,
            resident_peak: 0,
            resident_last: 0,
            resident: Vec::new(),
        };
        watch.look(server, true);
        watch
    }

    /// Takes a sample: about once a second, and before a process is killed.
    pub fn sample(&mut self, server: &[Process]) {
        self.look(server, false);
    }

    fn look(&mut self, server: &[Process], begin: bool) {
        self.client.sample("", std::process::id(), begin);
        for Process { role, pid } in server {
            self.server.sample(role, *pid, begin);
        }
        let resident: u64 = server.iter().filter_map(|process| resident_bytes(process.pid)).sum();
        if resident > 0 {
            self.resident_before.get_or_insert(resident);
            self.resident_peak = self.resident_peak.max(resident);
            self.resident_last = resident;
            self.resident.push(resident);
        }
    }

    /// What was used for so many messages.
    pub fn usage(&self, messages: u64) -> Usage {
        let each = |used: Duration| used.as_secs_f64() * 1e6 / messages.max(1) as f64;
        let groups = self.server.by_group().into_iter();
        let mut server_threads: Vec<ThreadGroup> =
            groups.map(|(name, used)| ThreadGroup { name, us_per_message: each(used) }).collect();
        server_threads.sort_by(|left, right| right.us_per_message.total_cmp(&left.us_per_message));
        Usage {
            server_us_per_message: each(self.server.total()),
            server_threads,
            client_us_per_message: each(self.client.total()),
            resident_before: self.resident_before.unwrap_or(0),
            resident_peak: self.resident_peak,
            resident_after: self.resident_last,
            resident_over_time: self
                .resident
                .iter()
                .step_by(self.resident.len().div_ceil(SHOWN).max(1))
                .copied()
                .collect(),
        }
    }
}
