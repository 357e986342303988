//! Broadcasts: open until they are sent, and tallied by the highest place in the log.

use bytes::Bytes;
use eshaar_model::{BroadcastId, Epoch, RecipientsId};

use super::{Subject, start};
use crate::broadcasts::KEPT_MS;
use crate::{BroadcastRow, Counts, OpenBroadcast, StoreError, Tally};

super::checks! {
    /// Every check of the broadcast port.
    a_broadcast_is_open_from_when_it_is_opened_until_it_is_closed,
    a_broadcast_that_is_not_open_yet_may_be_written_anew,
    of_each_business_the_oldest_are_found_however_many_another_has_open,
    broadcasts_of_all_times_are_found_while_they_are_open,
    broadcasts_are_listed_by_business_the_newest_first,
    the_tally_of_the_highest_place_stands,
    the_counts_of_a_broadcast_are_those_of_all_its_tallies,
    what_is_old_goes,
}

/// An attempt whose record never came to the log is followed by another, with times of its own.
async fn a_broadcast_that_is_not_open_yet_may_be_written_anew(subject: &Subject) -> Result<(), StoreError> {
    let broadcasts = &subject.store.broadcasts;
    let first = row(subject, 0);
    let second =
        BroadcastRow { created_at: start().plus_millis(5_000), value: Bytes::from_static(b"anew"), ..first.clone() };
    broadcasts.put(first.clone()).await?;
    broadcasts.put(second.clone()).await?;
    assert_eq!(broadcasts.get(&[first.id]).await?, [second]);
    Ok(())
}

fn row(subject: &Subject, after_ms: i64) -> BroadcastRow {
    let created_at = start().plus_millis(after_ms);
    BroadcastRow {
        id: BroadcastId::new(created_at),
        business: subject.business("acme"),
        created_at,
        value: Bytes::from(vec![7; 20_000]),
    }
}

fn list() -> RecipientsId {
    RecipientsId::new(start())
}

async fn close(subject: &Subject, row: &BroadcastRow) -> Result<(), StoreError> {
    subject.store.broadcasts.close(&OpenBroadcast { business: row.business.clone(), id: row.id }).await
}

async fn is_open(subject: &Subject, id: BroadcastId) -> Result<bool, StoreError> {
    Ok(subject.store.broadcasts.opened(200).await?.iter().any(|open| open.id == id))
}

async fn a_broadcast_is_open_from_when_it_is_opened_until_it_is_closed(subject: &Subject) -> Result<(), StoreError> {
    let (store, row) = (&subject.store.broadcasts, row(subject, 0));
    store.put(row.clone()).await?;
    assert_eq!(store.get(&[row.id, BroadcastId::new(start())]).await?, std::slice::from_ref(&row));
    assert!(!is_open(subject, row.id).await?);
    assert_eq!(store.list(&row.business, None, 10).await?, []);
    // The one that was put may be lost to a store that was restored: opening writes it too.
    for _ in 0..2 {
        store.open(row.clone(), list()).await?;
        assert!(is_open(subject, row.id).await?);
    }
    close(subject, &row).await?;
    assert!(!is_open(subject, row.id).await?);
    assert_eq!(store.list(&row.business, None, 10).await?, [row.id]);
    assert_eq!(store.get(&[row.id]).await?, [row]);
    Ok(())
}

async fn of_each_business_the_oldest_are_found_however_many_another_has_open(
    subject: &Subject,
) -> Result<(), StoreError> {
    let store = &subject.store.broadcasts;
    let of = |business: &str, after_ms| BroadcastRow {
        business: subject.business(business),
        value: Bytes::from_static(b"b"),
        ..row(subject, after_ms)
    };
    // More than fit on a page, before and behind the others by name.
    let flood: Vec<_> = (0..1_200).map(|number| of("b-flood", number)).collect();
    let others: Vec<_> = (0..3).flat_map(|number| [of("a-before", number), of("c-behind", number)]).collect();
    for row in flood.iter().chain(&others) {
        store.open(row.clone(), list()).await?;
    }
    let found = store.opened(3).await?;
    let is_of = |open: &OpenBroadcast, business: &str| open.business == subject.business(business);
    for (business, rows) in [("b-flood", &flood), ("a-before", &others), ("c-behind", &others)] {
        let rows = rows.iter().filter(|row| row.business == subject.business(business));
        let mut oldest: Vec<_> = rows.map(|row| row.id).collect();
        oldest.sort_unstable();
        let ours: Vec<_> = found.iter().filter(|open| is_of(open, business)).map(|open| open.id).collect();
        assert_eq!(ours, oldest[..3], "{business}");
    }
    for row in flood.iter().chain(&others) {
        close(subject, row).await?;
    }
    let left = store.opened(3).await?;
    assert!(!left.iter().any(|open| is_of(open, "b-flood") || is_of(open, "a-before")));
    Ok(())
}

async fn broadcasts_of_all_times_are_found_while_they_are_open(subject: &Subject) -> Result<(), StoreError> {
    let hour = 3_600_000;
    let rows: Vec<_> = (0..24).map(|number| row(subject, number * hour)).collect();
    for (number, row) in (0..).zip(&rows) {
        subject.clock.advance_millis(if number > 0 { hour } else { 0 });
        subject.store.broadcasts.open(row.clone(), list()).await?;
        if number % 3 > 0 {
            close(subject, row).await?;
        }
        assert!(is_open(subject, rows[0].id).await?);
    }
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(is_open(subject, row.id).await?, number % 3 == 0, "{number}");
    }
    // One that is read from the log again long after: the partition that it is in may be nowhere any more.
    subject.store.broadcasts.open(row(subject, 1), list()).await?;
    let late = row(subject, 2);
    subject.store.broadcasts.open(late.clone(), list()).await?;
    assert!(is_open(subject, late.id).await?);
    Ok(())
}

async fn broadcasts_are_listed_by_business_the_newest_first(subject: &Subject) -> Result<(), StoreError> {
    let store = &subject.store.broadcasts;
    let rows: Vec<_> = (0..5).map(|number| row(subject, number * 10)).collect();
    for number in [3, 0, 4, 1, 2] {
        store.open(rows[number].clone(), list()).await?;
    }
    store.open(BroadcastRow { business: subject.business("other"), ..row(subject, 25) }, list()).await?;
    let business = &rows[0].business;
    assert_eq!(store.list(business, None, 2).await?, [rows[4].id, rows[3].id]);
    assert_eq!(store.list(business, Some(rows[3].id), 10).await?, [rows[2].id, rows[1].id, rows[0].id]);
    assert_eq!(store.list(business, Some(rows[0].id), 10).await?, []);
    for row in rows {
        close(subject, &row).await?;
    }
    Ok(())
}

fn tally(broadcast: BroadcastId, (epoch, offset): (u32, u64), delivered: u64) -> Tally {
    Tally {
        broadcast,
        partition: 1,
        segment: 2,
        epoch: Epoch(epoch),
        offset,
        counts: Counts { delivered, ..Counts::default() },
        marks: Bytes::from(delivered.to_string()),
    }
}

async fn the_tally_of_the_highest_place_stands(subject: &Subject) -> Result<(), StoreError> {
    let (store, id) = (&subject.store.broadcasts, BroadcastId::new(start()));
    assert_eq!(store.marks(id, 1, 2).await?, None);
    for (place, delivered, stands) in [
        ((0, 100), 10, "10"),
        ((0, 99), 9, "10"),
        ((0, 101), 11, "11"),
        ((1, 5), 12, "12"),
        ((0, 1 << 39), 13, "12"),
        ((1, 6), 14, "14"),
    ] {
        store.put_tallies(vec![tally(id, place, delivered)]).await?;
        assert_eq!(store.marks(id, 1, 2).await?, Some(Bytes::from(stands)), "{place:?}");
        assert_eq!(store.counts(id).await?.delivered.to_string(), stands, "{place:?}");
    }
    Ok(())
}

async fn the_counts_of_a_broadcast_are_those_of_all_its_tallies(subject: &Subject) -> Result<(), StoreError> {
    let (store, id) = (&subject.store.broadcasts, BroadcastId::new(start()));
    assert_eq!(store.counts(id).await?, Counts::default());
    let counts = Counts { delivered: 4, read: 3, failed: 2, expired: 1 };
    let tallies = (0..6_u32)
        .flat_map(|partition| (0..5).map(move |segment| Tally { partition, segment, counts, ..tally(id, (0, 7), 4) }));
    store.put_tallies(tallies.collect()).await?;
    store.put_tallies(vec![tally(BroadcastId::new(start()), (0, 7), 100)]).await?;
    assert_eq!(store.counts(id).await?, Counts { delivered: 120, read: 90, failed: 60, expired: 30 });
    assert_eq!(store.marks(id, 5, 4).await?, Some(Bytes::from_static(b"4")));
    Ok(())
}

async fn what_is_old_goes(subject: &Subject) -> Result<(), StoreError> {
    let (store, row) = (&subject.store.broadcasts, row(subject, 0));
    store.open(row.clone(), list()).await?;
    close(subject, &row).await?;
    assert_eq!(store.trim(start().plus_millis(KEPT_MS - 1)).await?, 0);
    assert_eq!(store.get(&[row.id]).await?, std::slice::from_ref(&row));
    // An engine in which they go by themselves has nothing to do.
    if store.trim(start().plus_millis(KEPT_MS)).await? > 0 {
        assert_eq!(store.get(&[row.id]).await?, []);
        assert_eq!(store.list(&row.business, None, 10).await?, []);
    }
    Ok(())
}
