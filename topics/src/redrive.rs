//! The record that a dead letter is sent again as. Pure.

use bytes::Bytes;
use eshaar_model::Timestamp;

use crate::headers::{ATTEMPT, DUE_MS, ERROR, ORIGIN, REDRIVE};
use crate::{Headers, NewRecord, Topic};

/// How often a record may be redriven: what died so often dies again.
pub const MOST_REDRIVES: u32 = 3;

/// Headers of a retry, which is over: a redrive begins anew.
const OF_RETRIES: [&str; 4] = [ATTEMPT, DUE_MS, ORIGIN, ERROR];

/// A record that was given up on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redriven {
    /// Where it was read, and goes to again.
    pub topic: Topic,
    /// The partition that it was read from.
    pub partition: u32,
    /// Its key.
    pub key: Bytes,
    /// Its value, untouched.
    pub value: Bytes,
    /// Its headers.
    pub headers: Headers,
    /// How often it was redriven before.
    pub redrives: u32,
}

impl Redriven {
    /// A new record of the same topic: key, value and headers as they were, and how often it was redriven by now. The key
    /// leads it to the partition that it came from.
    pub fn record(self, now: Timestamp) -> NewRecord {
        let text = (self.redrives + 1).to_string();
        let names = OF_RETRIES.iter().chain(&[REDRIVE]);
        let is_over = |name: &[u8]| names.clone().any(|over| over.as_bytes() == name);
        let kept = self.headers.iter().filter(|(name, _)| !is_over(name));
        let kept = kept.filter_map(|(name, value)| std::str::from_utf8(name).ok().map(|name| (name, value)));
        NewRecord {
            topic: self.topic,
            partition: self.key.is_empty().then_some(self.partition),
            key: self.key,
            value: self.value,
            headers: Headers::new(kept.chain([(REDRIVE, text.as_bytes())])),
            timestamp: now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redrive_is_the_record_as_it_was_without_its_retries_and_with_its_count() {
        let headers =
            [("ce_id", "m-1"), ("es-attempt", "6"), ("es-origin", "0:7"), ("es-to", "+966"), ("es-redrive", "1")];
        let now = Timestamp::from_millis(9);
        let record = Redriven {
            topic: Topic::LaneHigh,
            partition: 3,
            key: Bytes::from_static(b"+966"),
            value: Bytes::from_static(b"value"),
            headers: Headers::new(headers.map(|(name, value)| (name, value.as_bytes()))),
            redrives: 1,
        }
        .record(now);
        let headers: Vec<_> = record.headers.iter().collect();
        assert_eq!(headers, [(&b"ce_id"[..], &b"m-1"[..]), (b"es-to", b"+966"), (b"es-redrive", b"2")]);
        assert_eq!((record.topic, record.partition, record.timestamp), (Topic::LaneHigh, None, now));
        assert_eq!((&record.key[..], &record.value[..]), (&b"+966"[..], &b"value"[..]));
    }
}
