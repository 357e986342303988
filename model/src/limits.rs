//! The fixed limits of what may be sent (R1.2, R12.1). What an operator may change is in the configuration.

/// Longest text of a message, in characters (Unicode scalar values).
pub const CONTENT_CHARS: usize = 10_000;

/// Longest sender's reference, in characters.
pub const REFERENCE_CHARS: usize = 128;

/// Longest collapse key, in bytes: what APNs allows for `apns-collapse-id`.
pub const COLLAPSE_KEY_BYTES: usize = 64;

/// Longest Idempotency-Key, in characters.
pub const IDEMPOTENCY_KEY_CHARS: usize = 128;

/// Longest time to live, in seconds: as long as a stream is kept (30 days).
pub const TTL_SECONDS: u64 = 30 * 24 * 3600;

/// Longest time that a message may be scheduled ahead, in milliseconds (30 days).
pub const SEND_AHEAD_MS: i64 = 30 * 24 * 3600 * 1000;

/// Most recipients that are listed in the request of a broadcast; more are an audience.
pub const LISTED_RECIPIENTS: usize = 10_000;

/// Most lines of an audience.
pub const AUDIENCE_LINES: u64 = 10_000_000;

/// Longest name of an audience, in characters.
pub const AUDIENCE_NAME_CHARS: usize = 64;

/// Most media attachments of a message.
pub const ATTACHMENTS: usize = 10;
