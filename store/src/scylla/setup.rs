//! Makes the tables (`eshaar store apply`), and says what is wrong with them (`eshaar check`).
//!
//! Versions are recorded in `schema_version`. Two that apply at once take turns: a row in `schema_lock` is held by a
//! conditional write, and lets go of itself when its holder dies.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use eshaar_model::{MessageId, Timestamp};
use scylla::client::session::Session;
use scylla::serialize::row::SerializeRow;
use scylla::statement::Statement;
use scylla::value::CqlTimestamp;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::connect::connect;
use super::options::Strategy;
use super::schema::{self, VERSION};
use super::{Options, conditional};

/// The store is not fit for use. Each says what to do where that is not plain.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The keyspace would not be a name in CQL.
    #[error("the keyspace {0:?} is no name: lower-case letters, digits and _, at most 48, a letter first")]
    KeyspaceName(String),
    /// A file that an option names cannot be read.
    #[error("cannot read {path}, which {option} names: {reason}", path = path.display())]
    File {
        /// The option.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The certificates cannot be used.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// No node answered.
    #[error("cannot connect to any of {nodes}: {reason}")]
    Connect {
        /// The nodes that were given.
        nodes: String,
        /// What the last one said.
        reason: String,
    },
    /// No node answered in time.
    #[error("none of {nodes} answered within {seconds} s")]
    Slow {
        /// The nodes that were given.
        nodes: String,
        /// How long it was tried.
        seconds: u64,
    },
    /// The user or its password is wrong.
    #[error("{nodes} refused the user {username:?}: check the username and the password ({reason})")]
    Credentials {
        /// The nodes that were given.
        nodes: String,
        /// Who we said we are.
        username: String,
        /// What the node said.
        reason: String,
    },
    /// The datacenter to stay in is not there.
    #[error("there is no datacenter {wanted:?} in the cluster; it has: {there}")]
    Datacenter {
        /// The one that was given.
        wanted: String,
        /// Those that are there.
        there: String,
    },
    /// There is no such keyspace, or nothing of ours in it.
    #[error("the keyspace {0} has no tables of this program: run `eshaar store apply`")]
    Missing(String),
    /// The tables are of an earlier version.
    #[error(
        "the keyspace {keyspace} has schema version {found}, this program needs {needed}: run `eshaar store apply`"
    )]
    Older {
        /// The keyspace.
        keyspace: String,
        /// Its version.
        found: i32,
        /// Ours.
        needed: i32,
    },
    /// The tables are of a later version.
    #[error(
        "the keyspace {keyspace} has schema version {found}, this program knows only up to {known}: a newer one has been here"
    )]
    Newer {
        /// The keyspace.
        keyspace: String,
        /// Its version.
        found: i32,
        /// Ours.
        known: i32,
    },
    /// Another one holds the lock.
    #[error("another `eshaar store apply` was still at work after {0} s: try again")]
    Locked(u64),
    /// A statement failed.
    #[error("the cluster failed to {action}: {reason}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// What it said.
        reason: String,
    },
}

fn failed(action: &'static str, reason: &dyn fmt::Display) -> SetupError {
    SetupError::Failed { action, reason: reason.to_string() }
}

/// What `apply` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The keyspace.
    pub keyspace: String,
    /// Whether the keyspace was made.
    pub made_keyspace: bool,
    /// The version of the tables before; 0 where there were none.
    pub before: i32,
    /// The version now.
    pub now: i32,
    /// What each step did.
    pub steps: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.made_keyspace {
            writeln!(f, "made the keyspace {}", self.keyspace)?;
        }
        for step in &self.steps {
            writeln!(f, "made {step}")?;
        }
        match self.steps.len() {
            0 => write!(f, "{}: nothing to do, schema version {}", self.keyspace, self.now),
            _ => write!(f, "{}: schema version {}, was {}", self.keyspace, self.now, self.before),
        }
    }
}

/// What `check` found in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Nodes that are connected, of all that are known.
    pub nodes: (usize, usize),
    /// The version of the tables.
    pub version: i32,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "schema version {}, {} of {} nodes connected", self.version, self.nodes.0, self.nodes.1)
    }
}

/// Longest wait for another that applies.
const LOCK_WAIT: Duration = Duration::from_mins(2);
/// A holder of the lock that has died lets go of it after this many seconds.
const LOCK_TTL_S: i32 = 300;
/// Time between two looks at the lock.
const LOCK_POLL: Duration = Duration::from_millis(200);
/// Longest wait for one change of the schema: all nodes must agree on it.
const CHANGE_TIMEOUT: Duration = Duration::from_mins(1);
/// What the rows of versions and of the lock are called.
const NAME: &str = "eshaar";

/// Makes the keyspace and the tables where they are not there, or brings them to this version. Again it does nothing; of
/// two at once the second waits for the first.
pub async fn apply(options: &Options) -> Result<Report, SetupError> {
    let session = connect(options).await?;
    let made_keyspace = !keyspace_is_there(&session, options).await?;
    change(&session, make_keyspace(options)).await?;
    use_keyspace(&session, options).await?;
    for statement in schema::SETUP {
        change(&session, statement.to_owned()).await?;
    }
    let holder = lock(&session).await?;
    let migrated = migrate(&session, options).await;
    // Also when a step failed: the next one need not wait for the lock to run out.
    let unlocked = unlock(&session, holder).await;
    let (before, steps) = migrated?;
    unlocked?;
    Ok(Report { keyspace: options.keyspace.clone(), made_keyspace, before, now: VERSION, steps })
}

/// Whether the cluster can be used with these options: reached, ours, and at this version.
pub async fn check(options: &Options) -> Result<Checked, SetupError> {
    let session = connect_ready(options).await?;
    let state = session.get_cluster_state();
    let nodes = state.get_nodes_info();
    let connected = nodes.iter().filter(|node| node.is_connected()).count();
    Ok(Checked { nodes: (connected, nodes.len()), version: VERSION })
}

/// A session in the keyspace, whose tables are of this version.
pub(super) async fn connect_ready(options: &Options) -> Result<Session, SetupError> {
    let session = connect(options).await?;
    if !keyspace_is_there(&session, options).await? {
        return Err(SetupError::Missing(options.keyspace.clone()));
    }
    use_keyspace(&session, options).await?;
    let tables =
        "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = 'schema_version'";
    if first::<(String,)>(&session, "look for tables", tables, (&options.keyspace,)).await?.is_none() {
        return Err(SetupError::Missing(options.keyspace.clone()));
    }
    let keyspace = options.keyspace.clone();
    match version(&session).await? {
        VERSION => Ok(session),
        0 => Err(SetupError::Missing(keyspace)),
        found if found < VERSION => Err(SetupError::Older { keyspace, found, needed: VERSION }),
        found => Err(SetupError::Newer { keyspace, found, known: VERSION }),
    }
}

async fn keyspace_is_there(session: &Session, options: &Options) -> Result<bool, SetupError> {
    let named = "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?";
    Ok(first::<(String,)>(session, "look for the keyspace", named, (&options.keyspace,)).await?.is_some())
}

async fn use_keyspace(session: &Session, options: &Options) -> Result<(), SetupError> {
    session.use_keyspace(&options.keyspace, true).await.map_err(|error| failed("use the keyspace", &error))
}

fn make_keyspace(options: &Options) -> String {
    let factor = options.replication.factor;
    // A name of a datacenter is checked against the cluster's own before; a quote in it must end no text all the same.
    let datacenter = options.datacenter.replace('\'', "''");
    let replication = match options.replication.strategy {
        Strategy::Simple => format!("'class': 'SimpleStrategy', 'replication_factor': {factor}"),
        Strategy::NetworkTopology if datacenter.is_empty() => {
            format!("'class': 'NetworkTopologyStrategy', 'replication_factor': {factor}")
        }
        Strategy::NetworkTopology => format!("'class': 'NetworkTopologyStrategy', '{datacenter}': {factor}"),
    };
    format!("CREATE KEYSPACE IF NOT EXISTS {} WITH replication = {{{replication}}}", options.keyspace)
}

/// The newest version that was applied; 0 before the first.
async fn version(session: &Session) -> Result<i32, SetupError> {
    let newest = "SELECT version FROM schema_version WHERE name = ? LIMIT 1";
    Ok(first::<(i32,)>(session, "read the schema version", newest, (NAME,)).await?.map_or(0, |(version,)| version))
}

/// The steps that were missing, and the version before them.
async fn migrate(session: &Session, options: &Options) -> Result<(i32, Vec<String>), SetupError> {
    let before = version(session).await?;
    if before > VERSION {
        return Err(SetupError::Newer { keyspace: options.keyspace.clone(), found: before, known: VERSION });
    }
    let mut steps = Vec::new();
    for (version, migration) in (1..).zip(schema::migrations(options)).skip(before.max(0) as usize) {
        for statement in migration.statements {
            change(session, statement).await?;
        }
        for (table, column, kind) in migration.columns {
            // `ADD IF NOT EXISTS` is Cassandra's alone.
            if !column_is_there(session, options, table, column).await? {
                change(session, format!("ALTER TABLE {table} ADD {column} {kind}")).await?;
            }
        }
        for copy in migration.copies {
            copy.run(session).await.map_err(|reason| failed("copy rows to their new tables", &reason))?;
        }
        let record = "INSERT INTO schema_version (name, version, what, applied_at) VALUES (?, ?, ?, ?) IF NOT EXISTS";
        let now = CqlTimestamp(eshaar_model::Clock::system().now().as_millis());
        decide(session, "record the schema version", record, (NAME, version, migration.what, now)).await?;
        steps.push(migration.what.to_owned());
    }
    Ok((before, steps))
}

async fn column_is_there(session: &Session, options: &Options, table: &str, column: &str) -> Result<bool, SetupError> {
    let named = "SELECT column_name FROM system_schema.columns
        WHERE keyspace_name = ? AND table_name = ? AND column_name = ?";
    let place = (&options.keyspace, table, column);
    Ok(first::<(String,)>(session, "look for a column", named, place).await?.is_some())
}

/// Waits until the lock is ours.
async fn lock(session: &Session) -> Result<Uuid, SetupError> {
    let holder = Uuid::from(MessageId::new(Timestamp::from_millis(0)));
    let take = format!("INSERT INTO schema_lock (name, holder) VALUES (?, ?) IF NOT EXISTS USING TTL {LOCK_TTL_S}");
    let until = Instant::now() + LOCK_WAIT;
    loop {
        let decision = decide(session, "take the lock", &take, (NAME, holder)).await?;
        if decision.applied || decision.uuid("holder") == Some(holder) {
            return Ok(holder);
        }
        if Instant::now() >= until {
            return Err(SetupError::Locked(LOCK_WAIT.as_secs()));
        }
        sleep(LOCK_POLL).await;
    }
}

async fn unlock(session: &Session, holder: Uuid) -> Result<(), SetupError> {
    let release = "DELETE FROM schema_lock WHERE name = ? IF holder = ?";
    decide(session, "let go of the lock", release, (NAME, holder)).await.map(drop)
}

/// Changes the schema, and waits until the nodes agree on it.
async fn change(session: &Session, statement: String) -> Result<(), SetupError> {
    let mut statement = Statement::new(statement);
    statement.set_request_timeout(Some(CHANGE_TIMEOUT));
    session.query_unpaged(statement, ()).await.map_err(|error| failed("change the schema", &error))?;
    Ok(())
}

async fn first<T>(
    session: &Session,
    action: &'static str,
    statement: &str,
    values: impl SerializeRow,
) -> Result<Option<T>, SetupError>
where
    T: for<'a> scylla::deserialize::row::DeserializeRow<'a, 'a>,
{
    let result = session.query_unpaged(statement, values).await.map_err(|error| failed(action, &error))?;
    let rows = result.into_rows_result().map_err(|error| failed(action, &error))?;
    rows.maybe_first_row().map_err(|error| failed(action, &error))
}

async fn decide(
    session: &Session,
    action: &'static str,
    statement: &str,
    values: impl SerializeRow,
) -> Result<conditional::Decision, SetupError> {
    let prepared = session.prepare(statement).await.map_err(|error| failed(action, &error))?;
    conditional::decide(session, &prepared, &values).await.map_err(|error| failed(action, &error))
}
