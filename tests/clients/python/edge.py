"""nginx with deploy/nginx/nginx.conf before the processes of a cluster: names, ports and paths are those of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

from server import REPOSITORY, free_port


class Edge:
    """A running nginx."""

    def __init__(self, dir: Path, ingests: list[int], gateways: list[int]) -> None:
        self.dir = dir
        self.http_port = free_port()
        self.port = free_port()
        self.config = dir / "nginx.conf"
        self.access_log = dir / "access.log"
        self.process: subprocess.Popen[bytes] | None = None
        shutil.copy(REPOSITORY / "deploy/make-secrets", dir)
        subprocess.run([dir / "make-secrets"], check=True, capture_output=True, timeout=60)
        self.write(ingests, gateways)

    def write(self, ingests: list[int], gateways: list[int]) -> None:
        """The configuration: each name that stands for several replicas becomes a line for each of them."""
        text = (REPOSITORY / "deploy/nginx/nginx.conf").read_text()
        for role, ports in (("ingest", ingests), ("gateway", gateways)):
            line = next(line for line in text.splitlines() if f"server {role}:8080" in line)
            lines = [line.replace(f"{role}:8080", f"127.0.0.1:{port}") for port in ports]
            text = text.replace(line, "\n".join(lines))
        for old, new in {
            "listen 8080": f"listen 127.0.0.1:{self.http_port}",
            "listen 8443": f"listen 127.0.0.1:{self.port}",
            "/run/secrets": f"{self.dir}/secrets",
            "/tmp/nginx.pid": f"{self.dir}/nginx.pid",
            "/dev/stdout": str(self.access_log),
        }.items():
            assert old in text, old
            text = text.replace(old, new)
        self.config.write_text(text)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"wss://127.0.0.1:{self.port}/v1/ws"

    @property
    def trust(self) -> ssl.SSLContext:
        """Trusts the certificate that was made for this run, and no other."""
        context = ssl.create_default_context(cafile=str(self.dir / "secrets/tls_certificate"))
        context.check_hostname = False
        return context

    def start(self) -> Edge:
        nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        assert nginx, "nginx is missing: install_deploy_checkers in scripts/install.sh installs it"
        command = [nginx, "-e", self.dir / "error.log", "-c", self.config, "-g", "daemon off;"]
        with (self.dir / "nginx.out").open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"nginx does not listen:\n{(self.dir / 'nginx.out').read_text()}")

    def workers(self) -> set[int]:
        """The processes that serve, those included that only see old connections through."""
        assert self.process
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return {int(child) for child in children.split()}

    def reload(self) -> None:
        """`nginx -s reload`; returns when new workers serve."""
        assert self.process
        before = self.workers()
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while not self.workers() - before:
            assert time.monotonic() < deadline, "no new workers"
            time.sleep(0.02)

    def stop(self) -> None:
        """Cuts what is still connected."""
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(timeout=10) == 0
