//! A side's conversations, newest activity first.

use std::collections::BTreeSet;

use eshaar_model::{Conversation, ConversationStatus, Pair, Side};

use super::{SECOND, everything, get, ids, row, started, walk};
use crate::conformance::Subject;
use crate::{ListQuery, StoreError};

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

pub(super) async fn a_list_is_newest_activity_first_for_each_side(subject: &Subject) -> Result<(), StoreError> {
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

pub(super) async fn a_list_is_filtered_by_status(subject: &Subject) -> Result<(), StoreError> {
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

pub(super) async fn a_walk_gives_each_conversation_once_while_others_are_active(
    subject: &Subject,
) -> Result<(), StoreError> {
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

pub(super) async fn a_list_goes_over_idle_times(subject: &Subject) -> Result<(), StoreError> {
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
