//! The CQL store where several processes write at once, and its bounds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eshaar_model::{
    Clock, Cursor, Epoch, Lane, MessageId, MessageType, Phone, Shown, Status, StreamPosition, Timestamp,
};
use eshaar_store::conformance::start;
use eshaar_store::scylla::{self, Options};
use eshaar_store::{Claim, ClaimKey, Claimed, MessageRow, SentQuery, Step, Store, StoreError, StreamRow};

use super::cluster::Keyspace;

pub(crate) fn phone(number: u64) -> Phone {
    Phone::from_digits(966_500_000_000 + number).unwrap()
}

pub(crate) fn row(phone: Phone, position: StreamPosition, at: Timestamp) -> StreamRow {
    StreamRow { phone, position, id: MessageId::new(at), at, expires_at: None, value: Bytes::from_static(b"value") }
}

pub(crate) async fn open(options: &Options) -> Store {
    scylla::open(options.clone(), Clock::manual(start())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn of_two_hundred_claims_from_two_sessions_one_is_first() {
    let keyspace = Keyspace::make().await;
    let stores = [open(&keyspace.0).await, open(&keyspace.0).await];
    let at_once = Arc::new(tokio::sync::Barrier::new(200));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200_usize {
        let (claims, at_once) = (Arc::clone(&stores[number % 2].claims), Arc::clone(&at_once));
        tasks.spawn(async move {
            let key = ClaimKey { principal: "acme".to_owned(), key: "k".to_owned() };
            let minted = Bytes::from(number.to_string());
            let claim = Claim { body_hash: [0; 32], minted: minted.clone(), answer: None, claimed_at: start() };
            at_once.wait().await;
            (minted, claims.claim(&key, claim).await.unwrap())
        });
    }
    let (mut first, mut found) = (Vec::new(), Vec::new());
    for (minted, claimed) in tasks.join_all().await {
        match claimed {
            Claimed::First => first.push(minted),
            Claimed::Repeat(claim) => found.push(claim.minted),
        }
    }
    assert_eq!((first.len(), found.len()), (1, 199));
    assert!(found.iter().all(|minted| *minted == first[0]));
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn an_acked_position_never_moves_back_whoever_writes_last() {
    let keyspace = Keyspace::make().await;
    let stores = [open(&keyspace.0).await, open(&keyspace.0).await];
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200_u64 {
        let streams = Arc::clone(&stores[number as usize % 2].streams);
        // Two phones, all offsets in an order that is not theirs.
        let (offset, lane) = (number * 73 % 200, Lane::ALL[number as usize / 2 % 4]);
        tasks.spawn(async move {
            let mut cursor = Cursor::start(Epoch(1));
            cursor.advance(StreamPosition { epoch: Epoch(1), lane, offset });
            streams.ack(vec![(phone(1), cursor), (phone(2), cursor)]).await.unwrap();
            cursor
        });
    }
    let furthest = tasks.join_all().await.into_iter().reduce(Cursor::max);
    for store in &stores {
        assert_eq!(store.streams.acked(phone(1)).await.unwrap(), furthest);
        assert_eq!(store.streams.acked(phone(2)).await.unwrap(), furthest);
    }
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_new_keyspace_has_nothing_and_epochs_are_written_by_every_process() {
    let keyspace = Keyspace::make().await;
    let stores = [open(&keyspace.0).await, open(&keyspace.0).await];
    assert_eq!(stores[0].streams.newest_epoch().await.unwrap(), None);
    assert!(stores[0].keys.list(None).await.unwrap().is_empty());
    for (store, epoch, newest) in [(0, 3, 3), (1, 2, 3), (0, 4, 4), (1, 4, 4)] {
        let position = StreamPosition { epoch: Epoch(epoch), lane: Lane::High, offset: 1 };
        stores[store].streams.append(0, vec![row(phone(1), position, start())]).await.unwrap();
        assert_eq!(stores[1 - store].streams.newest_epoch().await.unwrap(), Some(Epoch(newest)));
    }
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn rows_and_claims_carry_what_is_left_of_their_time() {
    let keyspace = Keyspace::make().await;
    let store = open(&keyspace.0).await;
    let position = StreamPosition { epoch: Epoch(1), lane: Lane::High, offset: 1 };
    let day_ms = 24 * 3600 * 1000;
    // It was accepted ten days ago: 20 of its 30 days are left, and one more.
    store.streams.append(0, vec![row(phone(1), position, start().plus_millis(-10 * day_ms))]).await.unwrap();
    let key = ClaimKey { principal: "acme".to_owned(), key: "k".to_owned() };
    let claimed_at = start().plus_millis(-day_ms / 2);
    let claim = Claim { body_hash: [0; 32], minted: Bytes::new(), answer: None, claimed_at };
    store.claims.claim(&key, claim).await.unwrap();
    let session = keyspace.session().await;
    for (query, days) in [("SELECT TTL(value) FROM stream", 21.0), ("SELECT TTL(holder) FROM claim", 0.5)] {
        let rows = session.query_unpaged(query, ()).await.unwrap().into_rows_result().unwrap();
        let (left_s,) = rows.single_row::<(i32,)>().unwrap();
        assert!((f64::from(left_s) / 86_400.0 - days).abs() < 0.01, "{query}: {left_s} s");
    }
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn more_calls_than_are_allowed_are_refused_and_a_closed_store_says_so() {
    let keyspace = Keyspace::make().await;
    let options = Options { requests: 1, calls: 10, queue_wait_ms: 1, ..keyspace.0.clone() };
    let store = open(&options).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let streams = Arc::clone(&store.streams);
        tasks.spawn(async move { streams.acked(phone(1)).await.map(drop) });
    }
    let outcomes = tasks.join_all().await;
    assert!(outcomes.iter().any(Result::is_ok));
    for error in outcomes.into_iter().filter_map(Result::err) {
        assert!(matches!(error, StoreError::Overloaded { .. }), "{error}");
    }
    store.engine.ping().await.unwrap();
    store.engine.close().await.unwrap();
    assert!(matches!(store.engine.ping().await, Err(StoreError::Closed)));
    assert!(matches!(store.engine.sync().await, Err(StoreError::Closed)));
    assert!(matches!(store.streams.acked(phone(1)).await, Err(StoreError::Closed)));
    keyspace.drop().await;
}

fn message(number: u32, at: Timestamp) -> MessageRow {
    MessageRow {
        id: MessageId::new(at),
        message_type: MessageType::OneWay,
        conversation: None,
        sender: "acme".parse().unwrap(),
        recipient: phone(1).into(),
        created_at: at,
        expires_at: None,
        accepted: (number % 12, Some(u64::from(number))),
        may_repeat: false,
        value: Bytes::from(number.to_string()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn statuses_of_two_writers_end_the_same_in_any_order() {
    let keyspace = Keyspace::make().await;
    let stores = [open(&keyspace.0).await, open(&keyspace.0).await];
    let rows: Vec<_> = (0..2).map(|number| message(number, start())).collect();
    let mut writes = Vec::new();
    for (status, after_ms, reason) in [
        (Status::Delivered, 30, None),
        (Status::Delivered, 20, None),
        (Status::Read, 50, None),
        (Status::Read, 40, None),
        (Status::Failed, 10, Some("no_device")),
        (Status::Failed, 10, Some("expired_token")),
        (Status::Failed, 15, Some("other")),
    ] {
        let reason = reason.map(str::to_owned);
        let step = |row: &MessageRow| {
            let at = start().plus_millis(after_ms);
            Step { id: row.id, status, at, reason: reason.clone() }
        };
        writes.push(rows.iter().map(step).collect::<Vec<_>>());
    }
    // The one message's steps in their order, the other's in reverse, each by both writers in turn, itself in the midst.
    for turn in 0..writes.len() {
        let (forth, back) = (writes[turn][0].clone(), writes[writes.len() - 1 - turn][1].clone());
        let (one, other) = (&stores[turn % 2].messages, &stores[1 - turn % 2].messages);
        let (one, other) = tokio::join!(one.reach(vec![forth.clone(), back.clone()]), other.reach(vec![back, forth]));
        one.and(other).unwrap();
        if turn == 3 {
            stores[0].messages.put(rows.clone()).await.unwrap();
        }
    }
    let first = stores[0].messages.get(rows[0].id).await.unwrap().unwrap();
    let second = stores[1].messages.get(rows[1].id).await.unwrap().unwrap();
    let expected = [(Status::Sent, 0), (Status::Failed, 10), (Status::Delivered, 20), (Status::Read, 40)];
    for message in [first, second] {
        let reached: Vec<_> = message.steps.reached().map(|(step, at)| (step, at.millis_since(start()))).collect();
        assert_eq!(reached, expected);
        assert_eq!(message.failure_reason.as_deref(), Some("no_device"));
    }
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn of_two_records_of_a_message_the_first_in_the_log_stands_whichever_is_written_first() {
    let keyspace = Keyspace::make().await;
    let messages = open(&keyspace.0).await.messages;
    let first = message(12, start());
    let second = MessageRow { accepted: (0, Some(24)), value: Bytes::from_static(b"other"), ..first.clone() };
    for row in [second, first.clone()] {
        messages.put(vec![row]).await.unwrap();
    }
    assert_eq!(messages.get(first.id).await.unwrap().unwrap().row, first);
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_list_goes_over_days_and_shards_newest_first() {
    let keyspace = Keyspace::make().await;
    let messages = open(&keyspace.0).await.messages;
    // On 80 days, one or two each; more days than one page looks at.
    let half_days = (0..160).filter(|half| half % 4 != 3);
    let rows: Vec<_> = half_days
        .map(|half| message(half, start().plus_millis(i64::from(half) * 12 * 3600 * 1000 - 80 * 24 * 3600 * 1000)))
        .collect();
    messages.put(rows.clone()).await.unwrap();
    let odd = rows.iter().filter(|row| row.accepted.1.is_some_and(|offset| offset % 2 == 1));
    messages
        .reach(odd.map(|row| Step { id: row.id, status: Status::Read, at: start(), reason: None }).collect())
        .await
        .unwrap();
    for status in [None, Some(Status::Read), Some(Status::Failed)] {
        for limit in [1, 7, 50, 1_000] {
            let mut query = SentQuery { status: status.map(Shown::At), limit, ..SentQuery::default() };
            let mut seen = Vec::new();
            for pages in 1.. {
                let page = messages.sent_by(&"acme".parse().unwrap(), query.clone(), start()).await.unwrap();
                assert!(page.messages.len() <= limit && pages < 200);
                seen.extend(page.messages.into_iter().map(|message| message.row.id));
                query.before = page.next;
                if page.next.is_none() {
                    break;
                }
            }
            let wanted = rows.iter().rev().filter(|row| match status {
                None => true,
                Some(Status::Read) => row.accepted.1.is_some_and(|offset| offset % 2 == 1),
                Some(_) => false,
            });
            assert!(seen.iter().eq(wanted.map(|row| &row.id)), "{status:?} in pages of {limit}: {}", seen.len());
        }
    }
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_reader_never_sees_a_row_without_those_before_it_nor_one_past_the_head() {
    let keyspace = Keyspace::make().await;
    let (writer, reader) = (open(&keyspace.0).await, open(&keyspace.0).await);
    let writing = tokio::spawn(async move {
        for batch in 0..20_u64 {
            // More than one request holds, of one phone among others.
            let large = (0..60).map(|number| {
                let position = StreamPosition { epoch: Epoch(1), lane: Lane::Bulk, offset: batch * 60 + number };
                StreamRow { value: Bytes::from(vec![7; 2_000]), ..row(phone(1), position, start()) }
            });
            let others = (0..60).map(|number| {
                let position =
                    StreamPosition { epoch: Epoch(1), lane: Lane::Bulk, offset: 10_000 + batch * 60 + number };
                row(phone(100 + number), position, start())
            });
            writer.streams.append(0, large.chain(others).collect()).await.unwrap();
        }
    });
    let mut seen = 0;
    while seen < 1_200 {
        let all_written = writing.is_finished();
        let mut cursor = Cursor::start(Epoch(1));
        let mut offsets = Vec::new();
        loop {
            let page = reader.streams.read(phone(1), cursor, 500).await.unwrap();
            page.rows.iter().for_each(|row| cursor.advance(row.position));
            offsets.extend(page.rows.iter().map(|row| row.position.offset));
            if !page.more {
                break;
            }
        }
        assert_eq!(offsets, (0..offsets.len() as u64).collect::<Vec<_>>());
        let head = reader.streams.head(Epoch(1), Lane::Bulk, 0).await.unwrap();
        assert!(offsets.last().copied() <= head, "what can be read is never past the head");
        seen = offsets.len();
        assert!(seen == 1_200 || !all_written, "only {seen} rows are there in the end");
    }
    writing.await.unwrap();
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_stream_does_not_stand_behind_history_and_history_is_not_left_for_good() {
    let keyspace = Keyspace::make().await;
    // A request at a time, of four rows: the history takes hundreds.
    let options = Options { writes_at_once: 1, batch_rows: 4, ..keyspace.0.clone() };
    let store = open(&options).await;
    let position = |offset: u64| StreamPosition { epoch: Epoch(1), lane: Lane::High, offset };
    // Knows the epoch and the day from now on.
    store.streams.append(0, vec![row(phone(1), position(0), start())]).await.unwrap();
    store.messages.put(vec![message(0, start())]).await.unwrap();

    let messages = Arc::clone(&store.messages);
    let rows: Vec<MessageRow> = (1..500).map(|number| message(number, start())).collect();
    let first = rows[0].id;
    let history = tokio::spawn(async move { messages.put(rows).await });
    while store.messages.get(first).await.unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    store.streams.append(0, vec![row(phone(1), position(1), start())]).await.unwrap();
    assert!(!history.is_finished(), "the stream stood behind all of the history");

    // While streams wait at any time, history goes on.
    let mut busy = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let streams = Arc::clone(&store.streams);
        busy.spawn(async move {
            for offset in 2.. {
                let rows = (0..64).map(|number| row(phone(100 * writer + number), position(offset), start()));
                streams.append(0, rows.collect()).await.unwrap();
            }
        });
    }
    tokio::time::timeout(Duration::from_mins(1), history).await.unwrap().unwrap().unwrap();
    assert!(busy.try_join_next().is_none(), "streams were written all the while");
    keyspace.drop().await;
}
