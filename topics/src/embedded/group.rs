//! Groups of consumers in this process: membership over time, and what they have committed.

use std::sync::Arc;

use ahash::AHashMap;
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use super::Shared;
use super::membership::{MemberId, Membership, News};
use super::queue::CommitKey;
use super::reader::PartitionReader;
use crate::{Assignment, Committer, Consumer, ConsumerEvent, LogError, PartitionStream, Release, StartAt, Topic};

/// Every group that there is, or was: what it committed is kept.
#[derive(Default)]
pub(super) struct Groups(Mutex<AHashMap<Arc<str>, Arc<Group>>>);

struct Group {
    name: Arc<str>,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    topics: Vec<Topic>,
    start: StartAt,
    membership: Membership,
    /// The offset to be read next. Set when a commit is queued, so that the next owner of a partition begins behind it.
    committed: AHashMap<(Topic, u32), u64>,
}

impl Groups {
    /// Takes over what the file knows of commits.
    pub fn load(&self, commits: Vec<(String, Topic, u32, u64)>) {
        for (name, topic, partition, next) in commits {
            self.get_or_new(&name).state.lock().committed.insert((topic, partition), next);
        }
    }

    /// What a group has committed.
    pub fn committed(&self, name: &str, topic: Topic, partition: u32) -> Option<u64> {
        let group = self.0.lock().get(name).cloned()?;
        let state = group.state.lock();
        state.committed.get(&(topic, partition)).copied()
    }

    fn get_or_new(&self, name: &str) -> Arc<Group> {
        let mut groups = self.0.lock();
        if let Some(group) = groups.get(name) {
            return Arc::clone(group);
        }
        let name: Arc<str> = Arc::from(name);
        let state = State {
            topics: Vec::new(),
            start: StartAt::Oldest,
            membership: Membership::new(0),
            committed: AHashMap::new(),
        };
        let group = Arc::new(Group { name: Arc::clone(&name), state: Mutex::new(state), changed: Notify::new() });
        groups.insert(name, Arc::clone(&group));
        group
    }
}

/// Joins `name` as a new member.
pub(super) fn join(shared: &Arc<Shared>, name: &str, topics: &[Topic], start: StartAt) -> Result<Member, LogError> {
    let refused = |reason: String| LogError::Engine { action: "join a group", reason };
    let partitions = topics.first().map(|topic| shared.partitions.count(*topic));
    let partitions = partitions.ok_or_else(|| refused("no topics were named".to_owned()))?;
    if let Some(other) = topics.iter().find(|topic| shared.partitions.count(**topic) != partitions) {
        return Err(refused(format!("{other} has not {partitions} partitions, as {} has", topics[0])));
    }
    let group = shared.groups.get_or_new(name);
    let (id, tickets) = {
        let mut state = group.state.lock();
        if state.membership.is_empty() {
            topics.clone_into(&mut state.topics);
            state.start = start;
            state.membership.restart(partitions);
        } else if state.topics != topics {
            return Err(refused(format!("{name} reads other topics")));
        }
        state.membership.join()
    };
    let member = Member { shared: Arc::clone(shared), group, id, runtime: Handle::current() };
    member.changed(tickets);
    Ok(member)
}

/// A member of a group; dropping it leaves.
pub(super) struct Member {
    shared: Arc<Shared>,
    group: Arc<Group>,
    id: MemberId,
    runtime: Handle,
}

impl Member {
    /// Wakes the members, and gives those who have to give something up their time.
    fn changed(&self, tickets: Vec<u64>) {
        self.group.changed.notify_waiters();
        if tickets.is_empty() {
            return;
        }
        let timeout = self.shared.options.revoke_timeout();
        let group = Arc::clone(&self.group);
        self.runtime.spawn(async move {
            tokio::time::sleep(timeout).await;
            group.settle(&tickets);
        });
    }

    fn assignment(&self, state: &mut State, generation: u64, partitions: &[u32]) -> Assignment {
        let mut streams: Vec<PartitionStream> = Vec::with_capacity(partitions.len() * state.topics.len());
        let mut begun: Vec<(CommitKey, u64)> = Vec::new();
        for &partition in partitions {
            for &topic in &state.topics {
                let Some(index) = self.shared.partitions.index(topic, partition) else { continue };
                let known = state.committed.get(&(topic, partition)).copied();
                let next = known.unwrap_or_else(|| match state.start {
                    StartAt::Oldest => 0,
                    StartAt::End => {
                        // Remembered: whoever owns it after this member begins here, and not at a later end.
                        let end = self.shared.partitions.at(index).bounds().end;
                        begun.push(((Arc::clone(&self.group.name), topic, partition), end));
                        end
                    }
                });
                streams.push(Box::new(PartitionReader::of_group(Arc::clone(&self.shared), index, next)));
            }
        }
        state.committed.extend(begun.iter().map(|((_, topic, partition), next)| ((*topic, *partition), *next)));
        begun.retain(|((_, topic, _), _)| !self.shared.in_memory(*topic));
        if !begun.is_empty() {
            // A later commit carries it, too; where this one fails nothing has been promised yet.
            let _ = self.shared.queue.commit(begun);
        }
        Assignment { generation, partitions: streams }
    }

    fn revocation(&self, partitions: Vec<u32>, tickets: Vec<u64>) -> ConsumerEvent {
        let (release, released) = oneshot::channel();
        let group = Arc::clone(&self.group);
        self.runtime.spawn(async move {
            // Dropped or done: it says the same.
            let _ = released.await;
            group.settle(&tickets);
        });
        ConsumerEvent::Revoked { partitions, release: Release(release) }
    }

    fn next_event(&self) -> Option<ConsumerEvent> {
        let mut state = self.group.state.lock();
        Some(match state.membership.news(self.id)? {
            News::Assigned { generation, partitions } => {
                ConsumerEvent::Assigned(self.assignment(&mut state, generation, &partitions))
            }
            News::Revoked { partitions, tickets } => self.revocation(partitions, tickets),
        })
    }
}

impl Group {
    fn settle(&self, tickets: &[u64]) {
        self.state.lock().membership.settle(tickets);
        self.changed.notify_waiters();
    }
}

#[async_trait]
impl Consumer for Member {
    async fn event(&mut self) -> Result<ConsumerEvent, LogError> {
        loop {
            let changed = self.group.changed.notified();
            if self.shared.closed.is_cancelled() {
                return Err(LogError::Closed);
            }
            if let Some(event) = self.next_event() {
                return Ok(event);
            }
            tokio::select! {
                () = changed => {}
                () = self.shared.closed.cancelled() => {}
            }
        }
    }

    fn committer(&self) -> Arc<dyn Committer> {
        Arc::new(MemberCommits { shared: Arc::clone(&self.shared), group: Arc::clone(&self.group), id: self.id })
    }

    async fn leave(self: Box<Self>) {}
}

impl Drop for Member {
    fn drop(&mut self) {
        let tickets = self.group.state.lock().membership.leave(self.id);
        self.changed(tickets);
    }
}

/// Commits for a member, as long as it has what it commits for.
struct MemberCommits {
    shared: Arc<Shared>,
    group: Arc<Group>,
    id: MemberId,
}

#[async_trait]
impl Committer for MemberCommits {
    async fn commit(&self, generation: u64, offsets: &[(Topic, u32, u64)]) -> Result<(), LogError> {
        let queued = {
            // Held until it is queued: whoever owns a partition next commits after this.
            let mut state = self.group.state.lock();
            for &(topic, partition, _) in offsets {
                let ours = state.topics.contains(&topic) && state.membership.may_commit(self.id, generation, partition);
                if !ours {
                    return Err(LogError::NotOwned { topic, partition });
                }
            }
            state.committed.extend(offsets.iter().map(|&(topic, partition, next)| ((topic, partition), next)));
            let in_file = offsets.iter().filter(|(topic, ..)| !self.shared.in_memory(*topic));
            let mut in_file = in_file
                .map(|&(topic, partition, next)| ((Arc::clone(&self.group.name), topic, partition), next))
                .peekable();
            if in_file.peek().is_none() {
                return Ok(());
            }
            self.shared.queue.commit(in_file)?
        };
        queued.await.unwrap_or(Err(LogError::Closed))
    }
}
