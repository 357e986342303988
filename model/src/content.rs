//! The text of a message: bounded, and kept as it was written (R12.1).

use crate::limits::CONTENT_CHARS;
use crate::text;

/// Text of 1 to [`CONTENT_CHARS`] characters, at least one of them [visible](text::is_visible).
///
/// It is plain text and holds what was sent, byte for byte: nothing is trimmed, normalised, decoded or removed. Whoever
/// renders it escapes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content(String);

/// The text cannot be sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ContentError {
    /// Nothing that a reader could see.
    #[error("must have at least 1 visible character: white space and invisible characters alone are no message")]
    Empty,
    /// Too long.
    #[error("must have at most {CONTENT_CHARS} characters, has {length}")]
    TooLong {
        /// Length in characters.
        length: usize,
    },
    /// A control character other than tab, line feed and carriage return.
    #[error(
        "must not contain control characters other than tab and line ends; found U+{code_point:04X} at character {index}"
    )]
    Control {
        /// The character's code point.
        code_point: u32,
        /// Its place, in characters, from 0.
        index: usize,
    },
}

impl Content {
    /// Checks a text. An accepted text is not altered.
    pub fn parse(text: String) -> Result<Self, ContentError> {
        // A text of no more bytes than the limit has no more characters.
        if text.len() > CONTENT_CHARS {
            let length = text.chars().count();
            if length > CONTENT_CHARS {
                return Err(ContentError::TooLong { length });
            }
        }
        if let Some((index, found)) = text.chars().enumerate().find(|(_, char)| forbidden(*char)) {
            return Err(ContentError::Control { code_point: found.into(), index });
        }
        if text.chars().any(text::is_visible) { Ok(Self(text)) } else { Err(ContentError::Empty) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, given away.
    pub fn into_string(self) -> String {
        self.0
    }
}

fn forbidden(char: char) -> bool {
    char.is_control() && !matches!(char, '\t' | '\n' | '\r')
}
