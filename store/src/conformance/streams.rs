//! Streams: idempotent, in order, paged by cursor, known by head and floor, acknowledged forward.

use bytes::Bytes;
use eshaar_model::{Cursor, Epoch, Lane, MessageId};

use super::{STREAM_TTL_MS, Subject, start};
use crate::{Earlier, StoreError, StreamRow};

super::checks! {
    /// Every check of the stream port.
    a_row_comes_back_as_it_was_written,
    the_same_position_again_changes_nothing,
    a_page_merges_lanes_by_time_and_keeps_the_order_within_each,
    pages_of_any_size_give_each_row_once,
    more_is_said_only_when_there_is_more,
    epochs_follow_one_another,
    an_older_epoch_than_the_cursors_is_covered,
    an_offset_no_log_has_is_behind_everything,
    phones_do_not_see_each_others_rows,
    before_finds_the_offset_right_below,
    a_repeat_is_found_at_a_lower_offset_or_in_an_earlier_epoch,
    a_repeat_is_found_behind_many_rows,
    the_head_is_the_highest_offset_of_its_partition,
    nothing_is_below_the_floor_while_nothing_expired,
    the_floor_rises_over_what_expired_and_trim_lets_go_of_it,
    acks_never_move_back,
    an_ack_in_a_newer_epoch_starts_afresh,
}

const SECOND: i64 = 1_000;

async fn everything(subject: &Subject, number: u64) -> Result<Vec<StreamRow>, StoreError> {
    let page = subject.store.streams.read(subject.phone(number), Cursor::start(Epoch(0)), 1_000).await?;
    assert!(!page.more);
    Ok(page.rows)
}

fn positions(subject: &Subject, rows: &[StreamRow]) -> Vec<(u32, Lane, u64)> {
    let of = |row: &StreamRow| (row.position.epoch.0 - subject.epoch(0).0, row.position.lane, row.position.offset);
    rows.iter().map(of).collect()
}

async fn a_row_comes_back_as_it_was_written(subject: &Subject) -> Result<(), StoreError> {
    let expires_at = Some(start().plus_millis(60 * SECOND));
    let value = Bytes::from_static(&[0, 0xff, b'\'']);
    let written = StreamRow { expires_at, value, ..subject.row(1, subject.at(0, Lane::Low, 0), 0) };
    subject.store.streams.append(0, vec![written.clone()]).await?;
    assert_eq!(everything(subject, 1).await?, [written]);
    Ok(())
}

/// A record of the log is the same row whoever writes it, and however late.
async fn the_same_position_again_changes_nothing(subject: &Subject) -> Result<(), StoreError> {
    let first = subject.row(1, subject.at(0, Lane::Normal, 7), 0);
    subject.store.streams.append(3, vec![first.clone(), first.clone()]).await?;
    subject.clock.advance_millis(60 * SECOND);
    subject.store.streams.append(3, vec![first.clone(), subject.row(1, subject.at(0, Lane::Normal, 8), 1)]).await?;
    let rows = everything(subject, 1).await?;
    assert_eq!(positions(subject, &rows), [(0, Lane::Normal, 7), (0, Lane::Normal, 8)]);
    assert_eq!(rows[0], first);
    assert_eq!(subject.store.streams.head(subject.epoch(0), Lane::Normal, 3).await?, Some(8));
    Ok(())
}

async fn a_page_merges_lanes_by_time_and_keeps_the_order_within_each(subject: &Subject) -> Result<(), StoreError> {
    let rows = vec![
        subject.row(1, subject.at(0, Lane::Bulk, 4), 10),
        subject.row(1, subject.at(0, Lane::Bulk, 9), 50),
        subject.row(1, subject.at(0, Lane::High, 100), 20),
        // A later offset with an earlier time: the offset decides within a lane.
        subject.row(1, subject.at(0, Lane::High, 101), 5),
        subject.row(1, subject.at(0, Lane::Normal, 1), 30),
    ];
    subject.store.streams.append(0, rows).await?;
    let expected =
        [(0, Lane::Bulk, 4), (0, Lane::High, 100), (0, Lane::High, 101), (0, Lane::Normal, 1), (0, Lane::Bulk, 9)];
    assert_eq!(positions(subject, &everything(subject, 1).await?), expected);
    Ok(())
}

/// 60 rows over four lanes and two epochs.
fn sixty_rows(subject: &Subject) -> Vec<StreamRow> {
    (0..60_u64)
        .map(|n| subject.row(1, subject.at(n as u32 / 40, Lane::ALL[n as usize * 7 % 4], n), (n as i64 * 37) % 50))
        .collect()
}

async fn pages_of_any_size_give_each_row_once(subject: &Subject) -> Result<(), StoreError> {
    subject.store.streams.append(0, sixty_rows(subject)).await?;
    for size in [1, 3, 10, 59, 60, 61] {
        let mut cursor = Cursor::start(Epoch(0));
        let mut seen = Vec::new();
        loop {
            let page = subject.store.streams.read(subject.phone(1), cursor, size).await?;
            assert!(page.rows.len() <= size);
            for row in &page.rows {
                assert!(!cursor.covers(row.position), "{:?} came twice", row.position);
                cursor.advance(row.position);
            }
            seen.extend(page.rows);
            if !page.more {
                break;
            }
        }
        assert_eq!(seen.len(), 60, "in pages of {size}");
    }
    Ok(())
}

async fn more_is_said_only_when_there_is_more(subject: &Subject) -> Result<(), StoreError> {
    let streams = &subject.store.streams;
    streams.append(0, sixty_rows(subject)).await?;
    let exact = streams.read(subject.phone(1), Cursor::start(subject.epoch(0)), 60).await?;
    assert_eq!((exact.rows.len(), exact.more), (60, false));
    let short = streams.read(subject.phone(1), Cursor::start(subject.epoch(0)), 59).await?;
    assert_eq!((short.rows.len(), short.more), (59, true));
    // The page is full where an epoch ends, and there is another.
    let first_epoch = streams.read(subject.phone(1), Cursor::start(subject.epoch(0)), 40).await?;
    assert_eq!((first_epoch.rows.len(), first_epoch.more), (40, true));
    let none = streams.read(subject.phone(2), Cursor::start(subject.epoch(0)), 1).await?;
    assert_eq!((none.rows.len(), none.more), (0, false));
    Ok(())
}

async fn epochs_follow_one_another(subject: &Subject) -> Result<(), StoreError> {
    let streams = &subject.store.streams;
    let before = streams.newest_epoch().await?;
    streams.append(0, vec![subject.row(1, subject.at(5, Lane::Normal, 0), 0)]).await?;
    streams.append(0, vec![subject.row(1, subject.at(2, Lane::Normal, 9), 100)]).await?;
    assert_eq!(streams.newest_epoch().await?, before.max(Some(subject.epoch(5))));
    assert_eq!(positions(subject, &everything(subject, 1).await?), [(2, Lane::Normal, 9), (5, Lane::Normal, 0)]);
    Ok(())
}

async fn an_older_epoch_than_the_cursors_is_covered(subject: &Subject) -> Result<(), StoreError> {
    let streams = &subject.store.streams;
    let rows =
        vec![subject.row(1, subject.at(1, Lane::Normal, 50), 0), subject.row(1, subject.at(2, Lane::Normal, 0), 1)];
    streams.append(0, rows).await?;
    let page = streams.read(subject.phone(1), Cursor::start(subject.epoch(2)), 10).await?;
    assert_eq!(positions(subject, &page.rows), [(2, Lane::Normal, 0)]);
    assert!(streams.read(subject.phone(1), Cursor::start(subject.epoch(3)), 10).await?.rows.is_empty());
    Ok(())
}

async fn an_offset_no_log_has_is_behind_everything(subject: &Subject) -> Result<(), StoreError> {
    let streams = &subject.store.streams;
    streams.append(0, vec![subject.row(1, subject.at(0, Lane::Normal, 1), 0)]).await?;
    let forged = Cursor { epoch: subject.epoch(0), offsets: [Some(u64::MAX - 1); 4] };
    assert!(streams.read(subject.phone(1), forged, 10).await?.rows.is_empty());
    let newest = Cursor { epoch: Epoch(u32::MAX), ..forged };
    assert!(streams.read(subject.phone(1), newest, 10).await?.rows.is_empty());
    Ok(())
}

async fn phones_do_not_see_each_others_rows(subject: &Subject) -> Result<(), StoreError> {
    let rows =
        vec![subject.row(1, subject.at(0, Lane::Normal, 0), 0), subject.row(2, subject.at(0, Lane::Normal, 1), 0)];
    subject.store.streams.append(0, rows).await?;
    assert_eq!(positions(subject, &everything(subject, 1).await?), [(0, Lane::Normal, 0)]);
    assert_eq!(positions(subject, &everything(subject, 2).await?), [(0, Lane::Normal, 1)]);
    Ok(())
}

async fn before_finds_the_offset_right_below(subject: &Subject) -> Result<(), StoreError> {
    let streams = &subject.store.streams;
    let rows = vec![
        subject.row(1, subject.at(1, Lane::Normal, 3), 0),
        subject.row(1, subject.at(1, Lane::Normal, 8), 0),
        subject.row(1, subject.at(1, Lane::High, 6), 0),
        subject.row(1, subject.at(0, Lane::Normal, 2), 0),
        subject.row(2, subject.at(1, Lane::Normal, 7), 0),
    ];
    streams.append(0, rows).await?;
    let of = [
        (subject.phone(1), subject.at(1, Lane::Normal, 8)),
        (subject.phone(1), subject.at(1, Lane::Normal, 9)),
        (subject.phone(1), subject.at(1, Lane::Normal, 3)),
        (subject.phone(3), subject.at(1, Lane::Normal, 9)),
    ];
    assert_eq!(streams.before(&of).await?, [Some(3), Some(8), None, None]);
    assert_eq!(streams.before(&[]).await?, []);
    Ok(())
}

async fn a_repeat_is_found_at_a_lower_offset_or_in_an_earlier_epoch(subject: &Subject) -> Result<(), StoreError> {
    let streams = &subject.store.streams;
    let (old, new) =
        (subject.row(1, subject.at(1, Lane::Normal, 5), 0), subject.row(1, subject.at(2, Lane::Normal, 2), 1));
    let (old_id, new_id) = (old.id, new.id);
    streams.append(0, vec![old, new]).await?;
    let other = MessageId::new(start());
    let of = [
        (subject.phone(1), subject.at(1, Lane::Normal, 6), old_id),
        // Its own position is no repeat of it: a replay writes it again.
        (subject.phone(1), subject.at(1, Lane::Normal, 5), old_id),
        (subject.phone(1), subject.at(2, Lane::Normal, 0), old_id),
        (subject.phone(1), subject.at(2, Lane::High, 9), old_id),
        (subject.phone(2), subject.at(2, Lane::Normal, 9), old_id),
        (subject.phone(1), subject.at(1, Lane::Normal, 9), new_id),
        (subject.phone(1), subject.at(2, Lane::Normal, 9), other),
    ];
    let questions = |from| of.map(|(phone, position, id)| Earlier { phone, position, id, from });
    let found = streams.stands_before(&questions(0)).await?;
    assert_eq!(found, [true, false, true, false, false, false, false]);
    // From an offset on: nothing below it, nor in earlier epochs.
    let found = streams.stands_before(&questions(5)).await?;
    assert_eq!(found, [true, false, false, false, false, false, false]);
    assert_eq!(streams.stands_before(&questions(6)).await?, [false; 7]);
    Ok(())
}

async fn a_repeat_is_found_behind_many_rows(subject: &Subject) -> Result<(), StoreError> {
    let streams = &subject.store.streams;
    let rows: Vec<_> = (0..2_500).map(|n| subject.row(1, subject.at(1, Lane::Bulk, n), n as i64)).collect();
    let (first, last) = (rows[0].id, rows[2_499].id);
    streams.append(0, rows).await?;
    let question = |epoch, id, offset, from| Earlier {
        phone: subject.phone(1),
        position: subject.at(epoch, Lane::Bulk, offset),
        id,
        from,
    };
    let of = [
        question(1, first, 2_500, 0),
        question(1, last, 2_500, 0),
        question(1, last, 2_500, 2_000),
        question(1, last, 2_499, 0),
        question(2, last, 0, 0),
        question(2, last, 0, 1),
        question(1, first, 2_500, 1),
    ];
    assert_eq!(streams.stands_before(&of).await?, [true, true, true, false, true, false, false]);
    Ok(())
}

async fn the_head_is_the_highest_offset_of_its_partition(subject: &Subject) -> Result<(), StoreError> {
    let streams = &subject.store.streams;
    let rows =
        |offsets: [u64; 2]| offsets.map(|offset| subject.row(offset, subject.at(0, Lane::Normal, offset), 0)).to_vec();
    assert_eq!(streams.head(subject.epoch(0), Lane::Normal, 4).await?, None);
    streams.append(4, rows([10, 12])).await?;
    streams.append(4, rows([3, 11])).await?;
    streams.append(5, rows([40, 30])).await?;
    assert_eq!(streams.head(subject.epoch(0), Lane::Normal, 4).await?, Some(12));
    assert_eq!(streams.head(subject.epoch(0), Lane::Normal, 5).await?, Some(40));
    assert_eq!(streams.head(subject.epoch(0), Lane::High, 4).await?, None);
    assert_eq!(streams.head(subject.epoch(1), Lane::Normal, 4).await?, None);
    Ok(())
}

async fn nothing_is_below_the_floor_while_nothing_expired(subject: &Subject) -> Result<(), StoreError> {
    let streams = &subject.store.streams;
    let rows = (0..5).map(|n| subject.row(n, subject.at(0, Lane::Normal, 20 + n), n as i64)).collect();
    streams.append(0, rows).await?;
    let now = start().plus_millis(STREAM_TTL_MS - SECOND);
    assert_eq!(streams.floor(subject.epoch(0), Lane::Normal, 0, now).await?, 0);
    assert_eq!(streams.floor(subject.epoch(7), Lane::Low, 9, now).await?, 0);
    assert_eq!(streams.trim(now).await?, 0);
    Ok(())
}

async fn the_floor_rises_over_what_expired_and_trim_lets_go_of_it(subject: &Subject) -> Result<(), StoreError> {
    let streams = &subject.store.streams;
    // Two of each of 60 days, in every second offset; more than one slice of a trim must still end.
    let day = STREAM_TTL_MS / 30;
    let rows: Vec<_> =
        (0..60).map(|n: i64| subject.row(n as u64 % 2, subject.at(0, Lane::Normal, 2 * n as u64), n * day)).collect();
    streams.append(0, rows.clone()).await?;
    streams.append(1, vec![subject.row(1, subject.at(0, Lane::Normal, 0), 59 * day)]).await?;
    subject.clock.advance_millis(STREAM_TTL_MS + 20 * day);
    let now = subject.clock.now();
    let floor = streams.floor(subject.epoch(0), Lane::Normal, 0, now).await?;
    // What is from within the time to live, 40 rows, is certain; a span more or less is the engine's choice.
    assert!((36..=40).contains(&floor), "{floor}");
    assert_eq!(streams.floor(subject.epoch(0), Lane::Normal, 1, now).await?, 0);
    let mut trimmed = 0;
    loop {
        match streams.trim(now).await? {
            0 => break,
            rows => trimmed += rows,
        }
    }
    assert!(trimmed <= 20, "{trimmed}");
    assert_eq!(streams.floor(subject.epoch(0), Lane::Normal, 0, now).await?, floor);
    let kept = [everything(subject, 0).await?, everything(subject, 1).await?].concat();
    for certain in rows.iter().filter(|row| row.position.offset >= floor) {
        assert!(kept.contains(certain), "{:?}", certain.position);
    }
    assert_eq!(streams.head(subject.epoch(0), Lane::Normal, 0).await?, Some(118));
    Ok(())
}

async fn acks_never_move_back(subject: &Subject) -> Result<(), StoreError> {
    let streams = &subject.store.streams;
    let cursor = |offsets| Cursor { epoch: subject.epoch(1), offsets };
    assert_eq!(streams.acked(subject.phone(1)).await?, None);
    let first = cursor([None, Some(5), Some(0), None]);
    let second = cursor([Some(2), Some(3), None, None]);
    streams.ack(vec![(subject.phone(1), first), (subject.phone(2), second)]).await?;
    assert_eq!(streams.acked(subject.phone(1)).await?, Some(first));
    streams.ack(vec![(subject.phone(1), second)]).await?;
    assert_eq!(streams.acked(subject.phone(1)).await?, Some(cursor([Some(2), Some(5), Some(0), None])));
    assert_eq!(streams.acked(subject.phone(2)).await?, Some(second));
    streams.ack(vec![(subject.phone(1), Cursor { epoch: subject.epoch(0), offsets: [Some(99); 4] })]).await?;
    assert_eq!(streams.acked(subject.phone(1)).await?, Some(cursor([Some(2), Some(5), Some(0), None])));
    Ok(())
}

async fn an_ack_in_a_newer_epoch_starts_afresh(subject: &Subject) -> Result<(), StoreError> {
    let streams = &subject.store.streams;
    streams.ack(vec![(subject.phone(1), Cursor { epoch: subject.epoch(1), offsets: [Some(9); 4] })]).await?;
    let mut newer = Cursor::start(subject.epoch(2));
    newer.advance(subject.at(2, Lane::Low, 1));
    streams.ack(vec![(subject.phone(1), newer)]).await?;
    assert_eq!(streams.acked(subject.phone(1)).await?, Some(newer));
    Ok(())
}
