//! Who is let in and who is not, through the public API alone.
#![allow(clippy::unwrap_used, missing_docs)]

mod api_keys;
mod fixture;
mod key_sets;
mod tokens;
