//! A session's beginning: presence first, then the stream, so that no message falls between the two.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use eshaar_model::{Cursor, Epoch, Lane, Phone, Status};
use eshaar_schemas::Message;
use eshaar_store::StoreError;

use super::recipient::{Recipient, Window, at_heads};
use super::{End, Session, masked};
use crate::hub::Handle;
use crate::message::{self, Before, Ready};
use crate::protocol::{From, Gap, Hello, Reply};
use crate::receipts;
use crate::shared::Shared;
use crate::socket::Io;
use crate::wire::Frames;

/// Before everything: what a gap names as the oldest. A client may give it back.
const OLDEST: Cursor = Cursor::start(Epoch(0));

/// Where delivery begins.
struct Beginning {
    cursor: Cursor,
    gap: Option<Gap>,
    keeps_place: bool,
}

impl<S: Io> Session<S> {
    pub(super) async fn greet(&mut self, hello: Hello) -> Result<(), End> {
        let shared = Arc::clone(&self.shared);
        let principal = self.handle.principal.clone();
        let device = hello.device.as_deref().unwrap_or("-");
        tracing::debug!(session = self.handle.id, principal = masked(&principal), device, "a client said hello");
        self.handle.go_live();
        enter_presence(&shared, &self.handle).await;
        let mut frames = Frames::new();
        let welcome = Reply::Welcome { session: self.handle.id.to_string(), principal: &principal };
        frames.text(|bytes| welcome.render(bytes));
        let Some(phone) = principal.phone() else {
            frames.text(|bytes| Reply::CaughtUp { cursor: None }.render(bytes));
            return self.write(frames).await;
        };
        let begun = begin(&shared, phone, &hello).await;
        let Beginning { cursor, gap, keeps_place } = begun.map_err(|error| self.failed("begin a stream", &error))?;
        if let Some(reason) = gap {
            let gap = Reply::Gap { reason, oldest: cursor };
            frames.text(|bytes| gap.render(bytes));
        }
        self.recipient = Some(Recipient {
            phone,
            sent: cursor,
            window: Window::new(cursor, shared.options.window),
            behind: true,
            greeted: false,
            keeps_place,
            epoch: shared.epoch(),
        });
        self.write(frames).await
    }
}

/// Enters the session in presence. Where that fails it is tried again soon, by the timer, and the session then reads
/// its stream: until then hints may go elsewhere.
async fn enter_presence(shared: &Shared, handle: &Handle) {
    let entered = match shared.connection(handle) {
        Some(connection) => shared.presence.connect(&handle.principal, connection).await.is_ok(),
        None => false,
    };
    let now = shared.ticks();
    let due = if entered { shared.refresh_due(handle, now) } else { now };
    handle.times.refresh_due.store(due, Relaxed);
}

/// Finds where delivery begins, and records the receipt that a cursor is.
async fn begin(shared: &Shared, phone: Phone, hello: &Hello) -> Result<Beginning, StoreError> {
    let acked = shared.receipts.acked(&*shared.streams, phone).await?.unwrap_or(OLDEST);
    match (hello.after, hello.from) {
        (Some(after), _) => match gap(shared, phone, after).await? {
            None => {
                receipt(shared, phone, acked, after).await?;
                Ok(Beginning { cursor: after, gap: None, keeps_place: true })
            }
            gap => Ok(Beginning { cursor: OLDEST, gap, keeps_place: true }),
        },
        (None, Some(From::Start)) => Ok(Beginning { cursor: OLDEST, gap: None, keeps_place: true }),
        (None, Some(From::Head)) => {
            let cursor = at_heads(shared.epoch(), heads(shared, phone).await?);
            // To acknowledge what is new must not acknowledge what still waits before it.
            let nothing_waits = shared.streams.read(phone, acked, 1).await?.rows.is_empty();
            Ok(Beginning { cursor, gap: None, keeps_place: nothing_waits })
        }
        (None, None) => Ok(Beginning { cursor: acked, gap: None, keeps_place: true }),
    }
}

/// The heads of the partitions that carry the phone's lanes.
async fn heads(shared: &Shared, phone: Phone) -> Result<[Option<u64>; 4], StoreError> {
    let [high, normal, low, bulk] =
        Lane::ALL.map(|lane| shared.streams.head(shared.epoch(), lane, shared.partition(phone, lane)));
    tokio::try_join!(high, normal, low, bulk).map(Into::into)
}

/// The floors of the same partitions.
async fn floors(shared: &Shared, phone: Phone) -> Result<[u64; 4], StoreError> {
    let now = shared.clock.now();
    let [high, normal, low, bulk] =
        Lane::ALL.map(|lane| shared.streams.floor(shared.epoch(), lane, shared.partition(phone, lane), now));
    tokio::try_join!(high, normal, low, bulk).map(Into::into)
}

/// Whether a cursor does not fit what is held.
///
/// A cursor is too old when something behind it may be gone. One lane that is recent enough proves that the cursor is:
/// what stands behind it in the other lanes came later still, so it is kept too.
async fn gap(shared: &Shared, phone: Phone, after: Cursor) -> Result<Option<Gap>, StoreError> {
    if after == OLDEST {
        return Ok(None);
    }
    if after.epoch != shared.epoch() {
        return Ok(Some(Gap::OtherEpoch));
    }
    let (heads, floors) = tokio::try_join!(heads(shared, phone), floors(shared, phone))?;
    if after.offsets.iter().zip(heads).any(|(offset, head)| *offset > head) {
        return Ok(Some(Gap::PastHead));
    }
    let (mut is_recent, mut may_miss) = (false, false);
    for (lane, floor) in Lane::ALL.into_iter().zip(floors) {
        let next = after.offset(lane).map_or(0, |offset| offset.saturating_add(1));
        is_recent |= after.offset(lane).is_some() && next >= floor;
        may_miss |= next < floor;
    }
    Ok((may_miss && !is_recent).then_some(Gap::TooOld))
}

/// A cursor that a client gives back is a receipt for everything before it: what was not acknowledged of it becomes
/// delivered, but for what has expired or was taken back.
async fn receipt(shared: &Shared, phone: Phone, acked: Cursor, after: Cursor) -> Result<(), StoreError> {
    let now = shared.clock.now();
    let mut read = acked;
    if acked.max(after) == acked {
        return Ok(());
    }
    loop {
        let page = shared.streams.read(phone, read, shared.options.page).await?;
        let mut records = smallvec::SmallVec::new();
        for row in page.rows {
            read.advance(row.position);
            let was_left_out = shared.cancelled.covers(row.id) || row.expires_at.is_some_and(|at| at <= now);
            if was_left_out || !after.covers(row.position) {
                continue;
            }
            let Ok(message) = message::decode::<Message>(&shared.codecs, &row.value).await else { continue };
            let subject = Ready::new(message, row.position, Before::Unknown).subject;
            if shared.cancelled.takes(subject.id, subject.broadcast) {
                continue;
            }
            records.extend(receipts::status(shared, &subject, &phone.into(), Status::Delivered, now));
        }
        shared.meters.acked.increment(records.len() as u64);
        shared.receipts.add(records, None);
        shared.receipts.room().await;
        if !page.more || read.max(after) == read {
            break;
        }
    }
    shared.receipts.add(smallvec::SmallVec::new(), Some((phone, acked.max(after))));
    Ok(())
}
