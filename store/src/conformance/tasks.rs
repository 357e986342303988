//! Tasks: held by one at a time, and gone on with from what was saved last.

use std::sync::Arc;

use bytes::Bytes;

use super::{Subject, start};
use crate::{Holder, Lease, StoreError, Task};

super::checks! {
    /// Every check of the task port.
    a_task_is_made_once,
    of_many_that_take_a_task_one_gets_it,
    a_task_goes_on_from_what_was_saved,
    a_task_that_is_finished_is_taken_by_nobody,
    tasks_are_listed_by_kind_the_highest_first,
}

fn task(subject: &Subject, id: &str, progress: &str) -> Task {
    Task {
        kind: subject.name("redrive"),
        id: id.to_owned(),
        made_at: start(),
        progress: Bytes::from(progress.to_owned()),
        finished: false,
    }
}

fn lease(subject: &Subject, holder: Holder) -> Lease {
    let now = subject.clock.now();
    Lease { holder, now, until: now.plus_millis(30_000) }
}

async fn a_task_is_made_once(subject: &Subject) -> Result<(), StoreError> {
    let tasks = &subject.store.tasks;
    let first = task(subject, "a", "0");
    tasks.make(first.clone()).await?;
    tasks.make(task(subject, "a", "again")).await?;
    assert_eq!(tasks.get(&first.kind, "a").await?, Some(first.clone()));
    assert_eq!(tasks.get(&first.kind, "b").await?, None);
    assert_eq!(tasks.take(&first.kind, "b", lease(subject, Holder::new())).await?, None);
    Ok(())
}

async fn of_many_that_take_a_task_one_gets_it(subject: &Subject) -> Result<(), StoreError> {
    let made = task(subject, "a", "0");
    subject.store.tasks.make(made.clone()).await?;
    let at_once = Arc::new(tokio::sync::Barrier::new(20));
    let mut takers = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (tasks, at_once) = (Arc::clone(&subject.store.tasks), Arc::clone(&at_once));
        let (kind, lease) = (made.kind.clone(), lease(subject, Holder::new()));
        takers.spawn(async move {
            at_once.wait().await;
            tasks.take(&kind, "a", lease).await
        });
    }
    let taken: Vec<_> = takers.join_all().await.into_iter().collect::<Result<_, _>>()?;
    assert_eq!(taken.into_iter().flatten().collect::<Vec<_>>(), [made]);
    Ok(())
}

async fn a_task_goes_on_from_what_was_saved(subject: &Subject) -> Result<(), StoreError> {
    let tasks = &subject.store.tasks;
    let (made, dead, next) = (task(subject, "a", "0"), Holder::new(), Holder::new());
    tasks.make(made.clone()).await?;
    assert_eq!(tasks.take(&made.kind, "a", lease(subject, dead)).await?, Some(made.clone()));
    subject.clock.advance_millis(20_000);
    let half = Task { progress: Bytes::from_static(b"half"), ..made.clone() };
    assert!(tasks.save(half.clone(), dead, Some(subject.clock.now().plus_millis(30_000))).await?);
    subject.clock.advance_millis(29_999);
    assert_eq!(tasks.take(&made.kind, "a", lease(subject, next)).await?, None);
    subject.clock.advance_millis(1);
    assert_eq!(tasks.take(&made.kind, "a", lease(subject, next)).await?, Some(half.clone()));
    // The one that was thought dead comes back: it saves nothing.
    assert!(!tasks.save(made.clone(), dead, Some(subject.clock.now())).await?);
    assert_eq!(tasks.get(&made.kind, "a").await?, Some(half.clone()));
    // Let go of, it is taken at once.
    assert!(tasks.save(half.clone(), next, None).await?);
    assert_eq!(tasks.take(&made.kind, "a", lease(subject, dead)).await?, Some(half));
    Ok(())
}

async fn a_task_that_is_finished_is_taken_by_nobody(subject: &Subject) -> Result<(), StoreError> {
    let tasks = &subject.store.tasks;
    let (made, holder) = (task(subject, "a", "0"), Holder::new());
    tasks.make(made.clone()).await?;
    tasks.take(&made.kind, "a", lease(subject, holder)).await?;
    let done = Task { progress: Bytes::from_static(b"done"), finished: true, ..made.clone() };
    assert!(tasks.save(done.clone(), holder, Some(subject.clock.now())).await?);
    assert_eq!(tasks.get(&made.kind, "a").await?, Some(done.clone()));
    subject.clock.advance_millis(60_000);
    assert_eq!(tasks.take(&made.kind, "a", lease(subject, holder)).await?, None);
    assert!(!tasks.save(made, holder, None).await?);
    Ok(())
}

async fn tasks_are_listed_by_kind_the_highest_first(subject: &Subject) -> Result<(), StoreError> {
    let tasks = &subject.store.tasks;
    for id in ["b", "c", "a"] {
        tasks.make(task(subject, id, "0")).await?;
    }
    tasks.make(Task { kind: subject.name("digest"), ..task(subject, "d", "0") }).await?;
    let ids = |tasks: Vec<Task>| tasks.into_iter().map(|task| task.id).collect::<Vec<_>>();
    assert_eq!(ids(tasks.list(&subject.name("redrive"), 10).await?), ["c", "b", "a"]);
    assert_eq!(ids(tasks.list(&subject.name("redrive"), 2).await?), ["c", "b"]);
    assert_eq!(tasks.trim(subject.clock.now()).await?, 0);
    assert_eq!(ids(tasks.list(&subject.name("digest"), 10).await?), ["d"]);
    Ok(())
}
