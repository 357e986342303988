//! Which conversations a caller may see: those that they are one of the two of. Whatever else there is, is not there for
//! them.

use eshaar_auth::Identity;
use eshaar_model::{Conversation, ConversationId, MessageId, MessageType, Permission, Principal, Side};
use eshaar_service::Problem;

use crate::caller::allowed;
use crate::{App, problems};

/// A conversation, and the side that the caller is on.
pub(crate) struct Ours {
    pub(crate) conversation: Conversation,
    pub(crate) side: Side,
}

impl Ours {
    pub(crate) fn new(conversation: Conversation, who: &Principal) -> Result<Self, Problem> {
        Self::of(conversation, who).ok_or_else(problems::conversation_not_found)
    }

    fn of(conversation: Conversation, who: &Principal) -> Option<Self> {
        let side = conversation.pair.side_of(who)?;
        Some(Self { conversation, side })
    }
}

/// The conversation of a path's id, for whoever may see conversations.
pub(crate) async fn seen(app: &App, identity: &Identity, id: &str) -> Result<Ours, Problem> {
    let who = allowed(identity, &Permission::OF_CONVERSATIONS)?;
    let id = id.parse().map_err(|_| problems::conversation_not_found())?;
    find(app, who, id).await
}

/// The conversation of this id that `who` is one of the two of.
pub(crate) async fn find(app: &App, who: &Principal, id: ConversationId) -> Result<Ours, Problem> {
    look_for(app, who, id).await?.ok_or_else(problems::conversation_not_found)
}

/// As [`find`], to send in it: why that cannot be is said of an id that is no conversation of theirs.
pub(super) async fn find_to_send(app: &App, who: &Principal, id: ConversationId) -> Result<Ours, Problem> {
    match look_for(app, who, id).await? {
        Some(ours) => Ok(ours),
        None => Err(not_found(app, who, id).await),
    }
}

async fn look_for(app: &App, who: &Principal, id: ConversationId) -> Result<Option<Ours>, Problem> {
    let found = app.deps.store.conversations.get(id).await.map_err(|error| problems::store(&error))?;
    Ok(found.and_then(|conversation| Ours::of(conversation, who)))
}

/// Where the id is that of a one-way message that they got, this cannot be replied to (R1.5).
async fn not_found(app: &App, who: &Principal, id: ConversationId) -> Problem {
    let id = MessageId::from_bytes(id.as_bytes());
    if let Ok(id) = id
        && let Ok(Some(stored)) = app.deps.store.messages.get(id).await
        && stored.row.recipient == *who
        && stored.row.message_type == MessageType::OneWay
    {
        return problems::reply_refused();
    }
    problems::conversation_not_found()
}
