//! The HTTP API over its real router, on the embedded log and store, called in memory.
#![allow(clippy::unwrap_used, missing_docs)]

mod acceptance;
mod access;
mod admin;
mod audiences;
mod bulk;
mod caches;
mod cancelling;
mod chat_repeats;
mod clocks;
mod conversations;
mod description;
mod fixture;
mod idempotency;
mod limits;
mod operations;
mod rates;
mod reading;
mod scheduling;
mod single;
mod tenants;
mod text;
mod webhooks;
