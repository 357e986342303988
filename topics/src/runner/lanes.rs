//! Which inputs of a partition number are taken from next: the first that has records waiting and credit left, and while
//! there is room in the batch, the next. An input's credit of a round is its weight in batches; when nothing that waits has
//! credit, a new round begins. So high goes before normal before low, a record that arrives on a higher lane waits for one
//! batch at most, and low never starves (R5.2). What a batch costs is mostly by the batch, in the store and at the brokers:
//! few records of one lane do not make those of another wait for a batch of their own.

use futures_util::FutureExt as _;
use futures_util::future::select_all;

use crate::{Gap, LogError, PartitionStream, Received, Record, Topic};

/// The streams of one partition number, most urgent first.
pub(super) struct Lanes {
    inputs: Vec<Input>,
    batch: usize,
    /// Found and not told yet.
    gaps: Vec<Gap>,
}

struct Input {
    stream: PartitionStream,
    /// The offset of the next record, unless some were deleted before it.
    expected: u64,
    /// It had nothing when it was last looked at.
    is_empty: bool,
    weight: usize,
    credit: usize,
}

impl Lanes {
    /// Streams in the order of `weights`; one of a topic that is not among them has weight 1 and goes last.
    pub(super) fn new(streams: Vec<PartitionStream>, weights: &[(Topic, u32)], batch: usize) -> Self {
        let place = |topic| weights.iter().position(|(of, _)| *of == topic).unwrap_or(weights.len());
        let mut inputs: Vec<Input> = streams
            .into_iter()
            .map(|stream| {
                let weight = weights.get(place(stream.source().0)).map_or(1, |(_, weight)| (*weight).max(1) as usize);
                Input { expected: stream.next_offset(), is_empty: false, stream, weight, credit: weight * batch }
            })
            .collect();
        inputs.sort_by_key(|input| place(input.stream.source().0));
        let gaps = inputs.iter().filter_map(|input| input.stream.gap_before()).collect();
        Self { inputs, batch, gaps }
    }

    /// Records that the log deleted before they could be taken, as far as they were not told of before.
    pub(super) fn gaps(&mut self) -> Vec<Gap> {
        std::mem::take(&mut self.gaps)
    }

    /// The log keeps records of `topic` only from `start` on. A partition in which everything was deleted has no record to find
    /// a gap by. One that has records at hand has read them before they were deleted.
    pub(super) fn starts(&mut self, topic: Topic, start: u64) {
        let input = self.inputs.iter_mut().find(|input| input.is_empty && input.stream.source().0 == topic);
        self.gaps.extend(input.and_then(|input| input.gap_before(start)));
    }

    /// Waits until something waits. Cancel-safe.
    pub(super) async fn ready(&mut self) -> Result<(), LogError> {
        // `ready` of an input that has records returns at once, so none is overlooked.
        select_all(self.inputs.iter_mut().map(|input| input.stream.ready())).await.0
    }

    /// A batch of what is at hand, without waiting: input by input, those of each in order; `None` while nothing waits.
    pub(super) fn at_hand(&mut self) -> Result<Option<Vec<Received>>, LogError> {
        let mut batch = self.take();
        // Looking whether it is ready has it fetched, where that is needed.
        if batch.is_none() && self.ready().now_or_never().transpose()?.is_some() {
            batch = self.take();
        }
        Ok(batch.map(|records| records.into_iter().map(Received::from).collect()))
    }

    /// The offsets to be read next.
    pub(super) fn next_offsets(&self) -> Vec<(Topic, u64)> {
        self.inputs.iter().map(|input| (input.stream.source().0, input.stream.next_offset())).collect()
    }

    fn take(&mut self) -> Option<Vec<Record>> {
        self.take_with_credit().or_else(|| {
            for input in &mut self.inputs {
                input.credit = input.weight * self.batch;
            }
            self.take_with_credit()
        })
    }

    fn take_with_credit(&mut self) -> Option<Vec<Record>> {
        let mut batch = Vec::new();
        for input in &mut self.inputs {
            let room = (self.batch - batch.len()).min(input.credit);
            let records = input.stream.take(room);
            input.credit -= records.len().min(input.credit);
            input.is_empty = records.is_empty() && room > 0;
            for record in &records {
                self.gaps.extend(input.gap_before(record.position.offset));
                input.expected = record.position.offset + 1;
            }
            batch.extend(records);
        }
        (!batch.is_empty()).then_some(batch)
    }
}

impl Input {
    /// What is missing before `offset`, where the partition goes on.
    fn gap_before(&mut self, offset: u64) -> Option<Gap> {
        if offset <= self.expected {
            return None;
        }
        let (topic, partition) = self.stream.source();
        let from = std::mem::replace(&mut self.expected, offset);
        Some(Gap { topic, partition, from, to: offset })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use eshaar_model::Timestamp;
    use proptest::prelude::*;

    use super::super::memory::waiting;
    use super::*;
    use crate::{Headers, LogPosition, Reader};

    const LANES: [Topic; 4] = [Topic::LaneHigh, Topic::LaneNormal, Topic::LaneLow, Topic::LaneBulk];

    fn lanes(waits: [usize; 4], weights: [u32; 4], batch: usize) -> Lanes {
        let streams = LANES.iter().zip(waits).map(|(topic, count)| waiting(*topic, count)).rev().collect();
        let weights: Vec<_> = LANES.into_iter().zip(weights).collect();
        Lanes::new(streams, &weights, batch)
    }

    fn taken(lanes: &mut Lanes) -> Vec<(Topic, u64)> {
        std::iter::from_fn(|| lanes.take())
            .flatten()
            .map(|record| (record.position.topic, record.position.offset))
            .collect()
    }

    /// A partition whose records have these offsets, read from `next` on.
    struct Jumping {
        next: u64,
        offsets: Vec<u64>,
    }

    #[async_trait::async_trait]
    impl Reader for Jumping {
        fn source(&self) -> (Topic, u32) {
            (Topic::LaneHigh, 3)
        }

        fn next_offset(&self) -> u64 {
            self.next
        }

        async fn ready(&mut self) -> Result<(), LogError> {
            if self.offsets.is_empty() { std::future::pending().await } else { Ok(()) }
        }

        fn take(&mut self, max: usize) -> Vec<Record> {
            let taken: Vec<u64> = self.offsets.drain(..max.min(self.offsets.len())).collect();
            self.next = taken.last().map_or(self.next, |last| last + 1);
            let (topic, partition) = self.source();
            let record = |offset| Record {
                position: LogPosition { topic, partition, offset },
                timestamp: Timestamp::from_millis(0),
                key: Bytes::new(),
                value: Bytes::new(),
                headers: Headers::none(),
            };
            taken.into_iter().map(record).collect()
        }
    }

    #[test]
    fn records_that_were_deleted_before_they_could_be_taken_are_a_gap_once() {
        let gap = |from, to| Gap { topic: Topic::LaneHigh, partition: 3, from, to };
        let stream = |offsets: &[u64]| Box::new(Jumping { next: 5, offsets: offsets.to_vec() });
        let mut lanes = Lanes::new(vec![stream(&[5, 6, 10, 11, 15])], &[(Topic::LaneHigh, 1)], 3);
        assert_eq!(lanes.gaps(), []);
        // Within a batch, and between two.
        assert_eq!(lanes.take().unwrap().len(), 3);
        assert_eq!(lanes.gaps(), [gap(7, 10)]);
        assert_eq!(lanes.take().unwrap().len(), 2);
        assert_eq!(lanes.gaps(), [gap(12, 15)]);
        lanes.starts(Topic::LaneHigh, 19);
        assert_eq!(lanes.gaps(), [], "it may have more at hand");
        assert!(lanes.take().is_none());
        // Everything that was to come is gone, and nothing comes to tell it by.
        lanes.starts(Topic::LaneHigh, 16);
        assert_eq!(lanes.gaps(), []);
        lanes.starts(Topic::LaneHigh, 20);
        lanes.starts(Topic::LaneHigh, 20);
        assert_eq!(lanes.gaps(), [gap(16, 20)]);
        let mut lanes = Lanes::new(vec![stream(&[8])], &[(Topic::LaneHigh, 1)], 3);
        lanes.take().unwrap();
        assert_eq!(lanes.gaps(), [gap(5, 8)]);
    }

    #[test]
    fn while_all_lanes_wait_each_gets_its_weight_and_the_urgent_go_first() {
        let mut lanes = lanes([10_000; 4], [8, 4, 2, 1], 100);
        let round: Vec<Topic> = (0..15).map(|_| lanes.take().unwrap()[0].position.topic).collect();
        let expected: Vec<Topic> =
            LANES.iter().zip([8, 4, 2, 1]).flat_map(|(lane, batches)| vec![*lane; batches]).collect();
        assert_eq!(round, expected);
        assert_eq!(lanes.take().unwrap()[0].position.topic, Topic::LaneHigh);
    }

    #[test]
    fn what_is_left_of_a_batch_goes_to_the_next_lane() {
        let mut lanes = lanes([3, 0, 120, 400], [8, 4, 2, 1], 100);
        let mut next = || -> Vec<(Topic, usize)> {
            let batch = lanes.take().unwrap();
            let runs = batch.chunk_by(|one, other| one.position.topic == other.position.topic);
            runs.map(|run| (run[0].position.topic, run.len())).collect()
        };
        assert_eq!(next(), [(LANES[0], 3), (LANES[2], 97)]);
        assert_eq!(next(), [(LANES[2], 23), (LANES[3], 77)]);
        assert_eq!(next(), [(LANES[3], 23)]);
        assert_eq!(next(), [(LANES[3], 100)]);
    }

    #[test]
    fn a_lane_that_waits_alone_gets_full_batches() {
        let mut lanes = lanes([0, 0, 0, 350], [8, 4, 2, 1], 100);
        let sizes: Vec<usize> = std::iter::from_fn(|| lanes.take()).map(|batch| batch.len()).collect();
        assert_eq!(sizes, [100, 100, 100, 50]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// R5.2: whatever waits, all of it is taken, in the order of its lane, and no lane that waits goes without its
        /// weight for longer than a round.
        #[test]
        fn every_record_is_taken_once_in_lane_order_and_no_lane_starves(
            waits in prop::array::uniform4(0_usize..400),
            weights in prop::array::uniform4(1_u32..9),
            batch in 1_usize..20,
        ) {
            let all = taken(&mut lanes(waits, weights, batch));
            for (lane, count) in LANES.iter().zip(waits) {
                let of_lane: Vec<u64> = all.iter().filter(|(topic, _)| topic == lane).map(|(_, at)| *at).collect();
                prop_assert_eq!(of_lane, (0..count as u64).collect::<Vec<_>>());
            }
            let round = weights.iter().sum::<u32>() as usize * batch;
            for (lane, count) in LANES.iter().zip(waits) {
                let places: Vec<usize> = (0..all.len()).filter(|at| all[*at].0 == *lane).collect();
                prop_assert_eq!(places.len(), count);
                let starved = std::iter::once(0).chain(places.iter().copied())
                    .zip(places.iter().copied()).any(|(earlier, later)| later - earlier > round);
                prop_assert!(!starved, "{lane} waited for more than a round of {round}");
            }
        }
    }
}
