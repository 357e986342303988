//! The audit log: every entry once, newest first, by time and actor.

use eshaar_model::AuditId;

use super::{Subject, start};
use crate::{AuditEntry, AuditQuery, StoreError};

super::checks! {
    /// Every check of the audit port.
    entries_are_listed_newest_first_page_by_page,
    an_actors_entries_are_listed_alone,
    an_entry_that_is_appended_again_is_one,
}

fn entry(subject: &Subject, actor: &str, after_ms: i64) -> AuditEntry {
    AuditEntry {
        id: AuditId::new(start().plus_millis(after_ms)),
        actor: subject.name(actor),
        action: "dead_letters.redrive".to_owned(),
        subject: "019b7600".to_owned(),
        detail: r#"{"letters":3}"#.to_owned(),
        correlation: (after_ms % 2 == 0).then(|| "c-1".to_owned()),
    }
}

/// Every entry that `query` lists, over all its pages; those of other subjects aside.
async fn all(subject: &Subject, mut query: AuditQuery) -> Result<Vec<AuditEntry>, StoreError> {
    let mut entries = Vec::new();
    loop {
        let page = subject.store.audit.list(query.clone()).await?;
        assert!(page.entries.len() <= query.limit);
        entries.extend(page.entries.into_iter().filter(|entry| entry.actor.ends_with(&subject.name(""))));
        match page.next {
            Some(next) => query.before = Some(next),
            None => return Ok(entries),
        }
    }
}

async fn entries_are_listed_newest_first_page_by_page(subject: &Subject) -> Result<(), StoreError> {
    // Over months: more days than one page looks at.
    let day = 24 * 3_600_000;
    let mut written: Vec<_> =
        (0..80).map(|number| entry(subject, ["ops", "root"][number % 2], number as i64 * day)).collect();
    for entry in &written {
        subject.store.audit.append(entry.clone()).await?;
    }
    written.reverse();
    for limit in [7, 100] {
        assert_eq!(all(subject, AuditQuery { limit, ..AuditQuery::default() }).await?, written, "{limit} a page");
    }
    let (from, until) = (start().plus_millis(10 * day), start().plus_millis(20 * day));
    let between = AuditQuery { from: Some(from), until: Some(until), limit: 3, ..AuditQuery::default() };
    let expected: Vec<_> = written.into_iter().filter(|entry| (from..until).contains(&entry.id.made_at())).collect();
    assert_eq!(expected.len(), 10);
    assert_eq!(all(subject, between).await?, expected);
    Ok(())
}

async fn an_actors_entries_are_listed_alone(subject: &Subject) -> Result<(), StoreError> {
    for (actor, after_ms) in [("ops", 1), ("root", 2), ("ops", 3)] {
        subject.store.audit.append(entry(subject, actor, after_ms)).await?;
    }
    let of = AuditQuery { actor: Some(subject.name("ops")), limit: 1, ..AuditQuery::default() };
    let times: Vec<_> = all(subject, of).await?.iter().map(|entry| entry.id.made_at()).collect();
    assert_eq!(times, [start().plus_millis(3), start().plus_millis(1)]);
    let nobody = AuditQuery { actor: Some(subject.name("nobody")), limit: 10, ..AuditQuery::default() };
    assert!(all(subject, nobody).await?.is_empty());
    Ok(())
}

async fn an_entry_that_is_appended_again_is_one(subject: &Subject) -> Result<(), StoreError> {
    let entry = entry(subject, "ops", 0);
    subject.store.audit.append(entry.clone()).await?;
    subject.store.audit.append(entry.clone()).await?;
    let of = AuditQuery { actor: Some(entry.actor.clone()), limit: 10, ..AuditQuery::default() };
    assert_eq!(all(subject, of).await?, [entry]);
    Ok(())
}
