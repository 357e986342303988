//! A member of a group as librdkafka sees it: a thread of its own polls for rebalances, tells the member what it is assigned
//! and what it must give up, and waits in the callback until that is drained (kafka-rules 9).
//!
//! The broker assigns (KIP-848, range): what a member keeps is not touched, and topics with equal partition counts are
//! assigned number by number. A partition is another member's only once this one has said that it is given up.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use parking_lot::Mutex;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::engine;
use super::hooks::Client;
use super::lookups::Lookups;
use super::reader::{End, Feed, PartitionReader};
use crate::{Assignment, ConsumerEvent, LogError, PartitionStream, Release, StartAt, Topic};

/// How long the group is polled at a time; also how late a member may learn that it is to leave.
const POLL: Duration = Duration::from_millis(100);
/// How long leaving may take before the broker is left to notice by itself.
const LEAVE: Duration = Duration::from_secs(10);

/// What a member must know of its group.
pub(super) struct Terms {
    pub group: String,
    pub topics: Vec<Topic>,
    pub start: StartAt,
    pub revoke_timeout: Duration,
    pub lookups: Lookups,
}

/// One member, over its whole life.
pub(super) struct Membership {
    terms: Terms,
    events: mpsc::Sender<Result<ConsumerEvent, LogError>>,
    owned: Mutex<Owned>,
    feeds: Mutex<AHashMap<(Topic, u32), Arc<Feed>>>,
    /// Set once, when the consumer is there; weak, since the consumer owns the hooks that own this.
    client: OnceLock<Weak<Client>>,
    thread: OnceLock<Thread>,
    leaving: AtomicBool,
    /// Cancelled when the group has been left.
    pub gone: CancellationToken,
}

/// Where a group goes on in a partition.
#[derive(Clone, Copy, Debug)]
struct Begin {
    /// What it has committed, or its beginning.
    committed: u64,
    /// The offset to be read next.
    next: u64,
}

/// The partition numbers of a member, each with the assignment that it came with.
#[derive(Debug, Default)]
struct Owned {
    generation: u64,
    since: BTreeMap<u32, u64>,
}

impl Membership {
    pub fn new(terms: Terms, events: mpsc::Sender<Result<ConsumerEvent, LogError>>) -> Arc<Self> {
        Arc::new(Self {
            terms,
            events,
            owned: Mutex::default(),
            feeds: Mutex::default(),
            client: OnceLock::new(),
            thread: OnceLock::new(),
            leaving: AtomicBool::new(false),
            gone: CancellationToken::new(),
        })
    }

    pub fn topics(&self) -> &[Topic] {
        &self.terms.topics
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Begins to leave: from here on nothing can be committed.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.owned.lock().since.clear();
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// The consumer, while there is one.
    pub fn client(&self) -> Option<Arc<Client>> {
        self.client.get().and_then(Weak::upgrade)
    }

    /// Whether all of these may be committed with what was begun in `generation`: the member has them, and has had them
    /// since.
    pub fn may_commit(&self, generation: u64, offsets: &[(Topic, u32, u64)]) -> Result<(), LogError> {
        let owned = self.owned.lock();
        let foreign = offsets.iter().find(|(topic, partition, _)| {
            let since = owned.since.get(partition);
            !self.terms.topics.contains(topic) || since.is_none_or(|since| *since > generation)
        });
        match foreign {
            None => Ok(()),
            Some(&(topic, partition, _)) => Err(LogError::NotOwned { topic, partition }),
        }
    }

    /// The life of the member, on its own thread: polls until it is to leave, and leaves.
    pub fn live(&self, client: &Arc<Client>) {
        // Both are set here and nowhere else.
        let _ = self.thread.set(std::thread::current());
        let _ = self.client.set(Arc::downgrade(client));
        let topics: Vec<&str> = self.terms.topics.iter().map(|topic| self.terms.lookups.names.of(*topic)).collect();
        if let Err(error) = client.subscribe(&topics) {
            self.fail(engine("join a group")(error));
        }
        while !self.is_leaving() {
            match client.poll(POLL) {
                // A member that librdkafka has given up on must begin anew: another process has its name, or the broker
                // does not know what it asks for.
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => {
                    self.fail(engine("stay in a group")(error));
                    break;
                }
                // What passes is logged by the hooks.
                Some(Err(_)) | None => {}
                Some(Ok(_)) => {
                    tracing::error!(group = self.terms.group, "a record came past the queue of its partition");
                }
            }
        }
        self.leave();
        self.end_feeds(End::Closed);
        let deadline = Instant::now() + LEAVE;
        if client.close_queue().is_ok() {
            while !client.closed() && Instant::now() < deadline {
                // Serves the revocation of what is left, which gives it up at once.
                let _ = client.poll(POLL);
            }
        }
    }

    /// Called by librdkafka: these belong to the member now.
    pub fn assigned(&self, client: &Client, partitions: &TopicPartitionList) {
        let sources = self.sources(partitions);
        if sources.is_empty() || self.is_leaving() {
            if let Err(error) = client.incremental_assign(partitions) {
                tracing::debug!(%error, group = self.terms.group, "an assignment was not taken");
            }
            return;
        }
        match self.open(client, &sources) {
            Ok(streams) => {
                let generation = self.take_over(&sources);
                let assignment = Assignment { generation, partitions: streams };
                self.tell(Ok(ConsumerEvent::Assigned(assignment)));
            }
            Err(error) => self.fail(error),
        }
    }

    /// Called by librdkafka: these go to another member, or are lost already. Returns when they are given up.
    pub fn revoked(&self, client: &Client, partitions: &TopicPartitionList) {
        let numbers: BTreeSet<u32> = self.sources(partitions).into_iter().map(|(_, number)| number).collect();
        // The broker took us for dead and has given them away: whatever is committed now is refused.
        if client.assignment_lost() {
            self.forget(&numbers);
        }
        if !numbers.is_empty() && !self.is_leaving() {
            let (release, released) = oneshot::channel();
            let partitions = numbers.iter().copied().collect();
            self.tell(Ok(ConsumerEvent::Revoked { partitions, release: Release(release) }));
            if !self.wait(released) {
                tracing::warn!(group = self.terms.group, ?numbers, "not released in time; given up");
            }
        }
        self.forget(&numbers);
        self.feeds.lock().retain(|(_, number), feed| {
            if numbers.contains(number) {
                feed.end(End::GivenUp);
            }
            !numbers.contains(number)
        });
        if let Err(error) = client.incremental_unassign(partitions) {
            tracing::debug!(%error, group = self.terms.group, "partitions were not unassigned");
        }
    }

    /// Where each partition begins, its queue, and only then its fetching: no record comes past its queue.
    fn open(&self, client: &Client, sources: &BTreeSet<(Topic, u32)>) -> Result<Vec<PartitionStream>, LogError> {
        self.check_whole(sources)?;
        let begins = self.begins(client, sources)?;
        let owner = self.client().ok_or(LogError::Closed)?;
        let mut list = TopicPartitionList::with_capacity(begins.len());
        let mut streams: Vec<PartitionStream> = Vec::with_capacity(begins.len());
        for (&(topic, number), &Begin { committed, next }) in &begins {
            let name = self.terms.lookups.names.of(topic);
            list.add_partition_offset(name, number as i32, Offset::Offset(next as i64)).map_err(engine("assign"))?;
            let queue = owner.split_partition_queue(name, number as i32).ok_or_else(|| LogError::Engine {
                action: "read an assigned partition",
                reason: format!("there is no queue for partition {number} of {topic}"),
            })?;
            let feed = Feed::new(queue);
            self.feeds.lock().insert((topic, number), Arc::clone(&feed));
            streams.push(Box::new(PartitionReader::of_group((topic, number), next, committed, feed)));
        }
        client.incremental_assign(&list).map_err(engine("read assigned partitions"))?;
        Ok(streams)
    }

    /// Whoever owns a partition number of one topic owns it of all.
    fn check_whole(&self, sources: &BTreeSet<(Topic, u32)>) -> Result<(), LogError> {
        for (_, number) in sources {
            if let Some(topic) = self.terms.topics.iter().find(|topic| !sources.contains(&(**topic, *number))) {
                let reason = format!("partition {number} of {topic} was not assigned with the others of its number");
                return Err(LogError::Engine { action: "take an assignment", reason });
            }
        }
        Ok(())
    }

    /// What the group has committed, or its beginning where nothing was; and the offset to begin at: that, within what is kept.
    fn begins(
        &self,
        client: &Client,
        sources: &BTreeSet<(Topic, u32)>,
    ) -> Result<BTreeMap<(Topic, u32), Begin>, LogError> {
        let lookups = &self.terms.lookups;
        let list: Vec<_> = sources.iter().copied().collect();
        let committed = lookups.committed(client, lookups.list(list.iter().copied()))?;
        let bounds = lookups.bounds(client, &list)?;
        let mut begins = BTreeMap::new();
        let mut remembered = TopicPartitionList::new();
        for (&(topic, number), bounds) in &bounds {
            let next = match (committed.get(&(topic, number)), self.terms.start) {
                (Some(next), _) => *next,
                (None, StartAt::Oldest) => 0,
                (None, StartAt::End) => {
                    // Remembered: whoever owns it after this member begins here, and not at a later end.
                    let (name, end) = (lookups.names.of(topic), Offset::Offset(bounds.end as i64));
                    remembered.add_partition_offset(name, number as i32, end).map_err(engine("begin at the end"))?;
                    bounds.end
                }
            };
            if next > bounds.end {
                tracing::error!(group = self.terms.group, %topic, partition = number, committed = next, end = bounds.end,
                    "the log ends before what was committed: it begins a new epoch; waiting at its end");
            }
            let begin = Begin { committed: next, next: next.clamp(bounds.start, bounds.end) };
            begins.insert((topic, number), begin);
        }
        if remembered.count() > 0 {
            client.commit(&remembered, CommitMode::Sync).map_err(engine("commit where a group begins"))?;
        }
        Ok(begins)
    }

    fn take_over(&self, sources: &BTreeSet<(Topic, u32)>) -> u64 {
        let mut owned = self.owned.lock();
        owned.generation += 1;
        let generation = owned.generation;
        owned.since.extend(sources.iter().map(|(_, number)| (*number, generation)));
        generation
    }

    fn forget(&self, numbers: &BTreeSet<u32>) {
        self.owned.lock().since.retain(|number, _| !numbers.contains(number));
    }

    fn end_feeds(&self, end: End) {
        for (_, feed) in std::mem::take(&mut *self.feeds.lock()) {
            feed.end(end);
        }
    }

    fn sources(&self, partitions: &TopicPartitionList) -> BTreeSet<(Topic, u32)> {
        let of = |name: &str| self.terms.lookups.names.topic(name);
        let elements = partitions.elements();
        elements.iter().filter_map(|part| Some((of(part.topic())?, part.partition() as u32))).collect()
    }

    /// The member has to begin anew.
    fn fail(&self, error: LogError) {
        tracing::error!(group = self.terms.group, %error, "the group cannot be taken part in");
        self.tell(Err(error));
    }

    /// Nobody listens any more once the member is dropped.
    fn tell(&self, event: Result<ConsumerEvent, LogError>) {
        let _ = self.events.blocking_send(event);
    }

    /// Waits until partitions are released, the time is over, or the member leaves. Says whether they were released.
    fn wait(&self, released: oneshot::Receiver<()>) -> bool {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        let mut released = pin!(released);
        let deadline = Instant::now() + self.terms.revoke_timeout;
        loop {
            // Dropped or done: it says the same.
            if released.as_mut().poll(&mut context).is_ready() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_leaving() {
                return false;
            }
            std::thread::park_timeout(left);
        }
    }
}

/// Wakes the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
