//! A WebSocket session as a mobile app holds one: connected, greeted, with small buffers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::header;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};

use crate::http_client::Endpoint;

/// Bytes of the read buffer: some messages of 300 bytes at once.
const READ_BUFFER: usize = 4096;

/// Longest time to connect and greet.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// Where delivery is to begin.
#[derive(Clone, Copy, Debug)]
pub enum Resume<'a> {
    /// Behind what was last acknowledged.
    Acknowledged,
    /// Behind this cursor.
    After(&'a str),
    /// At the oldest message kept.
    Start,
}

/// Why a session did not open, or ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No TCP connection.
    #[error("connecting: {0}")]
    Connect(#[from] std::io::Error),
    /// The upgrade was refused, or the socket failed.
    #[error("the session failed: {0}")]
    WebSocket(Box<tungstenite::Error>),
    /// The server took too long.
    #[error("no session in {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
}

impl From<tungstenite::Error> for SessionError {
    fn from(error: tungstenite::Error) -> Self {
        Self::WebSocket(Box::new(error))
    }
}

/// An open session.
pub struct Session {
    socket: WebSocketStream<TcpStream>,
}

impl Session {
    /// Connects, with a source address of 127.0.0.0/8 where `source` is given (one address has only some 28,000 ports),
    /// and says hello.
    pub async fn open(
        endpoint: &Endpoint,
        source: Option<u8>,
        token: &str,
        resume: Resume<'_>,
    ) -> Result<Self, SessionError> {
        let opening = Self::open_without_limit(endpoint, source, token, resume);
        timeout(HANDSHAKE_TIMEOUT, opening).await.unwrap_or(Err(SessionError::Timeout))
    }

    async fn open_without_limit(
        endpoint: &Endpoint,
        source: Option<u8>,
        token: &str,
        resume: Resume<'_>,
    ) -> Result<Self, SessionError> {
        let stream = match source {
            None => TcpStream::connect(endpoint.address).await?,
            Some(last) => {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 0))?;
                socket.connect(endpoint.address).await?
            }
        };
        stream.set_nodelay(true)?;
        let mut request = format!("ws://{}/v1/ws", endpoint.authority).into_client_request()?;
        let headers = request.headers_mut();
        let bearer =
            format!("Bearer {token}").parse().map_err(|error| tungstenite::Error::from(http::Error::from(error)))?;
        headers.insert(header::AUTHORIZATION, bearer);
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, http::HeaderValue::from_static("eshaar.v1.json"));
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER).write_buffer_size(0);
        let (socket, _) = tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await?;
        let mut session = Self { socket };
        let hello = match resume {
            Resume::Acknowledged => r#"{"op":"hello","device":"eshaar-load"}"#.to_owned(),
            Resume::After(cursor) => format!(r#"{{"op":"hello","device":"eshaar-load","after":"{cursor}"}}"#),
            Resume::Start => r#"{"op":"hello","device":"eshaar-load","from":"start"}"#.to_owned(),
        };
        session.send(hello).await?;
        Ok(session)
    }

    /// The next text frame; `None` at the end. Pings are answered on the way.
    pub async fn next(&mut self) -> Option<Result<Utf8Bytes, SessionError>> {
        loop {
            match self.socket.next().await? {
                Ok(Message::Text(text)) => return Some(Ok(text)),
                Ok(Message::Close(_)) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(error.into())),
            }
        }
    }

    /// Says that all messages up to `cursor` are here.
    pub async fn ack(&mut self, cursor: &str) -> Result<(), SessionError> {
        self.send(format!(r#"{{"op":"ack","cursor":"{cursor}"}}"#)).await
    }

    /// Says goodbye properly, as far as that is possible.
    pub async fn close(mut self) {
        // It is over, whether or not the server hears of it.
        let _ = self.socket.close(None).await;
    }

    /// Sends a frame.
    pub async fn send(&mut self, text: String) -> Result<(), SessionError> {
        Ok(self.socket.send(Message::text(text)).await?)
    }
}
