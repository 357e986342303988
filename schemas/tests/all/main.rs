//! Tests of the crate as others use it: one binary, to keep linking short.
#![allow(clippy::unwrap_used)]

mod confluent;
mod conformance;
mod contracts;
mod http;
mod registry;
mod values;
