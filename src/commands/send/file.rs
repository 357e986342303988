//! A file of messages as it is read: its bytes as they are, or decompressed and cut into lines.

use std::io::Cursor;
use std::path::Path;

use anyhow::Context as _;
use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use tokio::io::{self, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

/// Bytes that are read.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;

/// The file as it is; `-` is standard input.
pub async fn open(file: &Path) -> anyhow::Result<tokio::fs::File> {
    let path = if file == Path::new("-") { Path::new("/dev/stdin") } else { file };
    tokio::fs::File::open(path).await.with_context(|| format!("cannot read {}", file.display()))
}

/// The size of a file that can be read again, in bytes.
pub async fn size_of(file: &Path) -> anyhow::Result<Option<u64>> {
    if file == Path::new("-") {
        return Ok(None);
    }
    let found = tokio::fs::metadata(file).await.with_context(|| format!("cannot read {}", file.display()))?;
    Ok(found.is_file().then_some(found.len()))
}

/// The `Content-Encoding` of a file, by its name.
pub fn encoding_of(file: &Path) -> Option<&'static str> {
    match file.extension()?.to_str()? {
        "gz" => Some("gzip"),
        "zst" => Some("zstd"),
        _ => None,
    }
}

/// The content of `file`, read from `input`, decompressed.
pub fn decoded(input: impl AsyncRead + Send + Unpin + 'static, file: &Path) -> Input {
    let input = BufReader::new(input);
    // Files that were compressed in parts and joined.
    match encoding_of(file) {
        Some("gzip") => {
            let mut decoder = GzipDecoder::new(input);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        Some(_) => {
            let mut decoder = ZstdDecoder::new(input);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        None => Box::new(input),
    }
}

/// The form of a line's end, by the first bytes of the file. The server reads UTF-16 as well, with a mark or without.
#[derive(Clone, Copy)]
enum Units {
    Bytes,
    LittleEndian,
    BigEndian,
}

impl Units {
    fn of(head: &[u8]) -> Self {
        match head {
            [0xff, 0xfe] | [1..=255, 0] => Self::LittleEndian,
            [0xfe, 0xff] | [0, 1..=255] => Self::BigEndian,
            _ => Self::Bytes,
        }
    }

    const fn line_end(self) -> &'static [u8] {
        match self {
            Self::Bytes => b"\n",
            Self::LittleEndian => b"\n\0",
            Self::BigEndian => b"\0\n",
        }
    }
}

/// Lines of a file, as the server counts them.
pub struct Lines {
    input: BufReader<Input>,
    units: Units,
}

impl Lines {
    /// Lines of decompressed content.
    pub async fn new(mut input: Input) -> io::Result<Self> {
        let mut head = Vec::with_capacity(2);
        (&mut input).take(2).read_to_end(&mut head).await?;
        let units = Units::of(&head);
        Ok(Self { input: BufReader::new(Box::new(Cursor::new(head).chain(input))), units })
    }

    /// Reads the next line into `line`, with its end. Returns false if there is none.
    pub async fn next(&mut self, line: &mut Vec<u8>) -> io::Result<bool> {
        line.clear();
        while self.input.read_until(b'\n', line).await? > 0 {
            let is_aligned = line.len() % 2 == 1;
            match self.units {
                Units::Bytes => break,
                Units::LittleEndian if is_aligned && line.ends_with(b"\n") => {
                    // Its other half. The file may be cut off before it.
                    if (&mut self.input).take(1).read_to_end(line).await? == 0 || line.ends_with(b"\0") {
                        break;
                    }
                }
                Units::BigEndian if !is_aligned && line.ends_with(b"\0\n") => break,
                Units::LittleEndian | Units::BigEndian => {}
            }
        }
        Ok(!line.is_empty())
    }

    /// The end of a line.
    pub const fn end(&self) -> &'static [u8] {
        self.units.line_end()
    }

    /// The content behind the first `count` lines. Fails if there are fewer.
    pub async fn behind(mut self, count: u64, file: &Path) -> anyhow::Result<Input> {
        let mut line = Vec::new();
        for number in 0..count {
            if !self.next(&mut line).await? {
                anyhow::bail!("--after-line {count}: {} has only {number} lines", file.display());
            }
        }
        Ok(Box::new(self.input))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Lines::new(Box::new(Cursor::new(bytes.to_vec()))).await.unwrap();
        let (mut all, mut line) = (Vec::new(), Vec::new());
        while lines.next(&mut line).await.unwrap() {
            all.push(line.clone());
        }
        all
    }

    #[tokio::test]
    async fn lines_are_those_of_the_text_in_each_encoding() {
        // Bytes of a line end stand within these characters: U+0A0A, U+0A00, U+010A.
        let texts = ["{\u{a0a}\u{a00}\u{10a}\n", "\n", "\r\n", "a\u{a0a}\n", "last"];
        for count in 0..=texts.len() {
            let text = texts[..count].concat();
            let expected: Vec<_> = texts[..count].iter().map(|line| line.as_bytes().to_vec()).collect();
            assert_eq!(lines(text.as_bytes()).await, expected);
            for mark in ["", "\u{feff}"] {
                let utf16 =
                    |text: &str, bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<_>>();
                for bytes in [u16::to_le_bytes, u16::to_be_bytes] {
                    let found = lines(&utf16(&format!("{mark}{text}"), bytes)).await;
                    let mut expected: Vec<_> = texts[..count].iter().map(|line| utf16(line, bytes)).collect();
                    match expected.first_mut() {
                        Some(first) => *first = [utf16(mark, bytes), first.clone()].concat(),
                        None if !mark.is_empty() => expected.push(utf16(mark, bytes)),
                        None => {}
                    }
                    assert_eq!(found, expected, "{text:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn what_is_behind_some_lines_is_read_and_too_few_lines_are_an_error() {
        let open = || Lines::new(Box::new(&b"one\n\nthree"[..]));
        for (count, expected) in [(0, "one\n\nthree"), (1, "\nthree"), (2, "three"), (3, "")] {
            let mut rest = String::new();
            let mut input = open().await.unwrap().behind(count, Path::new("file")).await.unwrap();
            input.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, expected);
        }
        let error = open().await.unwrap().behind(4, Path::new("file")).await.err().unwrap();
        assert_eq!(error.to_string(), "--after-line 4: file has only 3 lines");
    }
}
