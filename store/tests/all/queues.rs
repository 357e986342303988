//! Queues of the CQL store: however many rows went through them, a read passes over few tombstones; and what stood in the
//! tables before them is taken over.

use std::time::Duration;

use bytes::Bytes;
use eshaar_model::{BroadcastId, RecipientsId, Timestamp};
use eshaar_store::conformance::start;
use eshaar_store::{BroadcastRow, Expiry, Holder, Lease, OpenBroadcast, Store};
use futures_util::StreamExt as _;
use scylla::client::session::Session;
use scylla::statement::Statement;

use super::cluster::Keyspace;

/// Tombstones of a read that Cassandra warns of (`tombstone_warn_threshold`); at 100 times as many the read fails.
const WARNED_OF: u64 = 1_000;

/// What 100,000 a day are in half an hour.
const HALF_AN_HOUR: usize = 2_083;

/// Reads of a trace before it counts as incomplete: 10 s.
const TRACE_READS: u32 = 100;
const TRACE_PAUSE: Duration = Duration::from_millis(100);

/// Calls at once.
const TOGETHER: usize = 40;

async fn all<F: Future>(calls: impl Iterator<Item = F>) {
    futures_util::stream::iter(calls).for_each_concurrent(TOGETHER, async |call| drop(call.await)).await;
}

/// The most tombstones that a read of one partition of a queue passes over, as the cluster traces it.
async fn tombstones(session: &Session, table: &str, queue: &str) -> u64 {
    let buckets = format!("SELECT bucket, shard FROM queue_bucket WHERE queue = '{queue}'");
    let rows = session.query_unpaged(buckets, ()).await.unwrap().into_rows_result().unwrap();
    let mut most = 0;
    for row in rows.rows::<(i32, i8)>().unwrap() {
        let (bucket, shard) = row.unwrap();
        let read = format!("SELECT * FROM {table} WHERE bucket = {bucket} AND shard = {shard} LIMIT 250");
        most = most.max(traced(session, &read).await);
    }
    most.max(traced(session, &format!("SELECT * FROM queue_bucket WHERE queue = '{queue}' LIMIT 2000")).await)
}

/// The tombstones that one read passes over. The nodes write the events of a trace behind the answer, so the trace is read until
/// it has that event.
async fn traced(session: &Session, read: &str) -> u64 {
    let mut statement = Statement::new(read);
    statement.set_tracing(true);
    let result = session.query_unpaged(statement, ()).await.unwrap();
    let id = result.tracing_id().unwrap();
    // "Read 0 live rows and 520 tombstone cells"
    let count = |activity: String| activity.strip_prefix("Read ")?.split(' ').nth(4)?.parse::<u64>().ok();
    for _ in 0..TRACE_READS {
        if let Ok(trace) = session.get_tracing_info(&id).await
            && let Some(most) = trace.events.into_iter().filter_map(|event| count(event.activity?)).max()
        {
            return most;
        }
        tokio::time::sleep(TRACE_PAUSE).await;
    }
    panic!("the trace of `{read}` does not say how many tombstones were read");
}

fn broadcast(at: Timestamp) -> BroadcastRow {
    let business = "acme".parse().unwrap();
    BroadcastRow { id: BroadcastId::new(at), business, created_at: at, value: Bytes::from_static(b"b") }
}

async fn open_and_close(store: &Store, row: BroadcastRow) {
    let open = OpenBroadcast { business: row.business.clone(), id: row.id };
    store.broadcasts.open(row, RecipientsId::new(start())).await.unwrap();
    store.broadcasts.close(&open).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_day_of_100_000_small_broadcasts_leaves_no_read_with_many_tombstones() {
    let keyspace = Keyspace::make().await;
    let subject = keyspace.subject(1).await;
    let (store, session) = (&subject.store, keyspace.session().await);
    let waiting = broadcast(start());
    store.broadcasts.open(waiting.clone(), RecipientsId::new(start())).await.unwrap();
    for half_hour in 0..2 {
        let at = start().plus_millis(half_hour * 1_800_000);
        all((0..HALF_AN_HOUR).map(|_| open_and_close(store, broadcast(at)))).await;
        let found = store.broadcasts.opened(64).await.unwrap();
        assert_eq!(found.iter().map(|open| open.id).collect::<Vec<_>>(), [waiting.id]);
        let most = tombstones(&session, "open_broadcast", "broadcasts").await;
        assert!((100..WARNED_OF).contains(&most), "{most} tombstones in a read");
        subject.clock.advance_millis(1_800_000);
    }
    // What is empty and long past is read no more.
    subject.clock.advance_millis(2 * 3_600_000);
    store.broadcasts.opened(64).await.unwrap();
    let left = session.query_unpaged("SELECT bucket FROM queue_bucket WHERE queue = 'broadcasts'", ()).await.unwrap();
    assert_eq!(left.into_rows_result().unwrap().rows_num(), 1, "that of the one that waits");
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn lists_that_went_leave_no_read_with_many_tombstones() {
    let keyspace = Keyspace::make().await;
    let subject = keyspace.subject(1).await;
    let (store, session) = (&subject.store, keyspace.session().await);
    let expiry = |number: usize| {
        let due = start().plus_millis(number as i64 * 1_800_000 / HALF_AN_HOUR as i64);
        Expiry { due, recipients: RecipientsId::new(start()), audience: None }
    };
    all((0..2 * HALF_AN_HOUR).map(|number| store.audiences.expire(expiry(number)))).await;
    subject.clock.advance_millis(3_600_000);
    let mut gone = 0;
    loop {
        let due = store.audiences.due(subject.clock.now(), 1_000).await.unwrap();
        if due.is_empty() {
            break;
        }
        gone += due.len();
        all(due.iter().map(|expiry| store.audiences.forget(expiry))).await;
        let most = tombstones(&session, "list_due", "lists").await;
        assert!(most < WARNED_OF, "{most} tombstones in a read");
    }
    assert_eq!(gone, 2 * HALF_AN_HOUR);
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn what_stood_in_the_tables_before_is_taken_over_once() {
    let keyspace = Keyspace::make().await;
    let session = keyspace.session().await;
    let row = broadcast(start());
    {
        let store = keyspace.subject(1).await.store;
        store.broadcasts.put(row.clone()).await.unwrap();
    }
    let (list, holder) = (RecipientsId::new(start()), uuid::Uuid::nil());
    let (id, list_id, due) = (row.id, list, start().as_millis());
    for statement in [
        "INSERT INTO api_key (id, business) VALUES ('k', 'old-bank')".to_owned(),
        format!(
            "INSERT INTO task (kind, id, made_at, progress, finished, holder) VALUES ('broadcast', '{id}', {due}, 0x07,
             false, {holder})"
        ),
        format!("INSERT INTO broadcast_open (slot, id) VALUES (0, {id})"),
        format!("INSERT INTO recipients_due (slot, due, list) VALUES (0, {due}, {list_id})"),
    ] {
        session.query_unpaged(statement, ()).await.unwrap();
    }
    let back = "DELETE FROM schema_version WHERE name = 'eshaar' AND version = ? IF EXISTS";
    let version = eshaar_store::scylla::check(&keyspace.0).await.unwrap().version;
    for _ in 0..2 {
        for version in 9..=version {
            session.query_unpaged(back, (version,)).await.unwrap();
        }
        eshaar_store::scylla::apply(&keyspace.0).await.unwrap();
    }

    let subject = keyspace.subject(1).await;
    let store = &subject.store;
    assert!(store.keys.has_business(&"old-bank".parse().unwrap()).await.unwrap());
    let open = store.broadcasts.opened(10).await.unwrap();
    assert_eq!(open, [OpenBroadcast { business: row.business.clone(), id }]);
    let (now, holder) = (subject.clock.now(), Holder::new());
    let lease = Lease { holder, now, until: now.plus_millis(1_000) };
    let mut task = store.tasks.take("broadcast", &id.to_string(), lease).await.unwrap().unwrap();
    assert_eq!(&task.progress[..], [7]);
    assert_eq!(store.tasks.list("broadcast", 10).await.unwrap(), [task.clone()]);
    assert_eq!(store.audiences.due(subject.clock.now(), 10).await.unwrap()[0].recipients, list);

    // What was done since stands, should it be taken over again.
    task.progress = Bytes::from_static(b"further");
    assert!(store.tasks.save(task.clone(), holder, None).await.unwrap());
    store.broadcasts.close(&open[0]).await.unwrap();
    for version in 9..=version {
        session.query_unpaged(back, (version,)).await.unwrap();
    }
    eshaar_store::scylla::apply(&keyspace.0).await.unwrap();
    assert_eq!(store.broadcasts.opened(10).await.unwrap(), []);
    assert_eq!(store.tasks.get("broadcast", &id.to_string()).await.unwrap(), Some(task));
    keyspace.drop().await;
}
