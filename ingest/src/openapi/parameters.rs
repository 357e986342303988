//! Parameters of the API: in paths, queries and headers.

use utoipa::IntoParams;

use super::{ConversationStatus, DeadLetterState, MessageType, Status};

#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it describes what `idempotency` reads")]
pub(crate) struct IdempotencyKey {
    /// However often a request is repeated with the same key and the same meaning, within 24 hours, it is one message, with
    /// one answer. How its JSON is spelled makes no difference.
    #[param(
        rename = "Idempotency-Key",
        pattern = "^[!-~]{1,128}$",
        min_length = 1,
        max_length = 128,
        nullable = false
    )]
    idempotency_key: Option<String>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `bulk` reads")]
pub(crate) struct BulkQuery {
    /// `summary`: only lines that are refused have a result, and the total tells the rest. `all` when it is left out, unless
    /// the header `Prefer` says `return=minimal`.
    #[param(pattern = "^(all|summary)$", nullable = false)]
    answers: Option<String>,
    /// The upload begins behind this line of the file: its first line has the next number, and with an Idempotency-Key each
    /// line is the message that it would be if the whole file was sent. 0 when it is left out.
    #[param(minimum = 0, maximum = 15_000_000, nullable = false)]
    after_line: Option<u32>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it describes what `bulk` reads")]
pub(crate) struct PreferHeader {
    /// `return=minimal` (RFC 7240) is as good as `answers=summary`.
    #[param(rename = "Prefer", nullable = false)]
    prefer: Option<String>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes the path")]
pub(crate) struct BroadcastIdPath {
    /// The broadcast.
    #[param(format = "uuid", example = "019b7600-0000-7000-8000-000000000000")]
    id: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes the path")]
pub(crate) struct AudienceNamePath {
    /// The audience.
    #[param(pattern = "^[A-Za-z0-9._-]{1,64}$", example = "card-holders")]
    name: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `broadcasts` reads")]
pub(crate) struct PageQuery {
    /// The `next_cursor` of the page before.
    #[param(pattern = "^[A-Za-z0-9_-]{23}$", nullable = false)]
    cursor: Option<String>,
    /// Most items of the page; 50 when it is left out.
    #[param(minimum = 1, maximum = 100, nullable = false)]
    limit: Option<u32>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes the path")]
pub(crate) struct WebhookIdPath {
    /// The webhook.
    #[param(format = "uuid", example = "019b7600-0000-7000-8000-000000000000")]
    id: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes the path")]
pub(crate) struct MessageIdPath {
    /// The message.
    #[param(format = "uuid", example = "019b7600-0000-7000-8000-000000000000")]
    id: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes the path")]
pub(crate) struct ConversationIdPath {
    /// The conversation.
    #[param(format = "uuid", example = "019b7600-0000-7000-8000-000000000000")]
    id: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `conversations` reads")]
pub(crate) struct ConversationListQuery {
    /// At this status only.
    #[param(inline, nullable = false)]
    status: Option<ConversationStatus>,
    /// The `next_cursor` of the page before.
    #[param(pattern = "^[A-Za-z0-9_-]{24,40}$", nullable = false)]
    cursor: Option<String>,
    /// Most conversations of the page; 50 when it is left out.
    #[param(minimum = 1, maximum = 100, nullable = false)]
    limit: Option<u32>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `conversations` reads")]
pub(crate) struct HistoryQuery {
    /// A position: the newest messages before it. Either this or `after`.
    #[param(pattern = "^[A-Za-z0-9_-]{4,22}$", nullable = false)]
    before: Option<String>,
    /// A position, or `start`: the oldest messages behind it. Either this or `before`.
    #[param(pattern = "^[A-Za-z0-9_-]{4,22}$", nullable = false)]
    after: Option<String>,
    /// Most messages of the page; 50 when it is left out.
    #[param(minimum = 1, maximum = 100, nullable = false)]
    limit: Option<u32>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `messages` reads")]
pub(crate) struct ListQuery {
    /// Of this type only.
    #[param(inline, nullable = false)]
    r#type: Option<MessageType>,
    /// At this status only.
    #[param(inline, nullable = false)]
    status: Option<Status>,
    /// To this phone only. In a query its `+` is written `%2B`.
    #[param(pattern = r"^\+[1-9][0-9]{6,14}$", nullable = false)]
    to: Option<String>,
    /// The `next_cursor` of the page before.
    #[param(pattern = "^[A-Za-z0-9_-]{23}$", nullable = false)]
    cursor: Option<String>,
    /// Most messages of the page; 50 when it is left out.
    #[param(minimum = 1, maximum = 100, nullable = false)]
    limit: Option<u32>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `stream` reads")]
pub(crate) struct StreamQuery {
    /// A cursor, of here or of the WebSocket.
    #[param(pattern = "^[A-Za-z0-9_-]{7,80}$", nullable = false)]
    after: Option<String>,
    /// Most messages of the page; 50 when it is left out.
    #[param(minimum = 1, maximum = 100, nullable = false)]
    limit: Option<u32>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes the path")]
pub(crate) struct DeadLetterIdPath {
    /// The dead letter.
    #[param(format = "uuid", example = "0f0e0d0c-0b0a-8908-8706-050403020100")]
    id: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it describes the path")]
pub(crate) struct TaskIdPath {
    /// The task.
    #[param(format = "uuid", example = "019b7600-0000-7000-8000-000000000000")]
    id: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `admin` reads")]
pub(crate) struct DeadLetterListQuery {
    /// Of this stage only.
    #[param(nullable = false, example = "route")]
    stage: Option<String>,
    /// With this code only.
    #[param(nullable = false, example = "undecodable")]
    code: Option<String>,
    /// Of messages of this business only.
    #[param(pattern = "^[a-z0-9][a-z0-9_-]{0,63}$", nullable = false)]
    business: Option<String>,
    /// In this state only.
    #[param(inline, nullable = false)]
    state: Option<DeadLetterState>,
    /// Given up on at this time or later, RFC 3339.
    #[param(format = DateTime, nullable = false)]
    from: Option<String>,
    /// Given up on before this time, RFC 3339.
    #[param(format = DateTime, nullable = false)]
    until: Option<String>,
    /// The `next_cursor` of the page before.
    #[param(pattern = "^[A-Za-z0-9_-]{34}$", nullable = false)]
    cursor: Option<String>,
    /// Most dead letters of the page; 50 when it is left out.
    #[param(minimum = 1, maximum = 100, nullable = false)]
    limit: Option<u32>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `admin` reads")]
pub(crate) struct AuditListQuery {
    /// Of this actor only.
    #[param(nullable = false, example = "operators:4Zq0aTnB2m1x")]
    actor: Option<String>,
    /// Done at this time or later, RFC 3339.
    #[param(format = DateTime, nullable = false)]
    from: Option<String>,
    /// Done before this time, RFC 3339.
    #[param(format = DateTime, nullable = false)]
    until: Option<String>,
    /// The `next_cursor` of the page before.
    #[param(pattern = "^[A-Za-z0-9_-]{23}$", nullable = false)]
    cursor: Option<String>,
    /// Most entries of the page; 50 when it is left out.
    #[param(minimum = 1, maximum = 100, nullable = false)]
    limit: Option<u32>,
}
