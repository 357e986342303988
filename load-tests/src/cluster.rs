//! eshaar as several processes of each role, on real engines that `scripts/engines` has started: topics, tables and keys of
//! its own, so that one set of engines serves many runs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use parking_lot::Mutex as SyncMutex;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::engines::Engines;
use crate::failed::Failed;
use crate::http_client::{Endpoint, Endpoints};
use crate::process::Process;
use crate::run::Access;
use crate::server::{UNLIMITED, read, temporary_dir};
use crate::token::Minter;
use crate::watch;

/// A role of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The HTTP API.
    Ingest,
    /// The stages.
    Processors,
    /// The WebSockets.
    Gateway,
}

impl Role {
    const ALL: [Self; 3] = [Self::Ingest, Self::Processors, Self::Gateway];

    /// Its name, as a command of `eshaar`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Processors => "processors",
            Self::Gateway => "gateway",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How to start a cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `eshaar` binary.
    pub program: PathBuf,
    /// Where `scripts/engines start` put its engines.
    pub engines: PathBuf,
    /// Processes of each role.
    pub of_each: usize,
    /// `key=value` settings of every process.
    pub settings: Vec<String>,
}

/// A running cluster.
pub struct Cluster {
    options: Options,
    /// What everything of it in the engines is called.
    name: String,
    dir: TempDir,
    ingest: Vec<Endpoint>,
    gateways: Vec<Endpoint>,
    api_key: String,
    /// Each behind a lock of its own: what is done to one takes a while.
    members: Vec<Member>,
    joined: SyncMutex<usize>,
}

/// A process of the cluster.
struct Member {
    role: Role,
    process: Mutex<Process>,
    /// Its id while it runs, for those who only look.
    pid: SyncMutex<Option<u32>>,
    starts: SyncMutex<Vec<Duration>>,
    stops: SyncMutex<Vec<Duration>>,
}

impl Member {
    fn new(role: Role, process: Process) -> Self {
        let member = Self {
            role,
            pid: SyncMutex::default(),
            starts: SyncMutex::default(),
            stops: SyncMutex::default(),
            process: Mutex::new(process),
        };
        if let Ok(process) = member.process.try_lock() {
            member.note(&process);
        }
        member
    }

    fn note(&self, process: &Process) {
        *self.pid.lock() = process.pid().ok();
        self.starts.lock().clone_from(&process.starts);
        self.stops.lock().clone_from(&process.stops);
    }
}

impl Cluster {
    /// Makes tables, topics and a key, and starts as many processes of each role as the options say.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let dir = temporary_dir()?;
        let engines = Engines::read(&options.engines)?;
        let name = format!("load{:08x}", rand::random::<u32>());
        std::fs::write(dir.path().join("eshaar.toml"), engines.configuration(&name)).context("writing eshaar.toml")?;
        let eshaar = |arguments: &'static [&'static str]| once(&options, dir.path(), arguments);
        eshaar(&["store", "apply"]).await?;
        eshaar(&["topics", "apply"]).await?;
        let create =
            &["keys", "create", "--business", "acme", "--permission", "messages:send", "--permission", "messages:read"];
        let api_key = eshaar(create).await?;
        let mut members = Vec::new();
        let (mut ingest, mut gateways) = (Vec::new(), Vec::new());
        for role in Role::ALL {
            for number in 0..options.of_each {
                let process = start(&options, dir.path(), role, number).await?;
                match role {
                    Role::Ingest => ingest.push(process.endpoint().clone()),
                    Role::Gateway => gateways.push(process.endpoint().clone()),
                    Role::Processors => {}
                }
                members.push(Member::new(role, process));
            }
        }
        let joined = SyncMutex::new(options.of_each);
        Ok(Self { options, name, dir, ingest, gateways, api_key: api_key.trim().to_owned(), members, joined })
    }

    /// Where it is, and what opens it.
    pub fn access(&self) -> anyhow::Result<Access> {
        Ok(Access {
            ingest: Endpoints::new(self.ingest.clone())?,
            gateways: Endpoints::new(self.gateways.clone())?,
            api_key: self.api_key.clone(),
            minter: Minter::new(&read(&self.dir.path().join("secrets/jwt-secret"))?)?,
        })
    }

    /// The processes that run now.
    pub fn processes(&self) -> Vec<watch::Process> {
        let running = |member: &Member| Some(watch::Process { role: member.role.name(), pid: (*member.pid.lock())? });
        self.members.iter().filter_map(running).collect()
    }

    /// From process start to serving, of each start.
    pub fn starts(&self) -> Vec<Duration> {
        self.members.iter().flat_map(|member| member.starts.lock().clone()).collect()
    }

    /// From SIGTERM to the end, of each process that was told to stop.
    pub fn stops(&self) -> Vec<Duration> {
        self.members.iter().flat_map(|member| member.stops.lock().clone()).collect()
    }

    /// What the stages failed on until now.
    pub async fn failed(&self) -> anyhow::Result<Failed> {
        let topics = self.run(&["topics", "list"]).await?;
        Failed::read(&topics, &self.metrics().await?)
    }

    /// Runs a command that ends. What it printed.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        once(&self.options, self.dir.path(), arguments).await
    }

    /// What each process shows at `/metrics`.
    pub async fn metrics(&self) -> anyhow::Result<Vec<String>> {
        let mut metrics = Vec::new();
        for member in &self.members {
            let shown = member.process.lock().await.metrics().await;
            metrics.push(shown.with_context(|| format!("one of {}", member.role))?);
        }
        Ok(metrics)
    }

    fn member(&self, role: Role, number: usize) -> anyhow::Result<&Member> {
        let mut of_role = self.members.iter().filter(|member| member.role == role);
        of_role.nth(number).with_context(|| format!("there are only {} processes of {role}", self.options.of_each))
    }

    /// Kills a process with SIGKILL, and starts it again after a while.
    pub async fn kill(&self, role: Role, number: usize, down: Duration) -> anyhow::Result<()> {
        let member = self.member(role, number)?;
        let mut process = member.process.lock().await;
        *member.pid.lock() = None;
        process.kill().await?;
        tokio::time::sleep(down).await;
        process.start_again().await?;
        member.note(&process);
        Ok(())
    }

    /// Stops a process with SIGSTOP, and lets it go on after a while.
    pub async fn pause(&self, role: Role, number: usize, pause: Duration) -> anyhow::Result<()> {
        let mut process = self.member(role, number)?.process.lock().await;
        process.signal("STOP").await?;
        tokio::time::sleep(pause).await;
        process.signal("CONT").await
    }

    /// Tells a process to stop, and starts it again after a while.
    pub async fn restart(&self, role: Role, number: usize, down: Duration) -> anyhow::Result<()> {
        let member = self.member(role, number)?;
        let mut process = member.process.lock().await;
        *member.pid.lock() = None;
        process.stop().await.with_context(|| format!("stopping {role} {number}"))?;
        tokio::time::sleep(down).await;
        process.start_again().await?;
        member.note(&process);
        Ok(())
    }

    /// A further process of a role, which leaves in order after a while.
    pub async fn join(&self, role: Role, stay: Duration) -> anyhow::Result<()> {
        let number = {
            let mut joined = self.joined.lock();
            *joined += 1;
            *joined
        };
        let mut process = start(&self.options, self.dir.path(), role, number).await?;
        tokio::time::sleep(stay).await;
        process.stop().await.with_context(|| format!("stopping the {role} that had joined"))?;
        Ok(())
    }

    /// Ends the processes, and drops the tables and topics: what a run leaves behind is a burden to the next.
    pub async fn clear(&self) -> anyhow::Result<()> {
        for member in &self.members {
            member.process.lock().await.kill().await?;
        }
        Engines::read(&self.options.engines)?.forget(&self.name).await
    }

    /// Deletes everything that the lanes hold.
    pub async fn delete_lanes(&self) -> anyhow::Result<()> {
        Engines::read(&self.options.engines)?.delete_lanes(&self.name).await
    }

    /// Runs `scripts/engines COMMAND DIR ENGINE`.
    pub async fn engine(&self, command: &str, engine: &str) -> anyhow::Result<()> {
        let script = std::env::current_dir()?.join("scripts/engines");
        let status = Command::new(&script).arg(command).arg(&self.options.engines).arg(engine).status().await;
        let status = status.with_context(|| format!("running {} (from the project's root)", script.display()))?;
        ensure!(status.success(), "scripts/engines {command} {engine} failed");
        Ok(())
    }
}

fn shared_arguments(options: &Options, dir: &Path) -> Vec<String> {
    let (dir, file) = (dir.display().to_string(), dir.join("eshaar.toml").display().to_string());
    let settings = UNLIMITED.into_iter().chain(options.settings.iter().map(String::as_str));
    let settings = settings.flat_map(|setting| ["--set".to_owned(), setting.to_owned()]);
    ["--data-dir".to_owned(), dir, "--config".to_owned(), file].into_iter().chain(settings).collect()
}

async fn start(options: &Options, dir: &Path, role: Role, number: usize) -> anyhow::Result<Process> {
    let mut arguments = vec![role.name().to_owned()];
    arguments.extend(shared_arguments(options, dir));
    arguments.extend(["--set".to_owned(), format!("kafka.instance={role}-{number}")]);
    let started = Process::start(&options.program, arguments, dir.join(format!("{role}-{number}.log"))).await;
    started.with_context(|| format!("starting {role} {number}"))
}

/// Runs a command that ends. What it printed.
async fn once(options: &Options, dir: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(&options.program);
    command.args(arguments).args(shared_arguments(options, dir)).kill_on_drop(true);
    let output = command.output().await.with_context(|| format!("starting {}", options.program.display()))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "eshaar {} failed:\n{printed}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(printed)
}
