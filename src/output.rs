//! Standard output of the commands. A reader that has closed its end (`eshaar … | head -1`) ends a command quietly, as it
//! ends other tools: `main` looks for [`OutputError`].

use std::borrow::Cow;
use std::fmt::Arguments;
use std::io::{self, Write as _};

/// Standard output cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
pub struct OutputError(#[source] pub io::Error);

impl OutputError {
    /// Returns true if the reader has closed its end.
    pub fn is_closed(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Writes a line to standard output.
pub fn line(text: Arguments<'_>) -> Result<(), OutputError> {
    writeln!(io::stdout().lock(), "{text}").map_err(OutputError)
}

/// Writes a line to standard error. A line that cannot be written is dropped: there is nobody to tell.
pub fn note(text: Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Text of others for a terminal: control characters are shown as escapes, so that they control nothing.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_harmful = |char: char| char.is_control() && !matches!(char, '\n' | '\t');
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    text.chars()
        .map(|char| if is_harmful(char) { char.escape_unicode().to_string() } else { char.to_string() })
        .collect()
}

/// `println!` for commands: the error is the caller's.
macro_rules! outln {
    ($($format:tt)*) => { $crate::output::line(format_args!($($format)*)) };
}

/// `eprintln!` that never panics.
macro_rules! noteln {
    ($($format:tt)*) => { $crate::output::note(format_args!($($format)*)) };
}

pub(crate) use {noteln, outln};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_controls_no_terminal() {
        assert_eq!(printable("Grüße, سلام\n\tend"), "Grüße, سلام\n\tend");
        assert_eq!(printable("\u{1b}[2J\u{9b}x\r"), "\\u{1b}[2J\\u{9b}x\\u{d}");
    }
}
