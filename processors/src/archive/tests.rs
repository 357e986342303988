#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use eshaar_model::{BusinessId, Lane, MessageId, MessageType, Pair, Status};
use eshaar_presence::cache::{Fill, Lookup};
use eshaar_schemas::{Delivery, Hint, MessageHint};
use eshaar_service::TraceContext;
use eshaar_store::{MessageStore, ReadFrom, SentPage, SentQuery, StoredMessage};
use eshaar_topics::NewRecord;
use eshaar_topics::flow::{self, Origin};

use super::*;
use crate::testing::{Engines, START, at, message, received};

fn archive(engines: &Engines) -> Archive {
    let ports = Ports {
        log: Arc::new(engines.log.clone()),
        store: engines.store.clone(),
        presence: Arc::clone(&engines.presence) as _,
        cache: Arc::clone(&engines.cache) as _,
        cancelled: Arc::clone(&engines.cancelled),
    };
    Archive::new(ports, engines.codecs.clone(), engines.clock.clone(), Options::default())
}

/// Of what was said in records that are stamped earlier nothing is known.
fn unknown_before(number: u32, known_from: Timestamp) -> Partition {
    Partition::new(number, &Options::default(), known_from)
}

/// Of a partition that was another's until now.
fn nothing_known() -> Partition {
    unknown_before(4, START.plus_millis(Options::default().window_ms as i64))
}

const PHONE: &str = "+966500000001";

/// What one side says to the other in a conversation.
fn said(conversation: ConversationId, from: Side) -> Message {
    let (sender, recipient) = match from {
        Side::Business => ("acme-bank", PHONE),
        Side::Phone => (PHONE, "acme-bank"),
    };
    Message {
        r#type: MessageType::Chat,
        conversation_id: Some(conversation.to_string()),
        sender: sender.to_owned(),
        recipient: recipient.to_owned(),
        ..message(1)
    }
}

fn pair() -> Pair {
    Pair { business: "acme-bank".parse().unwrap(), phone: PHONE.parse().unwrap() }
}

/// Whom each record is told to, and what.
fn told(outcomes: Vec<Outcome>, codecs: &Codecs) -> Vec<Vec<(String, MessageHint)>> {
    let of = |record: NewRecord| {
        let delivery: Delivery = codecs.decode(&record.value).unwrap();
        let Hint::Message(hint) = delivery.hint else { panic!("not a message") };
        assert_eq!((record.topic, record.partition), (Topic::Deliveries, Some(3)));
        (delivery.principal, hint)
    };
    let each = outcomes.into_iter().map(|outcome| match outcome {
        Outcome::Forward(records) => records.into_iter().map(of).collect(),
        Outcome::Done => Vec::new(),
        other => panic!("{other:?}"),
    });
    each.collect()
}

#[tokio::test]
async fn one_that_its_sender_cancelled_before_it_was_here_gets_the_status_once() {
    let engines = Engines::open().await;
    let (stage, mut partition) = (archive(&engines), nothing_known());
    let (cancelled, named_by_another) = (message(1), message(2));
    engines.cancelled.enter(&cancelled.sender, cancelled.id);
    engines.cancelled.enter("mallory", named_by_another.id);
    let batch = [&cancelled, &named_by_another]
        .into_iter()
        .zip(0..)
        .map(|(message, offset)| received(message, Lane::Normal, &engines.codecs, (4, offset)))
        .collect::<Vec<_>>();
    let mut outcomes = stage.handle(&mut partition, &batch).await;
    assert!(matches!(outcomes[1], Outcome::Done), "{outcomes:?}");
    let Outcome::Forward(mut statuses) = outcomes.swap_remove(0) else { panic!("no status") };
    let status = statuses.pop().unwrap();
    assert_eq!((status.topic, &status.key[..]), (Topic::MessageStatus, cancelled.recipient.as_bytes()));
    let change: StatusChanged = engines.codecs.decode(&status.value).unwrap();
    let expected = (cancelled.id, Status::Cancelled, &cancelled.recipient, &cancelled.sender);
    assert_eq!((change.id, change.status, &change.recipient, &change.sender), expected);

    let status = at(status, Topic::MessageStatus, (4, 0));
    assert!(matches!(stage.handle(&mut partition, &[status]).await[..], [Outcome::Done]));
    let stored = engines.store.messages.get(cancelled.id).await.unwrap().unwrap();
    assert_eq!(stored.steps.current(), Some(Status::Cancelled));
    let again = stage.handle(&mut partition, &batch).await;
    assert!(again.iter().all(|outcome| matches!(outcome, Outcome::Done)), "{again:?}");
}

/// Keeps messages, and does not always say what it has.
struct Asked {
    store: Arc<dyn MessageStore>,
    times: AtomicUsize,
    /// Which times it does not say.
    fails: Range<usize>,
}

impl Asked {
    fn of(engines: &mut Engines, fails: Range<usize>) -> Arc<Self> {
        let asked = Arc::new(Self { store: Arc::clone(&engines.store.messages), times: AtomicUsize::new(0), fails });
        engines.store.messages = Arc::clone(&asked) as _;
        asked
    }

    fn times(&self) -> usize {
        self.times.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl MessageStore for Asked {
    async fn put(&self, rows: Vec<MessageRow>) -> Result<(), StoreError> {
        self.store.put(rows).await
    }

    async fn reach(&self, steps: Vec<Step>) -> Result<(), StoreError> {
        self.store.reach(steps).await
    }

    async fn set_retries(&self, id: MessageId, count: u32) -> Result<(), StoreError> {
        self.store.set_retries(id, count).await
    }

    async fn retries(&self, id: MessageId) -> Result<u32, StoreError> {
        self.store.retries(id).await
    }

    async fn get(&self, id: MessageId) -> Result<Option<StoredMessage>, StoreError> {
        self.store.get(id).await
    }

    async fn get_many(&self, ids: &[MessageId]) -> Result<Vec<Option<StoredMessage>>, StoreError> {
        if self.fails.contains(&self.times.fetch_add(1, Ordering::Relaxed)) {
            return Err(StoreError::Overloaded { waiting: 1 });
        }
        self.store.get_many(ids).await
    }

    async fn sent_by(&self, business: &BusinessId, query: SentQuery, now: Timestamp) -> Result<SentPage, StoreError> {
        self.store.sent_by(business, query, now).await
    }
}

#[tokio::test]
async fn what_is_said_stands_in_its_conversation_where_it_stands_first_in_the_log() {
    let all_known = |options: &Options| Partition::new(4, options, Timestamp::from_millis(i64::MIN));
    let one_id = Options { window_ids: 1, ..Options::default() };
    for (mut of, asks) in [(nothing_known(), true), (all_known(&Options::default()), false), (all_known(&one_id), true)]
    {
        let mut engines = Engines::open().await;
        let store = Asked::of(&mut engines, 0..0);
        let archive = archive(&engines);
        let conversation = engines.store.conversations.start(&pair()).await.unwrap().conversation.id;
        let (asked, answered) = (said(conversation, Side::Phone), said(conversation, Side::Business));
        let record = |message: &Message, offset| received(message, Lane::Normal, &engines.codecs, (4, offset));
        let first = [record(&asked, 7), record(&answered, 8), record(&asked, 9)];
        // A replay, a repeat of its own, and a replay of all.
        for batch in [&first[..2], &first[..], &first[2..], &[record(&answered, 12)][..], &first[..]] {
            let outcomes = archive.handle(&mut of, batch).await;
            assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done | Outcome::Forward(_))));
        }
        let page = engines.store.conversations.history(conversation, ReadFrom::Newest, 10).await.unwrap();
        let rows: Vec<_> = page.rows.iter().map(|row| (row.id, row.from, row.position.offset)).collect();
        assert_eq!(rows, [(asked.id, Side::Phone, 7), (answered.id, Side::Business, 8)]);
        let known = engines.store.conversations.get(conversation).await.unwrap().unwrap();
        assert_eq!(known.last.unwrap().id, answered.id);
        assert_eq!(store.times() > 0, asks);
    }
}

#[tokio::test]
async fn whoever_takes_a_partition_over_finds_repeats_of_what_another_has_written_though_it_asks_more_than_once() {
    let mut engines = Engines::open().await;
    let store = Asked::of(&mut engines, 1..4);
    let archive = archive(&engines);
    let conversation = engines.store.conversations.start(&pair()).await.unwrap().conversation.id;
    let message = said(conversation, Side::Phone);
    for (next, offset) in [(7, 7), (8, 9)] {
        let mut of = archive.open(4, &[(Topic::MessagesAccepted, next)]).await.unwrap();
        let batch = [received(&message, Lane::Normal, &engines.codecs, (4, offset))];
        while let [Outcome::Pause { .. }] = archive.handle(&mut of, &batch).await[..] {}
    }
    assert_eq!(store.times(), 5);
    let page = engines.store.conversations.history(conversation, ReadFrom::Newest, 10).await.unwrap();
    assert_eq!(page.rows.iter().map(|row| row.position.offset).collect::<Vec<_>>(), [7]);
}

#[tokio::test]
async fn a_repeat_that_says_so_is_asked_for_though_its_partition_has_never_seen_it() {
    let engines = Engines::open().await;
    let archive = archive(&engines);
    let beginning = Timestamp::from_millis(i64::MIN);
    let [closed, newer] = [START, START.plus_millis(1)].map(ConversationId::new);
    let first = said(closed, Side::Phone);
    let again = Message { conversation_id: Some(newer.to_string()), ..first.clone() };
    let first = received(&first, Lane::Normal, &engines.codecs, (2, 3));
    let again = received(&again, Lane::Normal, &engines.codecs, (4, 9));
    let again = Received { headers: again.headers.with(headers::REPEAT, b"1"), ..again };
    archive.handle(&mut unknown_before(2, beginning), &[first]).await;
    archive.handle(&mut unknown_before(4, beginning), &[again]).await;
    let stands = async |of: ConversationId| engines.store.conversations.get(of).await.unwrap().is_some();
    assert_eq!((stands(closed).await, stands(newer).await), (true, false));
}

#[tokio::test]
async fn agents_are_told_of_everything_and_a_phone_of_what_it_said_each_with_what_stands_before() {
    let engines = Engines::open().await;
    engines.connect("acme-bank").await;
    engines.connect(PHONE).await;
    let (archive, mut previous) = (archive(&engines), nothing_known());
    let conversation = engines.store.conversations.start(&pair()).await.unwrap().conversation.id;
    let record = |from, offset| received(&said(conversation, from), Lane::Normal, &engines.codecs, (4, offset));
    let batch = [record(Side::Phone, 7), record(Side::Business, 9)];
    let hints = told(archive.handle(&mut previous, &batch).await, &engines.codecs);
    let whom = |hints: &[(String, MessageHint)]| hints.iter().map(|(who, _)| who.clone()).collect::<Vec<_>>();
    assert_eq!((whom(&hints[0]), whom(&hints[1])), (vec!["acme-bank".into(), PHONE.into()], vec!["acme-bank".into()]));
    let place = |hint: &MessageHint| (hint.in_conversation, hint.epoch, hint.offset, hint.prev);
    assert_eq!((place(&hints[0][0].1), place(&hints[1][0].1)), ((true, 1, 7, Some(-1)), (true, 1, 9, Some(7))));
    assert_eq!(hints[1][0].1.message, batch[1].value);

    // Another owner of the partition looks it up.
    let mut anew = nothing_known();
    let hints = told(archive.handle(&mut anew, &[record(Side::Phone, 12)]).await, &engines.codecs);
    assert_eq!(place(&hints[0][0].1), (true, 1, 12, Some(9)));
}

/// Has a value in every place; which of them held one already.
async fn fill(engines: &Engines, keys: &[Key]) -> Vec<bool> {
    let mut held = Vec::new();
    for (key, lookup) in keys.iter().zip(engines.cache.look_up(keys).await.unwrap()) {
        held.push(matches!(lookup, Lookup::Hit(_)));
        if let Lookup::Miss(lease) = lookup {
            engines.cache.fill(vec![Fill { key: key.clone(), lease, value: Bytes::new() }]).await.unwrap();
        }
    }
    held
}

#[tokio::test]
async fn what_changes_is_said_to_the_cache_and_whoever_takes_over_says_that_anything_may_have() {
    let engines = Engines::open().await;
    let (archive, mut previous) = (archive(&engines), nothing_known());
    let conversation = engines.store.conversations.start(&pair()).await.unwrap().conversation.id;
    let mut keys: Vec<Key> = Key::of_message(conversation, &pair(), Side::Business).collect();
    keys.push(Key::Unread(conversation, Side::Phone));
    let but = |changed: &[Key]| keys.iter().map(|key| !changed.contains(key)).collect::<Vec<_>>();
    let (newest, unread) = (Key::Newest(conversation), Key::Unread(conversation, Side::Business));
    assert_eq!(fill(&engines, &keys).await, [false; 7]);
    let asked = said(conversation, Side::Phone);
    archive.handle(&mut previous, &[received(&asked, Lane::Normal, &engines.codecs, (4, 7))]).await;
    assert_eq!(fill(&engines, &keys).await, but(&keys[..6]), "what a phone said it has not unread itself");

    for (step, changed) in [(Status::Delivered, vec![newest.clone()]), (Status::Read, vec![newest, unread])] {
        let reached = status(&asked, step, &engines.codecs);
        let reached = Received { key: conversation.to_string().into(), ..reached };
        archive.handle(&mut previous, &[reached]).await;
        assert_eq!(fill(&engines, &keys).await, but(&changed), "{step}");
    }
    archive.handle(&mut previous, &[received(&message(1), Lane::High, &engines.codecs, (4, 8))]).await;
    assert_eq!(fill(&engines, &keys).await, [true; 7], "a one-way message is of no conversation");
    archive.open(4, &[]).await.unwrap();
    assert_eq!(fill(&engines, &keys).await, [false; 7], "the partition was another's");
}

#[tokio::test]
async fn what_two_businesses_say_to_each_other_is_no_conversation() {
    let engines = Engines::open().await;
    let odd = Message { sender: "acme-bank".into(), ..said(ConversationId::new(START), Side::Phone) };
    let record = received(&odd, Lane::Normal, &engines.codecs, (0, 0));
    let outcomes = archive(&engines).handle(&mut nothing_known(), &[record]).await;
    assert!(matches!(outcomes[0], Outcome::Dead { code: "invalid", .. }));
    assert_eq!(engines.store.messages.get(odd.id).await.unwrap(), None);
}

fn status(message: &Message, status: Status, codecs: &Codecs) -> Received {
    let change = StatusChanged {
        id: message.id,
        status,
        at: START.as_millis() + 5,
        sender: message.sender.clone(),
        recipient: message.recipient.clone(),
        reason: None,
    };
    let new = flow::status(&change, Bytes::from_static(b"key"), codecs, Origin::default()).unwrap();
    at(new, Topic::MessageStatus, (1, 0))
}

#[tokio::test]
async fn a_message_and_its_steps_are_in_the_history_however_often_they_are_read() {
    let engines = Engines::open().await;
    let (archive, message) = (archive(&engines), message(1));
    let accepted = received(&message, Lane::High, &engines.codecs, (4, 7));
    let again = received(&message, Lane::High, &engines.codecs, (4, 9));
    let delivered = status(&message, Status::Delivered, &engines.codecs);
    // A step may come first.
    for batch in [vec![delivered.clone()], vec![accepted.clone(), again], vec![accepted.clone()], vec![delivered]] {
        let outcomes = archive.handle(&mut nothing_known(), &batch).await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done)));
    }
    let stored = engines.store.messages.get(message.id).await.unwrap().unwrap();
    assert_eq!((stored.row.accepted, &stored.row.value), ((4, Some(7)), &accepted.value));
    assert_eq!(stored.steps.at(Status::Sent), Some(START));
    assert_eq!(stored.steps.at(Status::Delivered), Some(START.plus_millis(5)));
}

#[tokio::test]
async fn what_waits_for_its_time_is_scheduled_until_it_is_accepted_whichever_is_read_first() {
    let engines = Engines::open().await;
    let archive = archive(&engines);
    for accepted_first in [false, true] {
        let due = Message { created_at: START.as_millis() + 60_000, ..message(1) };
        let scheduled = flow::accepted(&due, Lane::High, &engines.codecs, &TraceContext::new()).unwrap();
        let scheduled = at(flow::scheduled(scheduled, START), Topic::MessagesScheduled, (4, 7));
        let sent = Message { created_at: START.as_millis() + 60_003, ..due.clone() };
        let sent = received(&sent, Lane::High, &engines.codecs, (4, 9));
        let again = received(&due, Lane::High, &engines.codecs, (4, 10));
        if !accepted_first {
            assert!(matches!(
                archive.handle(&mut nothing_known(), std::slice::from_ref(&scheduled)).await[..],
                [Outcome::Done]
            ));
            let stored = engines.store.messages.get(due.id).await.unwrap().unwrap();
            assert_eq!((stored.row.accepted, stored.steps.current()), ((4, None), None));
            assert_eq!(stored.row.created_at, START.plus_millis(60_000));
        }
        for record in [sent, again, scheduled] {
            assert!(matches!(archive.handle(&mut nothing_known(), &[record]).await[..], [Outcome::Done]));
        }
        let stored = engines.store.messages.get(due.id).await.unwrap().unwrap();
        assert_eq!((stored.row.accepted, stored.steps.current()), ((4, Some(9)), Some(Status::Sent)));
        assert_eq!(stored.steps.at(Status::Sent), Some(START.plus_millis(60_003)));
    }
}

#[tokio::test]
async fn what_cannot_be_decoded_is_dead_and_the_rest_of_its_batch_is_kept() {
    let engines = Engines::open().await;
    let (archive, message) = (archive(&engines), message(1));
    let good = received(&message, Lane::High, &engines.codecs, (0, 1));
    let frame = Received { value: Bytes::from_static(b"nonsense"), ..good.clone() };
    let torn = Received { value: good.value.slice(..9), ..good.clone() };
    let outcomes = archive.handle(&mut nothing_known(), &[frame, torn, good]).await;
    assert!(matches!(outcomes[0], Outcome::Dead { code: "undecodable", .. }));
    assert!(matches!(outcomes[1], Outcome::Dead { code: "undecodable", .. }));
    assert!(matches!(outcomes[2], Outcome::Done));
    assert!(engines.store.messages.get(message.id).await.unwrap().is_some());
}

#[tokio::test]
async fn a_message_whose_fields_contradict_each_other_is_dead() {
    let engines = Engines::open().await;
    let conversation_id = Some(message(1).id.to_string());
    let odd = Message { conversation_id, ..message(1) };
    let record = received(&odd, Lane::High, &engines.codecs, (0, 0));
    let outcomes = archive(&engines).handle(&mut nothing_known(), &[record]).await;
    assert!(matches!(outcomes[0], Outcome::Dead { code: "invalid", .. }));
}

#[tokio::test]
async fn an_unknown_schema_waits_for_the_registry() {
    let engines = Engines::open().await;
    let record = received(&message(1), Lane::High, &engines.codecs, (0, 0));
    let value = Bytes::from_static(&[0, 0, 0, 9, 9, 1, 2, 3]);
    let outcomes = archive(&engines).handle(&mut nothing_known(), &[Received { value, ..record }]).await;
    assert!(matches!(outcomes[0], Outcome::Pause { until, .. } if until == START.plus_millis(200)));
}

#[tokio::test]
async fn a_store_that_does_not_answer_holds_the_batch_and_kills_nothing() {
    let engines = Engines::open().await;
    engines.store.engine.close().await.unwrap();
    let record = received(&message(1), Lane::High, &engines.codecs, (0, 0));
    let outcomes = archive(&engines).handle(&mut nothing_known(), &[record.clone(), record]).await;
    assert!(matches!(outcomes[0], Outcome::Pause { .. }));
}
