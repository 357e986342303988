//! Every metric of eshaar: its name, unit and help. Nothing else makes up a name.
//!
//! Labels are low in number: a stage, a topic, a lane, a status, a route pattern. Never a user, a message or a key.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// What a metric counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

macro_rules! metrics_list {
    ($($constant:ident = $kind:ident, $name:literal, $unit:ident, $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*

        const ALL: &[(&str, Kind, Unit, &str)] = &[$(($name, Kind::$kind, Unit::$unit, $help)),*];
    };
}

metrics_list! {
    HTTP_REQUESTS = Counter, "eshaar_http_requests_total", Count, "HTTP requests, by route, method and status.";
    HTTP_SECONDS = Histogram, "eshaar_http_request_seconds", Seconds, "Time to answer an HTTP request, by route.";
    HTTP_CONNECTIONS_CLOSED = Counter, "eshaar_http_connections_closed_total", Count, "HTTP connections that were closed on a client, by reason: read or write (it took too long), room (a newer one needs its place), address (its address has too many).";
    INGEST_ACCEPTED = Counter, "eshaar_messages_accepted_total", Count, "Messages accepted from senders, by lane.";
    INGEST_REJECTED = Counter, "eshaar_messages_rejected_total", Count, "Messages refused, by code.";
    INGEST_REPEATED = Counter, "eshaar_submissions_repeated_total", Count, "Submissions answered from an idempotency claim.";
    CONVERSATIONS_STARTED = Counter, "eshaar_conversations_started_total", Count, "Conversations that were made, or taken up after they were archived.";
    LOG_LINES_DROPPED = Counter, "eshaar_log_lines_dropped_total", Count, "Lines of this process's own log that could not be written.";
    STAGE_RECORDS = Counter, "eshaar_stage_records_total", Count, "Records settled by a stage, by stage and outcome.";
    STAGE_BATCH_SECONDS = Histogram, "eshaar_stage_batch_seconds", Seconds, "Time from taking a batch to settling it, by stage.";
    STAGE_BATCH_RECORDS = Histogram, "eshaar_stage_batch_records", Count, "Records in a batch, by stage.";
    STAGE_LAG = Gauge, "eshaar_stage_lag_records", Count, "Records that a stage has not settled, by stage and topic.";
    STAGE_OLDEST_SECONDS = Gauge, "eshaar_stage_oldest_seconds", Seconds, "Age of the oldest record a stage has taken and not settled, by stage and partition.";
    STAGE_STUCK = Gauge, "eshaar_stage_stuck", Count, "Partitions of a stage that make no progress, by stage.";
    LOG_APPENDED = Counter, "eshaar_log_appended_records_total", Count, "Records appended to the log, by topic.";
    LOG_APPEND_SECONDS = Histogram, "eshaar_log_append_seconds", Seconds, "Time from append to acknowledgement, by durability.";
    LOG_DELETED_UNREAD = Counter, "eshaar_log_deleted_unread_total", Count, "Records that the log deleted before a stage had read them, by stage and topic.";
    LOG_COMMIT_RECORDS = Histogram, "eshaar_log_group_commit_records", Count, "Records that shared a group commit.";
    CACHE_LOOKUPS = Counter, "eshaar_cache_lookups_total", Count, "What was looked for in a cache, by cache (conversations, unread or newest) and outcome: hit, miss, or unavailable.";
    STORE_SECONDS = Histogram, "eshaar_store_seconds", Seconds, "Time of a store operation, by operation.";
    ARCHIVE_REPEATS = Counter, "eshaar_archive_repeats_total", Count, "Records of what was said that were not told because they repeat an earlier one.";
    ROUTE_REPEATS = Counter, "eshaar_route_repeats_total", Count, "Records dropped because they repeat an earlier one.";
    ROUTE_RECOVERED = Counter, "eshaar_route_recovered_total", Count, "Messages that were deleted from a lane unread and carried on from what was accepted, by outcome: forwarded or expired.";
    ROUTE_HINTS = Counter, "eshaar_route_hints_total", Count, "Delivery hints sent to gateways.";
    EXPIRED = Counter, "eshaar_messages_expired_total", Count, "Messages dropped because their time to live passed, by stage.";
    CANCELLED = Counter, "eshaar_messages_cancelled_total", Count, "Messages dropped because their sender took them back, by stage.";
    CANCELLATIONS = Gauge, "eshaar_cancellations", Count, "Cancellations that this process knows.";
    CANCELLATIONS_AGE = Gauge, "eshaar_cancellations_age_seconds", Seconds, "Age of the newest proof that this process knows every cancellation.";
    HELD = Counter, "eshaar_messages_held_total", Count, "Messages, or batches of a stage, that waited because the process did not know the newest cancellations, by stage.";
    BROADCASTS_OPEN = Gauge, "eshaar_broadcasts_under_way", Count, "Broadcasts that this process sends.";
    EXPIRY_EVENTS = Counter, "eshaar_expiry_events_total", Count, "Messages that were said to have expired.";
    BROADCASTS_ENDED = Counter, "eshaar_broadcasts_ended_total", Count, "Broadcasts that were sent to their end, by outcome: sent, cancelled, expired or failed.";
    SCHEDULE_WAITING = Gauge, "eshaar_schedule_waiting", Count, "Messages that wait for their time, by partition.";
    SCHEDULE_SETTLED = Counter, "eshaar_schedule_settled_total", Count, "Messages whose time has come, by outcome: sent, cancelled or refused.";
    SCHEDULE_LATE_SECONDS = Histogram, "eshaar_schedule_late_seconds", Seconds, "Time from when a scheduled message was due to when it was sent.";
    SCHEDULE_BEHIND = Counter, "eshaar_schedule_behind_total", Count, "Timers written when later ones were done with already.";
    CLOCK_OFFSET = Gauge, "eshaar_clock_offset_seconds", Seconds, "How far the clock of this host is ahead of an engine's, by engine: presence or store.";
    LIMITED = Counter, "eshaar_messages_limited_total", Count, "Messages beyond a rate limit, by limit.";
    LIMITS_SHARED = Gauge, "eshaar_limits_shared", Count, "1 while rate limits are counted across processes, 0 while this process counts alone.";
    QUEUE_DEPTH = Gauge, "eshaar_queue_depth_records", Count, "Messages accepted and not yet in their recipients' streams, as the API sees it, by queue: interactive or bulk.";
    QUEUE_FULL = Gauge, "eshaar_queue_full", Count, "1 while new messages are refused because too many wait, by queue.";
    BREAKER_STATE = Gauge, "eshaar_breaker_state", Count, "What a breaker does with calls, by dependency: 0 closed, 1 half open, 2 open.";
    BREAKER_TURNED = Counter, "eshaar_breaker_turned_total", Count, "Changes of a breaker's state, by dependency and new state.";
    BULKHEAD_UNDER_WAY = Gauge, "eshaar_bulkhead_operations", Count, "Operations under way, by dependency.";
    BULKHEAD_WAITING = Gauge, "eshaar_bulkhead_waiting", Count, "Operations that wait for their turn, by dependency.";
    BULKHEAD_SHED = Counter, "eshaar_bulkhead_shed_total", Count, "Operations refused because too many waited, or their turn did not come in time, by dependency.";
    DEAD_LETTERS = Counter, "eshaar_dead_letters_total", Count, "Records given up on, by stage and code.";
    REDRIVES = Counter, "eshaar_dead_letter_settled_total", Count, "Dead letters redriven, discarded or refused, by outcome.";
    DIGESTS = Counter, "eshaar_dead_letter_digests_total", Count, "Digests of dead letters mailed to administrators, by outcome: sent or failed.";
    GATEWAY_SESSIONS = Gauge, "eshaar_gateway_sessions", Count, "Open WebSocket sessions.";
    GATEWAY_OPENED = Counter, "eshaar_gateway_sessions_opened_total", Count, "WebSocket sessions opened.";
    GATEWAY_CLOSED = Counter, "eshaar_gateway_sessions_closed_total", Count, "WebSocket sessions closed, by code.";
    GATEWAY_SENT = Counter, "eshaar_gateway_messages_sent_total", Count, "Message frames sent, by how: hint or replay.";
    GATEWAY_STREAM_READS = Counter, "eshaar_gateway_stream_reads_total", Count, "Stream reads, by cause: hello, gap, or check (after presence was impaired).";
    GATEWAY_READS_AT_ONCE = Gauge, "eshaar_gateway_reads_under_way", Count, "Reads of the store for sessions that are under way.";
    GATEWAY_READS_WAITING = Gauge, "eshaar_gateway_reads_waiting", Count, "Reads of the store for sessions that wait for their turn.";
    GATEWAY_READS_FAILED = Counter, "eshaar_gateway_reads_failed_total", Count, "Reads of the store for sessions that failed or were refused, and are tried again.";
    GATEWAY_HELLOS_REFUSED = Counter, "eshaar_gateway_hellos_refused_total", Count, "Clients that were told to come back later because too many wait.";
    GATEWAY_LOOK_UPS = Gauge, "eshaar_gateway_look_ups", Count, "Receipts whose messages are to be looked up in the history.";
    GATEWAY_RECEIPTS_LOST = Counter, "eshaar_gateway_receipts_lost_total", Count, "Receipts that were not recorded, by cause: unknown_message (the history does not have it) or drain.";
    DELIVERY_SECONDS = Histogram, "eshaar_delivery_seconds", Seconds, "Time from acceptance to the first write to a socket, for messages sent from a hint.";
    WEBHOOK_REQUESTS = Counter, "eshaar_webhook_requests_total", Count, "Requests to webhooks, by answer: taken, refused, silent, wait or gone.";
    WEBHOOK_SECONDS = Histogram, "eshaar_webhook_seconds", Seconds, "Time of a request to a webhook.";
    WEBHOOK_BACKLOGS = Gauge, "eshaar_webhook_backlogs", Count, "Webhooks that are being told, once for each partition.";
    WEBHOOK_PLACE_SECONDS = Histogram, "eshaar_webhook_place_seconds", Seconds, "Time that a request to a webhook waited for a place among those of all webhooks.";
    WEBHOOK_PARKED = Gauge, "eshaar_webhook_parked", Count, "Events that an endpoint refused and that wait to be tried again.";
    WEBHOOK_MISSED = Counter, "eshaar_webhook_missed_total", Count, "Events that the log removed before an endpoint took them.";
    WEBHOOK_DISABLED = Counter, "eshaar_webhook_disabled_total", Count, "Webhooks that were disabled because they failed or answered 410.";
    ACKED = Counter, "eshaar_messages_acked_total", Count, "Messages that became delivered.";
}

/// Upper bounds of the buckets of times, in seconds: 0.5 ms to 60 s.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Upper bounds of the buckets of batch sizes.
const RECORDS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// Installs the recorder for this process and describes every metric. The handle renders the Prometheus text format;
/// `run_upkeep` must be called from time to time.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_records".to_owned()), RECORDS)?
        .install_recorder()?;
    for (name, kind, unit, help) in ALL {
        match kind {
            Kind::Counter => describe_counter!(*name, *unit, *help),
            Kind::Gauge => describe_gauge!(*name, *unit, *help),
            Kind::Histogram => describe_histogram!(*name, *unit, *help),
        }
    }
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        for (name, kind, unit, help) in ALL {
            assert!(name.starts_with("eshaar_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert_eq!(name.contains("_seconds"), *unit == Unit::Seconds, "{name}");
            assert!(help.ends_with('.'), "{name}");
        }
    }
}
