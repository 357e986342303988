//! Tasks and their leases. All writes of a task are conditional: who holds it is decided by them. Each task is a partition of
//! its own, so that what is decided of one waits for no other; `task_listed` lists those of a kind, in a few shards.

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::Timestamp;
use scylla::DeserializeRow;
use scylla::value::CqlTimestamp;
use uuid::Uuid;

use super::Cql;
use super::call::Call;
use super::columns::{time, timestamp, ttl_s};
use super::gather::Write;
use crate::StoreError;
use crate::tasks::{Holder, KEPT_MS, Lease, Task, TaskStore};

/// Most tasks of a list.
const LISTED: usize = 1_000;
/// Shards of the list of a kind. Not to be lowered: tasks would no longer be listed.
const SHARDS: u32 = 8;
/// How long a task is listed at most, in milliseconds: 90 days from when it was made.
pub(super) const LISTED_MS: i64 = 3 * KEPT_MS;

/// The shard that lists a task.
pub(super) fn shard(id: &str) -> i8 {
    // FNV-1a.
    let hash = id.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    ((hash >> 16) % SHARDS) as i8
}

#[async_trait]
impl TaskStore for Cql {
    async fn make(&self, task: Task) -> Result<(), StoreError> {
        let call = self.call("make_task")?;
        let nobody = Holder::NOBODY.0;
        // First: a task that is there is listed.
        let listed = (task.kind.clone(), shard(&task.id), task.id.clone(), ttl_s(LISTED_MS));
        call.write(vec![Write::new(&call.statements().list_task, listed, 0)]).await?;
        let values = (&task.kind, &task.id, time(task.made_at), &task.progress, task.finished, nobody, ttl_s(KEPT_MS));
        call.decide(&call.statements().make_task, &values).await.map(drop)
    }

    async fn get(&self, kind: &str, id: &str) -> Result<Option<Task>, StoreError> {
        let call = self.call("get_task")?;
        Ok(find(&call, kind, id).await?.map(Row::task))
    }

    async fn list(&self, kind: &str, limit: usize) -> Result<Vec<Task>, StoreError> {
        let call = self.call("list_tasks")?;
        let limit = limit.clamp(1, LISTED);
        let of_shard = async |shard: i8| {
            let rows = call.read(&call.statements().tasks_listed, (kind, shard, limit as i32)).await?;
            call.rows(&rows, |(id,): (String,)| Ok(id))
        };
        let shards = call.each((0..SHARDS as i8).map(of_shard).collect()).await?;
        let mut ids: Vec<_> = shards.into_iter().flatten().collect();
        ids.sort_unstable_by(|one, other| other.cmp(one));
        ids.truncate(limit);
        let found = call.each(ids.iter().map(async |id| find(&call, kind, id).await).collect()).await?;
        Ok(found.into_iter().flatten().map(Row::task).collect())
    }

    async fn take(&self, kind: &str, id: &str, lease: Lease) -> Result<Option<Task>, StoreError> {
        let call = self.call("take_task")?;
        let Some(row) = find(&call, kind, id).await? else { return Ok(None) };
        let is_free = row.holder == Holder::NOBODY.0 || row.holder == lease.holder.0;
        if row.finished || !(is_free || row.held_until.map(timestamp).unwrap_or_default() <= lease.now) {
            return Ok(None);
        }
        let values = (ttl_s(KEPT_MS), lease.holder.0, time(lease.until), kind, id, row.holder);
        let decision = call.decide(&call.statements().take_task, &values).await?;
        // Also when it was refused because of an attempt of ours before it, whose outcome had not been known.
        if !decision.applied && decision.uuid("holder") != Some(lease.holder.0) {
            return Ok(None);
        }
        // What was saved last is what the holder before had saved by now.
        Ok(find(&call, kind, id).await?.filter(|row| !row.finished).map(Row::task))
    }

    async fn save(&self, task: Task, holder: Holder, until: Option<Timestamp>) -> Result<bool, StoreError> {
        let call = self.call("save_task")?;
        let until = until.filter(|_| !task.finished);
        let next = until.map_or(Holder::NOBODY, |_| holder);
        // By this it is known again, should the outcome of the first attempt not be.
        let saved = Holder::new().0;
        let values = (
            ttl_s(KEPT_MS),
            time(task.made_at),
            &task.progress,
            task.finished,
            next.0,
            until.map(time),
            saved,
            &task.kind,
            &task.id,
            holder.0,
        );
        let decision = call.decide(&call.statements().save_task, &values).await?;
        if decision.applied {
            return Ok(true);
        }
        let row = call.first::<(Option<Uuid>,)>(&call.statements().task_saved, (&task.kind, &task.id)).await?;
        Ok(row.is_some_and(|(found,)| found == Some(saved)))
    }

    /// Tasks go by themselves.
    async fn trim(&self, _now: Timestamp) -> Result<usize, StoreError> {
        self.call("trim_tasks").map(|_| 0)
    }
}

/// A row of `task`.
#[derive(DeserializeRow)]
struct Row {
    kind: String,
    id: String,
    made_at: CqlTimestamp,
    progress: Option<Bytes>,
    finished: bool,
    holder: Uuid,
    held_until: Option<CqlTimestamp>,
}

impl Row {
    fn task(self) -> Task {
        Task {
            kind: self.kind,
            id: self.id,
            made_at: timestamp(self.made_at),
            progress: self.progress.unwrap_or_default(),
            finished: self.finished,
        }
    }
}

async fn find(call: &Call<'_>, kind: &str, id: &str) -> Result<Option<Row>, StoreError> {
    let rows = call.read(&call.statements().task, (kind, id)).await?;
    Ok(call.rows(&rows, |row: Row| Ok(row))?.pop())
}
