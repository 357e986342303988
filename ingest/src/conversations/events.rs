//! What becomes of a conversation, for `conversation.events`: written behind the store, once or more.

use eshaar_model::{Conversation, ConversationPosition, Principal, Timestamp};
use eshaar_schemas::{Change, ConversationChanged};
use eshaar_service::Problem;
use eshaar_store::{How, Started};
use eshaar_topics::{NewRecord, flow};

use crate::context::Origin;
use crate::{App, problems};

/// Who changed something, when, in which request.
#[derive(Clone, Copy)]
pub(super) struct Doing<'a> {
    pub(super) by: &'a Principal,
    pub(super) at: Timestamp,
    pub(super) origin: &'a Origin,
}

/// What is to be told of a conversation that was just started, or found. One that nothing was said in yet is told of again,
/// as the same event: whoever made it may have died before it was told.
pub(super) fn started(app: &App, started: &Started, doing: Doing<'_>) -> Result<Option<NewRecord>, Problem> {
    let conversation = &started.conversation;
    match started.how {
        How::TakenUp => event(app, conversation, Change::TakenUp, None, doing).map(Some),
        How::Found if conversation.last.is_some() => Ok(None),
        How::Created | How::Found => {
            let doing = Doing { at: conversation.created_at(), ..doing };
            event(app, conversation, Change::Created, None, doing).map(Some)
        }
    }
}

/// The record of a change; `up_to` of [`Change::Read`] alone.
pub(super) fn event(
    app: &App,
    of: &Conversation,
    change: Change,
    up_to: Option<ConversationPosition>,
    doing: Doing<'_>,
) -> Result<NewRecord, Problem> {
    let changed = ConversationChanged {
        id: of.id,
        change,
        at: doing.at.as_millis(),
        business: of.pair.business.to_string(),
        phone: of.pair.phone.to_string(),
        by: doing.by.to_string(),
        up_to: up_to.map(|position| position.to_string()),
    };
    let trace = doing.origin.trace.to_string();
    flow::conversation(&changed, &app.deps.codecs, doing.origin.joined(&trace))
        .map_err(|error| problems::encode(&error))
}
