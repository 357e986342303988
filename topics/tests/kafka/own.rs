//! What is Kafka's own: zombies, names that outlive a restart, retention by the broker, many readers.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use eshaar_model::Timestamp;
use eshaar_topics::conformance::Subject;
use eshaar_topics::kafka::KafkaLog;
use eshaar_topics::{Assignment, Consumer, ConsumerEvent, Headers, Log, LogError, NewRecord, Reader, StartAt, Topic};
use futures_util::FutureExt;
use tokio::time::timeout;

use crate::{Opened, options};

const TOPIC: Topic = Topic::LaneNormal;
/// Longer than anything here takes on a busy machine, also where a broker waits 45 s for a member that is gone.
const PATIENCE: Duration = Duration::from_mins(2);
/// Says to a process of this test which topics to be a zombie on.
const ZOMBIE: &str = "ESHAAR_TEST_ZOMBIE";

fn records(partition: u32, numbers: std::ops::Range<u64>, value_bytes: usize, at: Timestamp) -> Vec<NewRecord> {
    let record = |number: u64| {
        let mut value = number.to_le_bytes().to_vec();
        value.resize(value_bytes.max(8), 0);
        NewRecord {
            topic: TOPIC,
            partition: Some(partition),
            key: Bytes::from_static(b"key"),
            value: Bytes::from(value),
            headers: Headers::new([("ce_id", &b"id"[..])]),
            timestamp: at,
        }
    };
    numbers.map(record).collect()
}

async fn assigned(consumer: &mut dyn Consumer) -> Assignment {
    match timeout(PATIENCE, consumer.event()).await.unwrap().unwrap() {
        ConsumerEvent::Assigned(assignment) => assignment,
        ConsumerEvent::Revoked { partitions, .. } => panic!("expected partitions, {partitions:?} were revoked"),
    }
}

fn numbers(assignment: &Assignment) -> BTreeSet<u32> {
    assignment.partitions.iter().map(|stream| stream.source().1).collect()
}

async fn read_offsets(reader: &mut dyn Reader, count: usize) -> Vec<u64> {
    let mut offsets = Vec::new();
    while offsets.len() < count {
        timeout(PATIENCE, reader.ready()).await.unwrap().unwrap();
        offsets.extend(reader.take(count - offsets.len()).iter().map(|record| record.position.offset));
    }
    offsets
}

/// Another process with a member of the group, as `zombie` makes it.
struct Zombie {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Zombie {
    fn start(prefix: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "own::zombie", "--include-ignored", "--nocapture"])
            .env(ZOMBIE, prefix)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    /// Waits for a line of its output.
    fn says(&mut self, what: &str) -> String {
        let line = self.lines.by_ref().map_while(Result::ok).find(|line| line.contains(what));
        line.unwrap_or_else(|| panic!("the process ended without saying {what}"))
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.process.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    fn wake(&mut self) {
        self.signal("-CONT");
        self.process.stdin.take().unwrap().write_all(b"commit\n").unwrap();
    }
}

impl Drop for Zombie {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a check: the other process of the one below. Without its variable it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
#[allow(clippy::print_stdout)]
async fn zombie() {
    let Ok(prefix) = std::env::var(ZOMBIE) else { return };
    let log = KafkaLog::open(options(), &prefix).await.unwrap();
    let mut consumer = log.join("stage", &[TOPIC], StartAt::Oldest).await.unwrap();
    let assignment = assigned(&mut *consumer).await;
    println!("zombie: assigned");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    match consumer.committer().commit(assignment.generation, &[(TOPIC, 0, 7)]).await {
        Err(LogError::NotOwned { .. }) => println!("zombie: refused"),
        other => println!("zombie: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_member_that_was_stopped_and_wakes_up_commits_nothing() {
    let opened = Opened::with(|options| options.topic_settings.clear()).await;
    let mut zombie = Zombie::start(&opened.prefix);
    zombie.says("assigned");
    zombie.signal("-STOP");
    let mut consumer = opened.log.join("stage", &[TOPIC], StartAt::Oldest).await.unwrap();
    // The broker takes the stopped one for dead only after its session timeout.
    let assignment = assigned(&mut *consumer).await;
    assert_eq!(numbers(&assignment), (0..opened.log.partitions(TOPIC)).collect());
    consumer.committer().commit(assignment.generation, &[(TOPIC, 0, 9)]).await.unwrap();
    zombie.wake();
    assert!(zombie.says("zombie: ").contains("refused"));
    assert_eq!(opened.log.committed("stage", TOPIC, 0).await.unwrap(), Some(9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_named_member_keeps_its_partitions_through_a_restart() {
    let opened = Opened::with(|_| {}).await;
    let named = |name: &str| eshaar_topics::kafka::Options { instance: name.to_owned(), ..opened.options.clone() };
    let (a, b) = (
        KafkaLog::open(named("a"), &opened.prefix).await.unwrap(),
        KafkaLog::open(named("b"), &opened.prefix).await.unwrap(),
    );
    let mut first = a.join("stage", &[TOPIC], StartAt::Oldest).await.unwrap();
    assigned(&mut *first).await;
    let mut second = b.join("stage", &[TOPIC], StartAt::Oldest).await.unwrap();
    let Ok(ConsumerEvent::Revoked { release, .. }) = timeout(PATIENCE, first.event()).await.unwrap() else {
        panic!("nothing was revoked for the second")
    };
    release.done();
    let of_second = numbers(&assigned(&mut *second).await);

    // The second restarts; the first hears nothing of it.
    b.close().await;
    drop(second);
    let b = KafkaLog::open(named("b"), &opened.prefix).await.unwrap();
    let mut second = b.join("stage", &[TOPIC], StartAt::Oldest).await.unwrap();
    assert_eq!(numbers(&assigned(&mut *second).await), of_second);
    assert!(first.event().now_or_never().is_none());
    for log in [a, b] {
        log.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn what_is_not_released_in_time_is_taken_away() {
    let opened = Opened::with(|options| options.revoke_timeout_ms = 500).await;
    let mut first = opened.log.join("stage", &[TOPIC], StartAt::Oldest).await.unwrap();
    let mut assignment = assigned(&mut *first).await;
    let mut second = opened.log.join("stage", &[TOPIC], StartAt::Oldest).await.unwrap();
    let Ok(ConsumerEvent::Revoked { partitions, release }) = timeout(PATIENCE, first.event()).await.unwrap() else {
        panic!("nothing was revoked for the second")
    };
    assert_eq!(numbers(&assigned(&mut *second).await), partitions.iter().copied().collect());
    let commit = first.committer().commit(assignment.generation, &[(TOPIC, partitions[0], 1)]).await;
    assert!(matches!(commit, Err(LogError::NotOwned { partition, .. }) if partition == partitions[0]));
    for stream in &mut assignment.partitions {
        let (_, partition) = stream.source();
        if partitions.contains(&partition) {
            assert!(matches!(stream.ready().await, Err(LogError::NotOwned { .. })), "its reader gives nothing more");
        }
    }
    drop(release);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_partition_that_nobody_takes_from_does_not_stop_the_others() {
    let opened = Opened::with(|_| {}).await;
    let now = opened.now();
    for batch in 0..40 {
        let full = records(0, batch * 50..batch * 50 + 50, 8 << 10, now);
        opened.log.append(full).await.unwrap();
    }
    let mut consumer = opened.log.join("stage", &[TOPIC], StartAt::Oldest).await.unwrap();
    let mut assignment = assigned(&mut *consumer).await;
    let (full, others): (Vec<_>, Vec<_>) = assignment.partitions.drain(..).partition(|stream| stream.source().1 == 0);
    let [mut full] = <[_; 1]>::try_from(full).unwrap_or_else(|_| panic!("partition 0 was not assigned"));
    timeout(PATIENCE, full.ready()).await.unwrap().unwrap();
    for mut other in others {
        let partition = other.source().1;
        opened.log.append(records(partition, 0..100, 8, now)).await.unwrap();
        assert!(read_offsets(&mut *other, 100).await.into_iter().eq(0..100));
    }
    assert!(read_offsets(&mut *full, 2_000).await.into_iter().eq(0..2_000), "and it goes on when it is taken from");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn many_read_the_same_partition_at_their_own_pace() {
    let opened = Opened::with(|_| {}).await;
    opened.log.append(records(0, 0..500, 100, opened.now())).await.unwrap();
    let mut readers = Vec::new();
    for from in 0..8_u64 {
        readers.push((from, opened.log.read(TOPIC, 0, from * 50).await.unwrap()));
    }
    for (from, mut reader) in readers {
        assert!(read_offsets(&mut *reader, 500 - from as usize * 50).await.into_iter().eq(from * 50..500));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn the_broker_lets_records_go_by_the_time_of_the_catalogue() {
    let opened = Opened::with(|_| {}).await;
    let kept = i64::try_from(TOPIC.spec().kept_ms).unwrap();
    let past = opened.now().plus_millis(-kept - 60_000);
    opened.log.append(records(0, 0..10, 8, past)).await.unwrap();
    opened.log.append(records(1, 0..10, 8, opened.now())).await.unwrap();
    // How often the broker looks is its own setting; scripts/engines sets it to a second.
    let deadline = Instant::now() + PATIENCE;
    while opened.log.bounds(TOPIC, 0).await.unwrap().start < 10 {
        assert!(Instant::now() < deadline, "the broker keeps what is past its time");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(opened.log.bounds(TOPIC, 1).await.unwrap().start, 0);
}
