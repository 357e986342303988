//! `GET /v1/stream`: the recipient's stream over plain HTTP, for clients that hold no WebSocket.
//!
//! Reading acknowledges nothing. Cursors are those of the WebSocket, and a cursor that does not fit what is kept is
//! answered with a gap, never in silence.

use axum::extract::{RawQuery, State};
use eshaar_model::{Cursor, Epoch, Lane, MessageId, MessageType, Phone, Priority, Timestamp};
use eshaar_schemas::{Media, Message};
use eshaar_service::{Json, Problem};
use eshaar_store::StoreError;
use eshaar_topics::{Topic, flow, partitioner};
use serde::Serialize;
use utoipa::ToSchema;

use crate::caller::Caller;
use crate::query::Parameters;
use crate::{App, openapi, problems, view};

/// A page of a stream, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StreamAnswer {
    messages: Vec<StreamMessage>,
    /// Give it back as `after` for what comes next.
    #[schema(value_type = String)]
    cursor: Cursor,
    /// Whether more waits already.
    more: bool,
    gap: Option<Gap>,
}

/// A message, as the WebSocket's frame `message` has it.
#[derive(Debug, Serialize, ToSchema)]
struct StreamMessage {
    #[schema(value_type = String, format = "uuid")]
    id: MessageId,
    /// It stands for this message and everything before it.
    #[schema(value_type = String)]
    cursor: Cursor,
    #[schema(value_type = openapi::MessageType)]
    r#type: MessageType,
    from: String,
    to: String,
    #[schema(format = "uuid")]
    conversation_id: Option<String>,
    content: String,
    #[schema(value_type = Vec<openapi::Attachment>)]
    media: Vec<Media>,
    #[schema(value_type = openapi::Priority)]
    priority: Priority,
    #[schema(value_type = String, format = DateTime)]
    sent_at: Timestamp,
    reference: Option<String>,
    collapse_key: Option<String>,
}

/// Something may be missing between the cursor given and what follows.
#[derive(Debug, Serialize, ToSchema)]
struct Gap {
    reason: GapReason,
    /// Where what follows begins.
    #[schema(value_type = String)]
    oldest: Cursor,
}

/// Why a cursor does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum GapReason {
    /// Something behind it may be gone.
    TooOld,
    /// The log was restored or replaced.
    OtherEpoch,
    /// It was never sent.
    PastHead,
}

/// Read your stream
///
/// What the WebSocket would send, oldest first; for phones. Reading acknowledges nothing. Without `after` it begins behind
/// what any of the user's devices acknowledged.
#[utoipa::path(
    get, path = "/v1/stream", tag = "messages", operation_id = "read_stream",
    params(openapi::StreamQuery),
    responses((status = 200, description = "A page of the stream", body = StreamAnswer))
)]
pub(crate) async fn read(
    State(app): State<App>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<StreamAnswer>, Problem> {
    let phone = caller.phone()?;
    let parameters = Parameters::parse(query.as_deref(), &["after", "limit"])?;
    let (after, limit) = (parameters.get::<Cursor>("after")?, parameters.limit()?);
    let failed = |error: StoreError| problems::store(&error);
    let (after, gap) = resume(&app, phone, after).await.map_err(failed)?;
    let page = app.deps.store.streams.read(phone, after, limit).await.map_err(failed)?;
    let mut cursor = after;
    let mut messages = Vec::with_capacity(page.rows.len());
    for row in &page.rows {
        cursor.advance(row.position);
        let message = view::decode(&app.deps.codecs, &row.value).await?;
        // Asked for each message: the process may have been stopped in between.
        app.fresh().await?;
        let is_over = row.expires_at.is_some_and(|at| at <= app.deps.clock.now());
        if !is_over && !app.deps.cancelled.takes(&message.sender, message.id, flow::broadcast_of(&message)) {
            messages.push(StreamMessage::of(message, cursor));
        }
    }
    Ok(Json(StreamAnswer { messages, cursor, more: page.more, gap }))
}

impl StreamMessage {
    fn of(message: Message, cursor: Cursor) -> Self {
        Self {
            id: message.id,
            cursor,
            r#type: message.r#type,
            from: message.sender,
            to: message.recipient,
            conversation_id: message.conversation_id,
            content: message.content,
            media: message.media,
            priority: message.priority,
            sent_at: Timestamp::from_millis(message.created_at),
            reference: message.reference,
            collapse_key: message.collapse_key,
        }
    }
}

/// Where reading begins, and the gap before it. Without a cursor: behind what was acknowledged, on any device.
async fn resume(app: &App, phone: Phone, after: Option<Cursor>) -> Result<(Cursor, Option<Gap>), StoreError> {
    let streams = &app.deps.store.streams;
    let epoch = app.deps.log.epoch();
    let oldest = Cursor::start(Epoch(0));
    let Some(after) = after else {
        return Ok((streams.acked(phone).await?.unwrap_or(oldest), None));
    };
    let mut lanes = [LaneBounds::default(); 4];
    if after.epoch == epoch {
        let key = phone.to_string();
        for lane in Lane::ALL {
            let partitions = app.deps.log.partitions(Topic::of_lane(lane));
            let partition = partitioner::partition_of(key.as_bytes(), partitions);
            lanes[lane.index()] = LaneBounds {
                floor: streams.floor(epoch, lane, partition, app.deps.clock.now()).await?,
                head: streams.head(epoch, lane, partition).await?,
            };
        }
    }
    Ok(match judge(after, epoch, &lanes) {
        None => (after, None),
        Some(reason) => (oldest, Some(Gap { reason, oldest })),
    })
}

/// What a lane's partition holds.
#[derive(Clone, Copy, Debug, Default)]
struct LaneBounds {
    floor: u64,
    head: Option<u64>,
}

/// Whether a cursor fits what is kept.
///
/// A stream is read in the order of time over all lanes, so a cursor that is still within what is kept in one lane has
/// seen everything older in the others: it is too old only if it is below the floor of every lane it has been in.
fn judge(cursor: Cursor, epoch: Epoch, lanes: &[LaneBounds; 4]) -> Option<GapReason> {
    if cursor.epoch == Epoch(0) && cursor.offsets == [None; 4] {
        return None;
    }
    if cursor.epoch != epoch {
        return Some(GapReason::OtherEpoch);
    }
    let been = || Lane::ALL.into_iter().filter_map(|lane| Some((cursor.offset(lane)?, lanes[lane.index()])));
    if been().any(|(offset, lane)| lane.head.is_none_or(|head| offset > head)) {
        return Some(GapReason::PastHead);
    }
    let below = |(offset, lane): (u64, LaneBounds)| offset + 1 < lane.floor;
    (been().next().is_some() && been().all(below)).then_some(GapReason::TooOld)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(3);

    fn cursor(offsets: [Option<u64>; 4]) -> Cursor {
        Cursor { epoch: EPOCH, offsets }
    }

    fn lanes(floor: u64, head: u64) -> [LaneBounds; 4] {
        [LaneBounds { floor, head: Some(head) }; 4]
    }

    #[test]
    fn a_cursor_within_what_is_kept_has_no_gap() {
        for offsets in [[Some(10), None, None, None], [Some(9), None, None, None], [None, Some(20), Some(3), None]] {
            assert_eq!(judge(cursor(offsets), EPOCH, &lanes(10, 20)), None, "{offsets:?}");
        }
        assert_eq!(judge(Cursor::start(Epoch(0)), EPOCH, &lanes(10, 20)), None);
    }

    #[test]
    fn a_cursor_that_does_not_fit_says_why() {
        let judged = |offsets| judge(cursor(offsets), EPOCH, &lanes(10, 20));
        assert_eq!(judged([Some(8), Some(2), None, None]), Some(GapReason::TooOld));
        assert_eq!(judged([Some(21), None, None, None]), Some(GapReason::PastHead));
        let other = Cursor { epoch: Epoch(2), ..cursor([Some(10), None, None, None]) };
        assert_eq!(judge(other, EPOCH, &lanes(10, 20)), Some(GapReason::OtherEpoch));
        let empty = [LaneBounds::default(); 4];
        assert_eq!(judge(cursor([Some(0), None, None, None]), EPOCH, &empty), Some(GapReason::PastHead));
    }
}
