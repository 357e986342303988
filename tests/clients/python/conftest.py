"""Fixtures: a server shared by the tests that can share one, and servers of their own for those that cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from business import Business
from phone import Phone
from server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the defaults, shared by every test: each uses phones of its own."""
    server = Server(tmp_path_factory.mktemp("shared") / "data").start()
    yield server
    assert server.stop() == 0, server.log_tail()


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of a test's own: `new_server("store.stream_ttl_s=3")`."""
    started: list[Server] = []

    def start(*settings: str) -> Server:
        started.append(Server(tmp_path / f"data-{len(started)}", *settings))
        return started[-1].start()

    yield start
    for server in started:
        server.kill()


@pytest_asyncio.fixture
async def demo(server: Server) -> AsyncIterator[Business]:
    """The business `demo` on the shared server."""
    async with Business(server.url, server.demo_key) as business:
        yield business


@pytest.fixture
def phone(server: Server) -> Phone:
    """A phone that nobody has written to yet, on the shared server."""
    return Phone.new(server)
