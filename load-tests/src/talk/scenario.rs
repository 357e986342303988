//! What is said, by how many, how fast, and what must come of it. Read from a TOML file; an unknown key is an error.

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::events::Event;
use crate::scenario::Chaos;

/// A load test of chat.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// How many messages are said in all; in each conversation the same number, in turns: the phone begins.
    pub messages: u64,
    /// Conversations that are talked in, each of a phone of its own.
    pub conversations: u32,
    /// Conversations in which something was said before, and nothing is now.
    #[serde(default)]
    pub quiet: u32,
    /// Businesses that the conversations are spread over.
    #[serde(default = "default_businesses")]
    pub businesses: u32,
    /// From and to how many milliseconds a side thinks before it answers.
    pub think_ms: (u64, u64),
    /// Fraction of messages after which the side that got them says that it has read the conversation.
    #[serde(default)]
    pub read: f64,
    /// Size of a message's text, in bytes.
    #[serde(default = "default_content_bytes")]
    pub content_bytes: usize,
    /// What is read meanwhile.
    #[serde(default)]
    pub reads: ReadsOptions,
    /// What is checked at the end.
    #[serde(default)]
    pub checks: Checks,
    /// What is done to the server, or the cluster, meanwhile.
    #[serde(default)]
    pub chaos: Chaos,
    /// `key=value` settings of a spawned server.
    #[serde(default)]
    pub server_settings: Vec<String>,
}

/// Reads over HTTP, by a timetable: lists, unread counts, and newest messages. Whoever reads is on a visit: an app in the
/// foreground, or an agent. All conversations are visited alike.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadsOptions {
    /// Reads a second; 0: none.
    pub rate: u64,
    /// Connections that they are spread over.
    pub connections: u32,
    /// Fraction of the visits that are a business's; the others are phones'.
    pub by_business: f64,
    /// Reads of a visit, over one connection; 0: one.
    pub visit: u32,
    /// Milliseconds from the begin whose reads do not count.
    pub warmup_ms: u64,
}

/// What is checked at the end. A limit of 0 is none.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checks {
    /// Longest wait for a message to be heard, and for history and counts to be what they should, in milliseconds.
    pub drain_timeout_ms: u64,
    /// Milliseconds to go on listening for duplicates after all was said.
    pub settle_ms: u64,
    /// Time that 95 % of the reads must not exceed, in milliseconds.
    pub reads_p95_ms: u64,
    /// Time that 99 % of the pages of a conversation must not exceed, in milliseconds.
    pub history_p99_ms: u64,
    /// Fraction of look-ups in caches that must be hits.
    pub hit_rate: f64,
    /// Messages a second that must be reached.
    pub min_rate: u64,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            drain_timeout_ms: 30_000,
            settle_ms: 500,
            reads_p95_ms: 0,
            history_p99_ms: 0,
            hit_rate: 0.0,
            min_rate: 0,
        }
    }
}

const fn default_businesses() -> u32 {
    1
}
const fn default_content_bytes() -> usize {
    100
}

impl Scenario {
    /// Reads and checks a scenario file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading scenario {}", path.display()))?;
        let scenario: Self = toml::from_str(&text).with_context(|| format!("scenario {}", path.display()))?;
        scenario.check().with_context(|| format!("scenario {}", path.display()))?;
        Ok(scenario)
    }

    /// Turns of each conversation.
    pub fn turns(&self) -> u32 {
        (self.messages / u64::from(self.conversations)) as u32
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=20_000).contains(&self.conversations), "`conversations` must be 1 to 20,000");
        ensure!((1..=100).contains(&self.businesses), "`businesses` must be 1 to 100");
        let each = u64::from(self.conversations);
        ensure!(
            self.messages > 0 && self.messages.is_multiple_of(each),
            "`messages` must be a multiple of `conversations`"
        );
        ensure!(self.think_ms.0 <= self.think_ms.1, "`think_ms` is [from, to]");
        ensure!((0.0..=1.0).contains(&self.read), "`read` is a fraction");
        ensure!((0.0..=1.0).contains(&self.reads.by_business), "`reads.by_business` is a fraction");
        ensure!(self.reads.rate == 0 || self.reads.connections > 0, "`reads.connections` must be at least 1");
        ensure!((1..=10_000).contains(&self.content_bytes), "`content_bytes` must be 1 to 10,000");
        self.chaos.events.iter().try_for_each(Event::check)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_in_the_folder_is_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/talk");
        let scenarios = std::fs::read_dir(folder).unwrap().map(|entry| Scenario::read(&entry.unwrap().path()).unwrap());
        assert!(scenarios.filter(|scenario| scenario.turns() > 0).count() >= 4);
    }
}
