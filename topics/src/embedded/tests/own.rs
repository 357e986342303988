//! What only the embedded log does.

use eshaar_model::Epoch;

use super::{Opened, open};
use crate::conformance::Subject;
use crate::embedded::{EmbeddedLog, ReadOnlyLog};
use crate::{AppendError, Bounds, ConsumerEvent, Headers, Log, LogError, NewRecord, StartAt, Topic};

const TOPIC: Topic = Topic::LaneNormal;

fn record(topic: Topic, partition: u32, bytes: usize, opened: &Opened) -> NewRecord {
    NewRecord {
        topic,
        partition: Some(partition),
        key: "key".into(),
        value: vec![7; bytes].into(),
        headers: Headers::none(),
        timestamp: opened.clock.now(),
    }
}

#[tokio::test]
async fn a_full_file_fails_appends_without_a_gap_and_takes_them_again_when_there_is_room() {
    let mut opened = Opened::with(|options| options.max_file_bytes = 2 << 20).await;
    let mut acknowledged = 0;
    let failed = loop {
        match opened.log.append(vec![record(TOPIC, 0, 100 << 10, &opened)]).await {
            Ok(positions) => {
                assert_eq!(positions[0].offset, acknowledged);
                acknowledged += 1;
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(failed, AppendError::Unknown { .. }), "{failed}");
    assert!((5..30).contains(&acknowledged), "{acknowledged}");
    let expected = Bounds { start: 0, end: acknowledged };
    assert_eq!(opened.log.bounds(TOPIC, 0).await.unwrap(), expected);
    assert!(opened.log.ping().await.is_err(), "health shows it");
    opened.age(i64::try_from(TOPIC.spec().kept_ms).unwrap() + 1).await;
    opened.log.ping().await.unwrap();
    let again = opened.log.append(vec![record(TOPIC, 0, 100 << 10, &opened)]).await.unwrap();
    assert_eq!(again[0].offset, acknowledged);
    opened.restart().await;
    let expected = Bounds { start: acknowledged, end: acknowledged + 1 };
    assert_eq!(opened.log.bounds(TOPIC, 0).await.unwrap(), expected);
}

#[tokio::test]
async fn a_new_epoch_is_kept_and_never_goes_back() {
    let mut opened = Opened::with(|_| {}).await;
    assert_eq!(opened.log.epoch(), Epoch(1));
    opened.log.begin_epoch(Epoch(4)).await.unwrap();
    assert!(opened.log.begin_epoch(Epoch(4)).await.is_err());
    opened.restart().await;
    assert_eq!(opened.log.epoch(), Epoch(4));
}

#[tokio::test]
async fn whoever_waits_is_told_when_the_log_closes_and_what_was_queued_is_kept() {
    let mut opened = Opened::with(|_| {}).await;
    let mut reader = opened.log.read(TOPIC, 0, 0).await.unwrap();
    let mut consumer = opened.log.join("stage", &[TOPIC], StartAt::Oldest).await.unwrap();
    assert!(matches!(consumer.event().await, Ok(ConsumerEvent::Assigned(_))));
    let append = opened.log.append(vec![record(TOPIC, 1, 10, &opened)]);
    // Polled in this order: the append is queued, and most likely not yet committed, when the log is closed.
    let (ready, event, appended, ()) =
        tokio::join!(reader.ready(), consumer.event(), append, async { opened.log.close().await });
    assert!(matches!(ready, Err(LogError::Closed)));
    assert!(matches!(event, Err(LogError::Closed)));
    assert_eq!(appended.unwrap()[0].offset, 0);
    assert!(matches!(opened.log.append(vec![record(TOPIC, 1, 10, &opened)]).await, Err(AppendError::Closed)));
    assert!(matches!(
        opened.log.append(vec![record(Topic::Deliveries, 1, 1, &opened)]).await,
        Err(AppendError::Closed)
    ));
    assert!(matches!(opened.log.ping().await, Err(LogError::Closed)));
    opened.restart().await;
    assert_eq!(opened.log.bounds(TOPIC, 1).await.unwrap(), Bounds { start: 0, end: 1 });
    opened.log.ping().await.unwrap();
}

#[tokio::test]
async fn the_directory_is_handed_over_when_the_log_before_it_is_dropped() {
    let opened = Opened::with(|_| {}).await;
    opened.log.append(vec![record(TOPIC, 0, 10, &opened)]).await.unwrap();
    let (options, clock) = (opened.options.clone(), opened.clock.clone());
    let next = tokio::task::spawn_blocking(move || EmbeddedLog::open(options, clock));
    tokio::task::yield_now().await;
    let Opened { log, _dir, .. } = opened;
    drop(log);
    let next = next.await.unwrap().unwrap();
    assert_eq!(next.bounds(TOPIC, 0).await.unwrap(), Bounds { start: 0, end: 1 });
}

#[tokio::test]
async fn a_member_that_does_not_release_in_time_loses_what_it_was_to_give_up() {
    let opened = Opened::with(|options| options.revoke_timeout_ms = 1).await;
    let mut first = opened.log.join("stage", &[TOPIC], StartAt::Oldest).await.unwrap();
    let Ok(ConsumerEvent::Assigned(assignment)) = first.event().await else { panic!("not assigned") };
    let mut second = opened.log.join("stage", &[TOPIC], StartAt::Oldest).await.unwrap();
    // It does not even listen.
    let Ok(ConsumerEvent::Assigned(moved)) = second.event().await else { panic!("not assigned") };
    let (_, lost) = moved.partitions[0].source();
    let refused = first.committer().commit(assignment.generation, &[(TOPIC, lost, 1)]).await;
    assert!(matches!(refused, Err(LogError::NotOwned { .. })));
    let Ok(ConsumerEvent::Revoked { partitions, release }) = first.event().await else { panic!("not told") };
    assert!(partitions.contains(&lost));
    release.done();
    second.committer().commit(moved.generation, &[(TOPIC, lost, 1)]).await.unwrap();
}

#[tokio::test]
async fn a_full_memory_topic_lets_its_oldest_go_and_keeps_nothing_over_a_restart() {
    let topic = Topic::Deliveries;
    let mut opened = Opened::with(|options| options.memory_topic_bytes = 10_000).await;
    let mut early = opened.log.read(topic, 0, 0).await.unwrap();
    for _ in 0..50 {
        opened.log.append(vec![record(topic, 0, 1000, &opened)]).await.unwrap();
    }
    let bounds = opened.log.bounds(topic, 0).await.unwrap();
    assert!(bounds.end == 50 && (40..45).contains(&bounds.start), "{bounds:?}");
    early.ready().await.unwrap();
    let records = early.take(100);
    assert_eq!((records[0].position.offset, records.len() as u64), (bounds.start, 50 - bounds.start));
    opened.age(i64::try_from(topic.spec().kept_ms).unwrap() + 1).await;
    assert_eq!(opened.log.bounds(topic, 0).await.unwrap(), Bounds { start: 50, end: 50 });
    opened.restart().await;
    assert_eq!(opened.log.bounds(topic, 0).await.unwrap(), Bounds { start: 0, end: 0 });
}

#[tokio::test]
async fn quiet_partitions_leave_memory_and_are_still_read() {
    let mut opened = Opened::with(|_| {}).await;
    opened.log.append(vec![record(TOPIC, 0, 10, &opened); 20]).await.unwrap();
    opened.age(i64::try_from(opened.options.tail_ms).unwrap() + 1).await;
    assert!(opened.log.shared().partition(TOPIC, 0).unwrap().batches().is_empty());
    let mut reader = opened.log.read(TOPIC, 0, 5).await.unwrap();
    reader.ready().await.unwrap();
    assert_eq!(reader.take(100).len(), 15);
}

#[tokio::test]
async fn another_connection_reads_what_is_committed_while_it_is_written() {
    let opened = Opened::with(|_| {}).await;
    let other = ReadOnlyLog::open(&opened.options.dir).unwrap();
    for round in 0..3_u64 {
        opened.log.append(vec![record(TOPIC, 2, 10, &opened); 10]).await.unwrap();
        let end = 10 * (round + 1);
        assert_eq!(other.bounds(TOPIC, 2).unwrap(), Bounds { start: 0, end });
        let read = other.read(TOPIC, 2, end - 4, 3).unwrap();
        assert!(read.iter().map(|record| record.position.offset).eq(end - 4..end - 1));
        assert_eq!(other.offset_at(TOPIC, 2, opened.clock.now().plus_millis(1)).unwrap(), end);
    }
    assert!(other.read(TOPIC, 2, 30, 10).unwrap().is_empty());
    assert_eq!(other.bounds(Topic::Deliveries, 0).unwrap(), Bounds { start: 0, end: 0 });
}

#[tokio::test]
async fn a_damaged_row_is_an_error_that_says_where_it_is() {
    let opened = Opened::with(|options| options.tail_bytes = 0).await;
    opened.log.append(vec![record(TOPIC, 0, 100, &opened); 3]).await.unwrap();
    opened.log.append(vec![record(TOPIC, 0, 100, &opened); 3]).await.unwrap();
    let file = rusqlite::Connection::open(crate::embedded::file::path_in(&opened.options.dir)).unwrap();
    let hurt = file.execute("UPDATE batches SET records = zeroblob(50) WHERE id & 0xffff = 0", []).unwrap();
    assert_eq!(hurt, 1);
    let mut reader = opened.log.read(TOPIC, 0, 0).await.unwrap();
    let error = reader.ready().await.unwrap_err().to_string();
    assert!(error.contains("offset 0") && error.contains("lane.normal"), "{error}");
    let mut behind = opened.log.read(TOPIC, 0, 4).await.unwrap();
    behind.ready().await.unwrap();
    assert_eq!(behind.take(10).len(), 2);
}

#[tokio::test]
async fn a_gap_in_the_file_is_an_error_and_is_not_passed_over() {
    let opened = Opened::with(|options| options.tail_bytes = 0).await;
    for _ in 0..4 {
        opened.log.append(vec![record(TOPIC, 0, 100, &opened); 3]).await.unwrap();
    }
    let file = rusqlite::Connection::open(crate::embedded::file::path_in(&opened.options.dir)).unwrap();
    file.execute("DELETE FROM batches WHERE id & 0xffff = 3", []).unwrap();
    for offset in [0, 3, 4] {
        let mut reader = opened.log.read(TOPIC, 0, offset).await.unwrap();
        let error = reader.ready().await.unwrap_err().to_string();
        assert!(error.contains("read records"), "{error}");
    }
    let mut behind = opened.log.read(TOPIC, 0, 6).await.unwrap();
    behind.ready().await.unwrap();
    assert_eq!(behind.take(10).len(), 6);
}

#[tokio::test]
async fn a_file_with_other_partition_counts_is_not_opened() {
    let opened = Opened::with(|_| {}).await;
    opened.log.close().await;
    let file = rusqlite::Connection::open(crate::embedded::file::path_in(&opened.options.dir)).unwrap();
    file.execute("UPDATE topics SET partitions = 5 WHERE name = 'lane.normal'", []).unwrap();
    drop(file);
    let error = EmbeddedLog::open(opened.options.clone(), opened.clock.clone()).err().unwrap().to_string();
    assert!(error.contains("lane.normal has 5 partitions"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_wait_for_room_and_none_is_lost() {
    let opened = Opened::with(|options| options.queue_bytes = 2 << 10).await;
    let appends = (0..200).map(|_| {
        let (log, record) = (opened.log.clone(), record(TOPIC, 0, 900, &opened));
        tokio::spawn(async move { log.append(vec![record]).await.unwrap()[0].offset })
    });
    let appends: Vec<_> = appends.collect();
    let mut offsets = Vec::new();
    for append in appends {
        offsets.push(append.await.unwrap());
    }
    offsets.sort_unstable();
    assert!(offsets.into_iter().eq(0..200));
    assert_eq!(open_bounds(&opened).await, Bounds { start: 0, end: 200 });
}

async fn open_bounds(opened: &Opened) -> Bounds {
    opened.log.close().await;
    let again = open(&opened.options, &opened.clock).await;
    again.bounds(TOPIC, 0).await.unwrap()
}
