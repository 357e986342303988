//! Claims: exactly one first, a repeat finds what it left, gone after 24 h.

use std::sync::Arc;

use bytes::Bytes;
use eshaar_model::Timestamp;

use super::Subject;
use crate::claims::KEPT_MS;
use crate::{Claim, ClaimKey, Claimed, StoreError};

super::checks! {
    /// Every check of the claim port.
    the_first_use_claims_and_a_repeat_finds_it,
    a_key_belongs_to_its_principal,
    an_answer_is_found_by_the_repeat,
    of_a_hundred_at_once_one_is_first,
    a_claim_is_gone_after_a_day,
    trim_lets_go_of_old_claims_alone,
}

fn key(subject: &Subject, principal: &str, key: &str) -> ClaimKey {
    ClaimKey { principal: subject.name(principal), key: key.to_owned() }
}

fn claim(minted: &str, claimed_at: Timestamp) -> Claim {
    Claim { body_hash: [7; 32], minted: Bytes::from(minted.to_owned()), answer: None, claimed_at }
}

async fn the_first_use_claims_and_a_repeat_finds_it(subject: &Subject) -> Result<(), StoreError> {
    let claims = &subject.store.claims;
    let first = claim("a", subject.clock.now());
    assert_eq!(claims.claim(&key(subject, "acme", "k"), first.clone()).await?, Claimed::First);
    let other = Claim { body_hash: [8; 32], ..claim("b", subject.clock.now()) };
    assert_eq!(claims.claim(&key(subject, "acme", "k"), other).await?, Claimed::Repeat(first));
    Ok(())
}

async fn a_key_belongs_to_its_principal(subject: &Subject) -> Result<(), StoreError> {
    for (principal, name) in [("acme", "k"), ("acme", "k2"), ("acmek", ""), ("other", "k")] {
        let claimed =
            subject.store.claims.claim(&key(subject, principal, name), claim("a", subject.clock.now())).await?;
        assert_eq!(claimed, Claimed::First, "{principal} {name}");
    }
    Ok(())
}

async fn an_answer_is_found_by_the_repeat(subject: &Subject) -> Result<(), StoreError> {
    let claims = &subject.store.claims;
    let (key, unknown) = (key(subject, "acme", "k"), key(subject, "acme", "unknown"));
    let first = claim("a", subject.clock.now());
    claims.claim(&key, first.clone()).await?;
    claims.answered(&key, &first.minted, Bytes::from_static(b"{}")).await?;
    let answered = Claim { answer: Some(Bytes::from_static(b"{}")), ..first.clone() };
    assert_eq!(claims.claim(&key, first.clone()).await?, Claimed::Repeat(answered));
    // An answer to a claim that nobody made is not found by the one that is made then.
    claims.answered(&unknown, &first.minted, Bytes::from_static(b"{}")).await?;
    let second = claim("b", subject.clock.now());
    assert_eq!(claims.claim(&unknown, second.clone()).await?, Claimed::First);
    assert_eq!(claims.claim(&unknown, second.clone()).await?, Claimed::Repeat(second));
    Ok(())
}

async fn of_a_hundred_at_once_one_is_first(subject: &Subject) -> Result<(), StoreError> {
    let at_once = Arc::new(tokio::sync::Barrier::new(100));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..100 {
        let (claims, at_once, now) = (Arc::clone(&subject.store.claims), Arc::clone(&at_once), subject.clock.now());
        let key = key(subject, "acme", "k");
        tasks.spawn(async move {
            at_once.wait().await;
            (number, claims.claim(&key, claim(&number.to_string(), now)).await)
        });
    }
    let (mut first, mut found) = (Vec::new(), Vec::new());
    for (number, claimed) in tasks.join_all().await {
        match claimed? {
            Claimed::First => first.push(number.to_string()),
            Claimed::Repeat(claim) => found.push(String::from_utf8(claim.minted.to_vec()).unwrap()),
        }
    }
    assert_eq!((first.len(), found.len()), (1, 99));
    assert!(found.iter().all(|minted| *minted == first[0]));
    Ok(())
}

async fn a_claim_is_gone_after_a_day(subject: &Subject) -> Result<(), StoreError> {
    let claims = &subject.store.claims;
    let old = claim("old", subject.clock.now());
    claims.claim(&key(subject, "acme", "k"), old.clone()).await?;
    claims.answered(&key(subject, "acme", "k"), &old.minted, Bytes::from_static(b"old")).await?;
    let old = Claim { answer: Some(Bytes::from_static(b"old")), ..old };
    subject.clock.advance_millis(KEPT_MS - 1_000);
    assert_eq!(claims.claim(&key(subject, "acme", "k"), claim("b", subject.clock.now())).await?, Claimed::Repeat(old));
    subject.clock.advance_millis(1_000);
    let new = claim("new", subject.clock.now());
    assert_eq!(claims.claim(&key(subject, "acme", "k"), new.clone()).await?, Claimed::First);
    assert_eq!(claims.claim(&key(subject, "acme", "k"), claim("c", subject.clock.now())).await?, Claimed::Repeat(new));
    Ok(())
}

async fn trim_lets_go_of_old_claims_alone(subject: &Subject) -> Result<(), StoreError> {
    let claims = &subject.store.claims;
    for number in 0..10 {
        claims.claim(&key(subject, "acme", &number.to_string()), claim("a", subject.clock.now())).await?;
        subject.clock.advance_millis(KEPT_MS / 8);
    }
    let mut trimmed = 0;
    loop {
        match claims.trim(subject.clock.now()).await? {
            0 => break,
            claims => trimmed += claims,
        }
    }
    // Claimed 10/8, 9/8, 8/8 of a day ago; an engine may leave expired claims to its own time.
    assert!(trimmed <= 3, "{trimmed}");
    for number in 0..10 {
        let again = claims.claim(&key(subject, "acme", &number.to_string()), claim("b", subject.clock.now())).await?;
        assert_eq!(again == Claimed::First, number < 3, "{number}");
    }
    Ok(())
}
