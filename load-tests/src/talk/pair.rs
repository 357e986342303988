//! One conversation: a phone on a WebSocket and a business over HTTP, who answer each other in turns.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::{PATIENCE, Talk, pause};
use crate::http_client::Client;
use crate::session::{Resume, Session};

/// What the phone received of the business: turns, in the order they came.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(pub(super) Vec<u32>);

/// A conversation that goes on.
pub(super) struct Pair {
    talk: Arc<Talk>,
    number: u32,
    business: Client,
    phone: Client,
    session: Option<Session>,
    /// Sessions opened; tells whether one was lost on the way.
    opened: usize,
    cursor: String,
    heard: Heard,
}

impl Pair {
    /// Conversation `number` of the run.
    pub(super) fn new(talk: Arc<Talk>, number: u32) -> anyhow::Result<Self> {
        let client = |bearer: &str| Client::new(talk.access.ingest.clone(), number as usize, bearer);
        let (business, phone) = (client(&talk.business(number).key)?, client(&talk.token(number))?);
        let (cursor, heard) = (String::new(), Heard::default());
        Ok(Self { talk, number, business, phone, session: None, opened: 0, cursor, heard })
    }

    /// Talks until all is said, and goes on listening until the run is over. Gives back what the phone heard.
    pub(super) async fn talk(mut self) -> (u32, Heard) {
        let talk = Arc::clone(&self.talk);
        let (from, to) = talk.scenario.think_ms;
        let text: String = "Is my card lost? It is not. ".chars().cycle().take(talk.scenario.content_bytes).collect();
        for turn in 0..talk.scenario.turns() {
            let thinks = Duration::from_millis(rand::rng().random_range(from..=to));
            self.listen_for(thinks).await;
            let due_us = talk.clock.now_us();
            if turn % 2 == 0 {
                self.phone_says(turn, &text, due_us).await;
            } else {
                self.business_says(turn, &text, due_us).await;
            }
            let reads = rand::rng().random_bool(talk.scenario.read);
            if reads {
                self.other_reads(turn).await;
            }
            if talk.stop.is_cancelled() {
                break;
            }
        }
        talk.finished.one();
        tokio::select! { () = talk.stop.cancelled() => {}, () = self.listen_for(Duration::MAX) => {} }
        (self.number, self.heard)
    }

    async fn phone_says(&mut self, turn: u32, text: &str, due_us: u64) {
        let talk = Arc::clone(&self.talk);
        let (key, reference) =
            (format!("{}-{}-{turn}", talk.id, self.number), talk.reference(self.number, turn, due_us));
        let mut frame = json!({ "op": "send", "ref": key, "content": text, "reference": reference });
        match talk.conversation(self.number) {
            Some(id) => frame["conversation_id"] = id.as_str().into(),
            None => frame["to"] = talk.business(self.number).name.as_str().into(),
        }
        while !talk.stop.is_cancelled() {
            let deadline = Instant::now() + PATIENCE;
            match self.answer(&frame, &key, deadline).await {
                Some(answer) if answer["op"] == "sent" => {
                    if let Some(id) = answer["conversation_id"].as_str() {
                        // It is the same each time.
                        let _ = talk.conversations[self.number as usize].set(id.to_owned());
                    }
                    talk.sent_by_phone.record(&[talk.since_us(due_us)]);
                    return talk.said.one();
                }
                Some(refused) if refused["temporary"] == false => return talk.refuse(refused.to_string()),
                _ => {
                    talk.repeated.one();
                    pause().await;
                }
            }
        }
    }

    /// Sends a frame, and waits for its answer; `None` where the session broke meanwhile, or it took too long.
    async fn answer(&mut self, frame: &Value, key: &str, deadline: Instant) -> Option<Value> {
        self.connected().await;
        if self.session.as_mut()?.send(frame.to_string()).await.is_err() {
            self.session = None;
            return None;
        }
        let opened = self.opened;
        loop {
            let answer = timeout_at(deadline, self.frame()).await.ok()?;
            if self.opened != opened {
                return None;
            }
            if answer["ref"] == key && (answer["op"] == "sent" || answer["op"] == "error") {
                return Some(answer);
            }
        }
    }

    async fn business_says(&mut self, turn: u32, text: &str, due_us: u64) {
        let talk = Arc::clone(&self.talk);
        let reference = talk.reference(self.number, turn, due_us);
        let key = format!("{}-{}-{turn}", talk.id, self.number);
        let id = talk.conversation(self.number).cloned().unwrap_or_default();
        let body = json!({ "type": "chat", "conversation_id": id, "content": text, "reference": reference });
        match talk.post(&mut self.business, "/v1/messages".to_owned(), &body, Some(&key)).await {
            Some(answer) if answer.status == StatusCode::ACCEPTED => {
                talk.sent_by_business.record(&[talk.since_us(due_us)]);
                talk.said.one();
            }
            Some(refused) => return talk.refuse(String::from_utf8_lossy(&refused.body).into_owned()),
            None => return,
        }
        // It answers what it has heard.
        let deadline = Instant::now() + Duration::from_millis(talk.scenario.checks.drain_timeout_ms);
        while !self.heard.0.contains(&turn) {
            if timeout_at(deadline, self.frame()).await.is_err() {
                return;
            }
        }
    }

    /// The side that was just spoken to has read all of it.
    async fn other_reads(&mut self, turn: u32) {
        let talk = Arc::clone(&self.talk);
        let Some(id) = talk.conversation(self.number) else { return };
        let reader = if turn.is_multiple_of(2) { &mut self.business } else { &mut self.phone };
        match talk.post(reader, format!("/v1/conversations/{id}/read"), &json!({}), None).await {
            Some(answer) if !answer.status.is_success() => {
                talk.refuse(String::from_utf8_lossy(&answer.body).into_owned());
            }
            _ => {}
        }
    }

    async fn listen_for(&mut self, time: Duration) {
        let until = Instant::now() + time.min(Duration::from_hours(24));
        while timeout_at(until, self.frame()).await.is_ok() {}
    }

    /// The next frame, of a session that is opened again where it is lost.
    async fn frame(&mut self) -> Value {
        loop {
            self.connected().await;
            let Some(session) = &mut self.session else { continue };
            match session.next().await {
                Some(Ok(text)) => match serde_json::from_str::<Value>(&text) {
                    Ok(frame) => {
                        self.take(&frame).await;
                        return frame;
                    }
                    Err(error) => self.talk.refuse(format!("a frame that is none: {error}")),
                },
                _ => self.lost().await,
            }
        }
    }

    async fn lost(&mut self) {
        self.session = None;
        pause().await;
    }

    async fn connected(&mut self) {
        while self.session.is_none() {
            let talk = &self.talk;
            let gateway = talk.access.gateways.of_turn(self.number as usize + self.opened);
            let resume = if self.cursor.is_empty() { Resume::Acknowledged } else { Resume::After(&self.cursor) };
            // The next attempt is at another one.
            self.opened += 1;
            match Session::open(gateway, None, &talk.token(self.number), resume).await {
                Ok(session) => {
                    talk.sessions.one();
                    self.session = Some(session);
                }
                Err(_) => pause().await,
            }
        }
    }

    async fn take(&mut self, frame: &Value) {
        let talk = Arc::clone(&self.talk);
        match frame["op"].as_str() {
            Some("message") => {
                // What it said itself comes without one.
                let Some(cursor) = frame["cursor"].as_str() else { return };
                cursor.clone_into(&mut self.cursor);
                match frame["reference"].as_str().and_then(|reference| talk.turn_of(reference)) {
                    Some((number, turn, due_us)) if number == self.number => {
                        self.heard.0.push(turn);
                        talk.heard_by_phone.record(&[talk.since_us(due_us)]);
                    }
                    _ => talk.refuse(format!("a phone got what was not for it: {frame}")),
                }
                let acked = match &mut self.session {
                    Some(session) => session.ack(&self.cursor).await,
                    None => Ok(()),
                };
                if acked.is_err() {
                    self.session = None;
                }
            }
            Some("gap") => talk.gaps.one(),
            Some("bye") => self.lost().await,
            _ => {}
        }
    }
}
