//! The HTTP listener: accepts connections, bounds them in number and in time, and ends them in order
//! ([ADR 0029](../../../docs/adr/0029-connections-without-a-credential-make-room.md)).
//!
//! `places` (how many there may be) · `socket` (how long each may wait) · `address` (whose they are, behind proxies).
//!
//! HTTP/1.1 only: every client here is behind a proxy that speaks it, or upgrades to a WebSocket. A connection keeps
//! nothing of ours once it is upgraded.

mod address;
mod places;
mod socket;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, Request, StatusCode};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use crate::Problem;
use address::{AddressPlace, Addresses};
pub use address::{Cidr, CidrError};
pub use places::Connection;
use places::{Answering, Places, State};
use socket::{Socket, Timeouts};

/// Longest prefix of paths that a proxy may announce, in bytes.
const PREFIX_BYTES: usize = 128;

/// How the listener treats connections, and what it tells of itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Most connections on which a valid credential was shown; WebSockets have a limit of their own.
    pub max_connections: usize,
    /// Most connections without a credential. One more closes the oldest of them.
    pub max_unauthenticated_connections: usize,
    /// Most connections of one address; of a trusted proxy's client, requests at a time. 0: no limit.
    pub max_connections_per_address: usize,
    /// How long a client may take to send the head of a request, in seconds.
    pub header_timeout_s: u64,
    /// How long a connection may be idle between two requests, in seconds.
    pub keep_alive_timeout_s: u64,
    /// How long a client may not read what is written to it, in seconds.
    pub write_timeout_s: u64,
    /// Proxies whose `X-Forwarded-For`, `Forwarded` and `X-Forwarded-Prefix` are believed.
    pub trusted_proxies: Vec<Cidr>,
    /// Origins whose pages may call the API, or `*`. Empty: none.
    pub cors_origins: Vec<String>,
    /// Path that a proxy serves this under and takes off again, e.g. `/eshaar`. Empty: none, or what a trusted proxy says.
    pub public_prefix: String,
}

/// The path that a proxy serves this under (an extension of the request, where there is one): `/eshaar`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicPrefix(pub Arc<str>);

/// What the connections of a listener share.
struct Shared {
    router: Router,
    places: Arc<Places>,
    addresses: Arc<Addresses>,
    timeouts: Timeouts,
    trusted: Vec<Cidr>,
    prefix: Option<PublicPrefix>,
}

/// Serves `router` until `shutdown`, then lets requests that are being answered end, for at most `grace`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    options: &Options,
    shutdown: CancellationToken,
    grace: Duration,
) {
    let shared = Arc::new(Shared {
        router,
        places: Places::new(options.max_connections, options.max_unauthenticated_connections),
        addresses: Addresses::new(options.max_connections_per_address),
        timeouts: Timeouts {
            head: Duration::from_secs(options.header_timeout_s),
            idle: Duration::from_secs(options.keep_alive_timeout_s),
            write: Duration::from_secs(options.write_timeout_s),
        },
        trusted: options.trusted_proxies.clone(),
        prefix: prefix(&options.public_prefix),
    });
    let answering = TaskTracker::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener, &shared.places) => accepted,
            () = shutdown.cancelled() => break,
        };
        let peer = peer.ip().to_canonical();
        let is_trusted = shared.trusted.iter().any(|range| range.contains(peer));
        // A proxy's connections are of many clients: their requests are counted instead.
        let place = if is_trusted { Some(AddressPlace::UNCOUNTED) } else { shared.addresses.enter(peer) };
        let Some(place) = place else {
            metrics::counter!(crate::metrics::HTTP_CONNECTIONS_CLOSED, "reason" => "address").increment(1);
            continue;
        };
        let state = shared.places.enter().await;
        state.hold(place);
        if is_trusted && shared.places.promote(&state).is_err() {
            shared.places.leave(&state);
            continue;
        }
        answering.spawn(connection(Arc::clone(&shared), stream, (peer, is_trusted), state, shutdown.clone()));
    }
    drop(listener);
    answering.close();
    if tokio::time::timeout(grace, answering.wait()).await.is_err() {
        warn!(
            grace_s = grace.as_secs(),
            unanswered = answering.len(),
            "requests were cut off at the end of the grace period"
        );
    }
}

/// Serves one connection to its end, or until it becomes a WebSocket.
async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    (peer, is_trusted): (IpAddr, bool),
    state: Arc<State>,
    shutdown: CancellationToken,
) {
    let socket = TokioIo::new(Socket::new(stream, Arc::clone(&state), shared.timeouts));
    let service = {
        let (shared, state) = (Arc::clone(&shared), Arc::clone(&state));
        service_fn(move |request| answer(Arc::clone(&shared), Arc::clone(&state), (peer, is_trusted), request))
    };
    {
        let connection = http1::Builder::new().serve_connection(socket, service).with_upgrades();
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = state.closed.cancelled() => Ok(()),
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(%error, "a connection ended early");
        }
    }
    shared.places.leave(&state);
}

async fn answer(
    shared: Arc<Shared>,
    state: Arc<State>,
    (peer, is_trusted): (IpAddr, bool),
    request: Request<Incoming>,
) -> Result<Response<Tracked>, Infallible> {
    let answering = state.begin();
    let mut request = request.map(Body::new);
    let place = if is_trusted {
        shared.addresses.enter(address::client(peer, request.headers(), &shared.trusted))
    } else {
        Some(AddressPlace::UNCOUNTED)
    };
    let Some(place) = place else {
        let detail = "too many requests of this address are under way";
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_connections", detail).retry_after(1);
        return Ok(problem.into_response().map(|body| Tracked { body, _answering: answering, _place: None }));
    };
    if let Some(prefix) = shared.prefix.clone().or_else(|| is_trusted.then(|| announced(request.headers()))?) {
        request.extensions_mut().insert(prefix);
    }
    request.extensions_mut().insert(Connection { state: Arc::clone(&state), places: Arc::clone(&shared.places) });
    let response = {
        let _at_work = state.handle();
        let Ok(response) = shared.router.clone().oneshot(request).await;
        response
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        state.upgraded();
        state.hold(place);
        return Ok(response.map(|body| Tracked { body, _answering: answering, _place: None }));
    }
    Ok(response.map(|body| Tracked { body, _answering: answering, _place: Some(place) }))
}

/// A body, which knows when it was written.
struct Tracked {
    body: Body,
    _answering: Answering,
    _place: Option<AddressPlace>,
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The prefix that a trusted proxy announces; of several, the first proxy's is outermost.
fn announced(headers: &HeaderMap) -> Option<PublicPrefix> {
    prefix(headers.get("x-forwarded-prefix")?.to_str().ok()?)
}

/// A prefix that is safe to stand in links: absolute, of plain segments.
fn prefix(text: &str) -> Option<PublicPrefix> {
    let text = text.trim_end_matches('/');
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let is_prefix = text.starts_with('/')
        && text.len() <= PREFIX_BYTES
        && text.bytes().all(is_plain)
        && text.split('/').skip(1).all(|segment| !matches!(segment, "" | "." | ".."));
    is_prefix.then(|| PublicPrefix(text.into()))
}

/// The next connection. Errors of `accept` (a client that is gone already, no file descriptors) are no reason to stop
/// listening.
async fn accept(listener: &TcpListener, places: &Places) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Without it a small answer waits for the client's delayed acknowledgement.
                if stream.set_nodelay(true).is_ok() {
                    return (stream, peer);
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept connections; closing the oldest without a credential, and trying again");
                places.make_room();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

#[cfg(test)]
mod tests;
