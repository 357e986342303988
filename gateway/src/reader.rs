//! Frames from a client (RFC 6455, 5): whole messages are put together here, and those that are too long are passed over.
//!
//! It reads and never writes: pongs and the answer to a close are for whoever asks. A message of more than `limit` bytes is
//! never collected: its bytes are dropped as they come, and only its `ref` is looked for ([`crate::reference`]). One of more
//! than [`SKIPPED`] times as many ends the connection. Between messages it holds no memory.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::reference::RefFinder;
use crate::socket::Ended;

/// How many times the limit a message may have to be passed over. Past it the client is not one of ours.
pub(crate) const SKIPPED: usize = 8;

/// Bytes that are read at once, on the stack.
const CHUNK: usize = 2_048;

/// Longest payload of a control frame (RFC 6455, 5.5).
const CONTROL_BYTES: u64 = 125;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// What a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Text(Utf8Bytes),
    /// To be answered by a pong with the same payload.
    Ping(Bytes),
    Pong,
    /// A message over the limit, which was passed over; its `ref`, where it had one.
    TooLarge {
        bytes: usize,
        reference: Option<String>,
    },
    /// The client closes; its code, where it gave one.
    Close(Option<u16>),
}

/// A frame whose payload is still to come, in whole or in part.
#[derive(Clone, Copy, Debug)]
struct Frame {
    is_last: bool,
    opcode: u8,
    /// Bytes of the payload that are still to come.
    left: usize,
    /// Key of the next byte, and of those behind it.
    mask: [u8; 4],
}

/// A message over the limit.
#[derive(Debug, Default)]
struct Skipping {
    bytes: usize,
    finder: RefFinder,
}

/// Reads the frames of one connection.
#[derive(Debug)]
pub(crate) struct Reader {
    limit: usize,
    buffer: BytesMut,
    frame: Option<Frame>,
    /// The fragments so far of a message of several.
    fragments: Option<BytesMut>,
    skipping: Option<Box<Skipping>>,
}

impl Reader {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, buffer: BytesMut::new(), frame: None, fragments: None, skipping: None }
    }

    /// The next message or control frame. Cancel-safe.
    pub(crate) async fn next<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> Result<Incoming, Ended> {
        loop {
            if let Some(incoming) = self.take()? {
                return Ok(incoming);
            }
            poll_fn(|cx| self.poll_fill(stream, cx)).await?;
        }
    }

    fn poll_fill<S: AsyncRead + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let mut chunk = [0; CHUNK];
        let mut read = ReadBuf::new(&mut chunk);
        ready!(Pin::new(stream).poll_read(cx, &mut read)).map_err(|_| Ended::Gone)?;
        if read.filled().is_empty() {
            return Poll::Ready(Err(Ended::Gone));
        }
        self.buffer.extend_from_slice(read.filled());
        Poll::Ready(Ok(()))
    }

    /// What is whole in the buffer.
    fn take(&mut self) -> Result<Option<Incoming>, Ended> {
        loop {
            let Some(mut frame) = self.frame.take() else {
                let Some(frame) = self.head()? else { return Ok(None) };
                self.begin(&frame)?;
                self.frame = Some(frame);
                continue;
            };
            if frame.opcode < CLOSE && self.skipping.is_some() {
                let is_done = self.skip(&mut frame);
                if !is_done {
                    self.frame = Some(frame);
                    return Ok(None);
                }
                if frame.is_last {
                    return Ok(self.skipping.take().map(|skipped| Incoming::TooLarge {
                        bytes: skipped.bytes,
                        reference: skipped.finder.found(),
                    }));
                }
                continue;
            }
            if self.buffer.len() < frame.left {
                self.frame = Some(frame);
                return Ok(None);
            }
            let mut payload = self.buffer.split_to(frame.left);
            self.let_go();
            unmask(&mut payload, frame.mask);
            if let Some(incoming) = self.whole(frame, payload)? {
                return Ok(Some(incoming));
            }
        }
    }

    /// The head of the next frame, taken from the buffer; `None` where it is not whole.
    fn head(&mut self) -> Result<Option<Frame>, Ended> {
        let [first, second, rest @ ..] = &self.buffer[..] else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(malformed("a reserved bit of a frame is set"));
        }
        if second & 0x80 == 0 {
            return Err(malformed("a frame of a client must be masked"));
        }
        let (length, rest) = match second & 0x7f {
            126 => match rest.split_first_chunk() {
                Some((bytes, rest)) => (u64::from(u16::from_be_bytes(*bytes)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk() {
                Some((bytes, rest)) => (u64::from_be_bytes(*bytes), rest),
                None => return Ok(None),
            },
            length => (u64::from(length), rest),
        };
        let Some((mask, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let opcode = first & 0x0f;
        let is_last = first & 0x80 != 0;
        if opcode >= CLOSE && (length > CONTROL_BYTES || !is_last) {
            return Err(malformed("a control frame is too long, or in fragments"));
        }
        let left = usize::try_from(length).map_err(|_| Ended::TooLarge)?;
        let frame = Frame { is_last, opcode, left, mask: *mask };
        let head = self.buffer.len() - rest.len();
        self.buffer.advance(head);
        Ok(Some(frame))
    }

    /// Checks a frame that begins against the message that it is of, and whether that gets too long.
    fn begin(&mut self, frame: &Frame) -> Result<(), Ended> {
        let within = self.fragments.is_some() || self.skipping.is_some();
        match frame.opcode {
            CLOSE | PING | PONG => return Ok(()),
            BINARY => return Err(Ended::Binary),
            TEXT if within => return Err(malformed("a message begins within another's fragments")),
            CONTINUATION if !within => return Err(malformed("a fragment continues no message")),
            TEXT | CONTINUATION => {}
            _ => return Err(malformed("the opcode of a frame is reserved")),
        }
        let before = match (&self.skipping, &self.fragments) {
            (Some(skipping), _) => skipping.bytes,
            (None, Some(fragments)) => fragments.len(),
            (None, None) => 0,
        };
        let bytes = before.saturating_add(frame.left);
        if bytes > self.limit.saturating_mul(SKIPPED) {
            return Err(Ended::TooLarge);
        }
        if bytes > self.limit && self.skipping.is_none() {
            let mut skipping = Box::<Skipping>::default();
            skipping.finder.feed(&self.fragments.take().unwrap_or_default());
            self.skipping = Some(skipping);
        }
        if let Some(skipping) = &mut self.skipping {
            skipping.bytes = bytes;
        }
        Ok(())
    }

    /// Drops what is there of a frame's payload; returns true once that was all of it.
    fn skip(&mut self, frame: &mut Frame) -> bool {
        let length = self.buffer.len().min(frame.left);
        let mut part = self.buffer.split_to(length);
        self.let_go();
        unmask(&mut part, frame.mask);
        frame.mask.rotate_left(length % 4);
        frame.left -= length;
        if let Some(skipping) = &mut self.skipping {
            skipping.finder.feed(&part);
        }
        frame.left == 0
    }

    /// A frame that is whole; `None` where it is a fragment, and not the last.
    fn whole(&mut self, frame: Frame, payload: BytesMut) -> Result<Option<Incoming>, Ended> {
        match frame.opcode {
            PING => return Ok(Some(Incoming::Ping(payload.freeze()))),
            PONG => return Ok(Some(Incoming::Pong)),
            CLOSE => return close(&payload).map(|code| Some(Incoming::Close(code))),
            _ => {}
        }
        let message = match self.fragments.take() {
            None => payload,
            Some(mut fragments) => {
                fragments.extend_from_slice(&payload);
                fragments
            }
        };
        if !frame.is_last {
            self.fragments = Some(message);
            return Ok(None);
        }
        let text = Utf8Bytes::try_from(message.freeze()).map_err(|_| malformed("a text frame must be UTF-8"))?;
        Ok(Some(Incoming::Text(text)))
    }

    /// Holds no memory for what was taken.
    fn let_go(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }
}

fn malformed(detail: &str) -> Ended {
    Ended::Malformed(detail.to_owned())
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let key = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ key).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// The code of a close frame (RFC 6455, 7.4), where it has one.
fn close(payload: &[u8]) -> Result<Option<u16>, Ended> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(malformed("a close frame is too short for its code")) };
    };
    let code = u16::from_be_bytes(*code);
    let is_known = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    if is_known && std::str::from_utf8(reason).is_ok() {
        Ok(Some(code))
    } else {
        Err(malformed("the code or the reason of a close frame is none"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 64;

    fn frame(opcode: u8, is_last: bool, payload: &[u8]) -> Vec<u8> {
        let mask = [0x5a, 0xc3, 0x01, 0x7f];
        let mut bytes = vec![opcode | if is_last { 0x80 } else { 0 }];
        match payload.len() {
            length @ 0..126 => bytes.push(0x80 | length as u8),
            length => {
                bytes.push(0x80 | 0x7e);
                bytes.extend((length as u16).to_be_bytes());
            }
        }
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        bytes
    }

    /// What is read of `bytes` that come in pieces of these sizes, in turn; and why it ended.
    fn read(bytes: &[u8], sizes: &[usize]) -> (Vec<Incoming>, Option<String>) {
        let (mut reader, mut read, mut rest) = (Reader::new(LIMIT), Vec::new(), bytes);
        for size in sizes.iter().cycle() {
            loop {
                match reader.take() {
                    Ok(Some(incoming)) => read.push(incoming),
                    Ok(None) => break,
                    Err(ended) => return (read, Some(format!("{ended:?}"))),
                }
            }
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at((*size).min(rest.len()));
            reader.buffer.extend_from_slice(piece);
            rest = behind;
        }
        assert!(reader.buffer.capacity() == 0 || !reader.buffer.is_empty(), "nothing is held between messages");
        (read, None)
    }

    fn text(text: &str) -> Incoming {
        Incoming::Text(text.to_owned().into())
    }

    #[test]
    fn a_message_that_is_too_long_is_passed_over_and_what_follows_is_read() {
        let long = format!(r#"{{"op":"send","content":"{}","ref":"r-1"}}"#, "x".repeat(200));
        let bytes = [
            frame(TEXT, true, b"before"),
            frame(TEXT, true, long.as_bytes()),
            frame(TEXT, false, &long.as_bytes()[..50]),
            frame(CONTINUATION, false, &long.as_bytes()[50..200]),
            frame(PING, true, b"p"),
            frame(CONTINUATION, true, &long.as_bytes()[200..]),
            frame(TEXT, true, b"after"),
        ]
        .concat();
        let too_large = || Incoming::TooLarge { bytes: long.len(), reference: Some("r-1".to_owned()) };
        let expected =
            vec![text("before"), too_large(), Incoming::Ping(Bytes::from_static(b"p")), too_large(), text("after")];
        for size in 1..40 {
            assert_eq!(read(&bytes, &[size]), (expected.clone(), None), "pieces of {size}");
        }
    }

    #[test]
    fn a_message_far_beyond_the_limit_ends_the_connection() {
        let largest = frame(TEXT, true, &[b'x'; LIMIT * SKIPPED]);
        assert_eq!(read(&largest, &[100]).1, None);
        let larger = frame(TEXT, true, &[b'x'; LIMIT * SKIPPED + 1]);
        assert_eq!(read(&larger, &[100]).1.as_deref(), Some("TooLarge"));
        let fragments = [frame(TEXT, false, &[b'x'; LIMIT * SKIPPED]), frame(CONTINUATION, false, b"x")].concat();
        assert_eq!(read(&fragments, &[100]).1.as_deref(), Some("TooLarge"));
        let claimed = [&[0x81, 0xff][..], &(1_u64 << 62).to_be_bytes(), &[0; 4]].concat();
        assert_eq!(read(&claimed, &[100]).1.as_deref(), Some("TooLarge"));
    }

    #[test]
    fn what_breaks_the_protocol_ends_the_connection() {
        let unmasked = vec![0x81, 0x01, b'x'];
        let long_ping = [&[0x89, 0xfe, 0x00, 0x7e][..], &[0; 4]].concat();
        for bytes in [
            unmasked,
            long_ping,
            frame(PING, false, b""),
            frame(0x5, true, b""),
            frame(0xb, true, b""),
            frame(CONTINUATION, true, b"x"),
            [frame(TEXT, false, b"x"), frame(TEXT, true, b"x")].concat(),
            frame(TEXT, true, b"\xc3\x28"),
            frame(CLOSE, true, b"\x03"),
            frame(CLOSE, true, &1005_u16.to_be_bytes()),
            frame(CLOSE, true, b"\x03\xe8\xff"),
            vec![0xc1, 0x80, 0, 0, 0, 0],
        ] {
            let ended = read(&bytes, &[3]).1;
            assert!(ended.as_ref().is_some_and(|ended| ended.starts_with("Malformed")), "{bytes:?}: {ended:?}");
        }
        assert_eq!(read(&frame(BINARY, true, b"x"), &[3]).1.as_deref(), Some("Binary"));
    }

    proptest! {
        #[test]
        fn messages_are_the_same_however_they_are_cut(
            messages in proptest::collection::vec("\\PC{0,20}", 1..6),
            cuts in proptest::collection::vec(1..20_usize, 1..8),
            sizes in proptest::collection::vec(1..50_usize, 1..8),
        ) {
            let mut bytes = Vec::new();
            for message in &messages {
                let (mut rest, mut opcode) = (message.as_bytes(), TEXT);
                for cut in &cuts {
                    let (part, behind) = rest.split_at((*cut).min(rest.len()));
                    bytes.extend(frame(opcode, false, part));
                    (rest, opcode) = (behind, CONTINUATION);
                }
                bytes.extend(frame(opcode, true, rest));
            }
            let expected: Vec<_> = messages
                .iter()
                .map(|message| if message.len() > LIMIT {
                    Incoming::TooLarge { bytes: message.len(), reference: None }
                } else {
                    text(message)
                })
                .collect();
            prop_assert_eq!(read(&bytes, &sizes), (expected, None));
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), size in 1..50_usize) {
            let _ = read(&bytes, &[size]);
        }
    }
}
