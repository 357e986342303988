//! Text of an upload as UTF-8, without a byte order mark. Spreadsheets and shells of Windows write UTF-16; which of the two it
//! is, its first two bytes say. Any other encoding passes as it is.

use bytes::{Bytes, BytesMut};

/// Bytes that tell what an upload is.
const HEAD_BYTES: usize = 3;

/// Turns an upload into UTF-8 as it comes.
#[derive(Default)]
pub(crate) struct Utf8(State);

enum State {
    /// The first bytes.
    Head(BytesMut),
    Same,
    Utf16(Utf16),
}

impl Default for State {
    fn default() -> Self {
        Self::Head(BytesMut::new())
    }
}

/// UTF-16, cut anywhere.
struct Utf16 {
    is_little_endian: bool,
    /// The first byte of a unit.
    half: Option<u8>,
    /// The first unit of a surrogate pair.
    high: Option<u16>,
}

impl Utf8 {
    /// The text of a chunk, as far as it can be told.
    pub(crate) fn pass(&mut self, chunk: Bytes) -> Bytes {
        match &mut self.0 {
            State::Same => chunk,
            State::Utf16(utf16) => utf16.pass(&chunk),
            State::Head(head) => {
                head.extend_from_slice(&chunk);
                if head.len() < HEAD_BYTES {
                    return Bytes::new();
                }
                let head = std::mem::take(head).freeze();
                self.begin(&head)
            }
        }
    }

    /// The text that the end leaves: `None` where there is none.
    pub(crate) fn end(&mut self) -> Option<Bytes> {
        let left = match std::mem::replace(&mut self.0, State::Same) {
            State::Same => return None,
            State::Utf16(utf16) => utf16.end(),
            State::Head(head) => {
                let mut text = BytesMut::from(&self.begin(&head.freeze())[..]);
                text.extend_from_slice(&self.end().unwrap_or_default());
                text.freeze()
            }
        };
        (!left.is_empty()).then_some(left)
    }

    fn begin(&mut self, head: &Bytes) -> Bytes {
        let (skipped, is_little_endian) = match head[..] {
            [0xef, 0xbb, 0xbf, ..] => (3, None),
            [0xff, 0xfe, ..] => (2, Some(true)),
            [0xfe, 0xff, ..] => (2, Some(false)),
            // Without a mark: of what we read, the first character is ASCII.
            [1..=255, 0, ..] => (0, Some(true)),
            [0, 1..=255, ..] => (0, Some(false)),
            _ => (0, None),
        };
        let rest = head.slice(skipped..);
        let Some(is_little_endian) = is_little_endian else {
            self.0 = State::Same;
            return rest;
        };
        let mut utf16 = Utf16 { is_little_endian, half: None, high: None };
        let text = utf16.pass(&rest);
        self.0 = State::Utf16(utf16);
        text
    }
}

impl Utf16 {
    fn pass(&mut self, bytes: &[u8]) -> Bytes {
        let mut text = String::with_capacity(bytes.len());
        for byte in bytes {
            let Some(first) = self.half.take() else {
                self.half = Some(*byte);
                continue;
            };
            let pair = [first, *byte];
            let unit = if self.is_little_endian { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) };
            self.unit(unit, &mut text);
        }
        text.into()
    }

    fn unit(&mut self, unit: u16, text: &mut String) {
        let is_low = (0xdc00..0xe000).contains(&unit);
        match self.high.take() {
            Some(high) if is_low => {
                let pair = char::decode_utf16([high, unit]).next();
                text.push(pair.and_then(Result::ok).unwrap_or(char::REPLACEMENT_CHARACTER));
                return;
            }
            Some(_) => text.push(char::REPLACEMENT_CHARACTER),
            None => {}
        }
        if (0xd800..0xdc00).contains(&unit) {
            self.high = Some(unit);
        } else {
            text.push(char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
    }

    /// What is cut off is replaced.
    fn end(self) -> Bytes {
        if self.half.is_some() || self.high.is_some() {
            return Bytes::from_static("\u{fffd}".as_bytes());
        }
        Bytes::new()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8], size: usize) -> Vec<u8> {
        let mut utf8 = Utf8::default();
        let mut text = Vec::new();
        for chunk in bytes.chunks(size) {
            text.extend_from_slice(&utf8.pass(Bytes::copy_from_slice(chunk)));
        }
        text.extend_from_slice(&utf8.end().unwrap_or_default());
        assert_eq!(utf8.end(), None);
        text
    }

    fn utf16(text: &str, is_little_endian: bool) -> Vec<u8> {
        let bytes = |unit: u16| if is_little_endian { unit.to_le_bytes() } else { unit.to_be_bytes() };
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn what_is_short_or_in_another_encoding_passes_as_it_is() {
        for bytes in [&b""[..], b"a", b"ab", b"to,\xe4", b"\xff", b"\xfe", b"\x00", b"\x00\x00\x00"] {
            for size in 1..4 {
                assert_eq!(read(bytes, size), bytes);
            }
        }
    }

    #[test]
    fn what_is_broken_is_replaced() {
        assert_eq!(read(b"\xff\xfea\x00b", 1), "a\u{fffd}".as_bytes());
        assert_eq!(read(b"\xff\xfe\x00\xd8a\x00", 2), "\u{fffd}a".as_bytes());
    }

    proptest! {
        #[test]
        fn a_text_is_the_same_in_each_encoding_and_however_it_is_cut(text in "[a-z]{2}\\PC{0,40}", size in 1_usize..9) {
            let expected = text.as_bytes();
            prop_assert_eq!(&read(expected, size)[..], expected);
            prop_assert_eq!(&read(format!("\u{feff}{text}").as_bytes(), size)[..], expected);
            for is_little_endian in [false, true] {
                prop_assert_eq!(&read(&utf16(&text, is_little_endian), size)[..], expected);
                prop_assert_eq!(&read(&utf16(&format!("\u{feff}{text}"), is_little_endian), size)[..], expected);
            }
        }
    }
}
