//! The tables, each laid out for the one query that it serves. `docs/data-model.md` says what each costs.
//!
//! Where writes may come late, twice or in any order, what stands is decided by the write's own timestamp, which is made
//! from what is written and not from a clock: the earliest time of a step, the highest offset of a lane. All of them are
//! far below the microseconds of any clock, so that an ordinary `DELETE` still deletes.

use super::Options;
use super::copies::Copy;

/// A step from one version of the tables to the next.
pub(super) struct Migration {
    /// What it does, for a report.
    pub(super) what: &'static str,
    /// Its statements; each may be repeated.
    pub(super) statements: Vec<String>,
    /// Columns that it adds where they are not there yet, then: table, column, type.
    pub(super) columns: &'static [(&'static str, &'static str, &'static str)],
    /// Rows that it takes into other tables, then.
    pub(super) copies: &'static [Copy],
}

/// How many migrations there are: the version that this program needs.
pub(super) const VERSION: i32 = 10;

/// Each brings the tables from its index in this list to the next version. Never changed, only added to.
pub(super) fn migrations(options: &Options) -> Vec<Migration> {
    vec![
        Migration {
            what: "the tables of streams, messages, claims and keys",
            statements: version_1(options),
            columns: &[],
            copies: &[],
        },
        Migration {
            what: "the tables of dead letters, tasks and the audit log",
            statements: version_2(),
            columns: &[],
            copies: &[],
        },
        Migration { what: "the tables of webhooks", statements: version_3(), columns: &[], copies: &[] },
        Migration {
            what: "the rates of keys",
            statements: Vec::new(),
            columns: &[("api_key", "rate", "text")],
            copies: &[],
        },
        Migration {
            what: "the tables of audiences and broadcasts",
            statements: version_5(),
            columns: &[],
            copies: &[],
        },
        Migration { what: "the tables of timers", statements: version_6(), columns: &[], copies: &[] },
        Migration { what: "the tables of conversations", statements: version_7(), columns: &[], copies: &[] },
        Migration {
            what: "the retries of messages",
            statements: Vec::new(),
            columns: &[("message", "retries", "int")],
            copies: &[],
        },
        Migration {
            what: "tasks and queues in partitions of their own, and the table of businesses",
            statements: version_9(),
            columns: &[],
            copies: &[Copy::Businesses, Copy::Tasks, Copy::OpenBroadcasts, Copy::ListsDue],
        },
        Migration {
            what: "the failures and backlogs of webhooks",
            statements: Vec::new(),
            columns: &[
                ("webhook", "last_failure", "text"),
                ("webhook", "missed", "bigint"),
                ("webhook_cursor", "state", "blob"),
            ],
            copies: &[],
        },
    ]
}

/// What is known of the keyspace before there is anything else in it. Only `apply` writes them, only conditionally.
pub(super) const SETUP: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS schema_lock (name text PRIMARY KEY, holder uuid)",
    "CREATE TABLE IF NOT EXISTS schema_version (
        name text, version int, what text, applied_at timestamp,
        PRIMARY KEY ((name), version)) WITH CLUSTERING ORDER BY (version DESC)",
];

/// Windows in a stream's time to live. A page looks into as many files as there are windows with rows of its phone, and a
/// file goes at once when all of it has expired: few windows for the one, enough for the other.
const STREAM_WINDOWS: u64 = 10;

fn version_1(options: &Options) -> Vec<String> {
    let window_hours = (options.stream_ttl_s / STREAM_WINDOWS / 3600).max(1);
    let windows = |hours: u64| {
        format!(
            "compaction = {{'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'HOURS',
                'compaction_window_size': {hours}}} AND gc_grace_seconds = 86400"
        )
    };
    let levels = "compaction = {'class': 'LeveledCompactionStrategy'} AND gc_grace_seconds = 86400";
    vec![
        format!(
            "CREATE TABLE IF NOT EXISTS stream (
                phone bigint, epoch int, lane tinyint, offset bigint,
                id uuid, at timestamp, expires_at timestamp, value blob,
                PRIMARY KEY ((phone), epoch, lane, offset)) WITH {}",
            windows(window_hours)
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS head (
                epoch int, lane tinyint, partition int, ends_at timestamp,
                head bigint STATIC, offset bigint,
                PRIMARY KEY ((epoch, lane, partition), ends_at)) WITH {levels}"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS epoch (
                log tinyint, epoch int,
                PRIMARY KEY ((log), epoch)) WITH CLUSTERING ORDER BY (epoch DESC) AND {levels}"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS acked (
                phone bigint, epoch int, high bigint, normal bigint, low bigint, bulk bigint,
                PRIMARY KEY ((phone), epoch)) WITH CLUSTERING ORDER BY (epoch DESC) AND {levels}"
        ),
        "CREATE TABLE IF NOT EXISTS message (
            id uuid PRIMARY KEY, type tinyint, conversation uuid, sender text, recipient text,
            created_at timestamp, expires_at timestamp, accepted_partition int, accepted_offset bigint, value blob,
            failed timestamp, expired timestamp, cancelled timestamp, delivered timestamp, read timestamp, reason text)"
            .to_owned(),
        "CREATE TABLE IF NOT EXISTS sent (
            business text, day int, shard tinyint, id uuid, type tinyint, phone bigint, expires_at timestamp,
            PRIMARY KEY ((business, day, shard), id)) WITH CLUSTERING ORDER BY (id DESC)"
            .to_owned(),
        format!(
            "CREATE TABLE IF NOT EXISTS sent_day (
                business text, day int,
                PRIMARY KEY ((business), day)) WITH CLUSTERING ORDER BY (day DESC) AND {levels}"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS claim (
                principal text, key text, holder uuid, body_hash blob, minted blob, claimed_at timestamp,
                PRIMARY KEY ((principal, key))) WITH {}",
            windows(2)
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS claim_answer (
                principal text, key text, minted blob, answer blob,
                PRIMARY KEY ((principal, key, minted))) WITH {}",
            windows(2)
        ),
        "CREATE TABLE IF NOT EXISTS api_key (
            id text PRIMARY KEY, business text, name text, secret_hash blob, permissions text,
            created_at timestamp, expires_at timestamp, revoked_at timestamp)"
            .to_owned(),
    ]
}

fn version_2() -> Vec<String> {
    let levels = "compaction = {'class': 'LeveledCompactionStrategy'} AND gc_grace_seconds = 86400";
    vec![
        format!(
            "CREATE TABLE IF NOT EXISTS dead_letter (
                id uuid PRIMARY KEY, stage text, topic text, partition int, offset bigint, redrives int,
                business text, event text, correlation text, code text, reason text, attempts int, at timestamp,
                bytes bigint, state text, settled_at timestamp, settled_by text, holder uuid, held_until timestamp,
                key blob, value blob, headers blob) WITH {levels}"
        ),
        "CREATE TABLE IF NOT EXISTS dead_letter_day (
            day int, shard tinyint, at timestamp, id uuid, stage text, code text, business text,
            PRIMARY KEY ((day, shard), at, id)) WITH CLUSTERING ORDER BY (at DESC, id DESC)
            AND compaction = {'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'DAYS',
                'compaction_window_size': 1} AND gc_grace_seconds = 86400"
            .to_owned(),
        format!(
            "CREATE TABLE IF NOT EXISTS task (
                kind text, id text, made_at timestamp, progress blob, finished boolean, holder uuid,
                held_until timestamp, saved uuid,
                PRIMARY KEY ((kind), id)) WITH CLUSTERING ORDER BY (id DESC) AND {levels}"
        ),
        "CREATE TABLE IF NOT EXISTS audit (
            of_actor text, day int, id uuid, actor text, action text, subject text, detail text, correlation text,
            PRIMARY KEY ((of_actor, day), id)) WITH CLUSTERING ORDER BY (id DESC)"
            .to_owned(),
        format!(
            "CREATE TABLE IF NOT EXISTS audit_day (
                of_actor text, day int,
                PRIMARY KEY ((of_actor), day)) WITH CLUSTERING ORDER BY (day DESC) AND {levels}"
        ),
    ]
}

fn version_3() -> Vec<String> {
    let levels = "compaction = {'class': 'LeveledCompactionStrategy'} AND gc_grace_seconds = 86400";
    vec![
        format!(
            "CREATE TABLE IF NOT EXISTS webhook (
                business text, id uuid, url text, events text, key text, generation int, rotated_at timestamp,
                created_at timestamp, disabled_at timestamp, disabled_reason text, failures int,
                failing_since timestamp, revision uuid,
                PRIMARY KEY ((business), id)) WITH {levels}"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS webhook_cursor (
                partition int, webhook uuid, business text, epoch int, offset bigint,
                PRIMARY KEY ((partition), webhook)) WITH {levels}"
        ),
    ]
}

fn version_5() -> Vec<String> {
    let levels = "compaction = {'class': 'LeveledCompactionStrategy'} AND gc_grace_seconds = 86400";
    let tables = [
        "recipients (list uuid, part int, page int, phones blob, PRIMARY KEY ((list, part), page)) WITH ",
        "audience (business text, name text, list uuid, total bigint, uploaded_at timestamp,
            PRIMARY KEY ((business), name)) WITH ",
        "recipients_due (slot tinyint, due timestamp, list uuid, business text, name text,
            PRIMARY KEY ((slot), due, list)) WITH ",
        "broadcast (id uuid PRIMARY KEY, business text, created_at timestamp, value blob) WITH ",
        "broadcast_sent (business text, id uuid, PRIMARY KEY ((business), id)) WITH CLUSTERING ORDER BY (id DESC) AND ",
        "broadcast_open (slot tinyint, id uuid, PRIMARY KEY ((slot), id)) WITH ",
        "broadcast_tally (broadcast uuid, partition int, segment int, delivered int, read int, failed int, expired int,
            marks blob, PRIMARY KEY ((broadcast), partition, segment)) WITH ",
    ];
    tables.map(|table| format!("CREATE TABLE IF NOT EXISTS {table}{levels}")).to_vec()
}

fn version_6() -> Vec<String> {
    let levels = "compaction = {'class': 'LeveledCompactionStrategy'} AND gc_grace_seconds = 86400";
    let tables = [
        "timer (partition int, hour int, due timestamp, id uuid, key blob, headers blob, value blob,
            PRIMARY KEY ((partition, hour), due, id)) WITH ",
        "timer_hour (partition int, hour int, PRIMARY KEY ((partition), hour)) WITH ",
        "timer_mark (partition int PRIMARY KEY, holder uuid, due timestamp, id uuid) WITH ",
    ];
    tables.map(|table| format!("CREATE TABLE IF NOT EXISTS {table}{levels}")).to_vec()
}

fn version_7() -> Vec<String> {
    let levels = "compaction = {'class': 'LeveledCompactionStrategy'} AND gc_grace_seconds = 86400";
    let tables = [
        "conversation (id uuid, epoch int, business text STATIC, phone bigint STATIC,
            last_offset bigint, last_id uuid, last_from tinyint, last_at timestamp, business_read bigint,
            phone_read bigint, PRIMARY KEY ((id), epoch)) WITH CLUSTERING ORDER BY (epoch DESC) AND ",
        "open_conversation (business text, phone bigint, conversation uuid, closed boolean, archived boolean,
            archived_epoch int, archived_offset bigint, PRIMARY KEY ((business, phone))) WITH ",
        "activity_bucket (side text, bucket int, PRIMARY KEY ((side), bucket))
            WITH CLUSTERING ORDER BY (bucket DESC) AND ",
        "conversation_bucket (conversation uuid, epoch int, bucket bigint,
            PRIMARY KEY ((conversation), epoch, bucket)) WITH CLUSTERING ORDER BY (epoch DESC, bucket DESC) AND ",
    ];
    let mut all = tables.map(|table| format!("CREATE TABLE IF NOT EXISTS {table}{levels}")).to_vec();
    all.push(
        "CREATE TABLE IF NOT EXISTS activity (
            side text, bucket int, at timestamp, conversation uuid,
            PRIMARY KEY ((side, bucket), at, conversation))
            WITH CLUSTERING ORDER BY (at DESC, conversation DESC)"
            .to_owned(),
    );
    all.push(
        "CREATE TABLE IF NOT EXISTS conversation_stream (
            conversation uuid, bucket bigint, epoch int, offset bigint,
            id uuid, sender tinyint, at timestamp, expires_at timestamp, value blob,
            PRIMARY KEY ((conversation, bucket), epoch, offset))"
            .to_owned(),
    );
    all
}

/// In place of `task`, `broadcast_open` and `recipients_due`, each of which was one partition for all.
fn version_9() -> Vec<String> {
    let levels = "compaction = {'class': 'LeveledCompactionStrategy'} AND gc_grace_seconds = 86400";
    // A row that comes back after it was deleted does no harm: it is found empty, or finished, and deleted again.
    let short_levels = "compaction = {'class': 'LeveledCompactionStrategy'} AND gc_grace_seconds = 10800";
    let days = "compaction = {'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'DAYS',
        'compaction_window_size': 7} AND gc_grace_seconds = 86400";
    let tables = [
        ("business (id text PRIMARY KEY) WITH ", levels),
        (
            "task_by_id (kind text, id text, made_at timestamp, progress blob, finished boolean, holder uuid,
                held_until timestamp, saved uuid, PRIMARY KEY ((kind, id))) WITH ",
            levels,
        ),
        (
            "task_listed (kind text, shard tinyint, id text, PRIMARY KEY ((kind, shard), id))
                WITH CLUSTERING ORDER BY (id DESC) AND ",
            days,
        ),
        (
            "open_broadcast (bucket int, shard tinyint, business text, id uuid, list uuid,
                PRIMARY KEY ((bucket, shard), business, id)) WITH ",
            short_levels,
        ),
        (
            "list_due (bucket int, shard tinyint, due timestamp, list uuid, business text, name text,
                PRIMARY KEY ((bucket, shard), due, list)) WITH ",
            short_levels,
        ),
        (
            "queue_bucket (queue text, bucket int, shard tinyint, entered boolean,
                PRIMARY KEY ((queue), bucket, shard)) WITH ",
            short_levels,
        ),
    ];
    tables.map(|(table, options)| format!("CREATE TABLE IF NOT EXISTS {table}{options}")).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_number_of_migrations() {
        assert_eq!(migrations(&Options::default()).len(), VERSION as usize);
    }
}
