//! A history of messages whose answers tests hold back, or have fail.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use eshaar_model::{BusinessId, MessageId, Timestamp};
use eshaar_store::{MessageRow, MessageStore, SentPage, SentQuery, Step, StoreError, StoredMessage};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Messages by id.
pub(super) struct FakeMessages {
    pub(super) rows: Mutex<HashMap<MessageId, StoredMessage>>,
    /// How many ids each look-up had.
    pub(super) asked: Mutex<Vec<usize>>,
    /// A look-up takes one permit and does not give it back.
    pub(super) gate: Semaphore,
    pub(super) broken: AtomicBool,
}

impl Default for FakeMessages {
    fn default() -> Self {
        let (rows, asked, broken) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        Self { rows, asked, gate: Semaphore::new(1_000_000), broken }
    }
}

#[async_trait]
impl MessageStore for FakeMessages {
    async fn put(&self, _rows: Vec<MessageRow>) -> Result<(), StoreError> {
        unimplemented!("written by archive")
    }

    async fn reach(&self, _steps: Vec<Step>) -> Result<(), StoreError> {
        unimplemented!("written by archive")
    }

    async fn set_retries(&self, _: MessageId, _: u32) -> Result<(), StoreError> {
        unimplemented!("written by route")
    }

    async fn retries(&self, _: MessageId) -> Result<u32, StoreError> {
        unimplemented!("asked by ingest")
    }

    async fn get(&self, id: MessageId) -> Result<Option<StoredMessage>, StoreError> {
        Ok(self.rows.lock().get(&id).cloned())
    }

    async fn get_many(&self, ids: &[MessageId]) -> Result<Vec<Option<StoredMessage>>, StoreError> {
        self.gate.acquire().await.unwrap().forget();
        self.asked.lock().push(ids.len());
        if self.broken.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        let messages = self.rows.lock();
        Ok(ids.iter().map(|id| messages.get(id).cloned()).collect())
    }

    async fn sent_by(&self, _: &BusinessId, _: SentQuery, _: Timestamp) -> Result<SentPage, StoreError> {
        unimplemented!("asked by ingest")
    }
}
