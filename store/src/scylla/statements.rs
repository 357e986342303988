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

        /// The text of each statement.
        #[cfg(test)]
        const TEXTS: &[&str] = &[$($cql),*];

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
        concat!("SELECT kind, id, made_at, progress, finished, holder, held_until FROM task_by_id WHERE ", $where)
    };
}

macro_rules! webhooks {
    ($where:literal) => {
        concat!(
            "SELECT business, id, url, events, key, generation, rotated_at, created_at, disabled_at, disabled_reason,
                 failures, failing_since, last_failure, missed, revision FROM webhook WHERE business = ?",
            $where
        )
    };
}

macro_rules! chat_rows {
    ($columns:literal, $where:literal) => {
        concat!(
            "SELECT epoch, offset, id, sender, ",
            $columns,
            " FROM conversation_stream WHERE conversation = ? AND bucket = ? AND epoch = ? AND offset ",
            $where,
            " LIMIT ?"
        )
    };
}

macro_rules! open_conversations {
    ($where:literal) => {
        concat!(
            "SELECT conversation, closed, archived, archived_epoch, archived_offset FROM open_conversation WHERE ",
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
    /// The ids of a range of one lane. Only records that may repeat an older one lead to it: resends, redrives.
    ids_between: Read = "SELECT offset, id FROM stream WHERE phone = ? AND epoch = ? AND lane = ? AND offset >= ?
        AND offset < ? LIMIT ?";
    epoch_before: Read = "SELECT epoch FROM stream WHERE phone = ? AND epoch < ?
        ORDER BY epoch DESC, lane DESC, offset DESC LIMIT 1";
    /// The highest offset stands, in the head and in each mark, whoever writes last.
    mark: Write = "INSERT INTO head (epoch, lane, partition, ends_at, head, offset)
        VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    head: Read = "SELECT head FROM head WHERE epoch = ? AND lane = ? AND partition = ? LIMIT 1";
    floor: Read = "SELECT max(offset) FROM head WHERE epoch = ? AND lane = ? AND partition = ? AND ends_at <= ?";
    put_epoch: Write = "INSERT INTO epoch (log, epoch) VALUES (0, ?)";
    server_time: Read = "SELECT toTimestamp(now()) FROM system.local";
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
    set_retries: Write = "UPDATE message USING TIMESTAMP ? SET retries = ? WHERE id = ?";
    retries: Read = "SELECT retries FROM message WHERE id = ?";
    message: Read = message!("id = ?");
    messages: Read = message!("id IN ?");
    steps: Read = "SELECT id, failed, expired, cancelled, delivered, read, created_at, accepted_offset FROM message
        WHERE id IN ?";

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

    make_task: Conditional = "INSERT INTO task_by_id (kind, id, made_at, progress, finished, holder)
        VALUES (?, ?, ?, ?, ?, ?) IF NOT EXISTS USING TTL ?";
    take_task: Conditional = "UPDATE task_by_id USING TTL ? SET holder = ?, held_until = ? WHERE kind = ? AND id = ?
        IF holder = ? AND finished = false";
    save_task: Conditional = "UPDATE task_by_id USING TTL ?
        SET made_at = ?, progress = ?, finished = ?, holder = ?, held_until = ?, saved = ? WHERE kind = ? AND id = ?
        IF holder = ?";
    task_saved: Read = "SELECT saved FROM task_by_id WHERE kind = ? AND id = ?";
    task: Read = tasks!("kind = ? AND id = ?");
    list_task: Write = "INSERT INTO task_listed (kind, shard, id) VALUES (?, ?, ?) USING TTL ?";
    tasks_listed: Read = "SELECT id FROM task_listed WHERE kind = ? AND shard = ? LIMIT ?";

    make_timer_mark: Conditional = "INSERT INTO timer_mark (partition, holder, due, id) VALUES (?, ?, ?, ?)
        IF NOT EXISTS";
    take_timers: Conditional = "UPDATE timer_mark SET holder = ? WHERE partition = ? IF holder = ?";
    mark_timers: Conditional = "UPDATE timer_mark SET due = ?, id = ? WHERE partition = ? IF holder = ?";
    timer_partitions: Read = "SELECT partition FROM timer_mark";
    timer_mark: Read = "SELECT holder, due, id FROM timer_mark WHERE partition = ?";
    put_timer: Write = "INSERT INTO timer (partition, hour, due, id, key, headers, value)
        VALUES (?, ?, ?, ?, ?, ?, ?) USING TTL ?";
    put_timer_hour: Write = "INSERT INTO timer_hour (partition, hour) VALUES (?, ?) USING TTL ?";
    timers: Read = "SELECT due, id, key, headers, value FROM timer
        WHERE partition = ? AND hour = ? AND (due, id) > (?, ?) AND (due, id) <= (?, ?) LIMIT ?";
    timer_hours: Read = "SELECT hour FROM timer_hour WHERE partition = ? AND hour >= ? AND hour <= ? LIMIT ?";
    count_timers: Read = "SELECT count(*) FROM timer WHERE partition = ? AND hour = ? AND (due, id) > (?, ?)";

    make_webhook: Conditional = "INSERT INTO webhook (url, events, key, generation, rotated_at, created_at,
        disabled_at, disabled_reason, failures, failing_since, last_failure, missed, revision, business, id)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS";
    replace_webhook: Conditional = "UPDATE webhook SET url = ?, events = ?, key = ?, generation = ?, rotated_at = ?,
        created_at = ?, disabled_at = ?, disabled_reason = ?, failures = ?, failing_since = ?, last_failure = ?, missed = ?,
        revision = ? WHERE business = ? AND id = ? IF revision = ?";
    delete_webhook: Conditional = "DELETE FROM webhook WHERE business = ? AND id = ? IF EXISTS";
    webhook: Read = webhooks!(" AND id = ?");
    webhooks: Read = webhooks!(" LIMIT ?");
    put_webhook_cursor: Write = "INSERT INTO webhook_cursor (partition, webhook, business, epoch, offset, state)
        VALUES (?, ?, ?, ?, ?, ?)";
    remove_webhook_cursor: Write = "DELETE FROM webhook_cursor WHERE partition = ? AND webhook = ?";
    webhook_cursors: Read = "SELECT webhook, business, epoch, offset, state FROM webhook_cursor WHERE partition = ? LIMIT ?";

    put_business: Write = "INSERT INTO business (id) VALUES (?)";
    business: Read = "SELECT id FROM business WHERE id = ?";

    put_recipients: Write = "INSERT INTO recipients (list, part, page, phones) VALUES (?, ?, ?, ?)";
    recipients: Read = "SELECT phones FROM recipients WHERE list = ? AND part = ? AND page = ?";
    any_recipients: Read = "SELECT page FROM recipients WHERE list = ? AND part = ? LIMIT 1";
    delete_recipients: Write = "DELETE FROM recipients WHERE list = ? AND part = ?";
    put_audience: Write = "INSERT INTO audience (business, name, list, total, uploaded_at) VALUES (?, ?, ?, ?, ?)";
    audience: Read = "SELECT business, name, list, total, uploaded_at FROM audience WHERE business = ? AND name = ?";
    audiences: Read = "SELECT business, name, list, total, uploaded_at FROM audience WHERE business = ? LIMIT ?";
    delete_audience: Write = "DELETE FROM audience WHERE business = ? AND name = ?";
    expire_list: Write = "INSERT INTO list_due (bucket, shard, due, list, business, name) VALUES (?, ?, ?, ?, ?, ?)";
    lists_due: Read = "SELECT due, list, business, name FROM list_due
        WHERE bucket = ? AND shard = ? AND due <= ? LIMIT ?";
    forget_list: Write = "DELETE FROM list_due WHERE bucket = ? AND shard = ? AND due = ? AND list = ?";

    put_broadcast: Write = "INSERT INTO broadcast (id, business, created_at, value) VALUES (?, ?, ?, ?) USING TTL ?";
    broadcasts: Read = "SELECT id, business, created_at, value FROM broadcast WHERE id IN ?";
    list_broadcast: Write = "INSERT INTO broadcast_sent (business, id) VALUES (?, ?) USING TTL ?";
    broadcasts_sent: Read = "SELECT id FROM broadcast_sent WHERE business = ? AND id < ? LIMIT ?";
    open_broadcast: Write = "INSERT INTO open_broadcast (bucket, shard, business, id, list) VALUES (?, ?, ?, ?, ?)";
    close_broadcast: Write = "DELETE FROM open_broadcast WHERE bucket = ? AND shard = ? AND business = ? AND id = ?";
    open_broadcasts: Read = "SELECT business, id FROM open_broadcast
        WHERE bucket = ? AND shard = ? AND business > ? LIMIT ?";
    open_lists: Read = "SELECT business, id, list FROM open_broadcast
        WHERE bucket = ? AND shard = ? AND (business, id) > (?, ?) LIMIT ?";

    enter_bucket: Write = "INSERT INTO queue_bucket (queue, bucket, shard, entered) VALUES (?, ?, ?, true)";
    leave_bucket: Write = "DELETE FROM queue_bucket USING TIMESTAMP ? WHERE queue = ? AND bucket = ? AND shard = ?";
    buckets: Read = "SELECT bucket, shard, WRITETIME(entered) FROM queue_bucket
        WHERE queue = ? AND bucket <= ? LIMIT ?";
    /// What the log tells up to the highest place stands, whoever writes last.
    put_tally: Write = "INSERT INTO broadcast_tally
        (broadcast, partition, segment, delivered, read, failed, expired, marks) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        USING TIMESTAMP ? AND TTL ?";
    tally_marks: Read = "SELECT marks FROM broadcast_tally WHERE broadcast = ? AND partition = ? AND segment = ?";
    tallies: Read = "SELECT delivered, read, failed, expired FROM broadcast_tally WHERE broadcast = ?";

    make_conversation: Conditional = "INSERT INTO open_conversation (business, phone, conversation, closed)
        VALUES (?, ?, ?, false) IF NOT EXISTS";
    follow_conversation: Conditional = "UPDATE open_conversation
        SET conversation = ?, closed = false, archived = false WHERE business = ? AND phone = ?
        IF conversation = ? AND closed = true";
    close_conversation: Conditional = "UPDATE open_conversation SET closed = true WHERE business = ? AND phone = ?
        IF conversation = ?";
    archive_conversation: Conditional = "UPDATE open_conversation
        SET archived = true, archived_epoch = ?, archived_offset = ? WHERE business = ? AND phone = ?
        IF conversation = ? AND closed = false";
    take_up_conversation: Conditional = "UPDATE open_conversation SET archived = false WHERE business = ? AND phone = ?
        IF conversation = ? AND closed = false";
    open_conversation: Read = open_conversations!("business = ? AND phone = ?");
    open_conversations: Read = open_conversations!("business IN ? AND phone IN ?");
    /// Below every other write of it, so that a deletion stands.
    put_conversation: Write = "INSERT INTO conversation (id, business, phone) VALUES (?, ?, ?) USING TIMESTAMP 1";
    forget_conversation: Write = "DELETE FROM conversation WHERE id = ?";
    put_last: Write = "INSERT INTO conversation (id, epoch, business, phone, last_offset, last_id, last_from, last_at)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
    read_by_business: Write = "INSERT INTO conversation (id, epoch, business_read) VALUES (?, ?, ?) USING TIMESTAMP ?";
    read_by_phone: Write = "INSERT INTO conversation (id, epoch, phone_read) VALUES (?, ?, ?) USING TIMESTAMP ?";
    conversations: Read = "SELECT id, epoch, business, phone, last_offset, last_id, last_from, last_at, business_read,
        phone_read FROM conversation WHERE id IN ?";
    put_activity: Write = "INSERT INTO activity (side, bucket, at, conversation) VALUES (?, ?, ?, ?)";
    put_activity_bucket: Write = "INSERT INTO activity_bucket (side, bucket) VALUES (?, ?)";
    activity: Read = "SELECT at, conversation FROM activity
        WHERE side = ? AND bucket = ? AND (at, conversation) < (?, ?) LIMIT ?";
    activity_buckets: Read = "SELECT bucket FROM activity_bucket WHERE side = ? AND bucket <= ? LIMIT ?";
    append_chat: Write = "INSERT INTO conversation_stream (conversation, bucket, epoch, offset, id, sender, at,
        expires_at, value) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
    put_chat_bucket: Write = "INSERT INTO conversation_bucket (conversation, epoch, bucket) VALUES (?, ?, ?)";
    chat_buckets_before: Read = "SELECT epoch, bucket FROM conversation_bucket
        WHERE conversation = ? AND (epoch, bucket) <= (?, ?) LIMIT ?";
    chat_buckets_after: Read = "SELECT epoch, bucket FROM conversation_bucket
        WHERE conversation = ? AND (epoch, bucket) >= (?, ?) ORDER BY epoch ASC, bucket ASC LIMIT ?";
    chat_before: Read = chat_rows!("at, expires_at, value", "< ? ORDER BY epoch DESC, offset DESC");
    chat_after: Read = chat_rows!("at, expires_at, value", "> ?");
    chat_heads: Read = chat_rows!("expires_at", "> ?");

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_statement_reads_rows_only_to_filter_them() {
        assert!(TEXTS.len() > 50);
        for text in TEXTS {
            assert!(!text.to_uppercase().contains("FILTERING"), "{text}");
        }
    }
}
