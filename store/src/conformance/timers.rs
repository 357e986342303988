//! Timers: in the order they are due, behind a mark that only who took the partition over moves.

use bytes::Bytes;
use eshaar_model::{MessageId, Timestamp};

use super::{Subject, start};
use crate::{Holder, StoreError, Timer, TimerPlace};

super::checks! {
    /// Every check of the timer port.
    timers_come_back_in_the_order_they_are_due,
    what_is_past_the_mark_is_never_given_again,
    only_who_took_a_partition_over_last_moves_its_mark,
    what_was_taken_over_is_known,
    a_mark_that_is_moved_back_gives_what_stands_behind_it,
    partitions_have_nothing_to_do_with_each_other,
    many_of_one_moment_come_in_pages,
}

const HOUR_MS: i64 = 3_600_000;

fn timer(after_ms: i64) -> Timer {
    let due = start().plus_millis(after_ms);
    Timer {
        place: TimerPlace::of(due, MessageId::new(start())),
        key: Bytes::from_static(b"+966501234567"),
        headers: Bytes::from(format!("headers {after_ms}")),
        value: Bytes::from(format!("value {after_ms}")),
    }
}

fn later(after_ms: i64) -> Timestamp {
    start().plus_millis(after_ms)
}

/// Everything that waits behind the mark, until `after_ms`, in pages of two.
async fn all(subject: &Subject, mark: TimerPlace, after_ms: i64) -> Result<Vec<Timer>, StoreError> {
    let (mut found, mut after) = (Vec::new(), mark);
    loop {
        let page = subject.store.timers.next(subject.space, after, later(after_ms), 2).await?;
        let Some(last) = page.last() else { return Ok(found) };
        after = last.place;
        found.extend(page);
    }
}

async fn timers_come_back_in_the_order_they_are_due(subject: &Subject) -> Result<(), StoreError> {
    let timers = &subject.store.timers;
    let mark = timers.take(subject.space, Holder::new()).await?;
    assert_eq!(all(subject, mark, i64::from(i32::MAX)).await?, []);
    // Over hours, a day and a month, written in no order.
    let due = [0, 1, HOUR_MS - 1, HOUR_MS, 3 * HOUR_MS, 25 * HOUR_MS, 30 * 24 * HOUR_MS];
    let mut written: Vec<Timer> = due.into_iter().map(timer).collect();
    written.reverse();
    timers.put(subject.space, written.clone()).await?;
    timers.put(subject.space, written.clone()).await?;
    written.reverse();
    assert_eq!(all(subject, mark, 30 * 24 * HOUR_MS).await?, written);
    assert_eq!(all(subject, mark, HOUR_MS).await?, written[..4]);
    assert_eq!(all(subject, mark, HOUR_MS - 1).await?, written[..3]);
    assert_eq!(timers.count(subject.space, mark).await?, 7);
    assert_eq!(timers.count(subject.space, written[4].place).await?, 2);
    Ok(())
}

async fn what_is_past_the_mark_is_never_given_again(subject: &Subject) -> Result<(), StoreError> {
    let timers = &subject.store.timers;
    let holder = Holder::new();
    timers.take(subject.space, holder).await?;
    let written: Vec<Timer> = [10, 20, HOUR_MS, 2 * HOUR_MS].into_iter().map(timer).collect();
    timers.put(subject.space, written.clone()).await?;
    assert!(timers.mark(subject.space, holder, written[1].place).await?);
    let mark = timers.take(subject.space, Holder::new()).await?;
    assert_eq!(mark, written[1].place);
    assert_eq!(all(subject, mark, 2 * HOUR_MS).await?, written[2..]);
    assert_eq!(timers.count(subject.space, mark).await?, 2);
    Ok(())
}

async fn only_who_took_a_partition_over_last_moves_its_mark(subject: &Subject) -> Result<(), StoreError> {
    let timers = &subject.store.timers;
    let (stopped, owner) = (Holder::new(), Holder::new());
    let first = timers.take(subject.space, stopped).await?;
    assert!(timers.mark(subject.space, stopped, TimerPlace::before(later(5))).await?);
    assert!(first < TimerPlace::before(later(5)));
    assert_eq!(timers.take(subject.space, owner).await?, TimerPlace::before(later(5)));
    assert!(!timers.mark(subject.space, stopped, TimerPlace::after(later(9))).await?);
    assert!(timers.mark(subject.space, owner, TimerPlace::before(later(7))).await?);
    // Once more, as after an answer that was lost.
    assert!(timers.mark(subject.space, owner, TimerPlace::before(later(7))).await?);
    assert_eq!(timers.take(subject.space, owner).await?, TimerPlace::before(later(7)));
    Ok(())
}

async fn what_was_taken_over_is_known(subject: &Subject) -> Result<(), StoreError> {
    let timers = &subject.store.timers;
    let (low, high) = (subject.space, subject.space + 9_000);
    let of_ours = async || -> Result<Vec<u32>, StoreError> {
        Ok(timers.partitions().await?.into_iter().filter(|partition| [low, high].contains(partition)).collect())
    };
    assert!(of_ours().await?.is_empty());
    timers.take(high, Holder::new()).await?;
    assert_eq!(of_ours().await?, [high]);
    timers.take(low, Holder::new()).await?;
    timers.take(high, Holder::new()).await?;
    assert_eq!(of_ours().await?, [low, high]);
    Ok(())
}

async fn a_mark_that_is_moved_back_gives_what_stands_behind_it(subject: &Subject) -> Result<(), StoreError> {
    let timers = &subject.store.timers;
    let holder = Holder::new();
    timers.take(subject.space, holder).await?;
    assert!(timers.mark(subject.space, holder, TimerPlace::after(later(50))).await?);
    // By another clock it is not due yet.
    let late = timer(40);
    assert!(timers.mark(subject.space, holder, TimerPlace::before(late.place.due)).await?);
    timers.put(subject.space, vec![late.clone()]).await?;
    let mark = timers.take(subject.space, Holder::new()).await?;
    assert_eq!(all(subject, mark, 100).await?, [late]);
    Ok(())
}

async fn partitions_have_nothing_to_do_with_each_other(subject: &Subject) -> Result<(), StoreError> {
    let timers = &subject.store.timers;
    let other = subject.space + 9_000;
    let (ours, theirs) = (timer(1), timer(2));
    timers.put(subject.space, vec![ours.clone()]).await?;
    timers.put(other, vec![theirs.clone()]).await?;
    let holder = Holder::new();
    let mark = timers.take(other, holder).await?;
    assert_eq!(timers.next(other, mark, later(9), 10).await?, [theirs]);
    assert!(timers.mark(other, holder, TimerPlace::after(later(9))).await?);
    assert_eq!(all(subject, mark, 9).await?, [ours]);
    Ok(())
}

async fn many_of_one_moment_come_in_pages(subject: &Subject) -> Result<(), StoreError> {
    let mut written: Vec<Timer> = (0..500).map(|_| timer(7)).collect();
    for timers in written.chunks(100) {
        subject.store.timers.put(subject.space, timers.to_vec()).await?;
    }
    written.sort_by_key(|timer| timer.place);
    let mark = subject.store.timers.take(subject.space, Holder::new()).await?;
    assert_eq!(all(subject, mark, 7).await?, written);
    assert_eq!(subject.store.timers.count(subject.space, written[99].place).await?, 400);
    Ok(())
}
