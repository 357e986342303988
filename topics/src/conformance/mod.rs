//! What every engine of the log must do: one suite, run against each. `records` (append and read) · `groups` (who reads
//! what) · `kept` (what stays, for how long, over a restart) · `retries` (the runner's retry topics on the engine).
//!
//! An engine's tests say [`conformance_tests!`](crate::conformance_tests) with a function that opens an empty log.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a suite of tests: it panics to say what is wrong")]

pub mod groups;
pub mod kept;
pub mod records;
pub mod retries;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::Timestamp;
use tokio::time::timeout;

use crate::{Headers, Log, LogPosition, NewRecord, Reader, Record, Topic};

/// A log under test.
#[async_trait]
pub trait Subject: Send {
    /// The log as it is open now.
    fn log(&self) -> Arc<dyn Log>;

    /// Closes the log in order and opens it again on what it holds.
    async fn restart(&mut self);

    /// Lets `millis` pass and the log let go of what is past its time.
    async fn age(&mut self, millis: i64);

    /// The present, as the log sees it.
    fn now(&self) -> Timestamp;
}

/// Longer than anything here takes on a busy machine: what hangs fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// The topic most tests use: durable and keyed.
const TOPIC: Topic = Topic::LaneNormal;

/// Ends a future, or the test.
async fn soon<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("it did not end in time")
}

/// A record of `topic` made at `at`.
fn record_at(topic: Topic, key: &str, value: impl Into<Vec<u8>>, at: i64) -> NewRecord {
    NewRecord {
        topic,
        partition: None,
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::from(value.into()),
        headers: Headers::none(),
        timestamp: Timestamp::from_millis(at),
    }
}

/// A record for one partition, with a number for a value.
fn numbered(topic: Topic, partition: u32, number: u64, at: Timestamp) -> NewRecord {
    let record = record_at(topic, "key", number.to_le_bytes(), at.as_millis());
    NewRecord { partition: Some(partition), ..record }
}

fn number_of(record: &Record) -> u64 {
    u64::from_le_bytes(record.value[..].try_into().unwrap())
}

/// Appends the numbers of a range to a partition, in batches of `batch`.
async fn append_numbers(
    log: &dyn Log,
    topic: Topic,
    partition: u32,
    numbers: std::ops::Range<u64>,
    batch: usize,
    at: Timestamp,
) {
    let records: Vec<_> = numbers.map(|number| numbered(topic, partition, number, at)).collect();
    for records in records.chunks(batch) {
        soon(log.append(records.to_vec())).await.unwrap();
    }
}

/// Reads `count` records.
async fn read_some(reader: &mut dyn Reader, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    while records.len() < count {
        soon(reader.ready()).await.unwrap();
        let taken = reader.take(count - records.len());
        assert!(!taken.is_empty(), "it was ready and had nothing to give");
        records.extend(taken);
    }
    records
}

/// Everything a partition holds now.
async fn read_all(log: &dyn Log, topic: Topic, partition: u32) -> Vec<Record> {
    let bounds = log.bounds(topic, partition).await.unwrap();
    let mut reader = log.read(topic, partition, 0).await.unwrap();
    read_some(&mut *reader, (bounds.end - bounds.start) as usize).await
}

fn position(topic: Topic, partition: u32, offset: u64) -> LogPosition {
    LogPosition { topic, partition, offset }
}

/// Makes a test of each check of the suite. `$open` is an async function that opens an empty log as a
/// [`Subject`](crate::conformance::Subject); attributes for the tests may follow, e.g. `ignore = "…"`.
#[macro_export]
macro_rules! conformance_tests {
    ($open:path $(, $attribute:meta)*) => {
        $crate::conformance_tests! { @each $open, [$(#[$attribute])*], records:
            positions_come_back_in_the_order_of_the_records,
            a_key_has_one_partition_and_its_records_stay_in_order,
            a_record_is_read_as_it_was_written,
            a_batch_with_a_record_that_is_not_allowed_is_refused_whole,
            the_longest_value_is_taken_and_one_byte_more_is_refused,
            reading_begins_at_any_offset,
            a_reader_at_the_end_waits_for_the_next_record,
            take_gives_no_more_than_was_asked_for_and_never_waits,
            a_wait_that_is_given_up_loses_and_doubles_nothing,
            appenders_at_once_leave_no_gap_and_keep_their_own_order,
            topics_of_every_durability_are_appended_in_one_batch,
        }
        $crate::conformance_tests! { @each $open, [$(#[$attribute])*], groups:
            one_member_owns_everything,
            a_group_goes_on_where_it_committed,
            groups_do_not_see_each_others_commits,
            a_new_group_begins_where_it_says,
            a_second_member_gets_its_share_once_it_is_released,
            what_a_member_leaves_goes_to_the_others,
            a_member_that_vanishes_has_left,
            a_slow_member_keeps_its_partitions_and_may_commit_until_it_releases,
            a_commit_for_what_was_given_up_is_refused,
            topics_that_do_not_match_are_not_joined,
            members_that_come_and_go_handle_every_record_once,
        }
        $crate::conformance_tests! { @each $open, [$(#[$attribute])*], kept:
            records_bounds_commits_and_epoch_outlive_a_restart,
            records_past_their_time_go_and_offsets_go_on,
            offsets_go_on_when_every_record_is_gone,
            a_reader_of_records_that_are_gone_goes_on_at_the_oldest,
            a_group_is_told_of_records_that_were_deleted_before_it_read_them,
            the_first_record_of_a_time_is_found,
        }
        $crate::conformance_tests! { @each $open, [$(#[$attribute])*], retries:
            a_record_that_failed_is_tried_again_in_order_by_whoever_owns_it_then,
        }
    };
    (@each $open:path, $attributes:tt, $module:ident: $($name:ident,)*) => {
        $($crate::conformance_tests! { @one $open, $attributes, $module, $name })*
    };
    (@one $open:path, [$($attribute:tt)*], $module:ident, $name:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        $($attribute)*
        async fn $name() {
            $crate::conformance::$module::$name(&mut $open().await).await;
        }
    };
}
