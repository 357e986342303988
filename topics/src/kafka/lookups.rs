//! Questions to the brokers. All of them block, for a bounded time: they are asked off the async threads.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use eshaar_model::Timestamp;
use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};

use super::engine;
use super::hooks::Client;
use super::names::Names;
use crate::{Bounds, LogError, Topic};

/// Who asks, and how long an answer may take.
#[derive(Clone)]
pub(super) struct Lookups {
    pub names: Arc<Names>,
    pub timeout: Duration,
}

impl Lookups {
    /// The offsets that partitions hold: one request a broker for each end.
    pub fn bounds(
        &self,
        client: &Client,
        sources: &[(Topic, u32)],
    ) -> Result<AHashMap<(Topic, u32), Bounds>, LogError> {
        let starts = self.offsets(client, sources, Offset::Beginning, "find the oldest record")?;
        let ends = self.offsets(client, sources, Offset::End, "find the end")?;
        let bounds = sources.iter().filter_map(|source| {
            let (start, end) = (starts.get(source)?, ends.get(source)?);
            Some((*source, Bounds { start: *start, end: *end }))
        });
        let bounds: AHashMap<_, _> = bounds.collect();
        match sources.iter().find(|source| !bounds.contains_key(*source)) {
            None => Ok(bounds),
            Some((topic, partition)) => {
                let reason = format!("the brokers said nothing of partition {partition} of {topic}");
                Err(LogError::Engine { action: "find the bounds of a partition", reason })
            }
        }
    }

    /// The ends of all `count` partitions of a topic: one request a broker.
    pub fn ends(&self, client: &Client, topic: Topic, count: u32) -> Result<Vec<u64>, LogError> {
        const ACTION: &str = "find the ends of a topic";
        let sources: Vec<_> = (0..count).map(|partition| (topic, partition)).collect();
        let ends = self.offsets(client, &sources, Offset::End, ACTION)?;
        let missing = |partition| LogError::Engine {
            action: ACTION,
            reason: format!("the brokers said nothing of partition {partition} of {topic}"),
        };
        sources.iter().map(|source| ends.get(source).copied().ok_or_else(|| missing(source.1))).collect()
    }

    /// The lowest offset of a record made at `at` or later; `None` where there is none.
    pub fn offset_at(&self, client: &Client, source: (Topic, u32), at: Timestamp) -> Result<Option<u64>, LogError> {
        // Negative times have a meaning of their own in the question.
        let at = Offset::Offset(at.as_millis().max(0));
        let found = self.offsets(client, &[source], at, "find a time")?;
        Ok(found.get(&source).copied())
    }

    /// What the group of this consumer has committed for partitions.
    pub fn committed(
        &self,
        client: &Client,
        partitions: TopicPartitionList,
    ) -> Result<AHashMap<(Topic, u32), u64>, LogError> {
        let answer = client.committed_offsets(partitions, self.timeout);
        let answer = answer.map_err(engine("look up what a group has committed"))?;
        self.by_source(&answer, "look up what a group has committed")
    }

    /// Whether a broker answers.
    pub fn ping(&self, client: &Client) -> Result<(), LogError> {
        let topic = self.names.of(Topic::MessagesAccepted);
        client.fetch_metadata(Some(topic), self.timeout).map(drop).map_err(engine("reach a broker"))
    }

    /// A list of partitions as librdkafka takes it.
    pub fn list(&self, sources: impl IntoIterator<Item = (Topic, u32)>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (topic, partition) in sources {
            list.add_partition(self.names.of(topic), partition as i32);
        }
        list
    }

    fn offsets(
        &self,
        client: &Client,
        sources: &[(Topic, u32)],
        of: Offset,
        action: &'static str,
    ) -> Result<AHashMap<(Topic, u32), u64>, LogError> {
        let mut question = self.list(sources.iter().copied());
        question.set_all_offsets(of).map_err(engine(action))?;
        let answer = client.offsets_for_times(question, self.timeout).map_err(engine(action))?;
        self.by_source(&answer, action)
    }

    fn by_source(
        &self,
        answer: &TopicPartitionList,
        action: &'static str,
    ) -> Result<AHashMap<(Topic, u32), u64>, LogError> {
        let mut found = AHashMap::with_capacity(answer.count());
        for partition in answer.elements() {
            partition.error().map_err(engine(action))?;
            if let (Some(topic), Offset::Offset(offset)) = (self.names.topic(partition.topic()), partition.offset()) {
                found.insert((topic, partition.partition() as u32), offset as u64);
            }
        }
        Ok(found)
    }
}
