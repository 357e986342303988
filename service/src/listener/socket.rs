//! A socket whose waits end: for a request's head, for the next request, for a client that does not read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::places::State;
use crate::metrics as names;

/// How long each wait may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// From the first byte of a request's head to its last; of a new connection, from its beginning.
    pub(super) head: Duration,
    /// From an answer to the next request.
    pub(super) idle: Duration,
    /// Without any progress of a write.
    pub(super) write: Duration,
}

/// A socket of an HTTP connection. Once it is upgraded it waits as long as its user does.
pub(super) struct Socket {
    stream: TcpStream,
    state: Arc<State>,
    timeouts: Timeouts,
    /// Since when bytes have come that may be a request's head.
    head_since: Option<Instant>,
    reading: Option<Pin<Box<Sleep>>>,
    writing: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, state: Arc<State>, timeouts: Timeouts) -> Self {
        Self { stream, state, timeouts, head_since: None, reading: None, writing: None }
    }

    /// Until when the client must have sent what is waited for.
    fn deadline(&self) -> Instant {
        let idle_since = self.state.idle_since();
        match self.head_since.filter(|since| *since >= idle_since) {
            Some(since) => since + self.timeouts.head,
            None if self.state.has_answered() => idle_since + self.timeouts.idle,
            None => idle_since + self.timeouts.head,
        }
    }

    /// Ends the wait for bytes of a client at its deadline.
    fn wait_to_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.is_upgraded() || self.state.is_answering() {
            // Handlers bound how long they wait for a body.
            self.reading = None;
            self.head_since = None;
            return Poll::Pending;
        }
        let deadline = self.deadline();
        let sleep = self.reading.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Err(timed_out("read")))
    }

    /// What came of a write; an error where none has made progress for too long.
    fn progress<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() || self.state.is_upgraded() {
            self.writing = None;
            return written;
        }
        let timeout = self.timeouts.write;
        let sleep = self.writing.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Err(timed_out("write")))
    }
}

fn timed_out(reason: &'static str) -> io::Error {
    metrics::counter!(names::HTTP_CONNECTIONS_CLOSED, "reason" => reason).increment(1);
    io::ErrorKind::TimedOut.into()
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(read) => {
                self.reading = None;
                if !self.state.is_upgraded() {
                    let idle_since = self.state.idle_since();
                    self.head_since = self.head_since.filter(|since| *since >= idle_since).or(Some(Instant::now()));
                }
                Poll::Ready(read)
            }
            Poll::Pending => self.wait_to_read(cx),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.progress(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.progress(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
