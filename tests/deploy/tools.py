"""Running the programs that check the files of deploy/, and small servers to stand in for eshaar."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
DEPLOY = PROJECT / "deploy"


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a command of ours to its end and gives what it printed."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=50, check=False, **options)


def passes(*command: str | Path, **options: object) -> str:
    """Runs a command that must succeed."""
    done = run(*command, **options)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def program(name: str) -> Path:
    """A program beside this Python (from requirements.txt), or of the system."""
    beside = Path(sys.executable).parent / name
    found = beside if beside.exists() else shutil.which(name, path="/usr/local/bin:/usr/bin:/usr/sbin:/bin")
    assert found, f"{name} is missing: install_deploy_checkers in scripts/install.sh installs it"
    return Path(found)


def compose_loader() -> Sequence[str | Path]:
    """The command that reads a compose file as `docker compose` does: itself, or the library that it reads with."""
    docker = shutil.which("docker")
    if docker and run(docker, "compose", "version").returncode == 0:
        return [docker, "compose", "--profile", "*", "-f", PROJECT / "docker-compose.yml", "config", "--format", "json"]
    compose_go = PROJECT / ".engines/compose-go/cmd"
    assert compose_go.exists(), "compose-go is missing: install_deploy_checkers in scripts/install.sh installs it"
    return [compose_go, "-format", "json", PROJECT / "docker-compose.yml"]


@contextmanager
def http_server(status: int, seen: list[dict[str, str]] | None = None) -> Iterator[int]:
    """Answers every request with `status` on the port that it gives, and notes the requests' paths and headers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            # Chunks are not counted: nginx passes the length on.
            length = left = int(self.headers.get("Content-Length", 0))
            while left > 0 and (chunk := self.rfile.read(min(left, 1 << 20))):
                left -= len(chunk)
            if seen is not None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen.append({"path": self.path, "received": str(length - left), **headers})
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing: the tests look at what was seen."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
