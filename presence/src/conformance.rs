//! What every engine of presence must do. Each engine's tests run [`all`] against itself.

pub(crate) mod cache;
pub(crate) mod depths;
pub(crate) mod limits;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eshaar_model::{Clock, Phone, Principal};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use crate::{Announced, CONNECTION_TTL, Connection, NODE_TTL, Node, Presence, PresenceError, Slots};

/// A fresh engine, and a way to let time pass for it.
pub(crate) struct Subject {
    pub(crate) presence: Arc<dyn Presence>,
    pub(crate) pass: Box<dyn Fn(Duration) + Send + Sync>,
}

/// Every rule, each against a fresh engine.
pub(crate) async fn all(fresh: impl AsyncFn() -> Subject) {
    free_slots_are_leased_until_none_is_left(fresh().await).await;
    a_slot_is_free_again_when_its_node_lapses_or_withdraws(fresh().await).await;
    a_wanted_slot_is_taken_from_whoever_has_it(fresh().await).await;
    a_principal_is_online_where_it_has_sessions(fresh().await).await;
    several_sessions_of_one_principal_are_counted_apart(fresh().await).await;
    a_connection_lapses_unless_it_is_refreshed(fresh().await).await;
    a_refresh_enters_again_what_was_gone(fresh().await).await;
    connections_of_a_node_that_lapsed_are_hidden(fresh().await).await;
    connections_of_an_earlier_life_are_hidden(fresh().await).await;
    a_node_learns_whether_a_look_up_missed_it(fresh().await).await;
    withdrawing_a_node_takes_its_connections_with_it(fresh().await).await;
    what_is_published_reaches_those_who_listen_now(fresh().await).await;
    a_slow_listener_loses_the_oldest(fresh().await).await;
    concurrent_sessions_all_end_up_where_they_should(fresh().await).await;
    concurrent_nodes_never_share_a_slot(fresh().await).await;
    the_time_of_a_server_is_told(fresh().await).await;
}

fn phone(number: u64) -> Principal {
    Phone::from_digits(966_500_000_000 + number).unwrap().into()
}

fn node(slot: u32, incarnation: u64) -> Node {
    Node { slot, incarnation, address: format!("10.0.0.{slot}:8080") }
}

fn connection(slot: u32, incarnation: u64, session: u64) -> Connection {
    Connection { slot, incarnation, session }
}

/// When the node was entered, as an announcement says; `None` where it has lost its slot.
async fn announced(presence: &dyn Presence, node: &Node) -> Option<i64> {
    match presence.announce(node).await.unwrap() {
        Announced::Lost => None,
        Announced::Live { since } => Some(since),
    }
}

async fn slots_of(presence: &dyn Presence, principal: &Principal) -> Vec<u32> {
    let mut slots = presence.slots_of(std::slice::from_ref(principal)).await.unwrap().remove(0).to_vec();
    slots.sort_unstable();
    slots
}

/// An engine in this process has no other clock to tell of. The servers of the tests are on this machine.
async fn the_time_of_a_server_is_told(subject: Subject) {
    let before = Clock::system().now();
    if let Some(time) = subject.presence.time().await.unwrap() {
        assert!(time.millis_since(before).abs() < 60_000, "{time} is not {before}");
    }
}

async fn free_slots_are_leased_until_none_is_left(subject: Subject) {
    let presence = &*subject.presence;
    let mut slots = vec![];
    for incarnation in 1..=3 {
        slots.push(presence.lease_slot(incarnation, None, 3, "here").await.unwrap());
    }
    slots.sort_unstable();
    assert_eq!(slots, [0, 1, 2]);
    assert!(matches!(presence.lease_slot(4, None, 3, "here").await, Err(PresenceError::NoSlot { slots: 3 })));
    assert!(matches!(presence.lease_slot(4, Some(3), 3, "here").await, Err(PresenceError::NoSlot { slots: 3 })));
    let nodes = presence.nodes().await.unwrap();
    assert_eq!(nodes.iter().map(|node| node.slot).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(nodes[0].address, "here");
}

async fn a_slot_is_free_again_when_its_node_lapses_or_withdraws(subject: Subject) {
    let presence = &*subject.presence;
    assert_eq!(presence.lease_slot(1, None, 2, "").await.unwrap(), 0);
    assert_eq!(presence.lease_slot(2, None, 2, "").await.unwrap(), 1);
    (subject.pass)(NODE_TTL.saturating_sub(Duration::from_secs(1)));
    assert!(announced(presence, &node(1, 2)).await.is_some());
    (subject.pass)(Duration::from_secs(2));
    assert_eq!(presence.nodes().await.unwrap(), [node(1, 2)]);
    assert_eq!(presence.lease_slot(3, None, 2, "").await.unwrap(), 0);
    assert!(announced(presence, &node(0, 1)).await.is_none(), "the slot has another owner by now");
    presence.withdraw(&node(1, 2)).await.unwrap();
    assert_eq!(presence.lease_slot(4, None, 2, "").await.unwrap(), 1);
    presence.withdraw(&node(1, 2)).await.unwrap();
    assert!(announced(presence, &node(1, 4)).await.is_some(), "a late withdrawal of an earlier owner changes nothing");
}

async fn a_wanted_slot_is_taken_from_whoever_has_it(subject: Subject) {
    let presence = &*subject.presence;
    assert_eq!(presence.lease_slot(1, Some(1), 2, "").await.unwrap(), 1);
    assert_eq!(presence.lease_slot(2, Some(1), 2, "").await.unwrap(), 1);
    assert!(announced(presence, &node(1, 1)).await.is_none());
    assert!(announced(presence, &node(1, 2)).await.is_some());
}

async fn a_principal_is_online_where_it_has_sessions(subject: Subject) {
    let presence = &*subject.presence;
    presence.lease_slot(1, Some(0), 2, "").await.unwrap();
    presence.lease_slot(2, Some(1), 2, "").await.unwrap();
    let acme: Principal = "acme".parse().unwrap();
    presence.connect(&phone(1), connection(0, 1, 1)).await.unwrap();
    presence.connect(&phone(2), connection(1, 2, 1)).await.unwrap();
    presence.connect(&acme, connection(1, 2, 2)).await.unwrap();
    let slots = presence.slots_of(&[phone(2), phone(3), acme, phone(1), phone(2)]).await.unwrap();
    let expected: [&[u32]; 5] = [&[1], &[], &[1], &[0], &[1]];
    assert_eq!(slots.iter().map(Slots::as_slice).collect::<Vec<_>>(), expected);
    presence.disconnect(&phone(1), connection(0, 1, 1)).await.unwrap();
    assert!(slots_of(presence, &phone(1)).await.is_empty());
}

async fn several_sessions_of_one_principal_are_counted_apart(subject: Subject) {
    let presence = &*subject.presence;
    presence.lease_slot(1, Some(0), 2, "").await.unwrap();
    presence.lease_slot(2, Some(1), 2, "").await.unwrap();
    let sessions = [connection(0, 1, 1), connection(0, 1, 2), connection(1, 2, 1)];
    for session in sessions {
        presence.connect(&phone(1), session).await.unwrap();
        presence.connect(&phone(1), session).await.unwrap();
    }
    assert_eq!(presence.connections(&phone(1)).await.unwrap().len(), 3, "connecting twice is connecting once");
    assert_eq!(slots_of(presence, &phone(1)).await, [0, 1]);
    presence.disconnect(&phone(1), sessions[0]).await.unwrap();
    assert_eq!(slots_of(presence, &phone(1)).await, [0, 1]);
    presence.disconnect(&phone(1), sessions[1]).await.unwrap();
    assert_eq!(slots_of(presence, &phone(1)).await, [1]);
    assert_eq!(presence.connections(&phone(1)).await.unwrap(), [sessions[2]]);
}

/// Lets `time` pass while the nodes stay alive.
async fn pass_alive(subject: &Subject, nodes: &[Node], time: Duration) {
    let step = NODE_TTL / 2;
    let mut left = time;
    while !left.is_zero() {
        (subject.pass)(left.min(step));
        left = left.saturating_sub(step);
        for node in nodes {
            assert!(announced(&*subject.presence, node).await.is_some());
        }
    }
}

async fn a_connection_lapses_unless_it_is_refreshed(subject: Subject) {
    let presence = &*subject.presence;
    presence.lease_slot(1, Some(0), 1, "").await.unwrap();
    presence.connect(&phone(1), connection(0, 1, 1)).await.unwrap();
    presence.connect(&phone(2), connection(0, 1, 2)).await.unwrap();
    pass_alive(&subject, &[node(0, 1)], CONNECTION_TTL.saturating_sub(Duration::from_secs(1))).await;
    assert_eq!(presence.refresh(&[(phone(1), connection(0, 1, 1))]).await.unwrap(), [true]);
    pass_alive(&subject, &[node(0, 1)], Duration::from_secs(2)).await;
    assert_eq!(slots_of(presence, &phone(1)).await, [0]);
    assert!(slots_of(presence, &phone(2)).await.is_empty());
    assert!(presence.connections(&phone(2)).await.unwrap().is_empty());
}

async fn a_refresh_enters_again_what_was_gone(subject: Subject) {
    let presence = &*subject.presence;
    presence.lease_slot(1, Some(0), 1, "").await.unwrap();
    presence.connect(&phone(1), connection(0, 1, 1)).await.unwrap();
    pass_alive(&subject, &[node(0, 1)], CONNECTION_TTL + Duration::from_secs(1)).await;
    let sessions = [(phone(1), connection(0, 1, 1)), (phone(2), connection(0, 1, 2))];
    assert_eq!(presence.refresh(&sessions).await.unwrap(), [false, false]);
    assert_eq!(presence.refresh(&sessions).await.unwrap(), [true, true]);
    assert_eq!(slots_of(presence, &phone(2)).await, [0]);
}

async fn connections_of_a_node_that_lapsed_are_hidden(subject: Subject) {
    let presence = &*subject.presence;
    presence.lease_slot(1, Some(0), 1, "").await.unwrap();
    presence.connect(&phone(1), connection(0, 1, 1)).await.unwrap();
    (subject.pass)(NODE_TTL + Duration::from_secs(1));
    assert!(slots_of(presence, &phone(1)).await.is_empty());
    assert!(presence.connections(&phone(1)).await.unwrap().is_empty());
    assert!(announced(presence, &node(0, 1)).await.is_some(), "nobody took the slot: it was only late");
    assert_eq!(slots_of(presence, &phone(1)).await, [0]);
}

async fn connections_of_an_earlier_life_are_hidden(subject: Subject) {
    let presence = &*subject.presence;
    presence.lease_slot(1, Some(0), 1, "").await.unwrap();
    presence.connect(&phone(1), connection(0, 1, 1)).await.unwrap();
    presence.lease_slot(2, Some(0), 1, "").await.unwrap();
    assert!(slots_of(presence, &phone(1)).await.is_empty());
}

async fn a_node_learns_whether_a_look_up_missed_it(subject: Subject) {
    let presence = &*subject.presence;
    let late = NODE_TTL + Duration::from_secs(5);
    presence.lease_slot(1, Some(0), 2, "").await.unwrap();
    presence.connect(&phone(1), connection(0, 1, 1)).await.unwrap();
    let since = announced(presence, &node(0, 1)).await.unwrap();
    (subject.pass)(NODE_TTL / 2);
    assert_eq!(slots_of(presence, &phone(1)).await, [0]);
    assert_eq!(announced(presence, &node(0, 1)).await, Some(since));

    (subject.pass)(late);
    assert!(presence.nodes().await.unwrap().is_empty());
    assert!(presence.connections(&phone(1)).await.unwrap().is_empty());
    presence.ping().await.unwrap();
    assert!(presence.slots_of_unmarked(&[phone(1)]).await.unwrap()[0].is_empty());
    assert_eq!(announced(presence, &node(0, 1)).await, Some(since), "it had lapsed, and nobody looked");

    (subject.pass)(late);
    assert!(slots_of(presence, &phone(2)).await.is_empty());
    let again = announced(presence, &node(0, 1)).await.unwrap();
    assert_ne!(again, since, "somebody looked while it had lapsed");
    assert_eq!(announced(presence, &node(0, 1)).await, Some(again));

    presence.withdraw(&node(0, 1)).await.unwrap();
    (subject.pass)(Duration::from_secs(1));
    assert_ne!(announced(presence, &node(0, 1)).await, Some(again), "its entry was gone");
    (subject.pass)(Duration::from_secs(1));
    presence.lease_slot(2, Some(0), 2, "").await.unwrap();
    assert_eq!(announced(presence, &node(0, 1)).await, None);
    (subject.pass)(late);
    assert_ne!(announced(presence, &node(0, 1)).await, Some(again), "another had its slot in between");
}

async fn withdrawing_a_node_takes_its_connections_with_it(subject: Subject) {
    let presence = &*subject.presence;
    presence.lease_slot(1, Some(0), 2, "").await.unwrap();
    presence.lease_slot(2, Some(1), 2, "").await.unwrap();
    presence.connect(&phone(1), connection(0, 1, 1)).await.unwrap();
    presence.connect(&phone(1), connection(1, 2, 1)).await.unwrap();
    presence.withdraw(&node(0, 1)).await.unwrap();
    assert_eq!(presence.connections(&phone(1)).await.unwrap(), [connection(1, 2, 1)]);
    assert_eq!(presence.nodes().await.unwrap().len(), 1);
}

async fn what_is_published_reaches_those_who_listen_now(subject: Subject) {
    let presence = &*subject.presence;
    presence.publish("room", Bytes::from_static(b"nobody hears this")).await.unwrap();
    let mut first = presence.listen("room").await.unwrap();
    let mut second = presence.listen("room").await.unwrap();
    let mut other = presence.listen("elsewhere").await.unwrap();
    presence.publish("room", Bytes::from_static(b"typing")).await.unwrap();
    assert_eq!(first.recv().await.unwrap(), "typing");
    assert_eq!(second.recv().await.unwrap(), "typing");
    assert_eq!(other.try_recv(), Err(TryRecvError::Empty));
    presence.ping().await.unwrap();
}

async fn a_slow_listener_loses_the_oldest(subject: Subject) {
    let presence = &*subject.presence;
    let mut slow = presence.listen("room").await.unwrap();
    for number in 0_u32..1_100 {
        presence.publish("room", Bytes::copy_from_slice(&number.to_be_bytes())).await.unwrap();
    }
    // What was published last may arrive while we look: then one more is lost.
    let mut lost = 0;
    let oldest = loop {
        match slow.recv().await {
            Err(RecvError::Lagged(more)) => lost += more,
            payload => break payload.unwrap(),
        }
    };
    assert!(lost > 0, "a listener has room for 1,024");
    assert_eq!(oldest, Bytes::copy_from_slice(&(lost as u32).to_be_bytes()));
}

async fn concurrent_sessions_all_end_up_where_they_should(subject: Subject) {
    let presence = subject.presence.clone();
    presence.lease_slot(1, Some(0), 1, "").await.unwrap();
    let tasks: Vec<_> = (0..8_u64)
        .map(|task| {
            let presence = presence.clone();
            tokio::spawn(async move {
                for number in 0..50 {
                    let session = connection(0, 1, task * 1_000 + number);
                    presence.connect(&phone(number), session).await.unwrap();
                    presence.slots_of(&[phone(number), phone(number + 1)]).await.unwrap();
                    if task % 2 == 0 {
                        presence.disconnect(&phone(number), session).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for number in 0..50 {
        assert_eq!(presence.connections(&phone(number)).await.unwrap().len(), 4);
    }
}

async fn concurrent_nodes_never_share_a_slot(subject: Subject) {
    let tasks: Vec<_> = (1..=16_u64)
        .map(|incarnation| {
            let presence = subject.presence.clone();
            tokio::spawn(async move { presence.lease_slot(incarnation, None, 16, "").await.unwrap() })
        })
        .collect();
    let mut slots = vec![];
    for task in tasks {
        slots.push(task.await.unwrap());
    }
    slots.sort_unstable();
    assert_eq!(slots, (0..16).collect::<Vec<_>>());
}
