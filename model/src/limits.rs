//! The fixed limits of what may be sent (R1.2, R12.1). What an operator may change is in the configuration.
//!
//! A character is a Unicode scalar value, however many bytes it takes in UTF-8 or in JSON. The limits in bytes that follow
//! from those in characters are computed at the end.

/// Longest text of a message, in characters (Unicode scalar values).
pub const CONTENT_CHARS: usize = 10_000;

/// Longest sender's reference, in characters.
pub const REFERENCE_CHARS: usize = 128;

/// Longest collapse key, in bytes: what APNs allows for `apns-collapse-id`.
pub const COLLAPSE_KEY_BYTES: usize = 64;

/// Longest Idempotency-Key, in characters.
pub const IDEMPOTENCY_KEY_CHARS: usize = 128;

/// Longest phone number, in characters: `+` and 15 digits.
pub const PHONE_CHARS: usize = 16;

/// Longest id of a business, in characters.
pub const BUSINESS_ID_CHARS: usize = 64;

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

/// Most bytes of one character in JSON: a surrogate pair, `\ud83c\udf89`.
pub const JSON_CHAR_BYTES: usize = 12;

/// Most bytes of one ASCII character in JSON, `\u0061`; and of each byte of UTF-8, since a character of 2 bytes or more takes
/// no more per byte.
pub const JSON_BYTE_BYTES: usize = 6;

/// Room for what else is in a JSON object of a message: names of fields (written with escapes or without), numbers, times,
/// punctuation, and the white space of a printer.
pub const JSON_REST_BYTES: usize = 4_096;

/// Room for quotes, comma and indentation of an item of a JSON array.
pub const JSON_ITEM_BYTES: usize = 16;

/// Bytes that hold the longest message that may be sent, in every JSON encoding: over HTTP, as a line of a bulk upload, and
/// as a frame `send`. Limits of bodies, lines and frames must not be lower.
pub const MESSAGE_JSON_BYTES: usize = JSON_CHAR_BYTES * (CONTENT_CHARS + REFERENCE_CHARS)
    + JSON_BYTE_BYTES * (COLLAPSE_KEY_BYTES + IDEMPOTENCY_KEY_CHARS + BUSINESS_ID_CHARS)
    + JSON_REST_BYTES;

/// Bytes that hold the largest broadcast that lists its recipients, in every JSON encoding.
pub const BROADCAST_JSON_BYTES: usize =
    MESSAGE_JSON_BYTES + LISTED_RECIPIENTS * (JSON_BYTE_BYTES * PHONE_CHARS + JSON_ITEM_BYTES);

/// Default limit of a body, a line and a frame: [`MESSAGE_JSON_BYTES`], rounded up.
pub const MESSAGE_BYTES_DEFAULT: usize = 128 * 1024;

const _: () = assert!(MESSAGE_BYTES_DEFAULT >= MESSAGE_JSON_BYTES);
