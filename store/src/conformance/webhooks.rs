//! Webhooks: written if they are as they were read, listed oldest first, of their business alone; and their cursors.

use bytes::Bytes;
use eshaar_model::{Status, WebhookId};
use uuid::Uuid;

use super::{Subject, start};
use crate::webhooks::STATE_BYTES;
use crate::{StoreError, Webhook, WebhookCursor};

super::checks! {
    /// Every check of the webhook port.
    a_webhook_comes_back_as_it_was_written,
    it_is_of_its_business_alone,
    of_two_who_change_it_the_second_reads_again,
    a_deleted_one_is_gone_and_stays_so,
    the_newest_cursor_stands_until_it_is_removed,
}

fn webhook(subject: &Subject, of: &str, after_ms: i64) -> Webhook {
    let created_at = start().plus_millis(after_ms);
    Webhook {
        id: WebhookId::new(created_at),
        business: subject.business(of),
        url: "https://example.org/hooks?a=b".to_owned(),
        events: vec![Status::Delivered, Status::Read],
        key: "k1".to_owned(),
        generation: 0,
        rotated_at: None,
        created_at,
        disabled: None,
        failures: 0,
        failing_since: None,
        last_failure: None,
        missed: 0,
        revision: Uuid::nil(),
    }
}

async fn a_webhook_comes_back_as_it_was_written(subject: &Subject) -> Result<(), StoreError> {
    let webhooks = &subject.store.webhooks;
    let plain = webhook(subject, "acme", 0);
    let full = Webhook {
        events: Vec::new(),
        generation: 7,
        rotated_at: Some(start()),
        disabled: Some((start().plus_millis(3), "it answered 410 Gone".to_owned())),
        failures: 140,
        failing_since: Some(start().plus_millis(1)),
        last_failure: Some("it answered 500".to_owned()),
        missed: 7,
        ..webhook(subject, "acme", 1)
    };
    for new in [plain, full] {
        let written = webhooks.create(new.clone()).await?;
        assert_ne!(written.revision, Uuid::nil());
        assert_eq!(Webhook { revision: Uuid::nil(), ..written.clone() }, new);
        assert_eq!(webhooks.get(&new.business, new.id).await?, Some(written.clone()));
        // Once more, as after an answer that was lost.
        assert_eq!(webhooks.create(new).await?, written);
    }
    Ok(())
}

async fn it_is_of_its_business_alone(subject: &Subject) -> Result<(), StoreError> {
    let webhooks = &subject.store.webhooks;
    let mut made = Vec::new();
    for (of, after_ms) in [("acme", 0), ("acme", 1), ("other", 2)] {
        made.push(webhooks.create(webhook(subject, of, after_ms)).await?);
    }
    assert_eq!(webhooks.list(&subject.business("acme")).await?, made[..2]);
    assert_eq!(webhooks.list(&subject.business("nobody")).await?, []);
    assert_eq!(webhooks.get(&subject.business("other"), made[0].id).await?, None);
    assert!(!webhooks.delete(&subject.business("other"), made[0].id).await?);
    let stranger = Webhook { business: subject.business("other"), ..made[0].clone() };
    assert_eq!(webhooks.replace(stranger).await?, None);
    Ok(())
}

async fn of_two_who_change_it_the_second_reads_again(subject: &Subject) -> Result<(), StoreError> {
    let webhooks = &subject.store.webhooks;
    let read = webhooks.create(webhook(subject, "acme", 0)).await?;
    let first = Webhook { failures: 3, failing_since: Some(start()), ..read.clone() };
    let written = webhooks.replace(first).await?.unwrap();
    assert_ne!(written.revision, read.revision);
    assert_eq!(webhooks.replace(Webhook { generation: 1, ..read.clone() }).await?, None);
    let second = Webhook { disabled: Some((start(), "by hand".to_owned())), ..written };
    let second = webhooks.replace(second).await?.unwrap();
    assert_eq!((second.failures, webhooks.get(&read.business, read.id).await?), (3, Some(second.clone())));
    let cleared = Webhook { disabled: None, failures: 0, failing_since: None, ..second };
    let cleared = webhooks.replace(cleared).await?.unwrap();
    assert_eq!(webhooks.get(&read.business, read.id).await?, Some(cleared));
    Ok(())
}

async fn a_deleted_one_is_gone_and_stays_so(subject: &Subject) -> Result<(), StoreError> {
    let webhooks = &subject.store.webhooks;
    let made = webhooks.create(webhook(subject, "acme", 0)).await?;
    assert!(webhooks.delete(&made.business, made.id).await?);
    assert!(!webhooks.delete(&made.business, made.id).await?);
    assert_eq!(webhooks.replace(made.clone()).await?, None);
    assert_eq!(webhooks.list(&made.business).await?, []);
    Ok(())
}

fn state(offset: u64) -> Bytes {
    // An empty one, and the largest.
    Bytes::from(vec![7; if offset == 9 { STATE_BYTES } else { offset as usize }])
}

async fn the_newest_cursor_stands_until_it_is_removed(subject: &Subject) -> Result<(), StoreError> {
    let webhooks = &subject.store.webhooks;
    // A partition of our own.
    let partition = subject.space;
    let cursor = |webhook, offset| WebhookCursor {
        business: subject.business("acme"),
        webhook,
        epoch: subject.epoch(1),
        offset,
        state: state(offset),
    };
    let (one, other) = (WebhookId::new(start()), WebhookId::new(start().plus_millis(1)));
    webhooks.put_cursors(partition, vec![cursor(one, 5), cursor(other, 0)]).await?;
    webhooks.put_cursors(partition, vec![cursor(one, 9)]).await?;
    assert_eq!(webhooks.cursors(partition).await?, [cursor(one, 9), cursor(other, 0)]);
    webhooks.remove_cursor(partition, one).await?;
    webhooks.remove_cursor(partition, one).await?;
    assert_eq!(webhooks.cursors(partition).await?, [cursor(other, 0)]);
    assert_eq!(webhooks.cursors(partition + 9_000).await?, []);
    Ok(())
}
