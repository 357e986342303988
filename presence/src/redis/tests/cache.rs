//! The cache against real servers: it keeps the rules of the port, and shows nothing old when Redis cannot be told.

use async_trait::async_trait;

use super::server::Server;
use super::*;
use crate::cache::{self, Cache, Fill, Key, Lookup};
use crate::conformance::cache as conformance;

/// Brings forward when keys lapse: the time of a server is not ours to set.
#[async_trait]
impl conformance::Time for Arc<RedisPresence> {
    async fn pass(&self, time: Duration) {
        let (keys, mut cursor) = (format!("{}*", self.link.prefix()), 0_u64);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&keys).arg("COUNT").arg(10_000);
            let answer = self.run("scan", scan).await.unwrap();
            let (next, found): (u64, Vec<String>) = redis::from_redis_value(answer).unwrap();
            for key in found {
                let mut left = redis::cmd("PTTL");
                left.arg(&key);
                let left: i64 = redis::from_redis_value(self.run("ask how long", left).await.unwrap()).unwrap();
                if left >= 0 {
                    let mut lapse = redis::cmd("PEXPIRE");
                    lapse.arg(&key).arg(left - millis(time));
                    self.run("lapse", lapse).await.unwrap();
                }
            }
            cursor = next;
            if cursor == 0 {
                return;
            }
        }
    }
}

fn key() -> Key {
    Key::Conversations(phone(1))
}

/// Puts a value in, read from the store now.
async fn keep(cache: &RedisPresence, value: u32) {
    eventually("the value is kept", async || {
        let Ok(lookups) = cache.look_up(&[key()]).await else { return false };
        if let Lookup::Miss(lease) = lookups[0] {
            let value = value.to_be_bytes().to_vec().into();
            cache.fill(vec![Fill { key: key(), lease, value }]).await.unwrap();
        }
        shown(cache).await == Some(value)
    })
    .await;
}

/// What the cache shows; `None` where the store is to be read.
async fn shown(cache: &RedisPresence) -> Option<u32> {
    match cache.look_up(&[key()]).await.ok()?.remove(0) {
        Lookup::Hit(value) => Some(u32::from_be_bytes(value[..].try_into().unwrap())),
        Lookup::Miss(_) | Lookup::Awaited => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn the_cache_in_redis_keeps_every_rule_of_the_port() {
    let options = shared();
    conformance::all(async || {
        let cache = RedisPresence::connect(Options { prefix: prefix(), ..options.clone() }).await.unwrap();
        conformance::Subject { cache: Arc::clone(&cache) as _, time: Box::new(cache) }
    })
    .await;
}

#[test]
#[ignore = "needs the real engines: ./test"]
fn property_10_cache_database_consistency_on_redis() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let connect = RedisPresence::connect(Options { prefix: prefix(), ..shared() });
    let cache: Arc<dyn Cache> = runtime.block_on(connect).unwrap();
    conformance::property_10(&runtime, 256, &cache);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_change_that_a_hanging_server_was_not_told_of_is_told_when_it_answers() {
    let server = Server::start(&[]);
    let writer = RedisPresence::connect(server.options()).await.unwrap();
    let reader = RedisPresence::connect(server.options()).await.unwrap();
    for one in [&writer, &reader] {
        assert_eq!(shown(one).await, None, "whoever connects shows nothing from before");
    }
    keep(&reader, 1).await;
    assert_eq!(shown(&writer).await, Some(1), "all processes share it");
    server.signal("STOP");
    writer.invalidate(vec![key()]).await;
    assert_eq!(shown(&writer).await, None, "the writer itself shows nothing that it could not say is old");
    server.signal("CONT");
    eventually(
        "the other process shows it no longer",
        async || matches!(reader.look_up(&[key()]).await, Ok(lookups) if !matches!(lookups[0], Lookup::Hit(_))),
    )
    .await;
    assert_eq!(shown(&writer).await, None);
    keep(&reader, 2).await;
    assert_eq!(shown(&writer).await, Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_server_that_comes_back_with_what_it_held_before_shows_none_of_it() {
    let mut server = Server::start(&["--save", "60 1"]);
    let cache = RedisPresence::connect(server.options()).await.unwrap();
    keep(&cache, 1).await;
    cache.run("save", redis::cmd("SAVE")).await.unwrap();
    cache.invalidate(vec![key()]).await;
    keep(&cache, 2).await;
    server.kill();
    let behind: Arc<dyn Cache> = Arc::clone(&cache) as _;
    let read = cache::through(&behind, &[key()], async |_| Ok::<_, ()>(vec![3])).await;
    assert_eq!(read, Ok(vec![3]), "while it is down the store is read");
    server.start_again();
    eventually("it is asked again", async || {
        assert_eq!(shown(&cache).await, None);
        cache.look_up(&[key()]).await.is_ok()
    })
    .await;
}
