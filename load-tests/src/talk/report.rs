//! What came of it.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::readers::HitRate;
use super::recount::Verdict;
use super::{Machine, Talk};
use crate::measure::Percentiles;
use crate::report::{write_percentiles, write_percentiles_head};

/// The report of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    scenario: String,
    command: String,
    machine: Machine,
    seconds: f64,
    said: u64,
    said_rate: f64,
    repeated: u64,
    sessions: u64,
    gaps: u64,
    refused: Vec<String>,
    accounts: Verdict,
    /// From meaning to say it to being told that it is kept, and to the other side having it.
    latencies_ms: Vec<(&'static str, Percentiles)>,
    reads_ms: Vec<(&'static str, Percentiles)>,
    failed_reads: u64,
    hit_rate: HitRate,
    /// Whatever the scenario does not allow.
    pub failures: Vec<String>,
}

impl Report {
    pub(super) fn new(
        scenario: String,
        lasted: Duration,
        talk: &Talk,
        accounts: Verdict,
        (reads_ms, failed_reads): (Vec<(&'static str, Percentiles)>, u64),
        hit_rate: HitRate,
    ) -> Self {
        let (said, seconds) = (talk.said.get(), lasted.as_secs_f64());
        let latencies_ms = vec![
            ("phone sends", talk.sent_by_phone.percentiles()),
            ("business sends", talk.sent_by_business.percentiles()),
            ("phone hears", talk.heard_by_phone.percentiles()),
            ("agent hears", talk.heard_by_agent.percentiles()),
        ];
        let mut report = Self {
            scenario,
            command: std::env::args().collect::<Vec<_>>().join(" "),
            machine: Machine::here(),
            seconds,
            said,
            said_rate: said as f64 / seconds,
            repeated: talk.repeated.get(),
            sessions: talk.sessions.get(),
            gaps: talk.gaps.get(),
            refused: talk.refused.lock().clone(),
            accounts,
            latencies_ms,
            reads_ms,
            failed_reads,
            hit_rate,
            failures: Vec::new(),
        };
        report.judge(talk);
        report
    }

    fn judge(&mut self, talk: &Talk) {
        let checks = &talk.scenario.checks;
        let is_calm = talk.scenario.chaos.kills == 0 && talk.scenario.chaos.events.is_empty();
        let of = |name: &str| self.reads_ms.iter().find(|(of, _)| *of == name).map(|(_, ms)| ms.clone());
        let mut failures = Vec::new();
        let mut forbid = |found: bool, why: String| {
            if found {
                failures.push(why);
            }
        };
        forbid(!self.accounts.is_clean(), format!("not all is as it should be: {:?}", self.accounts));
        forbid(!self.refused.is_empty(), format!("{} were refused, or not understood", self.refused.len()));
        forbid(self.gaps > 0, format!("{} cursors were not known to the server that had given them", self.gaps));
        forbid(is_calm && self.failed_reads > 0, format!("{} reads failed", self.failed_reads));
        let over = |limit: u64, ms: Option<f64>| limit > 0 && ms.is_none_or(|ms| ms > limit as f64);
        let p95 = of("all reads").map(|ms| ms.p95);
        forbid(over(checks.reads_p95_ms, p95), format!("p95 of the reads is over {} ms", checks.reads_p95_ms));
        let p99 = of("newest messages").map(|ms| ms.p99);
        forbid(over(checks.history_p99_ms, p99), format!("p99 of history is over {} ms", checks.history_p99_ms));
        let hits = self.hit_rate.overall();
        forbid(hits < checks.hit_rate, format!("{:.1} % of look-ups were hits", hits * 100.0));
        let slow = self.said_rate < checks.min_rate as f64;
        forbid(slow, format!("{:.0} messages/s, at least {} are wanted", self.said_rate, checks.min_rate));
        self.failures = failures;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}\n{}\n{}", self.scenario, self.machine, self.command)?;
        writeln!(
            f,
            "\n{} said in {:.1} s · {:.0} messages/s · {} requests repeated, {} sessions, {} gaps",
            self.said, self.seconds, self.said_rate, self.repeated, self.sessions, self.gaps
        )?;
        let Verdict { stand, heard, lost, duplicated, disordered, miscounted, examples } = &self.accounts;
        writeln!(f, "{stand} stand in conversations, {heard} heard by phones")?;
        writeln!(
            f,
            "{lost} lost, {duplicated} duplicated, {disordered} out of order, {miscounted} unread counts wrong"
        )?;
        examples.iter().try_for_each(|example| writeln!(f, "  {example}"))?;
        self.refused.iter().take(10).try_for_each(|refused| writeln!(f, "  refused: {refused}"))?;
        write_percentiles_head(f, "latency from due, ms")?;
        for (name, percentiles) in self.latencies_ms.iter().chain(&self.reads_ms) {
            write_percentiles(f, name, percentiles)?;
        }
        if !self.hit_rate.of.is_empty() {
            let each = self.hit_rate.of.iter().map(|(cache, (hits, lookups))| format!("{cache} {hits} of {lookups}"));
            let each = each.collect::<Vec<_>>().join(", ");
            writeln!(f, "\n{:.1} % of look-ups were hits: {each}", self.hit_rate.overall() * 100.0)?;
        }
        if self.failed_reads > 0 {
            writeln!(f, "{} reads failed", self.failed_reads)?;
        }
        self.failures.iter().try_for_each(|failure| writeln!(f, "FAILED: {failure}"))?;
        writeln!(f, "{}", if self.failures.is_empty() { "passed" } else { "failed" })
    }
}
