//! W3C trace context: one trace from the HTTP request through the log's headers to the socket (R11.1).

use std::fmt;
use std::str::FromStr;

/// A `traceparent`: the trace, this hop's parent, and whether it is sampled. Version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    sampled: bool,
}

/// The text is no traceparent of version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a W3C traceparent")]
pub struct TraceContextError;

impl TraceContext {
    /// A new trace, sampled.
    pub fn new() -> Self {
        let trace_id = uuid::Uuid::now_v7().as_u128();
        // The low half of a version 7 UUID is random: enough for a span.
        Self { trace_id, span_id: (uuid::Uuid::now_v7().as_u128() as u64) | 1, sampled: true }
    }

    /// The trace of an incoming header, or a new one when there is none that can be read.
    pub fn continued(header: Option<&str>) -> Self {
        header.and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// The trace's id, 32 hexadecimal digits: the correlation id of what has no other.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

impl Default for TraceContext {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

impl FromStr for TraceContext {
    type Err = TraceContextError;

    fn from_str(text: &str) -> Result<Self, TraceContextError> {
        let parts: Vec<&str> = text.split('-').collect();
        let ["00", trace, span, flags] = parts[..] else { return Err(TraceContextError) };
        let hexadecimal = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if trace.len() != 32
            || span.len() != 16
            || flags.len() != 2
            || ![trace, span, flags].into_iter().all(hexadecimal)
        {
            return Err(TraceContextError);
        }
        let trace_id = u128::from_str_radix(trace, 16).map_err(|_| TraceContextError)?;
        let span_id = u64::from_str_radix(span, 16).map_err(|_| TraceContextError)?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| TraceContextError)?;
        if trace_id == 0 || span_id == 0 {
            Err(TraceContextError)
        } else {
            Ok(Self { trace_id, span_id, sampled: flags & 1 == 1 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_specification_is_read_and_written_back() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context: TraceContext = text.parse().unwrap();
        assert_eq!(context.to_string(), text);
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
    }

    #[test]
    fn what_the_specification_calls_invalid_starts_a_new_trace() {
        let invalid = [
            "",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ];
        for text in invalid {
            assert_eq!(text.parse::<TraceContext>(), Err(TraceContextError), "{text}");
        }
        assert_ne!(TraceContext::continued(Some("nonsense")).trace_id(), TraceContext::continued(None).trace_id());
    }
}
