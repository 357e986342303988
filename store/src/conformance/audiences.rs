//! Audiences: replaced as a whole, and lists that go when they are nobody's.

use bytes::Bytes;
use eshaar_model::{BroadcastId, Phone, RecipientsId};

use super::{Subject, start};
use crate::audiences::{KEPT_MS, PAGE_PHONES, begin, collect, remove, replace};
use crate::{Audience, BroadcastRow, Expiry, OpenBroadcast, StoreError};

super::checks! {
    /// Every check of the audience port.
    pages_are_read_as_they_were_written,
    an_audience_is_replaced_as_a_whole_and_its_list_goes_later,
    a_list_that_was_begun_and_never_became_an_audiences_goes,
    a_list_that_is_an_audiences_stays_whatever_was_noted,
    a_list_stays_for_as_long_as_a_broadcast_is_sent_to_it,
    lists_that_are_due_are_found_whenever_they_were_noted,
    a_business_sees_its_own_audiences,
}

fn audience(subject: &Subject, name: &str) -> Audience {
    Audience {
        business: subject.business("acme"),
        name: name.to_owned(),
        recipients: RecipientsId::new(start()),
        total: 2,
        uploaded_at: start(),
    }
}

/// Collects until nothing is due that is of now.
async fn collect_all(subject: &Subject) -> Result<(), StoreError> {
    while collect(&subject.store, subject.clock.now()).await? > 0 {}
    Ok(())
}

async fn pages_are_read_as_they_were_written(subject: &Subject) -> Result<(), StoreError> {
    let (store, list) = (&subject.store.audiences, RecipientsId::new(start()));
    let page: Vec<Phone> = (0..PAGE_PHONES as u64).map(|number| subject.phone(number)).collect();
    // Across the border of what goes at once.
    for number in [0, 63, 64, 65] {
        store.put_page(list, number, page[..=number as usize].to_vec()).await?;
    }
    store.put_page(list, 0, page.clone()).await?;
    assert_eq!(store.page(list, 0).await?, page);
    assert_eq!(store.page(list, 64).await?, page[..=64]);
    assert_eq!(store.page(list, 1).await?, []);
    assert_eq!(store.page(RecipientsId::new(start()), 0).await?, []);
    assert!(store.delete_pages(list, 0).await? && store.delete_pages(list, 1).await?);
    assert!(!store.delete_pages(list, 2).await?);
    assert_eq!((store.page(list, 0).await?, store.page(list, 65).await?), (Vec::new(), Vec::new()));
    Ok(())
}

async fn an_audience_is_replaced_as_a_whole_and_its_list_goes_later(subject: &Subject) -> Result<(), StoreError> {
    let store = &*subject.store.audiences;
    let (first, second) = (audience(subject, "cards"), Audience { total: 1, ..audience(subject, "cards") });
    for (of, phones) in [(&first, vec![subject.phone(1), subject.phone(2)]), (&second, vec![subject.phone(3)])] {
        begin(store, of.recipients, Some((of.business.clone(), of.name.clone())), subject.clock.now()).await?;
        store.put_page(of.recipients, 0, phones).await?;
    }
    replace(store, first.clone(), subject.clock.now()).await?;
    assert_eq!(store.get(&first.business, "cards").await?, Some(first.clone()));
    subject.clock.advance_millis(1_000);
    replace(store, second.clone(), subject.clock.now()).await?;
    assert_eq!(store.get(&first.business, "cards").await?, Some(second.clone()));
    // A broadcast to what it was may be under way.
    subject.clock.advance_millis(KEPT_MS - 1);
    collect_all(subject).await?;
    assert_eq!(store.page(second.recipients, 0).await?, [subject.phone(3)]);
    subject.clock.advance_millis(1);
    collect_all(subject).await?;
    assert_eq!(store.page(first.recipients, 0).await?, []);
    assert_eq!(store.page(second.recipients, 0).await?, [subject.phone(3)]);
    assert!(remove(store, &first.business, "cards", subject.clock.now()).await?);
    assert!(!remove(store, &first.business, "cards", subject.clock.now()).await?);
    assert_eq!(store.get(&first.business, "cards").await?, None);
    assert_eq!(store.page(second.recipients, 0).await?, [subject.phone(3)]);
    subject.clock.advance_millis(KEPT_MS);
    collect_all(subject).await?;
    assert_eq!(store.page(second.recipients, 0).await?, []);
    Ok(())
}

async fn a_list_that_was_begun_and_never_became_an_audiences_goes(subject: &Subject) -> Result<(), StoreError> {
    let store = &*subject.store.audiences;
    let (named, unnamed) = (audience(subject, "broken"), RecipientsId::new(start()));
    begin(store, named.recipients, Some((named.business.clone(), named.name.clone())), subject.clock.now()).await?;
    begin(store, unnamed, None, subject.clock.now()).await?;
    for list in [named.recipients, unnamed] {
        store.put_page(list, 0, vec![subject.phone(1)]).await?;
    }
    subject.clock.advance_millis(KEPT_MS);
    collect_all(subject).await?;
    assert_eq!((store.page(named.recipients, 0).await?, store.page(unnamed, 0).await?), (Vec::new(), Vec::new()));
    Ok(())
}

async fn a_list_that_is_an_audiences_stays_whatever_was_noted(subject: &Subject) -> Result<(), StoreError> {
    let store = &*subject.store.audiences;
    let kept = audience(subject, "kept");
    store.put_page(kept.recipients, 0, vec![subject.phone(1)]).await?;
    store.put(kept.clone()).await?;
    let expiry = Expiry {
        due: subject.clock.now(),
        recipients: kept.recipients,
        audience: Some((kept.business.clone(), kept.name.clone())),
    };
    store.expire(expiry.clone()).await?;
    assert!(store.due(subject.clock.now(), 1_000).await?.contains(&expiry));
    collect_all(subject).await?;
    assert!(!store.due(subject.clock.now(), 1_000).await?.contains(&expiry));
    assert_eq!(store.page(kept.recipients, 0).await?, [subject.phone(1)]);
    Ok(())
}

async fn a_list_stays_for_as_long_as_a_broadcast_is_sent_to_it(subject: &Subject) -> Result<(), StoreError> {
    let (store, broadcasts) = (&*subject.store.audiences, &subject.store.broadcasts);
    let audience = audience(subject, "used");
    store.put_page(audience.recipients, 0, vec![subject.phone(1)]).await?;
    store.put(audience.clone()).await?;
    let created_at = subject.clock.now();
    let row = BroadcastRow {
        id: BroadcastId::new(created_at),
        business: audience.business.clone(),
        created_at,
        value: Bytes::from_static(b"a broadcast"),
    };
    broadcasts.open(row.clone(), audience.recipients).await?;
    let other = Audience { recipients: RecipientsId::new(start()), ..audience.clone() };
    replace(store, other, subject.clock.now()).await?;
    for _ in 0..30 {
        subject.clock.advance_millis(24 * 3600 * 1000);
        collect_all(subject).await?;
    }
    assert_eq!(store.page(audience.recipients, 0).await?, [subject.phone(1)], "30 days later it is sent still");
    broadcasts.close(&OpenBroadcast { business: row.business, id: row.id }).await?;
    subject.clock.advance_millis(2 * 24 * 3600 * 1000);
    collect_all(subject).await?;
    assert_eq!(store.page(audience.recipients, 0).await?, []);
    Ok(())
}

/// Those of a queue that is cut by time, across its borders.
async fn lists_that_are_due_are_found_whenever_they_were_noted(subject: &Subject) -> Result<(), StoreError> {
    let store = &*subject.store.audiences;
    let begun = subject.clock.now();
    let lists: Vec<_> = (0..20).map(|_| RecipientsId::new(start())).collect();
    for (number, list) in (0..).zip(&lists) {
        let expiry = Expiry { due: begun.plus_millis(number * 1_200_000), recipients: *list, audience: None };
        store.expire(expiry).await?;
    }
    for number in 0..20 {
        subject.clock.advance_millis(if number > 0 { 1_200_000 } else { 0 });
        let due = store.due(subject.clock.now(), 10_000).await?;
        let ours: Vec<_> = due.into_iter().filter(|expiry| lists.contains(&expiry.recipients)).collect();
        assert_eq!(ours.iter().map(|expiry| expiry.recipients).collect::<Vec<_>>(), [lists[number as usize]]);
        store.forget(&ours[0]).await?;
        // What was emptied long ago takes a late one all the same.
        if number == 15 {
            let late = Expiry { due: begun, recipients: lists[0], audience: None };
            store.expire(late.clone()).await?;
            assert!(store.due(subject.clock.now(), 10_000).await?.contains(&late));
            store.forget(&late).await?;
        }
    }
    Ok(())
}

async fn a_business_sees_its_own_audiences(subject: &Subject) -> Result<(), StoreError> {
    let store = &*subject.store.audiences;
    for name in ["b", "a"] {
        store.put(audience(subject, name)).await?;
    }
    store.put(Audience { business: subject.business("other"), ..audience(subject, "c") }).await?;
    let names = |all: Vec<Audience>| all.into_iter().map(|audience| audience.name).collect::<Vec<_>>();
    assert_eq!(names(store.list(&subject.business("acme")).await?), ["a", "b"]);
    assert_eq!(names(store.list(&subject.business("other")).await?), ["c"]);
    assert_eq!(store.get(&subject.business("other"), "a").await?, None);
    Ok(())
}
