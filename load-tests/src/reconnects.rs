//! How clients came back after their sessions broke: as apps do, by what the server tells them, and otherwise later each time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng as _;
use serde::Serialize;

use crate::measure::{Latencies, Percentiles};
use crate::session::SessionError;

/// First pause without word from the server, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is counted of a run.
#[derive(Debug)]
pub struct Reconnects {
    /// What the server closed sessions with, or refused them with, and how often.
    ends: Mutex<BTreeMap<String, u64>>,
    /// Connections of each recipient that reached a gateway, but for its first.
    connects: Vec<AtomicU32>,
    /// From the end of a session to the head of the stream in the next.
    caught_up: Latencies,
    /// Recipients whose session has ended and who are not at the head again.
    away: AtomicU32,
}

/// The figures of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// What the server closed sessions with, or refused them with, and how often.
    pub ends: BTreeMap<String, u64>,
    /// The most connections of one recipient, but for its first.
    pub most_connects: u32,
    /// The mean of those who connected again.
    pub mean_connects: f64,
    /// From the end of a session to the head of the stream in the next.
    pub caught_up_ms: Percentiles,
    /// Recipients who were not back at the end.
    pub away: u32,
    /// Reads of streams by the gateways that run at the end, by cause.
    pub stream_reads: BTreeMap<String, u64>,
}

impl Reconnects {
    /// Of so many recipients.
    pub fn new(recipients: u32) -> anyhow::Result<Self> {
        let connects = (0..recipients).map(|_| AtomicU32::new(0)).collect();
        Ok(Self { ends: Mutex::default(), connects, caught_up: Latencies::new()?, away: AtomicU32::new(0) })
    }

    /// A session was closed or refused for this.
    pub fn ended(&self, why: impl fmt::Display) {
        *self.ends.lock().entry(why.to_string()).or_default() += 1;
    }

    /// A recipient reached a gateway again.
    pub fn connected(&self, recipient: u32) {
        self.connects[recipient as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A recipient's session ended.
    pub fn left(&self) {
        self.away.fetch_add(1, Ordering::Relaxed);
    }

    /// How many are not back.
    pub fn away(&self) -> u32 {
        self.away.load(Ordering::Relaxed)
    }

    /// A recipient is at the head again.
    pub fn caught_up(&self, after: Duration) {
        self.away.fetch_sub(1, Ordering::Relaxed);
        self.caught_up.record(&[u64::try_from(after.as_micros()).unwrap_or(u64::MAX)]);
    }

    /// The figures, with what the gateways show at `/metrics`.
    pub fn report(&self, metrics: &[String]) -> Report {
        let connects: Vec<u32> =
            self.connects.iter().map(|connects| connects.load(Ordering::Relaxed)).filter(|count| *count > 0).collect();
        let mut stream_reads = BTreeMap::new();
        for line in metrics.iter().flat_map(|shown| shown.lines()) {
            let Some(rest) = line.strip_prefix("eshaar_gateway_stream_reads_total{cause=\"") else { continue };
            let Some((cause, count)) = rest.split_once("\"} ") else { continue };
            *stream_reads.entry(cause.to_owned()).or_default() += count.parse::<u64>().unwrap_or(0);
        }
        Report {
            ends: self.ends.lock().clone(),
            most_connects: connects.iter().copied().max().unwrap_or(0),
            mean_connects: f64::from(connects.iter().sum::<u32>()) / connects.len().max(1) as f64,
            caught_up_ms: self.caught_up.percentiles(),
            away: self.away(),
            stream_reads,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |counts: &BTreeMap<String, u64>| {
            counts.iter().map(|(what, count)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
        };
        let Self { ends, most_connects, mean_connects, stream_reads, away, .. } = self;
        let ended = if ends.is_empty() { "none by the server".to_owned() } else { list(ends) };
        writeln!(f, "sessions ended       {ended}")?;
        writeln!(f, "connected again      {mean_connects:.2} times each, {most_connects} at most; {away} not back")?;
        writeln!(f, "stream reads         {}", list(stream_reads))
    }
}

/// When a client connects again.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: FIRST_PAUSE }
    }
}

impl Backoff {
    /// The session opened and reached the head.
    pub fn reset(&mut self) {
        self.pause = FIRST_PAUSE;
    }

    /// How long to stay away: as the server said; where it said nothing, longer each time.
    pub fn next(&mut self, told: Option<Duration>) -> Duration {
        if let Some(told) = told {
            return told;
        }
        let pause = self.pause.mul_f64(rand::rng().random_range(0.5..1.0));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

/// The status of a refused upgrade, and how long the server wants us to stay away; `None` where no server answered.
pub fn refusal(error: &SessionError) -> Option<(u16, Option<Duration>)> {
    let SessionError::WebSocket(error) = error else { return None };
    let tokio_tungstenite::tungstenite::Error::Http(response) = &**error else { return None };
    let after = response.headers().get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Some((response.status().as_u16(), after.map(Duration::from_secs)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_client_does_what_it_is_told_and_else_comes_back_later_each_time() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(Some(Duration::from_millis(7))), Duration::from_millis(7));
        for longest in [1, 2, 4, 8, 16, 30, 30] {
            let pause = backoff.next(None);
            assert!((longest * 500..=longest * 1_000).contains(&(pause.as_millis() as u64)), "{pause:?}");
        }
        backoff.reset();
        assert!(backoff.next(None) <= Duration::from_secs(1));
    }

    #[test]
    fn ends_connections_and_reads_are_counted() {
        let reconnects = Reconnects::new(3).unwrap();
        reconnects.left();
        reconnects.connected(1);
        reconnects.connected(1);
        reconnects.ended(4003);
        reconnects.caught_up(Duration::from_millis(1_500));
        let shown = "eshaar_gateway_stream_reads_total{cause=\"hello\"} 7\n".to_owned();
        let report = reconnects.report(&[shown.clone(), shown]);
        assert_eq!((report.most_connects, report.ends["4003"], report.stream_reads["hello"]), (2, 1, 14));
        assert!((report.caught_up_ms.max - 1_500.0).abs() < 2.0);
    }
}
