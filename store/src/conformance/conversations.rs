//! Conversations: one open for a pair, listed by activity, read by position, unread counted from the rows.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use eshaar_model::{
    Conversation, ConversationId, ConversationPosition, ConversationStatus, MessageId, MessageType, Pair, Principal,
    Side, Status, Timestamp,
};
use tokio::task::JoinSet;

use super::{Subject, start};
use crate::conversations::UNREAD_COUNTED;
use crate::{Archived, ChatRow, How, ListQuery, MessageRow, ReadFrom, ReadMark, Step, StoreError, Unread};

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

/// Conversations of phones 0 to `count` - 1, the phone of the highest number active last.
async fn talked(subject: &Subject, count: u64) -> Result<Vec<Conversation>, StoreError> {
    let mut all = Vec::new();
    for number in 0..count {
        all.push(started(subject, number).await?);
    }
    let rows = (0..).zip(&all).map(|(number, of)| row(subject, of, Side::Phone, number, number as i64 * SECOND));
    subject.store.conversations.append(rows.collect()).await?;
    Ok(all)
}

async fn a_list_is_newest_activity_first_for_each_side(subject: &Subject) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let all = talked(subject, 5).await?;
    let acme = subject.business("acme").into();
    assert_eq!(ids(&walk(subject, &acme, everything(2)).await?), [4, 3, 2, 1, 0].map(|at: usize| all[at].id));
    conversations.append(vec![row(subject, &all[1], Side::Business, 50, 9 * SECOND)]).await?;
    let listed = walk(subject, &acme, everything(2)).await?;
    assert_eq!(ids(&listed), [1, 4, 3, 2, 0].map(|at: usize| all[at].id));
    assert_eq!(listed[0], get(subject, all[1].id).await?);
    // The other side has conversations with several businesses; one that nobody has said anything in is as old as it is.
    let other = Pair { business: subject.business("bank"), phone: subject.phone(3) };
    let silent = conversations.start(&other).await?.conversation;
    let phone = subject.phone(3).into();
    assert_eq!(ids(&walk(subject, &phone, everything(1)).await?), [all[3].id, silent.id]);
    assert_eq!(ids(&walk(subject, &other.business.clone().into(), everything(9)).await?), [silent.id]);
    Ok(())
}

async fn a_list_is_filtered_by_status(subject: &Subject) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let all = talked(subject, 7).await?;
    for of in [&all[1], &all[4], &all[5]] {
        conversations.archive(of.id).await?;
    }
    for of in [&all[2], &all[5]] {
        conversations.close(of.id).await?;
    }
    let again = started(subject, 2).await?;
    let acme = subject.business("acme").into();
    for (status, expected) in [
        (ConversationStatus::Active, vec![all[6].id, all[3].id, all[0].id, again.id]),
        (ConversationStatus::Archived, vec![all[4].id, all[1].id]),
        (ConversationStatus::Closed, vec![all[5].id, all[2].id]),
    ] {
        for limit in [1, 2, 50] {
            let query = ListQuery { status: Some(status), ..everything(limit) };
            let found: BTreeSet<_> = ids(&walk(subject, &acme, query.clone()).await?).into_iter().collect();
            assert_eq!(found, expected.iter().copied().collect(), "{status}");
            let of_phone = walk(subject, &subject.phone(4).into(), query).await?;
            assert_eq!(ids(&of_phone).contains(&all[4].id), status == ConversationStatus::Archived);
        }
    }
    Ok(())
}

async fn a_walk_gives_each_conversation_once_while_others_are_active(subject: &Subject) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let all = talked(subject, 40).await?;
    let acme = subject.business("acme").into();
    let (mut query, mut seen, mut pages) = (everything(7), Vec::new(), 0_u64);
    loop {
        let page = conversations.list(&acme, query.clone()).await?;
        seen.extend(ids(&page.conversations));
        query.after = page.next;
        if page.next.is_none() {
            break;
        }
        pages += 1;
        // Those of even number talk on all the time, one that was read and one that was not among them.
        let busy = (0..40).step_by(2).map(|at: usize| {
            let offset = 100 * pages + at as u64;
            row(subject, &all[at], Side::Phone, offset, offset as i64 * SECOND)
        });
        conversations.append(busy.collect()).await?;
    }
    let once: BTreeSet<_> = seen.iter().copied().collect();
    assert_eq!(once.len(), seen.len(), "none comes twice");
    for quiet in all.iter().skip(1).step_by(2) {
        assert!(once.contains(&quiet.id), "each that is quiet comes");
    }
    assert_eq!(walk(subject, &acme, everything(7)).await?.len(), 40);
    Ok(())
}

async fn a_list_goes_over_idle_times(subject: &Subject) -> Result<(), StoreError> {
    // One that talks each five hours for a month, and others in between, some far back.
    let all = talked(subject, 12).await?;
    let hour = 3_600 * SECOND;
    let rows = (0..200_u64).map(|n| {
        let of = if n % 10 == 0 { &all[n as usize / 20] } else { &all[11] };
        row(subject, of, Side::Phone, 100 + n, n as i64 * 5 * hour)
    });
    for rows in rows.collect::<Vec<_>>().chunks(20) {
        subject.store.conversations.append(rows.to_vec()).await?;
    }
    let acme = subject.business("acme").into();
    let expected = [11, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 10].map(|at: usize| all[at].id);
    for limit in [1, 5, 12, 13] {
        assert_eq!(ids(&walk(subject, &acme, everything(limit)).await?), expected);
    }
    assert_eq!(ids(&walk(subject, &subject.phone(11).into(), everything(1)).await?), [all[11].id]);
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

fn message_of(subject: &Subject, row: &ChatRow) -> MessageRow {
    MessageRow {
        id: row.id,
        message_type: MessageType::Chat,
        conversation: Some(row.conversation),
        sender: row.pair.principal(row.from),
        recipient: row.pair.principal(row.from.other()),
        created_at: row.at,
        expires_at: row.expires_at,
        accepted: (subject.space % 6, Some(row.position.offset)),
        value: row.value.clone(),
    }
}

async fn what_is_unread_is_counted_from_the_rows(subject: &Subject) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let (of, silent) = (started(subject, 1).await?, started(subject, 2).await?);
    let expires_at = Some(start().plus_millis(60 * SECOND));
    let from = |offset: u64| if offset.is_multiple_of(3) { Side::Phone } else { Side::Business };
    let rows: Vec<_> = (0..12)
        .map(|offset| ChatRow {
            expires_at: expires_at.filter(|_| offset == 10),
            ..row(subject, &of, from(offset), offset, offset as i64)
        })
        .collect();
    conversations.append(rows.clone()).await?;
    let now = start().plus_millis(59 * SECOND);
    let unread = async |now: Timestamp| {
        let of = [
            (of.id, Side::Business),
            (of.id, Side::Phone),
            (silent.id, Side::Phone),
            (ConversationId::new(now), Side::Phone),
        ];
        let all = conversations.unread(&of, now).await?;
        assert!(all.iter().all(|unread| !unread.more));
        assert_eq!(all[2..], [Unread::default(); 2]);
        Ok::<_, StoreError>((all[0].count, all[1].count))
    };
    // Of the business 1 2 4 5 7 8 10 11, of the phone 0 3 6 9; also before the messages themselves are written.
    assert_eq!(unread(now).await?, (4, 8));
    subject.store.messages.put(rows.iter().map(|row| message_of(subject, row)).collect()).await?;
    assert_eq!(unread(now).await?, (4, 8));
    // The tenth was not delivered in its time.
    assert_eq!(unread(now.plus_millis(SECOND)).await?, (4, 7));
    let step = |offset: usize, status| Step { id: rows[offset].id, status, at: now, reason: None };
    let steps = vec![
        step(1, Status::Cancelled),
        step(2, Status::Read),
        step(4, Status::Failed),
        step(5, Status::Delivered),
        step(10, Status::Delivered),
        step(3, Status::Expired),
    ];
    subject.store.messages.reach(steps).await?;
    assert_eq!(unread(now.plus_millis(SECOND)).await?, (3, 5));
    let mark = |side, offset| ReadMark { conversation: of.id, side, up_to: at(subject, 0, offset) };
    conversations.mark_read(vec![mark(Side::Business, 6), mark(Side::Phone, 7)]).await?;
    assert_eq!(unread(now).await?, (1, 3));
    conversations.mark_read(vec![mark(Side::Business, 11), mark(Side::Phone, 11)]).await?;
    assert_eq!(unread(now).await?, (0, 0));
    let mut newer = row(subject, &of, Side::Phone, 1, 70);
    newer.position = at(subject, 1, 1);
    conversations.append(vec![newer]).await?;
    assert_eq!(unread(now).await?, (1, 0));
    Ok(())
}

async fn a_count_ends_at_its_bound(subject: &Subject) -> Result<(), StoreError> {
    let conversations = &subject.store.conversations;
    let of = started(subject, 1).await?;
    let rows: Vec<_> = (0..=UNREAD_COUNTED as u64).map(|offset| row(subject, &of, Side::Phone, offset, 0)).collect();
    conversations.append(rows).await?;
    let key = [(of.id, Side::Business)];
    assert_eq!(conversations.unread(&key, start()).await?, [Unread { count: UNREAD_COUNTED, more: true }]);
    conversations
        .mark_read(vec![ReadMark { conversation: of.id, side: Side::Business, up_to: at(subject, 0, 0) }])
        .await?;
    assert_eq!(conversations.unread(&key, start()).await?, [Unread { count: UNREAD_COUNTED, more: false }]);
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
