//! Every statement, prepared once. All but the conditional ones may be repeated, and are marked so: the driver tries them
//! again elsewhere when a node fails.

use eshaar_model::{Lane, Status};
use futures_util::future::try_join_all;
use scylla::client::execution_profile::ExecutionProfileHandle;
use scylla::client::session::Session;
use scylla::errors::PrepareError;
use scylla::statement::prepared::PreparedStatement;

use super::Options;
use super::connect::reading_profile;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    /// An LWT: `IF`.
    Conditional,
}

macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident: $kind:ident = $cql:expr;)*) => {
        pub(super) struct Statements {
            $($(#[$doc])* pub(super) $name: PreparedStatement,)*
        }

        impl Statements {
            pub(super) async fn prepare(session: &Session, options: &Options) -> Result<Self, PrepareError> {
                let reading = reading_profile(options).into_handle();
                let all = [$((Kind::$kind, $cql)),*];
                let all = all.map(|(kind, cql)| prepare(session, &reading, kind, cql));
                let mut prepared = try_join_all(all).await?.into_iter();
                let mut next = || prepared.next().unwrap_or_else(|| unreachable!("each was prepared"));
                Ok(Self { $($name: next()),* })
            }
        }
    };
}

macro_rules! stream_rows {
    ($where:literal) => {
        concat!(
            "SELECT epoch, lane, offset, id, at, expires_at, value FROM stream WHERE phone = ? AND ",
            $where,
            " LIMIT ?"
        )
    };
}

macro_rules! ack {
    ($lane:literal) => {
        concat!("INSERT INTO acked (phone, epoch, ", $lane, ") VALUES (?, ?, ?) USING TIMESTAMP ? AND TTL ?")
    };
}

macro_rules! message {
    ($where:literal) => {
        concat!(
            "SELECT id, type, conversation, sender, recipient, created_at, expires_at, accepted_partition,
                 accepted_offset, value, reason, failed, expired, cancelled, delivered, read
             FROM message WHERE ",
            $where
        )
    };
}

macro_rules! reach {
    ($step:literal) => {
        concat!("UPDATE message USING TIMESTAMP ? SET ", $step, " = ? WHERE id = ?")
    };
}

macro_rules! tasks {
    ($where:literal) => {
        concat!("SELECT kind, id, made_at, progress, finished, holder, held_until FROM task WHERE ", $where)
    };
}

macro_rules! webhooks {
    ($where:literal) => {
        concat!(
            "SELECT business, id, url, events, key, generation, rotated_at, created_at, disabled_at, disabled_reason,
                 failures, failing_since, revision FROM webhook WHERE business = ?",
            $where
        )
    };
}

macro_rules! keys {
    ($where:literal) => {
        concat!(
            "SELECT id, business, name, secret_hash, permissions, created_at, expires_at, revoked_at, rate FROM api_key",
            $where
        )
    };
}

statements! {
    append: Write = "INSERT INTO stream (phone, epoch, lane, offset, id, at, expires_at, value)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?) USING TTL ?";
    lane_rows: Read = stream_rows!("epoch = ? AND lane = ? AND offset > ?");
    rows_behind: Read = stream_rows!("(epoch, lane, offset) > (?, ?, ?)");
    offset_before: Read = "SELECT offset FROM stream WHERE phone = ? AND epoch = ? AND lane = ? AND offset < ?
        ORDER BY epoch DESC, lane DESC, offset DESC LIMIT 1";
    /// Looks through one partition for an id. It is asked only of ids that are older than the window in which repeats are
    /// found otherwise: late resends, scheduled messages, redrives.
    places_before: Read = "SELECT epoch, lane FROM stream
        WHERE phone = ? AND (epoch, lane, offset) < (?, ?, ?) AND id = ? ALLOW FILTERING";
    /// The highest offset stands, in the head and in each mark, whoever writes last.
    mark: Write = "INSERT INTO head (epoch, lane, partition, ends_at, head, offset)
        VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    head: Read = "SELECT head FROM head WHERE epoch = ? AND lane = ? AND partition = ? LIMIT 1";
    floor: Read = "SELECT max(offset) FROM head WHERE epoch = ? AND lane = ? AND partition = ? AND ends_at <= ?";
    put_epoch: Write = "INSERT INTO epoch (log, epoch) VALUES (0, ?)";
    newest_epoch: Read = "SELECT epoch FROM epoch WHERE log = 0 LIMIT 1";

    ack_epoch: Write = "INSERT INTO acked (phone, epoch) VALUES (?, ?) USING TIMESTAMP 1 AND TTL ?";
    ack_high: Write = ack!("high");
    ack_normal: Write = ack!("normal");
    ack_low: Write = ack!("low");
    ack_bulk: Write = ack!("bulk");
    acked: Read = "SELECT epoch, high, normal, low, bulk FROM acked WHERE phone = ? LIMIT 1";

    put_message: Write = "INSERT INTO message (id, type, conversation, sender, recipient, created_at, expires_at,
        accepted_partition, accepted_offset, value) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    reach_failed: Write = "UPDATE message USING TIMESTAMP ? SET failed = ?, reason = ? WHERE id = ?";
    reach_expired: Write = reach!("expired");
    reach_cancelled: Write = reach!("cancelled");
    reach_delivered: Write = reach!("delivered");
    reach_read: Write = reach!("read");
    message: Read = message!("id = ?");
    messages: Read = message!("id IN ?");
    steps: Read = "SELECT id, failed, expired, cancelled, delivered, read FROM message WHERE id IN ?";

    put_sent: Write = "INSERT INTO sent (business, day, shard, id, type, phone, expires_at)
        VALUES (?, ?, ?, ?, ?, ?, ?)";
    put_sent_day: Write = "INSERT INTO sent_day (business, day) VALUES (?, ?)";
    sent: Read = "SELECT id, type, phone, expires_at FROM sent
        WHERE business = ? AND day = ? AND shard = ? AND id < ? LIMIT ?";
    sent_days: Read = "SELECT day FROM sent_day WHERE business = ? AND day <= ? LIMIT ?";

    claim: Conditional = "INSERT INTO claim (principal, key, holder, body_hash, minted, claimed_at)
        VALUES (?, ?, ?, ?, ?, ?) IF NOT EXISTS USING TTL ?";
    take_over_claim: Conditional = "UPDATE claim USING TTL ?
        SET holder = ?, body_hash = ?, minted = ?, claimed_at = ? WHERE principal = ? AND key = ? IF holder = ?";
    put_answer: Write = "INSERT INTO claim_answer (principal, key, minted, answer) VALUES (?, ?, ?, ?) USING TTL ?";
    answer: Read = "SELECT answer FROM claim_answer WHERE principal = ? AND key = ? AND minted = ?";

    put_letter: Conditional = "INSERT INTO dead_letter (id, stage, topic, partition, offset, redrives, business, event,
        correlation, code, reason, attempts, at, bytes, state, holder, key, value, headers)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS USING TTL ?";
    claim_letter: Conditional = "UPDATE dead_letter USING TTL ? SET holder = ?, held_until = ? WHERE id = ?
        IF state = ? AND holder = ?";
    settle_letter: Conditional = "UPDATE dead_letter USING TTL ?
        SET holder = ?, state = ?, settled_at = ?, settled_by = ? WHERE id = ? IF state = ? AND holder = ?";
    letters: Read = "SELECT id, stage, topic, partition, offset, redrives, business, event, correlation, code, reason,
        attempts, at, bytes, state, settled_at, settled_by, holder, held_until FROM dead_letter WHERE id IN ?";
    letter_body: Read = "SELECT key, value, headers FROM dead_letter WHERE id = ?";
    list_letter: Write = "INSERT INTO dead_letter_day (day, shard, at, id, stage, code, business)
        VALUES (?, ?, ?, ?, ?, ?, ?) USING TTL ?";
    letters_of_day: Read = "SELECT at, id, stage, code, business FROM dead_letter_day
        WHERE day = ? AND shard = ? AND (at, id) < (?, ?) LIMIT ?";

    append_audit: Write = "INSERT INTO audit (of_actor, day, id, actor, action, subject, detail, correlation)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
    append_audit_day: Write = "INSERT INTO audit_day (of_actor, day) VALUES (?, ?)";
    audit: Read = "SELECT id, actor, action, subject, detail, correlation FROM audit
        WHERE of_actor = ? AND day = ? AND id >= ? AND id < ? LIMIT ?";
    audit_days: Read = "SELECT day FROM audit_day WHERE of_actor = ? AND day <= ? AND day >= ? LIMIT ?";

    make_task: Conditional = "INSERT INTO task (kind, id, made_at, progress, finished, holder)
        VALUES (?, ?, ?, ?, ?, ?) IF NOT EXISTS USING TTL ?";
    take_task: Conditional = "UPDATE task USING TTL ? SET holder = ?, held_until = ? WHERE kind = ? AND id = ?
        IF holder = ? AND finished = false";
    save_task: Conditional = "UPDATE task USING TTL ?
        SET made_at = ?, progress = ?, finished = ?, holder = ?, held_until = ?, saved = ? WHERE kind = ? AND id = ?
        IF holder = ?";
    task_saved: Read = "SELECT saved FROM task WHERE kind = ? AND id = ?";
    task: Read = tasks!("kind = ? AND id = ?");
    tasks: Read = tasks!("kind = ? LIMIT ?");

    make_webhook: Conditional = "INSERT INTO webhook (url, events, key, generation, rotated_at, created_at,
        disabled_at, disabled_reason, failures, failing_since, revision, business, id)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS";
    replace_webhook: Conditional = "UPDATE webhook SET url = ?, events = ?, key = ?, generation = ?, rotated_at = ?,
        created_at = ?, disabled_at = ?, disabled_reason = ?, failures = ?, failing_since = ?, revision = ?
        WHERE business = ? AND id = ? IF revision = ?";
    delete_webhook: Conditional = "DELETE FROM webhook WHERE business = ? AND id = ? IF EXISTS";
    webhook: Read = webhooks!(" AND id = ?");
    webhooks: Read = webhooks!(" LIMIT ?");
    put_webhook_cursor: Write = "INSERT INTO webhook_cursor (partition, webhook, business, epoch, offset)
        VALUES (?, ?, ?, ?, ?)";
    remove_webhook_cursor: Write = "DELETE FROM webhook_cursor WHERE partition = ? AND webhook = ?";
    webhook_cursors: Read = "SELECT webhook, business, epoch, offset FROM webhook_cursor WHERE partition = ? LIMIT ?";

    make_key: Conditional = "INSERT INTO api_key
        (business, name, secret_hash, permissions, created_at, expires_at, revoked_at, rate, id)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS";
    replace_key: Conditional = "UPDATE api_key SET business = ?, name = ?, secret_hash = ?, permissions = ?,
        created_at = ?, expires_at = ?, revoked_at = ?, rate = ? WHERE id = ? IF EXISTS";
    revoke_key: Conditional = "UPDATE api_key SET revoked_at = ? WHERE id = ? IF revoked_at = null";
    key: Read = keys!(" WHERE id = ?");
    keys: Read = keys!("");
}

impl Statements {
    pub(super) const fn ack(&self, lane: Lane) -> &PreparedStatement {
        match lane {
            Lane::High => &self.ack_high,
            Lane::Normal => &self.ack_normal,
            Lane::Low => &self.ack_low,
            Lane::Bulk => &self.ack_bulk,
        }
    }
}

/// The column's statement; `None` for `sent`, which is the message's own to say, and for `failed`, which has a reason.
pub(super) const fn reach(statements: &Statements, status: Status) -> Option<&PreparedStatement> {
    match status {
        Status::Sent | Status::Failed => None,
        Status::Expired => Some(&statements.reach_expired),
        Status::Cancelled => Some(&statements.reach_cancelled),
        Status::Delivered => Some(&statements.reach_delivered),
        Status::Read => Some(&statements.reach_read),
    }
}

async fn prepare(
    session: &Session,
    reading: &ExecutionProfileHandle,
    kind: Kind,
    cql: &str,
) -> Result<PreparedStatement, PrepareError> {
    let mut statement = session.prepare(cql).await?;
    statement.set_is_idempotent(kind != Kind::Conditional);
    if kind == Kind::Read {
        // What a column is does not change while we run: the answers need not say it.
        statement.set_use_cached_result_metadata(true);
        statement.set_execution_profile_handle(Some(reading.clone()));
    }
    Ok(statement)
}
