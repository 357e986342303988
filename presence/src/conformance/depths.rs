//! What all that keep depths must do. Each engine's tests run [`all`] against itself.

use std::sync::Arc;
use std::time::Duration;

use crate::depths::{DEPTH_TTL, Depth, Depths};

/// Where nothing was said yet, and a way to let time pass for it.
pub(crate) struct Subject {
    pub(crate) depths: Arc<dyn Depths>,
    pub(crate) pass: Box<dyn Fn(Duration) + Send + Sync>,
}

/// Every rule.
pub(crate) async fn all(fresh: impl AsyncFn() -> Subject) {
    what_was_said_last_of_a_partition_holds(fresh().await).await;
    what_is_not_said_again_lapses(fresh().await).await;
}

fn depth(stage: &str, partition: u32, interactive: u64, bulk: u64) -> Depth {
    Depth { stage: stage.to_owned(), partition, interactive, bulk }
}

async fn known(subject: &Subject) -> Vec<Depth> {
    let mut depths = subject.depths.depths().await.unwrap();
    depths.sort_by(|one, other| (&one.stage, one.partition).cmp(&(&other.stage, other.partition)));
    depths
}

async fn what_was_said_last_of_a_partition_holds(subject: Subject) {
    assert_eq!(known(&subject).await, []);
    subject.depths.publish(&[]).await.unwrap();
    subject.depths.publish(&[depth("route", 0, 1, 2), depth("route", 1, 3, 4)]).await.unwrap();
    let large = depth("route", 1, u64::from(u32::MAX) * 1_000, 0);
    subject.depths.publish(&[large.clone(), depth("prioritize", 1, 7, 8)]).await.unwrap();
    assert_eq!(known(&subject).await, [depth("prioritize", 1, 7, 8), depth("route", 0, 1, 2), large]);
}

async fn what_is_not_said_again_lapses(subject: Subject) {
    subject.depths.publish(&[depth("route", 0, 1, 2), depth("route", 1, 3, 4)]).await.unwrap();
    (subject.pass)(DEPTH_TTL.saturating_sub(Duration::from_secs(2)));
    subject.depths.publish(&[depth("route", 0, 5, 6)]).await.unwrap();
    (subject.pass)(Duration::from_secs(2));
    assert_eq!(known(&subject).await, [depth("route", 0, 5, 6)]);
    (subject.pass)(DEPTH_TTL);
    assert_eq!(known(&subject).await, []);
}
