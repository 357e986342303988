//! Logs: structured, as text or JSON, on standard error.
//!
//! What is logged never holds message content, tokens or full phone numbers (R11.1).

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

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
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_span_events(FmtSpan::NONE).with_writer(std::io::stderr);
    let installed = match options.format {
        Format::Text => builder.with_target(false).try_init(),
        Format::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    };
    installed.map_err(|_| TelemetryError::Twice)
}
