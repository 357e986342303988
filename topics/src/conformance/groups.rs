//! Groups: who reads what, and what they have committed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::{Subject, TOPIC, append_numbers, number_of, read_some, soon};
use crate::{Assignment, Committer, Consumer, ConsumerEvent, Log, LogError, PartitionStream, Release, StartAt, Topic};

const GROUP: &str = "stage";
const LANES: [Topic; 4] = [Topic::LaneHigh, Topic::LaneNormal, Topic::LaneLow, Topic::LaneBulk];

async fn join(subject: &impl Subject, topics: &[Topic]) -> Box<dyn Consumer> {
    subject.log().join(GROUP, topics, StartAt::Oldest).await.unwrap()
}

async fn assigned(consumer: &mut dyn Consumer) -> Assignment {
    match soon(consumer.event()).await.unwrap() {
        ConsumerEvent::Assigned(assignment) => assignment,
        ConsumerEvent::Revoked { partitions, .. } => panic!("expected partitions, {partitions:?} were revoked"),
    }
}

async fn revoked(consumer: &mut dyn Consumer) -> (Vec<u32>, Release) {
    match soon(consumer.event()).await.unwrap() {
        ConsumerEvent::Revoked { partitions, release } => (partitions, release),
        ConsumerEvent::Assigned(_) => panic!("expected a revocation, got partitions"),
    }
}

/// Waits until the member has `wanted`, over as many assignments as it takes.
async fn owns(consumer: &mut dyn Consumer, wanted: &BTreeSet<u32>) {
    let mut owned = BTreeSet::new();
    while &owned != wanted {
        owned.extend(numbers(&assigned(consumer).await));
        assert!(owned.is_subset(wanted), "{owned:?}");
    }
}

/// The partition numbers assigned; every topic of the subscription must be there for each.
fn numbers(assignment: &Assignment) -> BTreeSet<u32> {
    assignment.partitions.iter().map(|stream| stream.source().1).collect()
}

fn stream(assignment: &mut Assignment, topic: Topic, partition: u32) -> &mut PartitionStream {
    assignment.partitions.iter_mut().find(|stream| stream.source() == (topic, partition)).unwrap()
}

fn everything(log: &dyn Log) -> BTreeSet<u32> {
    (0..log.partitions(TOPIC)).collect()
}

pub async fn one_member_owns_everything(subject: &mut impl Subject) {
    let log = subject.log();
    let mut consumer = join(subject, &LANES).await;
    let assignment = assigned(&mut *consumer).await;
    let sources: BTreeSet<_> = assignment.partitions.iter().map(|stream| stream.source()).collect();
    let all = LANES.into_iter().flat_map(|topic| everything(&*log).into_iter().map(move |number| (topic, number)));
    assert_eq!(sources, all.collect());
    assert_eq!(assignment.partitions.len(), sources.len(), "nothing twice");
    assert!(consumer.event().now_or_never().is_none());
}

pub async fn a_group_goes_on_where_it_committed(subject: &mut impl Subject) {
    let log = subject.log();
    append_numbers(&*log, TOPIC, 1, 0..20, 4, subject.now()).await;
    let mut consumer = join(subject, &[TOPIC]).await;
    let mut assignment = assigned(&mut *consumer).await;
    assert_eq!(read_some(&mut **stream(&mut assignment, TOPIC, 1), 10).await.len(), 10);
    assert_eq!(log.committed(GROUP, TOPIC, 1).await.unwrap(), None);
    consumer.committer().commit(assignment.generation, &[(TOPIC, 1, 7)]).await.unwrap();
    assert_eq!(log.committed(GROUP, TOPIC, 1).await.unwrap(), Some(7));
    soon(consumer.leave()).await;

    let mut consumer = join(subject, &[TOPIC]).await;
    let mut assignment = assigned(&mut *consumer).await;
    let again = read_some(&mut **stream(&mut assignment, TOPIC, 1), 13).await;
    assert!(again.iter().map(number_of).eq(7..20));
    assert_eq!(stream(&mut assignment, TOPIC, 0).next_offset(), 0);
}

pub async fn groups_do_not_see_each_others_commits(subject: &mut impl Subject) {
    let log = subject.log();
    append_numbers(&*log, TOPIC, 0, 0..5, 5, subject.now()).await;
    let mut consumer = join(subject, &[TOPIC]).await;
    let assignment = assigned(&mut *consumer).await;
    consumer.committer().commit(assignment.generation, &[(TOPIC, 0, 5)]).await.unwrap();
    assert_eq!(log.committed("another", TOPIC, 0).await.unwrap(), None);
    let (all, ends) = (log.committed_all(GROUP, TOPIC).await.unwrap(), log.ends(TOPIC).await.unwrap());
    assert_eq!((all.len(), ends.len()), (log.partitions(TOPIC) as usize, log.partitions(TOPIC) as usize));
    for (partition, (committed, end)) in (0..).zip(all.into_iter().zip(ends)) {
        assert_eq!(log.committed(GROUP, TOPIC, partition).await.unwrap(), committed);
        assert_eq!(log.bounds(TOPIC, partition).await.unwrap().end, end);
    }
    let mut other = log.join("another", &[TOPIC], StartAt::Oldest).await.unwrap();
    let mut assignment = assigned(&mut *other).await;
    assert_eq!(numbers(&assignment), everything(&*log), "a group of its own owns everything");
    assert_eq!(stream(&mut assignment, TOPIC, 0).next_offset(), 0);
}

pub async fn a_new_group_begins_where_it_says(subject: &mut impl Subject) {
    let (log, now) = (subject.log(), subject.now());
    append_numbers(&*log, TOPIC, 0, 0..5, 5, now).await;
    for (start, first) in [(StartAt::Oldest, 0), (StartAt::End, 5)] {
        let mut consumer = log.join(&format!("{start:?}"), &[TOPIC], start).await.unwrap();
        let mut assignment = assigned(&mut *consumer).await;
        assert_eq!(stream(&mut assignment, TOPIC, 0).next_offset(), first);
    }
    // The end is where it was when the group began, also for whoever comes later.
    append_numbers(&*log, TOPIC, 0, 5..8, 5, now).await;
    let mut consumer = log.join("End", &[TOPIC], StartAt::End).await.unwrap();
    let mut assignment = assigned(&mut *consumer).await;
    assert_eq!(number_of(&read_some(&mut **stream(&mut assignment, TOPIC, 0), 1).await[0]), 5);
}

pub async fn a_second_member_gets_its_share_once_it_is_released(subject: &mut impl Subject) {
    let log = subject.log();
    let mut first = join(subject, &LANES).await;
    assigned(&mut *first).await;
    let mut second = join(subject, &LANES).await;
    let (given_up, release) = revoked(&mut *first).await;
    assert_eq!(given_up.len() as u32, log.partitions(TOPIC) / 2);
    assert!(second.event().now_or_never().is_none(), "nothing is assigned before it is released");
    release.done();
    let after = assigned(&mut *second).await;
    assert_eq!(numbers(&after), given_up.into_iter().collect());
    assert_eq!(after.partitions.len(), numbers(&after).len() * LANES.len(), "all topics of a number together");
    assert!(first.event().now_or_never().is_none(), "what it keeps is not touched");
}

pub async fn what_a_member_leaves_goes_to_the_others(subject: &mut impl Subject) {
    let log = subject.log();
    let mut first = join(subject, &[TOPIC]).await;
    assigned(&mut *first).await;
    let mut second = join(subject, &[TOPIC]).await;
    let (moved, release) = revoked(&mut *first).await;
    drop(release);
    let moved: BTreeSet<u32> = moved.into_iter().collect();
    owns(&mut *second, &moved).await;
    soon(first.leave()).await;
    owns(&mut *second, &everything(&*log).difference(&moved).copied().collect()).await;
}

pub async fn a_member_that_vanishes_has_left(subject: &mut impl Subject) {
    let log = subject.log();
    append_numbers(&*log, TOPIC, 0, 0..3, 3, subject.now()).await;
    let mut first = join(subject, &[TOPIC]).await;
    let mut assignment = assigned(&mut *first).await;
    read_some(&mut **stream(&mut assignment, TOPIC, 0), 3).await;
    drop(first);
    // What it took and did not commit comes again.
    let mut second = join(subject, &[TOPIC]).await;
    let mut assignment = assigned(&mut *second).await;
    assert_eq!(numbers(&assignment), everything(&*log));
    assert_eq!(read_some(&mut **stream(&mut assignment, TOPIC, 0), 3).await.len(), 3);
}

pub async fn a_slow_member_keeps_its_partitions_and_may_commit_until_it_releases(subject: &mut impl Subject) {
    let mut first = join(subject, &[TOPIC]).await;
    let assignment = assigned(&mut *first).await;
    let committer = first.committer();
    let mut second = join(subject, &[TOPIC]).await;
    let (moved, release) = revoked(&mut *first).await;
    for next in 1..50 {
        committer.commit(assignment.generation, &[(TOPIC, moved[0], next)]).await.unwrap();
        assert!(second.event().now_or_never().is_none());
    }
    release.done();
    let assignment = assigned(&mut *second).await;
    assert_eq!(numbers(&assignment), moved.iter().copied().collect());
    assert_eq!(subject.log().committed(GROUP, TOPIC, moved[0]).await.unwrap(), Some(49));
}

pub async fn a_commit_for_what_was_given_up_is_refused(subject: &mut impl Subject) {
    let log = subject.log();
    let mut first = join(subject, &[TOPIC]).await;
    let old = assigned(&mut *first).await.generation;
    let committer = first.committer();
    let mut second = join(subject, &[TOPIC]).await;
    let (moved, release) = revoked(&mut *first).await;
    release.done();
    assigned(&mut *second).await;
    let lost = moved[0];
    let kept = everything(&*log).into_iter().find(|number| !moved.contains(number)).unwrap();
    let refused = committer.commit(old, &[(TOPIC, kept, 1), (TOPIC, lost, 1)]).await;
    assert!(matches!(refused, Err(LogError::NotOwned { partition, .. }) if partition == lost));
    assert_eq!(log.committed(GROUP, TOPIC, kept).await.unwrap(), None, "all of a commit or nothing");
    committer.commit(old, &[(TOPIC, kept, 1)]).await.unwrap();
    // Got back, it is another assignment: what was begun before it was lost is not committed under it.
    soon(second.leave()).await;
    let new = assigned(&mut *first).await.generation;
    assert!(new > old);
    assert!(matches!(committer.commit(old, &[(TOPIC, lost, 9)]).await, Err(LogError::NotOwned { .. })));
    committer.commit(new, &[(TOPIC, lost, 2)]).await.unwrap();
    drop(first);
    assert!(matches!(committer.commit(new, &[(TOPIC, lost, 3)]).await, Err(LogError::NotOwned { .. })));
    assert_eq!(log.committed(GROUP, TOPIC, lost).await.unwrap(), Some(2));
}

pub async fn topics_that_do_not_match_are_not_joined(subject: &mut impl Subject) {
    let log = subject.log();
    assert!(log.join(GROUP, &[], StartAt::Oldest).await.is_err());
    assert!(log.join(GROUP, &[TOPIC, Topic::Deliveries], StartAt::Oldest).await.is_err());
    let _first = join(subject, &[TOPIC]).await;
    assert!(log.join(GROUP, &LANES, StartAt::Oldest).await.is_err(), "members of a group read the same topics");
}

/// Numbers in each partition that members come and go over.
const RECORDS: u64 = 60;

/// What the members of a group have handled: how often each number of each partition.
type Handled = Arc<Mutex<BTreeMap<(u32, u64), usize>>>;

/// Handles records until it has taken part long enough, and has handled some unless all are; then leaves. Commits what it
/// handled before it gives it up.
async fn take_part(mut consumer: Box<dyn Consumer>, handled: Handled, rounds: usize, all: usize) {
    let committer = consumer.committer();
    let mut owned: BTreeMap<u32, (u64, PartitionStream)> = BTreeMap::new();
    let (mut round, mut took) = (0, false);
    while round < rounds || !(took || handled.lock().len() == all) {
        round += 1;
        match timeout(Duration::from_millis(1), consumer.event()).await.ok() {
            Some(Ok(ConsumerEvent::Assigned(assignment))) => {
                for stream in assignment.partitions {
                    owned.insert(stream.source().1, (assignment.generation, stream));
                }
            }
            Some(Ok(ConsumerEvent::Revoked { partitions, release })) => {
                let given = partitions.into_iter().filter_map(|number| owned.remove(&number)).collect();
                commit(&*committer, given).await;
                release.done();
            }
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
        for (number, (_, stream)) in &mut owned {
            let _ = timeout(Duration::from_millis(1), stream.ready()).await;
            for record in stream.take(3) {
                took = true;
                *handled.lock().entry((*number, number_of(&record))).or_default() += 1;
            }
        }
        tokio::task::yield_now().await;
    }
    commit(&*committer, owned.into_values().collect()).await;
    consumer.leave().await;
}

async fn commit(committer: &dyn Committer, streams: Vec<(u64, PartitionStream)>) {
    for (generation, stream) in streams {
        let (topic, partition) = stream.source();
        committer.commit(generation, &[(topic, partition, stream.next_offset())]).await.unwrap();
    }
}

pub async fn members_that_come_and_go_handle_every_record_once(subject: &mut impl Subject) {
    let (log, now) = (subject.log(), subject.now());
    let all = RECORDS as usize * log.partitions(TOPIC) as usize;
    let handled = Handled::default();
    let mut members = Vec::new();
    for rounds in [40, 15, 25, 10, 30] {
        let consumer = join(subject, &[TOPIC]).await;
        members.push(tokio::spawn(take_part(consumer, Arc::clone(&handled), rounds, all)));
        tokio::task::yield_now().await;
    }
    for partition in everything(&*log) {
        append_numbers(&*log, TOPIC, partition, 0..RECORDS, 9, now).await;
    }
    for member in members {
        soon(member).await.unwrap();
    }
    // The last one takes what is left.
    let mut consumer = join(subject, &[TOPIC]).await;
    let assignment = assigned(&mut *consumer).await;
    for mut stream in assignment.partitions {
        let ((_, number), left) = (stream.source(), RECORDS - stream.next_offset());
        for record in read_some(&mut *stream, left as usize).await {
            *handled.lock().entry((number, number_of(&record))).or_default() += 1;
        }
    }
    let handled = handled.lock();
    assert!(handled.values().all(|times| *times == 1), "{handled:?}");
    assert_eq!(handled.len(), all);
}
