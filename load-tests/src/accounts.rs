//! The accountant's books: what was sent to each recipient, what each received, and whether the two agree.
//!
//! Pure, and small: a bit a message, so that a million messages to 2,000 recipients are 125 KB. It knows every message by
//! (recipient, seq): see [`crate::reference`].

use std::collections::BTreeMap;

use serde::Serialize;

/// Most violations that are kept as examples.
const EXAMPLES: usize = 20;

/// In how many lanes one recipient's messages may stand. Order is checked within each.
pub const LANES: usize = 4;

/// What was sent to one recipient. Written by the one sender that it belongs to.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// How many were attempted: seqs `0..attempted`.
    attempted: u32,
    /// Attempted, and refused for good: must never arrive. In order.
    refused: Vec<u32>,
    /// Attempted, and never answered: may arrive, once. In order.
    unknown: Vec<u32>,
    /// Accepted, and then cancelled.
    cancelled: BTreeMap<u32, Cancelled>,
}

/// The outcome of the cancellation of an accepted message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancelled {
    /// The id that the server gave the message.
    pub id: String,
    /// When the server's success was read, in microseconds of the run's clock: what arrives later is a violation. `None`
    /// where no answer came: the message may arrive, and need not.
    pub answered_us: Option<u64>,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The server said that it has it.
    Accepted,
    /// The server said that it does not take it.
    Refused,
    /// There was no answer until the sender gave up.
    Unknown,
}

impl Sent {
    /// Hands out a seq; what became of it is told by [`Sent::settle`].
    pub fn attempt(&mut self) -> u32 {
        self.attempted += 1;
        self.attempted - 1
    }

    /// Says what became of an attempt. Called once for each, in order.
    pub fn settle(&mut self, seq: u32, attempt: Attempt) {
        match attempt {
            Attempt::Accepted => {}
            Attempt::Refused => self.refused.push(seq),
            Attempt::Unknown => self.unknown.push(seq),
        }
    }

    /// Says that an accepted message was cancelled. Called in any order, after all were settled.
    pub fn cancel(&mut self, seq: u32, cancelled: Cancelled) {
        self.cancelled.insert(seq, cancelled);
    }

    fn fate(&self, seq: u32) -> Option<Attempt> {
        if seq >= self.attempted {
            None
        } else if self.refused.binary_search(&seq).is_ok() {
            Some(Attempt::Refused)
        } else if self.unknown.binary_search(&seq).is_ok() {
            Some(Attempt::Unknown)
        } else {
            Some(Attempt::Accepted)
        }
    }
}

/// What one recipient received.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    seen: Vec<u64>,
    received: u32,
    /// When each was received for the first time, in microseconds of the run's clock: those of a run with cancellations.
    times_us: Option<BTreeMap<u32, u64>>,
    /// One above the highest seq received, a lane.
    next: [u32; LANES],
    violations: Vec<(Violation, u32)>,
    counts: [u64; Violation::ALL.len()],
}

/// What can be wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Violation {
    /// Accepted, and never received.
    Lost,
    /// Received again, by a client that resumes by cursor.
    Duplicated,
    /// Received for the first time behind a later one of its lane.
    OutOfOrder,
    /// Received, though never sent to this recipient, or refused.
    Unexpected,
    /// Received for the first time when its cancellation had been answered longer ago than is allowed.
    AfterCancel,
}

impl Violation {
    const ALL: [Self; 5] = [Self::Lost, Self::Duplicated, Self::OutOfOrder, Self::Unexpected, Self::AfterCancel];
}

impl Inbox {
    /// An inbox that keeps the times at which messages came, where the run cancels any.
    pub fn new(keeps_times: bool) -> Self {
        Self { times_us: keeps_times.then(BTreeMap::new), ..Self::default() }
    }

    /// Takes a message in, at a time in microseconds of the run's clock. `true` where it is new, for whoever counts progress.
    pub fn receive(&mut self, seq: u32, lane: usize, at_us: u64) -> bool {
        if self.has(seq) {
            self.violate(Violation::Duplicated, seq);
            return false;
        }
        let (word, bit) = Self::place(seq);
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        self.seen[word] |= bit;
        self.received += 1;
        if let Some(times_us) = &mut self.times_us {
            times_us.insert(seq, at_us);
        }
        if seq < self.next[lane] {
            self.violate(Violation::OutOfOrder, seq);
        } else {
            self.next[lane] = seq + 1;
        }
        true
    }

    /// Takes in what was not meant for this recipient at all.
    pub fn receive_stranger(&mut self) {
        self.violate(Violation::Unexpected, u32::MAX);
    }

    fn has(&self, seq: u32) -> bool {
        let (word, bit) = Self::place(seq);
        self.seen.get(word).is_some_and(|seen| seen & bit != 0)
    }

    const fn place(seq: u32) -> (usize, u64) {
        ((seq / 64) as usize, 1 << (seq % 64))
    }

    fn violate(&mut self, violation: Violation, seq: u32) {
        self.counts[violation as usize] += 1;
        if self.violations.len() < EXAMPLES {
            self.violations.push((violation, seq));
        }
    }
}

/// One thing that was wrong, for whoever looks for the cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Example {
    /// What was wrong.
    pub violation: Violation,
    /// Whose message.
    pub recipient: u32,
    /// Which; `None` for one that nobody of this run sent.
    pub seq: Option<u32>,
    /// More of it, where more is known.
    pub detail: Option<String>,
}

/// What the books say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Messages that the server said it has.
    pub accepted: u64,
    /// Messages that it refused.
    pub refused: u64,
    /// Messages that it never answered.
    pub unknown: u64,
    /// Different messages that arrived.
    pub received: u64,
    /// Accepted and never received.
    pub lost: u64,
    /// Received again.
    pub duplicated: u64,
    /// Received behind a later one of the same lane.
    pub out_of_order: u64,
    /// Received, though never sent or refused.
    pub unexpected: u64,
    /// Outcomes of messages whose cancellation was answered as done.
    pub cancelled: CancelledTotals,
    /// The first violations that were found.
    pub examples: Vec<Example>,
}

/// Totals of the messages whose cancellation was answered as done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CancelledTotals {
    /// All of them.
    pub answered: u64,
    /// Never received.
    pub withheld: u64,
    /// Received before the answer.
    pub before: u64,
    /// Received after the answer, within the time that is allowed.
    pub within: u64,
    /// Received later than that: violations.
    pub after: u64,
    /// Longest time from an answer to the receipt, in microseconds.
    pub longest_us: u64,
}

impl Verdict {
    /// Compares the books of all recipients: each with what was sent to it and what it received. A cancelled message may be
    /// received up to `grace_us` microseconds after the answer to its cancellation.
    pub fn of<'a>(accounts: impl IntoIterator<Item = (u32, &'a Sent, &'a Inbox)>, grace_us: u64) -> Self {
        let mut verdict = Self::default();
        for (recipient, sent, inbox) in accounts {
            verdict.add(recipient, sent, inbox, grace_us);
        }
        verdict
    }

    /// Adds a recipient's books.
    pub fn add(&mut self, recipient: u32, sent: &Sent, inbox: &Inbox, grace_us: u64) {
        self.refused += sent.refused.len() as u64;
        self.unknown += sent.unknown.len() as u64;
        self.accepted += u64::from(sent.attempted) - (sent.refused.len() + sent.unknown.len()) as u64;
        self.received += u64::from(inbox.received);
        self.duplicated += inbox.counts[Violation::Duplicated as usize];
        self.out_of_order += inbox.counts[Violation::OutOfOrder as usize];
        self.unexpected += inbox.counts[Violation::Unexpected as usize];
        for (violation, seq) in &inbox.violations {
            self.example(*violation, recipient, *seq);
        }
        for seq in (0..sent.attempted).filter(|seq| !inbox.has(*seq)) {
            if sent.fate(seq) == Some(Attempt::Accepted) && !sent.cancelled.contains_key(&seq) {
                self.lost += 1;
                self.example(Violation::Lost, recipient, seq);
            }
        }
        let end = inbox.seen.len() as u32 * 64;
        for seq in (0..end).filter(|seq| inbox.has(*seq)) {
            if matches!(sent.fate(seq), None | Some(Attempt::Refused)) {
                self.unexpected += 1;
                self.example(Violation::Unexpected, recipient, seq);
            }
        }
        self.add_cancelled(recipient, sent, inbox, grace_us);
    }

    fn add_cancelled(&mut self, recipient: u32, sent: &Sent, inbox: &Inbox, grace_us: u64) {
        for (seq, cancelled) in &sent.cancelled {
            let Some(answered_us) = cancelled.answered_us else { continue };
            self.cancelled.answered += 1;
            if !inbox.has(*seq) {
                self.cancelled.withheld += 1;
                continue;
            }
            // One whose time was not kept counts as received at the end.
            let received_us =
                inbox.times_us.as_ref().and_then(|times_us| times_us.get(seq)).copied().unwrap_or(u64::MAX);
            if received_us <= answered_us {
                self.cancelled.before += 1;
                continue;
            }
            let late_us = received_us - answered_us;
            self.cancelled.longest_us = self.cancelled.longest_us.max(late_us);
            if late_us <= grace_us {
                self.cancelled.within += 1;
                continue;
            }
            self.cancelled.after += 1;
            let Cancelled { id, .. } = cancelled;
            let detail = format!(
                "{id}: cancelled {:.3} s after the start, received {:.3} s later",
                answered_us as f64 / 1e6,
                late_us as f64 / 1e6
            );
            self.example_of(Violation::AfterCancel, recipient, *seq, Some(detail));
        }
    }

    fn example(&mut self, violation: Violation, recipient: u32, seq: u32) {
        self.example_of(violation, recipient, seq, None);
    }

    fn example_of(&mut self, violation: Violation, recipient: u32, seq: u32, detail: Option<String>) {
        if self.examples.len() < EXAMPLES {
            let seq = (seq != u32::MAX).then_some(seq);
            self.examples.push(Example { violation, recipient, seq, detail });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "accounts_tests.rs"]
mod tests;
