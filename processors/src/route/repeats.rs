//! Which arrivals repeat an earlier record: by the window, or by the stream, which is asked about what the window does not cover.

use std::collections::BTreeSet;

use ahash::AHashSet;
use eshaar_model::{Lane, MessageId, StreamPosition, Timestamp};
use eshaar_service::metrics::ROUTE_REPEATS;
use eshaar_store::{Earlier, StoreError};
use eshaar_topics::{Stage as _, Topic};
use metrics::counter;

use super::{Arrival, Partition, Route};
use crate::window::{Repeat, SKEW_MS};

impl Route {
    /// Drops what repeats an earlier record of the lane's partition, in the window or in this batch. Those that are too old
    /// for the window, or were redriven, are looked up in the stream, all at once.
    pub(super) async fn drop_repeats(
        &self,
        partition: &Partition,
        arrivals: &mut Vec<Arrival>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let (before, windows) = (arrivals.len(), &partition.windows);
        let mut in_batch: AHashSet<(Lane, MessageId)> = AHashSet::with_capacity(before);
        let mut asked: Vec<(Earlier, Timestamp)> = Vec::new();
        arrivals.retain(|Arrival { row, is_redriven, first_at, .. }| {
            let StreamPosition { lane, offset, .. } = row.position;
            let repeat = match in_batch.insert((lane, row.id)) {
                false => Repeat::Yes,
                true if *is_redriven => Repeat::AskStore,
                true => windows[lane.index()].repeats(row.id, offset, *first_at, now),
            };
            if repeat == Repeat::AskStore {
                let (phone, position, id) = (row.phone, row.position, row.id);
                asked.push((Earlier { phone, position, id, from: 0 }, *first_at));
            }
            repeat != Repeat::Yes
        });
        if !asked.is_empty() {
            let asked = self.bounded(partition.number, asked, now).await;
            let stands = self.ports.store.streams.stands_before(&asked).await?;
            let repeats: BTreeSet<(Lane, u64)> = asked
                .iter()
                .zip(stands)
                .filter(|(_, stands)| *stands)
                .map(|(Earlier { position: at, .. }, _)| (at.lane, at.offset))
                .collect();
            arrivals.retain(|Arrival { row, .. }| !repeats.contains(&(row.position.lane, row.position.offset)));
        }
        let dropped = before - arrivals.len();
        if dropped > 0 {
            counter!(ROUTE_REPEATS).increment(dropped as u64);
        }
        Ok(())
    }

    /// The questions, each with the lowest offset that its answer can be at: that of the first record of its lane which is
    /// not older than the message. Where the log cannot tell, because it keeps nothing that old, the whole lane is searched.
    async fn bounded(&self, partition: u32, asked: Vec<(Earlier, Timestamp)>, now: Timestamp) -> Vec<Earlier> {
        let mut from = [0; 4];
        for lane in Lane::ALL {
            let of_lane = asked.iter().filter(|(earlier, _)| earlier.position.lane == lane);
            let times: Vec<Timestamp> = of_lane.map(|(_, first_at)| *first_at).collect();
            // A time from the future says nothing of when earlier copies were stamped.
            let known = times.iter().all(|first_at| *first_at <= now);
            let Some(oldest) = times.into_iter().min().filter(|_| known) else { continue };
            let (log, topic, oldest) = (&self.ports.log, Topic::of_lane(lane), oldest.plus_millis(-SKEW_MS));
            match tokio::try_join!(log.bounds(topic, partition), log.offset_at(topic, partition, oldest)) {
                Ok((bounds, first)) if first > bounds.start => from[lane.index()] = first,
                Ok(_) => {}
                Err(error) => tracing::warn!(stage = Self::NAME, %topic, %error, "the age of offsets is not known"),
            }
        }
        asked.into_iter().map(|(earlier, _)| Earlier { from: from[earlier.position.lane.index()], ..earlier }).collect()
    }
}
