"""An engine of a test's own, to be killed and paused: started by `scripts/engines`, beside those that all tests share."""

from __future__ import annotations

import subprocess
from pathlib import Path

from server import REPOSITORY


class OwnEngine:
    """One engine in a directory of its own."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name

    def start(self) -> OwnEngine:
        self.command("start")
        return self

    def command(self, command: str) -> None:
        """`kill`, `restart` (as it was, but for what it did not keep), `pause`, `resume` or `stop`."""
        words = [REPOSITORY / "scripts" / "engines", command, self.directory, self.name]
        done = subprocess.run(words, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr

    def told(self, name: str) -> str:
        """`ENGINE_<name>`: where it is, and its password."""
        lines = (self.directory / "engines.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)[f"ENGINE_{name}"]
