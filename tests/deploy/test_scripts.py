"""The project's scripts: what shellcheck says of them, and `scripts/engines` on the engine that starts fastest."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tools import PROJECT, passes, program, run

SCRIPTS = ["test", "start", ".ci/run", "scripts/install.sh", "scripts/engines", "deploy/make-secrets"]
Engines = Callable[..., "CompletedProcess[str]"]


def test_shellcheck_finds_nothing() -> None:
    parts = sorted(path.relative_to(PROJECT) for path in (PROJECT / "scripts/engines.d").glob("*.sh"))
    passes(program("shellcheck"), "--external-sources", *SCRIPTS, *parts, cwd=PROJECT)


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    """`scripts/engines COMMAND tmp_path …`; nothing is left when the test ends."""

    def command(name: str, *rest: str) -> CompletedProcess[str]:
        return run(PROJECT / "scripts/engines", name, tmp_path, *rest)

    yield command
    command("stop")


def redis(dir: Path, request: str) -> str:
    """What Redis answers to one line, within a second."""
    told = dict(line.split("=", 1) for line in (dir / "engines.env").read_text().splitlines())
    host, port = told["ENGINE_REDIS"].split(":")
    with socket.create_connection((host, int(port)), timeout=1) as connection:
        connection.sendall(f"AUTH {told['ENGINE_REDIS_PASSWORD']}\r\n{request}\r\n".encode())
        answer = b""
        while answer.count(b"\r\n") < 2:
            answer += connection.recv(4096) or b"\r\n\r\n"
        return answer.decode().split("\r\n")[1]


def test_an_engine_is_ready_when_start_returns_and_is_gone_after_stop(engines: Engines, tmp_path: Path) -> None:
    started = engines("start", "redis")
    assert started.returncode == 0, started.stderr
    assert redis(tmp_path, "PING") == "+PONG"
    port = int((tmp_path / "redis/port").read_text())
    told = (tmp_path / "engines.env").read_text()
    assert f"ENGINES_DIR={tmp_path}\n" in told
    assert "ENGINE_KAFKA" not in told, "only what runs is told of"
    assert engines("stop").returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    assert not (tmp_path / "engines.env").exists()
    assert "stopped" in engines("status").stdout


def test_a_killed_engine_comes_back_on_its_port(engines: Engines, tmp_path: Path) -> None:
    engines("start", "redis")
    assert engines("kill", "redis").returncode == 0
    with pytest.raises(ConnectionError):
        redis(tmp_path, "PING")
    assert engines("kill", "redis").returncode == 1, "it does not run"
    assert engines("restart", "redis").returncode == 0
    assert redis(tmp_path, "PING") == "+PONG"


def test_a_paused_engine_is_silent_until_it_is_resumed_and_can_be_stopped(engines: Engines, tmp_path: Path) -> None:
    engines("start", "redis")
    assert engines("pause", "redis").returncode == 0
    with pytest.raises(TimeoutError):
        redis(tmp_path, "PING")
    assert engines("resume", "redis").returncode == 0
    assert redis(tmp_path, "PING") == "+PONG"
    engines("pause", "redis")
    assert engines("stop", "redis").returncode == 0
    assert "stopped" in engines("status").stdout


def test_starting_what_runs_changes_nothing(engines: Engines, tmp_path: Path) -> None:
    engines("start", "redis")
    before = (tmp_path / "redis/pid").read_text()
    assert engines("start", "redis").returncode == 0
    assert (tmp_path / "redis/pid").read_text() == before


def test_an_engine_that_cannot_start_is_named_with_the_end_of_its_log(engines: Engines, tmp_path: Path) -> None:
    engines("start", "redis")
    engines("stop", "redis")
    (tmp_path / "redis/redis.conf").write_text("nonsense yes\n")
    failed = engines("start", "redis")
    assert failed.returncode == 1
    assert "redis ended before it was ready" in failed.stderr
    assert "nonsense yes" in failed.stderr


def test_what_is_not_an_engine_is_refused(engines: Engines) -> None:
    refused = engines("start", "mongo")
    assert refused.returncode == 2
    assert "no engine is called mongo" in refused.stderr


def test_a_process_that_took_over_the_id_of_an_engine_is_left_alone(engines: Engines, tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis/pid").write_text(f"{os.getpid()} 1\n")
    assert engines("kill", "redis").returncode == 1
    assert engines("stop").returncode == 0
