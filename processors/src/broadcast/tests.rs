//! Broadcasts on the embedded engines, cut off and taken back in between.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eshaar_model::{BroadcastId, MessageId, Phone, Priority, RecipientsId};
use eshaar_presence::limits::{self, Limiter};
use eshaar_schemas::{Broadcast, Message};
use eshaar_service::TraceContext;
use eshaar_store::audiences::PAGE_PHONES;
use eshaar_store::broadcasts::{Ended, Progress, TASKS};
use eshaar_topics::{Log as _, Outcome, Record, Stage as _, Topic, flow};
use tokio_util::sync::CancellationToken;

use super::{OpenBroadcasts, Options, expand};
use crate::testing::{Engines, START, at};

/// Makes a list of that many recipients, and a broadcast to them.
async fn broadcast(engines: &Engines, total: u64) -> Broadcast {
    let recipients = RecipientsId::new(START);
    let phones: Vec<Phone> = (0..total).map(|number| Phone::from_digits(966_500_000_000 + number).unwrap()).collect();
    for (page, phones) in phones.chunks(PAGE_PHONES).enumerate() {
        engines.store.audiences.put_page(recipients, page as u32, phones.to_vec()).await.unwrap();
    }
    Broadcast {
        id: BroadcastId::new(START),
        sender: "acme-bank".to_owned(),
        audience: None,
        recipients,
        total: total as i64,
        content: "hello".to_owned(),
        priority: Priority::Normal,
        created_at: START.as_millis(),
        expires_at: None,
        reference: None,
        collapse_key: None,
        rate: None,
        correlation_id: "c-1".to_owned(),
        key_id: None,
        key_rate: None,
    }
}

async fn open(engines: &Engines, broadcast: &Broadcast) {
    let record = flow::broadcast(broadcast, &engines.codecs, &TraceContext::new()).unwrap();
    let stage =
        OpenBroadcasts::new(engines.store.clone(), engines.codecs.clone(), engines.clock.clone(), Options::default());
    let outcomes = stage.handle(&mut (), &[at(record, Topic::BroadcastsRequested, (0, 0))]).await;
    assert!(matches!(outcomes[..], [Outcome::Done]), "{outcomes:?}");
}

fn ports(engines: &Engines) -> expand::Ports {
    expand::Ports {
        log: Arc::new(engines.log.clone()),
        store: engines.store.clone(),
        codecs: engines.codecs.clone(),
        depths: Arc::clone(&engines.presence) as _,
        limits: Arc::new(Limiter::local(
            limits::Options { whole: None, ..limits::Options::default() },
            engines.clock.clone(),
        )),
        cancelled: Arc::clone(&engines.cancelled),
        clock: engines.clock.clone(),
    }
}

async fn opened(engines: &Engines) -> Vec<BroadcastId> {
    engines.store.broadcasts.opened(10).await.unwrap().into_iter().map(|open| open.id).collect()
}

async fn progress(engines: &Engines, id: BroadcastId) -> Progress {
    let task = engines.store.tasks.get(TASKS, &id.to_string()).await.unwrap().unwrap();
    Progress::decode(&task.progress).unwrap()
}

/// Sends until `is_there`, then stops in order.
async fn send_until(engines: &Engines, options: Options, id: BroadcastId, is_there: impl Fn(Progress) -> bool) {
    let shutdown = CancellationToken::new();
    let sending = tokio::spawn(expand::run(ports(engines), options, shutdown.clone()));
    tokio::time::timeout(Duration::from_secs(20), async {
        while !is_there(progress(engines, id).await) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
    shutdown.cancel();
    sending.await.unwrap();
}

/// Everything that was accepted.
async fn accepted(engines: &Engines) -> Vec<Record> {
    let mut all = Vec::new();
    for partition in 0..engines.log.partitions(Topic::MessagesAccepted) {
        let end = engines.log.bounds(Topic::MessagesAccepted, partition).await.unwrap().end;
        let mut reader = engines.log.read(Topic::MessagesAccepted, partition, 0).await.unwrap();
        while reader.next_offset() < end {
            reader.ready().await.unwrap();
            all.extend(reader.take(1_000));
        }
    }
    all
}

fn ended(progress: Progress) -> bool {
    progress.ended.is_some()
}

#[tokio::test]
async fn every_recipient_gets_one_message_that_says_which_it_is() {
    let engines = Engines::open().await;
    let broadcast = broadcast(&engines, 2_345).await;
    open(&engines, &broadcast).await;
    assert_eq!(opened(&engines).await, [broadcast.id]);
    send_until(&engines, Options::default(), broadcast.id, ended).await;
    assert_eq!(progress(&engines, broadcast.id).await, Progress { done: 2_345, chunk: None, ended: Some(Ended::Sent) });
    assert_eq!(opened(&engines).await, []);

    let records = accepted(&engines).await;
    let numbers: HashSet<u32> = records
        .iter()
        .map(|record| {
            let envelope = flow::Envelope::read(&record.headers).unwrap();
            let message: Message = engines.codecs.decode(&record.value).unwrap();
            assert_eq!((envelope.broadcast, envelope.id), (Some(broadcast.id), message.id));
            let number = message.id.recipient();
            assert_eq!(message.recipient, format!("+{}", 966_500_000_000 + u64::from(number)));
            number
        })
        .collect();
    assert_eq!((records.len(), numbers.len()), (2_345, 2_345));

    // Its record comes again: it is not opened anew.
    open(&engines, &broadcast).await;
    assert_eq!(opened(&engines).await, []);
}

#[tokio::test]
async fn one_that_is_cut_off_goes_on_and_sends_at_most_the_chunk_in_hand_again_under_the_same_ids() {
    let engines = Engines::open().await;
    let broadcast = broadcast(&engines, 20_000).await;
    open(&engines, &broadcast).await;
    let mut cut = 0;
    while !ended(progress(&engines, broadcast.id).await) {
        let begun = progress(&engines, broadcast.id).await.done;
        let sending = tokio::spawn(expand::run(ports(&engines), Options::default(), CancellationToken::new()));
        tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                let progress = progress(&engines, broadcast.id).await;
                if progress.done > begun + 2_000 || ended(progress) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap();
        // Dead, in the middle of whatever it did; its lease lapses.
        sending.abort();
        let _ = sending.await;
        engines.clock.advance_millis(11_000);
        cut += 1;
    }
    assert!(cut > 1, "it was not cut off");
    let mut by_phone: BTreeMap<Bytes, HashSet<MessageId>> = BTreeMap::new();
    let records = accepted(&engines).await;
    for record in &records {
        let id = flow::Envelope::read(&record.headers).unwrap().id;
        by_phone.entry(record.key.clone()).or_default().insert(id);
    }
    assert_eq!(by_phone.len(), 20_000);
    assert!(by_phone.values().all(|ids| ids.len() == 1), "a recipient was given a second message");
    assert!(records.len() <= 20_000 + cut * PAGE_PHONES);
}

#[tokio::test]
async fn one_that_is_taken_back_goes_no_further() {
    let engines = Engines::open().await;
    let broadcast = Broadcast { rate: Some(4_000), ..broadcast(&engines, 20_000).await };
    open(&engines, &broadcast).await;
    send_until(&engines, Options::default(), broadcast.id, |progress| progress.done >= 2_000).await;
    engines.cancelled.enter(&broadcast.sender, broadcast.id.into());
    send_until(&engines, Options::default(), broadcast.id, ended).await;
    let progress = progress(&engines, broadcast.id).await;
    assert_eq!(progress.ended, Some(Ended::Cancelled));
    assert!((2_000..6_000).contains(&progress.done), "{progress:?}");
    let sent = accepted(&engines).await.len() as u64;
    // The chunk in hand may have gone.
    assert!((progress.done..=progress.done + 1_000).contains(&sent), "{sent} for {progress:?}");
    assert_eq!(opened(&engines).await, []);
}

#[tokio::test]
async fn one_whose_time_passed_or_whose_recipients_are_gone_ends() {
    let engines = Engines::open().await;
    let late = Broadcast { expires_at: Some(START.as_millis()), ..broadcast(&engines, 10).await };
    let gone = Broadcast { recipients: RecipientsId::new(START), ..broadcast(&engines, 10).await };
    for (broadcast, why) in [(late, Ended::Expired), (gone, Ended::Failed)] {
        open(&engines, &broadcast).await;
        send_until(&engines, Options::default(), broadcast.id, ended).await;
        assert_eq!(progress(&engines, broadcast.id).await.ended, Some(why));
    }
    assert_eq!(accepted(&engines).await.len(), 0);
}

/// Opens broadcasts of a business, each to so many recipients.
async fn open_of(
    engines: &Engines,
    business: &str,
    rate: Option<i32>,
    (count, total): (usize, u64),
) -> Vec<BroadcastId> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let broadcast = Broadcast { sender: business.to_owned(), rate, ..broadcast(engines, total).await };
        open(engines, &broadcast).await;
        ids.push(broadcast.id);
    }
    ids
}

#[tokio::test]
async fn slow_broadcasts_of_one_business_hold_up_neither_another_nor_a_quick_one_of_their_own() {
    let engines = Engines::open().await;
    open_of(&engines, "slow-bank", Some(1), (40, 100)).await;
    let quick = open_of(&engines, "acme-bank", None, (1, 2_500)).await[0];
    send_until(&engines, Options::default(), quick, ended).await;
    assert_eq!(progress(&engines, quick).await.ended, Some(Ended::Sent));
}

#[tokio::test]
async fn slow_broadcasts_that_fill_all_that_a_process_holds_make_way_for_another_business() {
    let engines = Engines::open().await;
    open_of(&engines, "slow-bank", Some(1), (6, 100)).await;
    let other = open_of(&engines, "slow-shop", Some(1), (6, 100)).await;
    let quick = open_of(&engines, "acme-bank", None, (1, 2_500)).await[0];
    let options = Options { held: 4, held_per_business: 8, at_once: 1, ..Options::default() };
    send_until(&engines, options, quick, ended).await;
    assert_eq!(progress(&engines, quick).await.ended, Some(Ended::Sent));
    let mut sent = 0;
    for id in other {
        sent += progress(&engines, id).await.done;
    }
    assert!(sent > 0, "the second slow business has its turns too");
}

#[tokio::test]
async fn the_messages_of_a_broadcast_take_from_the_limit_of_its_key() {
    let engines = Engines::open().await;
    let keyed = |rate: &str| (Some("k1".to_owned()), Some(rate.to_owned()));
    let (key_id, key_rate) = keyed("10/min");
    let broadcast = Broadcast { key_id, key_rate, ..broadcast(&engines, 12).await };
    open(&engines, &broadcast).await;
    // The first was taken when it was accepted; a fifth of the rest is left to what is sent singly with the key.
    send_until(&engines, Options::default(), broadcast.id, |progress| progress.done >= 9).await;
    assert_eq!((progress(&engines, broadcast.id).await.done, accepted(&engines).await.len()), (9, 9));
    // In another minute.
    engines.clock.advance_millis(61_000);
    send_until(&engines, Options::default(), broadcast.id, ended).await;
    assert_eq!(progress(&engines, broadcast.id).await.ended, Some(Ended::Sent));
    assert_eq!(accepted(&engines).await.len(), 12);
}
