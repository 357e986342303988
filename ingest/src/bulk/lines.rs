//! An upload, cut into lines. A line that is too long is dropped as it comes, not collected.

use bytes::{Bytes, BytesMut};
use eshaar_service::Problem;
use http::StatusCode;

use super::source::Source;
use crate::options::BulkOptions;

/// A line that is not blank.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Text(Bytes),
    TooLong,
}

/// What came of asking for a line.
pub(crate) enum Next {
    /// A line and its number, from 1; blank lines count too.
    Line(u64, Line),
    /// None is at hand: ask [`Lines::wait`].
    NotYet,
    /// There are no more.
    End,
}

/// Lines of an upload.
pub(crate) struct Lines {
    source: Source,
    buffer: BytesMut,
    /// So much of the buffer holds no line end.
    scanned: usize,
    /// Within a line that was found too long.
    dropping: bool,
    ended: bool,
    /// Lines of the client's file before the first of the upload.
    before: u64,
    /// Lines of the upload so far.
    count: u64,
    line_limit: usize,
    most: u64,
}

impl Lines {
    pub(crate) fn new(source: Source, options: &BulkOptions) -> Self {
        Self {
            source,
            buffer: BytesMut::new(),
            scanned: 0,
            dropping: false,
            ended: false,
            before: 0,
            count: 0,
            line_limit: options.line_limit_bytes,
            most: options.max_lines,
        }
    }

    /// Numbers lines as those of a file of which `before` lines are not in the upload.
    pub(crate) const fn numbered_after(mut self, before: u64) -> Self {
        self.before = before;
        self
    }

    /// The next line, as far as the upload is at hand. It takes in at most one chunk, so that blank or endless lines
    /// cannot keep the thread.
    pub(crate) fn next(&mut self) -> Result<Next, Problem> {
        let mut may_take = true;
        loop {
            if let Some(line) = self.cut() {
                self.count += 1;
                if self.count > self.most {
                    let detail = format!("an upload must have at most {} lines", self.most);
                    return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_lines", detail));
                }
                match line {
                    Line::Text(text) if text.trim_ascii().is_empty() => {}
                    line => return Ok(Next::Line(self.before + self.count, line)),
                }
            } else if self.ended {
                return Ok(Next::End);
            } else if !std::mem::take(&mut may_take) {
                return Ok(Next::NotYet);
            } else {
                match self.source.next_now() {
                    None => return Ok(Next::NotYet),
                    Some(chunk) => self.take(chunk?),
                }
            }
        }
    }

    /// Waits until there is more to look at. Cancel-safe.
    pub(crate) async fn wait(&mut self) -> Result<(), Problem> {
        // An upload whose chunks are always at hand must let others run, too.
        tokio::task::consume_budget().await;
        let chunk = self.source.next().await?;
        self.take(chunk);
        Ok(())
    }

    /// Reads the rest of the upload and throws it away.
    pub(crate) async fn discard(&mut self) {
        self.buffer.clear();
        self.source.discard().await;
    }

    fn take(&mut self, chunk: Option<Bytes>) {
        match chunk {
            Some(chunk) => self.buffer.extend_from_slice(&chunk),
            None => self.ended = true,
        }
    }

    /// A whole line from the buffer.
    fn cut(&mut self) -> Option<Line> {
        let end = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n').map(|at| self.scanned + at);
        let line = match end {
            Some(end) => self.buffer.split_to(end + 1),
            None if self.ended && (self.dropping || !self.buffer.is_empty()) => self.buffer.split(),
            None if self.dropping || self.buffer.len() > self.line_limit => {
                self.dropping = true;
                self.buffer.clear();
                self.scanned = 0;
                return None;
            }
            None => {
                self.scanned = self.buffer.len();
                return None;
            }
        };
        self.scanned = 0;
        let text = line.strip_suffix(b"\n").unwrap_or(&line).len();
        if std::mem::take(&mut self.dropping) || text > self.line_limit {
            return Some(Line::TooLong);
        }
        let mut line = line.freeze();
        line.truncate(text);
        Some(Line::Text(line))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use axum::body::Body;
    use futures_util::stream;

    use super::super::source::Encoding;
    use super::*;

    const OPTIONS: BulkOptions = BulkOptions {
        line_limit_bytes: 8,
        max_lines: 1_000,
        max_bytes: 1_000_000,
        max_ratio: 100,
        batch_lines: NonZeroUsize::MIN,
        unread_answers_bytes: 1_000,
        stall_timeout_s: 1,
        min_rate_bytes_per_s: 1,
        min_rate_window_s: 60,
        max_duration_s: 60,
        patience_s: 0,
        concurrent: NonZeroUsize::MIN,
        concurrent_per_business: NonZeroUsize::MIN,
    };

    /// The lines of `text`, sent in chunks of `size` bytes.
    async fn lines(text: &[u8], size: usize) -> Vec<(u64, Line)> {
        let chunks: Vec<_> =
            text.chunks(size).map(|chunk| Ok::<_, std::io::Error>(Bytes::copy_from_slice(chunk))).collect();
        let body = Body::from_stream(stream::iter(chunks));
        let mut lines = Lines::new(Source::new(body, Encoding::Identity, &OPTIONS), &OPTIONS);
        let mut found = Vec::new();
        loop {
            match lines.next().unwrap() {
                Next::Line(number, line) => found.push((number, line)),
                Next::NotYet => lines.wait().await.unwrap(),
                Next::End => return found,
            }
        }
    }

    fn text(text: &'static str) -> Line {
        Line::Text(Bytes::from_static(text.as_bytes()))
    }

    #[tokio::test]
    async fn lines_are_the_same_however_the_upload_is_cut_into_chunks() {
        let upload = b"one\n\ntwo\r\n   \n12345678\n123456789\nvery very very long line\nlast";
        let expected = vec![
            (1, text("one")),
            (3, text("two\r")),
            (5, text("12345678")),
            (6, Line::TooLong),
            (7, Line::TooLong),
            (8, text("last")),
        ];
        for size in 1..=upload.len() {
            assert_eq!(lines(upload, size).await, expected, "chunks of {size}");
        }
    }

    #[tokio::test]
    async fn a_last_line_that_is_too_long_is_reported_with_or_without_its_end() {
        for upload in [&b"a\n0123456789"[..], b"a\n0123456789\n"] {
            for size in 1..=upload.len() {
                assert_eq!(lines(upload, size).await, [(1, text("a")), (2, Line::TooLong)], "chunks of {size}");
            }
        }
    }

    #[tokio::test]
    async fn nothing_has_no_lines() {
        assert_eq!(lines(b"", 1).await, []);
        assert_eq!(lines(b"\n\n\n", 2).await, []);
    }
}
