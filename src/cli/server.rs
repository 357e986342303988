//! Arguments of every command that calls a server.

use std::path::PathBuf;

use clap::Args;

/// Where the server is.
#[derive(Debug, Args)]
pub struct Endpoint {
    /// The server, http:// or https://. One on this machine is called directly, whatever HTTP_PROXY says.
    #[arg(long, env = "ESHAAR_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// Certificates of authorities that are trusted besides the system's, PEM.
    #[arg(long, env = "ESHAAR_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

/// Where the server is and who is calling.
#[derive(Debug, Args)]
pub struct ServerArguments {
    /// The server.
    #[command(flatten)]
    pub endpoint: Endpoint,
    /// API key. Default: the demo business's, from the data directory.
    #[arg(long, env = "ESHAAR_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
}

/// Where the server is, and which operator is calling.
#[derive(Debug, Args)]
pub struct OperatorArguments {
    /// The server.
    #[command(flatten)]
    pub endpoint: Endpoint,
    /// API key with the permission admin. Default: the operators' key, from the data directory.
    #[arg(long, env = "ESHAAR_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Print JSON, an object a line.
    #[arg(long)]
    pub json: bool,
}
