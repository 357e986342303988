//! The registry port: it gives a schema its id, and an id its schema. Any registry that speaks Confluent's API can stand
//! behind it, through [`confluent`]; [`embedded`] is our own, and [`http`] lets others read that one as they would
//! Confluent's.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;

mod cache;
pub mod compatibility;
pub mod confluent;
pub mod embedded;
pub mod http;

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

impl Compatibility {
    /// All levels.
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::Backward,
        Self::BackwardTransitive,
        Self::Forward,
        Self::ForwardTransitive,
        Self::Full,
        Self::FullTransitive,
    ];

    /// Its name in Confluent's API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Backward => "BACKWARD",
            Self::BackwardTransitive => "BACKWARD_TRANSITIVE",
            Self::Forward => "FORWARD",
            Self::ForwardTransitive => "FORWARD_TRANSITIVE",
            Self::Full => "FULL",
            Self::FullTransitive => "FULL_TRANSITIVE",
        }
    }
}

impl fmt::Display for Compatibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no compatibility level.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected NONE, BACKWARD, FORWARD or FULL, the last three with or without _TRANSITIVE")]
pub struct CompatibilityError;

impl FromStr for Compatibility {
    type Err = CompatibilityError;

    fn from_str(text: &str) -> Result<Self, CompatibilityError> {
        Self::ALL.into_iter().find(|level| level.as_str() == text).ok_or(CompatibilityError)
    }
}

/// What a registry was asked for and does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// This subject.
    Subject(String),
    /// This version of an existing subject.
    Version(u32),
    /// A schema: by its id, or by its text under a subject.
    Schema,
    /// A compatibility level of its own for this subject.
    Level(String),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subject(subject) => write!(f, "subject {subject}"),
            Self::Version(version) => write!(f, "version {version}"),
            Self::Schema => f.write_str("such schema"),
            Self::Level(subject) => write!(f, "compatibility level of subject {subject}"),
        }
    }
}

/// What a registry may answer besides what it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
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
        what: Missing,
    },
    /// A subject that this build writes to has not been set up.
    #[error("subject {subject} is not in the schema registry: run `eshaar topics apply`")]
    NoSubject {
        /// The subject.
        subject: String,
    },
    /// A subject has other versions of a contract than the one that this build writes.
    #[error("subject {subject} does not have {record} as this build writes it: run `eshaar topics apply`")]
    OtherVersions {
        /// The subject.
        subject: String,
        /// Avro name of the contract.
        record: &'static str,
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

    /// The id that `schema` already has under `subject`; nothing is registered.
    async fn lookup(&self, subject: &str, schema: &str) -> Result<SchemaId, RegistryError>;

    /// The schema of an id, as Avro JSON.
    async fn schema(&self, id: SchemaId) -> Result<String, RegistryError>;

    /// Sets how far a subject's schema may change.
    async fn set_compatibility(&self, subject: &str, level: Compatibility) -> Result<(), RegistryError>;
}
