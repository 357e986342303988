//! Between our types and SQLite's columns.

use std::str::FromStr;

use bytes::Bytes;
use eshaar_model::{Lane, Phone, Timestamp};
use rusqlite::types::Type;
use rusqlite::{Error, Result, Row};

/// Offsets, phones and other unsigned numbers. One past SQLite's range, which only a forged cursor can hold, is behind
/// everything that is stored.
pub(super) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(row: &Row<'_>, column: usize) -> Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| Error::IntegralValueOutOfRange(column, value))
}

pub(super) fn phone(row: &Row<'_>, column: usize) -> Result<Phone> {
    let value: i64 = row.get(column)?;
    Phone::from_digits(value as u64).ok_or(Error::IntegralValueOutOfRange(column, value))
}

pub(super) fn lane(row: &Row<'_>, column: usize) -> Result<Lane> {
    let value: i64 = row.get(column)?;
    Lane::from_index(value as usize).ok_or(Error::IntegralValueOutOfRange(column, value))
}

pub(super) fn timestamp(row: &Row<'_>, column: usize) -> Result<Timestamp> {
    row.get(column).map(Timestamp::from_millis)
}

pub(super) fn optional_timestamp(row: &Row<'_>, column: usize) -> Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_millis))
}

pub(super) fn bytes(row: &Row<'_>, column: usize) -> Result<Bytes> {
    Ok(Bytes::copy_from_slice(row.get_ref(column)?.as_blob()?))
}

/// An identity of 16 bytes.
pub(super) fn identity<T, E>(row: &Row<'_>, column: usize, from: impl FnOnce(&[u8]) -> Result<T, E>) -> Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
{
    from(row.get_ref(column)?.as_blob()?)
        .map_err(|error| Error::FromSqlConversionFailure(column, Type::Blob, Box::new(error)))
}

/// Whatever has a text form.
pub(super) fn text<T>(row: &Row<'_>, column: usize) -> Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.get_ref(column)?
        .as_str()?
        .parse()
        .map_err(|error| Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}
