//! What Linux knows of a process: its memory, and which of its threads used the CPU. And of the machine.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use ahash::HashMap;
use serde::Serialize;

/// Resident memory of a process, in bytes; `None` where it is gone.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Descriptors that are no connections: standard streams, the runtime's, files.
const OTHER_DESCRIPTORS: u64 = 200;

/// An error where this process may not open so many connections at once.
pub fn ensure_descriptors(connections: u64) -> anyhow::Result<()> {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    // "unlimited", or no such file: then it will be seen.
    let limit = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    if let Some(limit) = limit {
        anyhow::ensure!(
            connections + OTHER_DESCRIPTORS <= limit,
            "{connections} connections need more than the {limit} open files allowed (ulimit -n)"
        );
    }
    Ok(())
}

/// CPU time by thread, of one process or of several that followed one another.
///
/// A thread that ends between two samples loses what it used since the last one: sample about once a second.
#[derive(Debug, Default)]
pub struct CpuByThread {
    threads: HashMap<(u32, u32), Thread>,
}

#[derive(Debug)]
struct Thread {
    group: String,
    /// Used before the measurement began.
    before: Duration,
    /// Used until the last sample.
    now: Duration,
}

impl CpuByThread {
    /// Looks at the threads of `pid` now; `role` goes before their names. A thread seen for the first time has used all its time within the measurement,
    /// unless `begin`.
    pub fn sample(&mut self, role: &str, pid: u32, begin: bool) {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return };
        for task in tasks.flatten() {
            let Some(tid) = task.file_name().to_str().and_then(|tid| tid.parse().ok()) else { continue };
            let Some(used) = thread_time(pid, tid) else { continue };
            let thread = self.threads.entry((pid, tid)).or_insert_with(|| Thread {
                group: group_of(role, &fs::read_to_string(task.path().join("comm")).unwrap_or_default()),
                before: if begin { used } else { Duration::ZERO },
                now: used,
            });
            thread.now = thread.now.max(used);
        }
    }

    /// CPU time by thread group.
    pub fn by_group(&self) -> BTreeMap<String, Duration> {
        let mut groups = BTreeMap::new();
        for thread in self.threads.values() {
            *groups.entry(thread.group.clone()).or_default() += thread.now.saturating_sub(thread.before);
        }
        groups
    }

    /// CPU time of all threads.
    pub fn total(&self) -> Duration {
        self.threads.values().map(|thread| thread.now.saturating_sub(thread.before)).sum()
    }
}

/// Time on a CPU, to the nanosecond (`schedstat`, its first field).
fn thread_time(pid: u32, tid: u32) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

fn group_of(role: &str, thread: &str) -> String {
    let group = thread_group(thread);
    if role.is_empty() { group } else { format!("{role} · {group}") }
}

/// Threads that differ by a number at the end are one group: `log-writer-3` is `log-writer`.
fn thread_group(name: &str) -> String {
    let name = name.trim();
    let group = name.trim_end_matches(|char: char| char.is_ascii_digit()).trim_end_matches(['-', '_', '#', ':']);
    if group.is_empty() { name.to_owned() } else { group.to_owned() }
}

/// Where the figures were measured.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// CPU model.
    pub cpu: String,
    /// How many of them.
    pub cores: usize,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Kernel release.
    pub kernel: String,
    /// The commit of the source tree that the tool was started in.
    pub commit: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let first = |path, key: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(key));
            line.and_then(|line| line.split(':').nth(1))
                .map_or_else(|| "unknown".to_owned(), |value| value.trim().to_owned())
        };
        let memory_kib = first("/proc/meminfo", "MemTotal");
        Self {
            cpu: first("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory_kib.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            commit: commit(),
        }
    }
}

fn commit() -> String {
    let output = std::process::Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=10"]).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_differ_by_a_number_are_one_group() {
        for (name, group) in [("log-writer-3\n", "log-writer"), ("route#1", "route"), ("42", "42"), ("main", "main")] {
            assert_eq!(thread_group(name), group);
        }
    }

    #[test]
    fn a_process_knows_its_memory_and_the_time_of_its_threads() {
        let pid = std::process::id();
        assert!(resident_bytes(pid).unwrap() > 100_000);
        let mut cpu = CpuByThread::default();
        cpu.sample("", pid, true);
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        cpu.sample("", pid, false);
        assert!(cpu.total() > Duration::ZERO);
        assert_eq!(cpu.total(), cpu.by_group().values().sum());
    }

    #[test]
    fn a_process_that_is_gone_has_no_memory() {
        assert_eq!(resident_bytes(u32::MAX), None);
    }
}
