//! Appending and reading.

use futures_util::FutureExt;

use super::{Subject, TOPIC, append_numbers, number_of, numbered, position, read_all, read_some, record_at, soon};
use crate::log::MAX_VALUE_BYTES;
use crate::partitioner::partition_of;
use crate::{AppendError, Bounds, Headers, NewRecord, Topic};

pub async fn positions_come_back_in_the_order_of_the_records(subject: &mut impl Subject) {
    let (log, now) = (subject.log(), subject.now());
    let records = vec![
        numbered(TOPIC, 1, 0, now),
        numbered(Topic::LaneHigh, 1, 1, now),
        numbered(TOPIC, 0, 2, now),
        numbered(TOPIC, 1, 3, now),
    ];
    for round in 0..3 {
        let positions = log.append(records.clone()).await.unwrap();
        let expected = [
            position(TOPIC, 1, 2 * round),
            position(Topic::LaneHigh, 1, round),
            position(TOPIC, 0, round),
            position(TOPIC, 1, 2 * round + 1),
        ];
        assert_eq!(positions, expected);
    }
    assert!(log.append(Vec::new()).await.unwrap().is_empty());
    let numbers: Vec<_> = read_all(&*log, TOPIC, 1).await.iter().map(number_of).collect();
    assert_eq!(numbers, [0, 3, 0, 3, 0, 3]);
}

pub async fn a_key_has_one_partition_and_its_records_stay_in_order(subject: &mut impl Subject) {
    let (log, now) = (subject.log(), subject.now().as_millis());
    let keys: Vec<String> = (0..50).map(|n| format!("+96650000{n:04}")).collect();
    for round in 0..10_u64 {
        let records = keys.iter().map(|key| record_at(TOPIC, key, round.to_le_bytes(), now)).collect();
        for (key, position) in keys.iter().zip(log.append(records).await.unwrap()) {
            assert_eq!(position.partition, partition_of(key.as_bytes(), log.partitions(TOPIC)));
        }
    }
    let mut seen = 0;
    for partition in 0..log.partitions(TOPIC) {
        let records = read_all(&*log, TOPIC, partition).await;
        for key in &keys {
            let of_key: Vec<_> = records.iter().filter(|record| record.key == *key).map(number_of).collect();
            assert!(of_key.is_empty() || of_key == (0..10).collect::<Vec<_>>(), "{key}: {of_key:?}");
            seen += of_key.len();
        }
    }
    assert_eq!(seen, 500);
}

pub async fn a_record_is_read_as_it_was_written(subject: &mut impl Subject) {
    let log = subject.log();
    let headers = Headers::new([("ce_id", &b"id"[..]), ("es-lane", b""), ("ce_id", b"again"), ("raw", &[0, 255])]);
    let at = subject.now().plus_millis(-1);
    let written: Vec<NewRecord> = [&b""[..], b"value", &[0, 1, 254, 255]]
        .into_iter()
        .map(|value| NewRecord {
            partition: Some(0),
            headers: headers.clone(),
            ..record_at(TOPIC, "+966500000001", value, at.as_millis())
        })
        .collect();
    log.append(written.clone()).await.unwrap();
    for (offset, (read, written)) in read_all(&*log, TOPIC, 0).await.iter().zip(&written).enumerate() {
        assert_eq!(read.position, position(TOPIC, 0, offset as u64));
        assert_eq!((&read.key, &read.value), (&written.key, &written.value));
        assert_eq!(read.headers, headers);
        assert_eq!(read.timestamp, at);
    }
}

pub async fn a_batch_with_a_record_that_is_not_allowed_is_refused_whole(subject: &mut impl Subject) {
    let (log, now) = (subject.log(), subject.now());
    let no_key = NewRecord { key: bytes::Bytes::new(), ..numbered(TOPIC, 0, 2, now) };
    let no_text = NewRecord { key: bytes::Bytes::from_static(&[0xff]), ..numbered(TOPIC, 0, 2, now) };
    let no_partition = numbered(TOPIC, log.partitions(TOPIC), 2, now);
    for bad in [no_key, no_text, no_partition] {
        let batch = vec![numbered(TOPIC, 0, 1, now), bad];
        assert!(matches!(log.append(batch).await, Err(AppendError::Refused { .. })));
    }
    assert_eq!(log.bounds(TOPIC, 0).await.unwrap(), Bounds { start: 0, end: 0 });
}

pub async fn the_longest_value_is_taken_and_one_byte_more_is_refused(subject: &mut impl Subject) {
    let (log, now) = (subject.log(), subject.now().as_millis());
    let of = |length| record_at(TOPIC, "k", vec![7; length], now);
    let at = log.append(vec![of(MAX_VALUE_BYTES), of(MAX_VALUE_BYTES)]).await.unwrap()[0];
    let Err(AppendError::Refused { reason }) = log.append(vec![of(1), of(MAX_VALUE_BYTES + 1)]).await else {
        panic!("it was not refused");
    };
    assert!(reason.contains("1048577") && reason.contains("1048576"), "it says what is allowed: {reason}");
    let read = read_all(&*log, TOPIC, at.partition).await;
    assert_eq!(read.iter().map(|record| record.value.len()).collect::<Vec<_>>(), [MAX_VALUE_BYTES; 2]);
}

pub async fn reading_begins_at_any_offset(subject: &mut impl Subject) {
    let log = subject.log();
    append_numbers(&*log, TOPIC, 2, 0..40, 7, subject.now()).await;
    for offset in 0..40 {
        let mut reader = log.read(TOPIC, 2, offset).await.unwrap();
        assert_eq!((reader.source(), reader.next_offset()), ((TOPIC, 2), offset));
        let records = read_some(&mut *reader, (40 - offset) as usize).await;
        assert!(records.iter().map(number_of).eq(offset..40));
        assert!(records.iter().map(|record| record.position.offset).eq(offset..40));
        assert_eq!(reader.next_offset(), 40);
    }
    // Past the end is the end.
    let mut reader = log.read(TOPIC, 2, 1000).await.unwrap();
    append_numbers(&*log, TOPIC, 2, 40..41, 1, subject.now()).await;
    assert_eq!(number_of(&read_some(&mut *reader, 1).await[0]), 40);
    assert!(log.read(TOPIC, log.partitions(TOPIC), 0).await.is_err());
}

pub async fn a_reader_at_the_end_waits_for_the_next_record(subject: &mut impl Subject) {
    let (log, now) = (subject.log(), subject.now());
    let mut reader = log.read(TOPIC, 0, 0).await.unwrap();
    assert!(reader.take(10).is_empty());
    assert!(reader.ready().now_or_never().is_none());
    let waiting = tokio::spawn(async move {
        reader.ready().await.unwrap();
        number_of(&reader.take(1)[0])
    });
    append_numbers(&*log, TOPIC, 1, 0..1, 1, now).await;
    append_numbers(&*log, TOPIC, 0, 5..6, 1, now).await;
    assert_eq!(soon(waiting).await.unwrap(), 5);
}

pub async fn take_gives_no_more_than_was_asked_for_and_never_waits(subject: &mut impl Subject) {
    let log = subject.log();
    append_numbers(&*log, TOPIC, 0, 0..30, 10, subject.now()).await;
    let mut reader = log.read(TOPIC, 0, 0).await.unwrap();
    let mut numbers = Vec::new();
    for ask in [0, 1, 3, 8, 100, 100] {
        soon(reader.ready()).now_or_never();
        let taken = reader.take(ask);
        assert!(taken.len() <= ask);
        numbers.extend(taken.iter().map(number_of));
    }
    numbers.extend(read_some(&mut *reader, 30 - numbers.len()).await.iter().map(number_of));
    assert!(numbers.into_iter().eq(0..30));
    assert!(reader.take(10).is_empty(), "at the end there is nothing, at once");
}

/// Both where records come from memory and where they have to be fetched.
pub async fn a_wait_that_is_given_up_loses_and_doubles_nothing(subject: &mut impl Subject) {
    let (log, now) = (subject.log(), subject.now());
    append_numbers(&*log, TOPIC, 0, 0..500, 50, now).await;
    subject.restart().await;
    let log_again = subject.log();
    let mut reader = log_again.read(TOPIC, 0, 0).await.unwrap();
    let appended = tokio::spawn({
        let log = subject.log();
        async move { append_numbers(&*log, TOPIC, 0, 500..1000, 5, now).await }
    });
    let mut numbers = Vec::new();
    let mut given_up = 0;
    while numbers.len() < 1000 {
        tokio::select! {
            biased;
            ready = reader.ready() => {
                ready.unwrap();
                numbers.extend(reader.take(7).iter().map(number_of));
            }
            // Gives the wait up whenever it does not end at once.
            () = tokio::task::yield_now() => given_up += 1,
        }
    }
    assert!(numbers.into_iter().eq(0..1000));
    assert!(given_up > 0, "no wait was given up");
    soon(appended).await.unwrap();
}

pub async fn appenders_at_once_leave_no_gap_and_keep_their_own_order(subject: &mut impl Subject) {
    const APPENDERS: u64 = 8;
    const BATCHES: u64 = 40;
    let (log, now) = (subject.log(), subject.now());
    let tasks: Vec<_> = (0..APPENDERS)
        .map(|appender| {
            let log = subject.log();
            tokio::spawn(async move {
                for batch in 0..BATCHES {
                    let records = (0..5).map(|n| {
                        let number = appender << 32 | (batch * 5 + n);
                        numbered(TOPIC, (number % 2) as u32, number, now)
                    });
                    let records: Vec<_> = records.collect();
                    for (record, position) in records.iter().zip(log.append(records.clone()).await.unwrap()) {
                        assert_eq!(record.partition, Some(position.partition));
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        soon(task).await.unwrap();
    }
    let mut total = 0;
    for partition in 0..2 {
        let records = read_all(&*log, TOPIC, partition).await;
        assert!(records.iter().map(|record| record.position.offset).eq(0..records.len() as u64));
        for appender in 0..APPENDERS {
            let own: Vec<_> = records.iter().map(number_of).filter(|number| number >> 32 == appender).collect();
            assert!(own.is_sorted() && own.len() as u64 == BATCHES * 5 / 2);
            total += own.len() as u64;
        }
    }
    assert_eq!(total, APPENDERS * BATCHES * 5);
}

pub async fn topics_of_every_durability_are_appended_in_one_batch(subject: &mut impl Subject) {
    let (log, now) = (subject.log(), subject.now());
    let topics = [Topic::Deliveries, Topic::LaneHigh, Topic::MessagesAccepted, Topic::Deliveries, Topic::LaneHigh];
    let batch = topics.into_iter().enumerate().map(|(n, topic)| numbered(topic, 0, n as u64, now)).collect();
    let positions = log.append(batch).await.unwrap();
    let expected = [0, 0, 0, 1, 1];
    for ((found, topic), offset) in positions.into_iter().zip(topics).zip(expected) {
        assert_eq!(found, position(topic, 0, offset));
    }
    for (topic, numbers) in [(Topic::Deliveries, vec![0, 3]), (Topic::LaneHigh, vec![1, 4])] {
        assert_eq!(read_all(&*log, topic, 0).await.iter().map(number_of).collect::<Vec<_>>(), numbers);
    }
}
