//! The status of messages that were cancelled before the history had them.
//!
//! Who cancels a message that the history has writes its status too. Where the history is behind, nobody knows the
//! recipient yet; the status follows from here, when the message is written.

use eshaar_model::{MessageId, Status};
use eshaar_schemas::{Message, StatusChanged};
use eshaar_store::StoreError;
use eshaar_topics::flow::{self, Envelope, Origin};
use eshaar_topics::{NewRecord, Outcome, Received};

use super::Archive;
use crate::decode;

impl Archive {
    /// Adds the status `cancelled` to the outcomes of messages that were cancelled and do not have it. The messages are in
    /// the history by now.
    pub(super) async fn add_cancelled(&self, batch: &[Received], outcomes: &mut [Outcome]) -> Result<(), StoreError> {
        if self.cancelled.is_empty() {
            return Ok(());
        }
        let envelope = |record: &Received| Envelope::read(&record.headers).map(|of| (of.id, of.from.to_owned())).ok();
        let named = batch.iter().enumerate().filter_map(|(place, record)| Some((place, envelope(record)?)));
        let taken: Vec<(usize, MessageId)> = named
            .filter(|(_, (id, from))| self.cancelled.covers(from, *id))
            .map(|(place, (id, _))| (place, id))
            .collect();
        if taken.is_empty() {
            return Ok(());
        }
        let ids: Vec<MessageId> = taken.iter().map(|(_, id)| *id).collect();
        let stored = self.store.messages.get_many(&ids).await?;
        for ((place, id), stored) in taken.into_iter().zip(stored) {
            if stored.is_some_and(|stored| stored.steps.at(Status::Cancelled).is_some()) {
                continue;
            }
            // One that cannot be read or written has its outcome already, and is shown as cancelled all the same.
            match (self.cancelled_status(&batch[place]).await, &mut outcomes[place]) {
                (Some(status), Outcome::Forward(records)) => records.push(status),
                (Some(status), outcome @ Outcome::Done) => *outcome = Outcome::Forward(vec![status]),
                _ => tracing::warn!(message = %id, "the status of a cancelled message was not written"),
            }
        }
        Ok(())
    }

    async fn cancelled_status(&self, record: &Received) -> Option<NewRecord> {
        let message = decode::<Message>(&self.codecs, &record.value).await.ok()?;
        let key = flow::key(&message).to_owned();
        let broadcast = flow::broadcast_of(&message);
        let change = StatusChanged {
            id: message.id,
            status: Status::Cancelled,
            at: self.clock.now().as_millis(),
            sender: message.sender,
            recipient: message.recipient,
            reason: None,
        };
        let status = flow::status(&change, key.into(), &self.codecs, Origin::of(&record.headers)).ok()?;
        Some(flow::part_of(status, broadcast))
    }
}
