//! A server that the load test starts itself: on a free port, with a data directory of its own, killed and started again
//! as the scenario wants.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rand::Rng as _;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::sleep;

use crate::http_client::{Client, Endpoint};
use crate::run::Access;
use crate::token::Minter;

/// Longest time from process start to serving.
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// How often readiness is asked for.
const POLL: Duration = Duration::from_millis(5);

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `eshaar` binary.
    pub program: PathBuf,
    /// Where its data goes; `None`: a new directory that is removed at the end.
    pub data_dir: Option<PathBuf>,
    /// `key=value` settings.
    pub settings: Vec<String>,
}

/// A running server.
pub struct Server {
    options: Options,
    data_dir: PathBuf,
    /// Removed when dropped.
    _temporary: Option<TempDir>,
    endpoint: Endpoint,
    child: Child,
    /// From process start to serving, of each start.
    pub starts: Vec<Duration>,
}

impl Server {
    /// Starts a server and waits until it serves.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let temporary = match options.data_dir {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("eshaar-load-").tempdir().context("making a data directory")?),
        };
        let named = options.data_dir.as_deref().or(temporary.as_ref().map(TempDir::path));
        let data_dir = named.context("no data directory")?.to_owned();
        std::fs::create_dir_all(&data_dir).with_context(|| format!("making {}", data_dir.display()))?;
        let endpoint: Endpoint = format!("http://127.0.0.1:{}", free_port()?).parse()?;
        let child = spawn(&options, &data_dir, &endpoint)?;
        let mut server = Self { options, data_dir, _temporary: temporary, endpoint, child, starts: Vec::new() };
        server.wait_until_serving(Instant::now()).await?;
        Ok(server)
    }

    /// What its first start wrote for its users: the demo business's key and the secret of the tokens.
    pub fn access(&self) -> anyhow::Result<Access> {
        let api_key = read(&self.data_dir.join("demo-key"))?;
        let secret = read(&self.data_dir.join("secrets/jwt-secret"))?;
        Ok(Access {
            endpoint: self.endpoint.clone(),
            api_key: String::from_utf8(api_key).context("the demo key")?,
            minter: Minter::new(&secret)?,
        })
    }

    /// Its process.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("the server has ended by itself")
    }

    /// Kills it with SIGKILL, leaves it down for a while, and starts it again on the same data and port.
    pub async fn kill_and_restart(&mut self, down: Duration) -> anyhow::Result<()> {
        self.kill().await?;
        sleep(down).await;
        let begin = Instant::now();
        self.child = spawn(&self.options, &self.data_dir, &self.endpoint)?;
        self.wait_until_serving(begin).await
    }

    /// Kills it with SIGKILL. An error where it had ended by itself before: a server must not.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the server ended by itself ({status}); its last words:\n{}", self.last_words());
        }
        self.child.kill().await.context("killing the server")
    }

    async fn wait_until_serving(&mut self, begin: Instant) -> anyhow::Result<()> {
        let mut client = Client::new(self.endpoint.clone(), "")?;
        loop {
            if let Ok(answer) = client.get("/health", Duration::from_secs(1)).await
                && answer.status.is_success()
            {
                self.starts.push(begin.elapsed());
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the server did not start ({status}); its last words:\n{}", self.last_words());
            }
            let waited = begin.elapsed();
            ensure!(
                waited < START_TIMEOUT,
                "the server does not serve after {} s:\n{}",
                waited.as_secs(),
                self.last_words()
            );
            sleep(POLL).await;
        }
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        let log = std::fs::read(self.data_dir.join("server.log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(2_000)..]).into_owned()
    }
}

fn spawn(options: &Options, data_dir: &Path, endpoint: &Endpoint) -> anyhow::Result<Child> {
    let log =
        File::options().create(true).append(true).open(data_dir.join("server.log")).context("opening server.log")?;
    let mut command = Command::new(&options.program);
    command.arg("serve").arg("--data-dir").arg(data_dir).arg("--listen").arg(&endpoint.authority);
    for setting in &options.settings {
        command.arg("--set").arg(setting);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    command.spawn().with_context(|| format!("starting {}", options.program.display()))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(bytes.strip_suffix(b"\n").unwrap_or(&bytes).to_vec())
}

/// A free port below the range that outgoing connections take: while the server is down, a client that connects to a port
/// of that range again and again can end up connected to itself, and hold the port.
fn free_port() -> anyhow::Result<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first_outgoing = range.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(32_768_u16);
    for _ in 0..100 {
        let port = rand::rng().random_range(10_000..first_outgoing.max(10_100));
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("found no free port in 100 attempts")
}
