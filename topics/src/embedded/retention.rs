//! Letting go of records that are past the time their topic keeps them.
//!
//! Rows go from the oldest on, in slices, on the writer thread between groups. Their pages are used again by new rows:
//! the file does not shrink, and it does not grow once as much goes as comes.

use eshaar_model::Timestamp;
use rusqlite::params;

use super::Shared;
use super::file::{File, failed, offset_of};
use super::partition::Partition;
use crate::LogError;

/// Rows of a partition that go in one slice.
const SLICE_ROWS: usize = 128;
/// Bytes of a partition that go in one slice: freeing a row walks all its pages.
const SLICE_BYTES: i64 = 8 << 20;

/// What a slice has done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Swept {
    pub rows: usize,
    /// Whether there is more to do.
    pub more: bool,
}

/// One slice of every partition.
pub(super) fn sweep(file: &File, shared: &Shared) -> Result<Swept, LogError> {
    let now = shared.clock.now();
    let mut swept = Swept::default();
    for partition in shared.partitions.all() {
        let kept = i64::try_from(partition.topic.spec().kept_ms).unwrap_or(i64::MAX);
        let cutoff = now.plus_millis(-kept);
        if partition.in_memory {
            partition.drop_older_than(cutoff.as_millis());
            continue;
        }
        let slice = sweep_partition(file, partition, cutoff).map_err(failed("let go of old records"))?;
        swept.rows += slice.rows;
        swept.more |= slice.more;
        let in_memory = i64::try_from(shared.options.tail_ms).unwrap_or(i64::MAX);
        partition.drop_older_than(now.plus_millis(-in_memory).as_millis());
    }
    Ok(swept)
}

fn sweep_partition(file: &File, partition: &Partition, cutoff: Timestamp) -> rusqlite::Result<Swept> {
    let (low, high) = file.ids.range(partition.topic, partition.number);
    let mut swept = Swept::default();
    let mut last = None;
    {
        let mut statement = file.connection.prepare_cached(
            "SELECT id, count, newest, reached, length(records) FROM batches WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
        )?;
        let mut rows = statement.query([low, high])?;
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            if row.get::<_, i64>(2)? >= cutoff.as_millis() {
                break;
            }
            if swept.rows == SLICE_ROWS || bytes >= SLICE_BYTES {
                swept.more = true;
                break;
            }
            bytes += row.get::<_, i64>(4)?;
            swept.rows += 1;
            let (id, count): (i64, u32) = (row.get(0)?, row.get(1)?);
            last = Some((id, offset_of(id) + u64::from(count), row.get::<_, i64>(3)?));
        }
    }
    let Some((last, start, reached)) = last else { return Ok(swept) };
    let transaction = file.connection.unchecked_transaction()?;
    // The start outlives the rows: offsets go on where they were when all of them are gone.
    transaction
        .prepare_cached(
            "INSERT INTO starts (id, start, reached) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET start = excluded.start, reached = excluded.reached",
        )?
        .execute(params![low, start as i64, reached])?;
    transaction.prepare_cached("DELETE FROM batches WHERE id BETWEEN ?1 AND ?2")?.execute([low, last])?;
    transaction.commit()?;
    partition.forget_before(start);
    Ok(swept)
}
