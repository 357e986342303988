//! Chat: businesses and phones talk to each other, with time to think, while others read what was said. At the end all of it
//! is to stand in its conversation once, in order, and what was not read is to be counted, on both sides.

mod agent;
mod pair;
mod readers;
mod recount;
mod report;
mod scenario;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::pair::{Heard, Pair};
use self::readers::Reads;
use self::report::Report;
pub use self::scenario::Scenario;
use crate::clock::{RunClock, unix_seconds};
use crate::drive::Target;
use crate::events::Events;
use crate::http_client::{Answer, Client, Post};
use crate::measure::{Counter, Latencies};
use crate::phones::{PhoneNumber, Phones};
use crate::procfs::{Machine, ensure_descriptors};
use crate::run::Access;
use crate::spawned::Spawned;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pauses before a request goes out again.
const PAUSE_MS: (u64, u64) = (20, 300);

/// How often what is due is looked at.
const TICK: Duration = Duration::from_millis(10);

/// Requests under way at once while conversations are begun.
const BEGINNERS: u32 = 16;

/// A business, and its key.
struct Business {
    name: String,
    key: String,
}

/// Shared by all tasks of a run.
struct Talk {
    /// Different for each run: part of its references.
    id: String,
    scenario: Scenario,
    access: Access,
    businesses: Vec<Business>,
    phones: Phones,
    clock: RunClock,
    /// Conversations by number: first those that are talked in, then the quiet ones.
    conversations: Vec<OnceLock<String>>,
    said: Counter,
    /// Conversations in which all is said, and heard by the phone.
    finished: Counter,
    repeated: Counter,
    sessions: Counter,
    gaps: Counter,
    /// What was refused for good.
    refused: Mutex<Vec<String>>,
    /// From meaning to say it to being told that it is kept: phones by WebSocket, businesses by HTTP.
    sent_by_phone: Latencies,
    sent_by_business: Latencies,
    /// From meaning to say it to the other side having it.
    heard_by_phone: Latencies,
    heard_by_agent: Latencies,
    stop: CancellationToken,
}

impl Talk {
    fn business(&self, number: u32) -> &Business {
        &self.businesses[number as usize % self.businesses.len()]
    }

    fn phone(&self, number: u32) -> PhoneNumber {
        self.phones.number(number)
    }

    fn token(&self, number: u32) -> String {
        self.access.minter.mint(self.phone(number), unix_seconds())
    }

    fn conversation(&self, number: u32) -> Option<&String> {
        self.conversations[number as usize].get()
    }

    /// Says what it is, whose, and when it was meant to be said.
    fn reference(&self, number: u32, turn: u32, due_us: u64) -> String {
        format!("{}-{number}-{turn}-{due_us}", self.id)
    }

    /// The turn of a reference of a conversation, and when it was meant to be said.
    fn turn_of(&self, reference: &str) -> Option<(u32, u32, u64)> {
        let mut parts = reference.strip_prefix(&self.id)?.strip_prefix('-')?.splitn(3, '-');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }

    fn since_us(&self, due_us: u64) -> u64 {
        self.clock.now_us().saturating_sub(due_us)
    }

    /// Posts until there is an answer that will not be another one; `None` where the run is over before.
    async fn post(&self, client: &mut Client, path: String, body: &Value, key: Option<&str>) -> Option<Answer> {
        let key = key.and_then(|key| HeaderValue::try_from(key).ok());
        let body = Bytes::from(body.to_string());
        let post = Post { path: path.into(), content_type: "application/json", key, body };
        while !self.stop.is_cancelled() {
            if let Ok(answer) = client.post(post.clone(), PATIENCE).await {
                let may_pass = answer.status.is_server_error()
                    || [StatusCode::CONFLICT, StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT]
                        .contains(&answer.status);
                if !may_pass {
                    return Some(answer);
                }
            }
            self.repeated.one();
            pause().await;
        }
        None
    }

    fn refuse(&self, what: String) {
        self.refused.lock().push(what);
    }
}

async fn pause() {
    let millis = rand::rng().random_range(PAUSE_MS.0..=PAUSE_MS.1);
    sleep(Duration::from_millis(millis)).await;
}

/// Runs `scenario` against `target`.
pub async fn run(name: String, scenario: Scenario, target: &mut Target, seed: u64) -> anyhow::Result<Report> {
    ensure_descriptors(u64::from(scenario.conversations) * 3 + u64::from(scenario.reads.connections))?;
    let talk = Arc::new(begin(scenario, target, seed).await?);
    let mut agents = JoinSet::new();
    for place in 0..talk.businesses.len() {
        agents.spawn(agent::attend(Arc::clone(&talk), place));
    }
    let reads = Reads::start(&talk)?;
    let begun = Instant::now();
    let mut pairs = JoinSet::new();
    for number in 0..talk.scenario.conversations {
        pairs.spawn(Pair::new(Arc::clone(&talk), number)?.talk());
    }
    drive(&talk, target, &reads, &mut pairs).await?;
    let lasted = begun.elapsed();
    let hit_rate = reads.hit_rate(target).await?;
    let (reads_ms, failed_reads) = reads.end().await?;
    sleep(Duration::from_millis(talk.scenario.checks.settle_ms)).await;
    talk.stop.cancel();
    let mut heard = vec![Heard::default(); talk.scenario.conversations as usize];
    while let Some(ended) = pairs.join_next().await {
        let (number, of_pair) = ended.context("a conversation failed")?;
        heard[number as usize] = of_pair;
    }
    agents.shutdown().await;
    let verdict = recount::recount(&talk, &heard).await?;
    Ok(Report::new(name, lasted, &talk, verdict, (reads_ms, failed_reads), hit_rate))
}

/// Who they are, and what they have said before the run begins.
async fn begin(scenario: Scenario, target: &Target, seed: u64) -> anyhow::Result<Talk> {
    let Some(spawned) = &target.spawned else { bail!("keys of several businesses are made: --spawn is needed") };
    let mut businesses = Vec::new();
    for number in 0..scenario.businesses {
        let name = format!("talk-{number}");
        let key = spawned.key(&name, &["chat", "conversations:manage", "messages:send", "messages:read"]).await?;
        businesses.push(Business { name, key });
    }
    let count = scenario.conversations + scenario.quiet;
    let talk = Arc::new(Talk {
        id: format!("talk{seed:x}"),
        access: target.access.clone(),
        businesses,
        phones: Phones::new(seed),
        clock: RunClock::start(),
        conversations: (0..count).map(|_| OnceLock::new()).collect(),
        said: Counter::default(),
        finished: Counter::default(),
        repeated: Counter::default(),
        sessions: Counter::default(),
        gaps: Counter::default(),
        refused: Mutex::default(),
        sent_by_phone: Latencies::new()?,
        sent_by_business: Latencies::new()?,
        heard_by_phone: Latencies::new()?,
        heard_by_agent: Latencies::new()?,
        stop: CancellationToken::new(),
        scenario,
    });
    let mut beginners = JoinSet::new();
    for place in 0..BEGINNERS {
        let talk = Arc::clone(&talk);
        let quiet = (talk.scenario.conversations + place..count).step_by(BEGINNERS as usize);
        beginners.spawn(async move {
            for number in quiet {
                begin_quiet(&talk, number).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(begun) = beginners.join_next().await {
        begun.context("a beginner failed")??;
    }
    Arc::into_inner(talk).context("somebody still begins a conversation")
}

/// A conversation in which the business has said something, and nothing more is said.
async fn begin_quiet(talk: &Talk, number: u32) -> anyhow::Result<()> {
    let mut client = Client::new(talk.access.ingest.clone(), number as usize, &talk.business(number).key)?;
    let to = talk.phone(number).to_string();
    let begun = talk.post(&mut client, "/v1/conversations".to_owned(), &json!({ "with": to }), None).await;
    let begun = begun.context("it was not begun")?;
    let begun: Value = serde_json::from_slice(&begun.body)?;
    let id = begun["id"].as_str().with_context(|| format!("a conversation was not begun: {begun}"))?;
    let body = json!({ "type": "chat", "conversation_id": id, "content": "Good morning" });
    let said = talk.post(&mut client, "/v1/messages".to_owned(), &body, Some(&format!("{}-{number}", talk.id))).await;
    ensure!(said.is_some_and(|said| said.status == StatusCode::ACCEPTED), "nothing was said in {id}");
    // Nobody else begins this one.
    let _ = talk.conversations[number as usize].set(id.to_owned());
    Ok(())
}

/// Waits until all is said and heard, and lets happen what the scenario says meanwhile.
async fn drive(
    talk: &Arc<Talk>,
    target: &mut Target,
    reads: &Reads,
    pairs: &mut JoinSet<(u32, Heard)>,
) -> anyhow::Result<()> {
    let chaos = &talk.scenario.chaos;
    let (mut events, mut kills) = (Events::new(&chaos.events), 0);
    loop {
        // All of them listen until the run is over.
        if let Some(ended) = pairs.try_join_next() {
            ended.context("a conversation failed")?;
        }
        let fraction = talk.said.get() as f64 / talk.scenario.messages as f64;
        match &mut target.spawned {
            Some(Spawned::Cluster(cluster)) => events.begin_due(fraction, cluster)?,
            // Spread over the run; the last one comes right before all is said.
            Some(Spawned::Server(server))
                if kills < chaos.kills && fraction >= f64::from(kills + 1) / f64::from(chaos.kills) - 0.01 =>
            {
                server.kill_and_restart(Duration::from_millis(chaos.down_ms)).await?;
                kills += 1;
            }
            _ => {}
        }
        reads.look(target).await?;
        let all_said = talk.finished.get() >= u64::from(talk.scenario.conversations);
        if all_said && events.over() && kills >= chaos.kills {
            return Ok(());
        }
        sleep(TICK).await;
    }
}
