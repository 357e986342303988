//! Messages: written once, steps in any order, lists newest first.

use bytes::Bytes;
use eshaar_model::{BusinessId, ConversationId, MessageId, MessageType, Principal, Shown, Status, Timestamp};

use super::{Subject, start};
use crate::{MessageRow, SentQuery, Step, StoreError, StoredMessage};

super::checks! {
    /// Every check of the message port.
    a_message_comes_back_as_it_was_written,
    many_come_back_in_the_places_of_their_ids,
    the_same_id_again_changes_nothing,
    of_copies_in_several_partitions_one_stands_whatever_the_order,
    a_step_may_come_before_its_message,
    of_a_step_the_earliest_time_stands,
    the_reason_of_a_failure_is_that_of_the_earliest,
    of_retries_the_highest_count_stands,
    sent_is_the_messages_own_to_say,
    expiry_is_shown_by_the_clock,
    a_scheduled_message_is_sent_once_it_stands_in_the_log,
    a_scheduled_message_ends_without_being_sent,
    a_list_is_newest_first_and_of_one_business,
    a_list_is_filtered_by_type_status_and_phone,
    pages_give_each_message_once_while_new_ones_come,
    a_filter_that_matches_little_ends,
}

/// A message that was accepted `after_ms` after the start.
fn message(subject: &Subject, number: u64, after_ms: i64) -> MessageRow {
    let created_at = start().plus_millis(after_ms);
    MessageRow {
        id: MessageId::new(created_at),
        message_type: MessageType::OneWay,
        conversation: None,
        sender: subject.business("acme").into(),
        recipient: subject.phone(number).into(),
        created_at,
        expires_at: None,
        accepted: (3, Some(number)),
        may_repeat: false,
        value: Bytes::from(format!("message {number}")),
    }
}

fn step(id: MessageId, status: Status, after_ms: i64) -> Step {
    Step { id, status, at: later(after_ms), reason: None }
}

fn later(after_ms: i64) -> Timestamp {
    start().plus_millis(after_ms)
}

fn ids(messages: &[StoredMessage]) -> Vec<MessageId> {
    messages.iter().map(|message| message.row.id).collect()
}

async fn get(subject: &Subject, id: MessageId) -> Result<StoredMessage, StoreError> {
    Ok(subject.store.messages.get(id).await?.unwrap())
}

async fn a_message_comes_back_as_it_was_written(subject: &Subject) -> Result<(), StoreError> {
    let one_way = MessageRow { expires_at: Some(later(9)), ..message(subject, 1, 0) };
    let chat = MessageRow {
        message_type: MessageType::Chat,
        conversation: Some(ConversationId::new(start())),
        sender: subject.phone(2).into(),
        recipient: Principal::Business(subject.business("acme")),
        ..message(subject, 2, 5)
    };
    subject.store.messages.put(vec![one_way.clone(), chat.clone()]).await?;
    for written in [one_way, chat] {
        let read = get(subject, written.id).await?;
        assert_eq!(read.steps.reached().collect::<Vec<_>>(), [(Status::Sent, written.created_at)]);
        assert_eq!((read.row, read.failure_reason), (written, None));
    }
    assert_eq!(subject.store.messages.get(MessageId::new(start())).await?, None);
    Ok(())
}

async fn many_come_back_in_the_places_of_their_ids(subject: &Subject) -> Result<(), StoreError> {
    let rows: Vec<_> = (0..130).map(|number| message(subject, number, number as i64)).collect();
    subject.store.messages.put(rows.clone()).await?;
    let unknown = MessageId::new(start());
    let mut wanted: Vec<_> = rows.iter().rev().map(|row| row.id).collect();
    wanted.insert(70, unknown);
    wanted.push(rows[5].id);
    let found = subject.store.messages.get_many(&wanted).await?;
    let found: Vec<_> = found.iter().map(|found| found.as_ref().map(|stored| stored.row.id)).collect();
    let expected: Vec<_> = wanted.iter().map(|id| (*id != unknown).then_some(*id)).collect();
    assert_eq!(found, expected);
    assert_eq!(subject.store.messages.get_many(&[]).await?, []);
    Ok(())
}

async fn the_same_id_again_changes_nothing(subject: &Subject) -> Result<(), StoreError> {
    let messages = &subject.store.messages;
    let first = message(subject, 1, 0);
    let again = MessageRow { value: Bytes::from_static(b"other"), accepted: (3, Some(7)), ..first.clone() };
    messages.put(vec![first.clone(), again.clone()]).await?;
    messages.put(vec![again]).await?;
    assert_eq!(get(subject, first.id).await?.row, first);
    let page =
        messages.sent_by(&subject.business("acme"), SentQuery { limit: 10, ..SentQuery::default() }, start()).await?;
    assert_eq!((ids(&page.messages), page.next), (vec![first.id], None));
    Ok(())
}

/// The rule of [`CopyRank`](crate::messages::CopyRank): a record that says that it may be a repeat stands last, then the lowest
/// partition stands, then the lowest offset in it; what is scheduled stands before nothing.
async fn of_copies_in_several_partitions_one_stands_whatever_the_order(subject: &Subject) -> Result<(), StoreError> {
    let messages = &subject.store.messages;
    // In the order in which they stand.
    let places =
        [(false, 2, Some(900)), (false, 4, Some(7)), (false, 4, Some(8)), (true, 0, Some(1)), (false, 1, None)];
    let orders = [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3], [3, 4, 1, 2, 0], [1, 3, 0, 2, 4]];
    for first in 0..places.len() {
        for (number, order) in orders.iter().enumerate() {
            let of = message(subject, number as u64, (first * orders.len() + number) as i64);
            let copies: Vec<MessageRow> = (0..places.len())
                .map(|place| {
                    let (may_repeat, partition, offset) = places[place];
                    MessageRow {
                        conversation: Some(ConversationId::new(later(place as i64))),
                        message_type: MessageType::Chat,
                        created_at: later(place as i64),
                        expires_at: Some(later(1_000 + place as i64)),
                        value: Bytes::from(format!("copy {place}")),
                        accepted: (partition, offset),
                        may_repeat,
                        ..of.clone()
                    }
                })
                .collect();
            // One by one, all at once, and again.
            let written: Vec<MessageRow> =
                order.iter().filter(|place| **place >= first).map(|place| copies[*place].clone()).collect();
            for row in &written {
                messages.put(vec![row.clone()]).await?;
            }
            messages.put(written.iter().rev().cloned().collect()).await?;
            let stands = MessageRow { may_repeat: false, ..copies[first].clone() };
            assert_eq!(get(subject, of.id).await?.row, stands, "first {first}, order {order:?}");
            let query = SentQuery { before: None, limit: 1, ..SentQuery::default() };
            let page = messages.sent_by(&subject.business("acme"), query, start()).await?;
            assert_eq!(page.messages[0].row, stands);
        }
    }
    Ok(())
}

async fn a_step_may_come_before_its_message(subject: &Subject) -> Result<(), StoreError> {
    let messages = &subject.store.messages;
    let row = message(subject, 1, 0);
    messages.reach(vec![step(row.id, Status::Delivered, 20)]).await?;
    assert_eq!(messages.get(row.id).await?, None);
    let page =
        messages.sent_by(&subject.business("acme"), SentQuery { limit: 10, ..SentQuery::default() }, later(30)).await?;
    assert!(page.messages.is_empty() && page.next.is_none());
    messages.put(vec![row.clone()]).await?;
    let read = get(subject, row.id).await?;
    assert_eq!((read.steps.at(Status::Sent), read.steps.at(Status::Delivered)), (Some(later(0)), Some(later(20))));
    assert_eq!(read.status(later(30)), Status::Delivered.into());
    Ok(())
}

async fn of_a_step_the_earliest_time_stands(subject: &Subject) -> Result<(), StoreError> {
    let row = message(subject, 1, 0);
    subject.store.messages.put(vec![row.clone()]).await?;
    let steps = vec![step(row.id, Status::Read, 50), step(row.id, Status::Read, 40)];
    subject.store.messages.reach(steps).await?;
    subject.store.messages.reach(vec![step(row.id, Status::Delivered, 30), step(row.id, Status::Read, 60)]).await?;
    let read = get(subject, row.id).await?;
    assert_eq!((read.steps.at(Status::Delivered), read.steps.at(Status::Read)), (Some(later(30)), Some(later(40))));
    assert_eq!(read.status(later(99)), Status::Read.into());
    Ok(())
}

async fn the_reason_of_a_failure_is_that_of_the_earliest(subject: &Subject) -> Result<(), StoreError> {
    let failed = |row: &MessageRow, reason: Option<&str>, after_ms| {
        vec![Step { reason: reason.map(str::to_owned), ..step(row.id, Status::Failed, after_ms) }]
    };
    let (early, together) = (message(subject, 1, 0), message(subject, 2, 0));
    let writes = [
        failed(&early, Some("no_device"), 6),
        failed(&early, Some("expired_token"), 5),
        failed(&early, Some("other"), 7),
        // In the same millisecond: in whichever order they come, the reason that sorts last.
        failed(&together, Some("no_device"), 5),
        failed(&together, Some("other"), 5),
        failed(&together, None, 5),
        failed(&together, Some("expired_token"), 5),
    ];
    for write in writes {
        subject.store.messages.reach(write).await?;
    }
    subject.store.messages.put(vec![early.clone(), together.clone()]).await?;
    for (row, reason) in [(early, "expired_token"), (together, "other")] {
        let read = get(subject, row.id).await?;
        assert_eq!((read.failure_reason.as_deref(), read.status(later(9))), (Some(reason), Status::Failed.into()));
        assert_eq!(read.steps.at(Status::Failed), Some(later(5)));
    }
    Ok(())
}

async fn sent_is_the_messages_own_to_say(subject: &Subject) -> Result<(), StoreError> {
    let row = message(subject, 1, 0);
    subject.store.messages.reach(vec![step(row.id, Status::Sent, 70)]).await?;
    assert_eq!(subject.store.messages.get(row.id).await?, None);
    subject.store.messages.put(vec![row.clone()]).await?;
    assert_eq!(get(subject, row.id).await?.steps.at(Status::Sent), Some(row.created_at));
    Ok(())
}

async fn expiry_is_shown_by_the_clock(subject: &Subject) -> Result<(), StoreError> {
    let (waits, arrived) = (message(subject, 1, 0), message(subject, 2, 1));
    let rows = [&waits, &arrived].map(|row| MessageRow { expires_at: Some(later(1_000)), ..row.clone() });
    subject.store.messages.put(rows.to_vec()).await?;
    subject.store.messages.reach(vec![step(arrived.id, Status::Delivered, 500)]).await?;
    for (now, shown) in [(later(999), Shown::At(Status::Sent)), (later(1_000), Status::Expired.into())] {
        assert_eq!(get(subject, waits.id).await?.status(now), shown);
        assert_eq!(get(subject, arrived.id).await?.status(now), Status::Delivered.into());
        let query = SentQuery { status: Some(shown), limit: 10, ..SentQuery::default() };
        let page = subject.store.messages.sent_by(&subject.business("acme"), query, now).await?;
        assert_eq!(ids(&page.messages), [waits.id]);
    }
    Ok(())
}

async fn a_scheduled_message_is_sent_once_it_stands_in_the_log(subject: &Subject) -> Result<(), StoreError> {
    let messages = &subject.store.messages;
    let acme = subject.business("acme");
    // What archive reads first is not said: the topics have nothing to do with each other.
    for (number, sent_first) in [(1, false), (2, true)] {
        let accepted = message(subject, number, 0);
        let scheduled = MessageRow { created_at: later(500), accepted: (3, None), ..accepted.clone() };
        let sent = MessageRow { created_at: later(505), ..accepted };
        if sent_first {
            messages.put(vec![sent.clone()]).await?;
            messages.put(vec![scheduled.clone()]).await?;
        } else {
            messages.put(vec![scheduled.clone()]).await?;
            messages.put(vec![scheduled.clone()]).await?;
            let read = get(subject, scheduled.id).await?;
            assert_eq!((read.status(later(600)), read.steps.current()), (Shown::Scheduled, None));
            assert_eq!(read.row, scheduled);
            for (status, listed) in [(Shown::Scheduled, vec![scheduled.id]), (Status::Sent.into(), vec![])] {
                let query = SentQuery { status: Some(status), limit: 10, ..SentQuery::default() };
                assert_eq!(ids(&messages.sent_by(&acme, query, later(600)).await?.messages), listed);
            }
            messages.put(vec![sent.clone()]).await?;
        }
        // A scheduler that was stopped in between sends it again, later.
        let again = MessageRow { created_at: later(900), accepted: (3, Some(number + 50)), ..sent.clone() };
        messages.put(vec![again]).await?;
        let read = get(subject, sent.id).await?;
        assert_eq!((read.status(later(999)), read.steps.at(Status::Sent)), (Status::Sent.into(), Some(later(505))));
        assert_eq!(read.row, sent);
    }
    let query = SentQuery { status: Some(Status::Sent.into()), limit: 10, ..SentQuery::default() };
    assert_eq!(messages.sent_by(&acme, query, later(999)).await?.messages.len(), 2);
    Ok(())
}

async fn a_scheduled_message_ends_without_being_sent(subject: &Subject) -> Result<(), StoreError> {
    let messages = &subject.store.messages;
    let row = |number| MessageRow { accepted: (3, None), ..message(subject, number, 0) };
    let (cancelled, expired) = (row(1), MessageRow { expires_at: Some(later(50)), ..row(2) });
    messages.put(vec![cancelled.clone(), expired.clone()]).await?;
    messages.reach(vec![step(cancelled.id, Status::Cancelled, 10)]).await?;
    let ended = get(subject, cancelled.id).await?;
    assert_eq!(ended.steps.reached().collect::<Vec<_>>(), [(Status::Cancelled, later(10))]);
    for (now, shown) in [(later(49), Shown::Scheduled), (later(50), Status::Expired.into())] {
        assert_eq!(get(subject, expired.id).await?.status(now), shown);
        let query = SentQuery { status: Some(shown), limit: 10, ..SentQuery::default() };
        assert_eq!(ids(&messages.sent_by(&subject.business("acme"), query, now).await?.messages), [expired.id]);
    }
    Ok(())
}

async fn a_list_is_newest_first_and_of_one_business(subject: &Subject) -> Result<(), StoreError> {
    let messages = &subject.store.messages;
    let other: BusinessId = subject.business("acme-bank");
    let (first, second) = (message(subject, 1, 0), message(subject, 2, 1));
    let of_other = MessageRow { sender: other.clone().into(), ..message(subject, 1, 2) };
    let from_phone = MessageRow {
        sender: subject.phone(1).into(),
        recipient: subject.business("acme").into(),
        ..message(subject, 1, 3)
    };
    messages.put(vec![second.clone(), of_other.clone(), first.clone(), from_phone]).await?;
    let query = SentQuery { limit: 10, ..SentQuery::default() };
    let page = messages.sent_by(&subject.business("acme"), query.clone(), start()).await?;
    assert_eq!((ids(&page.messages), page.next), (vec![second.id, first.id], None));
    let page = messages.sent_by(&other, query, start()).await?;
    assert_eq!(ids(&page.messages), [of_other.id]);
    Ok(())
}

async fn a_list_is_filtered_by_type_status_and_phone(subject: &Subject) -> Result<(), StoreError> {
    let messages = &subject.store.messages;
    let rows: Vec<_> = (0..4).map(|n| message(subject, n % 2, n as i64)).collect();
    let chat = MessageRow {
        message_type: MessageType::Chat,
        conversation: Some(ConversationId::new(start())),
        ..message(subject, 0, 4)
    };
    messages.put([rows.clone(), vec![chat.clone()]].concat()).await?;
    messages.reach(vec![step(rows[0].id, Status::Read, 9), step(rows[1].id, Status::Delivered, 9)]).await?;
    let query = SentQuery { limit: 10, ..SentQuery::default() };
    let list = async |query| {
        Ok::<_, StoreError>(ids(&messages.sent_by(&subject.business("acme"), query, later(10)).await?.messages))
    };
    let of_type = SentQuery { message_type: Some(MessageType::Chat), ..query.clone() };
    assert_eq!(list(of_type).await?, [chat.id]);
    let at_status = SentQuery { status: Some(Status::Sent.into()), ..query.clone() };
    assert_eq!(list(at_status).await?, [chat.id, rows[3].id, rows[2].id]);
    let to = SentQuery { to: Some(subject.phone(1)), ..query.clone() };
    assert_eq!(list(to.clone()).await?, [rows[3].id, rows[1].id]);
    assert_eq!(list(SentQuery { status: Some(Status::Delivered.into()), ..to }).await?, [rows[1].id]);
    assert!(list(SentQuery { to: Some(subject.phone(9)), ..query }).await?.is_empty());
    Ok(())
}

async fn pages_give_each_message_once_while_new_ones_come(subject: &Subject) -> Result<(), StoreError> {
    let messages = &subject.store.messages;
    let rows: Vec<_> = (0..25).map(|n| message(subject, n % 3, n as i64)).collect();
    messages.put(rows.clone()).await?;
    let wanted: Vec<_> =
        rows.iter().rev().filter(|row| row.recipient == subject.phone(1).into()).map(|row| row.id).collect();
    for limit in [1, 2, 7, 8, 9] {
        let mut query = SentQuery { to: Some(subject.phone(1)), limit, ..SentQuery::default() };
        let mut seen = Vec::new();
        loop {
            let page = messages.sent_by(&subject.business("acme"), query.clone(), start()).await?;
            assert!(page.messages.len() <= limit);
            seen.extend(ids(&page.messages));
            messages.put(vec![message(subject, 2, 1_000)]).await?;
            match page.next {
                Some(next) => query.before = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, wanted, "in pages of {limit}");
    }
    Ok(())
}

/// What is looked at for one page is bounded: an empty page may have a next one, and the last is reached.
async fn a_filter_that_matches_little_ends(subject: &Subject) -> Result<(), StoreError> {
    let messages = &subject.store.messages;
    let rows: Vec<_> = (0..12_000).map(|n| message(subject, 1, n)).collect();
    let oldest = rows[0].id;
    for rows in rows.chunks(1_000) {
        messages.put(rows.to_vec()).await?;
    }
    messages.reach(vec![step(oldest, Status::Read, 1)]).await?;
    let mut query = SentQuery { status: Some(Status::Read.into()), limit: 10, ..SentQuery::default() };
    let mut seen = Vec::new();
    for _ in 0..100 {
        let page = messages.sent_by(&subject.business("acme"), query.clone(), start()).await?;
        seen.extend(ids(&page.messages));
        query.before = page.next;
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!((seen, query.before), (vec![oldest], None));
    Ok(())
}

async fn of_retries_the_highest_count_stands(subject: &Subject) -> Result<(), StoreError> {
    let messages = &subject.store.messages;
    let (row, early) = (message(subject, 1, 0), message(subject, 2, 1));
    messages.put(vec![row.clone()]).await?;
    assert_eq!(messages.retries(row.id).await?, 0);
    for (count, stands) in [(2, 2), (1, 2), (2, 2), (6, 6)] {
        messages.set_retries(row.id, count).await?;
        assert_eq!(messages.retries(row.id).await?, stands);
    }
    messages.set_retries(early.id, 3).await?;
    assert_eq!(messages.get(early.id).await?, None, "a count is no message");
    messages.put(vec![early.clone()]).await?;
    assert_eq!((messages.retries(early.id).await?, get(subject, early.id).await?.row), (3, early));
    assert_eq!(messages.retries(message(subject, 3, 2).id).await?, 0);
    Ok(())
}
