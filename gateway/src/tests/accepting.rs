//! The upgrade, over real sockets and the listener of the service.

use eshaar_service::listener;
use http::StatusCode;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::Request;

use super::*;
use crate::admission::Class;

async fn listening(world: &World) -> (std::net::SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let (router, stopped) = (world.gateway.router(), stop.clone());
    let options = listener::Options {
        max_connections: 10,
        max_unauthenticated_connections: 10,
        max_connections_per_address: 0,
        header_timeout_s: 5,
        keep_alive_timeout_s: 5,
        write_timeout_s: 5,
        trusted_proxies: Vec::new(),
        cors_origins: Vec::new(),
        public_prefix: String::new(),
    };
    tokio::spawn(async move { listener::serve(listener, router, &options, stopped, Duration::ZERO).await });
    (address, stop)
}

fn request(address: std::net::SocketAddr, query: &str, headers: &[(&'static str, &str)]) -> Request<()> {
    let mut request = format!("ws://{address}/v1/ws{query}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

async fn open(address: std::net::SocketAddr, request: Request<()>) -> Result<WebSocketStream<TcpStream>, Error> {
    let stream = TcpStream::connect(address).await.unwrap();
    tokio_tungstenite::client_async(request, stream).await.map(|(socket, _)| socket)
}

/// Status and body of a refusal.
fn refusal(answer: Result<WebSocketStream<TcpStream>, Error>) -> (StatusCode, String) {
    match answer {
        Err(Error::Http(response)) => {
            let body = response.body().clone().unwrap_or_default();
            (response.status(), String::from_utf8_lossy(&body).into_owned())
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn while_too_many_wait_a_client_is_told_to_come_back_before_it_is_upgraded() {
    let world = World::with(Options { reads_at_once: 1, hellos_waiting: 1, ..Options::default() }).await;
    let (address, _stop) = listening(&world).await;
    let _turn = world.shared.admission.turn(Class::Hello).await;
    let waits = tokio::spawn({
        let admission = Arc::clone(&world.shared.admission);
        async move { admission.turn(Class::Hello).await }
    });
    tokio::task::yield_now().await;
    let request = request(address, "", &[PROTOCOL, ("authorization", "bearer broken")]);
    match open(address, request).await {
        Err(Error::Http(response)) => {
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            let body = String::from_utf8_lossy(response.body().as_deref().unwrap_or_default()).into_owned();
            assert!(body.contains("overloaded"), "before its credential is looked at: {body}");
            let after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((1..=300).contains(&after), "{after}");
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
    waits.abort();
}

const PROTOCOL: (&str, &str) = ("sec-websocket-protocol", "other, eshaar.v1.json");

#[tokio::test]
async fn a_client_with_a_credential_is_upgraded_and_served() {
    let mut world = World::new().await;
    let (address, _stop) = listening(&world).await;
    for request in [
        request(address, "", &[PROTOCOL, ("authorization", "bearer +966501234567")]),
        // `+966501234567`, in base64url.
        request(address, "", &[("sec-websocket-protocol", "eshaar.v1.json, eshaar.token.Kzk2NjUwMTIzNDU2Nw")]),
        request(address, "", &[("sec-websocket-protocol", "eshaar.token.Kzk2NjUwMTIzNDU2Nw==,eshaar.v1.json")]),
        request(address, "?access_token=%2B966501234567", &[PROTOCOL]),
    ] {
        let mut socket = open(address, request).await.unwrap();
        socket.send(Frame::text(r#"{"op":"hello","from":"head"}"#)).await.unwrap();
        for op in ["welcome", "caught_up"] {
            let text = socket.next().await.unwrap().unwrap().into_text().unwrap();
            assert!(text.contains(&format!(r#""op":"{op}""#)), "{text}");
        }
        let sent = world.deliver(Lane::High, "over TCP").await;
        let text = socket.next().await.unwrap().unwrap().into_text().unwrap();
        assert!(text.contains(&sent.id.to_string()) && text.contains("over TCP"), "{text}");
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
    }
}

#[tokio::test]
async fn what_cannot_be_upgraded_is_answered_with_a_problem() {
    let world = World::with(Options { sessions: 1, ..Options::default() }).await;
    let (address, _stop) = listening(&world).await;
    let known = ("authorization", "Bearer +966501234567");
    let refused = async |headers: &[(&'static str, &str)]| refusal(open(address, request(address, "", headers)).await);
    for (headers, status, code) in [
        (&[known][..], StatusCode::BAD_REQUEST, "subprotocol_required"),
        (&[PROTOCOL], StatusCode::UNAUTHORIZED, "unauthenticated"),
        (&[PROTOCOL, ("authorization", "Bearer nonsense!")], StatusCode::UNAUTHORIZED, "unauthenticated"),
        (&[PROTOCOL, ("authorization", "Bearer broken")], StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        (&[PROTOCOL, known, ("connection", "close")], StatusCode::UPGRADE_REQUIRED, "upgrade_required"),
    ] {
        let (answered, body) = refused(headers).await;
        assert_eq!(answered, status, "{headers:?}");
        assert!(body.contains(code), "{body}");
        assert!(!body.contains("nonsense"), "a credential is never echoed");
    }
    let _only = open(address, request(address, "", &[PROTOCOL, known])).await.unwrap();
    while world.gateway.sessions() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(refused(&[PROTOCOL, known]).await.1.contains("too_many_sessions"));
    world.gateway.drain(Duration::from_secs(2)).await;
    assert!(refused(&[PROTOCOL, known]).await.1.contains("draining"));
}

#[tokio::test]
async fn an_idle_session_is_small() {
    let world = World::new().await;
    let identity = world.credentials.authenticate("acme").await.unwrap();
    let (_ours, theirs) = tokio::io::duplex(64);
    let run = session::run(Box::pin(session::open(Arc::clone(&world.shared), theirs, identity)));
    let bytes = size_of_val(&run) + size_of::<session::Session<DuplexStream>>();
    // Of 5 KB a connection (R7.5); the rest is the socket's, the hub's and the allocator's.
    assert!(bytes <= 1_500, "{bytes} bytes");
}

#[tokio::test]
async fn a_credential_in_a_subprotocol_is_not_answered_and_one_in_the_query_is_no_api_key() {
    let world = World::new().await;
    let (address, _stop) = listening(&world).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let offered = ("sec-websocket-protocol", "eshaar.v1.json, eshaar.token.YWNtZQ");
    let (_socket, answer) = tokio_tungstenite::client_async(request(address, "", &[offered]), stream).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "eshaar.v1.json");
    let refused = async |query: &str, headers: &[(&'static str, &str)]| {
        refusal(open(address, request(address, query, headers)).await)
    };
    for (query, headers, status, code) in [
        ("?access_token=esk_abc_def", &[PROTOCOL][..], StatusCode::BAD_REQUEST, "key_in_query"),
        ("?access%5Ftoken=%65sk_abc_def", &[PROTOCOL], StatusCode::BAD_REQUEST, "key_in_query"),
        (
            "",
            &[("sec-websocket-protocol", "eshaar.v1.json, eshaar.token.YQ, eshaar.token.Yg")],
            StatusCode::BAD_REQUEST,
            "repeated_token",
        ),
        (
            "",
            &[("sec-websocket-protocol", "eshaar.v1.json, eshaar.token.s3cret!")],
            StatusCode::UNAUTHORIZED,
            "unauthenticated",
        ),
        ("", &[("sec-websocket-protocol", "eshaar.token.YWNtZQ")], StatusCode::BAD_REQUEST, "subprotocol_required"),
    ] {
        let (answered, body) = refused(query, headers).await;
        assert_eq!(answered, status, "{query} {headers:?}");
        assert!(body.contains(code) && !body.contains("s3cret") && !body.contains("abc_def"), "{body}");
    }
}
