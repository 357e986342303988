//! API keys: found by id, listed oldest first, revoked once.

use eshaar_model::Permission;

use super::{Subject, start};
use crate::{ApiKey, StoreError};

super::checks! {
    /// Every check of the key port.
    a_key_comes_back_as_it_was_written,
    the_same_id_again_replaces_it,
    keys_are_listed_oldest_first,
    the_first_revocation_stays,
    a_business_exists_from_its_first_key_on,
}

fn key(subject: &Subject, id: &str, of: &str, after_ms: i64) -> ApiKey {
    ApiKey {
        id: subject.name(id),
        business: subject.business(of),
        name: "billing 'n more".to_owned(),
        secret_hash: [9; 32],
        permissions: vec![Permission::MessagesSend, Permission::Chat],
        rate: "100/min".parse().ok(),
        created_at: start().plus_millis(after_ms),
        expires_at: None,
        revoked_at: None,
    }
}

/// The list of all keys, without those of other subjects.
async fn ours(subject: &Subject) -> Result<Vec<ApiKey>, StoreError> {
    let mut keys = subject.store.keys.list(None).await?;
    keys.retain(|key| key.id.ends_with(&subject.name("")));
    Ok(keys)
}

async fn a_key_comes_back_as_it_was_written(subject: &Subject) -> Result<(), StoreError> {
    let keys = &subject.store.keys;
    let plain = key(subject, "k1", "acme", 0);
    let bare =
        ApiKey { permissions: Vec::new(), rate: None, expires_at: Some(start()), ..key(subject, "k2", "acme", 0) };
    for written in [plain, bare] {
        keys.put(written.clone()).await?;
        assert_eq!(keys.get(&written.id).await?, Some(written));
    }
    assert_eq!(keys.get(&subject.name("k")).await?, None);
    Ok(())
}

async fn the_same_id_again_replaces_it(subject: &Subject) -> Result<(), StoreError> {
    let keys = &subject.store.keys;
    keys.put(key(subject, "k1", "acme", 0)).await?;
    let changed = ApiKey { permissions: vec![Permission::Admin], ..key(subject, "k1", "other", 5) };
    keys.put(changed.clone()).await?;
    assert_eq!(ours(subject).await?, [changed]);
    assert!(keys.list(Some(&subject.business("acme"))).await?.is_empty());
    Ok(())
}

async fn keys_are_listed_oldest_first(subject: &Subject) -> Result<(), StoreError> {
    let keys = &subject.store.keys;
    for (id, of, after_ms) in [("c", "acme", 1), ("a", "acme", 2), ("b", "other", 0)] {
        keys.put(key(subject, id, of, after_ms)).await?;
    }
    let ids = |keys: Vec<ApiKey>| keys.into_iter().map(|key| key.id).collect::<Vec<_>>();
    assert_eq!(ids(ours(subject).await?), ["b", "c", "a"].map(|id| subject.name(id)));
    assert_eq!(ids(keys.list(Some(&subject.business("acme"))).await?), ["c", "a"].map(|id| subject.name(id)));
    Ok(())
}

async fn the_first_revocation_stays(subject: &Subject) -> Result<(), StoreError> {
    let keys = &subject.store.keys;
    keys.put(key(subject, "k1", "acme", 0)).await?;
    assert!(keys.revoke(&subject.name("k1"), start().plus_millis(1)).await?);
    assert!(keys.revoke(&subject.name("k1"), start().plus_millis(2)).await?);
    assert!(!keys.revoke(&subject.name("k2"), start()).await?);
    assert_eq!(keys.get(&subject.name("k1")).await?.and_then(|key| key.revoked_at), Some(start().plus_millis(1)));
    Ok(())
}

async fn a_business_exists_from_its_first_key_on(subject: &Subject) -> Result<(), StoreError> {
    let (keys, acme) = (&subject.store.keys, subject.business("acme"));
    assert!(!keys.has_business(&acme).await?);
    keys.put(key(subject, "k1", "acme", 0)).await?;
    assert!(keys.has_business(&acme).await?);
    assert!(!keys.has_business(&subject.business("other")).await?);
    keys.revoke(&subject.name("k1"), start()).await?;
    assert!(keys.has_business(&acme).await?, "its conversations outlive its keys");
    Ok(())
}
