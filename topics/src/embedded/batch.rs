//! Records of one partition that were committed together: the unit of rows in the file and of the tail in memory.
//!
//! Encoding: a version byte, then for each record its time (i64), the lengths of key (u16), headers (u32) and value
//! (u32), all little-endian, then the three. Records are slices of the batch: reading one copies nothing.

use bytes::Bytes;
use eshaar_model::Timestamp;

use crate::{Headers, LogPosition, NewRecord, Record, Topic};

const VERSION: u8 = 1;
const PREFIX: usize = 8 + 2 + 4 + 4;

/// A row is closed when it has this many bytes, so that a reader that wants one record never reads much more.
const ROW_BYTES: usize = 1 << 20;

/// Records with consecutive offsets. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    /// Offset of the first record.
    pub base: u64,
    /// How many records; at least 1.
    pub count: u32,
    /// Newest time of a record in it, in milliseconds.
    pub newest: i64,
    /// Newest time of a record in it or before it. Never falls from batch to batch, so it can be searched.
    pub reached: i64,
    /// The encoded records.
    pub data: Bytes,
}

impl Batch {
    /// The offset after the last record.
    pub const fn end(&self) -> u64 {
        self.base + self.count as u64
    }

    /// Whether the bytes are `count` whole records. What is read from a file is checked once, here.
    pub fn is_whole(&self) -> bool {
        let mut at = 1;
        let whole = (0..self.count).all(|_| match Frame::parse(&self.data, at) {
            Some(frame) => {
                at = frame.end;
                true
            }
            None => false,
        });
        self.count > 0 && whole && self.data.first() == Some(&VERSION) && at == self.data.len()
    }
}

/// Encodes records of one partition into batches.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    expected: usize,
    base: u64,
    count: u32,
    newest: i64,
    reached: i64,
    data: Vec<u8>,
    done: Vec<Batch>,
}

/// How many bytes a record takes.
pub(super) fn encoded_len(record: &NewRecord) -> usize {
    PREFIX + record.key.len() + record.headers.as_bytes().len() + record.value.len()
}

impl Encoder {
    /// Whether nothing is expected of it.
    pub const fn is_idle(&self) -> bool {
        self.expected == 0
    }

    /// Says that a record will be pushed, so that memory is taken once and exactly.
    pub fn expect(&mut self, record: &NewRecord) {
        self.expected += encoded_len(record);
    }

    /// Begins at offset `base`; `reached` is the newest time before it.
    pub fn begin(&mut self, base: u64, reached: i64) {
        self.base = base;
        self.reached = reached;
    }

    /// Adds a record; returns its offset.
    pub fn push(&mut self, record: &NewRecord) -> u64 {
        let length = encoded_len(record);
        if self.count > 0 && self.data.len() + length > ROW_BYTES {
            self.close();
        }
        if self.count == 0 {
            self.data = Vec::with_capacity(1 + self.expected.min(ROW_BYTES).max(length));
            self.data.push(VERSION);
            self.newest = i64::MIN;
        }
        self.expected = self.expected.saturating_sub(length);
        let headers = record.headers.as_bytes();
        self.data.extend_from_slice(&record.timestamp.as_millis().to_le_bytes());
        self.data.extend_from_slice(&(record.key.len() as u16).to_le_bytes());
        self.data.extend_from_slice(&(headers.len() as u32).to_le_bytes());
        self.data.extend_from_slice(&(record.value.len() as u32).to_le_bytes());
        self.data.extend_from_slice(&record.key);
        self.data.extend_from_slice(headers);
        self.data.extend_from_slice(&record.value);
        self.newest = self.newest.max(record.timestamp.as_millis());
        self.count += 1;
        self.base + u64::from(self.count) - 1
    }

    fn close(&mut self) {
        self.reached = self.reached.max(self.newest);
        self.done.push(Batch {
            base: self.base,
            count: self.count,
            newest: self.newest,
            reached: self.reached,
            data: Bytes::from(std::mem::take(&mut self.data)),
        });
        self.base += u64::from(self.count);
        self.count = 0;
    }

    /// The batches; the encoder is as new after it.
    pub fn finish(&mut self) -> Vec<Batch> {
        if self.count > 0 {
            self.close();
        }
        self.expected = 0;
        std::mem::take(&mut self.done)
    }
}

/// Where the parts of a record lie in a batch.
struct Frame {
    timestamp: i64,
    headers: usize,
    value: usize,
    key: usize,
    end: usize,
}

impl Frame {
    fn parse(data: &[u8], at: usize) -> Option<Self> {
        let (timestamp, rest) = data.get(at..)?.split_first_chunk::<8>()?;
        let (key, rest) = rest.split_first_chunk::<2>()?;
        let (headers, rest) = rest.split_first_chunk::<4>()?;
        let (value, _) = rest.split_first_chunk::<4>()?;
        let key_at = at + PREFIX;
        let headers_at = key_at + usize::from(u16::from_le_bytes(*key));
        let value_at = headers_at.checked_add(u32::from_le_bytes(*headers) as usize)?;
        let end = value_at.checked_add(u32::from_le_bytes(*value) as usize)?;
        let timestamp = i64::from_le_bytes(*timestamp);
        (end <= data.len()).then_some(Self { timestamp, key: key_at, headers: headers_at, value: value_at, end })
    }
}

/// Reads the records of a batch in order.
#[derive(Debug)]
pub(super) struct BatchCursor {
    topic: Topic,
    partition: u32,
    next: u64,
    end: u64,
    at: usize,
    data: Bytes,
}

impl BatchCursor {
    /// Begins at `offset` or, where the batch begins later, at its first record.
    pub fn new(topic: Topic, partition: u32, batch: &Batch, offset: u64) -> Self {
        let mut cursor = Self { topic, partition, next: batch.base, end: batch.end(), at: 1, data: batch.data.clone() };
        while cursor.next < offset.min(cursor.end) {
            let Some(frame) = Frame::parse(&cursor.data, cursor.at) else {
                cursor.end = cursor.next;
                break;
            };
            cursor.at = frame.end;
            cursor.next += 1;
        }
        cursor
    }

    /// Whether there is another record.
    pub const fn has_some(&self) -> bool {
        self.next < self.end
    }
}

impl Iterator for BatchCursor {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if self.next >= self.end {
            return None;
        }
        let Some(frame) = Frame::parse(&self.data, self.at) else {
            // Cannot be: batches are checked where they are read. It must not be asked for ever.
            self.end = self.next;
            return None;
        };
        let position = LogPosition { topic: self.topic, partition: self.partition, offset: self.next };
        self.next += 1;
        self.at = frame.end;
        Some(Record {
            position,
            timestamp: Timestamp::from_millis(frame.timestamp),
            key: self.data.slice(frame.key..frame.headers),
            headers: Headers::from_bytes(self.data.slice(frame.headers..frame.value)),
            value: self.data.slice(frame.value..frame.end),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(key: &[u8], value: &[u8], at: i64) -> NewRecord {
        NewRecord {
            topic: Topic::LaneHigh,
            partition: None,
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
            headers: Headers::new([("name", value)]),
            timestamp: Timestamp::from_millis(at),
        }
    }

    fn encode(records: &[NewRecord], base: u64) -> Vec<Batch> {
        let mut encoder = Encoder::default();
        for record in records {
            encoder.expect(record);
        }
        encoder.begin(base, 0);
        for (place, record) in records.iter().enumerate() {
            assert_eq!(encoder.push(record), base + place as u64);
        }
        encoder.finish()
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back_from_any_offset(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..40),
            base in 0_u64..1_000_000,
            skip in 0_usize..40,
        ) {
            let records: Vec<_> =
                values.iter().enumerate().map(|(n, value)| record(b"key", value, n as i64)).collect();
            let batches = encode(&records, base);
            prop_assert_eq!(batches.len(), 1);
            prop_assert!(batches[0].is_whole());
            prop_assert_eq!(batches[0].data.len(), 1 + records.iter().map(encoded_len).sum::<usize>());
            let cursor = BatchCursor::new(Topic::LaneHigh, 2, &batches[0], base + skip as u64);
            let read: Vec<_> = cursor.collect();
            prop_assert_eq!(read.len(), records.len().saturating_sub(skip));
            for (found, given) in read.iter().zip(records.iter().skip(skip)) {
                prop_assert_eq!(&found.value, &given.value);
                prop_assert_eq!(&found.key, &given.key);
                prop_assert_eq!(&found.headers, &given.headers);
                prop_assert_eq!(found.timestamp, given.timestamp);
            }
        }

        #[test]
        fn bytes_that_are_no_batch_are_found_out_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let batch = Batch { base: 0, count: 3, newest: 0, reached: 0, data: Bytes::from(bytes) };
            let read = BatchCursor::new(Topic::LaneHigh, 0, &batch, 1).count();
            prop_assert!(read <= 3);
            let _ = batch.is_whole();
        }
    }

    #[test]
    fn a_cut_batch_is_not_whole() {
        let batch = encode(&[record(b"k", b"value", 1), record(b"k", b"other", 2)], 7).remove(0);
        for cut in 0..batch.data.len() {
            let torn = Batch { data: batch.data.slice(..cut), ..batch.clone() };
            assert!(!torn.is_whole(), "{cut}");
        }
    }

    #[test]
    fn a_large_append_is_split_into_rows_and_the_reached_time_never_falls() {
        let value = vec![0; 60_000];
        let records: Vec<_> = [5, 9, 3, 4, 20].into_iter().map(|at| record(b"k", &value, at)).collect();
        let many: Vec<_> = records.iter().cycle().take(40).cloned().collect();
        let batches = encode(&many, 10);
        assert!(batches.len() > 1);
        assert_eq!(batches.iter().map(|batch| batch.count).sum::<u32>(), 40);
        assert!(batches.windows(2).all(|pair| pair[0].end() == pair[1].base && pair[0].reached <= pair[1].reached));
        assert!(batches.iter().all(|batch| batch.is_whole() && batch.data.len() <= ROW_BYTES + 1));
    }
}
