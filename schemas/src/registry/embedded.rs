//! The registry of `eshaar serve`: one small SQLite file. Ids are global: the same schema has one id under all subjects.
//!
//! Asked at start and on unknown ids only, so that each call may open a transaction of its own. What it has given an id
//! it never changes and never deletes: records that carry the id may be anywhere.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::compatibility::{identity, parse, violations};
use super::{Compatibility, Missing, Registry, RegistryError, SchemaId};

/// Longest subject, in bytes: a topic's name (249) and its suffix.
pub const MAX_SUBJECT: usize = 260;
/// Longest schema, in bytes.
pub const MAX_SCHEMA: usize = 256 * 1024;
/// What a subject is held to that has no level of its own, until set otherwise.
pub const DEFAULT_LEVEL: Compatibility = Compatibility::FullTransitive;

/// How long a call waits while another process writes.
const BUSY: Duration = Duration::from_secs(5);

/// The key of the level that holds for all subjects without one.
const GLOBAL: &str = "";

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS schemas (id INTEGER PRIMARY KEY, json TEXT NOT NULL, identity TEXT NOT NULL UNIQUE);
    CREATE TABLE IF NOT EXISTS versions (
        subject TEXT NOT NULL, version INTEGER NOT NULL, schema INTEGER NOT NULL REFERENCES schemas (id),
        PRIMARY KEY (subject, version)) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS versions_by_schema ON versions (schema);
    CREATE TABLE IF NOT EXISTS levels (subject TEXT PRIMARY KEY, level TEXT NOT NULL) WITHOUT ROWID;";

/// Which version of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// This one; the first is 1.
    Number(u32),
    /// The newest.
    Latest,
}

/// A schema as it stands under a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The subject.
    pub subject: String,
    /// Its version there; the first is 1.
    pub version: u32,
    /// Its id, the same under every subject.
    pub id: SchemaId,
    /// Avro JSON, as it was registered.
    pub schema: String,
}

/// The embedded registry. Cheap to clone; every call runs on a blocking thread.
#[derive(Clone)]
pub struct EmbeddedRegistry {
    db: Arc<Mutex<Connection>>,
}

impl EmbeddedRegistry {
    /// Opens the file, and makes it if it is not there. Blocks.
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        let unavailable = |error: rusqlite::Error| RegistryError::Unavailable {
            reason: format!("cannot open {}: {error}", path.display()),
        };
        let db = Connection::open(path).map_err(unavailable)?;
        db.busy_timeout(BUSY).map_err(unavailable)?;
        db.pragma_update(None, "journal_mode", "wal").map_err(unavailable)?;
        // An id that was given out stands in records: it must outlive a power cut.
        db.pragma_update(None, "synchronous", "full").map_err(unavailable)?;
        db.execute_batch(TABLES).map_err(unavailable)?;
        Ok(Self { db: Arc::new(Mutex::new(db)) })
    }

    /// Runs `work` in a transaction, on a blocking thread.
    async fn run<T: Send + 'static>(
        &self,
        behavior: TransactionBehavior,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let db = Arc::clone(&self.db);
        let task = tokio::task::spawn_blocking(move || {
            let mut db = db.lock();
            let transaction = db.transaction_with_behavior(behavior)?;
            let answer = work(&transaction)?;
            transaction.commit()?;
            Ok(answer)
        });
        task.await.map_err(|error| RegistryError::Unavailable { reason: error.to_string() })?
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, RegistryError> {
        self.run(TransactionBehavior::Deferred, work).await
    }

    /// All subjects, by name.
    pub async fn subjects(&self) -> Result<Vec<String>, RegistryError> {
        self.read(|db| all(db, "SELECT DISTINCT subject FROM versions ORDER BY subject", [])).await
    }

    /// The versions of a subject, oldest first.
    pub async fn versions(&self, subject: &str) -> Result<Vec<u32>, RegistryError> {
        let subject = subject.to_owned();
        self.read(move |db| {
            let versions =
                all(db, "SELECT version FROM versions WHERE subject = ?1 ORDER BY version", params![subject])?;
            if versions.is_empty() { Err(missing(Missing::Subject(subject))) } else { Ok(versions) }
        })
        .await
    }

    /// One version of a subject.
    pub async fn version(&self, subject: &str, version: Version) -> Result<Registered, RegistryError> {
        let subject = subject.to_owned();
        self.read(move |db| find(db, &subject, version)).await
    }

    /// The version of `subject` that is this schema.
    pub async fn lookup(&self, subject: &str, schema: &str) -> Result<Registered, RegistryError> {
        let (subject, schema) = (subject.to_owned(), schema.to_owned());
        parse(&schema)?;
        self.read(move |db| {
            find(db, &subject, Version::Latest)?;
            registered_as(db, &subject, &schema)?.ok_or_else(|| missing(Missing::Schema))
        })
        .await
    }

    /// Where a schema stands: subjects and versions.
    pub async fn uses(&self, id: SchemaId) -> Result<Vec<(String, u32)>, RegistryError> {
        self.read(move |db| {
            schema_of(db, id)?;
            let mut query =
                db.prepare_cached("SELECT subject, version FROM versions WHERE schema = ?1 ORDER BY 1, 2")?;
            let rows = query.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The level of a subject, or the one that holds where a subject has none.
    pub async fn level(&self, subject: Option<&str>) -> Result<Compatibility, RegistryError> {
        let subject = subject.map(str::to_owned);
        self.read(move |db| match subject {
            None => Ok(level(db, GLOBAL)?.unwrap_or(DEFAULT_LEVEL)),
            Some(subject) => level(db, &subject)?.ok_or_else(|| missing(Missing::Level(subject))),
        })
        .await
    }

    /// Sets the level of a subject, or the one for all subjects without their own.
    pub async fn set_level(&self, subject: Option<&str>, wanted: Compatibility) -> Result<(), RegistryError> {
        let subject = subject.unwrap_or(GLOBAL).to_owned();
        check_subject_length(&subject)?;
        let current = {
            let subject = subject.clone();
            self.read(move |db| level(db, &subject)).await?
        };
        if current == Some(wanted) {
            return Ok(()); // the common case at start: nothing to sync
        }
        self.run(TransactionBehavior::Immediate, move |db| {
            let sql = "INSERT INTO levels VALUES (?1, ?2) ON CONFLICT (subject) DO UPDATE SET level = excluded.level";
            db.execute(sql, params![subject, wanted.as_str()])?;
            Ok(())
        })
        .await
    }

    /// What keeps `schema` from following `version` of `subject` at the subject's level; nothing if it may.
    pub async fn check(&self, subject: &str, version: Version, schema: &str) -> Result<Vec<String>, RegistryError> {
        let (subject, schema) = (subject.to_owned(), schema.to_owned());
        self.read(move |db| {
            let earlier = find(db, &subject, version)?;
            let level = level_for(db, &subject)?;
            Ok(violations(level, &parse(&schema)?, &[(earlier.version, parse(&earlier.schema)?)]))
        })
        .await
    }

    /// What keeps `schema` from being registered under `subject` next; nothing if it may.
    pub async fn check_all(&self, subject: &str, schema: &str) -> Result<Vec<String>, RegistryError> {
        let (subject, schema) = (subject.to_owned(), schema.to_owned());
        self.read(move |db| Ok(violations(level_for(db, &subject)?, &parse(&schema)?, &history(db, &subject)?))).await
    }
}

#[async_trait]
impl Registry for EmbeddedRegistry {
    async fn register(&self, subject: &str, schema: &str) -> Result<SchemaId, RegistryError> {
        check_subject_length(subject)?;
        if schema.len() > MAX_SCHEMA {
            let reason = format!("it has {} bytes, at most {MAX_SCHEMA} are allowed", schema.len());
            return Err(RegistryError::Invalid { reason });
        }
        match self.lookup(subject, schema).await {
            Ok(registered) => return Ok(registered.id), // the common case at start: nothing to sync
            Err(RegistryError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let (subject, schema) = (subject.to_owned(), schema.to_owned());
        self.run(TransactionBehavior::Immediate, move |db| append(db, &subject, &schema)).await
    }

    async fn lookup(&self, subject: &str, schema: &str) -> Result<SchemaId, RegistryError> {
        Ok(Self::lookup(self, subject, schema).await?.id)
    }

    async fn schema(&self, id: SchemaId) -> Result<String, RegistryError> {
        self.read(move |db| schema_of(db, id)).await
    }

    async fn set_compatibility(&self, subject: &str, level: Compatibility) -> Result<(), RegistryError> {
        self.set_level(Some(subject), level).await
    }
}

impl From<rusqlite::Error> for RegistryError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Unavailable { reason: error.to_string() }
    }
}

fn missing(what: Missing) -> RegistryError {
    RegistryError::NotFound { what }
}

fn check_subject_length(subject: &str) -> Result<(), RegistryError> {
    if subject.len() <= MAX_SUBJECT {
        return Ok(());
    }
    let reason = format!("the subject has {} bytes, at most {MAX_SUBJECT} are allowed", subject.len());
    Err(RegistryError::Invalid { reason })
}

/// Adds a version to a subject, unless another process just did.
fn append(db: &Transaction<'_>, subject: &str, schema: &str) -> Result<SchemaId, RegistryError> {
    if let Some(registered) = registered_as(db, subject, schema)? {
        return Ok(registered.id);
    }
    let earlier = history(db, subject)?;
    let refused = violations(level_for(db, subject)?, &parse(schema)?, &earlier);
    if !refused.is_empty() {
        return Err(RegistryError::Incompatible { subject: subject.to_owned(), reason: refused.join("; ") });
    }
    let identity = identity(schema)?;
    db.execute("INSERT INTO schemas (json, identity) VALUES (?1, ?2) ON CONFLICT DO NOTHING", [schema, &identity])?;
    let id = db.query_row("SELECT id FROM schemas WHERE identity = ?1", [&identity], |row| row.get(0))?;
    let version = earlier.first().map_or(1, |(newest, _)| newest + 1);
    db.execute("INSERT INTO versions VALUES (?1, ?2, ?3)", params![subject, version, id])?;
    Ok(id)
}

fn find(db: &Connection, subject: &str, version: Version) -> Result<Registered, RegistryError> {
    let sql = "SELECT version, id, json FROM versions JOIN schemas ON id = schema
               WHERE subject = ?1 AND version = coalesce(?2, (SELECT max(version) FROM versions WHERE subject = ?1))";
    let number = match version {
        Version::Number(number) => Some(number),
        Version::Latest => None,
    };
    let row = db
        .prepare_cached(sql)?
        .query_row(params![subject, number], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    if let Some((version, id, schema)) = row {
        return Ok(Registered { subject: subject.to_owned(), version, id, schema });
    }
    let exists: bool =
        db.query_row("SELECT EXISTS (SELECT 1 FROM versions WHERE subject = ?1)", [subject], |row| row.get(0))?;
    Err(missing(match number {
        Some(number) if exists => Missing::Version(number),
        _ => Missing::Subject(subject.to_owned()),
    }))
}

fn registered_as(db: &Connection, subject: &str, schema: &str) -> Result<Option<Registered>, RegistryError> {
    let sql = "SELECT version, id, json FROM versions JOIN schemas ON id = schema
               WHERE subject = ?1 AND identity = ?2 ORDER BY version DESC LIMIT 1";
    let row = db
        .prepare_cached(sql)?
        .query_row(params![subject, identity(schema)?], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    Ok(row.map(|(version, id, schema)| Registered { subject: subject.to_owned(), version, id, schema }))
}

/// All versions of a subject, newest first.
fn history(db: &Connection, subject: &str) -> Result<Vec<(u32, apache_avro::Schema)>, RegistryError> {
    let sql = "SELECT version, json FROM versions JOIN schemas ON id = schema WHERE subject = ?1 ORDER BY version DESC";
    let mut query = db.prepare_cached(sql)?;
    let rows = query.query_map([subject], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
    rows.map(|row| row.map_err(RegistryError::from).and_then(|(version, json)| Ok((version, parse(&json)?)))).collect()
}

fn schema_of(db: &Connection, id: SchemaId) -> Result<String, RegistryError> {
    let json = db.query_row("SELECT json FROM schemas WHERE id = ?1", [id], |row| row.get(0)).optional()?;
    json.ok_or_else(|| missing(Missing::Schema))
}

/// The level that holds for a subject: its own, or the global one.
fn level_for(db: &Connection, subject: &str) -> Result<Compatibility, RegistryError> {
    match level(db, subject)? {
        Some(level) => Ok(level),
        None => Ok(level(db, GLOBAL)?.unwrap_or(DEFAULT_LEVEL)),
    }
}

fn level(db: &Connection, subject: &str) -> Result<Option<Compatibility>, RegistryError> {
    let sql = "SELECT level FROM levels WHERE subject = ?1";
    let text: Option<String> = db.query_row(sql, [subject], |row| row.get(0)).optional()?;
    text.map(|text| text.parse().map_err(|_| RegistryError::Unavailable { reason: format!("unknown level {text}") }))
        .transpose()
}

fn all<T: rusqlite::types::FromSql, P: rusqlite::Params>(
    db: &Connection,
    sql: &str,
    params: P,
) -> Result<Vec<T>, RegistryError> {
    let mut query = db.prepare_cached(sql)?;
    let rows = query.query_map(params, |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
