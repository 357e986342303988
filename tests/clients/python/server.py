"""A real `eshaar serve` on a temporary data directory and a free port.

Knows the command line and two files of the data directory, as the README gives them; nothing of what is inside.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import jwt

REPOSITORY = Path(__file__).resolve().parents[3]
START_LIMIT_S = 20.0
STOP_LIMIT_S = 35.0

_phones = itertools.count(random.Random().randrange(10_000_000))


def binary() -> Path:
    """The server under test: `ESHAAR_BIN`, or the one that `cargo build` makes."""
    return Path(os.environ.get("ESHAAR_BIN", REPOSITORY / "target" / "debug" / "eshaar"))


def environment() -> dict[str, str]:
    """The environment without `ESHAAR_…`, which would configure the server under test."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ESHAAR_")}


def new_phone() -> str:
    """A Saudi mobile number that no other test of this run uses."""
    return f"+9665{next(_phones) % 100_000_000:08d}"


def new_business() -> str:
    """A business id that no other test of this run uses."""
    return f"acme-{next(_phones) % 100_000_000}"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One server process, which may be killed and started again on the same data."""

    def __init__(self, data_dir: Path, *settings: str) -> None:
        self.data_dir = data_dir
        # The rate of all keys would pace every test that sends much; a test of it sets it again.
        self.settings = ["limits.key_per_s=0", *settings]
        self.port = free_port()
        self.log_path = data_dir.parent / f"{data_dir.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/ws"

    def start(self) -> Server:
        """Starts the process and waits until `/health` says that it serves."""
        command = [binary(), "serve", "--data-dir", self.data_dir, "--listen", f"127.0.0.1:{self.port}"]
        for setting in self.settings:
            command += ["--set", setting]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment()
            )
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log_tail()}")
            try:
                if httpx.get(f"{self.url}/health", timeout=1).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"not serving after {START_LIMIT_S} s:\n{self.log_tail()}")

    def stop(self) -> int:
        """Asks the process to end, as an init system does; returns its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """kill -9."""
        return self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> int:
        if self.process is None:
            return 0
        process, self.process = self.process, None
        if process.poll() is None:
            process.send_signal(how)
        try:
            return process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError(f"not stopped after {STOP_LIMIT_S} s:\n{self.log_tail()}") from None

    def log_tail(self, lines: int = 40) -> str:
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def cli(self, *arguments: str) -> str:
        """The output of a command of the `eshaar` binary on this server's data."""
        command, *rest = arguments
        words = [binary(), *command.split(), "--data-dir", self.data_dir, *rest]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment())
        assert done.returncode == 0, f"{arguments} ended with {done.returncode}: {done.stderr}"
        return done.stdout

    @property
    def demo_key(self) -> str:
        return (self.data_dir / "demo-key").read_text().strip()

    def new_key(self, business: str, *permissions: str, rate: str = "") -> str:
        """A new API key of a business, from the command line; with a rate of its own, e.g. 100/min, if one is given."""
        permissions = permissions or ("messages:send", "messages:read", "webhooks:manage")
        wanted = [word for permission in permissions for word in ("--permission", permission)]
        wanted += ["--rate", rate] if rate else []
        output = self.cli("keys create", "--business", business, *wanted)
        return next(word for word in output.split() if word.startswith("esk_"))

    @property
    def jwt_secret(self) -> bytes:
        return (self.data_dir / "secrets" / "jwt-secret").read_bytes().rstrip(b"\r\n")

    def token(self, phone: str, ttl_s: float = 3600, **claims: object) -> str:
        """A mobile user's token, as the business's own identity service makes it."""
        payload = {"sub": phone, "exp": time.time() + ttl_s} | claims
        return jwt.encode(payload, self.jwt_secret, algorithm="HS256")

    def rss_kib(self) -> int:
        """Resident memory of the process, in KiB."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))

    def topic(self, name: str, *options: str) -> list[dict]:
        """Every record of a topic so far, as `eshaar topics tail --json` prints it."""
        output = self.cli("topics tail", name, "--from-start", "--json", "--no-follow", *options)
        return [json.loads(line) for line in output.splitlines()]
