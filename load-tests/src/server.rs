//! A server in one process, on embedded engines, with a data directory of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::sleep;

use crate::failed::Failed;
use crate::process::Process;
use crate::run::Access;
use crate::token::Minter;

/// What is measured is what the service can, and not what it is told to let through.
pub const UNLIMITED: [&str; 4] =
    ["limits.whole=", "limits.key_per_s=0", "limits.key_requests_per_s=0", "limits.key_reads_per_s=0"];

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `eshaar` binary.
    pub program: PathBuf,
    /// Where its data goes; `None`: a new directory that is removed at the end.
    pub data_dir: Option<PathBuf>,
    /// `key=value` settings, after [`UNLIMITED`].
    pub settings: Vec<String>,
}

/// A running server.
pub struct Server {
    process: Process,
    program: PathBuf,
    data_dir: PathBuf,
    /// Removed when dropped.
    _temporary: Option<TempDir>,
}

impl Server {
    /// Starts a server and waits until it serves.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let temporary = match options.data_dir {
            Some(_) => None,
            None => Some(temporary_dir()?),
        };
        let named = options.data_dir.as_deref().or(temporary.as_ref().map(TempDir::path));
        let data_dir = named.context("no data directory")?.to_owned();
        std::fs::create_dir_all(&data_dir).with_context(|| format!("making {}", data_dir.display()))?;
        let mut arguments = vec!["serve".to_owned(), "--data-dir".to_owned(), data_dir.display().to_string()];
        let settings = UNLIMITED.map(str::to_owned).into_iter().chain(options.settings);
        arguments.extend(settings.flat_map(|setting| ["--set".to_owned(), setting]));
        let process = Process::start(&options.program, arguments, data_dir.join("server.log")).await?;
        Ok(Self { process, program: options.program, data_dir, _temporary: temporary })
    }

    /// What its first start wrote for its users: the demo business's key and the secret of the tokens.
    pub fn access(&self) -> anyhow::Result<Access> {
        let api_key = read(&self.data_dir.join("demo-key"))?;
        Ok(Access {
            ingest: self.process.endpoint().clone().into(),
            gateways: self.process.endpoint().clone().into(),
            api_key: String::from_utf8(api_key).context("the demo key")?,
            minter: Minter::new(&read(&self.data_dir.join("secrets/jwt-secret"))?)?,
        })
    }

    /// Its process's id.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.process.pid()
    }

    /// From process start to serving, of each start.
    pub fn starts(&self) -> &[Duration] {
        &self.process.starts
    }

    /// What the stages failed on until now.
    pub async fn failed(&mut self) -> anyhow::Result<Failed> {
        let topics = self.run(&["topics", "list"]).await?;
        Failed::read(&topics, &[self.metrics().await?])
    }

    /// What it shows at `/metrics`.
    pub async fn metrics(&mut self) -> anyhow::Result<String> {
        self.process.metrics().await
    }

    /// Runs a command that ends, on its data. What it printed.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--data-dir").arg(&self.data_dir).kill_on_drop(true);
        let output = command.output().await.with_context(|| format!("starting {}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "eshaar {} failed:\n{said}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Kills it with SIGKILL, leaves it down for a while, and starts it again on the same data and port.
    pub async fn kill_and_restart(&mut self, down: Duration) -> anyhow::Result<()> {
        self.process.kill().await?;
        sleep(down).await;
        self.process.start_again().await
    }
}

/// A directory that is removed when it is dropped.
pub fn temporary_dir() -> anyhow::Result<TempDir> {
    tempfile::Builder::new().prefix("eshaar-load-").tempdir().context("making a data directory")
}

/// A file without the line end at its end.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(bytes.strip_suffix(b"\n").unwrap_or(&bytes).to_vec())
}
