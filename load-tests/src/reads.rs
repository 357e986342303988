//! Phones that report messages as read: one its whole stream, in good faith, and one messages that nobody knows.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::FutureExt as _;
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use crate::clock::unix_seconds;
use crate::run::Run;
use crate::session::{Resume, Session};

/// Messages of a frame: the most that the protocol allows.
const IDS: usize = 256;

/// Messages after which the phone acknowledges: half the server's window.
const ACK_EVERY: u64 = 128;

/// The fields of a frame that a reader needs.
#[derive(Deserialize)]
struct Frame {
    op: String,
    id: Option<String>,
    cursor: Option<String>,
}

/// Takes the first `messages` of a recipient's stream from its start, and reports each as read, [`IDS`] a frame.
pub async fn everything(run: &Run, recipient: u32, messages: u64) -> anyhow::Result<()> {
    let mut session = open(run, recipient, Resume::Start).await?;
    let (mut received, mut ids) = (0, Vec::with_capacity(IDS));
    while received < messages {
        let text = session.next().await.context("the session of the reader ended")??;
        let frame: Frame = serde_json::from_str(&text)?;
        let (Some(id), Some(cursor), "message") = (frame.id, frame.cursor, &frame.op[..]) else { continue };
        received += 1;
        ids.push(id);
        if ids.len() == IDS || received == messages {
            session.send(read(&ids)).await?;
            ids.clear();
        }
        if received % ACK_EVERY == 0 || received == messages {
            session.ack(&cursor).await?;
        }
    }
    session.close().await;
    Ok(())
}

/// Reports messages as read that nobody knows, so many frames a second, until the run is over. The frames that were sent.
pub async fn unknown(run: Arc<Run>, recipient: u32, per_second: u64) -> anyhow::Result<u64> {
    let mut session = open(&run, recipient, Resume::Acknowledged).await?;
    let mut due = interval(Duration::from_secs(1) / u32::try_from(per_second.max(1))?);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut frames = 0;
    loop {
        tokio::select! {
            () = run.stop.cancelled() => return Ok(frames),
            _ = due.tick() => {}
        }
        let ids: Vec<_> = (0..IDS).map(|_| Uuid::now_v7().to_string()).collect();
        tokio::select! {
            sent = session.send(read(&ids)) => sent?,
            // The server reads nothing more from this session.
            () = run.stop.cancelled() => return Ok(frames),
        }
        frames += 1;
        while let Some(frame) = session.next().now_or_never() {
            match frame {
                Some(frame) => drop(frame?),
                None => bail!("the server closed the session that reports unknown messages after {frames} frames"),
            }
        }
    }
}

async fn open(run: &Run, recipient: u32, resume: Resume<'_>) -> anyhow::Result<Session> {
    let token = run.minter.mint(run.phones.number(recipient), unix_seconds());
    let endpoint = run.gateways.of_turn(recipient as usize);
    Ok(Session::open(endpoint, run.source(recipient), &token, resume).await?)
}

fn read(ids: &[String]) -> String {
    serde_json::json!({"op": "read", "ids": ids}).to_string()
}
