//! What apps and agents read meanwhile, by a timetable: a read that is late counts from when it was due.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use http::HeaderValue;
use parking_lot::Mutex;
use rand::Rng as _;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, Talk};
use crate::drive::Target;
use crate::http_client::Client;
use crate::measure::{Counter, Latencies, Percentiles};

/// The metric that counts look-ups.
const LOOKUPS: &str = "eshaar_cache_lookups_total{";

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    List,
    Unread,
    History,
}

impl Kind {
    const ALL: [(Self, &'static str); 3] =
        [(Self::List, "list"), (Self::Unread, "unread count"), (Self::History, "newest messages")];
}

/// How often caches had what was looked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct HitRate {
    /// By cache: hits, and look-ups.
    pub(super) of: BTreeMap<String, (u64, u64)>,
}

impl HitRate {
    fn read(metrics: &[String]) -> Self {
        let mut rate = Self::default();
        for line in metrics.iter().flat_map(|shown| shown.lines()) {
            let Some((labels, value)) = line.strip_prefix(LOOKUPS).and_then(|rest| rest.split_once("} ")) else {
                continue;
            };
            let label =
                |name: &str| labels.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split_once('"'));
            let (Some((cache, _)), Some((outcome, _))) = (label("cache"), label("outcome")) else { continue };
            let count = value.trim().parse::<f64>().unwrap_or_default() as u64;
            let of = rate.of.entry(cache.to_owned()).or_default();
            of.0 += if outcome == "hit" { count } else { 0 };
            of.1 += count;
        }
        rate
    }

    /// Since `before`.
    fn since(mut self, before: &Self) -> Self {
        for (cache, (hits, lookups)) in &before.of {
            if let Some(of) = self.of.get_mut(cache) {
                *of = (of.0.saturating_sub(*hits), of.1.saturating_sub(*lookups));
            }
        }
        self
    }

    /// Of all caches together.
    pub(super) fn overall(&self) -> f64 {
        let (hits, lookups) = self.of.values().fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
        hits as f64 / lookups.max(1) as f64
    }
}

/// Readers at work.
pub(super) struct Reads {
    shared: Arc<Shared>,
    readers: JoinSet<anyhow::Result<()>>,
    before: Mutex<Option<HitRate>>,
    talk: Arc<Talk>,
}

struct Shared {
    latencies: [Latencies; 3],
    all: Latencies,
    failed: Counter,
    warm_us: AtomicU64,
    stop: CancellationToken,
}

impl Reads {
    /// Starts them.
    pub(super) fn start(talk: &Arc<Talk>) -> anyhow::Result<Self> {
        let options = &talk.scenario.reads;
        let first_us = talk.clock.now_us();
        let shared = Arc::new(Shared {
            latencies: [Latencies::new()?, Latencies::new()?, Latencies::new()?],
            all: Latencies::new()?,
            failed: Counter::default(),
            warm_us: AtomicU64::new(first_us + options.warmup_ms * 1_000),
            stop: CancellationToken::new(),
        });
        let mut readers = JoinSet::new();
        if options.rate > 0 {
            let interval_us = 1e6 * f64::from(options.connections) / options.rate as f64;
            for place in 0..options.connections {
                let begins = first_us + (interval_us * f64::from(place) / f64::from(options.connections)) as u64;
                readers.spawn(read(Arc::clone(talk), Arc::clone(&shared), place, (begins, interval_us)));
            }
        }
        Ok(Self { shared, readers, before: Mutex::default(), talk: Arc::clone(talk) })
    }

    /// Notes what caches have counted when the warm-up is over.
    pub(super) async fn look(&self, target: &mut Target) -> anyhow::Result<()> {
        let is_warm = self.talk.clock.now_us() >= self.shared.warm_us.load(Ordering::Relaxed);
        if is_warm && self.before.lock().is_none() && self.counts() {
            let rate = HitRate::read(&metrics(target).await?);
            *self.before.lock() = Some(rate);
        }
        Ok(())
    }

    /// Whether look-ups are compared: a process that is killed forgets them.
    fn counts(&self) -> bool {
        let chaos = &self.talk.scenario.chaos;
        self.talk.scenario.reads.rate > 0 && chaos.kills == 0 && chaos.events.is_empty()
    }

    /// How often caches had what was looked for since the warm-up.
    pub(super) async fn hit_rate(&self, target: &mut Target) -> anyhow::Result<HitRate> {
        let before = self.before.lock().clone();
        match before {
            Some(before) => Ok(HitRate::read(&metrics(target).await?).since(&before)),
            None => Ok(HitRate::default()),
        }
    }

    /// Ends them: how long each kind took, all together last; and how many failed.
    pub(super) async fn end(mut self) -> anyhow::Result<(Vec<(&'static str, Percentiles)>, u64)> {
        self.shared.stop.cancel();
        while let Some(ended) = self.readers.join_next().await {
            ended.context("a reader failed")??;
        }
        let of = |(kind, name): (Kind, &'static str)| (name, self.shared.latencies[kind as usize].percentiles());
        let mut all: Vec<_> = Kind::ALL.into_iter().map(of).collect();
        all.push(("all reads", self.shared.all.percentiles()));
        Ok((all, self.shared.failed.get()))
    }
}

async fn metrics(target: &mut Target) -> anyhow::Result<Vec<String>> {
    match &mut target.spawned {
        Some(spawned) => spawned.metrics().await,
        None => Ok(Vec::new()),
    }
}

async fn read(
    talk: Arc<Talk>,
    shared: Arc<Shared>,
    place: u32,
    (first_us, interval_us): (u64, f64),
) -> anyhow::Result<()> {
    let mut client = Client::new(talk.access.ingest.clone(), place as usize, "")?;
    let reads_of_a_visit = u64::from(talk.scenario.reads.visit.max(1));
    let mut visit = Visit::of_somebody(&talk)?;
    for number in 0_u64.. {
        let due_us = first_us + (number as f64 * interval_us) as u64;
        tokio::select! {
            () = sleep_until(talk.clock.instant(due_us)) => {}
            () = shared.stop.cancelled() => break,
        }
        if number.is_multiple_of(reads_of_a_visit) {
            visit = Visit::of_somebody(&talk)?;
        }
        let Some((kind, path)) = visit.next(&talk) else { continue };
        let answer = client.get_as(&visit.bearer, &path, PATIENCE).await;
        if due_us < shared.warm_us.load(Ordering::Relaxed) {
            continue;
        }
        if answer.is_ok_and(|answer| answer.status.is_success()) {
            let took = [talk.since_us(due_us)];
            shared.latencies[kind as usize].record(&took);
            shared.all.record(&took);
        } else {
            shared.failed.one();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(())
}

/// Somebody who reads for a while.
struct Visit {
    conversation: u32,
    bearer: HeaderValue,
}

impl Visit {
    /// Of a phone, or its business.
    fn of_somebody(talk: &Talk) -> anyhow::Result<Self> {
        let mut random = rand::rng();
        let conversation = random.random_range(0..talk.conversations.len()) as u32;
        let is_business = random.random_bool(talk.scenario.reads.by_business);
        let bearer = if is_business { talk.business(conversation).key.clone() } else { talk.token(conversation) };
        let bearer = HeaderValue::try_from(format!("Bearer {bearer}")).context("a bearer")?;
        Ok(Self { conversation, bearer })
    }

    /// What is read next; `None` where it is of a conversation that was not begun.
    fn next(&self, talk: &Talk) -> Option<(Kind, String)> {
        match rand::rng().random_range(0..10) {
            0..3 => Some((Kind::List, "/v1/conversations?limit=20".to_owned())),
            3..6 => Some((Kind::Unread, "/v1/conversations/unread-count".to_owned())),
            _ => {
                let id = talk.conversation(self.conversation)?;
                Some((Kind::History, format!("/v1/conversations/{id}/messages?limit=50")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_counted_by_cache_over_all_processes_since_the_warm_up() {
        let shown = |hits: u32, misses: u32| {
            format!(
                "# HELP eshaar_cache_lookups_total x\neshaar_cache_lookups_total{{cache=\"unread\",outcome=\"hit\"}} {hits}\n\
                 eshaar_cache_lookups_total{{cache=\"unread\",outcome=\"miss\"}} {misses}\n"
            )
        };
        let rate = HitRate::read(&[shown(10, 10), shown(90, 10)]).since(&HitRate::read(&[shown(10, 10)]));
        assert_eq!(rate.of["unread"], (90, 100));
        assert!((rate.overall() - 0.9).abs() < 1e-9);
    }
}
