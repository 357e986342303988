//! Logs: structured, as text or JSON, on standard error; with colours only where that is a terminal.
//!
//! What is logged never holds message content, tokens or full phone numbers (R11.1).
//!
//! A line that cannot be written (a full disk, a pipe without a reader) is dropped and counted. It never fails its writer:
//! by default the subscriber would report the failure with `eprintln!`, which panics for the same reason.

use std::io::{self, IsTerminal as _, Write};

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::metrics::LOG_LINES_DROPPED;

/// How logs are written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// `text` for people, `json` for machines.
    pub format: Format,
    /// What is logged: a `tracing` filter, e.g. `info,eshaar_gateway=debug`.
    pub filter: String,
}

/// A log line's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("logging.filter is not a filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Something else has set up logging in this process.
    #[error("logging was set up twice in this process")]
    Twice,
}

/// Sets up logging for this process.
pub fn install(options: &Options) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(&options.filter)?;
    // https://no-color.org
    let wants_colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::NONE)
        .with_ansi(wants_colour && io::stderr().is_terminal())
        .log_internal_errors(false)
        .with_writer(|| Lossy(io::stderr()));
    let installed = match options.format {
        Format::Text => builder.with_target(false).try_init(),
        Format::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    };
    installed.map_err(|_| TelemetryError::Twice)
}

/// A writer that takes everything: bytes that its target refuses are dropped, and the line is counted.
struct Lossy<W>(W);

impl<W: Write> Write for Lossy<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.write_all(line).is_err() {
            metrics::counter!(LOG_LINES_DROPPED).increment(1);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // What a failed flush loses was counted as written; standard error has no buffer of its own.
        let _ = self.0.flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A target on a full disk.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    #[test]
    fn a_line_that_cannot_be_written_does_not_fail_its_writer() {
        let subscriber = tracing_subscriber::fmt().log_internal_errors(false).with_writer(|| Lossy(Full)).finish();
        tracing::subscriber::with_default(subscriber, || tracing::info!("dropped"));
        assert_eq!(Lossy(Full).write(b"dropped").unwrap(), 7);
        assert!(Lossy(Full).flush().is_ok());
    }
}
