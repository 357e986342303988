//! A WebSocket over any byte stream: reads through [`crate::reader`], and writes frames that were made by [`crate::wire`].
//! No buffers: an idle connection is to cost less than 5 KB (R7.5).

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::reader::{Incoming, Reader};
use crate::wire::Frames;

/// How long a client has to close its side after ours is closed.
const LINGER: Duration = Duration::from_secs(1);

/// Answers a close without a code (RFC 6455, 7.4.1).
const NORMAL: u16 = 1000;

/// A byte stream that a session may run over.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// What a client sent.
pub(crate) enum Received {
    Text(Utf8Bytes),
    /// To be answered with the same payload.
    Ping(Bytes),
    /// It lives.
    Pong,
    /// A message that is too large, and was passed over; its `ref`, where it had one.
    TooLarge {
        bytes: usize,
        reference: Option<String>,
    },
}

/// Why no more frames come.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The client closed, or the connection broke.
    Gone,
    /// A message is too large to be passed over.
    TooLarge,
    Binary,
    /// Not the WebSocket protocol.
    Malformed(String),
}

/// A WebSocket.
pub(crate) struct Socket<S> {
    stream: S,
    reader: Reader,
    /// The client closed: nothing is read any more.
    closed: bool,
}

impl<S: Io> Socket<S> {
    /// A socket that was already upgraded. A frame, and a message made of several, has at most `limit` bytes.
    pub(crate) fn new(stream: S, limit: usize) -> Self {
        Self { stream, reader: Reader::new(limit), closed: false }
    }

    /// The next message. Cancel-safe.
    pub(crate) async fn receive(&mut self) -> Result<Received, Ended> {
        if self.closed {
            return Err(Ended::Gone);
        }
        match self.reader.next(&mut self.stream).await? {
            Incoming::Text(text) => Ok(Received::Text(text)),
            Incoming::Ping(payload) => Ok(Received::Ping(payload)),
            Incoming::Pong => Ok(Received::Pong),
            Incoming::TooLarge { bytes, reference } => Ok(Received::TooLarge { bytes, reference }),
            Incoming::Close(code) => {
                self.closed = true;
                let mut answer = Frames::new();
                answer.close(code.unwrap_or(NORMAL), "");
                // Whether it arrives makes no difference any more.
                let _ = tokio::time::timeout(LINGER, self.write(answer.as_bytes())).await;
                Err(Ended::Gone)
            }
        }
    }

    /// Writes whole frames. Not cancel-safe: dropped in the middle, the socket is good for nothing but dropping.
    pub(crate) async fn write(&mut self, frames: &[u8]) -> Result<(), Ended> {
        self.stream.write_all(frames).await.map_err(|_| Ended::Gone)?;
        self.stream.flush().await.map_err(|_| Ended::Gone)
    }

    /// Writes the last frames, and waits a moment for the client to close: closing on unread input would reset the
    /// connection, and the last frames would be lost with it.
    pub(crate) async fn hang_up(mut self, last: &[u8]) {
        let farewell = async {
            self.write(last).await?;
            self.stream.shutdown().await.map_err(|_| Ended::Gone)?;
            let mut ignored = [0; 256];
            while self.stream.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
            Ok::<(), Ended>(())
        };
        let _ = tokio::time::timeout(LINGER, farewell).await;
    }
}
