//! The audit log. Each entry is written twice: in the day of its actor, and in the day of everybody (the actor `*`, which
//! nobody is). `audit_day` says which days there are.

use async_trait::async_trait;
use eshaar_model::{AuditId, Timestamp};
use scylla::value::MaybeUnset;
use uuid::Uuid;

use super::Cql;
use super::gather::Write;
use crate::StoreError;
use crate::audit::{AuditEntry, AuditPage, AuditQuery, AuditStore};

/// Most entries of a page.
const PAGE_ENTRIES: usize = 1_000;
/// Most days that are looked at for one page.
const DAYS: i32 = 62;
/// Whose days hold all entries.
const EVERYBODY: &str = "*";

const DAY_MS: i64 = 24 * 3600 * 1000;

/// An id says the day.
fn day(id: Uuid) -> i32 {
    let millis = (id.as_u128() >> 80) as i64;
    (millis / DAY_MS) as i32
}

#[async_trait]
impl AuditStore for Cql {
    async fn append(&self, entry: AuditEntry) -> Result<(), StoreError> {
        let call = self.call("append_audit")?;
        let id = Uuid::from(entry.id);
        let bytes = entry.detail.len();
        let mut writes = Vec::with_capacity(4);
        for of in [EVERYBODY, &entry.actor] {
            let correlation = MaybeUnset::from_option(entry.correlation.clone());
            let (actor, action, subject) = (entry.actor.clone(), entry.action.clone(), entry.subject.clone());
            let values = (of.to_owned(), day(id), id, actor, action, subject, entry.detail.clone(), correlation);
            writes.push(Write::new(&call.statements().append_audit, values, bytes));
            writes.push(Write::new(&call.statements().append_audit_day, (of.to_owned(), day(id)), 0));
        }
        call.write(writes).await
    }

    /// Walks down the days.
    async fn list(&self, query: AuditQuery) -> Result<AuditPage, StoreError> {
        type Row = (Uuid, String, String, String, String, Option<String>);
        let call = self.call("list_audit")?;
        let limit = query.limit.clamp(1, PAGE_ENTRIES);
        let of = query.actor.as_deref().unwrap_or(EVERYBODY);
        let (lowest, below) = (query.lowest(), query.below());
        let days = call.read(&call.statements().audit_days, (of, day(below), day(lowest), DAYS)).await?;
        let days = call.rows(&days, |(day,): (i32,)| Ok(day))?;
        let mut page = AuditPage::default();
        for day in &days {
            // One more tells whether there is a next page.
            let rows = (limit + 1 - page.entries.len()) as i32;
            let rows = call.read(&call.statements().audit, (of, day, lowest, below, rows)).await?;
            page.entries.extend(call.rows(&rows, |(id, actor, action, subject, detail, correlation): Row| {
                let id = AuditId::try_from(id).map_err(|error| error.to_string())?;
                Ok(AuditEntry { id, actor, action, subject, detail, correlation })
            })?);
            if page.entries.len() > limit {
                page.entries.truncate(limit);
                page.next = page.entries.last().map(|entry| entry.id);
                return Ok(page);
            }
        }
        // Where there may be days before these, the page ends within the last of them.
        if let Some(last) = days.last().filter(|_| days.len() == DAYS as usize) {
            let start = Timestamp::from_millis(i64::from(*last) * DAY_MS);
            let first = crate::audit::first_at(start);
            page.next = Some(AuditId::try_from(first).map_err(|error| call.failed(&error))?);
        }
        Ok(page)
    }
}
