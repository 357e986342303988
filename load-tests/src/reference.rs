//! The sender's reference of a load message: `r-<recipient>-<seq>-<intended_us>`.
//!
//! All that the accountant needs travels in it: whose message it is, its place among that recipient's messages, and when
//! it was meant to be sent (not when it was: a sender that falls behind must not hide the wait).

use std::fmt::Write as _;

/// Which message it is, and when it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The recipient's place in the run's list of recipients.
    pub recipient: u32,
    /// Place among the recipient's messages, from 0, without holes.
    pub seq: u32,
    /// When it was due, in microseconds of the run's clock.
    pub intended_us: u64,
}

impl Reference {
    /// Appends its text to `out`.
    pub fn write_to(self, out: &mut String) {
        // Writing to a String cannot fail.
        let _ = write!(out, "r-{}-{}-{}", self.recipient, self.seq, self.intended_us);
    }

    /// Reads one back; `None` for a text that this tool did not write.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("r-")?.split('-');
        let recipient = parts.next()?.parse().ok()?;
        let seq = parts.next()?.parse().ok()?;
        let intended_us = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Self { recipient, seq, intended_us })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_read_back_as_it_was_written() {
        let reference = Reference { recipient: 1999, seq: 4_000_000_000, intended_us: u64::MAX };
        let mut text = String::new();
        reference.write_to(&mut text);
        assert_eq!(Reference::parse(&text), Some(reference));
    }

    #[test]
    fn what_this_tool_did_not_write_is_no_reference() {
        for text in ["", "tx-81", "r-1-2", "r-1-2-3-4", "r-x-2-3", "r-1-2-99999999999999999999999"] {
            assert_eq!(Reference::parse(text), None, "{text}");
        }
    }
}
