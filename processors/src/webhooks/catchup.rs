//! Reads the log again for an endpoint that is behind: the events of both topics, merged by the time of their records, so that
//! a message was accepted before it reached any step.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use eshaar_topics::runner::deleted_unread;
use eshaar_topics::{Gap, Log, Reader, Received, Stage as _};
use tokio::time::{Instant, timeout};

use super::endpoint::Endpoint;
use super::parked::{ACCEPTED, Place, TOPICS};
use super::places::{self, Places};
use super::shelf::Shelf;
use super::{Shared, Webhooks};

/// Records that are taken from the log at once, and most events that a turn gives.
const AT_ONCE: usize = 200;
/// Records that one turn looks at, most of them of others.
const LOOKED_AT: usize = 5_000;
/// How long an endpoint reads while others wait to.
const TURN: Duration = Duration::from_secs(1);
/// How long is waited for the log.
const PATIENCE: Duration = Duration::from_secs(5);

/// The log, as it is read again.
#[derive(Default)]
pub(super) struct Catchup {
    sources: [Option<Source>; 2],
    /// The permission to read, and since when it is held.
    permit: Option<(places::Place, Instant)>,
    /// Some of what the endpoint waited for was no longer there.
    pub(super) has_lost: bool,
}

/// One topic.
struct Source {
    reader: Box<dyn Reader>,
    /// Events that were read, and not given yet.
    pending: VecDeque<Received>,
    /// Everything before it was looked at.
    next: u64,
}

/// How a turn ended.
pub(super) enum Turn {
    /// There is more.
    More,
    /// The stage gives what comes from here on.
    CaughtUp,
}

impl Catchup {
    /// Reads more events into the endpoint's backlog.
    pub(super) async fn turn(&mut self, shared: &Shared, shelf: &Shelf, endpoint: &Endpoint) -> Result<Turn, String> {
        let Some(behind) = shelf.behind(endpoint.id) else { return Ok(Turn::CaughtUp) };
        if self.permit.is_none() {
            let place = shared.readers.take(&endpoint.business, false).await;
            self.permit = Some((place, Instant::now()));
        }
        let live = shelf.live();
        let mut budget = LOOKED_AT;
        for topic in 0..TOPICS.len() {
            if topic == ACCEPTED && !endpoint.wants_accepted() {
                continue;
            }
            self.fill((topic, behind[topic]), live[topic], &mut budget, (shared, shelf, endpoint)).await?;
        }
        let events = self.merge(live);
        let read = std::array::from_fn(|topic| match &self.sources[topic] {
            Some(source) => source.pending.front().map_or(source.next, |record| record.position.offset),
            None if topic == ACCEPTED && !endpoint.wants_accepted() => live[topic],
            None => behind[topic],
        });
        let is_over = shelf.refill(endpoint.id, events, read);
        for source in &mut self.sources {
            // It has passed what the stage had read, and left that out: it is read again.
            if source.as_ref().is_some_and(|source| source.reader.next_offset() > source.next) {
                *source = None;
            }
        }
        self.yield_to_others(&shared.readers, is_over);
        Ok(if is_over { Turn::CaughtUp } else { Turn::More })
    }

    /// Lets others read: what was read and not given is read again.
    pub(super) fn rest(&mut self) {
        self.sources = [None, None];
        self.permit = None;
    }

    fn yield_to_others(&mut self, readers: &Arc<Places>, is_over: bool) {
        let is_long = self.permit.as_ref().is_some_and(|(_, since)| since.elapsed() >= TURN);
        if is_over || (is_long && readers.is_wanted()) {
            self.rest();
        }
    }

    /// Reads one topic until it has an event to give, or is at its end.
    async fn fill(
        &mut self,
        (topic, from): Place,
        live: u64,
        budget: &mut usize,
        (shared, shelf, endpoint): (&Shared, &Shelf, &Endpoint),
    ) -> Result<(), String> {
        if self.sources[topic].is_none() {
            if from >= live {
                return Ok(());
            }
            let partition = shelf.partition;
            let text = |error: eshaar_topics::LogError| error.to_string();
            let start = shared.log.bounds(TOPICS[topic], partition).await.map_err(text)?.start;
            if start > from {
                self.has_lost = true;
                deleted_unread(Webhooks::NAME, Gap { topic: TOPICS[topic], partition, from, to: start });
            }
            let next = from.max(start).min(live);
            let reader = shared.log.read(TOPICS[topic], partition, next).await.map_err(text)?;
            self.sources[topic] = Some(Source { reader, pending: VecDeque::new(), next });
        }
        let Some(source) = &mut self.sources[topic] else { return Ok(()) };
        while source.pending.is_empty() && source.next < live && *budget > 0 {
            let ready = timeout(PATIENCE, source.reader.ready()).await;
            ready.map_err(|_| "the log does not answer".to_owned())?.map_err(|error| error.to_string())?;
            let records = source.reader.take(AT_ONCE);
            *budget = budget.saturating_sub(records.len().max(1));
            source.next = source.reader.next_offset().min(live);
            let ours = records.into_iter().map(Received::from).filter(|record| record.position.offset < live);
            let now = shared.clock.now();
            source.pending.extend(ours.filter(|record| endpoint.wants_record(record) && !shelf.is_repeat(record, now)));
        }
        Ok(())
    }

    /// Takes what was read in the order of its time, as far as it is known what comes next of each topic.
    fn merge(&mut self, live: [u64; 2]) -> Vec<Received> {
        let mut events = Vec::new();
        while events.len() < AT_ONCE {
            let mut first: Option<(usize, &Received)> = None;
            for (topic, source) in self.sources.iter().enumerate() {
                let Some(source) = source else { continue };
                match source.pending.front() {
                    None if source.next < live[topic] => return events,
                    Some(record) if first.is_none_or(|(_, other)| record.timestamp < other.timestamp) => {
                        first = Some((topic, record));
                    }
                    _ => {}
                }
            }
            let Some((topic, _)) = first else { return events };
            events.extend(self.sources[topic].as_mut().and_then(|source| source.pending.pop_front()));
        }
        events
    }
}

/// The record of an event that was read before; `None` where the log has removed it.
pub(super) async fn read_again(
    log: &dyn Log,
    partition: u32,
    (topic, offset): Place,
) -> Result<Option<Received>, String> {
    let text = |error: eshaar_topics::LogError| error.to_string();
    if log.bounds(TOPICS[topic], partition).await.map_err(text)?.start > offset {
        return Ok(None);
    }
    let mut reader = log.read(TOPICS[topic], partition, offset).await.map_err(text)?;
    let ready = timeout(PATIENCE, reader.ready()).await;
    ready.map_err(|_| "the log does not answer".to_owned())?.map_err(text)?;
    let record = reader.take(1).pop().map(Received::from);
    Ok(record.filter(|record| record.position.offset == offset))
}
