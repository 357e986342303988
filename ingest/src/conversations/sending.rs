//! A chat message: into a conversation, or into the active one with somebody, which is started where there is none.

use eshaar_model::{ConversationId, Lane, Pair, Principal, Priority, Timestamp};
use eshaar_service::{Problem, metrics as names};
use eshaar_store::{How, MessageRow, StoredMessage};

use super::events::{self, Doing};
use super::{access, cached};
use crate::context::Origin;
use crate::idempotency::Held;
use crate::submit::{self, Attempt, ChatDraft, Party, Sender};
use crate::{App, problems};

/// Where a message went.
pub(crate) struct Placed {
    pub(crate) conversation: ConversationId,
    pub(crate) to: Principal,
    /// When it was accepted.
    pub(crate) at: Timestamp,
}

/// A message that is to be sent.
pub(crate) struct Outgoing {
    pub(crate) draft: ChatDraft,
    pub(crate) attempt: Attempt,
}

/// Sends a message from `who`.
pub(crate) async fn send(app: &App, who: &Principal, origin: &Origin, message: Outgoing) -> Result<Placed, Problem> {
    let Outgoing { draft, attempt } = message;
    let now = attempt.at;
    let mut records = Vec::with_capacity(2);
    let (conversation, pair) = match &draft.party {
        Party::Of(conversation) => (*conversation, access::to_send_in(app, who, *conversation).await?),
        Party::With(other) => {
            let pair = Pair::of(who, other).map_err(|error| problems::invalid_pair("to", &error))?;
            let started = start(app, who, &pair, "to").await?;
            records.extend(events::started(app, &started, Doing { by: who, at: now, origin })?);
            (started.conversation.id, pair)
        }
    };
    let side = pair.side_of(who).ok_or_else(problems::conversation_not_found)?;
    let to = pair.principal(side.other());
    let from = who.to_string();
    // The first record of one that may repeat can be in another conversation, of which whoever writes this one knows nothing.
    records.push(Sender { from: &from, origin }.chat_record(app, draft, attempt, (conversation, &to))?);
    submit::append(app, records).await?;
    metrics::counter!(names::INGEST_ACCEPTED, "lane" => Lane::of(Priority::Normal).as_str()).increment(1);
    Ok(Placed { conversation, to, at: now })
}

/// The active conversation of a pair that `who` is one of; `field` names the other side where it is refused.
pub(super) async fn start(
    app: &App,
    who: &Principal,
    pair: &Pair,
    field: &str,
) -> Result<eshaar_store::Started, Problem> {
    // A business that asks has a key, so it is there.
    if who.phone().is_some() {
        let is_known = app.deps.auth.has_business(&pair.business).await;
        if !is_known.map_err(|error| problems::store(&error))? {
            return Err(problems::business_unknown(field));
        }
    }
    let started = app.deps.store.conversations.start(pair).await.map_err(|error| problems::store(&error))?;
    if started.how != How::Found {
        metrics::counter!(names::CONVERSATIONS_STARTED).increment(1);
    }
    // Whoever made one that nothing was said in yet may have died before it said so.
    if started.how != How::Found || started.conversation.last.is_none() {
        cached::stands(app, pair).await;
    }
    Ok(started)
}

/// Where the message that `held` is the claim of was sent before, if it was and the history has it. Its conversation may have
/// been closed since, and another one started.
pub(crate) async fn sent_before(app: &App, held: &Held) -> Result<Option<Placed>, Problem> {
    if !held.repeat {
        return Ok(None);
    }
    let id = held.id;
    let stored = app.deps.store.messages.get(id).await.map_err(|error| problems::store(&error))?;
    let placed = |stored: StoredMessage| {
        let MessageRow { conversation, recipient: to, created_at: at, .. } = stored.row;
        Some(Placed { conversation: conversation?, to, at })
    };
    Ok(stored.and_then(placed))
}
