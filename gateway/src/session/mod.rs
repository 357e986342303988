//! One client's session: reads its frames, one handler each, and sends it what waits for it. One task, no timer, and
//! next to no memory while nothing happens. What it does in conversations is in `talking`, what it sends
//! unasked in `sending`.
//!
//! It never writes history; what it was sent and what it acknowledged leave through [`crate::receipts`].

mod allowance;
mod catch_up;
mod hello;
mod reading;
mod recipient;
mod sending;
mod talking;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use eshaar_auth::operations::{self, Denied};
use eshaar_auth::{AuthError, Identity};
use eshaar_model::{Phone, Principal, Status};
use eshaar_service::metrics as names;
use eshaar_topics::NewRecord;
use futures_util::FutureExt;
use smallvec::SmallVec;

use crate::chat::{self, Chat, Done};
use crate::close::Close;
use crate::hub::Handle;
use crate::message::Subject;
use crate::protocol::{BadFrame, Reply, Request, shortened};
use crate::receipts;
use crate::session::allowance::Allowance;
use crate::session::catch_up::{Catching, Read};
use crate::session::recipient::{Recipient, Window};
use crate::shared::Shared;
use crate::socket::{Ended, Io, Received, Socket};
use crate::wire::Frames;

/// Why a session is over.
#[derive(Debug)]
enum End {
    /// The client closed, or the connection broke.
    Gone,
    /// We close it.
    Close(Close, Option<String>),
    /// Too many wait before it: it is to come back after that time.
    Away(Duration),
}

impl From<Ended> for End {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Gone => Self::Gone,
            Ended::TooLarge => Self::Close(Close::FrameTooLarge, None),
            Ended::Binary => Self::Close(Close::BinaryFrame, None),
            Ended::Malformed(detail) => Self::Close(Close::BadFrame, Some(shortened(detail))),
        }
    }
}

impl From<BadFrame> for End {
    fn from(BadFrame(detail): BadFrame) -> Self {
        Self::Close(Close::BadFrame, Some(detail.into_owned()))
    }
}

/// A session over some byte stream.
pub(crate) struct Session<S> {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    /// As the credential that was shown last says.
    identity: Arc<Identity>,
    socket: Socket<S>,
    /// Of frames from the client.
    allowance: Allowance,
    /// Of messages that are looked up for receipts.
    look_ups: Allowance,
    /// What a phone's session knows of its stream, once it has said hello.
    recipient: Option<Recipient>,
    /// While it is not at the head of its stream, or may not be.
    catching: Option<Box<Catching>>,
    /// What it does in conversations, while it does.
    chat: Option<Box<Chat>>,
    guard: Guard,
}

/// What a session wakes for.
enum Event {
    Received(Result<Received, Ended>),
    Done(Done),
    Read(Read),
    Woken,
}

/// Takes the session out of the hub even where its task panics or is dropped.
struct Guard(Arc<Shared>, Arc<Handle>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.hub.leave(&self.1);
    }
}

/// Begins the session of a client over an upgraded connection; `None` where it may not have one.
pub(crate) async fn open<S: Io>(shared: Arc<Shared>, stream: S, identity: Identity) -> Option<Box<Session<S>>> {
    let (options, now) = (&shared.options, shared.ticks());
    let socket = Socket::new(stream, options.frame_bytes);
    let (principal, limit) = (identity.principal.clone(), options.sessions_per_principal);
    let entered = shared.hub.enter(principal, identity.expires_at, now, limit);
    let Ok(handle) = entered else {
        farewell(&shared, socket, Close::TooManySessions, None, None).await;
        return None;
    };
    shared.meters.opened.increment(1);
    let allowance = Allowance::new(options.frames_burst, now);
    let look_ups = Allowance::new(reading::burst(options.look_ups_per_s), now);
    let guard = Guard(Arc::clone(&shared), Arc::clone(&handle));
    let identity = Arc::new(identity);
    let (recipient, catching, chat) = (None, None, None);
    Some(Box::new(Session { shared, handle, identity, socket, allowance, look_ups, recipient, catching, chat, guard }))
}

/// Serves the client whose session `opening` begins, until it ends. What is needed only to begin or to end is on the heap
/// for that time alone: this is the memory of an idle session.
pub(crate) async fn run<S: Io>(opening: impl Future<Output = Option<Box<Session<S>>>> + Send + Unpin) {
    let opened = {
        let opening = opening;
        opening.await
    };
    let Some(mut session) = opened else { return };
    // A drain that began while this connection was being upgraded has not seen the session.
    let end = if session.shared.ready() { session.serve().await } else { End::Close(Close::ShuttingDown, None) };
    Box::pin(session.leave(end)).await;
}

/// Says goodbye and closes. `away`: how long the client is to stay away, where that is known.
async fn farewell<S: Io>(
    shared: &Shared,
    socket: Socket<S>,
    close: Close,
    detail: Option<&str>,
    away: Option<Duration>,
) {
    metrics::counter!(names::GATEWAY_CLOSED, "code" => close.code().to_string()).increment(1);
    let spread = shared.options.reconnect_spread_ms;
    let away = away.map(|away| u64::try_from(away.as_millis()).unwrap_or(u64::MAX));
    let bye = Reply::Bye {
        code: close.code(),
        reason: close.reason(),
        detail,
        reconnect_after_ms: close.reconnects().then(|| away.unwrap_or_else(|| rand::random_range(0..=spread))),
    };
    let mut frames = Frames::new();
    frames.text(|bytes| bye.render(bytes));
    frames.close(close.code(), close.reason());
    socket.hang_up(frames.as_bytes()).await;
}

impl<S: Io> Session<S> {
    async fn serve(&mut self) -> End {
        loop {
            if let Err(end) = self.send_what_waits().await {
                return end;
            }
            let (handle, is_paused) = (Arc::clone(&self.handle), self.is_paused());
            let event = tokio::select! {
                biased;
                done = chat::done(&mut self.chat) => Event::Done(done),
                read = catch_up::read(&mut self.catching) => Event::Read(read),
                received = self.socket.receive(), if !is_paused => Event::Received(received),
                () = handle.woken() => Event::Woken,
            };
            let taken = match event {
                Event::Done(done) => Box::pin(self.finish(done)).await,
                Event::Read(read) => Box::pin(self.take_read(read)).await,
                Event::Received(received) => self.take(received).await,
                Event::Woken => continue,
            };
            if let Err(end) = taken {
                return end;
            }
            // Acks that came together make room together.
            while !self.is_paused()
                && let Some(received) = self.socket.receive().now_or_never()
            {
                if let Err(end) = self.take(received).await {
                    return end;
                }
            }
        }
    }

    /// A key that was revoked, or may do less now, holds for those who are connected too. One that cannot be looked at is
    /// taken to be as it was.
    async fn look_at_key(&mut self) -> Result<(), End> {
        match self.shared.credentials.still(&self.identity).await {
            Ok(identity) if identity != *self.identity => self.identity = Arc::new(identity),
            Ok(_) | Err(AuthError::Unavailable(_) | AuthError::KeyUnknownYet { .. }) => {}
            Err(error) => return Err(End::Close(Close::TokenInvalid, Some(error.to_string()))),
        }
        Ok(())
    }

    /// A failure of what we rest on: the client comes back, and finds everything.
    fn failed(&self, action: &str, error: &dyn std::error::Error) -> End {
        tracing::warn!(session = self.handle.id, action, %error, "a session failed");
        End::Close(Close::InternalError, None)
    }

    /// Takes a frame. Acknowledgements, which are most of what clients send, are done here; what has to wait for
    /// somebody, or to be answered, needs more room than an idle session should hold.
    async fn take(&mut self, received: Result<Received, Ended>) -> Result<(), End> {
        self.handle.times.heard.store(self.shared.ticks(), Relaxed);
        let received = received?;
        let text = match received {
            Received::Text(text) => text,
            other => return Box::pin(self.take_other(other)).await,
        };
        self.spend_frames(1)?;
        let acked = match Request::parse(&text)? {
            Request::Ack { cursor, ids } if self.recipient.is_some() => match cursor {
                Some(cursor) => self.acknowledge(|window| window.ack_to(cursor)),
                None => self.acknowledge(|window| window.ack_ids(&ids.unwrap_or_default())),
            },
            request => return Box::pin(self.handle_request(request)).await,
        };
        if acked && self.shared.receipts.is_full() {
            Box::pin(self.shared.receipts.room()).await;
        }
        Ok(())
    }

    /// Takes what is no message to be understood.
    async fn take_other(&mut self, received: Received) -> Result<(), End> {
        match received {
            Received::TooLarge { bytes, reference } => {
                let limit = self.shared.options.frame_bytes;
                // To pass over many large frames costs as much as to read many small ones.
                self.spend_frames(bytes.div_ceil(limit.max(1)) as u32)?;
                let detail = format!("a frame has at most {limit} bytes; this one had {bytes}, and was passed over");
                self.error(reference.as_deref(), "frame_too_large", &detail, false).await
            }
            Received::Ping(payload) => {
                self.spend_frames(1)?;
                let mut frames = Frames::new();
                frames.pong(&payload);
                self.write(frames).await
            }
            Received::Text(_) | Received::Pong => self.spend_frames(1),
        }
    }

    async fn handle_request(&mut self, request: Request) -> Result<(), End> {
        let greeted = self.handle.is_live();
        match request {
            Request::Hello(_) if greeted => Err(End::Close(Close::AlreadyGreeted, None)),
            Request::Hello(hello) => self.greet(hello).await,
            Request::Ping {} => self.reply(&Reply::Pong).await,
            Request::Renew { access_token } => self.renew(&access_token).await,
            _ if !greeted => Err(BadFrame("say hello first".into()).into()),
            request => match operations::client_frame(request.op()).map(|row| row.check(&self.identity)) {
                Some(Ok(())) => self.handle_allowed(request).await,
                denied => self.deny(request.reference(), denied.and_then(Result::err)).await,
            },
        }
    }

    /// Handles a frame that the table of operations allows.
    async fn handle_allowed(&mut self, request: Request) -> Result<(), End> {
        match request {
            // Nothing was sent to a phone that has not begun.
            Request::Ack { .. } if self.handle.principal.phone().is_some() => Ok(()),
            Request::Ack { ids: Some(ids), .. } => self.reached(ids, Status::Delivered).await,
            Request::Ack { .. } => {
                self.error(None, "not_a_recipient", "only a phone has a stream to acknowledge; give `ids`", false).await
            }
            Request::Read { ids: Some(ids), .. } if self.handle.principal.phone().is_some() => self.read(ids).await,
            Request::Read { ids: Some(ids), .. } => self.reached(ids, Status::Read).await,
            request => self.talk(request).await,
        }
    }

    async fn deny(&mut self, reference: Option<&str>, denied: Option<Denied>) -> Result<(), End> {
        let detail = match denied {
            Some(Denied::Permission(permissions)) => {
                let names: Vec<_> = permissions.iter().map(|permission| format!("`{permission}`")).collect();
                format!("this needs an API key with the permission {}", names.join(" or "))
            }
            _ => "this credential does not allow it".to_owned(),
        };
        self.error(reference, "permission_missing", &detail, false).await
    }

    /// Records what `ack` acknowledges; returns whether that is anything.
    fn acknowledge(&mut self, ack: impl FnOnce(&mut Window) -> Vec<Arc<Subject>>) -> bool {
        let Some(recipient) = &mut self.recipient else { return false };
        let acked = ack(&mut recipient.window);
        if acked.is_empty() {
            return false;
        }
        let phone = recipient.phone;
        let place = recipient.place().map(|cursor| (phone, cursor));
        // What acknowledges something is bounded by what was sent.
        self.allowance.give();
        self.shared.meters.acked.increment(acked.len() as u64);
        let records = self.statuses(&acked, phone, Status::Delivered);
        self.shared.receipts.add(records, place);
        true
    }

    fn statuses(&self, subjects: &[Arc<Subject>], phone: Phone, status: Status) -> SmallVec<[NewRecord; 2]> {
        let (now, phone) = (self.shared.clock.now(), phone.into());
        subjects.iter().filter_map(|subject| receipts::status(&self.shared, subject, &phone, status, now)).collect()
    }

    async fn renew(&mut self, credential: &str) -> Result<(), End> {
        match self.shared.credentials.authenticate(credential).await {
            Ok(identity) if identity.principal == self.handle.principal => {
                let expires_at = identity.expires_at;
                let millis = expires_at.map_or(0, eshaar_model::Timestamp::as_millis);
                self.handle.times.expires_ms.store(millis, Relaxed);
                self.identity = Arc::new(identity);
                self.reply(&Reply::Renewed { expires_at }).await
            }
            Ok(_) => Err(End::Close(Close::TokenInvalid, Some("the token is of another principal".to_owned()))),
            Err(AuthError::Unavailable(_) | AuthError::KeyUnknownYet { .. }) => {
                self.error(None, "unavailable", "tokens cannot be checked now", true).await
            }
            Err(error) => Err(End::Close(Close::TokenInvalid, Some(error.to_string()))),
        }
    }

    async fn error(&mut self, reference: Option<&str>, code: &str, detail: &str, temporary: bool) -> Result<(), End> {
        let (field, retry_after_ms) = (None, None);
        self.reply(&Reply::Error { r#ref: reference, code, detail, temporary, field, retry_after_ms }).await
    }

    async fn reply(&mut self, reply: &Reply<'_>) -> Result<(), End> {
        let mut frames = Frames::new();
        frames.text(|bytes| reply.render(bytes));
        self.write(frames).await
    }

    /// Writes frames, bounded by the shared timer: what takes too long ends the session.
    async fn write(&mut self, frames: Frames) -> Result<(), End> {
        if frames.is_empty() {
            return Ok(());
        }
        let (handle, now) = (&self.handle, self.shared.ticks());
        let written = {
            let mut write = std::pin::pin!(self.socket.write(frames.as_bytes()));
            if let Some(written) = write.as_mut().now_or_never() {
                written
            } else {
                handle.times.writing.store(now, Relaxed);
                let written = loop {
                    tokio::select! {
                        written = write.as_mut() => break written,
                        () = handle.woken() => {}
                    }
                    if handle.is_cut() {
                        return Err(End::Close(Close::TooSlow, None));
                    }
                };
                handle.times.writing.store(0, Relaxed);
                // What woke us may be more than a reason to close.
                handle.wake();
                written
            }
        };
        written.map_err(End::from)
    }

    fn spend_frames(&mut self, count: u32) -> Result<(), End> {
        let options = &self.shared.options;
        self.allowance.earn(options.frames_per_s, options.frames_burst, self.shared.ticks());
        if self.allowance.spend(count) { Ok(()) } else { Err(End::Close(Close::TooManyFrames, None)) }
    }

    async fn leave(self: Box<Self>, end: End) {
        let Self { shared, handle, socket, guard, .. } = *self;
        drop(guard);
        if handle.is_live()
            && let Some(connection) = shared.connection(&handle)
        {
            // What is left behind lapses by itself.
            let _ = shared.presence.disconnect(&handle.principal, connection).await;
        }
        match end {
            // In the middle of a frame nothing more can be said.
            End::Close(Close::TooSlow, _) => {
                metrics::counter!(names::GATEWAY_CLOSED, "code" => Close::TooSlow.code().to_string()).increment(1);
            }
            End::Close(close, detail) => farewell(&shared, socket, close, detail.as_deref(), None).await,
            End::Away(away) => farewell(&shared, socket, Close::Overloaded, None, Some(away)).await,
            End::Gone => metrics::counter!(names::GATEWAY_CLOSED, "code" => "client").increment(1),
        }
    }
}

/// The principal as logs may have it.
fn masked(principal: &Principal) -> String {
    principal.phone().map_or_else(|| principal.to_string(), Phone::masked)
}
