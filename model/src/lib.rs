//! The rules of eshaar, pure: no IO, no clock, no engine.
//!
//! Everything that arrives is parsed here, once, into a type that cannot hold a wrong value; nothing behind the edge
//! checks again.

pub mod content;
pub mod conversation;
pub mod delivery_status;
pub mod ids;
pub mod limits;
pub mod message;
pub mod permission;
pub mod phone;
pub mod position;
pub mod principal;
pub mod rate;
pub mod retry;
pub mod secret;
pub mod text;
pub mod time;

pub use content::{Content, ContentError};
pub use conversation::{
    ActivityCursor, ArchivedBehind, Conversation, ConversationClosed, ConversationPosition, ConversationStatus,
    LastMessage, Pair, PairError, SendRefused, Side, Standing,
};
pub use delivery_status::{Shown, Status, StatusSteps};
pub use ids::{AuditId, BroadcastId, ConversationId, IdError, MOST_RECIPIENTS, MessageId, RecipientsId, WebhookId};
pub use message::{Lane, MessageKind, MessageKindError, MessageType, Priority, ReplyRefused};
pub use permission::Permission;
pub use phone::Phone;
pub use position::{Cursor, Epoch, StreamPosition};
pub use principal::{BusinessId, Principal};
pub use rate::{Per, Rate, RateError};
pub use retry::Attempt;
pub use secret::Secret;
pub use time::{Clock, Timestamp};
