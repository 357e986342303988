//! The accountant's books: what was sent to each recipient, what each received, and whether the two agree.
//!
//! Pure, and small: a bit a message, so that a million messages to 2,000 recipients are 125 KB. It knows every message by
//! (recipient, seq): see [`crate::reference`].

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
}

impl Violation {
    const ALL: [Self; 4] = [Self::Lost, Self::Duplicated, Self::OutOfOrder, Self::Unexpected];
}

impl Inbox {
    /// Takes a message in. `true` where it is new, for whoever counts progress.
    pub fn receive(&mut self, seq: u32, lane: usize) -> bool {
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
    /// The first violations that were found.
    pub examples: Vec<Example>,
}

impl Verdict {
    /// Compares the books of all recipients: each with what was sent to it and what it received.
    pub fn of<'a>(accounts: impl IntoIterator<Item = (u32, &'a Sent, &'a Inbox)>) -> Self {
        let mut verdict = Self::default();
        for (recipient, sent, inbox) in accounts {
            verdict.add(recipient, sent, inbox);
        }
        verdict
    }

    /// Adds a recipient's books.
    pub fn add(&mut self, recipient: u32, sent: &Sent, inbox: &Inbox) {
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
            if sent.fate(seq) == Some(Attempt::Accepted) {
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
    }

    fn example(&mut self, violation: Violation, recipient: u32, seq: u32) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(Example { violation, recipient, seq: (seq != u32::MAX).then_some(seq) });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "accounts_tests.rs"]
mod tests;
