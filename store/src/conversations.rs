//! Conversations: which one a pair has open, each side's list, what was said in them, and how far it was read
//! (R1.6–R1.9, design §5).
//!
//! A conversation is known by its id; the open one of a pair (active or archived) is decided in one place, so there is never
//! a second. What was said stands at the positions of `messages.accepted`. Nothing is counted as it comes: what is unread is
//! counted from the rows.

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{
    ActivityCursor, Conversation, ConversationId, ConversationPosition, ConversationStatus, LastMessage, MessageId,
    Pair, Principal, Shown, Side, Standing, Status, StatusSteps, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::messages::status_at;

/// Unread messages are counted up to this many; past it the count says that there are more.
pub const UNREAD_COUNTED: usize = 1_000;

/// Rows behind the read position that are looked at for one count, the side's own among them.
pub(crate) const UNREAD_EXAMINED: usize = 4_000;

/// Most conversations of a page of a list.
pub(crate) const PAGE_CONVERSATIONS: usize = 200;

/// Most messages of a page of a conversation.
pub(crate) const PAGE_MESSAGES: usize = 500;

/// What came of starting a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The active one of the pair.
    pub conversation: Conversation,
    /// Whether it is new, or was there already: active, or archived and now taken up again.
    pub how: How,
}

/// How a pair came to its active conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It was made.
    Created,
    /// It had been archived.
    TakenUp,
    /// It was active.
    Found,
}

/// What came of archiving a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Archived {
    /// It is archived, or was; or a message has come meanwhile and it is active already.
    Done(Conversation),
    /// It is closed.
    Closed,
    /// There is no such conversation.
    Unknown,
}

/// A message in a conversation. Written again after a crash it is the same row with the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatRow {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Whose.
    pub pair: Pair,
    /// Who of the two sent it.
    pub from: Side,
    /// Where it stands: where its record does in `messages.accepted`.
    pub position: ConversationPosition,
    /// The message.
    pub id: MessageId,
    /// When it was accepted.
    pub at: Timestamp,
    /// Not delivered after this.
    pub expires_at: Option<Timestamp>,
    /// The record's value, untouched.
    pub value: Bytes,
}

impl ChatRow {
    pub(crate) const fn as_last(&self) -> LastMessage {
        LastMessage { id: self.id, from: self.from, at: self.at, position: self.position }
    }
}

/// Which of a side's conversations are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// At this status only.
    pub status: Option<ConversationStatus>,
    /// Behind this one: `ConversationPage::next` of the page before.
    pub after: Option<ActivityCursor>,
    /// At most this many; 200 at most.
    pub limit: usize,
}

/// A page of a side's conversations, newest activity first. In a walk from page to page each conversation comes at most
/// once, and each that nothing happens in meanwhile comes; one that something happens in moves to the front, which a walk
/// has behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConversationPage {
    /// The conversations.
    pub conversations: Vec<Conversation>,
    /// Where the next page begins; `None` at the end. A page may be short, even empty, and still have a next: the rows
    /// examined for one page are bounded.
    pub next: Option<ActivityCursor>,
}

/// From where on a conversation is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// Its newest messages.
    Newest,
    /// The newest before this one.
    Before(ConversationPosition),
    /// The oldest after this one; `None`: the oldest of all.
    After(Option<ConversationPosition>),
}

/// A page of a conversation, always oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatPage {
    /// The messages.
    pub rows: Vec<ChatRow>,
    /// Whether there are more in the direction of reading.
    pub more: bool,
}

/// A side has read a conversation up to a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadMark {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Who has read.
    pub side: Side,
    /// Up to and with this message.
    pub up_to: ConversationPosition,
}

/// How many messages a side has not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// Exact, unless there are more.
    pub count: usize,
    /// There are more than these: 1,000 were counted, or 4,000 rows were looked at.
    pub more: bool,
}

impl Unread {
    /// Counts one; whether the count ends here.
    pub(crate) const fn add(&mut self) -> bool {
        if self.count == UNREAD_COUNTED {
            self.more = true;
        } else {
            self.count += 1;
        }
        self.more
    }
}

/// The status shown at `now` of a message that stands in a conversation, so that it was sent.
pub(crate) fn shown_at(steps: &StatusSteps, expires_at: Option<Timestamp>, now: Timestamp) -> Status {
    match status_at(steps, expires_at, now) {
        Shown::At(status) => status,
        Shown::Scheduled => Status::Sent,
    }
}

/// Conversations.
#[async_trait]
pub trait ConversationStore: Send + Sync + 'static {
    /// The active conversation of a pair: its open one, taken up again where it was archived, or a new one. Under
    /// concurrency, from any number of processes, all get the same; one that was closed never comes back. Durable (fsync)
    /// when it returns.
    async fn start(&self, pair: &Pair) -> Result<Started, StoreError>;

    /// A conversation by its id.
    async fn get(&self, id: ConversationId) -> Result<Option<Conversation>, StoreError>;

    /// Whose a conversation is, which never changes.
    async fn pair(&self, id: ConversationId) -> Result<Option<Pair>, StoreError>;

    /// Whose a conversation is, and how it stands now: all that need be known of it to send in it.
    async fn standing(&self, id: ConversationId) -> Result<Option<(Pair, Standing)>, StoreError>;

    /// Archives a conversation, with the messages that it has now: one that comes after them makes it active again.
    async fn archive(&self, id: ConversationId) -> Result<Archived, StoreError>;

    /// Closes a conversation for good, again without effect; `None` where there is none. Durable (fsync) when it returns.
    async fn close(&self, id: ConversationId) -> Result<Option<Conversation>, StoreError>;

    /// A side's conversations, newest activity first.
    async fn list(&self, of: &Principal, query: ListQuery) -> Result<ConversationPage, StoreError>;

    /// Writes messages that were read from a partition of `messages.accepted`, in their order. The same row again changes
    /// nothing. The one at the highest position of a conversation becomes its last message and its activity. A conversation
    /// that the store does not know (it was restored from before it was started) is known from then on, as a closed one.
    async fn append(&self, rows: Vec<ChatRow>) -> Result<(), StoreError>;

    /// A page of what was said, at most `limit` (500 at most) messages.
    async fn history(&self, id: ConversationId, from: ReadFrom, limit: usize) -> Result<ChatPage, StoreError>;

    /// Records how far sides have read. Never moves back.
    async fn mark_read(&self, marks: Vec<ReadMark>) -> Result<(), StoreError>;

    /// For each: how many messages of the other side, behind what the side has read, are on their way or delivered, at
    /// `now`. What was read by itself, cancelled, expired or failed does not count.
    async fn unread(&self, of: &[(ConversationId, Side)], now: Timestamp) -> Result<Vec<Unread>, StoreError>;
}
