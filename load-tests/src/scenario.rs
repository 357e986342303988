//! A scenario: what is sent, to whom, and what must come of it. Read from a TOML file; an unknown key is an error.

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::accounts::LANES;
use crate::events::Event;
use crate::webhooks;

/// A load test.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// How many messages are sent in all.
    pub messages: u64,
    /// Messages a second of all senders together; 0: each as soon as the one before it was accepted.
    pub rate: u64,
    /// Messages due in the first so many milliseconds count for the accounts, not for the latencies.
    #[serde(default)]
    pub warmup_ms: u64,
    /// Size of a message's text, in bytes.
    #[serde(default = "default_content_bytes")]
    pub content_bytes: usize,
    /// Those who send: each group has its share of the recipients and of the messages.
    pub senders: Vec<Senders>,
    /// Those who receive.
    pub recipients: Recipients,
    /// What is checked at the end.
    #[serde(default)]
    pub checks: Checks,
    /// Endpoints for webhooks (`--spawn` only); those who receive acknowledge everything then.
    pub webhooks: Option<webhooks::Options>,
    /// What is done to the server meanwhile (`--spawn` only).
    #[serde(default)]
    pub chaos: Chaos,
    /// `key=value` settings of a spawned server.
    #[serde(default)]
    pub server_settings: Vec<String>,
}

/// How a group of senders submits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `POST /v1/messages`, one message a request.
    Single,
    /// `POST /v1/messages/bulk`, `batch` messages a request.
    Bulk,
}

/// A message's priority, as the API names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Before all others.
    High,
    /// The default.
    Normal,
    /// After all others.
    Low,
}

impl Priority {
    /// Its name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

/// A group of senders.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Senders {
    /// How they submit.
    pub mode: Mode,
    /// How many there are. Each has one HTTP connection with one request under way, and recipients of its own.
    pub connections: u32,
    /// Their part of the messages and the recipients, against the other groups' parts.
    #[serde(default = "default_share")]
    pub share: u32,
    /// Messages a request (mode `bulk`).
    #[serde(default = "default_batch")]
    pub batch: u32,
    /// Whether each request has an Idempotency-Key. One without is never sent twice: without an answer its messages count
    /// as unknown.
    #[serde(default = "default_true")]
    pub idempotency_keys: bool,
    /// A recipient's messages take these in turn. One in mode `bulk`, since it has a lane of its own.
    #[serde(default = "default_priorities")]
    pub priorities: Vec<Priority>,
    /// Milliseconds to wait for an answer before asking again.
    #[serde(default = "default_request_timeout_ms")]
    pub request_timeout_ms: u64,
    /// Milliseconds after which a message that was never answered counts as unknown, and nothing more is sent.
    #[serde(default = "default_give_up_ms")]
    pub give_up_ms: u64,
    /// Fraction of the accepted messages (mode `single`) that are cancelled, each by requests of its own until there is an
    /// answer.
    #[serde(default)]
    pub cancel: f64,
    /// From and to how many milliseconds after its acceptance a message is cancelled.
    #[serde(default = "default_cancel_after_ms")]
    pub cancel_after_ms: (u64, u64),
    /// Fraction of the accepted messages (mode `single`) that are looked up at once, until there is an answer. The smaller
    /// one of this fraction and `cancel` is a part of the other.
    #[serde(default)]
    pub look_up: f64,
}

impl Senders {
    /// Messages a request.
    pub fn lines(&self) -> u32 {
        match self.mode {
            Mode::Single => 1,
            Mode::Bulk => self.batch,
        }
    }

    /// The lane, for checking order, of a recipient's message `seq`.
    pub fn lane(&self, seq: u32) -> usize {
        seq as usize % self.priorities.len()
    }

    /// The priority of a recipient's message `seq`.
    pub fn priority(&self, seq: u32) -> Priority {
        self.priorities[self.lane(seq)]
    }

    fn check_cancellations(&self) -> anyhow::Result<()> {
        let Self { mode, cancel, look_up, cancel_after_ms: (from_ms, to_ms), .. } = self;
        for (key, fraction) in [("cancel", *cancel), ("look_up", *look_up)] {
            ensure!((0.0..=1.0).contains(&fraction), "`senders.{key}` is a fraction, and {fraction} is none");
            let has_ids = *mode == Mode::Single || fraction == 0.0;
            ensure!(has_ids, "`senders.{key}` is for senders with `mode = \"single\"`");
        }
        ensure!(from_ms <= to_ms, "`senders.cancel_after_ms` is [from, to], and {from_ms} is more than {to_ms}");
        Ok(())
    }

    /// Returns true if this message is cancelled after it was accepted.
    pub fn cancels(&self, recipient: u32, seq: u32) -> bool {
        draw(recipient, seq) < self.cancel
    }

    /// Returns true if this message is looked up after it was accepted.
    pub fn looks_up(&self, recipient: u32, seq: u32) -> bool {
        draw(recipient, seq) < self.look_up
    }
}

/// A number in [0, 1) for each message: random enough, and the same for senders and recipients (SplitMix64's mixer).
fn draw(recipient: u32, seq: u32) -> f64 {
    let mut bits = ((u64::from(recipient) << 32) | u64::from(seq)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits ^ (bits >> 31)) >> 32) as f64 / (u64::from(u32::MAX) + 1) as f64
}

/// Those who receive. The fractions need not sum to 1: the rest is never there while messages are sent, and comes at the
/// end for all that waited.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipients {
    /// How many.
    pub count: u32,
    /// Fraction connected all the time.
    pub steady: f64,
    /// Fraction that connects and disconnects all the time.
    #[serde(default)]
    pub flapping: f64,
    /// From and to how many milliseconds a flapping one stays.
    #[serde(default = "default_stay_ms")]
    pub stay_ms: (u64, u64),
    /// From and to how many milliseconds a flapping one is away.
    #[serde(default = "default_away_ms")]
    pub away_ms: (u64, u64),
    /// Fraction that connects to the first gateway; the others by turns.
    #[serde(default)]
    pub on_first_gateway: f64,
    /// Whether they come back as apps do: when the server says, and else after 1 s to 30 s, later each time. Otherwise they
    /// come back at once.
    #[serde(default)]
    pub as_apps: bool,
    /// Milliseconds for which acks are gathered; 0: one ack for each burst read, as an app does.
    #[serde(default)]
    pub ack_delay_ms: u64,
}

/// What is checked at the end. A limit of 0 is none.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checks {
    /// Longest time without a message arriving, in milliseconds, before what is missing counts as lost.
    pub drain_timeout_ms: u64,
    /// Milliseconds to go on listening for duplicates after everything has arrived.
    pub settle_ms: u64,
    /// Fraction of the recipients whose whole history is read once more from its start.
    pub history_sample: f64,
    /// End-to-end latency to steady recipients that 95 % must not exceed, in milliseconds.
    pub p95_ms: u64,
    /// The same for 99 %.
    pub p99_ms: u64,
    /// Messages a second that must be reached while sending: accepted, and delivered to steady recipients.
    pub min_rate: u64,
    /// Whether no stage may have failed on a record: no attempt spent, nothing in retry topics, no dead letter.
    pub no_attempts: bool,
    /// Connections of one recipient, after its session broke, that must not be exceeded: those that reached a gateway.
    pub most_connects: u32,
    /// Milliseconds from the end of a session to the head of the stream in the next that nobody must exceed.
    pub caught_up_ms: u64,
    /// Sessions that the server may close or refuse; -1: any number.
    pub most_ends: i64,
    /// Reads of streams by gateways to check what presence may have lost, for each recipient, that must not be exceeded; -1: any
    /// number.
    pub stream_reads_each: f64,
    /// By how much the memory of all processes together may grow, in MiB.
    pub memory_growth_mib: u64,
    /// Milliseconds after the answer to its cancellation in which a message may still arrive: `cancellations.max_age_ms` of
    /// the server. 0: none may. The load generator adds what it may have been late itself.
    pub cancel_grace_ms: u64,
    /// Cancelled messages that must not have been received, so that a run in which every cancellation came too late does
    /// not pass.
    pub min_withheld: u64,
    /// Look-ups and cancellations that must have been repeated because the server could not answer yet, so that a run in
    /// which the history never lagged does not pass.
    pub min_repeats: u64,
    /// Cancellations that must have been answered 202, before the history knew the message.
    pub min_cancelled_unseen: u64,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            drain_timeout_ms: 20_000,
            settle_ms: 500,
            history_sample: 0.1,
            p95_ms: 0,
            p99_ms: 0,
            min_rate: 0,
            no_attempts: false,
            most_connects: 0,
            caught_up_ms: 0,
            most_ends: -1,
            stream_reads_each: -1.0,
            memory_growth_mib: 0,
            cancel_grace_ms: 3_000,
            min_withheld: 0,
            min_repeats: 0,
            min_cancelled_unseen: 0,
        }
    }
}

/// What is done to a spawned server.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Chaos {
    /// How often it is killed with SIGKILL and started again on the same data: spread over the run, the last time right
    /// after the last message was accepted.
    pub kills: u32,
    /// Milliseconds that it stays down.
    pub down_ms: u64,
    /// What is done to the processes and the engines of a cluster (`--engines`).
    pub events: Vec<Event>,
}

const fn default_content_bytes() -> usize {
    100
}
const fn default_share() -> u32 {
    1
}
const fn default_batch() -> u32 {
    50
}
const fn default_true() -> bool {
    true
}
fn default_priorities() -> Vec<Priority> {
    vec![Priority::Normal]
}
const fn default_request_timeout_ms() -> u64 {
    10_000
}
const fn default_give_up_ms() -> u64 {
    120_000
}
const fn default_cancel_after_ms() -> (u64, u64) {
    (0, 1_000)
}
const fn default_stay_ms() -> (u64, u64) {
    (100, 1_500)
}
const fn default_away_ms() -> (u64, u64) {
    (20, 500)
}

impl Scenario {
    /// Reads and checks a scenario file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading scenario {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("scenario {}", path.display()))
    }

    /// Reads and checks a scenario.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let scenario: Self = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Returns true if any sender cancels messages.
    pub fn cancels(&self) -> bool {
        self.senders.iter().any(|senders| senders.cancel > 0.0)
    }

    /// Returns true if any sender cancels messages, or looks them up.
    pub fn asks_of_messages(&self) -> bool {
        self.cancels() || self.senders.iter().any(|senders| senders.look_up > 0.0)
    }

    fn check(&self) -> anyhow::Result<()> {
        let recipients = &self.recipients;
        ensure!(self.messages > 0, "`messages` must be at least 1");
        ensure!((1..=10_000).contains(&self.content_bytes), "`content_bytes` must be 1 to 10,000");
        ensure!(!self.senders.is_empty(), "at least one [[senders]] is needed");
        ensure!(recipients.count <= 1_000_000, "`recipients.count` must be at most 1,000,000");
        ensure!(
            recipients.steady >= 0.0 && recipients.flapping >= 0.0 && recipients.steady + recipients.flapping <= 1.0,
            "`recipients.steady` and `recipients.flapping` are fractions, together at most 1"
        );
        ensure!(
            recipients.stay_ms.0 <= recipients.stay_ms.1 && recipients.away_ms.0 <= recipients.away_ms.1,
            "`recipients.stay_ms` and `recipients.away_ms` are [from, to]"
        );
        ensure!((0.0..=1.0).contains(&self.checks.history_sample), "`checks.history_sample` is a fraction");
        for senders in &self.senders {
            ensure!(
                senders.connections > 0 && senders.share > 0,
                "`senders.connections` and `share` must be at least 1"
            );
            ensure!((1..=100_000).contains(&senders.batch), "`senders.batch` must be 1 to 100,000");
            ensure!((1..=LANES).contains(&senders.priorities.len()), "`senders.priorities` has 1 to {LANES} entries");
            ensure!(senders.mode == Mode::Single || senders.priorities.len() == 1, "bulk senders have one priority");
            senders.check_cancellations()?;
        }
        let cancels = self.cancels();
        ensure!(!cancels || self.webhooks.is_none(), "`senders.cancel` and `webhooks` exclude each other");
        ensure!(
            cancels || self.checks.min_withheld == 0 && self.checks.min_cancelled_unseen == 0,
            "`checks.min_withheld` and `checks.min_cancelled_unseen` need `senders.cancel`"
        );
        self.chaos.events.iter().try_for_each(Event::check)?;
        let connections: u32 = self.senders.iter().map(|senders| senders.connections).sum();
        ensure!(recipients.count >= connections, "each sender needs a recipient of its own: {connections} senders");
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SMALL: &str = "messages = 10\nrate = 0\n[[senders]]\nmode = \"single\"\nconnections = 1\n\
                         [recipients]\ncount = 2\nsteady = 1.0\n";

    #[test]
    fn every_scenario_in_the_folder_is_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut found = 0;
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        for scenario in entries.filter(|path| path.is_file()) {
            Scenario::read(&scenario).unwrap();
            found += 1;
        }
        assert!(found >= 5);
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let scenario = Scenario::parse(SMALL).unwrap();
        assert_eq!(scenario.senders[0].lines(), 1);
        assert_eq!(scenario.senders[0].priority(5), Priority::Normal);
        assert_eq!(scenario.chaos.kills, 0);
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let error = Scenario::parse(&format!("{SMALL}stedy = 1\n")).unwrap_err();
        assert!(format!("{error:#}").contains("stedy"));
    }

    #[test]
    fn cancellations_are_fractions_of_what_single_senders_send() {
        let with = |keys: &str| SMALL.replace("connections = 1\n", &format!("connections = 1\n{keys}\n"));
        let scenario = Scenario::parse(&with("cancel = 0.25\nlook_up = 0.5")).unwrap();
        let senders = &scenario.senders[0];
        let chosen: Vec<u32> = (0..10_000).filter(|seq| senders.cancels(3, *seq)).collect();
        assert!((2_300..2_700).contains(&chosen.len()), "{}", chosen.len());
        assert!(chosen.iter().all(|seq| senders.looks_up(3, *seq)));
        assert!(!(0..10_000).filter(|seq| senders.cancels(4, *seq)).eq(chosen));
        for (keys, named) in [
            ("cancel = 1.5", "`senders.cancel` is a fraction, and 1.5 is none"),
            ("look_up = -0.5", "`senders.look_up` is a fraction"),
            ("cancel_after_ms = [2, 1]", "`senders.cancel_after_ms` is [from, to], and 2 is more than 1"),
        ] {
            let error = Scenario::parse(&with(keys)).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        let bulk = with("cancel = 0.1").replace("single", "bulk");
        assert!(Scenario::parse(&bulk).unwrap_err().to_string().contains("`senders.cancel` is for senders with `mode"));
    }

    #[test]
    fn more_senders_than_recipients_are_refused() {
        let text = SMALL.replace("connections = 1", "connections = 3");
        assert!(Scenario::parse(&text).unwrap_err().to_string().contains("recipient of its own"));
    }
}
