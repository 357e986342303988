//! What is kept of a backlog across processes: how far an endpoint was told, and the events that it refused and that wait to
//! be tried again. An event is parked by its place in the log, so that a refused one holds up nobody: the log has the rest.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};
use eshaar_model::{MessageId, Timestamp};
use eshaar_topics::{LogPosition, Received, Topic};

/// Most parked events of an endpoint and partition: past it nothing new is taken from the log until one is settled.
pub(super) const MAX_PARKED: usize = 1_024;

/// The topics that an endpoint is told of.
pub(super) const TOPICS: [Topic; 2] = [Topic::MessagesAccepted, Topic::MessageStatus];
/// Their indexes.
pub(super) const ACCEPTED: usize = 0;
pub(super) const STATUS: usize = 1;

/// Version of the encoding.
const VERSION: u8 = 1;
/// Bytes of a parked event.
const ENTRY: usize = 1 + 8 + 16 + 1 + 8 + 8;
/// Bytes before the parked events.
const HEAD: usize = 1 + 4 * 8;

/// The place of an event: its topic's index, and the offset.
pub(super) type Place = (usize, u64);

/// The index of a topic in [`TOPICS`].
pub(super) fn index(topic: Topic) -> usize {
    if topic == Topic::MessagesAccepted { ACCEPTED } else { STATUS }
}

/// The place of a record.
pub(super) fn place(position: &LogPosition) -> Place {
    (index(position.topic), position.offset)
}

/// An event that waits to be tried again.
#[derive(Clone, Debug)]
pub(super) struct Parked {
    pub(super) id: MessageId,
    /// How often it was refused. Zero: it waits behind another one of its message.
    pub(super) tries: u8,
    /// When it was refused last.
    pub(super) tried: Timestamp,
    pub(super) due: Timestamp,
    /// Its record, while it is kept at hand.
    pub(super) record: Option<Received>,
    /// It is being tried.
    pub(super) is_out: bool,
}

/// Where a backlog stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    /// Of each topic: everything before it was told, or is parked.
    pub(super) told: [u64; 2],
    /// Events that are not settled, counted as the stage read them, up to `counted`.
    pub(super) waiting: u64,
    pub(super) counted: [u64; 2],
    pub(super) parked: BTreeMap<Place, Parked>,
}

impl Standing {
    /// One that begins at these offsets.
    pub(super) fn at(told: [u64; 2]) -> Self {
        Self { told, waiting: 0, counted: told, parked: BTreeMap::new() }
    }

    /// Counts an event that the stage has read.
    pub(super) fn count(&mut self, (topic, offset): Place) {
        if offset >= self.counted[topic] {
            self.counted[topic] = offset + 1;
            self.waiting += 1;
        }
    }

    /// All but the offset in `message.status`, which a cursor has itself.
    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEAD + self.parked.len() * ENTRY);
        bytes.put_u8(VERSION);
        bytes.put_u64(self.told[ACCEPTED]);
        bytes.put_u64(self.waiting);
        self.counted.iter().for_each(|offset| bytes.put_u64(*offset));
        for ((topic, offset), parked) in &self.parked {
            bytes.put_u8(*topic as u8);
            bytes.put_u64(*offset);
            bytes.put_slice(parked.id.as_bytes());
            bytes.put_u8(parked.tries);
            bytes.put_i64(parked.tried.as_millis());
            bytes.put_i64(parked.due.as_millis());
        }
        bytes.freeze()
    }

    /// Reads what [`encode`](Self::encode) wrote, beside the offset in `message.status`. A cursor of a version before it has
    /// nothing; its other topic begins at `accepted`.
    pub(super) fn decode(status: u64, bytes: &[u8], accepted: u64) -> Self {
        let empty = Self::at([accepted, status]);
        let Some((VERSION, _)) = bytes.split_first().map(|(version, rest)| (*version, rest)) else { return empty };
        let number =
            |range: Range<usize>| bytes.get(range).and_then(|found| found.try_into().ok()).map(u64::from_be_bytes);
        let head = [1..9, 9..17, 17..25, 25..33].map(number);
        let [Some(accepted), Some(waiting), Some(counted_accepted), Some(counted_status)] = head else { return empty };
        let parked = bytes[HEAD..].chunks_exact(ENTRY).filter_map(entry).collect();
        Self { told: [accepted, status], waiting, counted: [counted_accepted, counted_status], parked }
    }
}

fn entry(bytes: &[u8]) -> Option<(Place, Parked)> {
    let number = |from: usize| bytes[from..from + 8].try_into().ok().map(u64::from_be_bytes);
    let topic = usize::from(bytes[0]);
    let place = (topic, number(1)?);
    let id = MessageId::from_bytes(&bytes[9..25]).ok()?;
    let [tried, due] = [number(26)?, number(34)?].map(|millis| Timestamp::from_millis(millis as i64));
    let parked = Parked { id, tries: bytes[25], tried, due, record: None, is_out: false };
    (topic < TOPICS.len()).then_some((place, parked))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use eshaar_store::webhooks::STATE_BYTES;

    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_760_000_000_000);

    fn parked(tries: u8) -> Parked {
        let due = START.plus_millis(7);
        Parked { id: MessageId::new(START), tries, tried: START, due, record: None, is_out: true }
    }

    #[test]
    fn a_standing_comes_back_as_it_was_written_and_the_largest_fits() {
        let mut standing = Standing { waiting: 9, counted: [5, 6], ..Standing::at([3, 4]) };
        standing.parked = (0..MAX_PARKED as u64).map(|at| (((at % 2) as usize, at), parked(at as u8))).collect();
        let bytes = standing.encode();
        assert!(bytes.len() <= STATE_BYTES, "{}", bytes.len());
        let read = Standing::decode(4, &bytes, 0);
        assert_eq!((read.told, read.waiting, read.counted), ([3, 4], 9, [5, 6]));
        let of = |standing: &Standing| -> Vec<_> {
            let entries = standing.parked.iter();
            entries.map(|(place, parked)| (*place, parked.id, parked.tries, parked.tried, parked.due)).collect()
        };
        assert_eq!(of(&read), of(&standing));
    }

    #[test]
    fn a_cursor_of_a_version_before_begins_the_other_topic_where_it_is_told_to() {
        for bytes in [&[][..], &[9, 9], &[VERSION, 1]] {
            let read = Standing::decode(4, bytes, 70);
            assert_eq!((read.told, read.counted, read.waiting, read.parked.len()), ([70, 4], [70, 4], 0, 0));
        }
    }

    #[test]
    fn what_is_read_again_is_counted_once() {
        let mut standing = Standing::at([3, 4]);
        for place in [(STATUS, 4), (STATUS, 6), (STATUS, 4), (ACCEPTED, 2), (ACCEPTED, 3)] {
            standing.count(place);
        }
        assert_eq!(standing.waiting, 3);
    }
}
