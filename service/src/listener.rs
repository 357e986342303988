//! The HTTP listener: accepts connections, bounds them, and ends them in order.
//!
//! HTTP/1.1 only: every client here is behind a proxy that speaks it, or upgrades to a WebSocket. A connection keeps
//! nothing of ours once it is upgraded.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// How the listener treats connections.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Most HTTP connections at a time (WebSockets have their own limit); more wait in the kernel's queue.
    pub max_connections: usize,
    /// How long a client may take to send the head of a request, in seconds.
    pub header_timeout_s: u64,
}

/// Serves `router` until `shutdown`, then lets requests that are being answered end, for at most `grace`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    options: &Options,
    shutdown: CancellationToken,
    grace: Duration,
) {
    let connections = Arc::new(Semaphore::new(options.max_connections));
    let answering = TaskTracker::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(options.header_timeout_s));
    loop {
        let (stream, permit) = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            () = shutdown.cancelled() => break,
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let shutdown = shutdown.clone();
        answering.spawn(async move {
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                debug!(%error, "a connection ended early");
            }
            drop(permit);
        });
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

/// The next connection, once there is room for it. Errors of `accept` (a client that is gone already, no file
/// descriptors) are waited out: they are no reason to stop listening.
async fn accept(listener: &TcpListener, connections: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        let Ok(permit) = Arc::clone(connections).acquire_owned().await else { std::future::pending().await };
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without it a small answer waits for the client's delayed acknowledgement.
                if stream.set_nodelay(true).is_ok() {
                    return (stream, permit);
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept connections; trying again in a second");
                tokio::time::sleep(Duration::from_secs(1)).await;
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
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const OPTIONS: Options = Options { max_connections: 2, header_timeout_s: 1 };

    async fn listening() -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let router = Router::new().route("/", get(|| async { "served" }));
        let stop = shutdown.clone();
        let serving =
            tokio::spawn(async move { serve(listener, router, &OPTIONS, stop, Duration::from_secs(5)).await });
        (address, shutdown, serving)
    }

    #[tokio::test]
    async fn a_client_that_never_finishes_its_request_is_let_go_and_others_are_served() {
        let (address, shutdown, serving) = listening().await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nhost: x").await.unwrap();
        let mut answer = Vec::new();
        slow.read_to_end(&mut answer).await.unwrap();
        let mut quick = TcpStream::connect(address).await.unwrap();
        quick.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        quick.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("served"), "{answer}");
        shutdown.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn shutdown_ends_idle_connections_without_waiting_for_the_grace_period() {
        let (address, shutdown, serving) = listening().await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        idle.read_exact(&mut answer).await.unwrap();
        shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(2), serving).await.unwrap().unwrap();
    }
}
