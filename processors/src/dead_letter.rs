//! Keeps what other stages gave up on, where it can be looked into, redriven and discarded (R4.2, R4.4).
//!
//! Reads `dead-letters`; writes the store's dead letters, by where the record was read and how often it had been redriven,
//! so that a replay writes the same row. Nothing is decided here, and nobody waits.

use std::time::Duration;

use async_trait::async_trait;
use eshaar_model::{Clock, Epoch, Principal, Timestamp};
use eshaar_schemas::{Codecs, DeadLetter};
use eshaar_store::dead_letters::Origin;
use eshaar_store::{DeadLetterId, LetterBody, LetterHead, Store};
use eshaar_topics::{Outcome, Received, Stage, StageError, Topic, headers};
use serde::Deserialize;

use crate::{decode, pause};

/// How dead letters are kept.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How long is waited when the store or the registry does not answer, in milliseconds.
    pub pause_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { pause_ms: 1_000 }
    }
}

/// The stage.
pub struct KeepDeadLetters {
    store: Store,
    codecs: Codecs,
    clock: Clock,
    epoch: Epoch,
    options: Options,
}

impl KeepDeadLetters {
    /// The stage, on a log whose life is `epoch`.
    pub const fn new(store: Store, codecs: Codecs, clock: Clock, epoch: Epoch, options: Options) -> Self {
        Self { store, codecs, clock, epoch, options }
    }
}

#[async_trait]
impl Stage for KeepDeadLetters {
    const NAME: &'static str = "dead_letter";
    /// Letters are looked at by people, who come later.
    const PATIENCE: Duration = Duration::from_millis(100);
    type Partition = ();

    fn inputs(&self) -> Vec<(Topic, u32)> {
        vec![(Topic::DeadLetters, 1)]
    }

    async fn open(&self, _partition: u32, _next: &[(Topic, u64)]) -> Result<(), StageError> {
        Ok(())
    }

    async fn handle(&self, (): &mut (), batch: &[Received]) -> Vec<Outcome> {
        let (mut letters, mut outcomes) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for record in batch {
            outcomes.push(match decode::<DeadLetter>(&self.codecs, &record.value).await {
                Ok(letter) => {
                    letters.push(kept(letter, record, self.epoch));
                    Outcome::Done
                }
                // It becomes a letter of this stage, which can be read.
                Err(error) => error.outcome(&self.clock, self.options.pause_ms),
            });
        }
        match self.store.dead_letters.put(letters).await {
            Ok(()) => outcomes,
            // Whether the store has them is unknown: all of it again.
            Err(error) => vec![pause(&self.clock, self.options.pause_ms, &error)],
        }
    }

    async fn sync(&self) -> Result<(), StageError> {
        self.store.engine.sync().await.map_err(|error| StageError(error.to_string()))
    }
}

/// How often a record with these headers was redriven.
pub(crate) fn redrives(record: &Received) -> u32 {
    record.headers.text(headers::REDRIVE).and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// A letter as the store keeps it. Its record carries the headers of the record that it is about, as they were.
fn kept(letter: DeadLetter, record: &Received, epoch: Epoch) -> (LetterHead, LetterBody) {
    let text = |name| record.headers.text(name).map(ToOwned::to_owned);
    let sender = record.headers.text(headers::FROM).and_then(|sender| sender.parse::<Principal>().ok());
    let (partition, offset) = (letter.partition as u32, letter.offset as u64);
    let redrives = redrives(record);
    let origin = Origin { stage: &letter.stage, epoch, topic: &letter.topic, partition, offset, redrives };
    let head = LetterHead {
        id: DeadLetterId::of(&origin),
        partition,
        offset,
        redrives,
        business: sender.and_then(|sender| sender.business().cloned()),
        event: text(headers::CE_ID),
        correlation: text(headers::CORRELATION),
        code: letter.code,
        reason: letter.reason,
        attempts: letter.attempts.max(0) as u32,
        at: Timestamp::from_millis(letter.at),
        bytes: letter.value.len() as u64,
        stage: letter.stage,
        topic: letter.topic,
    };
    let body = LetterBody { key: letter.key, value: letter.value, headers: record.headers.as_bytes().clone() };
    (head, body)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use eshaar_store::LetterQuery;
    use eshaar_topics::{Headers, LogPosition};

    use eshaar_model::Attempt;

    use super::*;
    use crate::testing::{Engines, START};

    fn letter(offset: i64, at: Timestamp) -> DeadLetter {
        DeadLetter {
            stage: "archive".to_owned(),
            topic: "messages.accepted".to_owned(),
            partition: 2,
            offset,
            key: Bytes::from_static(b"+966501234567"),
            value: Bytes::from_static(b"nonsense"),
            headers: BTreeMap::new(),
            code: "undecodable".to_owned(),
            reason: "not in Confluent wire format (8 bytes)".to_owned(),
            attempts: 1,
            at: at.as_millis(),
        }
    }

    fn record(value: Bytes, offset: u64, redrives: Option<&str>) -> Received {
        let headers = [
            (headers::CE_ID, &b"m-1"[..]),
            (headers::FROM, b"acme-bank"),
            (headers::CORRELATION, b"c-1"),
            (headers::REDRIVE, redrives.unwrap_or_default().as_bytes()),
        ];
        Received {
            position: LogPosition { topic: Topic::DeadLetters, partition: 0, offset },
            attempt: Attempt::FIRST,
            timestamp: START,
            key: Bytes::from_static(b"+966501234567"),
            value,
            headers: Headers::new(headers.into_iter().filter(|(_, value)| !value.is_empty())),
        }
    }

    fn stage(engines: &Engines) -> KeepDeadLetters {
        let (store, codecs) = (engines.store.clone(), engines.codecs.clone());
        KeepDeadLetters::new(store, codecs, engines.clock.clone(), Epoch(0), Options::default())
    }

    async fn listed(engines: &Engines) -> Vec<LetterHead> {
        let query = LetterQuery { limit: 100, ..LetterQuery::default() };
        let page = engines.store.dead_letters.list(query, engines.clock.now()).await.unwrap();
        page.letters.into_iter().map(|letter| letter.head).collect()
    }

    #[tokio::test]
    async fn a_letter_is_kept_once_however_often_it_is_written_and_read() {
        let engines = Engines::open().await;
        let value = |at| engines.codecs.encode(&letter(7, at)).unwrap();
        // The stage that gave up did so twice, as after a crash: the second record says a later time.
        let batch = [record(value(START), 0, None), record(value(START.plus_millis(5)), 1, None)];
        for _ in 0..2 {
            let outcomes = stage(&engines).handle(&mut (), &batch).await;
            assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done)));
        }
        let [head] = &listed(&engines).await[..] else { panic!("not one letter") };
        assert_eq!((head.at, head.redrives, head.bytes), (START, 0, 8));
        assert_eq!((head.business.as_ref().unwrap().as_str(), head.event.as_deref()), ("acme-bank", Some("m-1")));
        let (_, body) = engines.store.dead_letters.get(head.id).await.unwrap().unwrap();
        assert_eq!((&body.value[..], &body.headers), (&b"nonsense"[..], batch[0].headers.as_bytes()));
    }

    #[tokio::test]
    async fn what_dies_again_after_a_redrive_is_another_letter_with_the_count() {
        let engines = Engines::open().await;
        let value = engines.codecs.encode(&letter(7, START)).unwrap();
        let batch = [record(value.clone(), 0, None), record(value, 1, Some("1"))];
        let _ = stage(&engines).handle(&mut (), &batch).await;
        let mut counts: Vec<_> = listed(&engines).await.iter().map(|head| head.redrives).collect();
        counts.sort_unstable();
        assert_eq!(counts, [0, 1]);
    }

    #[tokio::test]
    async fn a_letter_that_cannot_be_read_is_dead_and_the_rest_of_its_batch_is_kept() {
        let engines = Engines::open().await;
        let value = engines.codecs.encode(&letter(7, START)).unwrap();
        let batch = [record(Bytes::from_static(b"garbage"), 0, None), record(value, 1, None)];
        let outcomes = stage(&engines).handle(&mut (), &batch).await;
        assert!(matches!(outcomes[0], Outcome::Dead { code: "undecodable", .. }));
        assert!(matches!(outcomes[1], Outcome::Done));
        assert_eq!(listed(&engines).await.len(), 1);
    }

    #[tokio::test]
    async fn a_store_that_does_not_answer_holds_the_letters() {
        let engines = Engines::open().await;
        let value = engines.codecs.encode(&letter(7, START)).unwrap();
        engines.store.engine.close().await.unwrap();
        let outcomes = stage(&engines).handle(&mut (), &[record(value, 0, None)]).await;
        assert!(matches!(outcomes[0], Outcome::Pause { .. }));
    }
}
