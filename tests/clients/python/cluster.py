"""Six real processes, two of each role, on the real engines that `scripts/engines` has started.

`ENGINE_…` say where the engines are; topics, tables and keys are a run's own.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

import httpx
import jwt

from server import START_LIMIT_S, STOP_LIMIT_S, binary, environment, free_port

ROLES = ("ingest", "processors", "gateway")


def engine(name: str) -> str:
    """Where an engine is."""
    return os.environ[f"ENGINE_{name}"]


class Process:
    """One process of a role; it can be killed and started again."""

    def __init__(self, cluster: Cluster, role: str, number: int) -> None:
        self.cluster = cluster
        self.name = f"{role}-{number}"
        self.role = role
        self.port = free_port()
        self.log_path = cluster.data_dir / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/ws"

    def launch(self) -> Process:
        """Starts the process."""
        words = [binary(), self.role, *self.cluster.options, "--listen", f"127.0.0.1:{self.port}"]
        words += ["--set", f"kafka.instance={self.name}"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment())
        return self

    def wait(self) -> Process:
        """Waits until `/health` says that it serves."""
        deadline = time.monotonic() + 2 * START_LIMIT_S
        while time.monotonic() < deadline:
            assert self.process is not None and self.process.poll() is None, f"{self.name} ended:\n{self.log_tail()}"
            try:
                if httpx.get(f"{self.url}/health", timeout=1).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} does not serve:\n{self.log_tail()}")

    def end(self, how: signal.Signals) -> int:
        """Ends it, or lets it be where it has ended; its exit code."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(how)
        try:
            return process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RuntimeError(f"{self.name} did not stop:\n{self.log_tail()}") from None

    def log_tail(self, lines: int = 40) -> str:
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class Cluster:
    """Topics, tables and six processes, with the defaults but for `settings` (`limits.whole=5/s`)."""

    def __init__(self, data_dir: Path, *settings: str) -> None:
        self.data_dir = data_dir
        # As for `Server`.
        self.settings = ("limits.key_per_s=0", *settings)
        self.name = f"t{secrets.token_hex(4)}"
        self.prefix = f"{self.name}."
        data_dir.mkdir()
        self.config = data_dir / "eshaar.toml"
        self.write_config()
        self.processes: list[Process] = []

    def write_config(self) -> None:
        self.config.write_text(
            f'''engines = "distributed"
topic_prefix = "{self.prefix}"
[kafka]
bootstrap_servers = "{engine("KAFKA")}"
replication_factor = 1
min_insync_replicas = 1
[scylla]
nodes = ["{engine("CQL")}"]
keyspace = "{self.name}"
username = "{engine("CQL_USER")}"
password = "{engine("CQL_PASSWORD")}"
replication = {{ strategy = "simple", factor = 1 }}
[redis]
addresses = ["{engine("REDIS")}"]
password = "{engine("REDIS_PASSWORD")}"
prefix = "{self.name}:"
[registry]
url = "{engine("REGISTRY")}"
'''
        )

    @property
    def options(self) -> list[str]:
        chosen = [word for setting in self.settings for word in ("--set", setting)]
        return ["--data-dir", str(self.data_dir), "--config", str(self.config), *chosen]

    def run(self, *words: str, settings: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """A command of the `eshaar` binary, however it ends."""
        extra = [word for key, value in (settings or {}).items() for word in ("--set", f"{key}={value}")]
        command = [str(binary()), *words, *self.options, *extra]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())

    def cli(self, *words: str) -> str:
        """The output of a command that ends well."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def apply(self) -> Cluster:
        """Makes tables and topics, as an operator does before the first start."""
        self.cli("store", "apply")
        self.cli("topics", "apply")
        return self

    def start(self) -> Cluster:
        self.processes = [Process(self, role, number).launch() for role in ROLES for number in range(2)]
        for process in self.processes:
            process.wait()
        return self

    def stop(self) -> None:
        """Ends every process in order; each must end well."""
        codes = {process.name: process.end(signal.SIGTERM) for process in self.processes}
        assert set(codes.values()) <= {0}, codes

    def kill(self) -> None:
        for process in self.processes:
            process.end(signal.SIGKILL)

    def of(self, role: str, number: int = 0) -> Process:
        return [process for process in self.processes if process.role == role][number]

    def new_key(self, business: str, *permissions: str, rate: str = "") -> str:
        permissions = permissions or ("messages:send", "messages:read", "webhooks:manage")
        wanted = [word for permission in permissions for word in ("--permission", permission)]
        wanted += ["--rate", rate] if rate else []
        return self.cli("keys", "create", "--business", business, *wanted).strip()

    def token(self, phone: str) -> str:
        secret = (self.data_dir / "secrets" / "jwt-secret").read_bytes().rstrip(b"\r\n")
        return jwt.encode({"sub": phone, "exp": time.time() + 3600}, secret, algorithm="HS256")
