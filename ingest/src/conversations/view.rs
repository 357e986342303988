//! A conversation as the API shows it to one of its sides.

use eshaar_model::{
    Conversation, ConversationId, ConversationPosition, ConversationStatus, MessageId, Phone, Side, Timestamp,
};
use eshaar_service::Problem;
use eshaar_store::Unread;
use serde::Serialize;
use utoipa::ToSchema;

use super::access::Ours;
use super::cached;
use crate::{App, openapi, problems};

/// A conversation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ConversationView {
    #[schema(value_type = String, format = "uuid")]
    id: ConversationId,
    /// Whom you talk to: a phone, or a business id.
    #[schema(example = "+966501234567")]
    with: String,
    #[schema(example = "acme-bank")]
    business: String,
    #[schema(value_type = String, example = "+966501234567")]
    phone: Phone,
    #[schema(value_type = openapi::ConversationStatus)]
    status: ConversationStatus,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Its last message, or when it was started.
    #[schema(value_type = String, format = DateTime)]
    last_activity_at: Timestamp,
    /// Null while nothing was said.
    last_message: Option<LastMessageView>,
    /// How many messages of the other side you have not read.
    unread: usize,
    /// Whether there are more than `unread`: it is counted up to 1,000.
    more_unread: bool,
    /// The position up to which you have read; null: nothing yet.
    #[schema(value_type = Option<String>)]
    read_up_to: Option<ConversationPosition>,
    /// The same of the other side.
    #[schema(value_type = Option<String>)]
    other_read_up_to: Option<ConversationPosition>,
}

/// The last message of a conversation.
#[derive(Debug, Serialize, ToSchema)]
struct LastMessageView {
    #[schema(value_type = String, format = "uuid")]
    id: MessageId,
    /// A business id, or a phone.
    from: String,
    #[schema(value_type = String, format = DateTime)]
    sent_at: Timestamp,
    /// Its place in the conversation.
    #[schema(value_type = String)]
    position: ConversationPosition,
}

impl ConversationView {
    fn of(conversation: &Conversation, side: Side, unread: Unread) -> Self {
        let pair = &conversation.pair;
        Self {
            id: conversation.id,
            with: pair.principal(side.other()).to_string(),
            business: pair.business.to_string(),
            phone: pair.phone,
            status: conversation.status(),
            created_at: conversation.created_at(),
            last_activity_at: conversation.activity_at(),
            last_message: conversation.last.map(|last| LastMessageView {
                id: last.id,
                from: pair.principal(last.from).to_string(),
                sent_at: last.at,
                position: last.position,
            }),
            unread: unread.count,
            more_unread: unread.more,
            read_up_to: conversation.read[side as usize],
            other_read_up_to: conversation.read[side.other() as usize],
        }
    }
}

/// Conversations as their sides see them, with what is unread in each.
pub(super) async fn views(app: &App, all: &[Ours]) -> Result<Vec<ConversationView>, Problem> {
    let unread = cached::unread(app, all).await?;
    Ok(all
        .iter()
        .zip(unread)
        .map(|(ours, unread)| ConversationView::of(&ours.conversation, ours.side, unread))
        .collect())
}

/// One conversation. Where nothing stands behind what was read, nothing more is asked.
pub(super) async fn view(app: &App, ours: Ours) -> Result<ConversationView, Problem> {
    let Ours { conversation, side } = &ours;
    if conversation.last_position() <= conversation.read[*side as usize] {
        return Ok(ConversationView::of(conversation, *side, Unread::default()));
    }
    let view = views(app, &[ours]).await?.pop();
    view.ok_or_else(problems::internal)
}
