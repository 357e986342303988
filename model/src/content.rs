//! The text of a message: bounded, and harmless to whoever renders it (R12.1).

use std::borrow::Cow;
use std::collections::HashSet;

use crate::limits::CONTENT_CHARS;

/// Text of 1 to [`CONTENT_CHARS`] characters without markup that a browser would act on.
///
/// Tags, scripts and styles are removed (with ammonia); plain text, `a < b` and `Tom & Jerry` included, is kept as it
/// is. Cleaning twice changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content(String);

/// The text cannot be sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ContentError {
    /// Nothing to send (or nothing but markup).
    #[error("must have at least 1 character besides markup and white space")]
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
    /// Checks and cleans a text.
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
        let clean = match harmless(&text) {
            Cow::Borrowed(_) => text,
            Cow::Owned(clean) => clean,
        };
        if clean.trim().is_empty() { Err(ContentError::Empty) } else { Ok(Self(clean)) }
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

/// Whether a browser could take part of the text for a tag: `<` before a letter, `/`, `!` or `?`.
fn looks_like_markup(text: &str) -> bool {
    text.match_indices('<').any(|(at, _)| {
        text[at + 1..].chars().next().is_some_and(|next| next.is_ascii_alphabetic() || matches!(next, '/' | '!' | '?'))
    })
}

fn harmless(text: &str) -> Cow<'_, str> {
    if !looks_like_markup(text) {
        return Cow::Borrowed(text);
    }
    let escaped =
        ammonia::Builder::empty().clean_content_tags(HashSet::from(["script", "style"])).clean(text).to_string();
    // ammonia answers in HTML, where `&` and `<` are entities. Ours is plain text: take the entities back, unless that
    // would bring markup back with them.
    let plain = escaped.replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", "\u{a0}").replace("&amp;", "&");
    Cow::Owned(if looks_like_markup(&plain) { escaped } else { plain })
}
