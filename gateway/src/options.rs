//! What an operator may set of the gateway.

use eshaar_model::limits::MESSAGE_BYTES_DEFAULT;
use serde::Deserialize;

/// Section `gateway` of the configuration. Every key may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Partition of `deliveries` that this gateway reads. Unset: any that is free.
    pub slot: Option<u32>,
    /// Where this process can be reached over HTTP, shown to operators.
    pub address: String,
    /// Most sessions; past it an upgrade is answered 503.
    pub sessions: usize,
    /// Most sessions of one principal; past it a new one is closed (4512).
    pub sessions_per_principal: usize,
    /// Seconds that a client has to say hello.
    pub hello_timeout_s: u32,
    /// Seconds between pings.
    pub ping_every_s: u32,
    /// Seconds without a whole frame from the client, pongs included, after which it is taken for gone.
    pub idle_timeout_s: u32,
    /// Seconds that one write may take.
    pub write_timeout_s: u32,
    /// Most messages under way unacknowledged to one session.
    pub window: usize,
    /// Frames a second that a client may send over a long time. An ack that acknowledges something is not counted.
    pub frames_per_s: u32,
    /// Frames that a client may send at once.
    pub frames_burst: u32,
    /// Largest frame from a client, in bytes. One of up to eight times as many is refused, a larger one ends the session.
    pub frame_bytes: usize,
    /// Hints that wait for one session at most; past it the session reads its stream instead.
    pub hints: usize,
    /// Rows of a stream that are read at once.
    pub page: usize,
    /// Reads of streams at once, at most: fewer while the store is slow. Each is up to four requests to the store, whose
    /// bound (`requests`) must be higher.
    pub reads_at_once: usize,
    /// Hellos that wait for their turn to read; past it clients are told to come back later.
    pub hellos_waiting: usize,
    /// Seconds that a hello may have waited for its turn; while one has waited longer, new clients are told to come back later.
    pub hello_wait_s: u64,
    /// Bytes of messages, of all sessions, that are read before their clients have room for them.
    pub read_ahead_bytes: usize,
    /// Milliseconds that acknowledgements are gathered before they are appended together.
    pub acks_every_ms: u64,
    /// Milliseconds between writes of how far phones acknowledged.
    pub places_every_ms: u64,
    /// Receipts that wait to be appended at most; past it clients that acknowledge are not read from.
    pub receipts: usize,
    /// Pending look-ups, at most, of messages that clients acknowledge or read and that their sessions do not know.
    pub look_ups: usize,
    /// Pending look-ups of one session at most; past it the client is not read from. At least 256, the ids of a frame.
    pub look_ups_per_session: usize,
    /// Look-ups a second of one session over a long time.
    pub look_ups_per_s: u32,
    /// Clients are told to reconnect after a random time of at most this many milliseconds.
    pub reconnect_spread_ms: u64,
    /// Seconds between announcements that this gateway lives.
    pub announce_every_s: u64,
    /// Seconds after which a session's entry in presence is refreshed (entries lapse after 300): one that was lost is missed
    /// for as long.
    pub presence_refresh_s: u32,
    /// Seconds over which sessions are spread that must all read their streams.
    pub rescue_spread_s: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            slot: None,
            address: String::new(),
            sessions: 200_000,
            sessions_per_principal: 16,
            hello_timeout_s: 10,
            ping_every_s: 30,
            idle_timeout_s: 75,
            write_timeout_s: 30,
            window: 256,
            frames_per_s: 100,
            frames_burst: 1_000,
            frame_bytes: MESSAGE_BYTES_DEFAULT,
            hints: 32,
            page: 100,
            reads_at_once: 3,
            hellos_waiting: 20_000,
            hello_wait_s: 30,
            read_ahead_bytes: 64 * 1024 * 1024,
            acks_every_ms: 5,
            places_every_ms: 200,
            receipts: 20_000,
            look_ups: 50_000,
            look_ups_per_session: 1_024,
            look_ups_per_s: 2_000,
            reconnect_spread_ms: 5_000,
            announce_every_s: 5,
            presence_refresh_s: 10,
            rescue_spread_s: 10,
        }
    }
}
