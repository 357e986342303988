//! The rules as properties: what must hold for every value, not for a few examples.

#![allow(clippy::unwrap_used)]

mod any;
mod content;
mod conversations;
mod cursors;
mod messages;
mod phones;
