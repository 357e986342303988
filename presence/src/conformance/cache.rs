//! What every cache must do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use eshaar_model::{ConversationId, Pair, Side, Timestamp};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::cache::{self, Cache, Fill, Key, LEASE_TTL, Lease, Lookup, MAX_VALUE, VALUE_TTL};

/// A fresh cache, and a way to let time pass for it.
pub(crate) struct Subject {
    pub(crate) cache: Arc<dyn Cache>,
    pub(crate) time: Box<dyn Time>,
}

/// Lets time pass: a clock of our own is set, one of a server is made up for.
#[async_trait::async_trait]
pub(crate) trait Time: Send + Sync {
    async fn pass(&self, time: Duration);
}

/// Every rule, each against a fresh cache.
pub(crate) async fn all(fresh: impl AsyncFn() -> Subject) {
    what_is_put_in_is_found_until_it_lapses(fresh().await).await;
    one_of_those_who_miss_reads_the_store(fresh().await).await;
    timeless(async || fresh().await.cache).await;
}

/// Every rule that needs no time to pass.
pub(crate) async fn timeless(fresh: impl AsyncFn() -> Arc<dyn Cache>) {
    what_was_read_before_an_invalidation_is_not_put_in_behind_it(fresh().await).await;
    nothing_is_shown_that_was_there_before_all_was_invalidated(fresh().await).await;
    keys_are_apart(fresh().await).await;
    what_is_too_long_is_not_kept(fresh().await).await;
    many_who_miss_at_once_read_the_store_once(fresh().await).await;
    what_the_store_refuses_is_said_and_not_kept(fresh().await).await;
}

fn conversation(number: u8) -> ConversationId {
    let bytes = (0x7000_8000_0000_0000_0000 | u128::from(number)).to_be_bytes();
    ConversationId::from_bytes(&bytes).unwrap()
}

fn newest() -> Key {
    Key::Newest(conversation(1))
}

async fn look(cache: &dyn Cache, key: &Key) -> Lookup {
    cache.look_up(std::slice::from_ref(key)).await.unwrap().remove(0)
}

async fn lease(cache: &dyn Cache, key: &Key) -> Lease {
    let Lookup::Miss(lease) = look(cache, key).await else { panic!("it is held already") };
    lease
}

async fn put(cache: &dyn Cache, key: &Key, lease: Lease, value: &'static [u8]) {
    let value = Bytes::from_static(value);
    cache.fill(vec![Fill { key: key.clone(), lease, value }]).await.unwrap();
}

fn hit(value: &'static [u8]) -> Lookup {
    Lookup::Hit(Bytes::from_static(value))
}

async fn what_is_put_in_is_found_until_it_lapses(Subject { cache, time }: Subject) {
    let key = newest();
    let leave = lease(&*cache, &key).await;
    put(&*cache, &key, leave, b"one").await;
    assert_eq!(look(&*cache, &key).await, hit(b"one"));
    put(&*cache, &key, leave, b"two").await;
    assert_eq!(look(&*cache, &key).await, hit(b"one"), "a lease is for one value");
    time.pass(VALUE_TTL.saturating_sub(Duration::from_secs(5))).await;
    assert_eq!(look(&*cache, &key).await, hit(b"one"));
    time.pass(Duration::from_secs(6)).await;
    assert!(matches!(look(&*cache, &key).await, Lookup::Miss(_)));
}

async fn one_of_those_who_miss_reads_the_store(Subject { cache, time }: Subject) {
    let key = newest();
    let first = lease(&*cache, &key).await;
    assert_eq!(look(&*cache, &key).await, Lookup::Awaited);
    time.pass(LEASE_TTL + Duration::from_millis(1)).await;
    let second = lease(&*cache, &key).await;
    put(&*cache, &key, first, b"late").await;
    assert_eq!(look(&*cache, &key).await, Lookup::Awaited, "a lease that lapsed is no leave");
    put(&*cache, &key, second, b"in time").await;
    assert_eq!(look(&*cache, &key).await, hit(b"in time"));
}

async fn what_was_read_before_an_invalidation_is_not_put_in_behind_it(cache: Arc<dyn Cache>) {
    let key = newest();
    let before = lease(&*cache, &key).await;
    cache.invalidate(vec![key.clone()]).await;
    put(&*cache, &key, before, b"old").await;
    let behind = lease(&*cache, &key).await;
    put(&*cache, &key, before, b"old").await;
    assert_eq!(look(&*cache, &key).await, Lookup::Awaited);
    put(&*cache, &key, behind, b"new").await;
    assert_eq!(look(&*cache, &key).await, hit(b"new"));
    cache.invalidate(vec![key.clone(), Key::Newest(conversation(2))]).await;
    assert!(matches!(look(&*cache, &key).await, Lookup::Miss(_)));
}

async fn nothing_is_shown_that_was_there_before_all_was_invalidated(cache: Arc<dyn Cache>) {
    let (kept, leased) = (newest(), Key::Newest(conversation(2)));
    let leave = lease(&*cache, &kept).await;
    put(&*cache, &kept, leave, b"old").await;
    let before = lease(&*cache, &leased).await;
    cache.invalidate_all().await;
    put(&*cache, &leased, before, b"old").await;
    assert!(!matches!(look(&*cache, &leased).await, Lookup::Hit(_)));
    let behind = lease(&*cache, &kept).await;
    put(&*cache, &kept, behind, b"new").await;
    assert_eq!(look(&*cache, &kept).await, hit(b"new"));
}

async fn keys_are_apart(cache: Arc<dyn Cache>) {
    let pair = Pair { business: "acme".parse().unwrap(), phone: "+966500000001".parse().unwrap() };
    let mut all: Vec<Key> = Key::of_message(conversation(1), &pair, Side::Phone).collect();
    all.push(Key::Unread(conversation(1), Side::Business));
    assert_eq!(all.len(), 7);
    let lookups = cache.look_up(&all).await.unwrap();
    let fills = all.iter().zip(lookups).enumerate().map(|(number, (key, lookup))| {
        let Lookup::Miss(lease) = lookup else { panic!("{key} is another's") };
        Fill { key: key.clone(), lease, value: Bytes::from(vec![number as u8]) }
    });
    cache.fill(fills.collect()).await.unwrap();
    let found = cache.look_up(&all).await.unwrap();
    let expected: Vec<_> = (0..7_u8).map(|number| Lookup::Hit(vec![number].into())).collect();
    assert_eq!(found, expected);
    assert_eq!(cache.look_up(&[]).await.unwrap(), []);
}

async fn what_is_too_long_is_not_kept(cache: Arc<dyn Cache>) {
    for (number, length, is_kept) in [(1, MAX_VALUE, true), (2, MAX_VALUE + 1, false)] {
        let key = Key::Newest(conversation(number));
        let lease = lease(&*cache, &key).await;
        cache.fill(vec![Fill { key: key.clone(), lease, value: vec![0; length].into() }]).await.unwrap();
        assert_eq!(matches!(look(&*cache, &key).await, Lookup::Hit(_)), is_kept, "{length} bytes");
    }
}

async fn many_who_miss_at_once_read_the_store_once(cache: Arc<dyn Cache>) {
    // Those who ask first may each say that what was there before them is old.
    look(&*cache, &Key::Newest(conversation(2))).await;
    let reads = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (cache, reads) = (Arc::clone(&cache), Arc::clone(&reads));
            tokio::spawn(async move {
                cache::through(&cache, &[newest()], async |_| {
                    reads.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, ()>(vec![7_u32])
                })
                .await
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), Ok(vec![7]));
    }
    assert_eq!(reads.load(Ordering::SeqCst), 1);
}

async fn what_the_store_refuses_is_said_and_not_kept(cache: Arc<dyn Cache>) {
    let keys = [newest(), Key::Unread(conversation(1), Side::Phone)];
    let refused = cache::through::<u32, _>(&cache, &keys, async |_| Err("no")).await;
    assert_eq!(refused, Err("no"));
    cache.invalidate(keys.to_vec()).await;
    let first = cache::through(&cache, &keys[1..], async |_| Ok::<_, ()>(vec![2])).await;
    assert_eq!(first, Ok(vec![2]));
    let both = cache::through(&cache, &keys, async |places| {
        assert_eq!(places, [0], "the other one is there");
        Ok::<_, ()>(vec![1])
    });
    assert_eq!(both.await, Ok(vec![1, 2]));
}

/// What happens to one value of the store and its place in the cache.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// Somebody writes, and says so.
    Write,
    /// Somebody writes, and dies before it says so; who takes over says that anything may have changed.
    WriteAndDie,
    /// A reader looks, and reads the store where it is to.
    Look(usize),
    /// A reader puts in what it read.
    Fill(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Write),
        1 => Just(Event::WriteAndDie),
        4 => (0..3_usize).prop_map(Event::Look),
        4 => (0..3_usize).prop_map(Event::Fill),
    ]
}

/// Property 10: in whatever order readers and writers take their steps, the cache never shows older than the last write that
/// it was told of.
pub(crate) fn property_10(runtime: &tokio::runtime::Runtime, cases: u32, cache: &Arc<dyn Cache>) {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    let case = AtomicU64::new(0);
    let outcome = TestRunner::new(config).run(&vec(event(), 1..40), |events| {
        let number = case.fetch_add(1, Ordering::Relaxed);
        let key = Key::Newest(ConversationId::new(Timestamp::from_millis(number as i64)));
        runtime.block_on(check(&**cache, &key, events))
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

async fn check(cache: &dyn Cache, key: &Key, events: Vec<Event>) -> Result<(), TestCaseError> {
    let (mut stored, mut told) = (0_u64, 0_u64);
    let mut read: [Option<(Lease, u64)>; 3] = [None; 3];
    for event in events {
        match event {
            Event::Write => {
                stored += 1;
                cache.invalidate(vec![key.clone()]).await;
                told = stored;
            }
            Event::WriteAndDie => {
                stored += 1;
                cache.invalidate_all().await;
                told = stored;
            }
            Event::Look(reader) => match look(cache, key).await {
                Lookup::Hit(value) => {
                    let shown = u64::from_be_bytes(value[..].try_into().unwrap());
                    prop_assert!(shown >= told, "it shows {shown}, and was told of {told}");
                }
                Lookup::Miss(lease) => read[reader] = Some((lease, stored)),
                Lookup::Awaited => {}
            },
            Event::Fill(reader) => {
                if let Some((lease, value)) = read[reader].take() {
                    let value = Bytes::copy_from_slice(&value.to_be_bytes());
                    cache.fill(vec![Fill { key: key.clone(), lease, value }]).await.unwrap();
                }
            }
        }
    }
    Ok(())
}
