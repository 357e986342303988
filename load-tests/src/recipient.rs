//! A recipient: a mobile app that connects, receives, acknowledges, loses its connection and resumes by cursor.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use rand::Rng as _;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::accounts::Inbox;
use crate::clock::unix_seconds;
use crate::frame::Frame;
use crate::reconnects::{Backoff, refusal};
use crate::reference::Reference;
use crate::run::{Attendance, Run};
use crate::session::{Resume, Session, SessionError};

/// Messages after which an ack is due however long acks are gathered: half the server's window.
const MOST_UNACKED: usize = 128;

/// Pauses before connecting again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// What a session gives next.
type Received = Option<Result<Utf8Bytes, SessionError>>;

/// A recipient at work.
pub struct Recipient {
    run: Arc<Run>,
    index: u32,
    attendance: Attendance,
    inbox: Inbox,
    cursor: String,
    ready: bool,
    burst: Burst,
    backoff: Backoff,
    /// When its session ended, until the next one is at the head.
    broken_at: Option<Instant>,
    /// How long the server told it to stay away.
    told: Option<Duration>,
    /// Which gateway is next: another one when a session broke or did not open, as behind a load balancer.
    turn: usize,
}

/// What came in one burst, settled with one write to each total.
#[derive(Default)]
struct Burst {
    messages: usize,
    new: u64,
    latencies_us: Vec<u64>,
}

/// Why a session is over.
enum End {
    /// The run is over.
    Stopped,
    /// The recipient chose to leave.
    Left,
    /// It broke, or the server closed it.
    Broken,
}

impl Recipient {
    /// Recipient `index` of the run.
    pub fn new(run: Arc<Run>, index: u32, attendance: Attendance) -> Self {
        let (turn, inbox) = (run.first_gateway(index), Inbox::new(run.has_cancels));
        Self {
            run,
            index,
            attendance,
            inbox,
            cursor: String::new(),
            ready: false,
            burst: Burst::default(),
            backoff: Backoff::default(),
            broken_at: None,
            told: None,
            turn,
        }
    }

    /// Receives until the run is over. Gives back what arrived.
    pub async fn attend(mut self) -> (u32, Inbox) {
        let run = Arc::clone(&self.run);
        if self.attendance == Attendance::AtTheEnd {
            run.all_sent.cancelled().await;
        }
        let mut pause = FIRST_PAUSE;
        while !run.stop.is_cancelled() {
            let away = if let Ok(session) = self.connect().await {
                pause = FIRST_PAUSE;
                match self.receive(session).await {
                    End::Stopped => break,
                    End::Left => between(run.scenario.recipients.away_ms),
                    End::Broken => {
                        self.turn += 1;
                        if self.broken_at.is_none() {
                            self.broken_at = Some(Instant::now());
                            run.reconnects.left();
                        }
                        let told = self.told.take();
                        if run.scenario.recipients.as_apps { self.backoff.next(told) } else { pause }
                    }
                }
            } else {
                self.turn += 1;
                run.totals.sessions_failed.one();
                pause = (pause * 2).min(LONGEST_PAUSE);
                let told = self.told.take();
                if run.scenario.recipients.as_apps {
                    self.backoff.next(told)
                } else {
                    pause.mul_f64(rand::rng().random_range(0.5..1.0))
                }
            };
            tokio::select! { () = sleep(away) => {}, () = run.stop.cancelled() => {} }
        }
        (self.index, self.inbox)
    }

    async fn connect(&mut self) -> Result<Session, SessionError> {
        let run = &self.run;
        // Never closed, so always granted.
        let _permit = run.handshakes.acquire().await;
        let token = run.minter.mint(run.phones.number(self.index), unix_seconds());
        let resume = if self.cursor.is_empty() { Resume::Acknowledged } else { Resume::After(&self.cursor) };
        let opening = Session::open(run.gateways.of_turn(self.turn), run.source(self.index), &token, resume).await;
        let refused = opening.as_ref().err().and_then(refusal);
        if self.broken_at.is_some() && (opening.is_ok() || refused.is_some()) {
            run.reconnects.connected(self.index);
        }
        if let Some((status, after)) = refused {
            run.reconnects.ended(format!("HTTP {status}"));
            self.told = after;
        }
        let session = opening?;
        run.totals.sessions.one();
        Ok(session)
    }

    async fn receive(&mut self, mut session: Session) -> End {
        let run = Arc::clone(&self.run);
        let mut stopped = pin!(run.stop.cancelled());
        let mut leave = pin!(sleep(between(run.scenario.recipients.stay_ms)));
        let ack_delay = Duration::from_millis(run.scenario.recipients.ack_delay_ms);
        let (mut unacked, mut ack_due) = (0, Instant::now());
        loop {
            let frame = tokio::select! {
                biased;
                frame = session.next() => frame,
                () = sleep_until(ack_due), if unacked > 0 => {
                    unacked = 0;
                    if self.ack(&mut session).await.is_err() { return End::Broken }
                    continue;
                }
                () = &mut leave, if self.attendance == Attendance::Flapping => {
                    leave_politely_or_not(session).await;
                    return End::Left;
                }
                () = &mut stopped => return End::Stopped,
            };
            let (messages, alive) = self.take_burst(frame, &mut session);
            if !alive {
                return End::Broken;
            }
            if unacked == 0 {
                ack_due = Instant::now() + ack_delay;
            }
            unacked += messages;
            if unacked > 0 && (ack_delay.is_zero() || unacked >= MOST_UNACKED) {
                unacked = 0;
                if self.ack(&mut session).await.is_err() {
                    return End::Broken;
                }
            }
        }
    }

    /// Takes a frame and those that are at hand behind it. How many were messages, and whether the session goes on.
    fn take_burst(&mut self, first: Received, session: &mut Session) -> (usize, bool) {
        let mut frame = first;
        let mut alive = false;
        // Nothing is taken from the session that this burst has no more room for.
        for left in (0..MOST_UNACKED).rev() {
            let Some(Ok(text)) = frame else {
                alive = false;
                break;
            };
            alive = self.take(&text);
            if left == 0 || !alive {
                break;
            }
            match session.next().now_or_never() {
                Some(next) => frame = next,
                None => break,
            }
        }
        (self.settle_burst(), alive)
    }

    /// Takes one frame. `false` where the session ends with it.
    fn take(&mut self, text: &str) -> bool {
        let totals = &self.run.totals;
        match Frame::parse(text) {
            Ok(Frame::Message { reference, cursor }) => {
                keep(&mut self.cursor, cursor);
                self.take_message(reference);
            }
            Ok(Frame::CaughtUp { cursor }) => {
                self.backoff.reset();
                // What this burst brought before it waited while the session was broken.
                self.settle_latencies();
                if let Some(broken_at) = self.broken_at.take() {
                    self.run.reconnects.caught_up(broken_at.elapsed());
                }
                if let Some(cursor) = cursor {
                    keep(&mut self.cursor, cursor);
                }
                if !self.ready {
                    self.ready = true;
                    self.run.totals.ready.one();
                }
            }
            Ok(Frame::Gap { .. }) => totals.gaps.one(),
            Ok(Frame::Bye { code, reconnect_after_ms }) => {
                self.run.reconnects.ended(code);
                self.told = reconnect_after_ms.map(Duration::from_millis);
                if code >= 4500 {
                    totals.protocol_errors.one();
                }
                return false;
            }
            Ok(Frame::Error { .. }) | Err(_) => totals.protocol_errors.one(),
            Ok(Frame::Other) => {}
        }
        true
    }

    fn take_message(&mut self, reference: &str) {
        let run = &self.run;
        self.burst.messages += 1;
        match Reference::parse(reference) {
            Some(reference) if reference.recipient == self.index => {
                if self.inbox.receive(reference.seq, run.lane(self.index, reference.seq), run.clock.now_us()) {
                    if run.is_cancelled(self.index, reference.seq) {
                        run.cancels.received(self.index, reference.seq);
                    }
                    self.burst.new += 1;
                    self.burst.latencies_us.extend(run.latency_us(reference.intended_us));
                }
            }
            _ => self.inbox.receive_stranger(),
        }
    }

    fn settle_burst(&mut self) -> usize {
        self.settle_latencies();
        std::mem::take(&mut self.burst.messages)
    }

    fn settle_latencies(&mut self) {
        let run = &self.run;
        let Burst { new, latencies_us, .. } = &mut self.burst;
        run.totals.received.add(*new);
        // What waited while its session was broken says nothing of those who stayed.
        let latencies = if self.attendance == Attendance::Steady && self.broken_at.is_none() {
            run.totals.received_steady.add(*new);
            &run.steady_latency
        } else {
            &run.other_latency
        };
        latencies.record(latencies_us);
        latencies_us.clear();
        *new = 0;
    }

    async fn ack(&mut self, session: &mut Session) -> Result<(), SessionError> {
        self.run.totals.acks.one();
        session.ack(&self.cursor).await
    }
}

/// Half of those who leave say so; the other half are gone, as in a tunnel.
async fn leave_politely_or_not(session: Session) {
    if rand::rng().random() {
        session.close().await;
    }
}

fn between((from_ms, to_ms): (u64, u64)) -> Duration {
    Duration::from_millis(rand::rng().random_range(from_ms..=to_ms))
}

fn keep(cursor: &mut String, newer: &str) {
    cursor.clear();
    cursor.push_str(newer);
}
