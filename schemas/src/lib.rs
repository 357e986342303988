//! The contract with everyone who reads the log: Avro schemas (`avro/*.avsc`, the source of truth), their Rust types,
//! the codec (Confluent wire format) and the registry that gives schemas their ids.
//!
//! Depends on `model` alone; knows no topic's name and no engine.

pub mod codec;
mod json;
pub mod records;
pub mod registry;

pub use codec::{Codecs, Contract, DecodeError, EncodeError, schema_id};
pub use records::{
    Broadcast, Cancellation, Change, ConversationChanged, ConversationHint, DeadLetter, Delivery, Hint, Media, Message,
    MessageHint, StatusChanged, StatusHint,
};
pub use registry::{Compatibility, Missing, Registry, RegistryError, SchemaId};
