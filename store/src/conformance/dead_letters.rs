//! Dead letters: kept once, listed newest first under every filter, ended once whoever races.

use std::sync::Arc;

use bytes::Bytes;
use eshaar_model::{Epoch, Timestamp};

use super::{Subject, start};
use crate::dead_letters::{KEPT_MS, Origin};
use crate::{
    DeadLetterId, Hold, Holder, Letter, LetterBody, LetterClaim, LetterHead, LetterQuery, LetterState, Settlement,
    StoreError,
};

super::checks! {
    /// Every check of the dead letter port.
    a_letter_comes_back_as_it_was_written,
    the_same_letter_again_changes_nothing,
    letters_are_listed_newest_first_page_by_page,
    each_filter_lists_its_letters_alone,
    of_many_that_claim_a_letter_one_gets_it,
    a_letter_ends_once,
    a_claim_that_has_lapsed_is_nobodys,
    letters_are_gone_after_seven_days,
}

fn head(subject: &Subject, offset: u64, after_ms: i64) -> LetterHead {
    let (stage, topic) = (subject.name("route"), "lane.high".to_owned());
    let origin = Origin { stage: &stage, epoch: Epoch(0), topic: &topic, partition: 3, offset, redrives: 1 };
    let id = DeadLetterId::of(&origin);
    LetterHead {
        id,
        topic,
        partition: 3,
        offset,
        redrives: 1,
        business: Some(subject.business("acme")),
        event: Some("019b7600-0000-7000-8000-000000000000".to_owned()),
        correlation: Some("c-1".to_owned()),
        code: "undecodable".to_owned(),
        reason: "not in Confluent wire format (3 bytes)".to_owned(),
        attempts: 6,
        at: start().plus_millis(after_ms),
        bytes: 3,
        stage,
    }
}

fn body() -> LetterBody {
    LetterBody {
        key: Bytes::from_static(b"+966501234567"),
        value: Bytes::from_static(b"\x00\xff\x01"),
        headers: Bytes::from_static(b"\x01a\x00\x01b"),
    }
}

async fn put(subject: &Subject, heads: &[LetterHead]) -> Result<(), StoreError> {
    subject.store.dead_letters.put(heads.iter().map(|head| (head.clone(), body())).collect()).await
}

fn ours(subject: &Subject) -> LetterQuery {
    LetterQuery { stage: Some(subject.name("route")), limit: 100, ..LetterQuery::default() }
}

/// The offsets of the letters that `query` lists, over all its pages.
async fn offsets(subject: &Subject, mut query: LetterQuery) -> Result<Vec<u64>, StoreError> {
    let mut offsets = Vec::new();
    loop {
        let page = subject.store.dead_letters.list(query.clone(), subject.clock.now()).await?;
        assert!(page.letters.len() <= query.limit);
        offsets.extend(page.letters.iter().map(|letter| letter.head.offset));
        match page.next {
            Some(next) => query.before = Some(next),
            None => return Ok(offsets),
        }
    }
}

fn hold(subject: &Subject, holder: Holder) -> Hold {
    let now = subject.clock.now();
    Hold { holder, now, until: now.plus_millis(60_000) }
}

fn ended(state: LetterState, at: Timestamp) -> Settlement {
    Settlement { state, at, by: "ops:key".to_owned() }
}

async fn a_letter_comes_back_as_it_was_written(subject: &Subject) -> Result<(), StoreError> {
    let whole = head(subject, 1, 0);
    let bare = LetterHead { business: None, event: None, correlation: None, ..head(subject, 2, 0) };
    for written in [whole, bare] {
        put(subject, std::slice::from_ref(&written)).await?;
        let found = subject.store.dead_letters.get(written.id).await?;
        assert_eq!(found, Some((Letter { head: written, settled: None }, body())));
    }
    assert_eq!(subject.store.dead_letters.get(head(subject, 3, 0).id).await?, None);
    let claimed = subject.store.dead_letters.claim(head(subject, 3, 0).id, hold(subject, Holder::new())).await?;
    assert_eq!(claimed, LetterClaim::Gone);
    Ok(())
}

async fn the_same_letter_again_changes_nothing(subject: &Subject) -> Result<(), StoreError> {
    let first = head(subject, 1, 0);
    put(subject, std::slice::from_ref(&first)).await?;
    let holder = Holder::new();
    subject.store.dead_letters.claim(first.id, hold(subject, holder)).await?;
    let settlement = ended(LetterState::Discarded, start());
    assert!(subject.store.dead_letters.settle(first.id, holder, Some(settlement.clone())).await?);
    // As a stage does that begins again: another time, the next day even.
    for after_ms in [5, 25 * 3_600_000] {
        put(subject, &[LetterHead { at: start().plus_millis(after_ms), ..first.clone() }]).await?;
    }
    let expected = Letter { head: first.clone(), settled: Some(settlement) };
    assert_eq!(subject.store.dead_letters.get(first.id).await?, Some((expected.clone(), body())));
    subject.clock.advance_millis(26 * 3_600_000);
    let page = subject.store.dead_letters.list(ours(subject), subject.clock.now()).await?;
    assert_eq!(page.letters, [expected]);
    Ok(())
}

async fn letters_are_listed_newest_first_page_by_page(subject: &Subject) -> Result<(), StoreError> {
    // Over three days, some of the same millisecond, written in no order.
    let day = 24 * 3_600_000;
    let heads: Vec<_> = (0..60).map(|number| head(subject, number, (number as i64 / 2) * (day / 10))).collect();
    let mut shuffled = heads.clone();
    shuffled.sort_by_key(|head| head.id);
    put(subject, &shuffled).await?;
    subject.clock.advance_millis(3 * day);
    let mut newest_first = heads.clone();
    newest_first.sort_by_key(|head| std::cmp::Reverse((head.at, head.id)));
    let newest_first: Vec<_> = newest_first.iter().map(|head| head.offset).collect();
    for limit in [1, 7, 60, 100] {
        assert_eq!(offsets(subject, LetterQuery { limit, ..ours(subject) }).await?, newest_first, "{limit} a page");
    }
    let (from, until) = (heads[20].at, heads[40].at);
    let between = LetterQuery { from: Some(from), until: Some(until), limit: 3, ..ours(subject) };
    let expected: Vec<_> = newest_first.iter().copied().filter(|offset| (20..40).contains(offset)).collect();
    assert_eq!(offsets(subject, between).await?, expected);
    Ok(())
}

async fn each_filter_lists_its_letters_alone(subject: &Subject) -> Result<(), StoreError> {
    let other_stage = LetterHead { stage: subject.name("archive"), ..head(subject, 1, 1) };
    let other_code = LetterHead { code: "invalid".to_owned(), ..head(subject, 2, 2) };
    let other_business = LetterHead { business: Some(subject.business("globex")), ..head(subject, 3, 3) };
    let nobodys = LetterHead { business: None, ..head(subject, 4, 4) };
    let ended_one = head(subject, 5, 5);
    put(subject, &[other_stage, other_code, other_business, nobodys, ended_one.clone(), head(subject, 6, 6)]).await?;
    let holder = Holder::new();
    subject.store.dead_letters.claim(ended_one.id, hold(subject, holder)).await?;
    let settlement = Some(ended(LetterState::Redriven, subject.clock.now()));
    subject.store.dead_letters.settle(ended_one.id, holder, settlement).await?;
    for (query, expected) in [
        (ours(subject), vec![6, 5, 4, 3, 2]),
        (LetterQuery { stage: Some(subject.name("archive")), ..ours(subject) }, vec![1]),
        (LetterQuery { code: Some("invalid".to_owned()), ..ours(subject) }, vec![2]),
        (LetterQuery { business: Some(subject.business("globex")), stage: None, ..ours(subject) }, vec![3]),
        (LetterQuery { state: Some(LetterState::Redriven), ..ours(subject) }, vec![5]),
        (LetterQuery { state: Some(LetterState::Open), ..ours(subject) }, vec![6, 4, 3, 2]),
        (LetterQuery { state: Some(LetterState::Discarded), ..ours(subject) }, vec![]),
    ] {
        assert_eq!(offsets(subject, LetterQuery { limit: 2, ..query.clone() }).await?, expected, "{query:?}");
    }
    Ok(())
}

async fn of_many_that_claim_a_letter_one_gets_it(subject: &Subject) -> Result<(), StoreError> {
    let letter = head(subject, 1, 0);
    put(subject, std::slice::from_ref(&letter)).await?;
    let at_once = Arc::new(tokio::sync::Barrier::new(20));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (letters, at_once) = (Arc::clone(&subject.store.dead_letters), Arc::clone(&at_once));
        let (id, hold) = (letter.id, hold(subject, Holder::new()));
        tasks.spawn(async move {
            at_once.wait().await;
            letters.claim(id, hold).await
        });
    }
    let claims: Vec<_> = tasks.join_all().await.into_iter().collect::<Result<_, _>>()?;
    let mine = claims.iter().filter(|claim| matches!(claim, LetterClaim::Yours(_))).count();
    let held = claims.iter().filter(|claim| **claim == LetterClaim::Held).count();
    assert_eq!((mine, held), (1, 19));
    Ok(())
}

async fn a_letter_ends_once(subject: &Subject) -> Result<(), StoreError> {
    let letters = &subject.store.dead_letters;
    let letter = head(subject, 1, 0);
    put(subject, std::slice::from_ref(&letter)).await?;
    let (one, other) = (Holder::new(), Holder::new());
    assert!(matches!(letters.claim(letter.id, hold(subject, one)).await?, LetterClaim::Yours(_)));
    // Again by the same one; by another not, nor may it end it.
    assert!(matches!(letters.claim(letter.id, hold(subject, one)).await?, LetterClaim::Yours(_)));
    assert_eq!(letters.claim(letter.id, hold(subject, other)).await?, LetterClaim::Held);
    assert!(!letters.settle(letter.id, other, Some(ended(LetterState::Discarded, start()))).await?);
    // Let go of, it can be claimed by another.
    assert!(letters.settle(letter.id, one, None).await?);
    let LetterClaim::Yours(claimed) = letters.claim(letter.id, hold(subject, other)).await? else {
        panic!("not claimed")
    };
    assert_eq!(*claimed, (Letter { head: letter.clone(), settled: None }, body()));
    let settlement = ended(LetterState::Redriven, start().plus_millis(9));
    assert!(letters.settle(letter.id, other, Some(settlement.clone())).await?);
    assert_eq!(letters.claim(letter.id, hold(subject, one)).await?, LetterClaim::Settled(LetterState::Redriven));
    for holder in [one, other] {
        assert!(!letters.settle(letter.id, holder, Some(ended(LetterState::Discarded, start()))).await?);
    }
    let found = letters.get(letter.id).await?.map(|(letter, _)| letter);
    assert_eq!(found, Some(Letter { head: letter, settled: Some(settlement) }));
    Ok(())
}

async fn a_claim_that_has_lapsed_is_nobodys(subject: &Subject) -> Result<(), StoreError> {
    let letters = &subject.store.dead_letters;
    let letter = head(subject, 1, 0);
    put(subject, std::slice::from_ref(&letter)).await?;
    let (dead, next) = (Holder::new(), Holder::new());
    letters.claim(letter.id, hold(subject, dead)).await?;
    subject.clock.advance_millis(59_999);
    assert_eq!(letters.claim(letter.id, hold(subject, next)).await?, LetterClaim::Held);
    subject.clock.advance_millis(1);
    assert!(matches!(letters.claim(letter.id, hold(subject, next)).await?, LetterClaim::Yours(_)));
    assert!(!letters.settle(letter.id, dead, Some(ended(LetterState::Redriven, start()))).await?);
    Ok(())
}

async fn letters_are_gone_after_seven_days(subject: &Subject) -> Result<(), StoreError> {
    let (old, new) = (head(subject, 1, 0), head(subject, 2, 1_000));
    put(subject, &[old.clone(), new.clone()]).await?;
    subject.clock.advance_millis(KEPT_MS);
    assert_eq!(subject.store.dead_letters.get(old.id).await?, None);
    assert_eq!(offsets(subject, ours(subject)).await?, [2]);
    let claimed = subject.store.dead_letters.claim(old.id, hold(subject, Holder::new())).await?;
    assert_eq!(claimed, LetterClaim::Gone);
    // An engine may leave expired letters to its own time.
    assert!(subject.store.dead_letters.trim(subject.clock.now()).await? <= 1);
    assert!(subject.store.dead_letters.get(new.id).await?.is_some());
    Ok(())
}
