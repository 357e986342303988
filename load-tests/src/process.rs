//! An `eshaar` process that a load test starts itself: on a free port, killed and started again as the scenario wants.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rand::Rng as _;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::http_client::{Client, Endpoint};

/// Longest time from process start to serving.
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// How often readiness is asked for.
const POLL: Duration = Duration::from_millis(5);

/// Longest time for a process to end when it is told to (R6.6).
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest time for the metrics of a process.
const METRICS_TIMEOUT: Duration = Duration::from_secs(10);

/// A process, and how it was started.
pub struct Process {
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    endpoint: Endpoint,
    child: Child,
    /// From process start to serving, of each start.
    pub starts: Vec<Duration>,
    /// From SIGTERM to its end, of each time that it was told to stop.
    pub stops: Vec<Duration>,
}

impl Process {
    /// Starts `program` with `arguments` and `--listen` on a free port, and waits until it serves. What it says goes to the
    /// file `log`.
    pub async fn start(program: &Path, arguments: Vec<String>, log: PathBuf) -> anyhow::Result<Self> {
        let endpoint: Endpoint = format!("http://127.0.0.1:{}", free_port()?).parse()?;
        let child = spawn(program, &arguments, &log, &endpoint)?;
        let program = program.to_owned();
        let mut process = Self { program, arguments, log, endpoint, child, starts: Vec::new(), stops: Vec::new() };
        process.wait_until_serving(Instant::now()).await?;
        Ok(process)
    }

    /// Where it listens.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Its id; an error where it has ended by itself.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("the server has ended by itself")
    }

    /// Kills it with SIGKILL. An error where it had ended by itself before: a server must not.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.still_running()?;
        self.child.kill().await.context("killing the server")
    }

    /// Starts it again, with the same arguments and port.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        self.child = spawn(&self.program, &self.arguments, &self.log, &self.endpoint)?;
        self.wait_until_serving(begin).await
    }

    /// Sends it a signal, by its name without `SIG`.
    pub async fn signal(&mut self, signal: &str) -> anyhow::Result<()> {
        self.still_running()?;
        let pid = self.pid()?.to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status().await.context("running kill")?;
        ensure!(sent.success(), "kill -s {signal} {pid} failed");
        Ok(())
    }

    /// Tells it to end, and waits until it has: well, and in time.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        self.signal("TERM").await?;
        let ended = timeout(STOP_TIMEOUT, self.child.wait()).await;
        let status = ended.with_context(|| format!("it did not stop within {} s", STOP_TIMEOUT.as_secs()))??;
        ensure!(status.success(), "it stopped with {status}; its last words:\n{}", self.last_words());
        self.stops.push(begin.elapsed());
        Ok(())
    }

    /// What it shows at `/metrics`; its last words, where it has ended by itself.
    pub async fn metrics(&mut self) -> anyhow::Result<String> {
        self.still_running()?;
        let mut client = Client::new(self.endpoint.clone().into(), 0, "")?;
        let answer = client.get("/metrics", METRICS_TIMEOUT).await.context("reading /metrics")?;
        ensure!(answer.status.is_success(), "/metrics was answered {}", answer.status);
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    fn still_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the server ended by itself ({status}); its last words:\n{}", self.last_words()),
            None => Ok(()),
        }
    }

    async fn wait_until_serving(&mut self, begin: Instant) -> anyhow::Result<()> {
        let mut client = Client::new(self.endpoint.clone().into(), 0, "")?;
        loop {
            if let Ok(answer) = client.get("/health", Duration::from_secs(1)).await
                && answer.status.is_success()
            {
                self.starts.push(begin.elapsed());
                return Ok(());
            }
            self.still_running().context("the server did not start")?;
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
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(2_000)..]).into_owned()
    }
}

fn spawn(program: &Path, arguments: &[String], log: &Path, endpoint: &Endpoint) -> anyhow::Result<Child> {
    let log =
        File::options().create(true).append(true).open(log).with_context(|| format!("opening {}", log.display()))?;
    let mut command = Command::new(program);
    command.args(arguments).arg("--listen").arg(&endpoint.authority);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    command.spawn().with_context(|| format!("starting {}", program.display()))
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
