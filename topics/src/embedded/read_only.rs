//! The log's file as another process sees it, while a server writes it: for `eshaar topics tail`.

use std::path::Path;

use super::batch::BatchCursor;
use super::file::File;
use crate::{Bounds, LogError, Record, Topic};
use eshaar_model::Timestamp;

/// Bytes of records that are read at a time.
const READ_BYTES: usize = 1 << 20;

/// Reads a log that somebody else may be writing. Calls block; topics that are only kept in memory look empty.
///
/// There is no waiting: ask again from the last offset after a while.
pub struct ReadOnlyLog(File);

impl ReadOnlyLog {
    /// Opens the log in `dir`, which must exist.
    pub fn open(dir: &Path) -> Result<Self, LogError> {
        File::open_read_only(dir).map(Self)
    }

    /// The offsets a partition holds.
    pub fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        let extent = self.0.extent(topic, partition)?;
        Ok(Bounds { start: extent.start, end: extent.end })
    }

    /// The lowest offset of a record made at `at` or later; the end where there is none.
    pub fn offset_at(&self, topic: Topic, partition: u32, at: Timestamp) -> Result<u64, LogError> {
        match self.0.offset_at(topic, partition, at)? {
            Some(offset) => Ok(offset),
            None => self.bounds(topic, partition).map(|bounds| bounds.end),
        }
    }

    /// At most `max` records from `offset` on, in order; none at the end. An offset older than what is kept begins at the
    /// oldest.
    pub fn read(&self, topic: Topic, partition: u32, offset: u64, max: usize) -> Result<Vec<Record>, LogError> {
        let batches = self.0.batches(topic, partition, offset, READ_BYTES)?;
        let records = batches.iter().flat_map(|batch| BatchCursor::new(topic, partition, batch, offset));
        Ok(records.take(max).collect())
    }
}
