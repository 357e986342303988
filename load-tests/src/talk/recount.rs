//! The accounts at the end: what stands in each conversation, what the phone heard, and what is counted as unread.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::pair::Heard;
use super::{PATIENCE, Talk};
use crate::http_client::Client;

/// Most violations that are kept as examples.
const EXAMPLES: usize = 10;

/// Conversations that are looked at side by side.
const AT_ONCE: usize = 16;

/// How often a conversation is looked at until it is as it should be.
const AGAIN: Duration = Duration::from_millis(200);

/// What is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    /// Messages that stand in conversations, and that phones heard.
    pub(super) stand: u64,
    pub(super) heard: u64,
    /// Said, and not there.
    pub(super) lost: u64,
    /// There more than once.
    pub(super) duplicated: u64,
    /// Behind a later one.
    pub(super) disordered: u64,
    /// Sides whose unread count is not that of the history.
    pub(super) miscounted: u64,
    pub(super) examples: Vec<String>,
}

impl Verdict {
    /// Whether all is as it should be.
    pub(super) const fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.disordered + self.miscounted == 0
    }

    fn wrong(&mut self, what: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(what());
        }
    }

    /// Turns that were to come in this order, once each.
    fn add(&mut self, of: &str, expected: impl Iterator<Item = u32>, came: &[u32]) {
        let expected: Vec<u32> = expected.collect();
        let before = (self.lost, self.duplicated, self.disordered);
        let mut seen = ahash::HashSet::default();
        let mut highest = None;
        for turn in came {
            if !seen.insert(*turn) {
                self.duplicated += 1;
            } else if highest > Some(*turn) {
                self.disordered += 1;
            }
            highest = highest.max(Some(*turn));
        }
        self.lost += expected.iter().filter(|turn| !seen.contains(turn)).count() as u64;
        if before != (self.lost, self.duplicated, self.disordered) {
            self.wrong(|| format!("{of}: expected {} turns, got {came:?}", expected.len()));
        }
    }
}

/// Looks at every conversation, from both sides.
pub(super) async fn recount(talk: &Arc<Talk>, heard: &[Heard]) -> anyhow::Result<Verdict> {
    let mut lookers = JoinSet::new();
    for first in 0..AT_ONCE {
        let talk = Arc::clone(talk);
        let numbers = (first as u32..talk.scenario.conversations).step_by(AT_ONCE);
        lookers.spawn(async move {
            let mut all = Vec::new();
            for number in numbers {
                all.push((number, look(&talk, number).await.with_context(|| format!("conversation {number}"))?));
            }
            anyhow::Ok(all)
        });
    }
    let mut verdict = Verdict::default();
    let turns = talk.scenario.turns();
    while let Some(all) = lookers.join_next().await {
        for (number, [business, phone]) in all.context("a recount failed")?? {
            for (side, found) in [("business", &business), ("phone", &phone)] {
                verdict.add(&format!("history of {number} as the {side} sees it"), 0..turns, &found.turns);
                if found.counted != found.recounted {
                    verdict.miscounted += 1;
                    let (counted, recounted) = (found.counted, found.recounted);
                    verdict
                        .wrong(|| format!("{number}: unread of the {side} is {counted}, and {recounted} by history"));
                }
            }
            verdict.stand += phone.turns.len() as u64;
            let heard = &heard[number as usize].0;
            verdict.heard += heard.len() as u64;
            verdict.add(&format!("what the phone of {number} heard"), (1..turns).step_by(2), heard);
        }
    }
    Ok(verdict)
}

/// A conversation as one side sees it.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    turns: Vec<u32>,
    counted: u64,
    recounted: u64,
}

/// Both sides, once all is there and the counts agree, or it has taken too long.
async fn look(talk: &Talk, number: u32) -> anyhow::Result<[Found; 2]> {
    let deadline = Instant::now() + Duration::from_millis(talk.scenario.checks.drain_timeout_ms);
    let id = talk.conversation(number).context("it was never begun")?;
    let client = |bearer: &str| Client::new(talk.access.ingest.clone(), number as usize, bearer);
    let mut sides = [client(&talk.business(number).key)?, client(&talk.token(number))?];
    let names = [talk.business(number).name.clone(), talk.phone(number).to_string()];
    loop {
        let [business, phone] = &mut sides;
        let found = [side(talk, business, id, &names[0]).await?, side(talk, phone, id, &names[1]).await?];
        let is_whole =
            |found: &Found| found.turns.len() >= talk.scenario.turns() as usize && found.counted == found.recounted;
        if found.iter().all(is_whole) || Instant::now() > deadline {
            return Ok(found);
        }
        sleep(AGAIN).await;
    }
}

async fn side(talk: &Talk, client: &mut Client, id: &str, name: &str) -> anyhow::Result<Found> {
    let conversation = get(client, &format!("/v1/conversations/{id}")).await?;
    let counted = conversation["unread"].as_u64().context("a conversation without `unread`")?;
    // Positions are opaque, but those of a page are in order.
    let mut unread = conversation["read_up_to"].is_null();
    let (mut turns, mut recounted, mut after) = (Vec::new(), 0, "start".to_owned());
    loop {
        let page = get(client, &format!("/v1/conversations/{id}/messages?limit=100&after={after}")).await?;
        for message in page["messages"].as_array().context("a page without `messages`")? {
            let of = message["reference"].as_str().and_then(|reference| talk.turn_of(reference));
            turns.extend(of.map(|(_, turn, _)| turn));
            let waits = message["status"] == "sent" || message["status"] == "delivered";
            recounted += u64::from(unread && waits && message["from"] != name);
            unread |= message["position"] == conversation["read_up_to"];
        }
        if page["more"] != true {
            return Ok(Found { turns, counted, recounted });
        }
        page["newest"].as_str().context("a page without `newest`")?.clone_into(&mut after);
    }
}

async fn get(client: &mut Client, path: &str) -> anyhow::Result<Value> {
    for _ in 0..5 {
        if let Ok(answer) = client.get(path, PATIENCE).await
            && !answer.status.is_server_error()
        {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            ensure!(answer.status.is_success(), "{path} was answered {}: {text}", answer.status);
            return serde_json::from_str(&text).with_context(|| format!("the answer to {path}"));
        }
        sleep(AGAIN).await;
    }
    anyhow::bail!("{path} was not answered")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_doubled_or_out_of_order_is_found() {
        let judge = |came: &[u32]| {
            let mut verdict = Verdict::default();
            verdict.add("it", 0..4, came);
            (verdict.lost, verdict.duplicated, verdict.disordered, verdict.examples.len())
        };
        assert_eq!(judge(&[0, 1, 2, 3]), (0, 0, 0, 0));
        assert_eq!(judge(&[0, 2, 3]), (1, 0, 0, 1));
        assert_eq!(judge(&[0, 1, 1, 2, 3]), (0, 1, 0, 1));
        assert_eq!(judge(&[0, 2, 1, 3]), (0, 0, 1, 1));
    }
}
