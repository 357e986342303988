//! The bytes of an upload, decompressed, and bounded so that a small upload cannot become a huge one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::body::Body;
use bytes::Bytes;
use eshaar_model::BusinessId;
use eshaar_service::Problem;
use futures_util::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, StatusCode, header};
use tokio::time::Instant;
use tokio_util::io::{ReaderStream, StreamReader};

use super::utf8::Utf8;
use crate::options::BulkOptions;
use crate::shares::{Full, Share};
use crate::{App, problems};

/// Bytes decompressed at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// Largest window of a zstd frame: 8 MiB, what RFC 8878 (3.1.1.1.2) recommends decoders to support, and no more.
const ZSTD_WINDOW_LOG: u32 = 23;
/// Decompressed bytes from which on the ratio counts: a few lines of the same text compress beyond any ratio.
const FREE_BYTES: u64 = 1024 * 1024;

/// How an upload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

impl Encoding {
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let refused = || problems::content_encoding("`identity`, `gzip` or `zstd`");
        let mut given = headers.get_all(header::CONTENT_ENCODING).iter();
        let Some(value) = given.next() else { return Ok(Self::Identity) };
        if given.next().is_some() {
            return Err(refused());
        }
        match value.to_str().map(str::to_ascii_lowercase).as_deref() {
            Ok("identity") => Ok(Self::Identity),
            Ok("gzip" | "x-gzip") => Ok(Self::Gzip),
            Ok("zstd") => Ok(Self::Zstd),
            _ => Err(refused()),
        }
    }
}

/// Place for an upload of a business.
pub(crate) fn place(app: &App, business: &BusinessId) -> Result<Share, Problem> {
    app.uploads.take(business, 1).map_err(|full| match full {
        Full::Part => problems::too_many_uploads(app.uploads.part()),
        Full::Total => problems::bulk_busy(app.uploads.total()),
    })
}

type Chunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// An upload.
pub(crate) struct Source {
    chunks: Chunks,
    /// Bytes received, before decompression.
    received: Arc<AtomicU64>,
    /// Bytes given on, after it.
    given: u64,
    compressed: bool,
    max_bytes: u64,
    max_ratio: u64,
    stall_timeout: Duration,
    pace: Pace,
    max_duration: Duration,
    deadline: Instant,
    text: Utf8,
}

/// The rate at which a client sends, while we wait for it.
struct Pace {
    window: Duration,
    min_bytes_per_s: u64,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Counts bytes, and how long they were waited for.
    fn note(&mut self, waited: Duration, bytes: usize) -> Result<(), Problem> {
        self.waited += waited;
        self.bytes += bytes as u64;
        if self.waited < self.window {
            return Ok(());
        }
        if u128::from(self.bytes) * 1_000 < u128::from(self.min_bytes_per_s) * self.waited.as_millis() {
            let detail = format!(
                "an upload must send at least {} bytes a second over {} s",
                self.min_bytes_per_s,
                self.window.as_secs()
            );
            return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "upload_too_slow", detail));
        }
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        Ok(())
    }
}

impl Source {
    pub(crate) fn new(body: Body, encoding: Encoding, options: &BulkOptions) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&received);
        let raw = body.into_data_stream().map_err(io::Error::other).inspect_ok(move |chunk: &Bytes| {
            count.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        });
        let chunks: Chunks = match encoding {
            Encoding::Identity => Box::pin(raw),
            Encoding::Gzip => {
                let mut decoder = GzipDecoder::new(StreamReader::new(raw));
                // Files that were compressed in parts and joined.
                decoder.multiple_members(true);
                Box::pin(ReaderStream::with_capacity(decoder, CHUNK_BYTES))
            }
            Encoding::Zstd => {
                let window = [DParameter::window_log_max(ZSTD_WINDOW_LOG)];
                let mut decoder = ZstdDecoder::with_params(StreamReader::new(raw), &window);
                decoder.multiple_members(true);
                Box::pin(ReaderStream::with_capacity(decoder, CHUNK_BYTES))
            }
        };
        Self {
            chunks,
            received,
            given: 0,
            compressed: encoding != Encoding::Identity,
            max_bytes: options.max_bytes,
            max_ratio: options.max_ratio,
            stall_timeout: options.stall_timeout(),
            pace: Pace {
                window: options.min_rate_window(),
                min_bytes_per_s: options.min_rate_bytes_per_s,
                waited: Duration::ZERO,
                bytes: 0,
            },
            max_duration: options.max_duration(),
            deadline: Instant::now() + options.max_duration(),
            text: Utf8::default(),
        }
    }

    /// The next bytes, as UTF-8 where the upload says that it is UTF-16; `None` at the end. Cancel-safe, but for the time that
    /// was waited.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let begun = Instant::now();
        let until = self.deadline.min(begun + self.stall_timeout);
        let Ok(next) = tokio::time::timeout_at(until, self.chunks.next()).await else {
            self.in_time()?;
            let detail = format!("nothing was received for {} s", self.stall_timeout.as_secs());
            return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "upload_stalled", detail));
        };
        self.check(next, begun.elapsed())
    }

    /// The next bytes if they are at hand, or if it is known that there are none.
    pub(crate) fn next_now(&mut self) -> Option<Result<Option<Bytes>, Problem>> {
        let next = self.chunks.next().now_or_never()?;
        Some(self.check(next, Duration::ZERO))
    }

    /// Reads the rest of the upload and throws it away, within the same limits.
    pub(crate) async fn discard(&mut self) {
        while let Ok(Some(_)) = self.next().await {
            tokio::task::consume_budget().await;
        }
    }

    fn in_time(&self) -> Result<(), Problem> {
        if Instant::now() < self.deadline {
            return Ok(());
        }
        let detail = format!("an upload may take at most {} s", self.max_duration.as_secs());
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "upload_deadline", detail))
    }

    fn check(&mut self, next: Option<io::Result<Bytes>>, waited: Duration) -> Result<Option<Bytes>, Problem> {
        self.in_time()?;
        let chunk = match next {
            None => return Ok(self.text.end()),
            Some(Ok(chunk)) => chunk,
            Some(Err(_)) if self.compressed => {
                let detail = "the upload ended early, or is not compressed as `Content-Encoding` says";
                return Err(Problem::new(StatusCode::BAD_REQUEST, "upload_broken", detail));
            }
            Some(Err(_)) => return Err(problems::body_broken()),
        };
        self.pace.note(waited, chunk.len())?;
        self.given += chunk.len() as u64;
        let too_large = |detail| Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "upload_too_large", detail));
        if self.given > self.max_bytes {
            return too_large(format!("an upload must have at most {} bytes once decompressed", self.max_bytes));
        }
        let allowed = FREE_BYTES + self.received.load(Ordering::Relaxed).saturating_mul(self.max_ratio);
        if self.compressed && self.given > allowed {
            return too_large(format!("an upload must not be compressed more than {} times", self.max_ratio));
        }
        Ok(Some(self.text.pass(chunk)))
    }
}
