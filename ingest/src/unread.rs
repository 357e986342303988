//! What a handler leaves unread of a request's body is taken in and thrown away, within bounds.
//!
//! Where a request is refused early (401, 413, 415), a client that writes the whole of it before it reads would find its
//! connection reset, and never see why (RFC 9112, 9.6). So the answer goes out, and the rest may come in.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::runtime::Handle;

/// Most that is thrown away of one body, in bytes.
const MOST_BYTES: usize = 16 << 20;
/// How long it may take to come.
const AT_MOST: Duration = Duration::from_secs(5);

/// Sees to it that a body which is dropped before its end is read on.
pub(crate) async fn discarded(request: Request, next: Next) -> Response {
    next.run(request.map(|body| Body::new(Watched(Some(body))))).await
}

/// A body that knows whether it was read to its end; `None` once it was.
struct Watched(Option<Body>);

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.0 = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let unread = self.0.take().filter(|body| !body.is_end_stream());
        if let (Some(body), Ok(runtime)) = (unread, Handle::try_current()) {
            runtime.spawn(discard(body));
        }
    }
}

async fn discard(mut body: Body) {
    let reading = async {
        let mut left = MOST_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Past the time, the connection is reset after all.
    let _ = tokio::time::timeout(AT_MOST, reading).await;
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::{StreamExt, stream};

    use super::*;

    /// A body of so many pieces of 1 MiB, and how many of them were taken.
    fn body(pieces: usize) -> (Body, Arc<AtomicUsize>) {
        let taken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&taken);
        let pieces = stream::iter(0..pieces).map(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(Bytes::from(vec![0; 1 << 20]))
        });
        (Body::from_stream(pieces), taken)
    }

    async fn settled(taken: &AtomicUsize) -> usize {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        taken.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_body_that_nobody_reads_is_taken_in() {
        let (body, taken) = body(3);
        drop(Watched(Some(body)));
        assert_eq!(settled(&taken).await, 3);
    }

    #[tokio::test]
    async fn what_is_left_of_a_body_is_taken_in_up_to_a_bound() {
        let (body, taken) = body(1_000);
        let mut watched = Body::new(Watched(Some(body)));
        assert!(watched.frame().await.is_some());
        drop(watched);
        assert_eq!(settled(&taken).await, 1 + (MOST_BYTES >> 20) + 1);
    }

    #[tokio::test]
    async fn a_body_passes_unchanged() {
        let watched = Body::new(Watched(Some(Body::from("hello"))));
        assert_eq!(watched.size_hint().exact(), Some(5));
        assert_eq!(watched.collect().await.unwrap().to_bytes(), "hello");
    }
}
