//! Rows that a migration takes into other tables. Each may be repeated, and never replaces what was written since: copies
//! carry a write timestamp below that of any clock.

use futures_util::TryStreamExt as _;
use scylla::client::session::Session;
use scylla::deserialize::row::DeserializeRow;
use scylla::serialize::row::SerializeRow;
use scylla::value::CqlTimestamp;
use uuid::Uuid;

use super::buckets::Bucket;
use super::columns::{timestamp, ttl_s};
use super::tasks::{LISTED_MS, shard};
use crate::tasks::KEPT_MS;

/// What a migration copies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Copy {
    /// The businesses of API keys.
    Businesses,
    /// Tasks to a partition each.
    Tasks,
    /// Broadcasts that are to be sent.
    OpenBroadcasts,
    /// Lists of recipients that go.
    ListsDue,
}

impl Copy {
    pub(super) async fn run(self, session: &Session) -> Result<(), String> {
        match self {
            Self::Businesses => businesses(session).await,
            Self::Tasks => tasks(session).await,
            Self::OpenBroadcasts => open_broadcasts(session).await,
            Self::ListsDue => lists_due(session).await,
        }
    }
}

async fn all<T>(session: &Session, select: &str) -> Result<impl futures_util::Stream<Item = Result<T, String>>, String>
where
    T: 'static + for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
{
    let rows = session.query_iter(select, ()).await.map_err(|error| error.to_string())?;
    Ok(rows.rows_stream::<T>().map_err(|error| error.to_string())?.map_err(|error| error.to_string()))
}

async fn write(session: &Session, insert: &str, values: impl SerializeRow) -> Result<(), String> {
    let prepared = session.prepare(insert).await.map_err(|error| error.to_string())?;
    session.execute_unpaged(&prepared, values).await.map(drop).map_err(|error| error.to_string())
}

async fn businesses(session: &Session) -> Result<(), String> {
    let mut rows = std::pin::pin!(all::<(String,)>(session, "SELECT business FROM api_key").await?);
    while let Some((business,)) = rows.try_next().await? {
        write(session, "INSERT INTO business (id) VALUES (?)", (business,)).await?;
    }
    Ok(())
}

async fn tasks(session: &Session) -> Result<(), String> {
    type Row = (String, String, CqlTimestamp, Option<Vec<u8>>, bool, Uuid, Option<CqlTimestamp>);
    let select = "SELECT kind, id, made_at, progress, finished, holder, held_until FROM task";
    let mut rows = std::pin::pin!(all::<Row>(session, select).await?);
    while let Some(row) = rows.try_next().await? {
        let (kind, id) = (row.0.clone(), row.1.clone());
        let listed = "INSERT INTO task_listed (kind, shard, id) VALUES (?, ?, ?) USING TIMESTAMP 1 AND TTL ?";
        write(session, listed, (&kind, shard(&id), &id, ttl_s(LISTED_MS))).await?;
        let insert = "INSERT INTO task_by_id (kind, id, made_at, progress, finished, holder, held_until)
            VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP 1 AND TTL ?";
        write(session, insert, (kind, id, row.2, row.3, row.4, row.5, row.6, ttl_s(KEPT_MS))).await?;
    }
    Ok(())
}

async fn open_broadcasts(session: &Session) -> Result<(), String> {
    let mut rows = std::pin::pin!(all::<(Uuid,)>(session, "SELECT id FROM broadcast_open WHERE slot = 0").await?);
    while let Some((id,)) = rows.try_next().await? {
        let found = session.query_unpaged("SELECT business FROM broadcast WHERE id = ?", (id,)).await;
        let found = found.map_err(|error| error.to_string())?.into_rows_result().map_err(|error| error.to_string())?;
        // One whose record is gone is sent by nobody.
        let Some((business,)) = found.maybe_first_row::<(String,)>().map_err(|error| error.to_string())? else {
            continue;
        };
        let Ok(broadcast) = eshaar_model::BroadcastId::try_from(id) else { continue };
        let of = Bucket::of(eshaar_model::MessageId::from(broadcast).made_at(), id.as_bytes());
        let insert = "INSERT INTO open_broadcast (bucket, shard, business, id) VALUES (?, ?, ?, ?) USING TIMESTAMP 1";
        write(session, insert, (of.bucket, of.shard, business, id)).await?;
        enter(session, "broadcasts", of).await?;
    }
    Ok(())
}

async fn lists_due(session: &Session) -> Result<(), String> {
    type Row = (CqlTimestamp, Uuid, Option<String>, Option<String>);
    let select = "SELECT due, list, business, name FROM recipients_due WHERE slot = 0";
    let mut rows = std::pin::pin!(all::<Row>(session, select).await?);
    while let Some((due, list, business, name)) = rows.try_next().await? {
        let of = Bucket::of(timestamp(due), list.as_bytes());
        let insert = "INSERT INTO list_due (bucket, shard, due, list, business, name) VALUES (?, ?, ?, ?, ?, ?)
            USING TIMESTAMP 1";
        write(session, insert, (of.bucket, of.shard, due, list, business, name)).await?;
        enter(session, "lists", of).await?;
    }
    Ok(())
}

async fn enter(session: &Session, queue: &str, of: Bucket) -> Result<(), String> {
    let insert = "INSERT INTO queue_bucket (queue, bucket, shard, entered) VALUES (?, ?, ?, true) USING TIMESTAMP 1";
    write(session, insert, (queue, of.bucket, of.shard)).await
}
