//! The engine against real servers: the shared one, and private ones that are killed, hung and failed over.

mod cache;
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
    let options = shared();
    conformance::all(async || subject(&options).await).await;
}

fn shared() -> Options {
    Options {
        addresses: vec![variable("ENGINE_REDIS")],
        password: Some(variable("ENGINE_REDIS_PASSWORD").into()),
        response_timeout_ms: 5_000, // the engines start up around us
        ..Options::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_look_up_that_redis_runs_too_late_marks_no_node_and_is_no_answer() {
    let presence = RedisPresence::connect(Options { prefix: prefix(), ..shared() }).await.unwrap();
    let node = Node { slot: 0, incarnation: 1, address: String::new() };
    let since = async || match presence.announce(&node).await.unwrap() {
        Announced::Live { since } => since,
        other @ Announced::Lost => panic!("{other:?}"),
    };
    presence.lease_slot(1, Some(0), 1, "").await.unwrap();
    presence.connect(&phone(1), connection(0, 1, 1)).await.unwrap();
    assert_eq!(presence.slots_of(&[phone(1)]).await.unwrap()[0][..], [0]);
    let entered = since().await;

    // As if the look-up had stood in the socket of a server that was stopped for a minute.
    presence.pass(NODE_TTL * 2);
    if let Some((time, _)) = &mut *presence.server_time.lock() {
        *time -= 60_000.0;
    }
    let late = presence.slots_of(&[phone(1)]).await.unwrap_err().to_string();
    assert!(late.contains("too late"), "{late}");
    assert_eq!(since().await, entered, "nobody relied on the answer");

    presence.pass(NODE_TTL * 2);
    assert!(presence.slots_of(&[phone(1)]).await.unwrap()[0].is_empty());
    assert_ne!(since().await, entered, "this one was relied on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn redis_limits_and_depths_keep_every_rule_of_their_ports() {
    let options = shared();
    let fresh = async || RedisPresence::connect(Options { prefix: prefix(), ..options.clone() }).await.unwrap();
    conformance::limits::all(async || {
        let counters = fresh().await;
        let timed = Arc::clone(&counters);
        conformance::limits::Subject { counters, pass: Box::new(move |time| timed.pass(time)) }
    })
    .await;
    conformance::depths::all(async || {
        let depths = fresh().await;
        let timed = Arc::clone(&depths);
        conformance::depths::Subject { depths, pass: Box::new(move |time| timed.pass(time)) }
    })
    .await;
}

/// Prints what a charge costs, for docs/adr/0012: `cargo test -p eshaar-presence -- --ignored --nocapture what_a_charge`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn what_a_charge_costs_when_many_ask_at_once() {
    use crate::limits::{Counted, Counters as _, Limit, Limits};

    let presence = RedisPresence::connect(Options { prefix: prefix(), ..shared() }).await.unwrap();
    for callers in [1_u32, 16, 256] {
        let begun = Instant::now();
        let tasks: Vec<_> = (0..callers)
            .map(|caller| {
                let presence = Arc::clone(&presence);
                let limit = |of, rate: &str| Limit { of, rate: rate.parse().unwrap(), kept: 0 };
                let of_caller = Counted::Key(format!("k{caller}"));
                let limits: Limits =
                    [limit(of_caller, "1000000/min"), limit(Counted::Whole, "1000000/s")].into_iter().collect();
                tokio::spawn(async move {
                    for _ in 0..20_000 / callers {
                        assert_eq!(presence.take(&limits, 1).await.unwrap().granted, 1);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let took = begun.elapsed();
        println!("{callers} at once: {:.0} charges/s", f64::from(20_000 / callers * callers) / took.as_secs_f64());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn two_processes_share_limits_and_each_counts_alone_while_redis_is_killed() {
    use crate::limits::{self, Limiter, Manner, Sender};

    let mut server = server::Server::start(&[]);
    let clock = eshaar_model::Clock::system();
    let options = limits::Options { whole: None, ..limits::Options::default() };
    let mut limiters = Vec::new();
    for _ in 0..2 {
        let presence = RedisPresence::connect(server.options()).await.unwrap();
        assert_eq!(presence.breaker().state(), eshaar_service::breaker::State::Closed);
        limiters.push((Limiter::shared(options.clone(), Arc::clone(&presence) as _, clock.clone()), presence));
    }
    let user = phone(1);
    let of_user = limiters[0].0.limits_of(Sender { principal: &user, key: None }, Manner::Singly);
    for count in 0..100 {
        assert_eq!(limiters[count % 2].0.take(&of_user, 1).await.granted, 1, "{count}");
    }
    assert_eq!(limiters[0].0.take(&of_user, 1).await.granted, 0, "the 101st, wherever it comes");
    assert_eq!(limiters[1].0.take(&of_user, 1).await.granted, 0);

    server.kill();
    eventually("it counts alone", async || limiters[0].0.take(&of_user, 1).await.granted == 1).await;
    assert_eq!(limiters[0].0.take(&of_user, 1_000).await.granted, 49, "alone each has all of the limit, less its own");
    eventually("the breaker is open", async || limiters[0].1.breaker().state() == eshaar_service::breaker::State::Open)
        .await;
    let begun = Instant::now();
    for _ in 0..1_000 {
        assert_eq!(limiters[0].0.take(&of_user, 1).await.granted, 0);
    }
    assert!(begun.elapsed() < Duration::from_millis(500), "nobody waits for Redis: {:?}", begun.elapsed());

    server.start_again();
    eventually("it counts with the other again", async || works(&limiters[0].1).await && works(&limiters[1].1).await)
        .await;
    assert_eq!(limiters[0].0.take(&of_user, 60).await.granted, 60, "the new server has seen nothing");
    assert_eq!(limiters[1].0.take(&of_user, 60).await.granted, 40);
    assert_eq!(limiters[0].1.breaker().state(), eshaar_service::breaker::State::Closed);
}

async fn works(presence: &RedisPresence) -> bool {
    presence.ping().await.is_ok()
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
    // A node learns for a while that a look-up missed it.
    assert!(ttl("eshaar:nodes") <= Duration::from_hours(1), "{text}");
    assert!(ttl("eshaar:at:+966500000001") <= CONNECTION_TTL, "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
}
