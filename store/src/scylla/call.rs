//! A call of a port, on its way through the bounds: so many calls, so many requests at once, each within its time.

use std::sync::Arc;
use std::time::Instant;

use eshaar_service::breaker::Permit;
use eshaar_service::bulkhead::{Shed, Turn};
use eshaar_service::metrics::STORE_SECONDS;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use metrics::histogram;
use scylla::client::session::Session;
use scylla::deserialize::row::DeserializeRow;
use scylla::errors::{DbError, ExecutionError, RequestAttemptError};
use scylla::response::query_result::{QueryResult, QueryRowsResult};
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use super::conditional::{self, Decision};
use super::gather::{Failed, Haste, Limits, Write};
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
    pub(super) async fn turn(&self) -> Result<Turn<'a>, StoreError> {
        self.engine.requests.enter().await.map_err(|shed| match shed {
            Shed::Closed { .. } => StoreError::Closed,
            shed => StoreError::Overloaded { waiting: shed.waiting() },
        })
    }

    /// Leave to ask the database; refused while it is left alone after failures (R6.2).
    fn permit(&self) -> Result<Permit, StoreError> {
        self.engine.breaker.permit().map_err(StoreError::Resting)
    }

    /// What bounds a request of writes.
    pub(super) fn limits(&self) -> Limits {
        self.engine.gather.limits()
    }

    /// Writes, in no order; ends when all is written.
    pub(super) async fn write(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.gather(writes, Haste::Pressing).await
    }

    /// The same for what nobody waits for: it goes behind what somebody does.
    pub(super) async fn write_later(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.gather(writes, Haste::Patient).await
    }

    async fn gather(&self, writes: Vec<Write>, haste: Haste) -> Result<(), StoreError> {
        let options = &self.engine.options;
        let patience = options.queue_wait() + options.request_timeout();
        let permit = self.permit()?;
        let (error, answered) = match timeout(patience, self.engine.gather.write(&self.link, writes, haste)).await {
            Ok(Ok(())) => (None, true),
            Ok(Err(Failed::Refused(reason))) => (Some(StoreError::Refused { action: self.name, reason }), true),
            Ok(Err(Failed::Full(waiting))) => return Err(StoreError::Overloaded { waiting }),
            Ok(Err(Failed::Request(reason))) => (Some(self.failed(&reason)), false),
            Err(_) => (Some(self.failed("the rows waited too long for their turn")), false),
        };
        match &error {
            Some(error) if !answered => permit.failed(error),
            _ => permit.succeeded(),
        }
        error.map_or(Ok(()), Err)
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
        let permit = self.permit()?;
        let result = self.settle(permit, self.session().execute_unpaged(statement, values).await)?;
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
        let permit = self.permit()?;
        let decision = conditional::decide(self.session(), statement, values).await;
        // That many at one row time each other out says nothing of the database: only that it answers is told.
        if decision.is_ok() {
            permit.succeeded();
        }
        decision.map_err(|reason| self.failed(&*reason))
    }

    fn settle(&self, permit: Permit, result: Result<QueryResult, ExecutionError>) -> Result<QueryResult, StoreError> {
        match &result {
            // A statement that is refused as wrong was answered.
            Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(
                DbError::Invalid | DbError::SyntaxError | DbError::Unauthorized,
                _,
            )))
            | Ok(_) => permit.succeeded(),
            Err(error) => permit.failed(error),
        }
        result.map_err(|error| self.failed(&error))
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        histogram!(STORE_SECONDS, "operation" => self.name).record(self.started.elapsed().as_secs_f64());
    }
}
