//! What of conversations is read through the cache (R8.1), and what is said to it when they change. Statuses are not kept but
//! the steps they follow from, so that a message expires, and is taken back, in the cache as in the store.

use eshaar_model::{ActivityCursor, Conversation, ConversationId, ConversationPosition, ConversationStatus, Pair};
use eshaar_model::{Principal, Side};
use eshaar_presence::cache::{self, Key};
use eshaar_service::Problem;
use eshaar_store::{ChatPage, ListQuery, ReadFrom, StoredMessage, Unread};
use serde::{Deserialize, Serialize};

use super::access::Ours;
use super::history;
use crate::{App, problems};

/// Conversations of a first page that are kept.
const LISTED: usize = 50;

/// Active conversations of a first page that are kept: as many as unread messages are counted in.
pub(super) const ACTIVE: usize = 200;

/// Messages of a conversation that are kept, the newest.
const NEWEST: usize = 50;

/// A side's first conversations.
#[derive(Serialize, Deserialize)]
struct Listed {
    conversations: Vec<Conversation>,
    next: Option<ActivityCursor>,
}

/// A page of what `who` talks in.
pub(super) async fn page(
    app: &App,
    who: &Principal,
    query: ListQuery,
) -> Result<(Vec<Ours>, Option<ActivityCursor>), Problem> {
    let kept = match query {
        ListQuery { status: None, after: None, limit } if limit <= LISTED => {
            Some((Key::Conversations(who.clone()), LISTED))
        }
        ListQuery { status: Some(ConversationStatus::Active), after: None, limit } if limit <= ACTIVE => {
            Some((Key::Active(who.clone()), ACTIVE))
        }
        _ => None,
    };
    let limit = query.limit;
    let mut listed = match kept {
        None => listed(app, who, query).await?,
        Some((key, kept)) => one(app, key, async || listed(app, who, ListQuery { limit: kept, ..query }).await).await?,
    };
    if listed.conversations.len() > limit {
        listed.conversations.truncate(limit);
        listed.next = listed.conversations.last().map(Conversation::cursor);
    }
    let ours: Result<Vec<_>, _> = listed.conversations.into_iter().map(|one| Ours::new(one, who)).collect();
    Ok((ours?, listed.next))
}

async fn listed(app: &App, who: &Principal, query: ListQuery) -> Result<Listed, Problem> {
    let page = app.deps.store.conversations.list(who, query).await.map_err(|error| problems::store(&error))?;
    Ok(Listed { conversations: page.conversations, next: page.next })
}

/// How many messages sides have not read.
pub(super) async fn unread(app: &App, all: &[Ours]) -> Result<Vec<Unread>, Problem> {
    let of: Vec<_> = all.iter().map(|ours| (ours.conversation.id, ours.side)).collect();
    let keys: Vec<_> = of.iter().map(|(id, side)| Key::Unread(*id, *side)).collect();
    cache::through(&app.deps.cache, &keys, async |places| {
        let missing: Vec<_> = places.iter().map(|place| of[*place]).collect();
        let counts = app.deps.store.conversations.unread(&missing, app.deps.clock.now()).await;
        counts.map_err(|error| problems::store(&error))
    })
    .await
}

/// A message where it stands.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Placed {
    pub(super) position: ConversationPosition,
    pub(super) from: Side,
    pub(super) stored: StoredMessage,
}

/// A page of a conversation, oldest first.
#[derive(Serialize, Deserialize)]
pub(super) struct Page {
    pair: Pair,
    pub(super) messages: Vec<Placed>,
    pub(super) more: bool,
}

/// A page of a conversation that `who` is one of the two of, and the side they are on.
pub(super) async fn history(
    app: &App,
    who: &Principal,
    id: ConversationId,
    (from, limit): (ReadFrom, usize),
) -> Result<(Side, Page), Problem> {
    // Whoever goes back, or begins at the start, is not after the newest.
    if limit <= NEWEST && matches!(from, ReadFrom::Newest | ReadFrom::After(Some(_))) {
        let newest = one(app, Key::Newest(id), async || read(app, id, ReadFrom::Newest, NEWEST).await).await?;
        let side = newest.pair.side_of(who).ok_or_else(problems::conversation_not_found)?;
        if let Some(page) = newest.part(from, limit) {
            return Ok((side, page));
        }
    }
    let page = read(app, id, from, limit).await?;
    let side = page.pair.side_of(who).ok_or_else(problems::conversation_not_found)?;
    Ok((side, page))
}

/// As it is, whoever asks.
async fn read(app: &App, id: ConversationId, from: ReadFrom, limit: usize) -> Result<Page, Problem> {
    let known = app.deps.store.conversations.pair(id).await.map_err(|error| problems::store(&error))?;
    let pair = known.ok_or_else(problems::conversation_not_found)?;
    let ChatPage { rows, more } =
        app.deps.store.conversations.history(id, from, limit).await.map_err(|error| problems::store(&error))?;
    let stored = history::stored(app, &rows).await?;
    let placed = |(row, stored): (eshaar_store::ChatRow, _)| Placed { position: row.position, from: row.from, stored };
    Ok(Page { pair, messages: rows.into_iter().zip(stored).map(placed).collect(), more })
}

impl Page {
    /// Of the newest messages, the page that was asked for; `None` where it may begin before them.
    fn part(mut self, from: ReadFrom, limit: usize) -> Option<Self> {
        match from {
            ReadFrom::Newest => {
                let cut = self.messages.len().saturating_sub(limit);
                self.messages.drain(..cut);
                self.more |= cut > 0;
            }
            ReadFrom::After(Some(after)) => {
                let is_within = self.messages.first().is_some_and(|first| first.position <= after);
                if self.more && !is_within {
                    return None;
                }
                self.messages.retain(|message| message.position > after);
                self.more = self.messages.len() > limit;
                self.messages.truncate(limit);
            }
            ReadFrom::Before(_) | ReadFrom::After(None) => return None,
        }
        Some(self)
    }
}

/// One value, through the cache.
async fn one<T: Serialize + serde::de::DeserializeOwned>(
    app: &App,
    key: Key,
    load: impl AsyncFnOnce() -> Result<T, Problem>,
) -> Result<T, Problem> {
    let found = cache::through(&app.deps.cache, &[key], async |_| Ok(vec![load().await?])).await?;
    found.into_iter().next().ok_or_else(problems::internal)
}

/// A conversation of this pair was started, taken up, archived or closed.
pub(super) async fn stands(app: &App, pair: &Pair) {
    app.deps.cache.invalidate(Key::of_standing(pair).collect()).await;
}

/// A side has read.
pub(super) async fn was_read(app: &App, Ours { conversation, side }: &Ours) {
    app.deps.cache.invalidate(Key::of_reading(conversation.id, &conversation.pair, *side).collect()).await;
}
