//! Raw sockets against the listener.

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;

/// Far above what anything here takes: a wait that ends by it is a failure.
const PATIENCE: Duration = Duration::from_secs(20);
/// Larger than what sockets buffer.
const LARGE: usize = 8 << 20;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const LAST_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

fn options() -> Options {
    Options {
        max_connections: 2,
        max_unauthenticated_connections: 4,
        max_connections_per_address: 0,
        header_timeout_s: 1,
        keep_alive_timeout_s: 1,
        write_timeout_s: 1,
        trusted_proxies: Vec::new(),
        cors_origins: Vec::new(),
        public_prefix: String::new(),
    }
}

impl Server {
    async fn with(options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let router =
            Router::new()
                .route("/", get(|| async { "served" }))
                .route("/large", get(|| async { vec![b'x'; LARGE] }))
                .route(
                    "/known",
                    get(|connection: axum::Extension<Connection>| async move {
                        connection.authenticated().map(|()| "known")
                    }),
                )
                .route(
                    "/stuck",
                    get(|connection: axum::Extension<Connection>| async move {
                        connection.authenticated()?;
                        std::future::pending::<Result<(), Problem>>().await
                    }),
                )
                .route(
                    "/prefix",
                    get(|prefix: Option<axum::Extension<PublicPrefix>>| async move {
                        prefix.map_or_else(|| "none".to_owned(), |prefix| prefix.0.0.to_string())
                    }),
                );
        let stop = shutdown.clone();
        let serving =
            tokio::spawn(async move { serve(listener, router, &options, stop, Duration::from_secs(5)).await });
        Self { address, shutdown, serving }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn open(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// What is answered on a connection of its own.
    async fn ask(&self, path: &str, headers: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        to_the_end(&mut self.open(request.as_bytes()).await).await
    }

    async fn serves(&self) {
        let answer = self.ask("/", "").await;
        assert!(answer.ends_with("served"), "{answer}");
    }
}

/// Everything until the server closes; a reset is an end too.
async fn to_the_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the server closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The beginning of an answer, on a connection that stays open.
async fn status(stream: &mut TcpStream) -> String {
    let mut answer = [0; 12];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

#[tokio::test]
async fn a_client_that_never_finishes_its_request_is_let_go_and_others_are_served() {
    let server = Server::with(options()).await;
    let mut slow = server.open(b"GET / HTTP/1.1\r\nhost: x").await;
    let mut silent = server.connect().await;
    server.serves().await;
    assert_eq!(to_the_end(&mut slow).await, "");
    assert_eq!(to_the_end(&mut silent).await, "");
    server.serves().await;
    server.shutdown.cancel();
    server.serving.await.unwrap();
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_has_no_more_time() {
    let server = Server::with(options()).await;
    let stream = server.connect().await;
    let (mut reading, mut writing) = stream.into_split();
    let drip = tokio::spawn(async move {
        for byte in b"GET / HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat(&b'a')) {
            if writing.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, reading.read_to_end(&mut answer)).await.expect("it is closed");
    assert!(answer.is_empty());
    drip.abort();
}

#[tokio::test]
async fn a_client_that_pipelines_and_never_reads_is_closed() {
    let server = Server::with(options()).await;
    let stream = server.connect().await;
    let (mut reading, mut writing) = stream.into_split();
    let flood = async {
        // Ends when the server has closed the connection: it does not read on, so no end of bytes is taken.
        while writing.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.is_ok() {}
    };
    tokio::time::timeout(PATIENCE, flood).await.expect("a write fails, since the connection is closed");
    server.serves().await;
    // What was on its way is all there is.
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, reading.read_to_end(&mut rest)).await.expect("it is closed");
}

#[tokio::test]
async fn a_large_answer_reaches_a_client_that_reads() {
    let server = Server::with(options()).await;
    let answer = server.ask("/large", "").await;
    assert!(answer.len() > LARGE, "{}", answer.len());
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time_and_a_half_closed_one_at_once() {
    let server = Server::with(options()).await;
    let mut idle = server.open(REQUEST).await;
    assert!(to_the_end(&mut idle).await.ends_with("served"));
    let mut half = server.open(REQUEST).await;
    assert_eq!(status(&mut half).await, "200");
    half.shutdown().await.unwrap();
    assert!(to_the_end(&mut half).await.ends_with("served"));
}

#[tokio::test]
async fn however_many_connections_strangers_hold_a_new_one_is_served() {
    let patient = Options { header_timeout_s: 3_600, keep_alive_timeout_s: 3_600, ..options() };
    let server = Server::with(patient).await;
    let mut strangers = Vec::new();
    for number in 0..20 {
        let head: &[u8] = if number % 2 == 0 { b"GET / HT" } else { b"" };
        strangers.push(server.open(head).await);
        server.serves().await;
    }
    assert_eq!(to_the_end(&mut strangers[0]).await, "", "the oldest made room");
}

#[tokio::test]
async fn a_connection_with_a_credential_stays_whatever_strangers_do() {
    let patient = Options { header_timeout_s: 3_600, keep_alive_timeout_s: 3_600, ..options() };
    let server = Server::with(patient).await;
    let mut known = server.open(b"GET /known HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(status(&mut known).await, "200");
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(server.open(b"GET").await);
    }
    server.serves().await;
    known.write_all(LAST_REQUEST).await.unwrap();
    assert!(to_the_end(&mut known).await.ends_with("served"));
}

#[tokio::test]
async fn connections_with_a_credential_are_bounded_and_strangers_are_still_served() {
    let server = Server::with(options()).await;
    let stuck = b"GET /stuck HTTP/1.1\r\nhost: x\r\n\r\n";
    let _held = [server.open(stuck).await, server.open(stuck).await];
    // Until both have arrived.
    let refused = loop {
        let answer = server.ask("/known", "").await;
        if !answer.contains("200 OK") {
            break answer;
        }
    };
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("too_many_connections"), "{refused}");
    assert!(refused.contains("retry-after"), "{refused}");
    server.serves().await;
}

#[tokio::test]
async fn an_address_has_so_many_connections_and_clients_of_a_proxy_are_told_apart() {
    let server = Server::with(Options { max_connections_per_address: 1, ..options() }).await;
    let mut first = server.open(REQUEST).await;
    assert_eq!(status(&mut first).await, "200");
    assert_eq!(server.ask("/", "").await, "", "closed without an answer");

    let trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    let proxied = Options { max_connections_per_address: 1, trusted_proxies, max_connections: 10, ..options() };
    let server = Server::with(proxied).await;
    let _stuck = server.open(b"GET /stuck HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 1.1.1.1\r\n\r\n").await;
    let refused = loop {
        let answer = server.ask("/", "x-forwarded-for: 6.6.6.6, 1.1.1.1\r\n").await;
        if !answer.contains("200 OK") {
            break answer;
        }
    };
    assert!(refused.starts_with("HTTP/1.1 429") && refused.contains("too_many_connections"), "{refused}");
    assert!(server.ask("/", "x-forwarded-for: 1.1.1.1, 2.2.2.2\r\n").await.ends_with("served"));
}

#[tokio::test]
async fn a_prefix_is_the_configured_one_or_what_a_trusted_proxy_announces() {
    let announced = "x-forwarded-prefix: /gate/eshaar/\r\n";
    let server = Server::with(options()).await;
    assert!(server.ask("/prefix", announced).await.ends_with("none"), "a stranger is not believed");
    let trusted_proxies: Vec<Cidr> = vec!["127.0.0.1".parse().unwrap()];
    let server = Server::with(Options { trusted_proxies, ..options() }).await;
    assert!(server.ask("/prefix", announced).await.ends_with("/gate/eshaar"));
    for wrong in ["//evil.example", "/a\"b", "eshaar", "/a/../b", "/"] {
        let answer = server.ask("/prefix", &format!("x-forwarded-prefix: {wrong}\r\n")).await;
        assert!(answer.ends_with("none"), "{wrong}: {answer}");
    }
    let server = Server::with(Options { public_prefix: "/api".to_owned(), ..options() }).await;
    assert!(server.ask("/prefix", announced).await.ends_with("/api"));
}

#[tokio::test]
async fn shutdown_ends_idle_connections_without_waiting_for_the_grace_period() {
    let server = Server::with(options()).await;
    let mut idle = server.open(REQUEST).await;
    status(&mut idle).await;
    server.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(4), server.serving).await.unwrap().unwrap();
}
