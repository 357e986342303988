//! Tests of the crate as others use it: one binary, to keep linking short.
#![allow(clippy::unwrap_used)]

mod contracts;
mod http;
mod registry;
