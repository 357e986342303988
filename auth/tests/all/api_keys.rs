use std::sync::atomic::Ordering;

use eshaar_auth::{AuthError, keys};
use eshaar_model::{Permission, Principal};
use eshaar_store::KeyStore as _;

use crate::fixture::{Fixture, NOW};

fn mint() -> keys::Minted {
    keys::mint("acme".parse().unwrap(), "tests", vec![Permission::MessagesSend], None, NOW)
}

fn refused(reason: &'static str) -> Result<eshaar_auth::Identity, AuthError> {
    Err(AuthError::Refused(reason))
}

#[tokio::test]
async fn a_minted_key_is_its_business_with_its_permissions() {
    let fixture = Fixture::new(|_| ()).await;
    let minted = mint();
    fixture.keys.put(minted.stored.clone()).await.unwrap();
    let identity = fixture.auth.authenticate(&minted.text).await.unwrap();
    assert_eq!(identity.principal, Principal::Business("acme".parse().unwrap()));
    assert_eq!(identity.key_id, Some(minted.stored.id));
    assert!(identity.may(Permission::MessagesSend) && !identity.may(Permission::Admin));
}

#[tokio::test]
async fn the_secret_is_neither_stored_nor_in_debug_output() {
    let minted = mint();
    let secret = minted.text.rsplit('_').next().unwrap();
    assert_eq!(secret.len(), 43);
    assert!(!format!("{minted:?} {:?}", minted.stored).contains(secret));
}

#[tokio::test]
async fn no_two_keys_are_alike() {
    let texts: std::collections::HashSet<_> = (0..1_000).map(|_| mint().text).collect();
    assert_eq!(texts.len(), 1_000);
}

#[tokio::test]
async fn a_wrong_secret_is_answered_like_an_unknown_key() {
    let fixture = Fixture::new(|_| ()).await;
    let minted = mint();
    fixture.keys.put(minted.stored.clone()).await.unwrap();
    let last = if minted.text.ends_with('a') { 'b' } else { 'a' };
    let wrong = format!("{}{last}", &minted.text[..minted.text.len() - 1]);
    assert_eq!(fixture.auth.authenticate(&wrong).await, refused("no such API key"));
    assert_eq!(fixture.auth.authenticate(&mint().text).await, refused("no such API key"));
}

#[tokio::test]
async fn what_is_not_of_the_form_of_a_key_is_refused_without_asking_the_store() {
    let fixture = Fixture::new(|_| ()).await;
    let whole = mint().text;
    let malformed = (4..whole.len()).map(|cut| whole[..cut].to_owned());
    for text in
        malformed.chain(["esk_é_ü".to_owned(), format!("{whole}x"), whole.replace('_', "-").replacen('-', "_", 1)])
    {
        assert_eq!(fixture.auth.authenticate(&text).await, refused("it is not an API key of this service"), "{text}");
    }
    assert_eq!(fixture.keys.lookups.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_where_it_was_revoked() {
    let fixture = Fixture::new(|_| ()).await;
    let minted = mint();
    fixture.keys.put(minted.stored.clone()).await.unwrap();
    let identity = fixture.auth.authenticate(&minted.text).await.unwrap();
    assert_eq!(fixture.auth.still(&identity).await.as_ref(), Ok(&identity));
    fixture.keys.revoke(&minted.stored.id, NOW).await.unwrap();
    fixture.auth.forget_key(&minted.stored.id).await;
    assert_eq!(fixture.auth.authenticate(&minted.text).await, refused("the API key is revoked"));
    assert_eq!(fixture.auth.still(&identity).await, refused("the API key is revoked"));
}

#[tokio::test]
async fn a_key_is_refused_from_the_moment_it_expires() {
    let fixture = Fixture::new(|_| ()).await;
    let mut minted = mint();
    minted.stored.expires_at = Some(NOW.plus_millis(1_000));
    fixture.keys.put(minted.stored.clone()).await.unwrap();
    fixture.clock.advance_millis(999);
    fixture.auth.authenticate(&minted.text).await.unwrap();
    fixture.clock.advance_millis(1);
    assert_eq!(fixture.auth.authenticate(&minted.text).await, refused("the API key has expired"));
}

#[tokio::test]
async fn a_key_is_looked_up_once_whether_it_is_known_or_not() {
    let fixture = Fixture::new(|_| ()).await;
    let (known, unknown) = (mint(), mint());
    fixture.keys.put(known.stored.clone()).await.unwrap();
    for _ in 0..10 {
        fixture.auth.authenticate(&known.text).await.unwrap();
        fixture.auth.authenticate(&unknown.text).await.unwrap_err();
    }
    assert_eq!(fixture.keys.lookups.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_store_that_is_down_is_no_verdict_and_is_asked_again() {
    let fixture = Fixture::new(|_| ()).await;
    let minted = mint();
    fixture.keys.put(minted.stored.clone()).await.unwrap();
    fixture.keys.down.store(true, Ordering::SeqCst);
    assert!(matches!(fixture.auth.authenticate(&minted.text).await, Err(AuthError::Unavailable(_))));
    fixture.keys.down.store(false, Ordering::SeqCst);
    fixture.auth.authenticate(&minted.text).await.unwrap();
}
