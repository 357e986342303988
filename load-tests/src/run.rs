//! What the tasks of a run share, and who does what: which sender owns which recipients, who is connected when.

use std::sync::atomic::{AtomicU64, Ordering};

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::cancels::Cancels;
use crate::clock::RunClock;
use crate::http_client::Endpoints;
use crate::measure::{Latencies, Totals};
use crate::phones::Phones;
use crate::reconnects::Reconnects;
use crate::scenario::Scenario;
use crate::sender::Plan;
use crate::token::Minter;

/// Handshakes under way at once. A crowd that comes all at once measures the accept queue, not the server.
const HANDSHAKES: usize = 64;

/// Recipients for each source address, where there are too many for one.
const PORTS_OF_A_SOURCE: u32 = 20_000;

/// Where the server is, and what opens it.
#[derive(Clone)]
pub struct Access {
    /// Where the HTTP API listens.
    pub ingest: Endpoints,
    /// Where the WebSocket gateways listen.
    pub gateways: Endpoints,
    /// A business's key that may send.
    pub api_key: String,
    /// Signs the recipients' tokens.
    pub minter: Minter,
}

/// Shared by all tasks of a run.
pub struct Run {
    /// Different for each run: part of its Idempotency-Keys.
    pub id: String,
    /// Its clock.
    pub clock: RunClock,
    /// Where the HTTP API listens.
    pub ingest: Endpoints,
    /// Where the WebSocket gateways listen.
    pub gateways: Endpoints,
    /// A business's key.
    pub api_key: String,
    /// Signs the recipients' tokens.
    pub minter: Minter,
    /// The recipients' addresses.
    pub phones: Phones,
    /// The text of each message.
    pub content: String,
    /// What is to be done.
    pub scenario: Scenario,
    /// Messages due from here on count for latencies, in microseconds of the clock.
    warm_us: AtomicU64,
    /// How many lanes each recipient's messages take in turn.
    lanes: Vec<u8>,
    /// Totals.
    pub totals: Totals,
    /// How recipients came back.
    pub reconnects: Reconnects,
    /// Cancellations and look-ups.
    pub cancels: Cancels,
    /// True if any message is cancelled.
    pub has_cancels: bool,
    /// From due to accepted.
    pub accept_latency: Latencies,
    /// From due to received, by those who are connected all the time.
    pub steady_latency: Latencies,
    /// From due to received, by the others.
    pub other_latency: Latencies,
    /// Every message has been settled.
    pub all_sent: CancellationToken,
    /// A sender had no answer for too long: nothing more is sent.
    pub given_up: CancellationToken,
    /// It is over.
    pub stop: CancellationToken,
    /// Bounds the handshakes under way.
    pub handshakes: Semaphore,
}

impl Run {
    /// A run of `scenario`.
    pub fn new(scenario: Scenario, access: Access, clock: RunClock, seed: u64) -> anyhow::Result<Self> {
        let lanes = (0..scenario.recipients.count)
            .map(|recipient| scenario.senders[group_of(&scenario, recipient)].priorities.len() as u8)
            .collect();
        Ok(Self {
            id: format!("load-{seed:x}"),
            clock,
            ingest: access.ingest,
            gateways: access.gateways,
            api_key: access.api_key,
            minter: access.minter,
            phones: Phones::new(seed),
            content: text_of(scenario.content_bytes),
            warm_us: AtomicU64::new(0),
            lanes,
            totals: Totals::default(),
            reconnects: Reconnects::new(scenario.recipients.count)?,
            cancels: Cancels::new()?,
            has_cancels: scenario.cancels(),
            accept_latency: Latencies::new()?,
            steady_latency: Latencies::new()?,
            other_latency: Latencies::new()?,
            all_sent: CancellationToken::new(),
            given_up: CancellationToken::new(),
            stop: CancellationToken::new(),
            handshakes: Semaphore::new(HANDSHAKES),
            scenario,
        })
    }

    /// Says when the first message is due: latencies count from the end of the warm-up.
    pub fn begin(&self, first_us: u64) {
        self.warm_us.store(first_us + self.scenario.warmup_ms * 1_000, Ordering::Relaxed);
    }

    /// Microseconds since a message was due; `None` where it was due during the warm-up.
    pub fn latency_us(&self, due_us: u64) -> Option<u64> {
        let warm = due_us >= self.warm_us.load(Ordering::Relaxed);
        warm.then(|| self.clock.now_us().saturating_sub(due_us))
    }

    /// The lane, for checking order, of a recipient's message.
    pub fn lane(&self, recipient: u32, seq: u32) -> usize {
        (seq % u32::from(self.lanes[recipient as usize])) as usize
    }

    /// Returns true if a recipient's message is cancelled after it was accepted.
    pub fn is_cancelled(&self, recipient: u32, seq: u32) -> bool {
        self.has_cancels && self.scenario.senders[group_of(&self.scenario, recipient)].cancels(recipient, seq)
    }

    /// Which gateway a recipient connects to first: so many of them to the first one, the others by turns.
    pub fn first_gateway(&self, recipient: u32) -> usize {
        let crowd = f64::from(self.scenario.recipients.count) * self.scenario.recipients.on_first_gateway;
        if f64::from(recipient) < crowd { 0 } else { recipient as usize }
    }

    /// The last byte of a recipient's source address in 127.0.0.0/8, where one address has too few ports for all.
    pub fn source(&self, recipient: u32) -> Option<u8> {
        let crowded =
            self.scenario.recipients.count > PORTS_OF_A_SOURCE && self.gateways.of_turn(0).address.ip().is_loopback();
        crowded.then_some((1 + recipient / PORTS_OF_A_SOURCE) as u8)
    }
}

/// When a recipient is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attendance {
    /// All the time.
    Steady,
    /// Comes and goes.
    Flapping,
    /// When all messages are sent.
    AtTheEnd,
}

/// Who is connected when: fractions of the scenario, spread over all senders' recipients.
pub fn attendances(scenario: &Scenario, seed: u64) -> Vec<Attendance> {
    let recipients = &scenario.recipients;
    let count = |fraction: f64| (f64::from(recipients.count) * fraction).round() as usize;
    let (steady, flapping) = (count(recipients.steady), count(recipients.flapping));
    let mut attendances = vec![Attendance::AtTheEnd; recipients.count as usize];
    attendances.iter_mut().take(steady).for_each(|attendance| *attendance = Attendance::Steady);
    attendances.iter_mut().skip(steady).take(flapping).for_each(|attendance| *attendance = Attendance::Flapping);
    attendances.shuffle(&mut StdRng::seed_from_u64(seed));
    attendances
}

/// The senders' plans: every recipient belongs to exactly one. `first_us` is when the first message is due.
pub fn plans(scenario: &Scenario, first_us: u64) -> Vec<Plan> {
    let shares: u64 = scenario.senders.iter().map(|senders| u64::from(senders.share)).sum();
    let mut plans: Vec<Plan> = Vec::new();
    let mut left = scenario.messages;
    for (group, senders) in scenario.senders.iter().enumerate() {
        let last = group + 1 == scenario.senders.len();
        let messages = if last { left } else { scenario.messages * u64::from(senders.share) / shares };
        left -= messages;
        let connections = u64::from(senders.connections);
        for connection in 0..connections {
            let messages = messages / connections + u64::from(connection < messages % connections);
            // Its part of the rate is its part of the messages.
            let interval_us = if scenario.rate == 0 || messages == 0 {
                0.0
            } else {
                let rate = scenario.rate as f64 * messages as f64 / scenario.messages as f64;
                f64::from(senders.lines()) * 1e6 / rate
            };
            let stagger_us = interval_us * connection as f64 / connections as f64;
            plans.push(Plan {
                number: plans.len() as u32,
                senders: senders.clone(),
                recipients: recipients_of(scenario, group, connection as u32).collect(),
                messages,
                first_us: first_us + stagger_us as u64,
                interval_us,
            });
        }
    }
    plans
}

/// The group of senders that a recipient belongs to: recipients are dealt out in turn, by share.
fn group_of(scenario: &Scenario, recipient: u32) -> usize {
    let shares: u32 = scenario.senders.iter().map(|senders| senders.share).sum();
    let mut place = recipient % shares;
    for (group, senders) in scenario.senders.iter().enumerate() {
        if place < senders.share {
            return group;
        }
        place -= senders.share;
    }
    scenario.senders.len() - 1
}

fn recipients_of(scenario: &Scenario, group: usize, connection: u32) -> impl Iterator<Item = u32> {
    let connections = scenario.senders[group].connections as usize;
    (0..scenario.recipients.count)
        .filter(move |recipient| group_of(scenario, *recipient) == group)
        .skip(connection as usize)
        .step_by(connections)
}

/// Plain text of so many bytes.
fn text_of(bytes: usize) -> String {
    "Your order has left the warehouse and will reach you tomorrow. ".chars().cycle().take(bytes).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TWO_GROUPS: &str = "messages = 1003\nrate = 1000\n\
        [[senders]]\nmode = \"single\"\nconnections = 3\nshare = 2\npriorities = [\"high\", \"low\"]\n\
        [[senders]]\nmode = \"bulk\"\nconnections = 2\nbatch = 10\n\
        [recipients]\ncount = 101\nsteady = 0.5\nflapping = 0.1\n";

    #[test]
    fn every_recipient_belongs_to_exactly_one_sender_and_no_message_is_forgotten() {
        let scenario = Scenario::parse(TWO_GROUPS).unwrap();
        let plans = plans(&scenario, 0);
        let mut recipients: Vec<u32> = plans.iter().flat_map(|plan| plan.recipients.clone()).collect();
        recipients.sort_unstable();
        assert_eq!(recipients, (0..101).collect::<Vec<_>>());
        assert_eq!(plans.iter().map(|plan| plan.messages).sum::<u64>(), 1003);
        assert!(plans.iter().all(|plan| !plan.recipients.is_empty()));
        let rate: f64 = plans.iter().map(|plan| f64::from(plan.senders.lines()) * 1e6 / plan.interval_us).sum();
        assert!((rate - 1000.0).abs() < 0.1, "{rate}");
    }

    #[test]
    fn attendances_are_the_fractions_that_the_scenario_names() {
        let scenario = Scenario::parse(TWO_GROUPS).unwrap();
        let attendances = attendances(&scenario, 1);
        let count = |wanted| attendances.iter().filter(|attendance| **attendance == wanted).count();
        assert_eq!((count(Attendance::Steady), count(Attendance::Flapping), count(Attendance::AtTheEnd)), (51, 10, 40));
    }

    #[test]
    fn a_text_has_the_size_that_was_asked_for() {
        assert_eq!(text_of(100).len(), 100);
        assert!(text_of(10_000).is_ascii());
    }
}
