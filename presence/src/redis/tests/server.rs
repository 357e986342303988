//! Real servers, private to a test: on free ports, in a directory of their own, gone with the test.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::redis::Options;

/// A `redis-server`, or one that runs as a sentinel.
pub(super) struct Server {
    pub(super) port: u16,
    dir: TempDir,
    arguments: Vec<String>,
    child: Child,
}

impl Server {
    /// A server with more arguments than it needs to be there.
    pub(super) fn start(arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), free_port(), arguments)
    }

    pub(super) fn start_in(dir: TempDir, port: u16, arguments: &[&str]) -> Self {
        let text = port.to_string();
        let place = ["--port", &text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let arguments: Vec<String> = place.iter().chain(arguments).map(|&argument| argument.to_owned()).collect();
        let child = spawn(dir.path(), &arguments);
        let mut server = Self { port, dir, arguments, child };
        server.wait_until_it_listens();
        server
    }

    /// A sentinel that watches the server at `port` as `mymaster`.
    pub(super) fn sentinel(port: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("sentinel.conf");
        let text = format!(
            "sentinel monitor mymaster 127.0.0.1 {port} 1\n\
             sentinel down-after-milliseconds mymaster 500\n\
             sentinel failover-timeout mymaster 2000\n"
        );
        std::fs::write(&config, text).unwrap();
        let (port, config) = (free_port(), config.to_str().unwrap().to_owned());
        let place = ["--sentinel", "--port", &port.to_string(), "--bind", "127.0.0.1"].map(str::to_owned);
        let arguments: Vec<String> = std::iter::once(config).chain(place).collect();
        let child = spawn(dir.path(), &arguments);
        let mut server = Self { port, dir, arguments, child };
        server.wait_until_it_listens();
        server
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Options for a client of it.
    pub(super) fn options(&self) -> Options {
        Options {
            addresses: vec![self.address()],
            response_timeout_ms: 1_000,
            reconnect_max_ms: 200,
            ..Options::default()
        }
    }

    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Runs again on the same port; what it knew is gone.
    pub(super) fn start_again(&mut self) {
        self.child = spawn(self.dir.path(), &self.arguments);
        self.wait_until_it_listens();
    }

    /// Sends it a signal, by name.
    pub(super) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    fn wait_until_it_listens(&mut self) {
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(self.child.try_wait().unwrap().is_none(), "redis-server ended: {}", log());
            assert!(begun.elapsed() < Duration::from_secs(10), "redis-server does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(dir: &Path, arguments: &[String]) -> Child {
    let log = File::create(dir.join("log")).unwrap();
    let mut command = Command::new("redis-server");
    command.args(arguments).current_dir(dir).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().expect("redis-server is installed (Debian: apt-get install redis-server)")
}

/// A port that nobody listens on, below those that the system gives to outgoing connections.
pub(super) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 12_000 + (number % 18_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Three masters that are a cluster, and share the slots.
pub(super) fn cluster() -> Vec<Server> {
    let nodes: Vec<Server> = (0..3)
        .map(|_| {
            let bus = free_port().to_string();
            let arguments = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "2000"];
            Server::start(&arguments)
        })
        .collect();
    let mut command = Command::new("redis-cli");
    command.args(["--cluster", "create"]).args(nodes.iter().map(Server::address)).arg("--cluster-yes");
    let output = command.output().expect("redis-cli is installed (Debian: apt-get install redis-tools)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    nodes
}

/// A key and a certificate for 127.0.0.1 that signs itself: `key.pem` and `cert.pem` in `dir`.
pub(super) fn certify(dir: &Path) {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    command.args([
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
    ]);
    let output = command.current_dir(dir).output().expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
