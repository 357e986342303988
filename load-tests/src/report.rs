//! What a run found: a table for people, JSON for programs, and the reasons for which it failed.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use crate::accounts::Verdict;
use crate::cancels;
use crate::failed::Failed;
use crate::measure::{Percentiles, Totals};
use crate::procfs::Machine;
use crate::reconnects;
use crate::scenario::Checks;
use crate::watch::Usage;
use crate::webhooks::Told;

/// The report of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The scenario's name.
    pub scenario: String,
    /// The command line.
    pub command: String,
    /// Where it ran.
    pub machine: Machine,
    /// From the first message due to the last one settled, in seconds.
    pub sending_s: f64,
    /// From the first message due until everything had arrived, in seconds.
    pub total_s: f64,
    /// Messages accepted a second, while sending.
    pub accepted_rate: f64,
    /// Messages that arrived a second, until everything had arrived.
    pub received_rate: f64,
    /// What the books of the recipients say.
    pub accounts: Verdict,
    /// What history says, of so many recipients.
    pub history: Option<(u32, Verdict)>,
    /// From due to accepted.
    pub accept_ms: Percentiles,
    /// From due to received, recipients that were connected all the time.
    pub steady_ms: Percentiles,
    /// From due to received, the others.
    pub other_ms: Percentiles,
    /// Connections, acks, retries.
    pub traffic: Traffic,
    /// How recipients came back after their sessions broke.
    pub reconnects: reconnects::Report,
    /// Answers to cancellations and look-ups, where there were any.
    pub cancels: Option<cancels::Report>,
    /// From process start to serving, for each start of a spawned server, in milliseconds.
    pub starts_ms: Vec<f64>,
    /// From SIGTERM to the end of a process, for each that was told to stop, in milliseconds.
    pub stops_ms: Vec<f64>,
    /// What stages failed on; `None` for a server that was not spawned.
    pub failed: Option<Failed>,
    /// What the good endpoint for webhooks was told, where there is one.
    pub webhook: Option<Told>,
    /// Whether sending ended before everything was sent, since nobody answered.
    pub gave_up: bool,
    /// CPU and memory.
    pub usage: Usage,
    /// Why the run failed; empty where it did not.
    pub failures: Vec<String>,
}

/// Totals of a run that are no messages.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Traffic {
    /// Sessions opened.
    pub sessions: u64,
    /// Sessions that failed to open.
    pub sessions_failed: u64,
    /// Acks sent.
    pub acks: u64,
    /// Cursors that the server did not know.
    pub gaps: u64,
    /// Frames and closes that the protocol forbids.
    pub protocol_errors: u64,
    /// Requests sent again, by reason: connection, timeout, status.
    pub retries: (u64, u64, u64),
}

impl From<&Totals> for Traffic {
    fn from(totals: &Totals) -> Self {
        Self {
            sessions: totals.sessions.get(),
            sessions_failed: totals.sessions_failed.get(),
            acks: totals.acks.get(),
            gaps: totals.gaps.get(),
            protocol_errors: totals.protocol_errors.get(),
            retries: (totals.retries_connection.get(), totals.retries_timeout.get(), totals.retries_status.get()),
        }
    }
}

impl Report {
    /// Fills in `failures`: whatever the scenario does not allow.
    pub fn judge(&mut self, checks: &Checks, recipients: u32) {
        let mut failures = Vec::new();
        accounts_failures(&mut failures, "received", &self.accounts);
        if let Some((_, history)) = &self.history {
            accounts_failures(&mut failures, "history", history);
        }
        let Traffic { gaps, protocol_errors, .. } = self.traffic;
        let mut forbid = |found: bool, why: String| {
            if found {
                failures.push(why);
            }
        };
        forbid(gaps > 0, format!("{gaps} cursors were not known to the server that had given them"));
        forbid(protocol_errors > 0, format!("{protocol_errors} frames or closes that the protocol forbids"));
        forbid(self.gave_up, "a sender had no answer for too long (give_up_ms): sending ended early".to_owned());
        forbid(self.accounts.refused > 0, format!("{} messages were refused", self.accounts.refused));
        if checks.no_attempts
            && let Some(failed) = self.failed.filter(|failed| failed.any())
        {
            forbid(true, format!("{failed}: none are allowed"));
        }
        let growth_mib = self.usage.growth() >> 20;
        let most_mib = checks.memory_growth_mib;
        forbid(
            most_mib > 0 && growth_mib > most_mib,
            format!("memory grew by {growth_mib} MiB, at most {most_mib} are allowed"),
        );
        let limit = |percentile: f64, limit_ms: u64| limit_ms > 0 && percentile > limit_ms as f64;
        let Percentiles { p95, p99, .. } = self.steady_ms;
        forbid(limit(p95, checks.p95_ms), format!("p95 is {p95:.1} ms, at most {} ms are allowed", checks.p95_ms));
        forbid(limit(p99, checks.p99_ms), format!("p99 is {p99:.1} ms, at most {} ms are allowed", checks.p99_ms));
        let reconnects::Report { ends, most_connects, caught_up_ms, stream_reads, away, .. } = &self.reconnects;
        let (most, caught_up) = (checks.most_connects, caught_up_ms.max);
        forbid(
            most > 0 && *most_connects > most,
            format!("a recipient connected {most_connects} times again, at most {most} are allowed"),
        );
        forbid(
            limit(caught_up, checks.caught_up_ms),
            format!("a recipient was caught up after {caught_up:.0} ms, at most {} are allowed", checks.caught_up_ms),
        );
        forbid(checks.caught_up_ms > 0 && *away > 0, format!("{away} recipients did not come back"));
        let ends = ends.values().sum::<u64>();
        forbid(
            u64::try_from(checks.most_ends).is_ok_and(|most| ends > most),
            format!("{ends} sessions were closed or refused, at most {} are allowed", checks.most_ends),
        );
        let read = stream_reads.get("check").copied().unwrap_or(0) as f64;
        let allowed = checks.stream_reads_each * f64::from(recipients);
        forbid(
            checks.stream_reads_each >= 0.0 && read > allowed,
            format!("{read} streams were checked, at most {allowed}"),
        );
        let rate = self.accepted_rate.min(self.received_rate);
        let wanted = checks.min_rate;
        forbid(rate < wanted as f64, format!("{rate:.0} messages a second, at least {wanted} are wanted"));
        if let Some(told) = &self.webhook {
            failures.extend(told.failures(self.accounts.accepted));
        }
        if let Some(cancels) = &self.cancels {
            failures.extend(cancels.failures(&self.accounts, checks));
        }
        self.failures = failures;
    }
}

fn accounts_failures(failures: &mut Vec<String>, whose: &str, verdict: &Verdict) {
    for (count, what) in [
        (verdict.lost, "lost"),
        (verdict.duplicated, "duplicated"),
        (verdict.out_of_order, "out of order"),
        (verdict.unexpected, "unexpected"),
        (verdict.cancelled.after, "after the cancellation was answered"),
    ] {
        if count > 0 {
            failures.push(format!("{whose}: {count} {what}"));
        }
    }
}

/// Prints a report, and writes it as JSON where a file is named.
pub fn publish<R: fmt::Display + Serialize>(report: &R, json: Option<&Path>) -> anyhow::Result<()> {
    write!(std::io::stdout().lock(), "{report}").context("printing the report")?;
    if let Some(path) = json {
        let text = serde_json::to_vec_pretty(report)?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}\n{}\n{}", self.scenario, self.machine, self.command)?;
        writeln!(
            f,
            "\n{:.1} s sending, {:.1} s in all · {:.0} accepted/s, {:.0} received/s",
            self.sending_s, self.total_s, self.accepted_rate, self.received_rate
        )?;
        write_accounts(f, &self.accounts, self.history.as_ref())?;
        write_percentiles_head(f, "latency from due, ms")?;
        for (name, percentiles) in [
            ("accepted", &self.accept_ms),
            ("received (steady)", &self.steady_ms),
            ("received (others)", &self.other_ms),
        ] {
            write_percentiles(f, name, percentiles)?;
        }
        write_percentiles(f, "back at the head", &self.reconnects.caught_up_ms)?;
        self.traffic.fmt(f)?;
        self.reconnects.fmt(f)?;
        if let Some(cancels) = &self.cancels {
            cancels.write(f, &self.accounts)?;
        }
        for (name, times, until) in [("starts", &self.starts_ms, "serving"), ("stops", &self.stops_ms, "the end")] {
            let times: Vec<String> = times.iter().map(|ms| format!("{ms:.0}")).collect();
            if !times.is_empty() {
                writeln!(f, "{name:<21}{} ms to {until}", times.join(", "))?;
            }
        }
        if let Some(failed) = &self.failed {
            writeln!(f, "stages failed        {failed}")?;
        }
        if let Some(told) = &self.webhook {
            writeln!(
                f,
                "webhook              {} sent, {} delivered, {} repeats, {} out of order; caught up {:.0} ms after the last \
                 message; {} requests to hostile endpoints",
                told.sent, told.delivered, told.repeats, told.out_of_order, told.caught_up_ms, told.hostile_requests
            )?;
        }
        self.usage.fmt(f)?;
        for failure in &self.failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        writeln!(f, "{}", if self.failures.is_empty() { "passed" } else { "failed" })
    }
}

fn write_accounts(f: &mut fmt::Formatter<'_>, books: &Verdict, history: Option<&(u32, Verdict)>) -> fmt::Result {
    writeln!(
        f,
        "\n{:<20} {:>9} {:>9} {:>8} {:>8} {:>6} {:>10} {:>12} {:>10}",
        "accounts", "accepted", "received", "refused", "unknown", "lost", "duplicated", "out of order", "unexpected"
    )?;
    let history = history.map(|(recipients, verdict)| (format!("history of {recipients}"), verdict));
    for (name, verdict) in [("recipients".to_owned(), books)].into_iter().chain(history) {
        writeln!(
            f,
            "{name:<20} {:>9} {:>9} {:>8} {:>8} {:>6} {:>10} {:>12} {:>10}",
            verdict.accepted,
            verdict.received,
            verdict.refused,
            verdict.unknown,
            verdict.lost,
            verdict.duplicated,
            verdict.out_of_order,
            verdict.unexpected
        )?;
        for example in &verdict.examples {
            let mut seq = String::new();
            example.seq.map_or(Ok(()), |number| write!(seq, ", message {number}"))?;
            let detail = example.detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
            writeln!(f, "  {:?}: recipient {}{seq}{detail}", example.violation, example.recipient)?;
        }
    }
    Ok(())
}

/// The head of the table of latencies.
pub fn write_percentiles_head(f: &mut fmt::Formatter<'_>, title: &str) -> fmt::Result {
    writeln!(
        f,
        "\n{title:<21} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "count", "mean", "p50", "p95", "p99", "p99.9", "max"
    )
}

/// A row of the table of latencies.
pub fn write_percentiles(f: &mut fmt::Formatter<'_>, name: &str, percentiles: &Percentiles) -> fmt::Result {
    let Percentiles { count, mean, p50, p95, p99, p999, max } = percentiles;
    if *count == 0 {
        return Ok(());
    }
    writeln!(f, "{name:<21} {count:>9} {mean:>8.2} {p50:>8.2} {p95:>8.2} {p99:>8.2} {p999:>8.2} {max:>8.1}")
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sessions, sessions_failed, acks, gaps, protocol_errors, retries } = self;
        writeln!(f, "\nsessions             {sessions} opened, {sessions_failed} failed to; {acks} acks, {gaps} gaps")?;
        writeln!(
            f,
            "requests again       {} connection, {} timeout, {} status; {protocol_errors} protocol errors",
            retries.0, retries.1, retries.2
        )
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, memory_mib, kernel, commit } = self;
        write!(f, "commit {commit} · {cores} × {cpu}, {memory_mib} MiB, Linux {kernel}")
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(f, "\nCPU, µs a message    {:>8.1} load generator", self.client_us_per_message)?;
        if self.resident_before == 0 {
            return Ok(());
        }
        writeln!(f, "                     {:>8.1} server, of which", self.server_us_per_message)?;
        for group in self.server_threads.iter().filter(|group| group.us_per_message >= 0.05) {
            writeln!(f, "                     {:>8.1}   {}", group.us_per_message, group.name)?;
        }
        writeln!(
            f,
            "server memory, MiB   {:>8.1} before, {:.1} at most, {:.1} after",
            mib(self.resident_before),
            mib(self.resident_peak),
            mib(self.resident_after)
        )?;
        let over_time: Vec<String> =
            self.resident_over_time.iter().map(|bytes| format!("{:.0}", mib(*bytes))).collect();
        writeln!(f, "                     in equal steps of time: {}", over_time.join(" "))
    }
}
