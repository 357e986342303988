//! Frames to clients, written by hand into one buffer: what is ready together leaves in one write. A server's frames are
//! not masked and here never fragmented, so that is a header of 2 to 10 bytes (RFC 6455, 5.2).

use std::cell::Cell;

const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// The header that nearly every frame has: its payload is 126 to 65,535 bytes.
const USUAL_HEADER: usize = 4;

/// A larger buffer is not kept for the next use.
const KEPT: usize = 64 * 1024;

thread_local! {
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Whole frames, to be written together. The buffer goes from use to use within a thread: an idle session holds none.
#[derive(Debug)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    pub(crate) fn new() -> Self {
        Self(SPARE.take())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A text frame with what `render` appends.
    pub(crate) fn text(&mut self, render: impl FnOnce(&mut Vec<u8>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[TEXT, 0, 0, 0]);
        render(&mut self.0);
        let length = self.0.len() - start - USUAL_HEADER;
        match length {
            0..126 => {
                self.0[start + 1] = length as u8;
                self.0.drain(start + 2..start + USUAL_HEADER);
            }
            126..=0xffff => {
                self.0[start + 1] = 126;
                self.0[start + 2..start + USUAL_HEADER].copy_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                self.0[start + 1] = 127;
                self.0.splice(start + 2..start + USUAL_HEADER, (length as u64).to_be_bytes());
            }
        }
    }

    pub(crate) fn ping(&mut self) {
        self.0.extend_from_slice(&[PING, 0]);
    }

    /// A pong; `payload`, that of a ping, has at most 125 bytes.
    pub(crate) fn pong(&mut self, payload: &[u8]) {
        self.0.extend_from_slice(&[PONG, payload.len() as u8]);
        self.0.extend_from_slice(payload);
    }

    /// A close frame; `reason` has at most 123 bytes.
    pub(crate) fn close(&mut self, code: u16, reason: &str) {
        self.0.extend_from_slice(&[CLOSE, (2 + reason.len()) as u8]);
        self.0.extend_from_slice(&code.to_be_bytes());
        self.0.extend_from_slice(reason.as_bytes());
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0);
        if bytes.capacity() <= KEPT {
            bytes.clear();
            // A thread that is ending has no spare any more.
            let _ = SPARE.try_with(|spare| spare.set(bytes));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_frame_is_written_in_as_few_bytes_as_it_needs() {
        for (length, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10), (100_000, 10)] {
            let mut frames = Frames::new();
            frames.text(|bytes| bytes.extend(std::iter::repeat_n(b'x', length)));
            frames.ping();
            let bytes = frames.as_bytes();
            assert_eq!(bytes.len(), header + length + 2, "{length}");
            assert!(bytes[header..header + length].iter().all(|byte| *byte == b'x'), "{length}");
            let written = match header {
                2 => u64::from(bytes[1]),
                4 => u64::from(u16::from_be_bytes(bytes[2..4].try_into().unwrap())),
                _ => u64::from_be_bytes(bytes[2..10].try_into().unwrap()),
            };
            assert_eq!(written, length as u64);
        }
    }
}
