//! Gives each accepted message to the lane that it was stamped for.
//!
//! Reads `messages.accepted`; writes `lane.*`, keyed by the recipient's phone. What was taken back, or has expired, ends here:
//! `ingest` and `archive` say so.
//! Works on headers alone: value and timestamp go on untouched. The lane is the record's own, so a replay takes the same.
//! A message to a business has no lane: `archive` carries it on.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{Clock, Timestamp};
use eshaar_service::metrics::{CANCELLED, EXPIRED};
use eshaar_topics::flow::{Envelope, HeaderError};
use eshaar_topics::{Cancelled, NewRecord, Outcome, Received, Stage, StageError, Topic, headers};
use metrics::counter;

use crate::depth::Mix;
use crate::pause_if_stale;

/// The stage.
pub struct Prioritize {
    cancelled: Arc<Cancelled>,
    clock: Clock,
    mix: Arc<Mix>,
}

impl Prioritize {
    /// The stage, dropping what is among `cancelled` and what has expired by `clock`.
    pub fn new(cancelled: Arc<Cancelled>, clock: Clock) -> Self {
        Self { cancelled, clock, mix: Arc::default() }
    }

    /// How what it takes is mixed.
    pub fn mix(&self) -> Arc<Mix> {
        Arc::clone(&self.mix)
    }

    fn outcome(&self, record: &Received, now: Timestamp) -> Outcome {
        match self.follows(record, now) {
            Ok(Some(next)) => Outcome::Forward(vec![next]),
            Ok(None) => Outcome::Done,
            Err(error) => Outcome::Dead { code: "headers", reason: error.to_string() },
        }
    }

    fn follows(&self, record: &Received, now: Timestamp) -> Result<Option<NewRecord>, HeaderError> {
        let envelope = Envelope::read(&record.headers)?;
        let is_cancelled = self.cancelled.takes(envelope.from, envelope.id, envelope.broadcast);
        Ok(match decide(&envelope, is_cancelled, now) {
            Decision::ToLane => Some(lane_record(record, &envelope)),
            // Its timer says so (`archive`).
            Decision::Expired => {
                counter!(EXPIRED, "stage" => Self::NAME).increment(1);
                None
            }
            // Who took it back has said so: ingest writes the status.
            Decision::Cancelled => {
                counter!(CANCELLED, "stage" => Self::NAME).increment(1);
                None
            }
            Decision::NotForAPhone => None,
        })
    }
}

#[async_trait]
impl Stage for Prioritize {
    const NAME: &'static str = "prioritize";
    type Partition = ();

    fn inputs(&self) -> Vec<(Topic, u32)> {
        vec![(Topic::MessagesAccepted, 1)]
    }

    async fn open(&self, _partition: u32, _next: &[(Topic, u64)]) -> Result<(), StageError> {
        Ok(())
    }

    async fn handle(&self, (): &mut (), batch: &[Received]) -> Vec<Outcome> {
        if let Some(paused) = pause_if_stale(&self.cancelled, &self.clock, Self::NAME) {
            return vec![paused];
        }
        let now = self.clock.now();
        self.mix.note(batch.iter().filter_map(|record| record.headers.text(headers::LANE)?.parse().ok()));
        batch.iter().map(|record| self.outcome(record, now)).collect()
    }
}

/// What is to be done with a message.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    ToLane,
    Expired,
    Cancelled,
    NotForAPhone,
}

fn decide(envelope: &Envelope<'_>, is_cancelled: bool, now: Timestamp) -> Decision {
    match (envelope.to, envelope.expires_at) {
        (None, _) => Decision::NotForAPhone,
        (Some(_), _) if is_cancelled => Decision::Cancelled,
        (Some(_), Some(at)) if at <= now => Decision::Expired,
        (Some(_), _) => Decision::ToLane,
    }
}

/// The record of its lane for one of `messages.accepted`.
pub(crate) fn lane_record(record: &Received, envelope: &Envelope<'_>) -> NewRecord {
    let key = record.headers.get(headers::TO).map_or_else(|| record.key.clone(), Bytes::copy_from_slice);
    let accepted = format!("{}:{}", record.position.partition, record.position.offset);
    NewRecord {
        topic: Topic::of_lane(envelope.lane),
        partition: None,
        key,
        value: record.value.clone(),
        headers: record.headers.with(headers::ACCEPTED, accepted.as_bytes()),
        timestamp: record.timestamp,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use eshaar_model::Lane;
    use eshaar_topics::Headers;

    use super::*;
    use crate::testing::{START, codecs, message, received};

    async fn handled(record: Received) -> Outcome {
        handled_knowing(Cancelled::none(Clock::manual(START)), record).await
    }

    async fn handled_knowing(cancelled: Cancelled, record: Received) -> Outcome {
        let stage = Prioritize::new(Arc::new(cancelled), Clock::manual(START));
        stage.handle(&mut (), &[record]).await.remove(0)
    }

    #[tokio::test]
    async fn a_message_goes_to_its_lane_untouched_keyed_by_phone_with_its_place_stamped() {
        let codecs = codecs().await;
        let message = eshaar_schemas::Message {
            conversation_id: Some("0190f6f0-0000-7000-8000-000000000001".to_owned()),
            ..message(1)
        };
        let record = received(&message, Lane::Low, &codecs, (2, 17));
        let Outcome::Forward(next) = handled(record.clone()).await else { panic!("not forwarded") };
        assert_eq!((next[0].topic, &next[0].key[..]), (Topic::LaneLow, message.recipient.as_bytes()));
        assert_eq!((&next[0].value, next[0].timestamp), (&record.value, record.timestamp));
        assert_eq!(next[0].headers.text(headers::ACCEPTED), Some("2:17"));
        assert_eq!(Envelope::read(&next[0].headers), Envelope::read(&record.headers));
    }

    #[tokio::test]
    async fn a_message_that_was_taken_back_goes_no_further() {
        let (codecs, message) = (codecs().await, message(1));
        let cancelled = Cancelled::none(Clock::manual(START));
        cancelled.enter(&message.sender, message.id);
        let record = received(&message, Lane::High, &codecs, (0, 0));
        assert!(matches!(handled_knowing(cancelled, record).await, Outcome::Done));
    }

    #[tokio::test]
    async fn an_expired_message_goes_no_further() {
        let codecs = codecs().await;
        let message = eshaar_schemas::Message { expires_at: Some(START.as_millis()), ..message(1) };
        assert!(matches!(handled(received(&message, Lane::High, &codecs, (0, 0))).await, Outcome::Done));
    }

    #[tokio::test]
    async fn a_message_to_a_business_has_no_lane() {
        let codecs = codecs().await;
        let message = eshaar_schemas::Message { recipient: "acme-bank".to_owned(), ..message(1) };
        assert!(matches!(handled(received(&message, Lane::Normal, &codecs, (0, 0))).await, Outcome::Done));
    }

    #[tokio::test]
    async fn a_record_without_the_headers_of_a_message_is_dead() {
        let record =
            Received { headers: Headers::none(), ..received(&message(1), Lane::Normal, &codecs().await, (0, 0)) };
        let Outcome::Dead { code, reason } = handled(record).await else { panic!("not dead") };
        assert_eq!((code, reason.as_str()), ("headers", "header ce_id is missing or cannot be read"));
    }
}
