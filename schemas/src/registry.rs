//! The registry port: it gives a schema its id, and an id its schema.

use async_trait::async_trait;

/// Id of a schema in its registry, as it stands behind the magic byte of every record.
pub type SchemaId = u32;

/// How far a subject's schema may change. The names are Confluent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are defined by the Confluent registry's documentation")]
pub enum Compatibility {
    None,
    Backward,
    BackwardTransitive,
    Forward,
    ForwardTransitive,
    Full,
    FullTransitive,
}

/// What a registry may answer besides what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The schema cannot follow those registered before it.
    #[error("schema refused for subject {subject}: {reason}")]
    Incompatible {
        /// The subject.
        subject: String,
        /// What changed in a way that readers could not follow.
        reason: String,
    },
    /// No such subject, version or id.
    #[error("no {what} in the schema registry")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// Not an Avro schema.
    #[error("not an Avro schema: {reason}")]
    Invalid {
        /// Why.
        reason: String,
    },
    /// The registry did not answer.
    #[error("schema registry unavailable: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
}

/// A schema registry: the embedded one, or any that speaks Confluent's API.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Registers `schema` (Avro JSON) under `subject`; the same schema again gets the same id.
    async fn register(&self, subject: &str, schema: &str) -> Result<SchemaId, RegistryError>;

    /// The schema of an id, as Avro JSON.
    async fn schema(&self, id: SchemaId) -> Result<String, RegistryError>;

    /// Sets how far a subject's schema may change.
    async fn set_compatibility(&self, subject: &str, level: Compatibility) -> Result<(), RegistryError>;
}
