//! Record headers, kept as the bytes they are read as: forwarding them costs nothing, looking one up is a short scan.
//!
//! Encoding: for each header a name length (u8), the name, a value length (u16, big-endian), the value.

use bytes::{BufMut, Bytes, BytesMut};

/// CloudEvents version: `1.0`.
pub const CE_SPECVERSION: &str = "ce_specversion";
/// CloudEvents id: the message's id; of a status, that and the status (`<id>.delivered`).
pub const CE_ID: &str = "ce_id";
/// CloudEvents type.
pub const CE_TYPE: &str = "ce_type";
/// CloudEvents source.
pub const CE_SOURCE: &str = "ce_source";
/// CloudEvents time, RFC 3339.
pub const CE_TIME: &str = "ce_time";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// The lane of a message, stamped where it is accepted.
pub const LANE: &str = "es-lane";
/// The phone that a message is bound for.
pub const TO: &str = "es-to";
/// The sender, who is to be told of what becomes of the message.
pub const FROM: &str = "es-from";
/// When a message expires, in milliseconds since the Unix epoch, decimal. Absent: it does not.
pub const EXPIRES_MS: &str = "es-expires-ms";
/// Position in `messages.accepted` (`partition:offset`), stamped by prioritize.
pub const ACCEPTED: &str = "es-accepted";
/// The broadcast that a message is part of. Absent: none.
pub const BROADCAST: &str = "es-broadcast";
/// On a message that may have been sent before, under the same id: `1`. Absent: it was not, or nobody knew.
pub const REPEAT: &str = "es-repeat";
/// On a message whose id is older than its first record: no record of the message is stamped earlier. Milliseconds since
/// the Unix epoch, decimal. Absent: the time in the id.
pub const FIRST_MS: &str = "es-first-ms";
/// Joins what comes from one request.
pub const CORRELATION: &str = "es-correlation";
/// On retries: how often the record has failed so far, decimal (R4.1).
pub const ATTEMPT: &str = "es-attempt";
/// On retries: when the record is due, in milliseconds since the Unix epoch, decimal.
pub const DUE_MS: &str = "es-due-ms";
/// On retries: where the record came into its stage, and when it was made: `topic:partition:offset:timestamp_ms`.
pub const ORIGIN: &str = "es-origin";
/// On retries: why it failed last, at most 500 bytes. Absent while it has not failed, but waits for one that has.
pub const ERROR: &str = "es-error";
/// How often a dead letter of it was redriven, decimal. Absent: never.
pub const REDRIVE: &str = "es-redrive";

/// Headers of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Bytes);

impl Headers {
    /// No headers.
    pub const fn none() -> Self {
        Self(Bytes::new())
    }

    /// Builds headers from names and values. A name longer than 255 bytes or a value longer than 65,535 is cut: both are
    /// ours, and bounded where they are made.
    pub fn new<'a>(entries: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut bytes = BytesMut::with_capacity(256);
        for (name, value) in entries {
            write_header(&mut bytes, name, value);
        }
        Self(bytes.freeze())
    }

    /// These headers and one more.
    #[must_use]
    pub fn with(&self, name: &str, value: &[u8]) -> Self {
        let mut bytes = BytesMut::with_capacity(self.0.len() + name.len() + value.len() + 3);
        bytes.extend_from_slice(&self.0);
        write_header(&mut bytes, name, value);
        Self(bytes.freeze())
    }

    /// The value of the first header of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(found, _)| *found == name.as_bytes()).map(|(_, value)| value)
    }

    /// The value of the first header of that name, when it is UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All headers, in order, as names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let (&name_length, tail) = rest.split_first()?;
            let (name, tail) = tail.split_at_checked(usize::from(name_length))?;
            let (length, tail) = tail.split_first_chunk::<2>()?;
            let (value, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            rest = tail;
            Some((name, value))
        })
    }

    /// As they are stored.
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// From what was stored by [`Headers::as_bytes`].
    pub const fn from_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

/// Adds a header to `bytes`.
pub(crate) fn write_header(bytes: &mut BytesMut, name: &str, value: &[u8]) {
    let name = &name.as_bytes()[..name.len().min(usize::from(u8::MAX))];
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    bytes.put_u8(name.len() as u8);
    bytes.put_slice(name);
    bytes.put_u16(value.len() as u16);
    bytes.put_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_back_in_order_and_the_first_of_a_name_wins() {
        let headers = Headers::new([("a", &b"1"[..]), ("b", b"2")]).with("a", b"3");
        let all: Vec<_> = headers.iter().collect();
        assert_eq!(all, [(&b"a"[..], &b"1"[..]), (b"b", b"2"), (b"a", b"3")]);
        assert_eq!(headers.text("a"), Some("1"));
        assert_eq!(headers.text("missing"), None);
    }

    #[test]
    fn torn_bytes_end_the_iteration_without_a_panic() {
        let whole = Headers::new([("name", &b"value"[..])]);
        for cut in 0..whole.as_bytes().len() {
            assert_eq!(Headers::from_bytes(whole.as_bytes().slice(..cut)).iter().count(), 0);
        }
    }
}
