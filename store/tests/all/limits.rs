//! Queues are bounded, a newer file is refused, an engine that was closed says so.

use std::sync::Arc;

use eshaar_model::{Clock, Cursor, Epoch};
use eshaar_store::StoreError;
use eshaar_store::conformance::start;
use eshaar_store::sqlite::{self, Options};
use rusqlite::Connection;

use super::open;

#[tokio::test]
async fn a_full_queue_refuses_after_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let options = Options { queue_rows: 2, queue_wait_ms: 20, ..Options::at(&path) };
    let store = sqlite::open(options, Clock::manual(start())).unwrap();
    // Whoever holds SQLite's one write lock holds up our writer.
    let blocker = Connection::open(&path).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let streams = Arc::clone(&store.streams);
            tokio::spawn(async move { streams.ack(Vec::new()).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert!(matches!(store.streams.ack(Vec::new()).await, Err(StoreError::Overloaded { .. })));
    blocker.execute_batch("COMMIT").unwrap();
    for write in waiting {
        write.await.unwrap().unwrap();
    }
    store.streams.ack(Vec::new()).await.unwrap();
}

#[tokio::test]
async fn a_closed_store_has_done_what_was_called_before_and_refuses_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let phone = "+966501234567".parse().unwrap();
    let store = open(folder.path()).store;
    let streams = Arc::clone(&store.streams);
    let before = tokio::spawn(async move { streams.ack(vec![(phone, Cursor::start(Epoch(3)))]).await });
    tokio::task::yield_now().await;
    store.engine.close().await.unwrap();
    before.await.unwrap().unwrap();
    assert!(matches!(store.engine.ping().await, Err(StoreError::Closed)));
    assert!(matches!(store.engine.sync().await, Err(StoreError::Closed)));
    let again = open(folder.path()).store;
    assert_eq!(again.streams.acked(phone).await.unwrap(), Some(Cursor::start(Epoch(3))));
}

#[tokio::test]
async fn a_store_answers_and_syncs() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).store;
    store.engine.ping().await.unwrap();
    assert_eq!(store.streams.newest_epoch().await.unwrap(), None);
    store.engine.sync().await.unwrap();
    store.engine.sync().await.unwrap();
    assert_eq!(store.claims.trim(start()).await.unwrap(), 0);
}

#[test]
fn a_file_of_a_newer_version_or_of_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (setting, value, said) in
        [("user_version", 99, "schema version 99"), ("application_id", 7, "another application")]
    {
        let path = folder.path().join(setting);
        let refuse = || sqlite::open(Options::at(&path), Clock::system()).err();
        drop(sqlite::open(Options::at(&path), Clock::system()).unwrap());
        let blocker = Connection::open(&path).unwrap();
        blocker.pragma_update(None, setting, value).unwrap();
        let error = refuse().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    }
}
