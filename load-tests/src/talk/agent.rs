//! A business's agent: a session that hears all of its conversations, and says what it has got.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::{Talk, pause};
use crate::session::{Resume, Session};

/// Messages of one ack, at most.
const ACKED_AT_ONCE: usize = 200;

/// How long acks are gathered.
const ACK_DELAY: Duration = Duration::from_millis(50);

/// Listens for a business until the run is over. What it misses stands in the conversations.
pub(super) async fn attend(talk: Arc<Talk>, place: usize) {
    let mut turn = place;
    loop {
        let gateway = talk.access.gateways.of_turn(turn);
        if let Ok(session) = Session::open(gateway, None, &talk.businesses[place].key, Resume::Acknowledged).await {
            talk.sessions.one();
            listen(&talk, session).await;
        }
        turn += 1;
        pause().await;
    }
}

/// Until the session ends.
async fn listen(talk: &Talk, mut session: Session) {
    let mut got: Vec<String> = Vec::new();
    let mut due = Instant::now();
    loop {
        let is_due = got.len() >= ACKED_AT_ONCE || (!got.is_empty() && Instant::now() >= due);
        if is_due {
            let ack = json!({ "op": "ack", "ids": std::mem::take(&mut got) });
            if session.send(ack.to_string()).await.is_err() {
                return;
            }
        }
        let until = if got.is_empty() { Instant::now() + Duration::from_hours(1) } else { due };
        let Ok(frame) = timeout_at(until, session.next()).await else { continue };
        let Some(Ok(text)) = frame else { return };
        let Ok(frame) = serde_json::from_str::<Value>(&text) else { return };
        match frame["op"].as_str() {
            Some("message") if frame["from"].as_str().is_some_and(|from| from.starts_with('+')) => {
                if let Some((_, _, due_us)) = frame["reference"].as_str().and_then(|of| talk.turn_of(of)) {
                    talk.heard_by_agent.record(&[talk.since_us(due_us)]);
                }
                if got.is_empty() {
                    due = Instant::now() + ACK_DELAY;
                }
                got.extend(frame["id"].as_str().map(ToOwned::to_owned));
            }
            Some("bye") => return,
            _ => {}
        }
    }
}
