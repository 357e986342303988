//! Tests of sessions over an in-memory connection.
