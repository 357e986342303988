//! The tables, and how a connection is set up.
//!
//! What is large (a record's value) goes into tables that only grow at their end, `stream_body` and `message_body`; what
//! is searched stays small and clustered by its key. So an append touches one leaf of an index per message, and the
//! values of a batch share pages.

use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::Options;

/// Marks the file as ours: "esh1".
const APPLICATION_ID: i32 = 0x6573_6831;

/// Each brings the database from its index in this list to the next version. Never changed, only added to.
const MIGRATIONS: &[&str] = &[
    VERSION_1, VERSION_2, VERSION_3, VERSION_4, VERSION_5, VERSION_6, VERSION_7, VERSION_8, VERSION_9, VERSION_10,
    VERSION_11,
];

const VERSION_1: &str = "
-- The index of the phones' streams, in reading order within a lane. It lags behind `stream_body`: what is missing in it is
-- in memory (`recent`).
CREATE TABLE stream (
    phone INTEGER NOT NULL, epoch INTEGER NOT NULL, lane INTEGER NOT NULL, offset INTEGER NOT NULL,
    at INTEGER NOT NULL, id BLOB NOT NULL, body INTEGER NOT NULL,
    PRIMARY KEY (phone, epoch, lane, offset)
) WITHOUT ROWID;

-- The rows of all streams in the order of append, so that the oldest come first and go first. `body` only rises.
CREATE TABLE stream_body (
    body INTEGER PRIMARY KEY,
    phone INTEGER NOT NULL, epoch INTEGER NOT NULL, lane INTEGER NOT NULL, offset INTEGER NOT NULL,
    partition INTEGER NOT NULL, at INTEGER NOT NULL, id BLOB NOT NULL, expires_at INTEGER, value BLOB NOT NULL
);

-- One row: up to this body, all rows are in the index.
CREATE TABLE indexed (body INTEGER NOT NULL);
INSERT INTO indexed VALUES (0);

-- Of each lane's partition: the highest offset appended, and the lowest that was not let go of.
CREATE TABLE head (
    epoch INTEGER NOT NULL, lane INTEGER NOT NULL, partition INTEGER NOT NULL,
    offset INTEGER NOT NULL, floor INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (epoch, lane, partition)
) WITHOUT ROWID;

-- Time marks: the highest offset among the rows of a span of time that ends at `ends_at`.
CREATE TABLE mark (
    epoch INTEGER NOT NULL, lane INTEGER NOT NULL, partition INTEGER NOT NULL, ends_at INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    PRIMARY KEY (epoch, lane, partition, ends_at)
) WITHOUT ROWID;

-- How far each phone acknowledged; -1 where nothing of a lane was.
CREATE TABLE acked (
    phone INTEGER PRIMARY KEY, epoch INTEGER NOT NULL,
    high INTEGER NOT NULL, normal INTEGER NOT NULL, low INTEGER NOT NULL, bulk INTEGER NOT NULL
);

-- The steps of a message, a column each. `body` is null while a step came before its message.
CREATE TABLE message (
    id BLOB PRIMARY KEY, body INTEGER,
    failed INTEGER, expired INTEGER, cancelled INTEGER, delivered INTEGER, read INTEGER, reason TEXT
) WITHOUT ROWID;

CREATE TABLE message_body (
    body INTEGER PRIMARY KEY,
    id BLOB NOT NULL, type INTEGER NOT NULL, conversation BLOB, sender TEXT NOT NULL, recipient TEXT NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER, accepted_partition INTEGER NOT NULL,
    accepted_offset INTEGER NOT NULL, value BLOB NOT NULL
);

-- What each business has sent, with what a list is filtered by. `phone` is null when the recipient is none.
CREATE TABLE sent (
    business TEXT NOT NULL, id BLOB NOT NULL,
    type INTEGER NOT NULL, phone INTEGER, expires_at INTEGER, body INTEGER NOT NULL,
    PRIMARY KEY (business, id)
) WITHOUT ROWID;

-- In the order they were made, so that the oldest go first.
CREATE TABLE claim (
    claim INTEGER PRIMARY KEY, principal TEXT NOT NULL, key TEXT NOT NULL,
    body_hash BLOB NOT NULL, minted BLOB NOT NULL, answer BLOB, claimed_at INTEGER NOT NULL,
    UNIQUE (principal, key)
);

CREATE TABLE api_key (
    id TEXT PRIMARY KEY, business TEXT NOT NULL, name TEXT NOT NULL, secret_hash BLOB NOT NULL,
    permissions TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER, revoked_at INTEGER
) WITHOUT ROWID;
CREATE INDEX api_key_by_business ON api_key (business, created_at, id);

-- One row that a sync writes when nothing else is written with it: SQLite fsyncs only what writes.
CREATE TABLE synced (times INTEGER NOT NULL);
INSERT INTO synced VALUES (0);
";

const VERSION_2: &str = "
-- A record that a stage gave up on. `state` is 0 while it is open; `holder` has it until `held_until`.
CREATE TABLE dead_letter (
    id BLOB PRIMARY KEY, stage TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
    redrives INTEGER NOT NULL, business TEXT, event TEXT, correlation TEXT, code TEXT NOT NULL, reason TEXT NOT NULL,
    attempts INTEGER NOT NULL, at INTEGER NOT NULL, bytes INTEGER NOT NULL, state INTEGER NOT NULL,
    settled_at INTEGER, settled_by TEXT, holder BLOB, held_until INTEGER,
    key BLOB NOT NULL, headers BLOB NOT NULL, value BLOB NOT NULL
);
CREATE INDEX dead_letter_by_time ON dead_letter (at, id);

-- Work that outlives a process; `holder` has it until `held_until`.
CREATE TABLE task (
    kind TEXT NOT NULL, id TEXT NOT NULL, made_at INTEGER NOT NULL, progress BLOB NOT NULL, finished INTEGER NOT NULL,
    saved_at INTEGER NOT NULL, holder BLOB, held_until INTEGER,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;

-- Only ever appended to. The id begins with the time.
CREATE TABLE audit (
    id BLOB PRIMARY KEY, actor TEXT NOT NULL, action TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL,
    correlation TEXT
) WITHOUT ROWID;
CREATE INDEX audit_by_actor ON audit (actor, id);
";

const VERSION_3: &str = "
-- Where businesses are told. `revision` changes with each change.
CREATE TABLE webhook (
    business TEXT NOT NULL, id BLOB NOT NULL, url TEXT NOT NULL, events TEXT NOT NULL, key TEXT NOT NULL,
    generation INTEGER NOT NULL, rotated_at INTEGER, created_at INTEGER NOT NULL,
    disabled_at INTEGER, disabled_reason TEXT, failures INTEGER NOT NULL, failing_since INTEGER, revision BLOB NOT NULL,
    PRIMARY KEY (business, id)
) WITHOUT ROWID;

-- How far an endpoint that is behind was told of a partition of message.status.
CREATE TABLE webhook_cursor (
    partition INTEGER NOT NULL, webhook BLOB NOT NULL, business TEXT NOT NULL, epoch INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    PRIMARY KEY (partition, webhook)
) WITHOUT ROWID;
";

const VERSION_4: &str = "
-- How many messages may be sent with a key; null: no limit of its own.
ALTER TABLE api_key ADD COLUMN rate TEXT;
";

const VERSION_5: &str = "
-- Lists of recipients, a page of at most 1,000 phones of 8 bytes a row.
CREATE TABLE recipients (
    list BLOB NOT NULL, page INTEGER NOT NULL, phones BLOB NOT NULL,
    PRIMARY KEY (list, page)
);

-- The lists that have a name, each as it was uploaded last.
CREATE TABLE audience (
    business TEXT NOT NULL, name TEXT NOT NULL, list BLOB NOT NULL, total INTEGER NOT NULL, uploaded_at INTEGER NOT NULL,
    PRIMARY KEY (business, name)
) WITHOUT ROWID;

-- Lists that go at a time, unless they are an audience's then.
CREATE TABLE recipients_due (
    due INTEGER NOT NULL, list BLOB NOT NULL, business TEXT, name TEXT,
    PRIMARY KEY (due, list)
) WITHOUT ROWID;

-- One message to many. `state` is 0 once it was accepted, 1 while it is sent, 2 when that has ended.
CREATE TABLE broadcast (
    id BLOB PRIMARY KEY, business TEXT NOT NULL, created_at INTEGER NOT NULL, state INTEGER NOT NULL, value BLOB NOT NULL
);
CREATE INDEX broadcast_by_business ON broadcast (business, id) WHERE state > 0;
CREATE INDEX broadcast_open ON broadcast (id) WHERE state = 1;
CREATE INDEX broadcast_by_time ON broadcast (created_at);

-- What became of the messages of a broadcast, as far as a partition of message.status tells, up to an offset of it.
CREATE TABLE broadcast_tally (
    broadcast BLOB NOT NULL, partition INTEGER NOT NULL, segment INTEGER NOT NULL, epoch INTEGER NOT NULL,
    offset INTEGER NOT NULL, delivered INTEGER NOT NULL, read INTEGER NOT NULL, failed INTEGER NOT NULL,
    expired INTEGER NOT NULL, marks BLOB NOT NULL,
    PRIMARY KEY (broadcast, partition, segment)
);
";

const VERSION_6: &str = "
-- Records that wait for their time, by partition of messages.scheduled.
CREATE TABLE timer (
    partition INTEGER NOT NULL, due INTEGER NOT NULL, id BLOB NOT NULL,
    key BLOB NOT NULL, headers BLOB NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (partition, due, id)
) WITHOUT ROWID;

-- Who moves the timers of a partition, and up to which it has.
CREATE TABLE timer_mark (
    partition INTEGER PRIMARY KEY, holder BLOB NOT NULL, due INTEGER NOT NULL, id BLOB NOT NULL
);
";

const VERSION_7: &str = "
-- A conversation, with its last message and how far each side has read. A position is an epoch and an offset.
CREATE TABLE conversation (
    id BLOB PRIMARY KEY, business TEXT NOT NULL, phone INTEGER NOT NULL, closed INTEGER NOT NULL,
    archived INTEGER NOT NULL, archived_epoch INTEGER, archived_offset INTEGER, activity_at INTEGER NOT NULL,
    last_id BLOB, last_from INTEGER, last_at INTEGER, last_epoch INTEGER, last_offset INTEGER,
    business_epoch INTEGER, business_offset INTEGER, phone_epoch INTEGER, phone_offset INTEGER
) WITHOUT ROWID;
CREATE UNIQUE INDEX conversation_open ON conversation (business, phone) WHERE closed = 0;
CREATE INDEX conversation_by_business ON conversation (business, activity_at, id);
CREATE INDEX conversation_by_phone ON conversation (phone, activity_at, id);

-- What was said, in the order of the log. `sender` is 0 for the business, 1 for the phone.
CREATE TABLE chat (
    chat INTEGER PRIMARY KEY,
    conversation BLOB NOT NULL, epoch INTEGER NOT NULL, offset INTEGER NOT NULL, id BLOB NOT NULL,
    sender INTEGER NOT NULL, at INTEGER NOT NULL, expires_at INTEGER, value BLOB NOT NULL,
    UNIQUE (conversation, epoch, offset)
);
";

const VERSION_8: &str = "
-- Whether the record says that it may repeat an earlier one: decides which copy of a message stands.
ALTER TABLE message_body ADD COLUMN may_repeat INTEGER NOT NULL DEFAULT 0;
";

const VERSION_9: &str = "
-- How often a message was retried; null: never.
ALTER TABLE message ADD COLUMN retries INTEGER;
";

const VERSION_10: &str = "
-- The list of recipients of a broadcast that is to be sent: it stays for as long.
ALTER TABLE broadcast ADD COLUMN list BLOB;
";

const VERSION_11: &str = "
-- Why a webhook failed last, the events that the log removed before it took them; and what else is kept of its backlog.
ALTER TABLE webhook ADD COLUMN last_failure TEXT;
ALTER TABLE webhook ADD COLUMN missed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE webhook_cursor ADD COLUMN state BLOB NOT NULL DEFAULT x'';
";

/// What opening the file may end in, besides SQLite's own errors.
#[derive(Debug, thiserror::Error)]
pub(super) enum SchemaError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("the file is the database of another application (id {0:#x})")]
    Foreign(i32),
    #[error("the file has schema version {found}, this program knows only up to {known}: it was used by a newer one")]
    Newer { found: usize, known: usize },
}

/// The connection that writes; makes the tables, or brings them to this version.
pub(super) fn open_writer(options: &Options) -> Result<Connection, SchemaError> {
    let mut db = Connection::open(&options.path)?;
    configure(&db, options.write_cache_kib)?;
    // Before anything of a file that is not ours is touched.
    version(&db)?;
    db.pragma_update(None, "journal_mode", "wal")?;
    db.pragma_update(None, "synchronous", "normal")?;
    db.pragma_update(None, "wal_autocheckpoint", options.checkpoint_pages)?;
    // Immediate: of two processes that find the file empty, the second finds the tables made.
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for migration in &MIGRATIONS[version(&transaction)?..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    transaction.commit()?;
    Ok(db)
}

/// How many migrations the file has seen.
fn version(db: &Connection) -> Result<usize, SchemaError> {
    let application: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let found: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let found = found as usize;
    let known = MIGRATIONS.len();
    if application != APPLICATION_ID && (application != 0 || found != 0) {
        return Err(SchemaError::Foreign(application));
    }
    if found > known { Err(SchemaError::Newer { found, known }) } else { Ok(found) }
}

/// A connection that only reads.
pub(super) fn open_reader(options: &Options) -> Result<Connection, SchemaError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(&options.path, flags)?;
    configure(&db, options.read_cache_kib)?;
    db.pragma_update(None, "query_only", true)?;
    Ok(db)
}

fn configure(db: &Connection, cache_kib: u32) -> rusqlite::Result<()> {
    db.busy_timeout(Duration::from_secs(5))?;
    db.set_prepared_statement_cache_capacity(64);
    // Negative: KiB rather than pages.
    db.pragma_update(None, "cache_size", -i64::from(cache_kib))?;
    db.pragma_update(None, "temp_store", "memory")
}
