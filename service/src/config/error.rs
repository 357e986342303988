//! Errors of the configuration. They name the key, its source and the type that it must have. They never show a value: the
//! key next to it, or the line before it, may hold a secret.

use figment::error::{Actual, Kind};

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file named on the command line is not there.
    #[error("no configuration file at {0}")]
    NoFile(String),
    /// The file is there and cannot be read.
    #[error("cannot read the configuration file {file}: {reason}")]
    Unreadable {
        /// Path of the file.
        file: String,
        /// The operating system's error.
        reason: String,
    },
    /// The file is not TOML.
    #[error("configuration: {file} is not TOML at line {line}, column {column}")]
    Syntax {
        /// Path of the file.
        file: String,
        /// Line of the error, from 1.
        line: usize,
        /// Column of the error in characters, from 1.
        column: usize,
    },
    /// A key is unknown or missing, or its value does not fit.
    #[error("configuration: {key}: {reason} (set by {source_name})")]
    Invalid {
        /// The dotted key.
        key: String,
        /// The fault, without the value.
        reason: String,
        /// The file, the environment variable or the flag.
        source_name: String,
    },
}

impl ConfigError {
    pub(super) fn invalid(source: &str, key: &str, reason: &str) -> Self {
        Self::Invalid { key: key.to_owned(), reason: reason.to_owned(), source_name: source.to_owned() }
    }

    /// The message of the TOML parser is left out with its excerpt: it may quote the line.
    pub(super) fn from_toml(file: &str, text: &str, error: &toml::de::Error) -> Self {
        let at = error.span().map_or(text.len(), |span| span.start.min(text.len()));
        let before = text.get(..at).unwrap_or_default();
        let (line, last) = (before.matches('\n').count() + 1, before.rsplit('\n').next().unwrap_or_default());
        Self::Syntax { file: file.to_owned(), line, column: last.chars().count() + 1 }
    }

    pub(super) fn from_figment(error: &figment::Error) -> Self {
        let mut key = error.path.join(".");
        if let Kind::UnknownField(field, _) | Kind::MissingField(std::borrow::Cow::Owned(field)) = &error.kind
            && error.path.last().is_none_or(|last| last != field)
        {
            key = if key.is_empty() { field.clone() } else { format!("{key}.{field}") };
        }
        let source = error.metadata.as_ref().map_or("no source", |metadata| metadata.name.as_ref());
        Self::invalid(source, &key, &reason(&error.kind, &key))
    }
}

fn reason(kind: &Kind, key: &str) -> String {
    match kind {
        Kind::InvalidType(found, expected) => format!("expected {expected}, found {}", type_of(found)),
        Kind::InvalidValue(_, expected) => format!("the value does not fit: expected {expected}"),
        Kind::InvalidLength(length, expected) => format!("expected {expected}, found {length} values"),
        Kind::UnknownVariant(_, expected) => format!("expected one of {}", quoted(expected)),
        Kind::UnknownField(_, expected) => format!("unknown key; its section has {}", quoted(expected)),
        Kind::MissingField(field) => format!("the key `{field}` is missing"),
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) => "the number is out of range".to_owned(),
        Kind::Unsupported(found) | Kind::UnsupportedKey(found, _) => format!("{} cannot be used here", type_of(found)),
        Kind::DuplicateField(_) => "the key is given twice".to_owned(),
        // Text of the type itself, such as «not a rate». It may quote the value.
        Kind::Message(_) if is_secret(key) => "the value cannot be used".to_owned(),
        Kind::Message(text) => text.clone(),
    }
}

/// Returns true for keys whose values must not be shown.
fn is_secret(key: &str) -> bool {
    let name = key.rsplit('.').next().unwrap_or(key);
    ["password", "secret", "token", "credential", "key", "url"].iter().any(|word| name.contains(word))
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn type_of(value: &Actual) -> &'static str {
    match value {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) | Actual::Signed(_) => "an integer",
        Actual::Float(_) => "a number with a fraction",
        Actual::Char(_) | Actual::Str(_) | Actual::Bytes(_) => "text",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "a value of another type",
    }
}
