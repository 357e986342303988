//! Why the server closes a session: the one table of close codes (docs/protocol.md).
//!
//! 4000–4499: connect again. 4500–4999: not without a change.

/// Why the server closes a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs, reason = "each is described by its row")]
pub enum Close {
    InternalError = 4000,
    ShuttingDown = 4001,
    PresenceLost = 4002,
    Overloaded = 4003,
    TimedOut = 4008,
    TooSlow = 4009,
    TooManyFrames = 4010,
    HelloTimeout = 4501,
    TokenExpired = 4503,
    TokenInvalid = 4504,
    BadFrame = 4505,
    AlreadyGreeted = 4508,
    FrameTooLarge = 4510,
    BinaryFrame = 4511,
    TooManySessions = 4512,
}

impl Close {
    /// Every code and the reason that is sent with it.
    pub const TABLE: [(Self, &'static str); 15] = [
        (Self::InternalError, "internal_error"),
        (Self::ShuttingDown, "shutting_down"),
        (Self::PresenceLost, "presence_lost"),
        (Self::Overloaded, "overloaded"),
        (Self::TimedOut, "timed_out"),
        (Self::TooSlow, "too_slow"),
        (Self::TooManyFrames, "too_many_frames"),
        (Self::HelloTimeout, "hello_timeout"),
        (Self::TokenExpired, "token_expired"),
        (Self::TokenInvalid, "token_invalid"),
        (Self::BadFrame, "bad_frame"),
        (Self::AlreadyGreeted, "already_greeted"),
        (Self::FrameTooLarge, "frame_too_large"),
        (Self::BinaryFrame, "binary_frame"),
        (Self::TooManySessions, "too_many_sessions"),
    ];

    /// The code of the close frame.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The stable reason that goes with it.
    pub fn reason(self) -> &'static str {
        Self::TABLE.iter().find(|(close, _)| *close == self).map_or("internal_error", |(_, reason)| reason)
    }

    /// Whether the client is to connect again by itself.
    pub const fn reconnects(self) -> bool {
        self.code() < 4500
    }

    /// The close of a code.
    pub fn of_code(code: u16) -> Option<Self> {
        Self::TABLE.iter().map(|(close, _)| *close).find(|close| close.code() == code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_protocol_document_is_this_one() {
        let document = include_str!("../../docs/protocol.md");
        for (close, reason) in Close::TABLE {
            assert!(document.contains(&format!("| {} | `{reason}` |", close.code())), "{reason}");
            assert_eq!(Close::of_code(close.code()), Some(close));
        }
        let rows = document.lines().filter(|line| line.starts_with("| 4")).filter(|line| line.contains("` | "));
        assert_eq!(
            rows.filter(|line| line.as_bytes()[2..6].iter().all(u8::is_ascii_digit)).count(),
            Close::TABLE.len()
        );
    }
}
