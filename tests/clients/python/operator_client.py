"""An operator's client of the HTTP API and of the command line, written from docs/api.md alone."""

from __future__ import annotations

import json
import re
import subprocess
import time

import httpx

from server import Server, binary, environment

SETTLE_LIMIT_S = 30.0


class Operator:
    """Whoever holds the key in `operator-key`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.key = (server.data_dir / "operator-key").read_text().strip()

    def call(self, method: str, path: str, key: str | None = None, **options) -> httpx.Response:
        """Calls the admin API; whatever the answer is."""
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"}
        url = f"{self.server.url}/v1/admin{path}"
        return httpx.request(method, url, headers=headers, timeout=30, trust_env=False, **options)

    def get(self, path: str, **query) -> dict:
        answer = self.call("GET", path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def letters(self, count: int, **query) -> list[dict]:
        """The dead letters, as soon as there are `count`: the store follows the log within moments."""
        deadline = time.monotonic() + SETTLE_LIMIT_S
        while True:
            letters, cursor = [], None
            while True:
                page = self.get("/dead-letters", **query, **({"cursor": cursor} if cursor else {}))
                letters += page["dead_letters"]
                cursor = page["next_cursor"]
                if cursor is None:
                    break
            if len(letters) >= count:
                assert len(letters) == count, letters
                return letters
            assert time.monotonic() < deadline, f"{len(letters)} of {count} dead letters after {SETTLE_LIMIT_S} s"
            time.sleep(0.05)

    def finished(self, task: str) -> dict:
        """A redrive or discard, once it is done."""
        deadline = time.monotonic() + SETTLE_LIMIT_S
        while not (found := self.get(f"/dead-letters/tasks/{task}"))["finished"]:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found

    def cli(self, *words: object) -> tuple[int, str, str]:
        """`eshaar dead-letters …`: exit code, output, errors."""
        command = [binary(), "dead-letters", *words, "--data-dir", self.server.data_dir, "--url", self.server.url]
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=60, env=environment()
        )
        return done.returncode, done.stdout, done.stderr

    def cli_json(self, *words: object) -> list[dict]:
        code, output, errors = self.cli(*words, "--json")
        assert code == 0, errors
        return [json.loads(line) for line in output.splitlines()]


def append(server: Server, topic: str, key: str, values: bytes, *, lines: bool = False, **headers: str) -> None:
    """Puts records into a topic as they are, with headers: `es_from` for `es-from`. The server must be stopped."""
    words = [binary(), "topics", "append", topic, "--key", key, "--data-dir", server.data_dir]
    words += ["--lines"] if lines else []
    for name, value in headers.items():
        words += ["--header", f"{re.sub('^es_', 'es-', name)}={value}"]
    done = subprocess.run(
        [str(word) for word in words], input=values, capture_output=True, timeout=60, env=environment()
    )
    assert done.returncode == 0, done.stderr.decode()
