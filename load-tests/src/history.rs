//! The second opinion: what the server's history holds, read once more from its start by a fresh session.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::timeout;

use crate::accounts::Inbox;
use crate::clock::unix_seconds;
use crate::frame::Frame;
use crate::reference::Reference;
use crate::run::Run;
use crate::session::{Resume, Session};

/// Longest wait for the next frame of a replay.
const PATIENCE: Duration = Duration::from_secs(15);

/// Messages read between two acks: half the server's window.
const ACK_EVERY: usize = 128;

/// Reads the whole stream of `recipient` from its start. Its inbox holds what history holds.
pub async fn replay(run: Arc<Run>, recipient: u32) -> anyhow::Result<Inbox> {
    // Never closed, so always granted.
    let _permit = run.handshakes.acquire().await;
    let token = run.minter.mint(run.phones.number(recipient), unix_seconds());
    let opening = Session::open(run.gateways.of_turn(recipient as usize), run.source(recipient), &token, Resume::Start);
    let mut session = opening.await.with_context(|| format!("reading the history of recipient {recipient}"))?;
    let mut inbox = Inbox::new(run.has_cancels);
    let mut unacked = 0;
    loop {
        let next = timeout(PATIENCE, session.next()).await;
        let frame = next.with_context(|| format!("the history of recipient {recipient} came to a halt"))?;
        let Some(text) = frame.transpose()? else { bail!("the history of recipient {recipient} was cut short") };
        match Frame::parse(&text)? {
            Frame::Message { reference, cursor } => {
                match Reference::parse(reference) {
                    Some(found) if found.recipient == recipient => {
                        inbox.receive(found.seq, run.lane(recipient, found.seq), run.clock.now_us());
                    }
                    _ => inbox.receive_stranger(),
                }
                unacked += 1;
                if unacked == ACK_EVERY {
                    session.ack(cursor).await?;
                    unacked = 0;
                }
            }
            Frame::CaughtUp { .. } => return Ok(inbox),
            Frame::Gap { reason } => bail!("the history of recipient {recipient} has a gap: {reason}"),
            Frame::Bye { code, .. } => bail!("the server closed the replay of recipient {recipient} with {code}"),
            Frame::Error { code } => bail!("the replay of recipient {recipient} was answered with error {code}"),
            Frame::Other => {}
        }
    }
}
