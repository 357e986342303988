//! A session's beginning: presence first, then the stream, so that no message falls between the two. The stream is read when
//! the session's turn has come: until then it waits, connected and welcomed.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use eshaar_model::{Cursor, Epoch, Lane, Phone, Status};
use eshaar_schemas::Message;
use eshaar_store::{StoreError, StreamPage};

use super::catch_up::Catching;
use super::recipient::at_heads;
use super::{End, Session, masked};
use crate::admission::{Class, Turn};
use crate::edges::Wanted;
use crate::hub::Handle;
use crate::message::{self, Before, Ready};
use crate::protocol::{From, Gap, Hello, Reply};
use crate::receipts;
use crate::shared::Shared;
use crate::socket::Io;
use crate::wire::Frames;

/// Before everything: what a gap names as the oldest. A client may give it back.
pub(super) const OLDEST: Cursor = Cursor::start(Epoch(0));

/// Where delivery begins.
#[derive(Debug)]
pub(super) struct Beginning {
    pub(super) cursor: Cursor,
    pub(super) gap: Option<Gap>,
    pub(super) keeps_place: bool,
}

impl<S: Io> Session<S> {
    pub(super) async fn greet(&mut self, hello: Hello) -> Result<(), End> {
        let shared = Arc::clone(&self.shared);
        let principal = self.handle.principal.clone();
        if principal.phone().is_some()
            && let Some(away) = shared.admission.refusal()
        {
            return Err(End::Away(away));
        }
        let device = hello.device.as_deref().unwrap_or("-");
        tracing::debug!(session = self.handle.id, principal = masked(&principal), device, "a client said hello");
        // Nobody else enters it meanwhile.
        self.handle.times.refresh_due.store(u32::MAX, Relaxed);
        self.handle.go_live();
        enter_presence(&shared, &self.handle).await;
        let mut frames = Frames::new();
        let welcome = Reply::Welcome { session: self.handle.id.to_string(), principal: &principal };
        frames.text(|bytes| welcome.render(bytes));
        if principal.phone().is_some() {
            self.catching = Some(Catching::beginning(hello));
        } else {
            frames.text(|bytes| Reply::CaughtUp { cursor: None }.render(bytes));
        }
        self.write(frames).await
    }
}

/// Enters the session in presence. Where that fails it is tried again soon, and the session then reads its stream: until then
/// hints may go elsewhere.
async fn enter_presence(shared: &Shared, handle: &Handle) {
    let entered = match shared.connection(handle) {
        Some(connection) => shared.presence.connect(&handle.principal, connection).await.is_ok(),
        None => false,
    };
    let now = shared.ticks();
    let due = if entered { shared.refresh_due(handle, now) } else { now };
    if !entered {
        handle.mark_absent();
    }
    handle.times.confirmed.store(now, Relaxed);
    handle.times.refresh_due.store(due, Relaxed);
}

/// Finds where delivery begins, records the receipt that a cursor is, and reads the first page, when its turn has come.
pub(super) async fn begin(shared: &Shared, phone: Phone, hello: &Hello) -> Result<(Beginning, StreamPage), StoreError> {
    let mut turn = Some(shared.admission.turn(Class::Hello).await);
    let begun = begin_in(shared, phone, hello, &mut turn).await;
    if let Some(turn) = turn {
        turn.end(&begun, begun.as_ref().map_or(0, |(_, page)| page.rows.len()));
    }
    begun
}

async fn begin_in(
    shared: &Shared,
    phone: Phone,
    hello: &Hello,
    turn: &mut Option<Turn>,
) -> Result<(Beginning, StreamPage), StoreError> {
    let beginning = beginning(shared, phone, hello, turn).await?;
    let page = shared.streams.read(phone, beginning.cursor, shared.options.page).await?;
    Ok((beginning, page))
}

async fn beginning(
    shared: &Shared,
    phone: Phone,
    hello: &Hello,
    turn: &mut Option<Turn>,
) -> Result<Beginning, StoreError> {
    let acked = shared.receipts.acked(&*shared.streams, phone).await?.unwrap_or(OLDEST);
    match (hello.after, hello.from) {
        (Some(after), _) => match gap(shared, phone, after).await? {
            None => {
                receipt(shared, phone, (acked, after), turn).await?;
                Ok(Beginning { cursor: after, gap: None, keeps_place: true })
            }
            gap => Ok(Beginning { cursor: OLDEST, gap, keeps_place: true }),
        },
        (None, Some(From::Start)) => Ok(Beginning { cursor: OLDEST, gap: None, keeps_place: true }),
        (None, Some(From::Head)) => {
            let edges = shared.edges.of(shared, phone, [Wanted::Fresh; 4]).await?;
            let cursor = at_heads(shared.epoch(), edges.map(|edge| edge.head));
            // To acknowledge what is new must not acknowledge what still waits before it.
            let nothing_waits = shared.streams.read(phone, acked, 1).await?.rows.is_empty();
            Ok(Beginning { cursor, gap: None, keeps_place: nothing_waits })
        }
        (None, None) => Ok(Beginning { cursor: acked, gap: None, keeps_place: true }),
    }
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
    let edges = shared.edges.of(shared, phone, after.offsets.map(Wanted::Covering)).await?;
    if after.offsets.iter().zip(edges).any(|(offset, edge)| *offset > edge.head) {
        return Ok(Some(Gap::PastHead));
    }
    let (mut is_recent, mut may_miss) = (false, false);
    for (lane, edge) in Lane::ALL.into_iter().zip(edges) {
        let next = after.offset(lane).map_or(0, |offset| offset.saturating_add(1));
        is_recent |= after.offset(lane).is_some() && next >= edge.floor;
        may_miss |= next < edge.floor;
    }
    Ok((may_miss && !is_recent).then_some(Gap::TooOld))
}

/// A cursor that a client gives back is a receipt for everything before it: what was not acknowledged of it becomes
/// delivered, but for what has expired or was taken back.
///
/// Others have their turns between its pages.
async fn receipt(
    shared: &Shared,
    phone: Phone,
    (acked, after): (Cursor, Cursor),
    turn: &mut Option<Turn>,
) -> Result<(), StoreError> {
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
            if row.expires_at.is_some_and(|at| at <= now) || !after.covers(row.position) {
                continue;
            }
            let Ok(message) = message::decode::<Message>(&shared.codecs, &row.value).await else { continue };
            let subject = Ready::new(message, row.position, Before::Unknown).subject;
            if shared.cancelled.takes(&subject.sender, subject.id, subject.broadcast) {
                continue;
            }
            records.extend(receipts::status(shared, &subject, &phone.into(), Status::Delivered, now));
        }
        shared.meters.acked.increment(records.len() as u64);
        shared.receipts.add(records, None);
        if shared.receipts.is_full() {
            turn.take();
            shared.receipts.room().await;
        }
        if !page.more || read.max(after) == read {
            break;
        }
        *turn = Some(match turn.take() {
            Some(turn) => turn.again(Class::Later).await,
            None => shared.admission.turn(Class::Later).await,
        });
    }
    shared.receipts.add(smallvec::SmallVec::new(), Some((phone, acked.max(after))));
    Ok(())
}
