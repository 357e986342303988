//! What is counted while a run goes on: latencies and totals. Cheap to write from every task.

use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

/// Highest latency told apart, in microseconds (10 minutes); a longer one counts as this.
const MAX_US: u64 = 600_000_000;

/// Latencies in microseconds, to three digits.
#[derive(Debug)]
pub struct Latencies {
    histogram: Mutex<Histogram<u64>>,
}

/// The figures of a histogram, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many were measured.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Half are at most this.
    pub p50: f64,
    /// 95 % are.
    pub p95: f64,
    /// 99 % are.
    pub p99: f64,
    /// 99.9 % are.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Latencies {
    /// Without any yet.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { histogram: Mutex::new(Histogram::new_with_bounds(1, MAX_US, 3)?) })
    }

    /// Counts some, of one burst: one lock.
    pub fn record(&self, latencies_us: &[u64]) {
        if latencies_us.is_empty() {
            return;
        }
        let mut histogram = self.histogram.lock();
        for latency in latencies_us {
            histogram.saturating_record((*latency).clamp(1, MAX_US));
        }
    }

    /// The figures so far.
    pub fn percentiles(&self) -> Percentiles {
        let histogram = self.histogram.lock();
        let ms = |us: u64| us as f64 / 1_000.0;
        let at = |quantile| ms(histogram.value_at_quantile(quantile));
        Percentiles {
            count: histogram.len(),
            mean: histogram.mean() / 1_000.0,
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: ms(histogram.max()),
        }
    }
}

/// Totals that tasks add to and the progress bar reads.
#[derive(Debug, Default)]
pub struct Totals {
    /// Messages accepted.
    pub accepted: Counter,
    /// Messages refused or given up.
    pub abandoned: Counter,
    /// Different messages received.
    pub received: Counter,
    /// Those of them received by steady recipients.
    pub received_steady: Counter,
    /// Sessions that reached the head for the first time.
    pub ready: Counter,
    /// WebSocket sessions opened.
    pub sessions: Counter,
    /// WebSocket sessions that failed to open.
    pub sessions_failed: Counter,
    /// Acks sent.
    pub acks: Counter,
    /// `gap` frames: the server did not know a cursor that it had given.
    pub gaps: Counter,
    /// Frames that were none, `error` frames, and closes that forbid to come back.
    pub protocol_errors: Counter,
    /// Requests sent again: no connection, or it broke.
    pub retries_connection: Counter,
    /// Requests sent again: no answer in time.
    pub retries_timeout: Counter,
    /// Requests sent again: 409, 429 or 5xx.
    pub retries_status: Counter,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn one(&self) {
        self.add(1);
    }

    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Takes the next number, from 0.
    pub fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// The total so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_in_milliseconds_and_an_outlier_is_kept() {
        let latencies = Latencies::new().unwrap();
        latencies.record(&[1_000; 99]);
        latencies.record(&[u64::MAX]);
        let percentiles = latencies.percentiles();
        assert_eq!(percentiles.count, 100);
        assert!((percentiles.p95 - 1.0).abs() < 0.01, "{percentiles:?}");
        assert!(percentiles.max >= 600_000.0);
    }
}
