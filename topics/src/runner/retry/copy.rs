//! A record in a retry topic: key and value as they were, headers as they were and those of the retry. Pure.

use eshaar_model::{Attempt, Timestamp};

use crate::headers::{ATTEMPT, DUE_MS, ERROR, ORIGIN};
use crate::{Headers, LogPosition, NewRecord, Received, Record, Topic};

/// Longest text of an error, in bytes.
const MOST_ERROR_BYTES: usize = 500;

/// A record as it waits in a retry topic.
#[derive(Clone, Debug)]
pub(in crate::runner) struct Copy {
    /// Not to be handled before, unless it only waits for another.
    pub(in crate::runner) due: Timestamp,
    /// As it came into the stage.
    pub(in crate::runner) record: Received,
}

/// What is to be written of a record that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::runner) struct Wait {
    /// The retry topic.
    pub(in crate::runner) topic: Topic,
    /// How often the record has failed.
    pub(in crate::runner) attempt: Attempt,
    /// When it is due.
    pub(in crate::runner) due: Timestamp,
    /// Why it failed; nothing where it only waits for another.
    pub(in crate::runner) error: Option<String>,
}

/// The record of `wait`. It is made now: how long it is kept counts from here, and not from when the message was accepted.
pub(in crate::runner) fn write(record: &Received, wait: &Wait, now: Timestamp) -> NewRecord {
    let LogPosition { topic, partition, offset } = record.position;
    let origin = format!("{topic}:{partition}:{offset}:{}", record.timestamp.as_millis());
    let (attempt, due) = (wait.attempt.count().to_string(), wait.due.as_millis().to_string());
    let mut headers = record.headers.with(ATTEMPT, attempt.as_bytes()).with(DUE_MS, due.as_bytes());
    headers = headers.with(ORIGIN, origin.as_bytes());
    if let Some(error) = &wait.error {
        let end = error.floor_char_boundary(MOST_ERROR_BYTES);
        headers = headers.with(ERROR, &error.as_bytes()[..end]);
    }
    NewRecord {
        topic: wait.topic,
        partition: Some(partition),
        key: record.key.clone(),
        value: record.value.clone(),
        headers,
        timestamp: now,
    }
}

/// A record of a retry topic that is none of ours.
#[derive(Debug, thiserror::Error)]
#[error("header {0} is missing or cannot be read")]
pub(in crate::runner) struct Unreadable(pub(in crate::runner) &'static str);

/// What `record` is a copy of: a record of one of `inputs`.
pub(in crate::runner) fn read(record: &Record, inputs: &[(Topic, u32)]) -> Result<Copy, Unreadable> {
    fn value<T>(text: Option<&str>, name: &'static str, read: impl FnOnce(&str) -> Option<T>) -> Result<T, Unreadable> {
        text.and_then(read).ok_or(Unreadable(name))
    }
    let headers = &record.headers;
    let attempt = value(headers.text(ATTEMPT), ATTEMPT, |text| text.parse().ok().and_then(Attempt::from_count))?;
    let due = value(headers.text(DUE_MS), DUE_MS, |text| text.parse().ok().map(Timestamp::from_millis))?;
    let (position, timestamp) = value(headers.text(ORIGIN), ORIGIN, |text| origin(text, inputs))?;
    let of_retry = [ATTEMPT, DUE_MS, ORIGIN, ERROR];
    let kept = headers.iter().filter(|(name, _)| !of_retry.iter().any(|of| of.as_bytes() == *name));
    let kept = kept.filter_map(|(name, value)| std::str::from_utf8(name).ok().map(|name| (name, value)));
    let received = Received {
        position,
        attempt,
        timestamp,
        key: record.key.clone(),
        value: record.value.clone(),
        headers: Headers::new(kept),
    };
    Ok(Copy { due, record: received })
}

fn origin(text: &str, inputs: &[(Topic, u32)]) -> Option<(LogPosition, Timestamp)> {
    let mut parts = text.split(':');
    let name = parts.next()?;
    let topic = inputs.iter().map(|(topic, _)| *topic).find(|topic| topic.name() == name)?;
    let (partition, offset) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let timestamp = Timestamp::from_millis(parts.next()?.parse().ok()?);
    parts.next().is_none().then_some((LogPosition { topic, partition, offset }, timestamp))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const INPUTS: [(Topic, u32); 1] = [(Topic::LaneHigh, 1)];

    fn received() -> Received {
        Received {
            position: LogPosition { topic: Topic::LaneHigh, partition: 3, offset: 42 },
            attempt: Attempt::FIRST,
            timestamp: Timestamp::from_millis(7),
            key: Bytes::from_static(b"key"),
            value: Bytes::from_static(b"value"),
            headers: Headers::new([("ce_id", &b"m-1"[..])]),
        }
    }

    fn stored(new: NewRecord) -> Record {
        let position = LogPosition { topic: new.topic, partition: new.partition.unwrap(), offset: 0 };
        Record { position, timestamp: new.timestamp, key: new.key, value: new.value, headers: new.headers }
    }

    fn wait(error: Option<&str>) -> Wait {
        Wait {
            topic: Topic::RetryRoute2s,
            attempt: Attempt::from_count(2).unwrap(),
            due: Timestamp::from_millis(5_000),
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn a_record_comes_back_from_a_retry_topic_as_it_was() {
        let new = write(&received(), &wait(Some("refused")), Timestamp::from_millis(3_000));
        let texts = [ATTEMPT, DUE_MS, ORIGIN, ERROR].map(|name| new.headers.text(name).unwrap().to_owned());
        assert_eq!(texts, ["2", "5000", "lane.high:3:42:7", "refused"]);
        assert_eq!((new.topic, new.partition, new.timestamp.as_millis()), (Topic::RetryRoute2s, Some(3), 3_000));
        let copy = read(&stored(new), &INPUTS).unwrap();
        let was = received();
        assert_eq!((copy.due.as_millis(), copy.record.attempt.count()), (5_000, 2));
        assert_eq!((copy.record.position, copy.record.timestamp), (was.position, was.timestamp));
        assert_eq!((copy.record.key, copy.record.value, copy.record.headers), (was.key, was.value, was.headers));
    }

    #[test]
    fn a_second_wait_replaces_the_headers_of_the_first() {
        let first = read(&stored(write(&received(), &wait(Some("once")), Timestamp::from_millis(0))), &INPUTS).unwrap();
        let again = write(&first.record, &wait(None), Timestamp::from_millis(0));
        assert_eq!(again.headers.iter().filter(|(name, _)| *name == ORIGIN.as_bytes()).count(), 1);
        assert_eq!(again.headers.text(ERROR), None);
    }

    #[test]
    fn an_error_is_cut_at_a_whole_character() {
        let long = "é".repeat(400);
        let new = write(&received(), &wait(Some(&long)), Timestamp::from_millis(0));
        assert_eq!(new.headers.text(ERROR).unwrap().len(), 500);
    }

    #[test]
    fn a_record_that_is_no_copy_is_refused_with_the_header_at_fault() {
        let whole = stored(write(&received(), &wait(None), Timestamp::from_millis(0)));
        let without = |name: &str, instead: Option<&str>| {
            let kept = whole.headers.iter().filter(|(of, _)| *of != name.as_bytes());
            let kept: Vec<_> = kept.map(|(of, value)| (std::str::from_utf8(of).unwrap(), value)).collect();
            let instead = instead.map(|value| (name, value.as_bytes()));
            Record { headers: Headers::new(kept.into_iter().chain(instead)), ..whole.clone() }
        };
        for (name, wrong) in [(ATTEMPT, "7"), (DUE_MS, "soon"), (ORIGIN, "lane.low:3:42:7"), (ORIGIN, "lane.high:3:42")]
        {
            assert_eq!(read(&without(name, None), &INPUTS).unwrap_err().0, name);
            assert_eq!(read(&without(name, Some(wrong)), &INPUTS).unwrap_err().0, name);
        }
    }
}
