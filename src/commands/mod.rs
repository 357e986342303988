//! One file a command. They print to people; nothing else in eshaar does.

pub mod append;
pub mod chat;
pub mod check;
pub mod completions;
pub mod console;
pub mod dead_letters;
pub mod keys;
pub mod listen;
pub mod send;
pub mod store;
pub mod token;
pub mod topics;
