//! A call of a port, on its way through the bounds: so many calls, so many requests at once, each within its time.

use std::sync::Arc;
use std::time::Instant;

use eshaar_service::metrics::STORE_SECONDS;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use metrics::histogram;
use scylla::client::session::Session;
use scylla::deserialize::row::DeserializeRow;
use scylla::errors::ExecutionError;
use scylla::response::query_result::{QueryResult, QueryRowsResult};
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use super::conditional::{self, Decision};
use super::gather::{Failed, Limits, Write};
use super::statements::Statements;
use super::{Cql, failed};
use crate::StoreError;

/// The session, with what was prepared on it.
pub(super) struct Link {
    pub(super) session: Session,
    pub(super) statements: Statements,
}

/// One call of a port. While it lives the engine is not closed.
pub(super) struct Call<'a> {
    engine: &'a Cql,
    name: &'static str,
    link: Arc<Link>,
    started: Instant,
    _room: SemaphorePermit<'a>,
}

impl<'a> Call<'a> {
    pub(super) fn new(engine: &'a Cql, name: &'static str, link: Arc<Link>, room: SemaphorePermit<'a>) -> Self {
        Self { engine, name, link, started: Instant::now(), _room: room }
    }

    pub(super) fn statements(&self) -> &Statements {
        &self.link.statements
    }

    pub(super) fn session(&self) -> &Session {
        &self.link.session
    }

    pub(super) fn failed(&self, reason: &(impl std::fmt::Display + ?Sized)) -> StoreError {
        failed(self.name, reason)
    }

    /// A request's turn (R6.7).
    pub(super) async fn turn(&self) -> Result<SemaphorePermit<'a>, StoreError> {
        if let Ok(turn) = self.engine.requests.try_acquire() {
            return Ok(turn);
        }
        match timeout(self.engine.options.queue_wait(), self.engine.requests.acquire()).await {
            Ok(turn) => turn.map_err(|_| StoreError::Closed),
            Err(_) => Err(StoreError::Overloaded { waiting: self.engine.calls_under_way() }),
        }
    }

    /// What bounds a request of writes.
    pub(super) fn limits(&self) -> Limits {
        self.engine.gather.limits()
    }

    /// Writes, in no order; ends when all is written.
    pub(super) async fn write(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let options = &self.engine.options;
        let patience = options.queue_wait() + options.request_timeout();
        match timeout(patience, self.engine.gather.write(&self.link, writes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Failed::Request(reason))) => Err(self.failed(&reason)),
            Ok(Err(Failed::Full(waiting))) => Err(StoreError::Overloaded { waiting }),
            Err(_) => Err(self.failed("the rows waited too long for their turn")),
        }
    }

    /// The answers of all, in their order.
    pub(super) async fn each<F, T>(&self, reads: Vec<F>) -> Result<Vec<T>, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        stream::iter(reads).buffered(self.engine.options.requests.max(1)).try_collect().await
    }

    pub(super) async fn read(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<QueryRowsResult, StoreError> {
        let _turn = self.turn().await?;
        let result = self.settle(self.session().execute_unpaged(statement, values).await)?;
        result.into_rows_result().map_err(|error| self.failed(&error))
    }

    /// The first row, if there is one.
    pub(super) async fn first<T>(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<Option<T>, StoreError>
    where
        T: for<'row> DeserializeRow<'row, 'row>,
    {
        let rows = self.read(statement, values).await?;
        rows.maybe_first_row().map_err(|error| self.failed(&error))
    }

    /// All rows, each made into what it stands for.
    pub(super) fn rows<'rows, R, T>(
        &self,
        rows: &'rows QueryRowsResult,
        mut make: impl FnMut(R) -> Result<T, String>,
    ) -> Result<Vec<T>, StoreError>
    where
        R: DeserializeRow<'rows, 'rows>,
    {
        let rows = rows.rows::<R>().map_err(|error| self.failed(&error))?;
        rows.map(|row| make(row.map_err(|error| self.failed(&error))?).map_err(|reason| self.failed(&reason))).collect()
    }

    /// Writes conditionally, until it is known whether it was written.
    pub(super) async fn decide(
        &self,
        statement: &PreparedStatement,
        values: &impl SerializeRow,
    ) -> Result<Decision, StoreError> {
        let _turn = self.turn().await?;
        conditional::decide(self.session(), statement, values).await.map_err(|reason| self.failed(&*reason))
    }

    fn settle(&self, result: Result<QueryResult, ExecutionError>) -> Result<QueryResult, StoreError> {
        result.map_err(|error| self.failed(&error))
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        histogram!(STORE_SECONDS, "operation" => self.name).record(self.started.elapsed().as_secs_f64());
    }
}
