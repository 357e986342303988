//! Conditional writes (LWT): what came of one, and how an outcome that is unknown becomes known.

use std::sync::Arc;
use std::time::Duration;

use scylla::client::session::Session;
use scylla::errors::{DbError, ExecutionError, RequestAttemptError};
use scylla::response::query_result::QueryResult;
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::{CqlValue, Row};

/// Attempts at one conditional write. Many at one row hold each other up: the cluster gives some of them up.
const ATTEMPTS: u32 = 8;
/// Wait before the second attempt; it doubles.
const BACK_OFF: Duration = Duration::from_millis(5);

/// What came of a conditional write.
pub(super) struct Decision {
    /// Whether it was written.
    pub(super) applied: bool,
    names: Vec<String>,
    row: Row,
}

impl Decision {
    /// Cassandra answers an applied write with `[applied]` alone and a refused one with the row; ScyllaDB always with
    /// all columns. So columns are found by name.
    fn read(result: QueryResult) -> Result<Self, String> {
        let rows = result.into_rows_result().map_err(|error| error.to_string())?;
        let names: Vec<_> = rows.column_specs().iter().map(|column| column.name().to_owned()).collect();
        let row = rows.first_row::<Row>().map_err(|error| error.to_string())?;
        let mut decision = Self { applied: false, names, row };
        match decision.column("[applied]") {
            Some(CqlValue::Boolean(applied)) => decision.applied = *applied,
            _ => return Err("the answer to a conditional write does not say whether it was applied".to_owned()),
        }
        Ok(decision)
    }

    fn column(&self, name: &str) -> Option<&CqlValue> {
        let place = self.names.iter().position(|known| known == name)?;
        self.row.columns.get(place)?.as_ref()
    }

    pub(super) fn uuid(&self, name: &str) -> Option<uuid::Uuid> {
        self.column(name).and_then(CqlValue::as_uuid)
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.column(name).and_then(CqlValue::as_text).map(String::as_str)
    }

    pub(super) fn blob(&self, name: &str) -> Option<&[u8]> {
        self.column(name).and_then(CqlValue::as_blob).map(Vec::as_slice)
    }

    pub(super) fn timestamp(&self, name: &str) -> Option<eshaar_model::Timestamp> {
        self.column(name).and_then(CqlValue::as_cql_timestamp).map(super::columns::timestamp)
    }
}

/// Writes conditionally, until the outcome is known.
///
/// A write that timed out may have been applied, may be applied by whoever comes next, or never: only another conditional
/// operation on the row tells. So it is written again, and the caller's values hold something of their own (a holder)
/// by which it knows its own row when it is refused.
pub(super) async fn decide(
    session: &Session,
    statement: &PreparedStatement,
    values: &impl SerializeRow,
) -> Result<Decision, Arc<str>> {
    let mut attempt = 1;
    loop {
        match session.execute_unpaged(statement, values).await {
            Ok(result) => return Decision::read(result).map_err(Arc::from),
            Err(error) if attempt == ATTEMPTS || !may_be_decided_later(&error) => return Err(error.to_string().into()),
            Err(error) => tracing::debug!(%error, attempt, "a conditional write is tried again"),
        }
        tokio::time::sleep(BACK_OFF * 2_u32.pow(attempt)).await;
        attempt += 1;
    }
}

/// Whether the same write again may say more: not when the statement is wrong, nor when the cluster as a whole has just
/// not answered in time, which the caller must hear of.
const fn may_be_decided_later(error: &ExecutionError) -> bool {
    matches!(
        error,
        ExecutionError::LastAttemptError(
            RequestAttemptError::DbError(
                DbError::WriteTimeout { .. }
                    | DbError::ReadTimeout { .. }
                    | DbError::WriteFailure { .. }
                    | DbError::ReadFailure { .. }
                    | DbError::Overloaded
                    | DbError::Other(_),
                _
            ) | RequestAttemptError::BrokenConnectionError(_)
        )
    )
}
