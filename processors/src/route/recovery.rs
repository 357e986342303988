//! Carries messages on whose records were deleted from a lane, or from a retry topic, before they were read: reads
//! `messages.accepted` again, which is kept for longer, and puts what did not arrive into its lane once more.
//!
//! Which messages the deleted records were of is not known, only their lane and partition. So of all that `prioritize` has put
//! there, and `messages.accepted` still has, those are taken that have no further step in the history and do not stand in
//! their recipient's stream. One that is in the lane twice by this is dropped as any repeat. What has expired since is
//! left out. The order of a phone's messages holds among what is carried on, not towards what was delivered meanwhile.

use std::time::Duration;

use ahash::AHashSet;
use eshaar_model::{Lane, MessageId, Status, StreamPosition};
use eshaar_service::metrics::ROUTE_RECOVERED;
use eshaar_store::{Earlier, StoreError};
use eshaar_topics::flow::Envelope;
use eshaar_topics::partitioner::partition_of;
use eshaar_topics::{AppendError, Gap, LogError, NewRecord, Received, Stage as _, Topic, kept_time};
use metrics::counter;

use super::{ReadBackError, Route, first_of};
use crate::prioritize::{self, Prioritize};

/// `prioritize` may have put so many records of a partition into their lanes that it has not committed.
const UNCOMMITTED: u64 = 20_000;

/// Records of `messages.accepted` that are looked up together.
const AT_ONCE: usize = 200;

/// Wait before an append whose outcome is unknown is tried again.
const APPEND_AGAIN: Duration = Duration::from_millis(200);

/// Messages cannot be carried on for now.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecoveryError {
    #[error(transparent)]
    Read(#[from] ReadBackError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl Route {
    /// Carries on what was lost with `gap`; returns how many records it wrote.
    pub(super) async fn carry_on(&self, gap: Gap) -> Result<u64, RecoveryError> {
        let log = &self.ports.log;
        let mut written = 0;
        for partition in 0..log.partitions(Topic::MessagesAccepted) {
            let bounds = log.bounds(Topic::MessagesAccepted, partition).await?;
            let taken = log.committed(Prioritize::NAME, Topic::MessagesAccepted, partition).await?;
            let end = taken.unwrap_or(bounds.start).saturating_add(UNCOMMITTED).min(bounds.end);
            if bounds.start >= end {
                continue;
            }
            let mut reader = log.read(Topic::MessagesAccepted, partition, bounds.start).await?;
            while reader.next_offset() < end {
                let records: Vec<Received> = first_of(&mut *reader).await?.into_iter().map(Received::from).collect();
                // Few at a time: the store serves others meanwhile.
                for some in records.chunks(AT_ONCE) {
                    written += self.carry_on_some(gap, some).await?;
                }
            }
        }
        Ok(written)
    }

    async fn carry_on_some(&self, gap: Gap, records: &[Received]) -> Result<u64, RecoveryError> {
        let now = self.clock.now();
        let mut lost: Vec<(&Received, Envelope<'_>)> =
            records.iter().filter_map(|record| self.was_in(gap, record)).collect();
        self.drop_what_arrived(&mut lost).await?;
        let mut written = Vec::with_capacity(lost.len());
        for (record, envelope) in lost {
            if envelope.expires_at.is_some_and(|at| at <= now) {
                // Its timer says so (`archive`).
                counter!(ROUTE_RECOVERED, "outcome" => "expired").increment(1);
                continue;
            }
            let next = prioritize::lane_record(record, &envelope);
            counter!(ROUTE_RECOVERED, "outcome" => "forwarded").increment(1);
            written.push(NewRecord { timestamp: kept_time(next.topic, next.timestamp, now), ..next });
        }
        let count = written.len() as u64;
        match self.append_until_known(written.clone()).await {
            // Which of them it was is not known: one by one, so that only the one at fault is left out.
            Err(AppendError::Refused { .. }) => {
                for record in written {
                    if let Err(error) = self.append_until_known(vec![record]).await {
                        let AppendError::Refused { reason } = error else { return Err(error.into()) };
                        tracing::error!(
                            stage = Self::NAME,
                            reason,
                            "a message that was deleted unread cannot be carried on"
                        );
                    }
                }
            }
            appended => appended?,
        }
        Ok(count)
    }

    /// A message whose record may have been among those that were deleted.
    fn was_in<'a>(&self, gap: Gap, record: &'a Received) -> Option<(&'a Received, Envelope<'a>)> {
        // What is no message was never in a lane.
        let envelope = Envelope::read(&record.headers).ok()?;
        // A retry topic has records of all lanes.
        let of_lane = gap.topic.lane().is_none_or(|lane| lane == envelope.lane);
        let key = envelope.to?.to_string();
        let is_there = of_lane
            && partition_of(key.as_bytes(), self.ports.log.partitions(Topic::of_lane(envelope.lane))) == gap.partition
            && !self.ports.cancelled.takes(envelope.from, envelope.id, envelope.broadcast);
        is_there.then_some((record, envelope))
    }

    /// Drops what reached a further step, and what stands in its recipient's stream.
    async fn drop_what_arrived(&self, lost: &mut Vec<(&Received, Envelope<'_>)>) -> Result<(), StoreError> {
        if lost.is_empty() {
            return Ok(());
        }
        let ids: Vec<MessageId> = lost.iter().map(|(_, envelope)| envelope.id).collect();
        let stored = self.ports.store.messages.get_many(&ids).await?;
        let settled: AHashSet<MessageId> = stored
            .into_iter()
            .flatten()
            .filter(|stored| stored.steps.current().is_some_and(|status| status != Status::Sent))
            .map(|stored| stored.row.id)
            .collect();
        lost.retain(|(_, envelope)| !settled.contains(&envelope.id));
        let ask =
            |of: &Envelope<'_>| Some(Earlier { phone: of.to?, position: self.behind_all(of.lane), id: of.id, from: 0 });
        let asked: Vec<Earlier> = lost.iter().filter_map(|(_, of)| ask(of)).collect();
        let stands = self.ports.store.streams.stands_before(&asked).await?;
        let arrived: AHashSet<MessageId> =
            asked.iter().zip(stands).filter(|(_, stands)| *stands).map(|(earlier, _)| earlier.id).collect();
        lost.retain(|(_, envelope)| !arrived.contains(&envelope.id));
        Ok(())
    }

    /// A position behind every record of a lane.
    fn behind_all(&self, lane: Lane) -> StreamPosition {
        StreamPosition { epoch: self.ports.log.epoch(), lane, offset: i64::MAX as u64 }
    }

    async fn append_until_known(&self, records: Vec<NewRecord>) -> Result<(), AppendError> {
        if records.is_empty() {
            return Ok(());
        }
        loop {
            match self.ports.log.append(records.clone()).await {
                Ok(_) => return Ok(()),
                Err(error @ AppendError::Unknown { .. }) => {
                    tracing::warn!(stage = Self::NAME, %error, "append unknown; trying again");
                    tokio::time::sleep(APPEND_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
