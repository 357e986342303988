//! What a client of Redis sees when Redis is down, hangs, forgets or moves: errors in time, and then that it works again.

use super::server::{Server, free_port};
use super::*;

/// Whether a call fails, as it should while Redis is away; it must not take longer than it may.
async fn fails_in_time(presence: &RedisPresence) -> bool {
    let begun = Instant::now();
    let answer = presence.slots_of(&[phone(1)]).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "a call took {:?}", begun.elapsed());
    match answer {
        Ok(_) => false,
        Err(PresenceError::Engine { action: "look up slots", .. }) => true,
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_server_that_is_killed_and_started_again_is_found_again() {
    let mut server = Server::start(&[]);
    let presence = RedisPresence::connect(server.options()).await.unwrap();
    let node =
        Node { slot: presence.lease_slot(7, None, 4, "").await.unwrap(), incarnation: 7, address: String::new() };
    let session = (phone(1), connection(node.slot, 7, 1));
    presence.connect(&session.0, session.1).await.unwrap();
    assert_eq!(presence.refresh(std::slice::from_ref(&session)).await.unwrap(), [true]);
    let mut heard = presence.listen("room").await.unwrap();

    server.kill();
    eventually("calls fail", async || fails_in_time(&presence).await).await;
    let begun = Instant::now();
    for _ in 0..1_000 {
        assert!(fails_in_time(&presence).await);
    }
    assert!(begun.elapsed() < Duration::from_millis(900), "while it is down, a call fails at once");
    assert!(presence.listen("other").await.is_err());

    server.start_again();
    eventually("it works again", async || works(&presence).await).await;
    assert!(matches!(presence.announce(&node).await, Ok(Announced::Live { .. })), "nobody else took the slot");
    assert_eq!(presence.refresh(std::slice::from_ref(&session)).await.unwrap(), [false], "what was lost is told");
    assert_eq!(presence.slots_of(&[phone(1)]).await.unwrap()[0].as_slice(), [node.slot]);
    presence.publish("room", Bytes::from_static(b"again")).await.unwrap();
    assert_eq!(heard.recv().await.unwrap(), "again", "who listened still does");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn it_comes_up_while_the_server_is_down() {
    let port = free_port();
    let options = Options { addresses: vec![format!("127.0.0.1:{port}")], reconnect_max_ms: 200, ..Options::default() };
    let presence = RedisPresence::connect(options).await.unwrap();
    let error = presence.ping().await.unwrap_err().to_string();
    assert!(error.contains(&format!("cannot use Redis at 127.0.0.1:{port} (mode single)")), "{error}");
    assert!(fails_in_time(&presence).await);
    let _server = Server::start_in(tempfile::tempdir().unwrap(), port, &[]);
    eventually("it connects", async || works(&presence).await).await;
    assert_eq!(presence.lease_slot(1, None, 1, "").await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_server_that_hangs_costs_a_few_calls_their_time_and_then_none() {
    let server = Server::start(&[]);
    let options = Options { response_timeout_ms: 300, connect_timeout_ms: 300, ..server.options() };
    let presence = RedisPresence::connect(options).await.unwrap();
    presence.ping().await.unwrap();
    server.signal("STOP");
    let asking: Vec<_> = (0..500)
        .map(|_| {
            let presence = Arc::clone(&presence);
            tokio::spawn(async move { fails_in_time(&presence).await })
        })
        .collect();
    for answer in asking {
        assert!(answer.await.unwrap());
    }
    eventually("the connection is given up", async || {
        presence.ping().await.unwrap_err().to_string().contains("connection")
    })
    .await;
    let begun = Instant::now();
    for _ in 0..1_000 {
        assert!(fails_in_time(&presence).await);
    }
    assert!(begun.elapsed() < Duration::from_millis(250), "no call waits any more: {:?}", begun.elapsed());
    server.signal("CONT");
    eventually("it works again", async || works(&presence).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_server_that_forgot_our_scripts_learns_them_again() {
    let server = Server::start(&[]);
    let presence = RedisPresence::connect(server.options()).await.unwrap();
    let forget = std::process::Command::new("redis-cli")
        .args(["-p", &server.port.to_string(), "script", "flush"])
        .output()
        .unwrap();
    assert!(forget.status.success());
    let sessions: Vec<_> = (0..50).map(|number| (phone(number), connection(0, 7, number))).collect();
    assert_eq!(presence.refresh(&sessions).await.unwrap(), [false; 50]);
    assert_eq!(presence.refresh(&sessions).await.unwrap(), [true; 50]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn what_nobody_listens_to_any_more_is_unsubscribed() {
    let server = Server::start(&[]);
    let presence = RedisPresence::connect(server.options()).await.unwrap();
    let kept = presence.listen("kept").await.unwrap();
    drop(presence.listen("left").await.unwrap());
    presence.link.give_up_deserted().await;
    let channels = std::process::Command::new("redis-cli")
        .args(["-p", &server.port.to_string(), "pubsub", "channels"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(channels.stdout).unwrap().trim(), "eshaar:on:kept");
    drop(kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn the_replica_that_a_sentinel_makes_master_is_found() {
    let mut master = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    let sentinel = Server::sentinel(master.port);
    let options = Options { mode: Mode::Sentinel, ..sentinel.options() };
    check(&options).await.unwrap();
    let presence = RedisPresence::connect(options).await.unwrap();
    let slot = presence.lease_slot(7, None, 4, "").await.unwrap();
    let mut heard = presence.listen("room").await.unwrap();
    let port = sentinel.port;
    eventually("the sentinel knows the replica", async || {
        let mut command = std::process::Command::new("redis-cli");
        let told = command.args(["-p", &port.to_string(), "sentinel", "replicas", "mymaster"]).output().unwrap();
        String::from_utf8_lossy(&told.stdout).contains(&replica.port.to_string())
    })
    .await;

    master.kill();
    eventually("calls fail", async || fails_in_time(&presence).await).await;
    let node = Node { slot, incarnation: 7, address: String::new() };
    eventually("the new master takes writes", async || presence.announce(&node).await.is_ok()).await;
    presence.publish("room", Bytes::from_static(b"moved")).await.unwrap();
    assert_eq!(heard.recv().await.unwrap(), "moved");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_cluster_keeps_every_rule_of_the_port_and_its_nodes_may_come_back() {
    let mut nodes = server::cluster();
    let options = Options {
        mode: Mode::Cluster,
        addresses: nodes.iter().map(Server::address).collect(),
        reconnect_max_ms: 200,
        ..Options::default()
    };
    eventually("the cluster is there", async || check(&options).await.is_ok()).await;
    let calm = Options { response_timeout_ms: 5_000, ..options.clone() };
    conformance::all(async || subject(&calm).await).await;
    conformance::limits::all(async || {
        let fresh = Options { prefix: prefix(), ..calm.clone() };
        let counters = RedisPresence::connect(fresh).await.unwrap();
        let timed = Arc::clone(&counters);
        conformance::limits::Subject { counters, pass: Box::new(move |time| timed.pass(time)) }
    })
    .await;
    conformance::cache::timeless(async || {
        RedisPresence::connect(Options { prefix: prefix(), ..calm.clone() }).await.unwrap()
            as Arc<dyn crate::cache::Cache>
    })
    .await;

    let presence = RedisPresence::connect(options).await.unwrap();
    let everyone: Vec<Principal> = (0..100).map(phone).collect();
    let mut heard = presence.listen("room").await.unwrap();
    nodes[1].kill();
    let fails = async || {
        let begun = Instant::now();
        let answer = presence.slots_of(&everyone).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "a call took {:?}", begun.elapsed());
        answer.is_err()
    };
    eventually("what the node had cannot be asked for", fails).await;
    nodes[1].start_again();
    eventually("the cluster is whole again", async || !fails().await).await;
    eventually("who listened still does", async || {
        presence.publish("room", Bytes::from_static(b"whole")).await.unwrap();
        tokio::time::timeout(Duration::from_millis(200), heard.recv()).await.is_ok()
    })
    .await;
}
