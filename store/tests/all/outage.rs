//! The CQL store seen from the wire: how many requests a page is, and what becomes of calls when the cluster stops
//! answering.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use eshaar_model::{Clock, Cursor, Epoch, Lane, StreamPosition};
use eshaar_store::conformance::start;
use eshaar_store::scylla::{self, Options};
use eshaar_store::{Claim, ClaimKey, StoreError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use super::cluster::{Keyspace, node};
use super::races::{open, phone, row};

/// Passes frames on to the cluster, and counts the statements among them, until it is told to hold them.
struct Proxy {
    address: String,
    wire: Arc<Wire>,
}

#[derive(Default)]
struct Wire {
    holds: AtomicBool,
    executed: AtomicUsize,
}

/// Bytes of a frame's header: version, flags, stream (2), opcode, length (4).
const HEADER: usize = 9;
/// The opcode of a prepared statement that is to be executed.
const EXECUTE: u8 = 0x0a;

impl Proxy {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let wire = Arc::new(Wire::default());
        let of_all = Arc::clone(&wire);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let cluster = TcpStream::connect(node()).await.unwrap();
                let ((from_client, to_client), (from_cluster, to_cluster)) =
                    (client.into_split(), cluster.into_split());
                tokio::spawn(pass(from_client, to_cluster, Arc::clone(&of_all)));
                tokio::spawn(pass(from_cluster, to_client, Arc::clone(&of_all)));
            }
        });
        Self { address, wire }
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, wire: Arc<Wire>) {
    let mut frame = vec![0; HEADER];
    loop {
        frame.resize(HEADER, 0);
        if from.read_exact(&mut frame).await.is_err() {
            return;
        }
        let length = u32::from_be_bytes(frame[5..HEADER].try_into().unwrap()) as usize;
        frame.resize(HEADER + length, 0);
        if from.read_exact(&mut frame[HEADER..]).await.is_err() {
            return;
        }
        // What is held is lost: nobody hears from this connection again.
        if wire.holds.load(Ordering::Acquire) {
            continue;
        }
        wire.executed.fetch_add(usize::from(frame[4] == EXECUTE), Ordering::AcqRel);
        if to.write_all(&frame).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_page_is_four_slices_of_one_partition_however_much_there_is() {
    let keyspace = Keyspace::make().await;
    let proxy = Proxy::start().await;
    let store = open(&Options { nodes: vec![proxy.address.clone()], second_read_ms: 0, ..keyspace.0.clone() }).await;
    for epoch in 1..=3 {
        let at = |offset: u64| {
            let lane = Lane::ALL[offset as usize % 4];
            row(phone(1), StreamPosition { epoch: Epoch(epoch), lane, offset }, start().plus_millis(offset as i64))
        };
        store.streams.append(0, (0..400).map(at).collect()).await.unwrap();
    }
    let mut in_epoch = Cursor::start(Epoch(3));
    in_epoch.offsets = [Some(199); 4];
    // Within an epoch; over the last one's begin; from before everything, where the first epoch must be found first.
    for (after, limit, rows, requests) in
        [(in_epoch, 100, 100, 4), (Cursor::start(Epoch(3)), 400, 400, 4), (Cursor::start(Epoch(0)), 100, 100, 8)]
    {
        let before = proxy.wire.executed.load(Ordering::Acquire);
        let page = store.streams.read(phone(1), after, limit).await.unwrap();
        let executed = proxy.wire.executed.load(Ordering::Acquire) - before;
        assert_eq!((page.rows.len(), executed), (rows, requests), "after {after:?}");
    }
    // Rows of one phone that come together are one request.
    let before = proxy.wire.executed.load(Ordering::Acquire);
    store.streams.ack(vec![(phone(1), in_epoch)]).await.unwrap();
    assert_eq!(proxy.wire.executed.load(Ordering::Acquire) - before, 0, "a batch, not statements one by one");
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_cluster_that_stops_answering_is_an_error_within_the_timeout() {
    let keyspace = Keyspace::make().await;
    let proxy = Proxy::start().await;
    let options = Options { nodes: vec![proxy.address.clone()], request_timeout_ms: 500, ..keyspace.0.clone() };
    let store = open(&options).await;
    store.engine.ping().await.unwrap();
    proxy.wire.holds.store(true, Ordering::Release);
    let position = StreamPosition { epoch: Epoch(1), lane: Lane::High, offset: 1 };
    let rows = (0..100).map(|number| row(phone(number), position, start())).collect();
    let key = ClaimKey { principal: "acme".to_owned(), key: "k".to_owned() };
    let claim = Claim { body_hash: [0; 32], minted: Bytes::new(), answer: None, claimed_at: start() };
    let started = Instant::now();
    let (ping, appended, read, claimed) = tokio::join!(
        store.engine.ping(),
        store.streams.append(0, rows),
        store.streams.read(phone(1), Cursor::start(Epoch(0)), 10),
        store.claims.claim(&key, claim),
    );
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    for error in [ping.err(), appended.err(), read.err(), claimed.err()] {
        assert!(matches!(error.unwrap(), StoreError::Engine { .. }));
    }
    let opened = Instant::now();
    assert!(scylla::open(Options { connect_timeout_ms: 500, ..options }, Clock::system()).await.is_err());
    assert!(opened.elapsed() < Duration::from_secs(5), "{:?}", opened.elapsed());
    store.engine.close().await.unwrap();
    keyspace.drop().await;
}
