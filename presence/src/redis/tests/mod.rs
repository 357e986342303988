//! The engine against real servers: the shared one, and private ones that are killed, hung and failed over.

mod outages;
mod server;
mod setups;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use eshaar_model::{Phone, Principal};

use super::*;
use crate::conformance::{self, Subject};

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: ./test starts the engines and sets it"))
}

/// A beginning of keys that no other test, or run, has.
fn prefix() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    format!("test:{}:{}:{}:", std::process::id(), now.as_nanos(), NEXT.fetch_add(1, Ordering::Relaxed))
}

async fn subject(options: &Options) -> Subject {
    let presence = RedisPresence::connect(Options { prefix: prefix(), ..options.clone() }).await.unwrap();
    let timed = Arc::clone(&presence);
    Subject { presence, pass: Box::new(move |time| timed.pass(time)) }
}

fn phone(number: u64) -> Principal {
    Phone::from_digits(966_500_000_000 + number).unwrap().into()
}

fn connection(slot: Slot, incarnation: u64, session: u64) -> Connection {
    Connection { slot, incarnation, session }
}

/// Longer than anything here takes on a busy machine: a cluster of three agrees on a node's return by gossip.
const PATIENCE: Duration = Duration::from_mins(1);

/// Asks again until the answer is yes.
async fn eventually(what: &str, mut yes: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !yes().await {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn redis_presence_keeps_every_rule_of_the_port() {
    let options = Options {
        addresses: vec![variable("ENGINE_REDIS")],
        password: Some(variable("ENGINE_REDIS_PASSWORD").into()),
        response_timeout_ms: 5_000, // the engines start up around us
        ..Options::default()
    };
    conformance::all(async || subject(&options).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn two_processes_see_each_other() {
    let server = server::Server::start(&[]);
    let gateway = RedisPresence::connect(server.options()).await.unwrap();
    let processors = RedisPresence::connect(server.options()).await.unwrap();
    let slot = gateway.lease_slot(7, None, 4, "10.0.0.1:8080").await.unwrap();
    gateway.connect(&phone(1), connection(slot, 7, 1)).await.unwrap();
    let slots = processors.slots_of(&[phone(1), phone(2)]).await.unwrap();
    assert_eq!(slots.iter().map(Slots::as_slice).collect::<Vec<_>>(), [&[slot][..], &[]]);
    assert_eq!(processors.nodes().await.unwrap(), [Node { slot, incarnation: 7, address: "10.0.0.1:8080".into() }]);
    let mut heard = gateway.listen("room").await.unwrap();
    processors.publish("room", Bytes::from_static(b"typing")).await.unwrap();
    assert_eq!(heard.recv().await.unwrap(), "typing");
}

#[tokio::test]
#[ignore = "needs the real engines: ./test"]
async fn nothing_stays_behind_in_the_server() {
    let server = server::Server::start(&[]);
    let presence = RedisPresence::connect(server.options()).await.unwrap();
    presence.lease_slot(7, None, 4, "").await.unwrap();
    presence.connect(&phone(1), connection(0, 7, 1)).await.unwrap();
    let cli = std::process::Command::new("redis-cli")
        .args(["-p", &server.port.to_string(), "eval"])
        .arg("local left = {} for _, key in ipairs(redis.call('keys', '*')) do left[#left + 1] = key .. ' ' .. redis.call('pttl', key) end return left")
        .arg("0")
        .output()
        .unwrap();
    let text = String::from_utf8(cli.stdout).unwrap();
    let ttl = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key} in {text}"));
        Duration::from_millis(line.trim().parse().expect("it lapses"))
    };
    assert!(ttl("eshaar:nodes") <= NODE_TTL, "{text}");
    assert!(ttl("eshaar:at:+966500000001") <= CONNECTION_TTL, "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
}
