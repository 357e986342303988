//! Members of groups, as stages have them: events, commits, leaving.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::hooks::{Client, Hooks};
use super::lookups::Lookups;
use super::membership::{Membership, Terms};
use super::names::Names;
use super::watch::Watch;
use super::{Options, engine, start_thread};
use crate::{Committer, Consumer, ConsumerEvent, LogError, StartAt, Topic};

/// Events that may wait for a member; a rebalance comes after the one before it was heard of.
const EVENTS: usize = 16;
/// How long is waited before a commit that met a rebalance is tried again.
const COMMIT_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How long leaving a group may take.
const LEAVE: Duration = Duration::from_secs(15);

/// The members that this process has of groups.
#[derive(Default)]
pub(super) struct Groups(Mutex<AHashMap<String, Vec<Arc<Membership>>>>);

/// What members are made with.
#[derive(Clone)]
pub(super) struct Ground {
    pub options: Options,
    pub names: Arc<Names>,
    pub lookups: Lookups,
    pub watch: Watch,
    pub closed: CancellationToken,
}

impl Groups {
    /// Joins a group as a new member.
    pub async fn join(
        &self,
        ground: &Ground,
        group: &str,
        topics: &[Topic],
        start: StartAt,
        patience: Duration,
    ) -> Result<Member, LogError> {
        check_co_partitioned(&ground.options, topics)?;
        self.left(group).await;
        let (sender, events) = mpsc::channel(EVENTS);
        let terms = Terms {
            group: group.to_owned(),
            topics: topics.to_owned(),
            start,
            revoke_timeout: ground.options.revoke_timeout(),
            lookups: ground.lookups.clone(),
        };
        let membership = Membership::new(terms, sender);
        // However it ends, also before it has begun: it is gone then.
        let gone = membership.gone.clone().drop_guard();
        let nth = self.enter(group, &membership)?;
        let member = Member { events, membership, ground: ground.clone() };
        let config = ground.options.member(&ground.names, group, nth, patience)?;
        let client = config.create_with_context(Hooks(Some(Arc::clone(&member.membership))));
        let client: Client = client.map_err(engine("join a group"))?;
        let client = Arc::new(client);
        ground.watch.add(&client);
        let membership = Arc::clone(&member.membership);
        start_thread("kafka-member", move || {
            membership.live(&client);
            drop((client, gone));
        })?;
        Ok(member)
    }

    /// Leaves all groups.
    pub async fn close(&self) {
        let members: Vec<_> = self.0.lock().drain().flat_map(|(_, members)| members).collect();
        for member in &members {
            member.leave();
        }
        let deadline = Instant::now() + LEAVE;
        for member in &members {
            if timeout_at(deadline, member.gone.cancelled()).await.is_err() {
                tracing::warn!("a group was not left in time; the broker will notice");
            }
        }
    }

    /// Tells all members to leave, and does not wait.
    pub fn abandon(&self) {
        self.0.lock().values().flatten().for_each(|member| member.leave());
    }

    /// Waits for those of this process that are leaving the group: a new member would get only what they still have.
    async fn left(&self, group: &str) {
        let leaving = |members: &Vec<Arc<Membership>>| {
            members.iter().filter(|member| member.is_leaving()).cloned().collect::<Vec<_>>()
        };
        let leaving = self.0.lock().get(group).map(leaving).unwrap_or_default();
        let deadline = Instant::now() + LEAVE;
        for member in leaving {
            // One that does not get away in time has lost its connection, too: the broker will notice.
            let _ = timeout_at(deadline, member.gone.cancelled()).await;
        }
    }

    /// Counts a member in; says which of this process it is.
    fn enter(&self, group: &str, membership: &Arc<Membership>) -> Result<usize, LogError> {
        let mut groups = self.0.lock();
        let members = groups.entry(group.to_owned()).or_default();
        members.retain(|member| !member.gone.is_cancelled() && !member.is_leaving());
        if members.iter().any(|member| member.topics() != membership.topics()) {
            return Err(refused(format!("{group} reads other topics")));
        }
        members.push(Arc::clone(membership));
        Ok(members.len())
    }
}

fn check_co_partitioned(options: &Options, topics: &[Topic]) -> Result<(), LogError> {
    let first = topics.first().ok_or_else(|| refused("no topics were named".to_owned()))?;
    let partitions = options.partitions_of(*first);
    match topics.iter().find(|topic| options.partitions_of(**topic) != partitions) {
        None => Ok(()),
        Some(other) => Err(refused(format!("{other} has not {partitions} partitions, as {first} has"))),
    }
}

fn refused(reason: String) -> LogError {
    LogError::Engine { action: "join a group", reason }
}

/// A member of a group; dropping it leaves.
pub(super) struct Member {
    events: mpsc::Receiver<Result<ConsumerEvent, LogError>>,
    membership: Arc<Membership>,
    ground: Ground,
}

#[async_trait]
impl Consumer for Member {
    async fn event(&mut self) -> Result<ConsumerEvent, LogError> {
        tokio::select! {
            biased;
            () = self.ground.closed.cancelled() => Err(LogError::Closed),
            event = self.events.recv() => event.unwrap_or(Err(LogError::Closed)),
        }
    }

    fn committer(&self) -> Arc<dyn Committer> {
        Arc::new(Commits {
            membership: Arc::clone(&self.membership),
            ground: self.ground.clone(),
            turn: Arc::new(tokio::sync::Mutex::new(())),
        })
    }

    async fn leave(mut self: Box<Self>) {
        self.membership.leave();
        self.events.close();
        let _ = timeout(LEAVE, self.membership.gone.cancelled()).await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.membership.leave();
    }
}

/// Commits for a member, off the async threads and one at a time (kafka-rules 2).
struct Commits {
    membership: Arc<Membership>,
    ground: Ground,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// How a commit ended.
enum Answer {
    Done,
    /// The member is between two epochs of its group.
    Again(KafkaError),
    /// The broker does not take this member for an owner.
    Refused,
    Failed(KafkaError),
}

impl Commits {
    /// Commits once. A commit that takes too long still holds the turn until it ends.
    async fn once(&self, list: TopicPartitionList) -> Result<Answer, LogError> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let membership = Arc::clone(&self.membership);
        let commit = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let client = membership.client()?;
            Some(client.commit(&list, CommitMode::Sync))
        });
        match commit.await {
            Ok(Some(result)) => Ok(answer(result)),
            Ok(None) | Err(_) => Err(LogError::Closed),
        }
    }

    fn list(&self, offsets: &[(Topic, u32, u64)]) -> Result<TopicPartitionList, LogError> {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for &(topic, partition, next) in offsets {
            let name = self.ground.names.of(topic);
            let added = list.add_partition_offset(name, partition as i32, Offset::Offset(next as i64));
            added.map_err(engine("commit"))?;
        }
        Ok(list)
    }
}

fn answer(result: Result<(), KafkaError>) -> Answer {
    use RDKafkaErrorCode::{
        FencedInstanceId, FencedMemberEpoch, IllegalGeneration, RebalanceInProgress, StaleMemberEpoch, UnknownMemberId,
    };
    let Err(error) = result else { return Answer::Done };
    match error.rdkafka_error_code() {
        Some(StaleMemberEpoch | RebalanceInProgress) => Answer::Again(error),
        Some(UnknownMemberId | FencedMemberEpoch | FencedInstanceId | IllegalGeneration) => Answer::Refused,
        _ => Answer::Failed(error),
    }
}

#[async_trait]
impl Committer for Commits {
    async fn commit(&self, generation: u64, offsets: &[(Topic, u32, u64)]) -> Result<(), LogError> {
        let Some(&(topic, partition, _)) = offsets.first() else { return Ok(()) };
        let deadline = Instant::now() + self.ground.options.request_timeout();
        loop {
            self.membership.may_commit(generation, offsets)?;
            let answer = timeout_at(deadline, self.once(self.list(offsets)?)).await;
            let again = match answer {
                Ok(answer) => match answer? {
                    Answer::Done => return Ok(()),
                    Answer::Refused => return Err(LogError::NotOwned { topic, partition }),
                    Answer::Failed(error) => return Err(engine("commit")(error)),
                    Answer::Again(error) => error.to_string(),
                },
                Err(_) => "no answer in time".to_owned(),
            };
            if timeout_at(deadline, tokio::time::sleep(COMMIT_AGAIN_AFTER)).await.is_err() {
                return Err(LogError::Engine { action: "commit", reason: again });
            }
        }
    }
}
