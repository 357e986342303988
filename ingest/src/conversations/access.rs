//! Which conversations a caller may see: those that they are one of the two of. Whatever else there is, is not there for
//! them.

use eshaar_model::{Conversation, ConversationId, MessageId, MessageType, Pair, Principal, SendRefused, Side};
use eshaar_service::Problem;

use crate::{App, problems};

/// A conversation, and the side that the caller is on.
pub(crate) struct Ours {
    pub(crate) conversation: Conversation,
    pub(crate) side: Side,
}

impl Ours {
    pub(crate) fn new(conversation: Conversation, who: &Principal) -> Result<Self, Problem> {
        let side = conversation.pair.side_of(who).ok_or_else(problems::conversation_not_found)?;
        Ok(Self { conversation, side })
    }
}

/// The conversation of a path's id.
pub(crate) async fn seen(app: &App, who: &Principal, id: &str) -> Result<Ours, Problem> {
    let id = id.parse().map_err(|_| problems::conversation_not_found())?;
    find(app, who, id).await
}

/// The conversation of this id that `who` is one of the two of.
pub(crate) async fn find(app: &App, who: &Principal, id: ConversationId) -> Result<Ours, Problem> {
    let found = app.deps.store.conversations.get(id).await.map_err(|error| problems::store(&error))?;
    Ours::new(found.ok_or_else(problems::conversation_not_found)?, who)
}

/// The two of the conversation of this id that `who` is one of.
pub(super) async fn pair(app: &App, who: &Principal, id: ConversationId) -> Result<Pair, Problem> {
    let found = app.deps.store.conversations.pair(id).await.map_err(|error| problems::store(&error))?;
    found.filter(|pair| pair.side_of(who).is_some()).ok_or_else(problems::conversation_not_found)
}

/// The two of the conversation of this id, which `who` may send in; otherwise why not.
pub(super) async fn to_send_in(app: &App, who: &Principal, id: ConversationId) -> Result<Pair, Problem> {
    let found = app.deps.store.conversations.standing(id).await.map_err(|error| problems::store(&error))?;
    let Some((pair, standing)) = found else { return Err(not_found(app, who, id).await) };
    match standing.may_send(&pair, who) {
        Ok(_) => Ok(pair),
        Err(SendRefused::NotOurs) => Err(not_found(app, who, id).await),
        Err(SendRefused::Closed(_)) => Err(problems::conversation_closed()),
    }
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
