//! A WebSocket over any byte stream: reads whole frames through tungstenite, which checks the framing, and writes frames
//! that were made by [`crate::wire`]. Small buffers: an idle connection is to cost less than 5 KB (R7.5).

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

/// What tungstenite reads at once, in bytes. It grows for a larger frame.
const READ_BUFFER: usize = 512;

/// How long a client has to close its side after ours is closed.
const LINGER: Duration = Duration::from_secs(1);

/// A byte stream that a session may run over.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// What a client sent.
pub(crate) enum Received {
    Text(Utf8Bytes),
    /// A ping or a pong: it lives.
    Sign,
}

/// Why no more frames come.
pub(crate) enum Ended {
    /// The client closed, or the connection broke.
    Gone,
    TooLarge,
    Binary,
    /// Not the WebSocket protocol.
    Malformed(String),
}

/// A WebSocket.
pub(crate) struct Socket<S>(WebSocketStream<S>);

impl<S: Io> Socket<S> {
    /// A socket that was already upgraded. A frame, and a message made of several, has at most `limit` bytes.
    pub(crate) async fn new(stream: S, limit: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(READ_BUFFER)
            .max_message_size(Some(limit))
            .max_frame_size(Some(limit));
        Self(WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await)
    }

    /// The next frame. Cancel-safe. Pings are answered here.
    pub(crate) async fn receive(&mut self) -> Result<Received, Ended> {
        match self.0.next().await {
            Some(Ok(Message::Text(text))) => Ok(Received::Text(text)),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(Received::Sign),
            Some(Ok(Message::Binary(_))) => Err(Ended::Binary),
            Some(Ok(Message::Close(_))) => {
                // Sends the answer to the client's close; whether it arrives makes no difference any more.
                let _ = tokio::time::timeout(LINGER, self.0.flush()).await;
                Err(Ended::Gone)
            }
            Some(Err(Error::Capacity(_))) => Err(Ended::TooLarge),
            Some(Err(error @ (Error::Protocol(_) | Error::Utf8(_) | Error::AttackAttempt))) => {
                let torn = matches!(&error, Error::Protocol(cause)
                    if *cause == tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake);
                if torn { Err(Ended::Gone) } else { Err(Ended::Malformed(error.to_string())) }
            }
            Some(Err(_)) | None => Err(Ended::Gone),
        }
    }

    /// Writes whole frames. Not cancel-safe: dropped in the middle, the socket is good for nothing but dropping.
    pub(crate) async fn write(&mut self, frames: &[u8]) -> Result<(), Ended> {
        // An answer to a ping may be half written: it goes first.
        self.0.flush().await.map_err(|_| Ended::Gone)?;
        let stream = self.0.get_mut();
        stream.write_all(frames).await.map_err(|_| Ended::Gone)?;
        stream.flush().await.map_err(|_| Ended::Gone)
    }

    /// Writes the last frames, and waits a moment for the client to close: closing on unread input would reset the
    /// connection, and the last frames would be lost with it.
    pub(crate) async fn hang_up(mut self, last: &[u8]) {
        let farewell = async {
            self.write(last).await?;
            let stream = self.0.get_mut();
            stream.shutdown().await.map_err(|_| Ended::Gone)?;
            let mut ignored = [0; 256];
            while stream.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
            Ok::<(), Ended>(())
        };
        let _ = tokio::time::timeout(LINGER, farewell).await;
    }
}
