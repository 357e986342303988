//! What stays: over a restart, and over time.

use eshaar_model::Timestamp;

use super::{Subject, TOPIC, append_numbers, number_of, numbered, read_all, read_some, soon};
use crate::{Assignment, Bounds, ConsumerEvent, Gap, StartAt, Topic};

pub async fn records_bounds_commits_and_epoch_outlive_a_restart(subject: &mut impl Subject) {
    let (log, now) = (subject.log(), subject.now());
    append_numbers(&*log, TOPIC, 3, 0..100, 8, now).await;
    append_numbers(&*log, Topic::MessagesAccepted, 0, 0..10, 3, now).await;
    let epoch = log.epoch();
    {
        let mut consumer = log.join("stage", &[TOPIC], StartAt::Oldest).await.unwrap();
        let Ok(ConsumerEvent::Assigned(assignment)) = consumer.event().await else { panic!("not assigned") };
        consumer.committer().commit(assignment.generation, &[(TOPIC, 3, 42)]).await.unwrap();
    }
    drop(log);
    for restarts in 0..3 {
        subject.restart().await;
        let log = subject.log();
        assert_eq!(log.epoch(), epoch);
        assert_eq!(log.committed("stage", TOPIC, 3).await.unwrap(), Some(42));
        assert_eq!(log.bounds(Topic::MessagesAccepted, 0).await.unwrap(), Bounds { start: 0, end: 10 });
        append_numbers(&*log, TOPIC, 3, 100 + restarts..101 + restarts, 1, now).await;
        let records = read_all(&*log, TOPIC, 3).await;
        assert!(records.iter().map(number_of).eq(0..101 + restarts));
        assert!(records.iter().all(|record| record.position.offset == number_of(record)));
    }
}

/// Appends three days' records, one batch a day, and returns when each was made.
async fn three_days(subject: &mut impl Subject) -> [Timestamp; 3] {
    let mut days = [subject.now(); 3];
    for day in 0..3_u64 {
        days[day as usize] = subject.now();
        append_numbers(&*subject.log(), Topic::MessagesAccepted, 0, day * 10..day * 10 + 10, 10, subject.now()).await;
        subject.age(86_400_000).await;
    }
    days
}

pub async fn records_past_their_time_go_and_offsets_go_on(subject: &mut impl Subject) {
    let topic = Topic::MessagesAccepted;
    three_days(subject).await;
    let log = subject.log();
    assert_eq!(log.bounds(topic, 0).await.unwrap(), Bounds { start: 0, end: 30 });
    let kept = i64::try_from(topic.spec().kept_ms).unwrap();
    subject.age(kept - 2 * 86_400_000 + 1).await;
    assert_eq!(log.bounds(topic, 0).await.unwrap(), Bounds { start: 20, end: 30 });
    assert!(read_all(&*log, topic, 0).await.iter().map(number_of).eq(20..30));
    let position = log.append(vec![numbered(topic, 0, 30, subject.now())]).await.unwrap()[0];
    assert_eq!(position.offset, 30);
}

pub async fn offsets_go_on_when_every_record_is_gone(subject: &mut impl Subject) {
    let topic = Topic::MessagesAccepted;
    three_days(subject).await;
    subject.age(i64::try_from(topic.spec().kept_ms).unwrap()).await;
    for round in 0..2 {
        let log = subject.log();
        assert_eq!(log.bounds(topic, 0).await.unwrap(), Bounds { start: 30, end: 30 });
        assert_eq!(log.offset_at(topic, 0, Timestamp::from_millis(0)).await.unwrap(), 30);
        if round == 0 {
            drop(log);
            subject.restart().await;
        }
    }
    let log = subject.log();
    append_numbers(&*log, topic, 0, 30..32, 1, subject.now()).await;
    assert_eq!(read_all(&*log, topic, 0).await[0].position.offset, 30);
}

pub async fn a_reader_of_records_that_are_gone_goes_on_at_the_oldest(subject: &mut impl Subject) {
    let topic = Topic::MessagesAccepted;
    let log = subject.log();
    let mut early = log.read(topic, 0, 0).await.unwrap();
    three_days(subject).await;
    assert_eq!(read_some(&mut *early, 3).await.len(), 3);
    subject.age(i64::try_from(topic.spec().kept_ms).unwrap() - 2 * 86_400_000 + 1).await;
    let mut late = log.read(topic, 0, 5).await.unwrap();
    assert!(read_some(&mut *late, 10).await.iter().map(number_of).eq(20..30));
    // One that holds records already may give those first; what follows them is the oldest kept.
    let mut last = 2;
    while early.next_offset() < 30 {
        for record in read_some(&mut *early, 1).await {
            let number = number_of(&record);
            assert!(number == last + 1 || number == 20, "{number} after {last}");
            last = number;
        }
    }
}

pub async fn a_group_is_told_of_records_that_were_deleted_before_it_read_them(subject: &mut impl Subject) {
    let topic = Topic::MessagesAccepted;
    let log = subject.log();
    let join = async |group: &str, start| {
        let mut consumer = log.join(group, &[topic], start).await.unwrap();
        let Ok(ConsumerEvent::Assigned(assignment)) = soon(consumer.event()).await else { panic!("not assigned") };
        (consumer, assignment)
    };
    let begins = |assignment: &Assignment, partition| {
        let stream = assignment.partitions.iter().find(|stream| stream.source() == (topic, partition)).unwrap();
        (stream.next_offset(), stream.gap_before())
    };
    for (group, committed) in [("behind", 5), ("in-time", 20)] {
        let (consumer, assignment) = join(group, StartAt::Oldest).await;
        assert_eq!(begins(&assignment, 0), (0, None));
        append_numbers(&*log, topic, 0, 0..1, 1, subject.now()).await;
        consumer.committer().commit(assignment.generation, &[(topic, 0, committed)]).await.unwrap();
        consumer.leave().await;
    }
    append_numbers(&*log, topic, 0, 2..20, 10, subject.now()).await;
    subject.age(i64::try_from(topic.spec().kept_ms).unwrap() + 1).await;
    append_numbers(&*log, topic, 0, 20..23, 10, subject.now()).await;
    let deleted = |from| Some(Gap { topic, partition: 0, from, to: 20 });
    for (group, start, gap) in [
        ("behind", StartAt::Oldest, deleted(5)),
        ("in-time", StartAt::Oldest, None),
        ("never", StartAt::Oldest, deleted(0)),
    ] {
        let (consumer, assignment) = join(group, start).await;
        assert_eq!(begins(&assignment, 0), (20, gap), "{group}");
        assert_eq!(begins(&assignment, 1), (0, None), "{group}");
        consumer.leave().await;
    }
    let (_consumer, assignment) = join("from-the-end", StartAt::End).await;
    assert_eq!(begins(&assignment, 0), (23, None));
}

pub async fn the_first_record_of_a_time_is_found(subject: &mut impl Subject) {
    let log = subject.log();
    let start = subject.now();
    // Not in the order of time: a record that was held up stands behind younger ones.
    let times = [0, 10, 10, 20, 5, 30, 30, 25, 40];
    for (number, at) in times.into_iter().enumerate() {
        log.append(vec![numbered(TOPIC, 0, number as u64, start.plus_millis(at))]).await.unwrap();
    }
    for at in -1..=41 {
        let first = times.iter().position(|made| *made >= at).unwrap_or(times.len());
        assert_eq!(log.offset_at(TOPIC, 0, start.plus_millis(at)).await.unwrap(), first as u64, "{at}");
    }
    assert_eq!(log.offset_at(TOPIC, 1, start).await.unwrap(), 0, "an empty partition ends where it begins");
    let hints = [numbered(Topic::Deliveries, 0, 0, start), numbered(Topic::Deliveries, 0, 1, start.plus_millis(9))];
    log.append(hints.to_vec()).await.unwrap();
    assert_eq!(log.offset_at(Topic::Deliveries, 0, start.plus_millis(1)).await.unwrap(), 1);
}
