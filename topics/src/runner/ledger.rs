//! What may be committed: for each partition the lowest offset that is not settled, keyed by the assignment it belongs to,
//! so that what was begun under an earlier one is never committed under this (kafka-rules 1, 3).

use std::collections::BTreeMap;

use eshaar_model::Timestamp;
use parking_lot::Mutex;

use crate::{Gap, Topic};

/// The offsets of one member. Shared by its workers, each of which settles its own partition, in order.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<BTreeMap<(Topic, u32), Entry>>);

#[derive(Clone, Copy, Debug)]
struct Entry {
    generation: u64,
    /// The lowest offset that is not settled.
    next: u64,
    committed: u64,
    /// The oldest offset that the log was last seen to keep.
    start: u64,
    /// How many gaps before it are being recovered: nothing is committed meanwhile, so that the next owner finds them again.
    held: u32,
    /// When the oldest record that was taken and is not settled was made.
    oldest: Option<Timestamp>,
}

/// Offsets to be committed under one assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) generation: u64,
    pub(super) offsets: Vec<(Topic, u32, u64)>,
}

impl Ledger {
    /// A partition was assigned, to be read from `next` on.
    pub(super) fn assign(&self, generation: u64, (topic, partition): (Topic, u32), next: u64) {
        let entry = Entry { generation, next, committed: next, start: 0, held: 0, oldest: None };
        self.0.lock().insert((topic, partition), entry);
    }

    /// Records of a partition were deleted unread, and are being recovered: commits wait for [`Self::release`].
    pub(super) fn hold(&self, generation: u64, gap: Gap) {
        self.with(generation, (gap.topic, gap.partition), |entry| {
            entry.held += 1;
            // To be committed when it is over, though nothing more may come.
            entry.committed = entry.committed.min(gap.from);
            entry.next = entry.next.max(gap.to);
        });
    }

    /// What was deleted unread is recovered.
    pub(super) fn release(&self, generation: u64, gap: Gap) {
        self.with(generation, (gap.topic, gap.partition), |entry| entry.held = entry.held.saturating_sub(1));
    }

    /// Records were taken, the oldest made at `oldest`.
    pub(super) fn taken(&self, generation: u64, source: (Topic, u32), oldest: Timestamp) {
        self.with(generation, source, |entry| entry.oldest = Some(oldest));
    }

    /// Everything below `next` is settled; of what was taken, `oldest` is the first that is not.
    pub(super) fn settle(&self, generation: u64, source: (Topic, u32), next: u64, oldest: Option<Timestamp>) {
        self.with(generation, source, |entry| {
            entry.next = entry.next.max(next);
            entry.oldest = oldest;
        });
    }

    /// The log keeps a partition from `start` on.
    pub(super) fn starts(&self, (topic, partition): (Topic, u32), start: u64) {
        if let Some(entry) = self.0.lock().get_mut(&(topic, partition)) {
            entry.start = start;
        }
    }

    /// Where the log keeps each topic of a partition number from, as it was last seen.
    pub(super) fn known_starts(&self, partition: u32) -> Vec<(Topic, u64)> {
        let entries = self.0.lock();
        let of_number = entries.iter().filter(|((_, number), _)| *number == partition);
        of_number.map(|((topic, _), entry)| (*topic, entry.start)).collect()
    }

    /// What is settled and not committed, by assignment.
    pub(super) fn uncommitted(&self) -> Vec<Commit> {
        let mut commits: Vec<Commit> = Vec::new();
        let is_due = |entry: &Entry| entry.held == 0 && entry.next > entry.committed;
        for ((topic, partition), entry) in self.0.lock().iter().filter(|(_, entry)| is_due(entry)) {
            let offset = (*topic, *partition, entry.next);
            match commits.iter_mut().find(|commit| commit.generation == entry.generation) {
                Some(commit) => commit.offsets.push(offset),
                None => commits.push(Commit { generation: entry.generation, offsets: vec![offset] }),
            }
        }
        commits
    }

    /// A commit was acknowledged.
    pub(super) fn committed(&self, commit: &Commit) {
        for (topic, partition, offset) in &commit.offsets {
            self.with(commit.generation, (*topic, *partition), |entry| entry.committed = entry.committed.max(*offset));
        }
    }

    /// Partition numbers are given up: what is still to be settled there is dropped.
    pub(super) fn give_up(&self, partitions: &[u32]) {
        self.0.lock().retain(|(_, partition), _| !partitions.contains(partition));
    }

    /// Every partition with its lowest unsettled offset.
    pub(super) fn unsettled(&self) -> Vec<(Topic, u32, u64)> {
        self.0.lock().iter().map(|((topic, partition), entry)| (*topic, *partition, entry.next)).collect()
    }

    /// When the oldest record of each partition number was made that was taken and is not settled.
    pub(super) fn oldest(&self) -> BTreeMap<u32, Option<Timestamp>> {
        let mut oldest: BTreeMap<u32, Option<Timestamp>> = BTreeMap::new();
        for ((_, partition), entry) in self.0.lock().iter() {
            let known = oldest.entry(*partition).or_default();
            *known = match (*known, entry.oldest) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        oldest
    }

    fn with(&self, generation: u64, source: (Topic, u32), change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.0.lock().get_mut(&source).filter(|entry| entry.generation == generation) {
            change(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: (Topic, u32) = (Topic::LaneHigh, 3);

    #[test]
    fn only_what_was_settled_since_the_last_commit_is_committed() {
        let ledger = Ledger::default();
        ledger.assign(1, SOURCE, 10);
        assert_eq!(ledger.uncommitted(), []);
        ledger.settle(1, SOURCE, 14, None);
        let commit = Commit { generation: 1, offsets: vec![(Topic::LaneHigh, 3, 14)] };
        assert_eq!(ledger.uncommitted(), std::slice::from_ref(&commit));
        ledger.committed(&commit);
        assert_eq!(ledger.uncommitted(), []);
    }

    #[test]
    fn what_was_begun_under_an_earlier_assignment_changes_nothing() {
        let ledger = Ledger::default();
        ledger.assign(1, SOURCE, 10);
        ledger.give_up(&[3]);
        ledger.settle(1, SOURCE, 20, None);
        assert_eq!(ledger.unsettled(), []);
        ledger.assign(2, SOURCE, 12);
        ledger.settle(1, SOURCE, 20, None);
        assert_eq!(ledger.unsettled(), [(Topic::LaneHigh, 3, 12)]);
    }

    #[test]
    fn offsets_of_two_assignments_are_committed_apart() {
        let ledger = Ledger::default();
        ledger.assign(1, SOURCE, 0);
        ledger.assign(2, (Topic::LaneHigh, 4), 0);
        ledger.settle(1, SOURCE, 1, None);
        ledger.settle(2, (Topic::LaneHigh, 4), 2, None);
        let generations: Vec<u64> = ledger.uncommitted().iter().map(|commit| commit.generation).collect();
        assert_eq!(generations, [1, 2]);
    }

    #[test]
    fn nothing_is_committed_while_what_was_deleted_unread_is_recovered() {
        let ledger = Ledger::default();
        ledger.assign(1, SOURCE, 10);
        let gap = Gap { topic: SOURCE.0, partition: SOURCE.1, from: 4, to: 10 };
        ledger.hold(1, gap);
        ledger.hold(1, gap);
        ledger.settle(1, SOURCE, 12, None);
        ledger.release(1, gap);
        assert_eq!(ledger.uncommitted(), []);
        ledger.release(1, gap);
        assert_eq!(ledger.uncommitted()[0].offsets, [(SOURCE.0, SOURCE.1, 12)]);
        // Nothing more comes: the place behind the gap is committed all the same.
        ledger.assign(2, SOURCE, 10);
        ledger.hold(2, gap);
        ledger.release(2, gap);
        assert_eq!(ledger.uncommitted()[0].offsets, [(SOURCE.0, SOURCE.1, 10)]);
    }

    #[test]
    fn the_oldest_unsettled_record_is_known_until_it_is_settled() {
        let ledger = Ledger::default();
        ledger.assign(1, SOURCE, 0);
        ledger.taken(1, SOURCE, Timestamp::from_millis(7));
        assert_eq!(ledger.oldest()[&3], Some(Timestamp::from_millis(7)));
        ledger.settle(1, SOURCE, 5, None);
        assert_eq!(ledger.oldest()[&3], None);
    }
}
