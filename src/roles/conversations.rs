//! The gateway's questions about conversations, answered by the code of the API in the gateway's own process.

use std::sync::Arc;

use async_trait::async_trait;
use eshaar_auth::Identity;
use eshaar_gateway::{Conversations, NewMessage, Sent};
use eshaar_ingest::LiveMessage;
use eshaar_model::{ConversationId, ConversationPosition, Pair};
use eshaar_service::Problem;
use eshaar_topics::Cancelled;

use super::http;
use crate::config::Config;
use crate::engines::Engines;

/// Conversations of the API, for sessions.
pub struct Live(eshaar_ingest::Live);

impl Live {
    pub fn new(engines: &Engines, cancelled: &Arc<Cancelled>, config: &Config) -> Self {
        Self(eshaar_ingest::Live::new(http::of_ingest(engines, cancelled, config), config.ingest.clone()))
    }
}

#[async_trait]
impl Conversations for Live {
    async fn send(&self, by: &Identity, message: NewMessage) -> Result<Sent, Problem> {
        let message = LiveMessage {
            reference: &message.r#ref,
            to: message.to.as_deref(),
            conversation_id: message.conversation_id.as_deref(),
            content: &message.content,
            own_reference: message.reference.as_deref(),
            has_media: message.has_media,
        };
        let sent = self.0.send(by, message).await?;
        let (id, conversation, replayed) = (sent.id, sent.conversation, sent.replayed);
        Ok(Sent { id, conversation, sent_at: sent.sent_at, replayed })
    }

    async fn read(
        &self,
        by: &Identity,
        conversation: ConversationId,
        up_to: ConversationPosition,
    ) -> Result<(), Problem> {
        self.0.read(by, conversation, up_to).await
    }

    async fn pair(&self, by: &Identity, conversation: ConversationId) -> Result<Pair, Problem> {
        self.0.pair(by, conversation).await
    }
}
