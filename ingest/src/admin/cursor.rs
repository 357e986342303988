//! Where pages of operators' lists begin. Opaque to clients.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use eshaar_model::{AuditId, Timestamp};
use eshaar_store::{DeadLetterId, LetterPlace};

use crate::query::PageCursorError;

const OF_LETTERS: u8 = 2;
const OF_AUDIT: u8 = 3;
/// Longer than any cursor.
const MOST_CHARS: usize = 40;

/// Behind this letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LetterCursor(pub(crate) LetterPlace);

/// Behind this entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AuditCursor(pub(crate) AuditId);

impl fmt::Display for LetterCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [OF_LETTERS; 25];
        bytes[1..9].copy_from_slice(&self.0.at.as_millis().to_be_bytes());
        bytes[9..].copy_from_slice(self.0.id.as_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for LetterCursor {
    type Err = PageCursorError;

    fn from_str(text: &str) -> Result<Self, PageCursorError> {
        let bytes = bytes(text)?;
        let (Some((&OF_LETTERS, rest)), 25) = (bytes.split_first(), bytes.len()) else { return Err(PageCursorError) };
        let (at, id) = rest.split_first_chunk::<8>().ok_or(PageCursorError)?;
        let id = DeadLetterId::from_bytes(id).map_err(|_| PageCursorError)?;
        Ok(Self(LetterPlace { at: Timestamp::from_millis(i64::from_be_bytes(*at)), id }))
    }
}

impl fmt::Display for AuditCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [OF_AUDIT; 17];
        bytes[1..].copy_from_slice(self.0.as_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for AuditCursor {
    type Err = PageCursorError;

    fn from_str(text: &str) -> Result<Self, PageCursorError> {
        match bytes(text)?.split_first() {
            Some((&OF_AUDIT, id)) => AuditId::from_bytes(id).map(Self).map_err(|_| PageCursorError),
            _ => Err(PageCursorError),
        }
    }
}

fn bytes(text: &str) -> Result<Vec<u8>, PageCursorError> {
    if text.len() > MOST_CHARS {
        return Err(PageCursorError);
    }
    URL_SAFE_NO_PAD.decode(text).map_err(|_| PageCursorError)
}

#[cfg(test)]
mod tests {
    use eshaar_model::Epoch;
    use eshaar_store::dead_letters::Origin;

    use super::*;

    #[test]
    fn cursors_are_read_back_and_not_taken_for_each_other() {
        let origin = Origin { stage: "a", epoch: Epoch(0), topic: "t", partition: 0, offset: 0, redrives: 0 };
        let at = Timestamp::from_millis(1_767_225_600_000);
        let letters = LetterCursor(LetterPlace { at, id: DeadLetterId::of(&origin) });
        let audit = AuditCursor(AuditId::new(at));
        assert_eq!(letters.to_string().parse::<LetterCursor>().unwrap(), letters);
        assert_eq!(audit.to_string().parse::<AuditCursor>().unwrap(), audit);
        for text in ["", "Ag", "!", &audit.to_string(), &letters.to_string()[1..], &"A".repeat(1_000)] {
            assert!(text.parse::<LetterCursor>().is_err(), "{text}");
        }
        assert!(letters.to_string().parse::<AuditCursor>().is_err());
    }
}
