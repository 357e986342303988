//! Ids from the future: a host minted them by a clock that was ahead. They are kept until ids of their time are let go of
//! anyway, so that a day of such a host does not move what the window covers for everybody else.

use ahash::AHashMap;
use eshaar_model::{MessageId, Timestamp};

/// Ids from the future, with the lowest offset of each; at most `most`.
#[derive(Debug)]
pub(super) struct Ahead {
    most: usize,
    lowest: AHashMap<MessageId, u64>,
    /// The latest time of an id in `lowest`.
    latest: Timestamp,
    /// The times of ids that were let go because there were too many: from the first to the last.
    let_go: Option<(Timestamp, Timestamp)>,
}

impl Ahead {
    pub(super) fn new(most: usize) -> Self {
        Self { most, lowest: AHashMap::new(), latest: Timestamp::from_millis(i64::MIN), let_go: None }
    }

    /// The lowest offset of an id.
    pub(super) fn lowest(&self, id: MessageId) -> Option<u64> {
        self.lowest.get(&id).copied()
    }

    pub(super) fn enter(&mut self, id: MessageId, offset: u64) {
        if self.lowest.len() >= self.most && !self.lowest.contains_key(&id) {
            self.let_all_go();
        }
        self.latest = self.latest.max(id.made_at());
        self.lowest.entry(id).and_modify(|lowest| *lowest = offset.min(*lowest)).or_insert(offset);
    }

    /// Returns true if the id may be one of those that were let go.
    pub(super) fn may_have_had(&self, id: MessageId) -> bool {
        self.let_go.is_some_and(|(first, last)| (first..=last).contains(&id.made_at()))
    }

    pub(super) const fn has_let_go(&self) -> bool {
        self.let_go.is_some()
    }

    /// Ids of that time and before are not covered by the window: nothing need be known of them here.
    pub(super) fn forget_until(&mut self, time: Timestamp) {
        if !self.lowest.is_empty() && self.latest <= time {
            self.lowest = AHashMap::new();
        }
        self.let_go = self.let_go.filter(|(_, last)| *last > time);
    }

    fn let_all_go(&mut self) {
        let times = self.lowest.keys().map(|id| id.made_at());
        let (first, last) = times.fold((self.latest, self.latest), |(first, last), at| (first.min(at), last.max(at)));
        let (known_first, known_last) = self.let_go.unwrap_or((first, last));
        self.let_go = Some((first.min(known_first), last.max(known_last)));
        self.lowest.clear();
    }
}
