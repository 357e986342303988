//! Conversations: one open for a pair, listed by activity, read by position, unread counted from the rows.

mod lists;
mod unread;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use eshaar_model::{
    Conversation, ConversationId, ConversationPosition, ConversationStatus, MessageId, Pair, Principal, Side,
};
use tokio::task::JoinSet;

use self::lists::{
    a_list_goes_over_idle_times, a_list_is_filtered_by_status, a_list_is_newest_activity_first_for_each_side,
    a_walk_gives_each_conversation_once_while_others_are_active,
};
use self::unread::{a_count_ends_at_its_bound, what_is_unread_is_counted_from_the_rows};
use super::{Subject, start};
use crate::{Archived, ChatRow, How, ListQuery, ReadFrom, ReadMark, StoreError};

super::checks! {
    /// Every check of the conversation port.
    a_pair_has_one_conversation_and_each_side_finds_it,
    of_many_that_start_at_once_all_get_the_same,
    a_closed_conversation_stays_closed_and_another_is_started,
    close_and_start_in_a_race_never_leave_two_active,
    a_message_makes_an_archived_conversation_active_again,
    starting_takes_an_archived_conversation_up_again,
    messages_come_back_as_they_were_written_and_again_changes_nothing,
    the_last_message_is_that_at_the_highest_position,
    history_is_read_both_ways_over_buckets_and_epochs,
    a_list_is_newest_activity_first_for_each_side,
    a_list_is_filtered_by_status,
    a_walk_gives_each_conversation_once_while_others_are_active,
    a_list_goes_over_idle_times,
    read_positions_never_move_back,
    what_is_unread_is_counted_from_the_rows,
    a_count_ends_at_its_bound,
    a_message_of_a_conversation_that_was_lost_is_kept_in_a_closed_one,
}

const SECOND: i64 = 1_000;

fn pair(subject: &Subject, number: u64) -> Pair {
    Pair { business: subject.business("acme"), phone: subject.phone(number) }
}

fn at(subject: &Subject, epoch: u32, offset: u64) -> ConversationPosition {
    ConversationPosition { epoch: subject.epoch(epoch), offset }
}

/// A message in a conversation that was accepted `after_ms` after the start.
fn row(subject: &Subject, of: &Conversation, from: Side, offset: u64, after_ms: i64) -> ChatRow {
    let accepted = start().plus_millis(after_ms);
    ChatRow {
        conversation: of.id,
        pair: of.pair.clone(),
        from,
        position: at(subject, 0, offset),
        id: MessageId::new(accepted),
        at: accepted,
        expires_at: None,
        value: Bytes::from(format!("message {offset}")),
    }
}

async fn started(subject: &Subject, number: u64) -> Result<Conversation, StoreError> {
    Ok(subject.store.conversations.start(&pair(subject, number)).await?.conversation)
}

/// A conversation, of which whoever asks for less is told the same.
async fn get(subject: &Subject, id: ConversationId) -> Result<Conversation, StoreError> {
    let conversations = &subject.store.conversations;
    let known = conversations.get(id).await?.unwrap();
    assert_eq!(conversations.pair(id).await?.as_ref(), Some(&known.pair));
    assert_eq!(conversations.standing(id).await?, Some((known.pair.clone(), known.standing)));
    Ok(known)
}

/// Everything that a side has, in pages of `limit`.
async fn walk(subject: &Subject, of: &Principal, query: ListQuery) -> Result<Vec<Conversation>, StoreError> {
    let (mut query, mut all) = (query, Vec::new());
    loop {
        let page = subject.store.conversations.list(of, query.clone()).await?;
        assert!(page.conversations.len() <= query.limit);
        all.extend(page.conversations);
        query.after = page.next;
        if page.next.is_none() {
            return Ok(all);
        }
    }
}

fn everything(limit: usize) -> ListQuery {
    ListQuery { limit, ..ListQuery::default() }
}

fn ids(all: &[Conversation]) -> Vec<ConversationId> {
    all.iter().map(|conversation| conversation.id).collect()
}

async fn a_pair_has_one_conversation_and_each_side_finds_it(subject: &Subject) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let first = conversations.start(&pair(subject, 1)).await?;
    assert_eq!((first.how, first.conversation.status()), (How::Created, ConversationStatus::Active));
    let again = conversations.start(&pair(subject, 1)).await?;
    assert_eq!((again.how, &again.conversation), (How::Found, &first.conversation));
    assert_eq!(get(subject, first.conversation.id).await?, first.conversation);
    assert_eq!(first.conversation.created_at(), subject.clock.now());
    let other = conversations.start(&pair(subject, 2)).await?;
    assert_ne!(other.conversation.id, first.conversation.id);
    for side in Side::BOTH {
        let of = pair(subject, 1).principal(side);
        assert!(ids(&walk(subject, &of, everything(10)).await?).contains(&first.conversation.id));
    }
    let stranger = subject.phone(9).into();
    assert!(walk(subject, &stranger, everything(10)).await?.is_empty());
    let unknown = ConversationId::new(start());
    assert_eq!(conversations.get(unknown).await?, None);
    assert_eq!(conversations.pair(unknown).await?, None);
    assert_eq!(conversations.standing(unknown).await?, None);
    Ok(())
}

async fn of_many_that_start_at_once_all_get_the_same(subject: &Subject) -> Result<(), StoreError> {
    let at_once = Arc::new(tokio::sync::Barrier::new(60));
    let mut starts = JoinSet::new();
    for _ in 0..60 {
        let (conversations, pair) = (Arc::clone(&subject.store.conversations), pair(subject, 1));
        let at_once = Arc::clone(&at_once);
        starts.spawn(async move {
            at_once.wait().await;
            conversations.start(&pair).await
        });
    }
    let all: Vec<_> = starts.join_all().await.into_iter().collect::<Result<_, _>>()?;
    assert_eq!(all.iter().map(|started| started.conversation.id).collect::<BTreeSet<_>>().len(), 1);
    assert_eq!(all.iter().filter(|started| started.how == How::Created).count(), 1);
    let phone = subject.phone(1).into();
    assert_eq!(walk(subject, &phone, everything(10)).await?.len(), 1);
    Ok(())
}

async fn a_closed_conversation_stays_closed_and_another_is_started(subject: &Subject) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let first = started(subject, 1).await?;
    for _ in 0..2 {
        let closed = conversations.close(first.id).await?.unwrap();
        assert_eq!(closed.status(), ConversationStatus::Closed);
        assert_eq!(get(subject, first.id).await?, closed);
    }
    assert_eq!(conversations.archive(first.id).await?, Archived::Closed);
    let second = conversations.start(&pair(subject, 1)).await?;
    assert_eq!(second.how, How::Created);
    assert_ne!(second.conversation.id, first.id);
    // The closed one has nothing to say about the other.
    assert_eq!(conversations.close(first.id).await?.map(|closed| closed.id), Some(first.id));
    assert_eq!(conversations.archive(first.id).await?, Archived::Closed);
    assert_eq!(get(subject, second.conversation.id).await?.status(), ConversationStatus::Active);
    let unknown = ConversationId::new(start());
    assert_eq!(conversations.close(unknown).await?, None);
    assert_eq!(conversations.archive(unknown).await?, Archived::Unknown);
    Ok(())
}

async fn close_and_start_in_a_race_never_leave_two_active(subject: &Subject) -> Result<(), StoreError> {
    let phone = subject.phone(1).into();
    let mut created = usize::from(started(subject, 1).await?.last.is_none());
    for _ in 0..6 {
        let open = started(subject, 1).await?;
        let mut racers = JoinSet::new();
        for number in 0..8 {
            let (conversations, pair) = (Arc::clone(&subject.store.conversations), pair(subject, 1));
            racers.spawn(async move {
                if number % 4 == 0 {
                    conversations.close(open.id).await.map(|_| None)
                } else {
                    conversations.start(&pair).await.map(Some)
                }
            });
        }
        for started in racers.join_all().await {
            created += usize::from(started?.is_some_and(|started| started.how == How::Created));
        }
        assert_eq!(get(subject, open.id).await?.status(), ConversationStatus::Closed);
        created += usize::from(subject.store.conversations.start(&pair(subject, 1)).await?.how == How::Created);
        let all = walk(subject, &phone, everything(50)).await?;
        assert_eq!(all.len(), created, "nothing but what was created is listed");
        let active = all.iter().filter(|known| known.status() != ConversationStatus::Closed).count();
        assert_eq!(active, 1);
    }
    Ok(())
}

async fn a_message_makes_an_archived_conversation_active_again(subject: &Subject) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let of = started(subject, 1).await?;
    let first = row(subject, &of, Side::Phone, 5, 0);
    conversations.append(vec![first.clone()]).await?;
    for (offset, from) in [(6, Side::Business), (7, Side::Phone)] {
        for _ in 0..2 {
            let Archived::Done(archived) = conversations.archive(of.id).await? else { panic!("archived") };
            assert_eq!(archived.status(), ConversationStatus::Archived);
        }
        // What it had already, read again, is nothing new.
        conversations.append(vec![first.clone()]).await?;
        assert_eq!(get(subject, of.id).await?.status(), ConversationStatus::Archived);
        conversations.append(vec![row(subject, &of, from, offset, 0)]).await?;
        assert_eq!(get(subject, of.id).await?.status(), ConversationStatus::Active);
        let found = conversations.start(&pair(subject, 1)).await?;
        assert_eq!((found.how, found.conversation.id), (How::Found, of.id));
    }
    conversations.close(of.id).await?;
    conversations.append(vec![row(subject, &of, Side::Phone, 9, 0)]).await?;
    let closed = get(subject, of.id).await?;
    assert_eq!((closed.status(), closed.last_position()), (ConversationStatus::Closed, Some(at(subject, 0, 9))));
    Ok(())
}

async fn starting_takes_an_archived_conversation_up_again(subject: &Subject) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let of = started(subject, 1).await?;
    conversations.archive(of.id).await?;
    assert_eq!(get(subject, of.id).await?.status(), ConversationStatus::Archived);
    let taken_up = conversations.start(&pair(subject, 1)).await?;
    assert_eq!((taken_up.how, taken_up.conversation.id), (How::TakenUp, of.id));
    assert_eq!(taken_up.conversation.status(), ConversationStatus::Active);
    assert_eq!(get(subject, of.id).await?.status(), ConversationStatus::Active);
    // One that was archived when it had a message, and was then closed, says nothing of the next.
    conversations.append(vec![row(subject, &of, Side::Phone, 3, 0)]).await?;
    conversations.archive(of.id).await?;
    conversations.close(of.id).await?;
    assert_eq!(started(subject, 1).await?.status(), ConversationStatus::Active);
    Ok(())
}

async fn messages_come_back_as_they_were_written_and_again_changes_nothing(
    subject: &Subject,
) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let (one, other) = (started(subject, 1).await?, started(subject, 2).await?);
    let written = ChatRow {
        expires_at: Some(start().plus_millis(60 * SECOND)),
        value: Bytes::from_static(&[0, 0xff, b'\'']),
        ..row(subject, &one, Side::Business, 7, 40)
    };
    let rows = vec![written.clone(), row(subject, &other, Side::Phone, 8, 41), row(subject, &one, Side::Phone, 9, 42)];
    for _ in 0..3 {
        conversations.append(rows.clone()).await?;
        let page = conversations.history(one.id, ReadFrom::Newest, 10).await?;
        assert_eq!((page.rows, page.more), (vec![rows[0].clone(), rows[2].clone()], false));
        let page = conversations.history(other.id, ReadFrom::After(None), 10).await?;
        assert_eq!(page.rows, [rows[1].clone()]);
        assert_eq!(walk(subject, &subject.phone(1).into(), everything(10)).await?.len(), 1);
    }
    assert!(conversations.history(ConversationId::new(start()), ReadFrom::Newest, 10).await?.rows.is_empty());
    Ok(())
}

async fn the_last_message_is_that_at_the_highest_position(subject: &Subject) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let of = started(subject, 1).await?;
    let mut newer_epoch = row(subject, &of, Side::Business, 2, 5);
    newer_epoch.position = at(subject, 1, 2);
    for (row, last) in [
        (row(subject, &of, Side::Phone, 10, 30), (0, 10)),
        // Accepted by a clock that is behind, but later in the log; and one that a zombie writes late.
        (row(subject, &of, Side::Business, 12, 20), (0, 12)),
        (row(subject, &of, Side::Phone, 11, 50), (0, 12)),
        (newer_epoch, (1, 2)),
        (row(subject, &of, Side::Phone, 99, 60), (1, 2)),
    ] {
        conversations.append(vec![row]).await?;
        let known = get(subject, of.id).await?;
        assert_eq!(known.last_position(), Some(at(subject, last.0, last.1)));
        let listed = walk(subject, &subject.phone(1).into(), everything(10)).await?;
        assert_eq!(listed, [known]);
    }
    let last = get(subject, of.id).await?.last.unwrap();
    assert_eq!((last.from, last.at), (Side::Business, start().plus_millis(5)));
    Ok(())
}

async fn history_is_read_both_ways_over_buckets_and_epochs(subject: &Subject) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let of = started(subject, 1).await?;
    // Far apart and close together, in two lives of the log.
    let offsets = (0..40_u64).map(|n| n * (1 << 24)).chain((0..30).map(|n| (1 << 40) + n)).chain([1 << 45]);
    let mut rows: Vec<_> = offsets.map(|offset| row(subject, &of, Side::Phone, offset, 0)).collect();
    let second_life = rows.iter().take(20).cloned();
    let second_life: Vec<_> =
        second_life.map(|row| ChatRow { position: at(subject, 1, row.position.offset / 3), ..row }).collect();
    rows.extend(second_life);
    conversations.append(rows.clone()).await?;
    for size in [1, 7, 50, 90, 91, 92] {
        let (mut from, mut seen) = (ReadFrom::Newest, Vec::new());
        loop {
            let page = conversations.history(of.id, from, size).await?;
            assert!(page.rows.len() == size || !page.more, "a page is full unless it is the last");
            seen.splice(0..0, page.rows.clone());
            if !page.more {
                break;
            }
            from = ReadFrom::Before(page.rows[0].position);
        }
        assert_eq!(seen, rows, "backward in pages of {size}");
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let page = conversations.history(of.id, ReadFrom::After(after), size).await?;
            seen.extend(page.rows);
            if !page.more {
                break;
            }
            after = seen.last().map(|row| row.position);
        }
        assert_eq!(seen, rows, "forward in pages of {size}");
    }
    let newest = conversations.history(of.id, ReadFrom::Newest, 50).await?;
    assert_eq!((&newest.rows[..], newest.more), (&rows[rows.len() - 50..], true));
    // Between rows, and past everything.
    let between = ConversationPosition { offset: 5, ..at(subject, 0, 0) };
    assert_eq!(conversations.history(of.id, ReadFrom::Before(between), 9).await?.rows, [rows[0].clone()]);
    assert_eq!(conversations.history(of.id, ReadFrom::After(Some(between)), 1).await?.rows, [rows[1].clone()]);
    let past = ConversationPosition { epoch: eshaar_model::Epoch(u32::MAX), offset: u64::MAX };
    assert!(conversations.history(of.id, ReadFrom::After(Some(past)), 9).await?.rows.is_empty());
    assert_eq!(conversations.history(of.id, ReadFrom::Before(past), 1).await?.rows, [rows[90].clone()]);
    Ok(())
}

async fn read_positions_never_move_back(subject: &Subject) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let of = started(subject, 1).await?;
    let mark = |side, epoch, offset| ReadMark { conversation: of.id, side, up_to: at(subject, epoch, offset) };
    assert_eq!(get(subject, of.id).await?.read, [None, None]);
    for (marks, read) in [
        (vec![mark(Side::Phone, 0, 0)], [None, Some((0, 0))]),
        (vec![mark(Side::Phone, 0, 9), mark(Side::Business, 0, 4)], [Some((0, 4)), Some((0, 9))]),
        (vec![mark(Side::Phone, 0, 8), mark(Side::Business, 0, 5)], [Some((0, 5)), Some((0, 9))]),
        (vec![mark(Side::Phone, 1, 2), mark(Side::Phone, 0, 50)], [Some((0, 5)), Some((1, 2))]),
        (vec![mark(Side::Business, 0, 3)], [Some((0, 5)), Some((1, 2))]),
    ] {
        conversations.mark_read(marks).await?;
        let known = get(subject, of.id).await?.read;
        assert_eq!(known, read.map(|read| read.map(|(epoch, offset)| at(subject, epoch, offset))));
    }
    // Messages leave them as they are.
    conversations.append(vec![row(subject, &of, Side::Phone, 6, 0)]).await?;
    assert_eq!(get(subject, of.id).await?.read[0], Some(at(subject, 0, 5)));
    Ok(())
}

async fn a_message_of_a_conversation_that_was_lost_is_kept_in_a_closed_one(
    subject: &Subject,
) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let lost = Conversation::new(ConversationId::new(start()), pair(subject, 1));
    let said = row(subject, &lost, Side::Business, 4, 0);
    conversations.append(vec![said.clone()]).await?;
    let known = get(subject, lost.id).await?;
    assert_eq!(
        (known.status(), &known.pair, known.last),
        (ConversationStatus::Closed, &lost.pair, Some(said.as_last()))
    );
    assert_eq!(conversations.history(lost.id, ReadFrom::Newest, 5).await?.rows, [said]);
    assert_eq!(ids(&walk(subject, &subject.phone(1).into(), everything(5)).await?), [lost.id]);
    let next = conversations.start(&pair(subject, 1)).await?;
    assert_eq!(next.how, How::Created);
    Ok(())
}
