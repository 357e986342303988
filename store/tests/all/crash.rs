//! kill -9 at any time: what had returned is there.
//!
//! The test starts itself again as a child that writes and says, a line a time, what has returned; kills it in the midst;
//! and looks.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use eshaar_model::{Cursor, Epoch, Lane, MessageId, MessageType, Phone, Status, StreamPosition};
use eshaar_store::conformance::start;
use eshaar_store::{Claim, ClaimKey, Claimed, MessageRow, Step, Store, StreamRow};

use super::open;

/// Set in the child: the folder of its store.
const FOLDER: &str = "ESHAAR_STORE_CRASH_FOLDER";

/// Rows of a batch.
const BATCH: u64 = 20;

fn phone(offset: u64) -> Phone {
    Phone::from_digits(966_500_000_000 + offset % 7).unwrap()
}

fn stream_row(offset: u64, id: MessageId) -> StreamRow {
    let position = StreamPosition { epoch: Epoch(1), lane: Lane::Normal, offset };
    StreamRow { phone: phone(offset), position, id, at: start(), expires_at: None, value: Bytes::from(vec![7; 300]) }
}

fn message_row(row: &StreamRow) -> MessageRow {
    MessageRow {
        id: row.id,
        message_type: MessageType::OneWay,
        conversation: None,
        sender: "acme".parse().unwrap(),
        recipient: row.phone.into(),
        created_at: start(),
        expires_at: None,
        accepted: (0, Some(row.position.offset)),
        may_repeat: false,
        value: row.value.clone(),
    }
}

fn claim_of(batch: u64) -> (ClaimKey, Claim) {
    let key = ClaimKey { principal: "acme".to_owned(), key: batch.to_string() };
    let minted = Bytes::from(batch.to_string());
    (key, Claim { body_hash: [1; 32], minted, answer: None, claimed_at: start() })
}

/// The child: never ends by itself, but for a bound.
#[test]
fn crash_child() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = open(&folder).store;
        let head = store.streams.head(Epoch(1), Lane::Normal, 0).await.unwrap();
        let first = head.map_or(0, |head| head / BATCH + 1);
        for batch in first..first + 100_000 {
            write_batch(&store, batch).await;
        }
    });
}

async fn write_batch(store: &Store, batch: u64) {
    let (key, claim) = claim_of(batch);
    // One that was cut off in the midst was claimed, and is done again: any of its steps may be repeated.
    let claimed = store.claims.claim(&key, claim).await.unwrap();
    let offsets = batch * BATCH..(batch + 1) * BATCH;
    let rows: Vec<_> = offsets.map(|offset| stream_row(offset, MessageId::new(start()))).collect();
    let messages = rows.iter().map(message_row).collect();
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    let steps = ids.iter().map(|id| Step { id: *id, status: Status::Delivered, at: start(), reason: None }).collect();
    let (appended, put) = tokio::join!(store.streams.append(0, rows.clone()), store.messages.put(messages));
    appended.and(put).unwrap();
    store.messages.reach(steps).await.unwrap();
    let mut cursor = Cursor::start(Epoch(1));
    cursor.advance(rows[0].position);
    store.streams.ack(vec![(rows[0].phone, cursor)]).await.unwrap();
    // The offsets go up by the batch: what stands was written by whoever came first, so ids are told only then.
    let mut said = format!("done {batch} {}", u8::from(claimed == Claimed::First));
    for id in ids {
        said.push(' ');
        said.push_str(&id.to_string());
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{said}").unwrap();
    out.flush().unwrap();
}

/// Runs a child until it has said `lines` batches, then kills it; what it said of each: the batch and its ids.
fn run_and_kill(folder: &Path, lines: usize) -> Vec<(u64, Vec<MessageId>)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::crash_child", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut done = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some(said) = line.strip_prefix("done ") {
            let mut words = said.split(' ');
            let batch = words.next().unwrap().parse().unwrap();
            assert!(words.next().is_some());
            done.push((batch, words.map(|id| id.parse().unwrap()).collect()));
        }
        if done.len() == lines {
            // SIGKILL, in the midst of the next batch.
            child.kill().unwrap();
            break;
        }
    }
    child.wait().unwrap();
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_had_returned_is_there_after_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let mut done = Vec::new();
    for lines in [1, 40, 7, 90] {
        let said = run_and_kill(folder.path(), lines);
        assert_eq!(said.len(), lines);
        done.extend(said);
        verify(folder.path(), &done).await;
    }
}

async fn verify(folder: &Path, done: &[(u64, Vec<MessageId>)]) {
    let store = open(folder).store;
    for (batch, ids) in done {
        let (key, claim) = claim_of(*batch);
        assert_eq!(store.claims.claim(&key, claim.clone()).await.unwrap(), Claimed::Repeat(claim));
        for id in ids {
            let message = store.messages.get(*id).await.unwrap().unwrap();
            assert_eq!(message.status(start()), Status::Delivered.into());
        }
    }
    let last = (done.last().unwrap().0 + 1) * BATCH - 1;
    assert!(store.streams.head(Epoch(1), Lane::Normal, 0).await.unwrap() >= Some(last));
    let mut found = Vec::new();
    for number in 0..7 {
        let mut cursor = Cursor::start(Epoch(0));
        loop {
            let page = store.streams.read(phone(number), cursor, 1_000).await.unwrap();
            for row in &page.rows {
                cursor.advance(row.position);
                found.push(row.position.offset);
            }
            if !page.more {
                break;
            }
        }
    }
    found.sort_unstable();
    // Nothing is missing and nothing is there twice; a last batch, cut off, is there wholly or not at all.
    assert!(found.len() as u64 > last && (found.len() as u64).is_multiple_of(BATCH));
    assert!(found.iter().copied().eq(0..found.len() as u64));
    store.engine.close().await.unwrap();
}
