//! The audit log.

use async_trait::async_trait;
use eshaar_model::AuditId;
use rusqlite::{Connection, Result, Row, params};

use super::columns::identity;
use super::{Operation, Sqlite};
use crate::StoreError;
use crate::audit::{AuditEntry, AuditPage, AuditQuery, AuditStore};

/// Most entries of a page.
const PAGE_ENTRIES: usize = 1_000;

macro_rules! select_entries {
    ($where:literal) => {
        concat!(
            "SELECT id, actor, action, subject, detail, correlation FROM audit WHERE ",
            $where,
            " ORDER BY id DESC LIMIT ?3"
        )
    };
}

#[async_trait]
impl AuditStore for Sqlite {
    async fn append(&self, entry: AuditEntry) -> Result<(), StoreError> {
        self.write(Operation::durable("append_audit"), 1, move |tables| {
            tables
                .db
                .prepare_cached(
                    "INSERT INTO audit (id, actor, action, subject, detail, correlation)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
                )?
                .execute(params![
                    entry.id.as_bytes(),
                    entry.actor,
                    entry.action,
                    entry.subject,
                    entry.detail,
                    entry.correlation
                ])
                .map(drop)
        })
        .await
    }

    async fn list(&self, query: AuditQuery) -> Result<AuditPage, StoreError> {
        self.query(Operation::new("list_audit"), move |db| list(db, &query)).await
    }
}

fn list(db: &Connection, query: &AuditQuery) -> Result<AuditPage> {
    let limit = query.limit.clamp(1, PAGE_ENTRIES);
    let (lowest, below) = (query.lowest(), query.below());
    let (lowest, below) = (lowest.as_bytes(), below.as_bytes());
    // One more tells whether there is a next page.
    let rows = limit as i64 + 1;
    let mut entries: Vec<AuditEntry> = match &query.actor {
        Some(actor) => db
            .prepare_cached(select_entries!("id >= ?1 AND id < ?2 AND actor = ?4"))?
            .query_map(params![lowest, below, rows, actor], entry)?
            .collect::<Result<_>>()?,
        None => db
            .prepare_cached(select_entries!("id >= ?1 AND id < ?2"))?
            .query_map(params![lowest, below, rows], entry)?
            .collect::<Result<_>>()?,
    };
    let more = entries.len() > limit;
    entries.truncate(limit);
    let next = entries.last().filter(|_| more).map(|entry| entry.id);
    Ok(AuditPage { entries, next })
}

fn entry(row: &Row<'_>) -> Result<AuditEntry> {
    Ok(AuditEntry {
        id: identity(row, 0, AuditId::from_bytes)?,
        actor: row.get(1)?,
        action: row.get(2)?,
        subject: row.get(3)?,
        detail: row.get(4)?,
        correlation: row.get(5)?,
    })
}
